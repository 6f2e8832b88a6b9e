"""How whole runs end badly, and what is left of them: nothing is lost, overwritten or mixed."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_demo_data
from test_run import ADAPTED, FINAL, LOSSES, environment, free_port, nodes, run_here

import train_gpt
from train_gpt import Evaluator

FAST = dict(ITERATIONS=3, WARMUP_STEPS=0, NUM_LAYERS=1)


@pytest.fixture
def home(tmp_path, tmp_path_factory) -> Path:
    """A folder with the demo's data and a short validation split."""
    base = make_demo_data(tmp_path_factory.getbasetemp())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo").symlink_to(base)
    return tmp_path


# What an end after the training adds to its sentence.
CONTINUE = " To continue: RESUME=checkpoints/test/00000003.pt, all else the same."


def lines_of(home: Path, run_id: str = "test") -> str:
    """A log without its source."""
    return (home / f"logs/{run_id}.txt").read_text().split("=" * 80 + "\n", 1)[1]


def number(pattern: str, text: str) -> str:
    """What the pattern's group is at its last match."""
    return re.findall(pattern, text, re.M)[-1]


def failing(method, name: str, error: type, *args):
    """The method, which fails for the score of this name."""

    def score(self, model, asked, *rest):
        if asked == name:
            raise error(*args)
        return method(self, model, asked, *rest)

    return score


# ---- After the training


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        (train_gpt.BEFORE, (torch.OutOfMemoryError, "CUDA"), "lower MICRO_BATCH_SEQS"),
        (train_gpt.ADAPTED, (RuntimeError, "x can't allocate memory"), "lower MICRO_BATCH_SEQS"),
        (train_gpt.SLIDING, (KeyboardInterrupt,), "Stopped."),
        (
            train_gpt.PLAIN,
            (OSError, errno.EIO, "Input/output error", "x"),
            "x: Input/output error.",
        ),
    ],
)
def test_an_evaluation_that_fails_is_repeated_from_the_checkpoint(
    home, monkeypatch, name, error, sentence
):
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", failing(Evaluator.score, name, *error))
        done = run_here(home, **FAST)
    path = "checkpoints/test/00000003.pt"
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.endswith(f" To continue: RESUME={path}, all else the same.\n")
    before = lines_of(home)

    again = run_here(home, RESUME=path, MICRO_BATCH_SEQS=8, **FAST)
    assert again.returncode == 0, again.stderr
    lines = lines_of(home)
    assert lines.startswith(before) and len(re.findall(LOSSES, lines)) == 3  # nothing is trained
    sums = re.findall(r"^artifact_sha256:(\w{64}) logs/test.pcll$", lines, re.M)
    artifact = (home / "artifact.pcll").read_bytes()
    assert {*sums} == {hashlib.sha256(artifact).hexdigest()}
    assert (home / "logs/test.pcll").read_bytes() == artifact
    assert len(re.findall(ADAPTED, lines, re.M)) == 1 + (
        name in (train_gpt.PLAIN, train_gpt.SLIDING)
    )


def test_a_signal_in_the_evaluation_names_the_checkpoint(home, monkeypatch):
    score = Evaluator.score

    def interrupted(self, model, name, *rest):
        if name == train_gpt.PLAIN:
            signal.raise_signal(signal.SIGTERM)
        return score(self, model, name, *rest)

    monkeypatch.setattr(Evaluator, "score", interrupted)
    done = run_here(home, **FAST)
    assert done.returncode == 2
    assert done.stderr == f"Stopped.{CONTINUE}\n"


def test_an_error_of_ours_keeps_its_traceback_and_names_the_checkpoint(home, monkeypatch):
    error = (RuntimeError, "a shape is wrong")
    monkeypatch.setattr(Evaluator, "score", failing(Evaluator.score, train_gpt.PLAIN, *error))
    with pytest.raises(RuntimeError, match="a shape is wrong") as caught:
        run_here(home, **FAST)
    (note,) = caught.value.__notes__
    assert note == CONTINUE


def test_a_full_disk_at_the_export(home, monkeypatch):
    """The artifact that lies there stays as it was; with room again the run goes on."""
    (home / "artifact.pcll").write_bytes(b"earlier")
    write = train_gpt.write_atomically

    def full(path, data):
        if path.suffix == ".pcll":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(train_gpt, "write_atomically", full)
        done = run_here(home, **FAST)
    assert done.returncode == 2
    assert done.stderr == f"logs/test.pcll: No space left on device.{CONTINUE}\n"
    assert (home / "artifact.pcll").read_bytes() == b"earlier"
    again = run_here(home, RESUME="latest", **FAST)
    assert again.returncode == 0
    assert (home / "artifact.pcll").read_bytes() == (home / "logs/test.pcll").read_bytes()


