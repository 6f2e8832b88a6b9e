"""tests/bench/picture.py: what it takes from the README, and what it says of no table."""

import subprocess
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests/bench"))
import picture  # noqa: E402

PROGRAM = ROOT / "tests/bench/picture.py"
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


def draw(folder, text):
    (folder / "README.md").write_text(text)
    words = [sys.executable, PROGRAM, folder / "README.md", "--out", folder / "picture.png"]
    return subprocess.run(words, capture_output=True, text=True)


def test_a_picture_twice_is_the_same(tmp_path):
    done = draw(tmp_path, TABLE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("left out: entry 2\n")
    first = (tmp_path / "picture.png").read_bytes()
    draw(tmp_path, TABLE)
    assert first[:4] == b"\x89PNG" and (tmp_path / "picture.png").read_bytes() == first


def test_without_the_table_there_is_a_sentence_and_no_picture(tmp_path):
    broken = TABLE.replace("2.31 |", "good |")
    for text in ("# Results\n", broken):
        done = draw(tmp_path, text)
        assert done.returncode == 2 and not (tmp_path / "picture.png").exists()
        assert done.stderr.startswith(f"{tmp_path}/README.md: ") and "Traceback" not in done.stderr
