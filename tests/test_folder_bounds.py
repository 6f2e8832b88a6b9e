"""No file of a record folder makes the check use more than a stated time and memory, read what is
not in the folder, or lose its report."""

import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks.folders import entry, runs
from attacks.fuzz_folders import fuzz
from conftest import ROOT

from records.check import UnusableInput, check_folder
from records.files import Budget, list_folder
from records.report import Finding, RunRow, print_report

CHECK = ROOT / "records" / "check.py"
MEMORY = 900  # MB of address space that grow; a tree of a program may take a third of it
LIMITED = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from records.check import check_folder
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
found = check_folder(Path({folder!r}))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
rows = [[f.verdict, f.check, f.detail, f.line] for f in found]
print(json.dumps([time.process_time() - began, used / 1024, rows]))
"""


def write(home: Path, files: dict) -> Path:
    folder = home / "track_10min_16mb" / "entry"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def measured(folder: Path) -> tuple[float, list]:
    """Seconds of processor time and the findings of a check, of which MEMORY is asserted."""
    program = LIMITED.format(root=str(ROOT), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    seconds, megabytes, rows = json.loads(done.stdout)
    assert megabytes < MEMORY, f"{megabytes:.0f} MB"
    return seconds, rows


def nested(depth: int) -> str:
    lines = [" " * i + f"def f{i}(val_tokens):" for i in range(depth)]
    body = " " * depth + "for x in val_tokens: x.backward(); o.step()\n"
    return "\n".join(lines) + "\n" + body * 1_500


BLOB = lzma.compress(b"#" * 1_000_000)
LARGE = {  # files that are costly to read, and the seconds that they may take
    "an import of 8,000 parts": ({"train_gpt.py": "import a" + ".a" * 8_000}, 3),
    "a log of one long line": ({"long.log": "a;" * 4_000_000}, 5),
    "a log of statements": ({"long.log": "import os\n" + "a;" * 4_000_000}, 5),
    "a log of short statements": ({"long.log": "import os\n" + "a;\n" * 2_700_000}, 15),
    "a log of newlines": ({"long.log": "\n" * 8_000_000 + "seed:1\n"}, 5),
    "a log of scores": ({"long.log": "final val_loss:1.9 val_bpb:1.12\n" * 60_000}, 15),
    "a log of words that patterns begin with": ({"long.log": "bpb ttt gptq in " * 500_000}, 20),
    "a script of statements": ({"train_gpt.py": "a;" * 490_000}, 5),
    "nested functions": ({"train_gpt.py": nested(95)}, 10),
    "calls that are not resolved": (
        {"train_gpt.py": "\n".join(f"open(a{i})" for i in range(33_000))},
        15,
    ),
    "imports": ({"train_gpt.py": "".join(f"import a{i}.b.c.d\n" for i in range(22_000))}, 15),
    "programs in a program": (
        {"train_gpt.py": "".join(f"exec(decompress(b'{i:040}'))\n" for i in range(12_000))},
        15,
    ),
    "programs that grow": (
        {"train_gpt.py": "".join(f"exec(lzma.decompress({BLOB!r}))\n" for i in range(200))},
        15,
    ),
    "nested brackets": ({"train_gpt.py": "x = " + "[" * 50_000}, 3),
    "nested sums": ({"train_gpt.py": "x = " + "a+" * 90_000 + "a"}, 10),
    "a name that is bound to itself": ({"train_gpt.py": "a = a + a\nexec(a)\nopen(a)"}, 3),
    "doubled names": (
        {
            "train_gpt.py": "a0 = 'x'\n"
            + "".join(f"a{i + 1} = a{i} + a{i}\n" for i in range(60))
            + "exec(a60)"
        },
        5,
    ),
    "numbers of 5,000 digits": (
        {"long.log": f"seed:{'9' * 5000}\nval_bpb:{'1' * 5000}\nval_bpb:1.{'1' * 5000}\n"},
        3,
    ),
    "a submission of 5,000 digits": ({"submission.json": f'{{"val_bpb": {"9" * 4_000}}}'}, 3),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_costly_file(tmp_path, what):
    files, limit = LARGE[what]
    seconds, rows = measured(write(tmp_path, entry(runs()) | files))
    assert seconds < limit, f"{seconds:.1f} s"
    assert {"files", "val_bpb", "size", "pattern"} <= {row[1] for row in rows}


def test_twenty_scripts_of_a_megabyte(tmp_path):
    script = "\n".join(f"x{i} = function(argument, {i})" for i in range(33_000))[:995_000]
    files = {f"train_{i}.py": script for i in range(20)}
    seconds, rows = measured(write(tmp_path, entry(runs()) | files))
    assert seconds < 10
    assert any("train_" in row[2] for row in rows if row[0] == "NOT CHECKABLE")


def test_many_scripts_end_within_the_budget(tmp_path, monkeypatch):
    """Each of them is as costly as one may be; what comes after the time is named."""
    script = "\n".join(f"open(a{i})" for i in range(33_000))
    names = [f"train_{i}.py" for i in range(8)]
    imports = "".join(f"import {name[:-3]}\n" for name in names)
    files = entry(runs(), imports) | dict.fromkeys(names, script)
    folder = write(tmp_path, files)
    monkeypatch.setattr(Budget.__init__, "__defaults__", (2.0, 64_000_000))
    began = time.process_time()
    found = check_folder(folder)
    assert time.process_time() - began < 15
    assert any("the time is used up" in finding.detail for finding in found)


def test_many_folders_and_files(tmp_path):
    folder = write(tmp_path, entry(runs()))
    for i in range(2_500):
        (folder / f"{i}.txt").write_text("x")
    down(folder, 1_500)
    seconds, rows = measured(folder)
    assert seconds < 10
    assert any("too deep" in row[2] for row in rows if row[1] == "files")
    up(folder)


def down(folder: Path, depth: int) -> None:
    """Folders within folders, deeper than a path may be long."""
    home = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=home)
        inner = os.open("deep", os.O_RDONLY, dir_fd=home)
        os.close(home)
        home = inner
    os.close(home)


def up(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder / "deep")], check=True)


# ---------------------------------------------------------------- what is no regular file


def test_only_regular_files_of_the_folder_are_opened(tmp_path):
    secret = tmp_path / "secret.log"
    secret.write_text("final_exact val_loss:1.2 val_bpb:0.70000000 do-not-quote\n")
    folder = write(tmp_path, entry(runs(), val_bpb=0.7))
    (folder / "linked.log").symlink_to(secret)
    (folder / "self.log").symlink_to("/proc/self/pagemap")
    (folder / "zero.log").symlink_to("/dev/zero")
    (folder / "loop.log").symlink_to("loop.log")
    (folder / "outside").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.log")
    os.mkfifo(folder / "train_eval.py")
    seconds, rows = measured(folder)
    assert seconds < 5 and "do-not-quote" not in json.dumps(rows)
    detail = next(row[2] for row in rows if row[1] == "files")
    assert "not opened: linked.log" in detail


def test_a_link_within_the_folder_is_followed(tmp_path):
    folder = write(tmp_path, entry(runs()))
    (folder / "real.md").write_text("val_bpb 1.1200\n")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("real.md")
    found = {f.check: f for f in check_folder(folder)}
    assert found["files"].verdict == "PROVEN"


@pytest.mark.parametrize("name", ["big.log", "train_gpt.py", "submission.json", "x.bin", "a.pcll"])
def test_sparse_files(tmp_path, name):
    folder = write(tmp_path, entry(runs()))
    with (folder / name).open("ab") as file:
        file.truncate(100_000_000_000)
    seconds, _ = measured(folder)
    assert seconds < 12


def test_what_the_budget_leaves_out_is_named(tmp_path):
    folder = write(tmp_path, entry(runs()) | {f"more{i}.log": "x: 1\n" * 9_000 for i in range(9)})
    listed = list_folder(folder, Budget(most=60_000))
    read = [path.name for path in listed.files if listed.bytes(path) is not None]
    assert 0 < len(read) < len(listed.files)
    assert set(listed.budget.unread) == {path.name for path in listed.files} - {*read}


# ---------------------------------------------------------------- folders that are no entry


def test_a_repository_is_no_record_folder(tmp_path):
    home = tmp_path / "repository"
    (home / ".git").mkdir(parents=True)
    (home / "README.md").write_text("# x\n")
    with pytest.raises(UnusableInput, match="whole repository and no record folder"):
        check_folder(home)
    write(home / "records", entry(runs()))
    with pytest.raises(UnusableInput, match="no record folder but holds 1: give one of them, such"):
        check_folder(home)
    with pytest.raises(UnusableInput, match="such as entry"):
        check_folder(home / "records" / "track_10min_16mb")
    assert check_folder(home / "records" / "track_10min_16mb" / "entry")


# ---------------------------------------------------------------- the report


def run(folder: Path, *more: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CHECK), str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_answer_comes_first_then_the_runs_then_failures(tmp_path):
    done = run(write(tmp_path, entry(runs(trained=650_000))))
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0] == "FAILED — training time: 650.0 s, the slowest log's; limit 600 s and a step"
    assert lines[1].split() == ["seed", "val_bpb", "bytes", "training", "s", "evaluation", "s"]
    assert lines[2].split() == ["1", "1.119000", "15,900,200", "650.0", "400.0"]
    assert lines[5].split()[:2] == ["mean", "1.120000"]
    assert lines[6].split()[:2] == ["deviation", "0.001000"]
    assert lines[7] == "FAILED" and "to settle: " in done.stdout
    assert "650.0 s " in done.stdout and "3 seeds" in done.stdout


def test_one_seed_is_one_seed(capsys):
    print_report([Finding("CONSISTENT", "seeds", "of one log", 1, "seeds")])
    assert " 1 seed " in capsys.readouterr().out


def test_ok_and_not_proven(capsys):
    rows = (RunRow(1, 1.12, None, None, 3.25),)
    good = Finding("CONSISTENT", "val_bpb", "x", 1.12, "bits/byte", runs=rows)
    print_report([good])
    out = capsys.readouterr().out
    assert out.startswith("OK — val_bpb 1.120000 agrees with the logs, and nothing failed")
    assert "  1               1.120000             -             -           3.2" in out
    print_report([good, Finding("SUSPICION", "seeds", "x")])
    assert capsys.readouterr().out.startswith("NOT PROVEN — nothing failed; to look at: seeds")
    print_report([good._replace(verdict="PROVEN")])
    assert capsys.readouterr().out.startswith("OK — val_bpb 1.120000 was recomputed here")


def test_both_bars_of_significance(tmp_path):
    folder = write(tmp_path, entry(runs()))
    detail = {f.check: f.detail for f in check_folder(folder, "1.1231,1.1240,1.1250")}
    assert "p < 0.01 (not met), in late practice p < 0.25 (" in detail["significance"]


def test_json_keeps_its_schema(tmp_path):
    report = json.loads(run(write(tmp_path, entry(runs())), "--json").stdout)
    assert {"schema", "input", "exit_code", "findings"} <= report.keys() and report["schema"] == 1
    needed = {"verdict", "check", "detail", "number", "unit", "line"}
    assert all(needed <= row.keys() for row in report["findings"])
    score = next(row for row in report["findings"] if row["check"] == "val_bpb")
    assert score["runs"][0]["seed"] == 1 and report["answer"] == "OK"


def test_names_of_files_are_printed_clean(tmp_path):
    files = entry({"train_\x1b[31mred\n.log": next(iter(runs().values()))}, seeds=[1])
    done = run(write(tmp_path, files))
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)
    other = run(tmp_path / "no\x1b[31m\nfolder")
    assert other.returncode == 2 and other.stderr.count("\n") == 1 and "\x1b" not in other.stderr


def test_a_closed_stdout_is_a_sentence(tmp_path):
    folder = write(tmp_path, entry(runs()))
    command = f"exec {sys.executable} {CHECK} {folder} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "check.py: stdout is closed\n"
    command = f"{sys.executable} {CHECK} {folder} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_help_states_the_budget(tmp_path):
    text = run(tmp_path, "--help").stdout
    assert "at most 60 s of processor time and reads at most 64 MB" in text


def test_a_pipe_as_the_target_is_a_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(tmp_path / "pipe", timeout=20)
    assert done.returncode == 2 and "is no folder" in done.stderr


def test_mutated_folders():
    began = time.process_time()
    outcomes = fuzz(runs=150, seed=0)
    assert outcomes["FAILED"] > 30 and sum(outcomes.values()) == 150
    assert time.process_time() - began < 60