def test_a_longer_run_goes_on_from_a_finished_one(home):
    assert run_here(home, TTT_PROTOCOL="off", **FAST).returncode == 0
    first = (home / "artifact.pcll").read_bytes()
    longer = FAST | dict(ITERATIONS=5, TTT_PROTOCOL="off", RESUME="latest", RUN_ID="")
    done = run_here(home, **longer)
    assert done.returncode == 0 and "resumed from checkpoints/test/00000003.pt" in done.stdout
    assert re.findall(r"^step:(\d)/5 train_loss", lines_of(home), re.M) == ["4", "5"]
    assert (home / "artifact.pcll").read_bytes() != first
    refused = run_here(home, **longer | dict(MATRIX_LR=0.5))
    assert refused.returncode == 2 and "MATRIX_LR=0.5, but RESUME=" in refused.stderr


def test_a_script_that_was_changed_goes_on_in_a_log_of_its_own(home):
    """Whoever reads a log finds in it the source that its score comes from."""
    assert run_here(home, TTT_PROTOCOL="off", **FAST).returncode == 0
    log = home / "logs/test.txt"
    older = log.read_text().replace("Trains a small", "Trains a smaller", 1)
    log.write_text(older)
    done = run_here(home, RESUME="latest", RUN_ID="", TTT_PROTOCOL="off", **FAST)
    assert done.returncode == 2 and done.stderr.startswith(
        "logs/test.txt begins with another script: set a new RUN_ID."
    )
    assert log.read_text() == older
    path = "checkpoints/test/00000003.pt"
    again = run_here(home, RESUME=path, RUN_ID="b", TTT_PROTOCOL="off", **FAST)
    assert again.returncode == 0 and "resumed from" in lines_of(home, "b")
    assert (home / "logs/b.txt").read_text().startswith((ROOT / "train_gpt.py").read_text())


# ---- What is no number


@pytest.mark.parametrize("protocol", ["score_first", "per_document"])
def test_an_adaptation_that_diverges_keeps_the_score_of_fixed_weights(home, monkeypatch, protocol):
    learn = train_gpt.TestTimeTrainer.learn

    def diverging(self, *args, **options):
        learn(self, *args, **options)
        with torch.no_grad():
            next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(train_gpt.TestTimeTrainer, "learn", diverging)
    rate = dict(DOCUMENT_LR=9e18, DOCUMENT_RANK=4) if protocol == "per_document" else {}
    done = run_here(home, TTT_PROTOCOL=protocol, **rate, **FAST)
    assert done.returncode == 2
    assert done.stderr == (
        f"The adaptation diverged and has no score: lower TTT_LR or DOCUMENT_LR.{CONTINUE}\n"
    )
    lines = lines_of(home)
    assert 1 < float(number(FINAL, lines)) < 20
    finals = re.findall(r"^(?:final|headline).*val_bpb.*|^  .* bpb .*", lines, re.M)
    assert len(finals) == 5 and "nan" not in "".join(finals)
    assert "headline: final_pcll_sliding_exact val_loss:" in lines


def test_a_last_update_that_overflows_has_no_score(home, monkeypatch):
    step = train_gpt.train_step

    def overflowing(state, *rest):
        step(state, *rest)
        if state.step == 3:
            with torch.no_grad():
                state.ema.tok_emb.fill_(float("inf"))

    monkeypatch.setattr(train_gpt, "train_step", overflowing)
    done = run_here(home, **FAST)
    assert done.returncode == 2
    assert done.stderr == "After step 3 the weights are not finite. Lower the learning rates.\n"
    assert "val_bpb" not in lines_of(home) and not list(home.rglob("*.p[tc]*"))


# ---- Runs beside one another, and after one another


