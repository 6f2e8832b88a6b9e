"""tests/bench/picture.py: what it takes from the README, and what it says of no table."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests/bench"))
import picture  # noqa: E402

TABLE = """# Results

| other | table |
| --- | --- |
| a | b |

| | weights | before export | after export | code + model bytes |
| --- | --- | --- | --- | --- |
| `ours` | 4 | 2.1, 2.2 | 2.15, 2.25 | 1,900,000, 2,000,000 |
| entry 1 | 5 | 2.3 | 2.31 | 3,100,000 |
| entry 2 | 5 | 2.3 | 3.31 | 3,200,000 |

| entry 3 | 5 | 2.3 | 3.31 | 3,200,000 |
"""


def test_the_rows_of_the_first_table_with_the_columns():
    assert picture.read_table(TABLE) == [
        picture.Row("ours", [2.15, 2.25], [1_900_000, 2_000_000]),
        picture.Row("entry 1", [2.31], [3_100_000]),
        picture.Row("entry 2", [3.31], [3_200_000]),
    ]


def test_the_readme_has_such_a_table():
    rows = {row.name: row for row in picture.read_table((ROOT / "README.md").read_text())}
    assert rows["challenge baseline, int8 + zlib"].bytes == [3_603_081]
    assert rows["entry 532, adaptation off"].bpb == [3.0206]
    assert len(rows) >= 7


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(README): the exit code; picture.png is what it draws."""

    def run(text: str) -> int:
        readme = tmp_path / "README.md"
        readme.write_text(text)
        words = [readme, "--out", tmp_path / "picture.png"]
        monkeypatch.setattr(sys, "argv", ["picture.py", *map(str, words)])
        return picture.main()

    return run


def test_a_picture_twice_is_the_same(draw, tmp_path, capsys):
    assert draw(TABLE) == 0 and capsys.readouterr().out.endswith("left out: entry 2\n")
    first = (tmp_path / "picture.png").read_bytes()
    assert draw(TABLE) == 0
    assert first[:4] == b"\x89PNG" and (tmp_path / "picture.png").read_bytes() == first


def test_without_the_table_there_is_a_sentence_and_no_picture(draw, tmp_path, capsys):
    for text in ("# Results\n", TABLE.replace("2.31 |", "good |")):
        assert draw(text) == 2 and not (tmp_path / "picture.png").exists()
        assert capsys.readouterr().err.startswith(f"{tmp_path}/README.md: ")
