"""records/wrap.py: the same program in fewer bytes, the records made with it, and back."""

import base64
import lzma
import os
import subprocess
import sys
import zlib

import pytest
from conftest import ROOT
from test_pack import packed, with_source

from records import wrap
from records.check import check_folder

ENTRY = ROOT / "records/track_non_record_16mb/2026-11-29_cpu_6x256_pcll"


def run_wrap(*words: object) -> int:
    return wrap.main(list(map(str, words)))


def test_it_is_small_and_comes_back_to_the_letter(tmp_path):
    """Base85 makes five bytes of four, and a line's quotes and its end are 3 of 1,003."""
    source = (ROOT / "train_gpt.py").read_bytes()
    packed = len(lzma.compress(source, preset=9 | lzma.PRESET_EXTREME))
    command = [sys.executable, ROOT / "records/wrap.py", ROOT / "train_gpt.py", "wrapped.py"]
    subprocess.run(command, cwd=tmp_path, check=True)
    wrapped, back = tmp_path / "wrapped.py", tmp_path / "back.py"
    assert wrapped.stat().st_size < 1.254 * packed + 100 < 0.4 * len(source)
    assert run_wrap("--unwrap", wrapped, back) == 0
    assert back.read_bytes() == source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.py", "wrapped.py"]


SCRIPT = """# coding: {}
import sys
from dataclasses import dataclass
@dataclass
class Name:
    text: str
print(__name__, sys.argv[1:], Name(__file__) == Name(sys.argv[0]), ascii('é'))
sys.exit(3)
"""
ENCODINGS = [("latin-1", "\n"), ("utf-8", "\r"), ("utf-8-sig", "\r\n")]


@pytest.mark.parametrize("encoding, end", ENCODINGS)
def test_it_runs_as_the_script_does_and_comes_back(tmp_path, encoding, end):
    """As the main program, with its arguments, and it finds its file."""
    script, wrapped, back = (tmp_path / os.fsdecode(name) for name in (b"\xff.py", b"w", b"b"))
    source = SCRIPT.format(encoding).replace("\n", end).encode(encoding)
    script.write_bytes(source)
    assert run_wrap(script, wrapped) == run_wrap("--unwrap", wrapped, back) == 0
    assert back.read_bytes() == source
    for path in (script, wrapped):
        done = subprocess.run([sys.executable, path, "a b"], capture_output=True, text=True)
        said = "__main__ ['a b'] True '\\xe9'\n"
        assert (done.returncode, done.stdout) == (3, said), done.stderr


def test_a_record_made_with_it(tmp_path):
    """pack.py and check.py take the wrapped script, as its log embeds it, for the code."""
    wrapped = tmp_path / "wrapped.py"
    assert run_wrap(ENTRY / "train_gpt.py", wrapped) == 0
    log = with_source((ENTRY / "train_seed42.log").read_text(), wrapped.read_text())
    folder = packed(tmp_path, log)
    assert (folder / "train_gpt.py").read_bytes() == wrapped.read_bytes()
    found = {finding.check: finding for finding in check_folder(folder).findings}
    assert found["size"].verdict in ("CONSISTENT", "PROVEN")
    assert found["size"].number == wrapped.stat().st_size + 1_652_009


def test_any_spelling_is_taken_out(tmp_path):
    """As entries of the challenge have it; it would print, and is not run."""
    program = "import os\n\n\nprint('ran')\n" + "".join(f"x = {i**9}\n" for i in range(99))
    packed = base64.b64encode(zlib.compress(program.encode()))
    script = f"import zlib as Z, base64 as B\nexec(Z.decompress(B.b64decode({packed})))\n"
    (tmp_path / "theirs.py").write_text(script)
    assert run_wrap("--unwrap", tmp_path / "theirs.py", tmp_path / "out.py") == 0
    assert (tmp_path / "out.py").read_text() == program


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["text.md", "out.py"], "text.md is no Python program: "),
        (["plain.py", "plain.py"], "plain.py is the script itself: give another name."),
        (["--unwrap", "plain.py", "out.py"], "plain.py unpacks no other program that is whole."),
        (["--unwrap", "large.py", "out.py"], "large.py has more than 1000000 bytes."),
        (["/dev/zero", "out.py"], "/dev/zero: is no regular file."),
        (["absent.py", "out.py"], "absent.py: No such file or directory."),
        (["plain.py", "absent/out.py"], ": absent/out.py: No such file or directory."),
        (["plain.py", "."], ". is there and is no regular file."),
    ],
)
def test_errors_are_a_sentence_and_leave_nothing(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    contents = {
        "large.py": "#" * 1_000_001,
        "plain.py": "print(1)\n",
        "text.md": "What it is: a text.\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    assert run_wrap(*words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("wrap.py: ") and sentence in said.err
    assert said.err.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents
