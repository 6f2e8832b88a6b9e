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


RATES = """
| bits per weight, 100 weights | 2.5 | 3 |
| --- | --- | --- |
| int6 and GPTQ | 1.3 | 0.6 |
| **ours** | **0.3** | 0.1 |
| ours as a part of the peer's | ×0.2 | ×0.2 |

| bits per weight | 3.5 |
| --- | --- |
| ours | 0.05 |
"""


def test_the_rows_of_the_first_table_with_the_columns():
    assert picture.read_results(TABLE) == [
        picture.Row("ours", [2.15, 2.25], [1_900_000, 2_000_000]),
        picture.Row("entry 1", [2.31], [3_100_000]),
        picture.Row("entry 2", [3.31], [3_200_000]),
    ]


def test_the_curves_of_tables_that_name_a_size():
    assert picture.read_rates(RATES) == {
        "int6 and GPTQ, 100 weights": [(2.5, 1.3), (3.0, 0.6)],
        "ours, 100 weights": [(2.5, 0.3), (3.0, 0.1)],
    }


def test_the_project_has_such_tables():
    rows = {row.name: row for row in picture.read_results((ROOT / "README.md").read_text())}
    assert rows["challenge baseline, int8 + zlib"].bytes == [3_603_081]
    assert rows["entry 532, adaptation off"].bpb == [3.0206]
    assert len(rows) >= 7
    curves = picture.read_rates((ROOT / "records/measurements.md").read_text())
    assert curves["ours, 79,932 weights"][1] == (3.0, 0.1381) and len(curves) == 4


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(README, measurements): the exit code; picture.png is what it draws."""

    def run(*texts: str) -> int:
        paths = [tmp_path / "README.md", tmp_path / "rates.md"]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        words = [*paths, "--out", tmp_path / "picture.png"]
        monkeypatch.setattr(sys, "argv", ["picture.py", *map(str, words)])
        return picture.main()

    return run


def test_a_picture_twice_is_the_same(draw, tmp_path, capsys):
    assert draw(TABLE, RATES) == 0 and capsys.readouterr().out.endswith("left out: entry 2\n")
    first = (tmp_path / "picture.png").read_bytes()
    assert draw(TABLE, RATES) == 0
    assert first[:4] == b"\x89PNG" and (tmp_path / "picture.png").read_bytes() == first


def test_without_a_table_there_is_a_sentence_and_no_picture(draw, tmp_path, capsys):
    for texts in (("# Results\n", RATES), (TABLE.replace("2.31 |", "good |"), RATES), (TABLE, "")):
        assert draw(*texts) == 2 and not (tmp_path / "picture.png").exists()
        said = capsys.readouterr().err
        assert said.startswith("picture.py: ") and said.count("\n") == 1
