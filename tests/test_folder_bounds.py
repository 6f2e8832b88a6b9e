"""No file of a record folder makes the check use more than a stated time and memory, read what is
not in the folder, or lose its report; how the report looks."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest
from attacks.folders import TEXTS, entry, runs, write
from attacks.fuzz_folders import fuzz
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from records import check, files
from records.check import check_folder
from records.files import list_folder
from records.report import UnusableInput, answer_of

CHECK = ROOT / "records" / "check.py"
SECONDS = 20  # of processor time for the costliest file, on a slow machine
MEMORY = 600_000  # KiB that a check may add, in a process that has numpy


def costly(text: str) -> str:
    return text * (999_000 // len(text))


LOOP = """    for j in val_tokens:
        cross_entropy(a).backward()
        o.step()
"""
SCRIPTS = {
    "a line of a word that patterns begin with": costly("gptq"),
    "a line of calls": costly("exec( "),
    "comments": costly("# \r#coding=utf-8 "),
    "hashes": costly("= ^ "),
    "escaped quotes": costly('\\"'),
    "functions": "".join(f"def f{i}(a):\n    pass\n" for i in range(40_000)),
    "loops": "def f():\n    x.requires_grad_()\n" + costly(LOOP)[:900_000],
    "training files": "a = environ.get(b, 0)\n" + costly("train = fineweb_val if a\n")[:900_000],
    "one literal": '"' + "a" * 999_000 + '"',
    "nested functions": "\n".join(" " * i + f"def f{i}(val_tokens):" for i in range(900)),
}
LOGS = {
    "words that patterns begin with": "bpb ttt gptq in " * 90_000,
    "a long word of adaptation": ("ttt" * 1_300 + "\n") * 50,
    "statements": "import os\n" + "a;\n" * 400_000,
    "scores": "final val_loss:1.9 val_bpb:1.12\n" * 9_000,
    "spaces": "\n".join(["ttt" + " " * 3_900 + "epoch"] * 200),
    "digits": f"seed:{'9' * 5000}\nval_bpb:{'1' * 5000}\nval_bpb:1.{'1' * 5000}\n" * 50,
    "zeros": "\0" * 15_000_000,
}


@pytest.mark.parametrize("name", [*SCRIPTS, *LOGS])
def test_a_costly_file(tmp_path, name):
    more = {"train_gpt.py": SCRIPTS[name]} if name in SCRIPTS else {"long.log": LOGS[name]}
    folder = write(tmp_path, entry(runs()) | more)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    assert check_folder(folder).findings
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def test_many_files_and_scripts(tmp_path):
    """Each script imports all of them."""
    script = "".join(f"import m{i}\n" for i in range(12))
    more = {f"m{i}.py": script * 1_000 for i in range(12)} | {f"n{i}.py": "" for i in range(600)}
    began = time.process_time()
    assert answer_of(check_folder(write(tmp_path, entry(runs(), script, more)))) == "NOT PROVEN"
    assert time.process_time() - began < SECONDS


# ---------------------------------------------------------------- what is read


def test_only_regular_files_of_the_folder_are_opened(tmp_path):
    secret = tmp_path / "secret.log"
    secret.write_text("final_exact val_loss:1.2 val_bpb:0.70000000 do-not-quote\n")
    folder = write(tmp_path, entry(runs(), val_bpb=0.7))
    for name, target in (("linked", secret), ("zero", "/dev/zero"), ("loop", "loop.log")):
        (folder / f"{name}.log").symlink_to(target)
    (folder / "outside").symlink_to(tmp_path)
    (folder / "inside.log").symlink_to("train_seed1.log")
    os.mkfifo(folder / "pipe.log")
    listed = list_folder(folder)
    assert [path.name for path in listed.files if path.is_symlink()] == ["inside.log"]
    found = {finding.check: finding for finding in check_folder(folder).findings}
    assert "do-not-quote" not in str(found) and found["files"].verdict == "NOT CHECKABLE"
    assert all(f"{name}.log (no regular" in found["files"].detail for name in ("linked", "pipe"))


@pytest.mark.parametrize(
    ("name", "limit"),
    [("train_gpt.py", 10**6), ("README.md", 10**6), ("train_seed1.log", 16 * 10**6)],
)
def test_a_file_is_read_whole_or_not(tmp_path, name, limit):
    """What is not read is named."""
    good = entry(runs())
    folder = write(tmp_path, good)
    for size, is_read in ((limit, True), (limit + 1, False), (10**11, False)):
        (folder / name).write_bytes(good[name].encode().ljust(min(size, limit + 1)))
        os.truncate(folder / name, size)
        found = {finding.check: finding for finding in check_folder(folder).findings}
        assert (f"not read: {name}" in found["files"].detail) != is_read
        assert (found["pattern"].verdict == "CONSISTENT") == (is_read or name != "train_gpt.py")


def test_how_many_files_and_folders_are_listed(tmp_path):
    folder = write(tmp_path, {f"{'d/' * depth}x{depth}.txt": "" for depth in (0, 12, 13)})
    assert [path.name for path in list_folder(folder).files] == ["x0.txt", "x12.txt"]
    assert [*list_folder(folder).unread] == ["d (too deep)"]
    for count, unread in ((2_000, []), (2_001, ["what follows the first 2,000 files"])):
        folder = write(tmp_path / str(count), {f"{i}.txt": "" for i in range(count)})
        assert [*list_folder(folder).unread] == unread


def test_a_budget_is_kept_and_what_it_leaves_out_is_named(tmp_path):
    folder = write(tmp_path, {"a.txt": "x" * 100, "b.txt": "x" * 100})
    for options, sizes, unread in (
        ({"most": 200}, [100, 100], []),
        ({"most": 199}, [100, 0], ["b.txt"]),
        ({"seconds": -1.0}, [0, 0], ["a.txt", "b.txt"]),
    ):
        listed = list_folder(folder, **options)
        assert [len(listed.bytes(path)) for path in listed.files] == sizes
        assert [*listed.unread] == unread
    assert (files.BUDGET_BYTES, files.BUDGET_SECONDS) == (64_000_000, 60)


def test_folders_that_are_no_entry(tmp_path):
    home = tmp_path / "repository"
    folder = write(home / "records", entry(runs()))
    (home / ".git").mkdir()
    (tmp_path / "empty").mkdir()
    for other in (home, home / "records", folder.parent, tmp_path / "empty"):
        with pytest.raises(UnusableInput, match=f"^{other.name} is no record folder: "):
            check_folder(other)
    assert answer_of(check_folder(folder)) == "OK"


# ---------------------------------------------------------------- the report


def run(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, CHECK, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_report_of_three_runs_is_one_screen(tmp_path):
    done = run(write(tmp_path, entry(runs(trained=650_000))))
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) < 30 and max(map(len, lines)) <= 110
    assert lines[0].startswith("FAILED — training time: 650.0 s, the slowest run's; the record ")
    assert lines[1].split() == ["seed", "val_bpb", "bytes", "training", "s", "evaluation", "s"]
    assert lines[2].split() == ["1", "1.119000", "15,900,200", "650.0", "400.0"]
    assert lines[5].split() == ["mean", "1.120000", "15,900,200", "650.0", "400.0"]
    assert lines[6].split() == ["deviation", "0.001000", "0", "0.0", "0.0"]
    assert lines[7] == "FAILED" and "> train_seed1.log:6: stopping_early: " in done.stdout
    assert lines[-1] == "1 FAILED · 7 CONSISTENT · 1 PROVEN"


def test_the_other_answers(tmp_path, capsys):
    check.main([str(write(tmp_path / "a", entry(runs())))])
    said = capsys.readouterr().out
    assert said.startswith("OK — nothing failed; val_bpb 1.120000 is what the logs say\n  seed ")
    check.main([str(write(tmp_path / "b", entry(TEXTS["LOSSLESS"], blurb="five seeds")))])
    said = capsys.readouterr().out
    assert said.startswith("NOT PROVEN — nothing failed; not shown: split; to look at: seeds; ")


def test_json_and_exit_codes(tmp_path):
    folder = write(tmp_path, entry(runs()))
    done = run(folder, "--json", "--against", "1.13")
    table = json.loads(done.stdout)
    assert done.returncode == table["exit_code"] == 0 and table["schema"] == 2
    assert (table["input"], table["answer"]) == (str(folder), "OK")
    columns = dict(seed=3, val_bpb=1.121, bytes=15_900_200, training=599, evaluation=400)
    assert table["runs"][2] == columns
    (row,) = [row for row in table["findings"] if row["check"] == "size"]
    assert list(row) == ["verdict", "check", "detail", "number", "unit", "line", "file"]
    assert (row["verdict"], row["number"], row["unit"]) == ("CONSISTENT", 15_900_198, "bytes")


def test_names_are_printed_clean(tmp_path, capsys):
    logs = {"train_\x1b[31mred\n\u202e.log": next(iter(runs(trained=700_000).values()))}
    check.main([str(write(tmp_path, entry(logs, seeds=[1])))])
    check.main([str(tmp_path / "no\x1b[31m\nfolder")])
    said = capsys.readouterr()
    assert all(letter.isprintable() or letter == "\n" for letter in said.out + said.err)
    assert "train_ [31mred" in said.out and said.err.count("\n") == 1


def test_a_closed_stdout_is_a_sentence(tmp_path):
    command = f"exec {sys.executable} {CHECK} {tmp_path} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "check.py: stdout is closed\n")


def test_mutated_folders():
    outcomes = fuzz(runs=100, seed=0)
    assert sum(outcomes.values()) == 100 and outcomes["FAILED"] > 5


NAMES = ["submission.json", "train_seed1.log", "train_gpt.py", "README.md", "new.txt"]
TREE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["val_bpb", "seeds", "seed_results", "1", "bytes_total"]), inner
        )
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.sampled_from(NAMES), st.binary() | TREE.map(json.dumps).map(str.encode))
def test_any_bytes_end_in_a_report(tmp_path, name, content):
    report = check_folder(write(tmp_path, entry(runs()) | {name: content}))
    assert answer_of(report) in ("OK", "NOT PROVEN", "FAILED")