def start(home: Path, *launcher: str, script: Path = ROOT / "train_gpt.py", **changes):
    return subprocess.Popen(
        [sys.executable, *launcher, script],
        cwd=home,
        env=environment(**FAST | changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_runs_at_once_in_one_folder(home):
    """Each has its own log, checkpoints and artifact; ARTIFACT_PATH is the last one's."""
    runs = [start(home, RUN_ID="", SEED=seed) for seed in (1, 2)]
    for process in runs:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    logs = sorted((home / "logs").glob("*.txt"))
    assert len(logs) == len(list((home / "checkpoints").iterdir())) == 2
    seeds = set()
    for path in logs:
        lines = lines_of(home, path.stem)
        seeds |= {*re.findall(r"^seed:(\d)$", lines, re.M)}
        assert len(re.findall(LOSSES, lines)) == 3 and len(re.findall(ADAPTED, lines, re.M)) == 1
        stated = number(r"^artifact_sha256:(\w{64}) ", lines)
        assert hashlib.sha256(path.with_suffix(".pcll").read_bytes()).hexdigest() == stated
    assert seeds == {"1", "2"}
    kept = {path.read_bytes() for path in (home / "logs").glob("*.pcll")}
    assert len(kept) == 2 and (home / "artifact.pcll").read_bytes() in kept


def test_a_start_that_fails_leaves_an_earlier_log_as_it_was(home):
    (home / "logs").mkdir()
    (home / "logs/mine.txt").write_text("an earlier run\n")
    for changes in (
        dict(TOKENIZER_PATH="none.model"),
        dict(DATA_PATH="none"),
        dict(ARTIFACT_PATH="logs"),
        dict(RESUME="none.pt"),
        dict(ITERATION=3),
        {},  # all is right but the name
    ):
        done = run_here(home, RUN_ID="mine", **FAST | changes)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert (home / "logs/mine.txt").read_text() == "an earlier run\n"
    assert "RUN_ID=mine: logs/mine.txt exists." in done.stderr


def test_a_run_inside_a_record_folder_overwrites_only_the_artifact(home):
    script = home / "train_gpt.py"
    shutil.copy(ROOT / "train_gpt.py", script)
    handed_in = {"train_seed1337.log": b"log", "submission.json": b"{}", "README.md": b"# entry"}
    for name, data in (handed_in | {"artifact.pcll": b"PCLL earlier"}).items():
        (home / name).write_bytes(data)
    process = start(home, script=script)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert {name: (home / name).read_bytes() for name in handed_in} == handed_in
    assert (home / "artifact.pcll").read_bytes() == (home / "logs/test.pcll").read_bytes()


def test_two_nodes_without_a_shared_disk_score_the_first_ones_bytes(home, tmp_path_factory):
    """On the second one an older artifact lies where the new one would."""
    other = tmp_path_factory.mktemp("node")
    (other / "data").mkdir()
    (other / "data/demo").symlink_to(home / "data/demo")
    (other / "artifact.pcll").write_bytes(b"older")
    port = free_port()
    runs = [start(folder, *nodes(port, i)) for i, folder in enumerate((home, other))]
    for process in runs:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    lines = lines_of(home)
    assert "world_size:2" in lines
    assert (
        number(r"^artifact_sha256:(\w{64}) ", lines)
        == hashlib.sha256((home / "artifact.pcll").read_bytes()).hexdigest()
    )
    assert (other / "artifact.pcll").read_bytes() == b"older"
    assert {path.name for path in other.iterdir()} == {"data", "artifact.pcll"}
    command = [sys.executable, ROOT / "verify.py", *number(r"verify\.py (.*)", lines).split()]
    assert subprocess.run(command, cwd=home, capture_output=True).returncode == 0


# ---- The console


def test_a_run_whose_console_is_closed_goes_on(home):
    """As after `| head -1`, with stderr on the same pipe; then it is read from its log."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_gpt.py"],
        cwd=home,
        env=environment(**FAST),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout.readline().startswith(b"python 3")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert "\nCheck it: python verify.py artifact.pcll " in lines_of(home)


def test_help_into_a_closed_pipe_is_no_traceback(home):
    command = f"{sys.executable} {ROOT / 'train_gpt.py'} --help | head -1"
    done = subprocess.run(command, shell=True, cwd=home, capture_output=True, text=True)
    assert done.stdout.startswith("Trains a small language model")
    assert "Traceback" not in done.stderr


# ---- The script


def test_a_script_of_crlf_lines_states_the_bytes_of_its_file(home):
    script = home / "train_gpt.py"
    script.write_bytes((ROOT / "train_gpt.py").read_bytes().replace(b"\n", b"\r\n"))
    process = start(home, script=script, TTT_PROTOCOL="off")
    assert process.wait(timeout=120) == 0, process.stderr.read()
    size = script.stat().st_size
    log = (home / "logs/test.txt").read_bytes()
    assert f"\nCode size: {size} bytes\n".encode() in log
    assert log.startswith(script.read_bytes() + b"\n" + b"=" * 80 + b"\n")


def test_the_last_line_is_quoted_for_the_shell(home):
    folder = home / "it's here"
    (folder / "data").mkdir(parents=True)
    (folder / "my data").symlink_to(home / "data/demo")
    paths = dict(DATA_PATH="my data", TOKENIZER_PATH="my data/bpe_1024.model")
    done = run_here(folder, ARTIFACT_PATH="$HOME/it's.pcll", **paths, **FAST)
    assert done.returncode == 0, done.stderr
    command = number(r"^Check it: python (.*)$", done.stdout)
    command = f"{sys.executable} {ROOT}/{command}"
    verified = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert os.listdir(folder / "$HOME") == ["it's.pcll"]
