"""records/wrap.py: the same program in fewer bytes, the records made with it, and back."""

import lzma
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, make_demo_data
from test_run import environment

from records.check import check_folder

WRAP = ROOT / "records/wrap.py"


def wrap(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, WRAP, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def wrapped(tmp_path):
    path = tmp_path / "wrapped.py"
    done = wrap(ROOT / "train_gpt.py", path)
    assert done.returncode == 0, done.stderr
    return path


def test_it_is_small_and_comes_back_to_the_letter(wrapped, tmp_path):
    """Base85 makes five bytes of four, and a line's quotes and its end are 3 of 1,003."""
    source = (ROOT / "train_gpt.py").read_bytes()
    packed = len(lzma.compress(source, preset=9 | lzma.PRESET_EXTREME))
    assert wrapped.stat().st_size < 1.254 * packed + 100 < 0.4 * len(source)
    done = wrap("--unwrap", wrapped, tmp_path / "back.py")
    assert done.returncode == 0 and f"{len(source)} bytes for the" in done.stdout
    assert (tmp_path / "back.py").read_bytes() == source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.py", "wrapped.py"]


def test_a_record_made_with_it(wrapped, tmp_path):
    """The same artifact; pack.py and check.py take the wrapped script for the code."""
    shutil.copytree(make_demo_data(tmp_path / "made"), tmp_path / "data/demo")
    sizes = {}
    for script in (wrapped, ROOT / "train_gpt.py"):
        changes = environment(ITERATIONS=2, TTT_PROTOCOL="off", RUN_ID=script.stem)
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=changes, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        sizes[script.stem] = script.stat().st_size
        assert f"Code size: {sizes[script.stem]} bytes\n" in done.stdout
    artifacts = [(tmp_path / f"logs/{name}.pcll").read_bytes() for name in sizes]
    assert artifacts[0] == artifacts[1]

    words = ["entry", tmp_path / "logs/wrapped.txt", "--author", "me", "--date", "2026-03-01"]
    command = [sys.executable, ROOT / "records/pack.py", *words, "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    folder = tmp_path / "track_non_record_16mb/2026-03-01_entry"
    assert (folder / "train_gpt.py").read_bytes() == wrapped.read_bytes()
    found = {finding.check: finding for finding in check_folder(folder)}
    assert found["script"].verdict == "PROVEN"
    assert found["code size"].verdict == "PROVEN"
    assert found["code size"].number == sizes["wrapped"]


def test_any_spelling_is_taken_out(tmp_path):
    """As entries of the challenge have it; it would print, and is not run."""
    (tmp_path / "theirs.py").write_text(
        "import zlib as Z, base64 as B\n"
        "exec(Z.decompress(B.b64decode(b'eNorKMrMK9FQSk5U0gQAGFIDhw==')))\n"
    )
    done = wrap("--unwrap", tmp_path / "theirs.py", tmp_path / "out.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.py").read_text() == 'print("ca")'


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["text.md", "out.py"], "text.md is no Python program: "),
        (["plain.py", "plain.py"], "plain.py is the script itself: give another name."),
        (["--unwrap", "plain.py", "out.py"], "plain.py unpacks no other program."),
        (["--unwrap", "large.py", "out.py"], "large.py has more than 1000000 bytes."),
        (["/dev/zero", "out.py"], "/dev/zero: is no regular file."),
        (["absent.py", "out.py"], "absent.py: No such file or directory."),
        (["plain.py", "absent/out.py"], "No such file or directory."),
    ],
)
def test_errors_are_a_sentence_and_leave_nothing(tmp_path, words, sentence):
    (tmp_path / "text.md").write_text("What it is: a text.\n")
    (tmp_path / "plain.py").write_text("print(1)\n")
    (tmp_path / "large.py").write_text("#" * 1_000_001)
    command = [sys.executable, WRAP, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("wrap.py: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["large.py", "plain.py", "text.md"]
    assert (tmp_path / "plain.py").read_text() == "print(1)\n"
