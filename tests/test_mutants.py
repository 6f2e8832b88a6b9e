"""The table of mutants stays true, and the tool that runs them says what survives."""

import shutil
import subprocess
from collections import Counter

import mutants
import pytest
from conftest import ROOT
from mutants import Mutant

in_a_checkout = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(),
    reason="needs a git checkout, to know which files are tracked",
)
ARROWS = "test_layout.py::test_arrows_point_one_way[records/logs.py]"
HARMLESS = Mutant("records/logs.py", "MAX_LOGS = 64", "MAX_LOGS = 65", "nothing", ARROWS)
SECOND = "import re\nimport decode_artifact\n"
HARMFUL = Mutant("records/logs.py", "import re\n", SECOND, "it", ARROWS)


# ---- The table


def test_there_are_enough_of_each_file():
    counts = Counter(mutant.file for mutant in mutants.MUTANTS)
    assert counts.total() >= 60
    assert counts["train_gpt.py"] >= 40 and counts["verify.py"] >= 12
    assert counts["decode_artifact.py"] >= 8  # the rows of "Disallowed, and why"
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


@pytest.mark.parametrize(
    "finding",
    [
        "size",
        "integrity",
        "config",
        "tokenizer",
        "bytes",
        "val_bpb",
        "adaptation",
        "claim",
        "causality",
        "normalised",
        "determinism",
        "isolation",
    ],
)
def test_every_finding_of_verify_has_a_mutant(finding):
    own = [mutant for mutant in mutants.MUTANTS if mutant.file == "verify.py"]
    assert [mutant for mutant in own if mutant.breaks.startswith(f"{finding}: ")]


# ---- The tool


def repository() -> dict[str, bytes]:
    """Its files, but for what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    return {name: (ROOT / name).read_bytes() for name in names}


@in_a_checkout
def test_a_survivor_is_reported_and_nothing_else_is_touched(capsys):
    before = repository()
    assert mutants.run([HARMLESS, HARMFUL]) == 1
    assert repository() == before
    first, reason, second, counts = capsys.readouterr().out.splitlines()
    assert first.startswith("SURVIVED ") and first.endswith(" s  records/logs.py: nothing")
    assert reason.strip() == f"tests/{ARROWS}: passes all the same"
    assert second.startswith("killed   ") and second.endswith(" s  records/logs.py: it")
    assert counts.startswith("2 mutants: 1 SURVIVED, 1 killed; ")


@in_a_checkout
def test_a_test_that_fails_by_itself_kills_nothing(capsys):
    absent = Mutant(
        "records/logs.py", "MAX_LOGS = 64", "MAX_LOGS = 65", "", "test_layout.py::absent"
    )
    assert mutants.run([absent]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("Without a change the tests do not pass:\n")


def test_a_mutant_is_taken_back(tmp_path):
    (tmp_path / "records").mkdir()
    path = tmp_path / "records/logs.py"
    path.write_text("MAX_LOGS = 64\n")
    with mutants.applied(HARMLESS, tmp_path):
        assert path.read_text() == "MAX_LOGS = 65\n"
    assert path.read_text() == "MAX_LOGS = 64\n"
    path.write_text("MAX_LOGS = 64\n" * 2)
    with pytest.raises(ValueError, match="has 2 times 'MAX_LOGS = 64'"):
        mutants.applied(HARMLESS, tmp_path).__enter__()


def test_words_that_no_mutant_has(capsys):
    assert mutants.main(["--only", "no such words"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@in_a_checkout
@pytest.mark.slow
def test_all_are_killed():
    assert mutants.run(mutants.MUTANTS) == 0
