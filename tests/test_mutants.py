"""The table of mutants stays true, and the tool that runs them says what survives."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import mutants
import pytest
from conftest import ROOT
from mutants import Mutant

in_a_checkout = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(),
    reason="needs a git checkout, to know which files are tracked",
)


# ---- The table


def test_there_are_enough_of_each_file():
    counts = Counter(mutant.file for mutant in mutants.MUTANTS)
    assert counts.total() >= 60
    assert counts["train_gpt.py"] >= 40 and counts["verify.py"] >= 12
    assert counts["decode_artifact.py"] >= 8  # the rows of "Reject"
    for name in ("check.py", "logs.py", "code.py", "pack.py"):
        assert counts[f"records/{name}"] >= 3, name


def test_every_old_text_occurs_once():
    texts = {mutant.file: (ROOT / mutant.file).read_text() for mutant in mutants.MUTANTS}
    counts = [(m.file, m.old, texts[m.file].count(m.old)) for m in mutants.MUTANTS]
    assert not [row for row in counts if row[2] != 1]


def test_every_mutant_is_a_change_of_its_own():
    changes = [(m.file, m.old, m.new) for m in mutants.MUTANTS]
    assert len(set(changes)) == len(changes)
    assert not [m.breaks for m in mutants.MUTANTS if m.old == m.new]
    assert len({m.breaks for m in mutants.MUTANTS}) == len(changes)


def test_every_named_test_exists():
    for mutant in mutants.MUTANTS:
        file, _, name = mutant.test.partition("::")
        function = name.partition("[")[0]
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), mutant.test


def test_every_finding_of_verify_has_a_mutant():
    findings = "size integrity config tokenizer bytes val_bpb adaptation claim".split()
    broken = {m.breaks.partition(": ")[0] for m in mutants.MUTANTS if m.file == "verify.py"}
    assert {*findings} <= broken


# ---- The tool

HARMLESS = Mutant("program.py", "LIMIT = 64", "LIMIT = 65", "nothing", "test_program.py::test_it")
HARMFUL = Mutant("program.py", "double = 2", "double = 3", "it", "test_program.py::test_it")


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A small one, in place of ours."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "program.py").write_text("LIMIT = 64\ndouble = 2\n")
    test = "from program import double\n\n\ndef test_it():\n    assert double == 2\n"
    (tmp_path / "tests/test_program.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    for words in ("init -q", "add ."):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    """Of the repository, but for git's own."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if ".git" not in path.parts}


@in_a_checkout
def test_a_survivor_is_reported_and_nothing_else_is_touched(repository, capsys):
    before = files(repository)
    assert mutants.run([HARMLESS, HARMFUL]) == 1
    assert files(repository) == before
    first, reason, second, counts = capsys.readouterr().out.splitlines()
    assert first.startswith("SURVIVED ") and first.endswith(" s  program.py: nothing")
    assert reason.strip() == "tests/test_program.py::test_it: passes all the same"
    assert second.startswith("killed   ") and second.endswith(" s  program.py: it")
    assert counts.startswith("2 mutants: 1 SURVIVED, 1 killed; ")


@in_a_checkout
def test_a_test_that_fails_by_itself_kills_nothing(repository, capsys):
    absent = Mutant("program.py", "double = 2", "double = 3", "", "test_program.py::absent")
    assert mutants.run([absent]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("Without a change the tests do not pass:\n")


def test_a_mutant_is_taken_back(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("LIMIT = 64\n")
    with mutants.applied(HARMLESS, tmp_path):
        assert path.read_text() == "LIMIT = 65\n"
    assert path.read_text() == "LIMIT = 64\n"
    path.write_text("LIMIT = 64\n" * 2)
    with pytest.raises(ValueError, match="has 2 times 'LIMIT = 64'"):
        mutants.applied(HARMLESS, tmp_path).__enter__()


def test_words_that_no_mutant_has(capsys):
    assert mutants.main(["--only", "no such words"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@in_a_checkout
@pytest.mark.slow
def test_all_are_killed():
    assert mutants.run(mutants.MUTANTS) == 0
