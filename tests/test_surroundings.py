"""Both verifiers where a terminal, a pipe or a file is not as usual: one sentence or a report, and
never a traceback."""

import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import make
from attacks.folders import entry, runs
from conftest import ROOT
from test_folder_bounds import write

import verify
from records import check, code

VERIFY = ROOT / "verify.py"
CHECK = ROOT / "records" / "check.py"
BOTH = [VERIFY, CHECK]
LOG = ROOT / "records/track_non_record_16mb/2026-11-29_cpu_6x256_pcll/train_seed42.log"
BY_HAND = "decode_artifact verify records/check records/pack records/plot records/wrap".split()
BY_HAND += ["tests/mutants", "tests/attacks/fuzz_folders", "tests/bench/whole"]
INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"


def run(*words, flags=(), **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *flags, *map(os.fsdecode, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **options)


def is_sentence(done: subprocess.CompletedProcess, words: str) -> bool:
    alone = done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.returncode in (2, 130) and alone and words in done.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path, entry(runs()))


# ---------------------------------------------------------------- Ctrl-C


def hear_ctrl_c() -> None:
    """As at a terminal: what a job in the background starts ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("program", BOTH)
@pytest.mark.parametrize("safe", ["", "1"])
def test_ctrl_c_in_the_imports(tmp_path, program, safe):
    (tmp_path / "numpy.py").write_text(INTERRUPTED)
    path = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe}
    done = run(program, tmp_path, env=path, preexec_fn=hear_ctrl_c)
    assert is_sentence(done, f"{program.name}: stopped by Ctrl-C\n"), done.stderr


def test_ctrl_c_in_a_check(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "list_folder", interrupt)
    for program in (check, verify):
        assert program.main([str(folder)]) == 130
        said = capsys.readouterr()
        name = Path(program.__file__).name
        assert said.out == "" and said.err == f"{name}: stopped by Ctrl-C\n"


# ---------------------------------------------------------------- stdout


@pytest.mark.parametrize("words", ["--help", "FOLDER", "FOLDER --json"])
def test_a_pipe_that_is_closed_early(folder, words):
    """Whoever reads it has gone before the first line."""
    for program in BOTH if words == "--help" else [CHECK]:
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, program, *words.replace("FOLDER", str(folder)).split()]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
        assert done.returncode == 2 or words == "--help"


def test_a_full_disk_is_a_sentence(folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, CHECK, folder]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert is_sentence(done, "No space left on device")


# ---------------------------------------------------------------- Python's options


def test_the_report_is_the_same(folder, capsys):
    """-I leaves the script's folder out of the path, -O leaves out what is asserted."""
    check.main([str(folder), "--json"])
    plain = json.loads(capsys.readouterr().out)
    for program, flags in ((VERIFY, ["-I"]), (CHECK, ["-I"]), (CHECK, ["-O"])):
        assert json.loads(run(program, folder, "--json", flags=flags).stdout) == plain


@pytest.mark.parametrize("script", BY_HAND)
def test_help_without_docstrings_and_the_folder_of_the_script(script):
    done = run(ROOT / f"{script}.py", "--help", flags=["-I", "-OO"])
    assert done.returncode == 0 and done.stderr == "" and done.stdout


def test_no_check_is_an_assertion():
    """Which -O would leave out."""
    for path in [VERIFY, ROOT / "decode_artifact.py", *(ROOT / "records").glob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)], path


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("target", ["pipe", "/dev/null", "/dev/zero", "absent", "loop"])
def test_a_target_that_is_no_file(tmp_path, capsys, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for program in (verify, check):
        assert program.main([target]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and target in said.err


def test_files_that_disappear(folder, capsys, monkeypatch):
    """After they were listed: the report lacks them, or a sentence says that they are gone."""
    original = check.list_folder

    def list_folder(*args):
        found = original(*args)
        for path in found.files:
            if path.suffix == ".log":
                path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(check, "list_folder", list_folder)
    for program in (check, verify):
        assert program.main([str(folder)]) in (0, 1, 2)
        said = capsys.readouterr()
        assert said.err.count("\n") <= 1 and "Traceback" not in said.err
    shutil.rmtree(folder)
    assert check.main([str(folder)]) == 2 and "is no folder" in capsys.readouterr().err


def test_an_artifact_that_disappears(home, capsys, monkeypatch):
    artifact = make(home)
    original = code.list_folder

    def list_folder(root, *rest):
        found = original(root, *rest)
        artifact.unlink()
        return found

    monkeypatch.setattr(code, "list_folder", list_folder)
    assert verify.main([str(artifact)]) == 2
    assert capsys.readouterr().err.startswith(f"verify.py: {artifact}: No such file or directory")


def test_a_current_directory_that_was_removed(home, capsys, monkeypatch, tmp_path_factory):
    artifact = make(home)
    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert verify.main([str(artifact)]) == 0
    assert "val_bpb" in capsys.readouterr().out


def test_a_script_that_is_a_link_out_of_the_folder_is_not_taken(home, capsys):
    artifact = make(home)
    (home / "train_gpt.py").unlink()
    (home / "train_gpt.py").symlink_to(__file__)
    verify.main([str(artifact), "--json"])
    rows = json.loads(capsys.readouterr().out)["findings"]
    (size,) = [row for row in rows if row["check"] == "size"]
    assert size["verdict"] == "NOT CHECKABLE" and "no train_gpt.py here" in size["detail"]


# ---------------------------------------------------------------- names, encodings


@pytest.mark.parametrize("stdout", ["ascii", "utf-8:strict"])
def test_a_printed_command_survives_any_path(tmp_path, stdout):
    out = tmp_path / os.fsdecode(b"-o 'x\" \xc3\xa9\xff")
    how = dict(env=os.environ | {"PYTHONIOENCODING": stdout}, errors="surrogateescape")
    done = run(ROOT / "records/pack.py", "entry", LOG, "--author=me", "--out", out, **how)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.partition("Check it: ")[2])
    assert words == ["python", str(VERIFY), *map(str, out.glob("track_*/*_entry"))]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_texts_as_windows_writes_them(tmp_path, encoding):
    files = entry(runs(), blurb="trained on the validation set")
    plain = check.check_folder(write(tmp_path, files))
    texts = {name: text for name, text in files.items() if name != "train_gpt.py"}
    encoded = {name: text.encode(encoding) for name, text in texts.items()}
    report = check.check_folder(write(tmp_path, encoded))
    assert (report.runs, report.findings) == (plain.runs, plain.findings)


def test_names_that_are_no_utf8(home, capsys):
    name = os.fsdecode(b"entry-\xff\xfe")
    folder = write(home, entry(runs())).rename(home / "track_10min_16mb" / name)
    for file in (b"train_\xff1.log", b"train_\xfe.py", b"weights\xff.bin", b"READ\xffME"):
        (folder / os.fsdecode(file)).write_text("import sys\nopen(sys.argv[1])\nseed:1\n")
    artifact = make(home).rename(folder / os.fsdecode(b"arti\xfffact.pcll"))
    model = shutil.copy("data/demo/bpe.model", os.fsdecode(b"\xff.model"))
    assert verify.main([str(artifact), "--tokenizer", model]) == 0
    for words in ([folder], [folder, "--json"], [artifact]):
        verify.main([*map(str, words)])
        said = capsys.readouterr()
        assert said.out and "Traceback" not in said.err
        assert "\udcff" not in said.out and "\ufffd" not in said.out.replace("\\ufffd", "")
    assert check.main([os.fsdecode(b"absent\xff")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    done = run(CHECK, folder, env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert done.returncode in (0, 1) and done.stderr == ""
