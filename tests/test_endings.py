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
from test_run import ADAPTED, FINAL, LOSSES, ended, run_here, start, verify_here

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


def failing(name: str, error: BaseException | signal.Signals):
    """Evaluator.score, in which the score of this name fails, or gets a signal."""
    method = Evaluator.score

    def score(self, model, asked, *rest):
        if asked == name and isinstance(error, signal.Signals):
            signal.raise_signal(error)
        elif asked == name:
            raise error
        return method(self, model, asked, *rest)

    return score


# ---- After the training


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        (train_gpt.BEFORE, torch.OutOfMemoryError("CUDA"), "EVAL_BATCH_SEQS or TTT_BATCH_SEQS."),
        (train_gpt.SLIDING, signal.SIGTERM, "Stopped."),
        (train_gpt.PLAIN, OSError(errno.EIO, "Input/output error", "x"), "x: Input/output error."),
    ],
)
def test_an_evaluation_that_fails_is_repeated_from_the_checkpoint(
    home, monkeypatch, name, error, sentence
):
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", failing(name, error))
        done = run_here(home, **FAST)
    assert done.returncode == 2 and done.stderr.endswith(f"{sentence}{CONTINUE}\n")
    assert done.stderr.count("\n") == 1
    before = lines_of(home)

    again = run_here(home, RESUME="latest", MICRO_BATCH_SEQS=8, **FAST)
    assert again.returncode == 0, again.stderr
    lines = lines_of(home)
    assert lines.startswith(before) and len(re.findall(LOSSES, lines)) == 3  # nothing is trained
    sums = re.findall(r"^artifact_sha256:(\w{64}) logs/test.pcll$", lines, re.M)
    artifact = (home / "artifact.pcll").read_bytes()
    assert {*sums} == {hashlib.sha256(artifact).hexdigest()}
    assert (home / "logs/test.pcll").read_bytes() == artifact
    assert len(re.findall(ADAPTED, lines, re.M)) == 1 + (name != train_gpt.BEFORE)


def test_an_error_of_ours_keeps_its_traceback_and_names_the_checkpoint(home, monkeypatch):
    error = RuntimeError("a shape is wrong")
    monkeypatch.setattr(Evaluator, "score", failing(train_gpt.BEFORE, error))
    with pytest.raises(RuntimeError, match="a shape is wrong") as caught:
        run_here(home, **FAST)
    assert caught.value.__notes__ == [CONTINUE]


@pytest.mark.parametrize(
    "names", [["logs/test.pcll"], ["artifact.pcll"], ["logs/test.pcll", "artifact.pcll"]]
)
def test_a_full_disk_at_the_export(home, monkeypatch, names):
    """The score is told, and what lies there stays as it was; with room again the run goes on."""
    (home / "artifact.pcll").write_bytes(b"earlier")
    write = train_gpt.write_atomically

    def full(path, data):
        if str(path) in names and data:
            raise OSError(errno.EFBIG, "File too large", str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(train_gpt, "write_atomically", full)
        done = run_here(home, **FAST)
    sentences = [f"{name}: File too large." for name in names]
    assert done.returncode == 2
    bpb = number(ADAPTED, lines_of(home))
    score = f" The artifact in memory scored val_bpb:{bpb}."
    assert done.stderr == " ".join(sentences) + f"{score}{CONTINUE}\n"
    for sentence in sentences:
        assert f"\nwarning: {sentence} The artifact is scored from memory.\n" in done.stdout
    kept = [name for name in ("logs/test.pcll", "artifact.pcll") if name not in names]
    assert all((home / name).stat().st_size > 10_000 for name in kept)
    assert "artifact.pcll" in kept or (home / "artifact.pcll").read_bytes() == b"earlier"

    again = run_here(home, RESUME="latest", **FAST)
    assert again.returncode == 0
    assert (home / "artifact.pcll").read_bytes() == (home / "logs/test.pcll").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which a run has ended well."""
    folder = tmp_path_factory.mktemp("trained")
    demo = make_demo_data(tmp_path_factory.getbasetemp())
    (folder / "data").mkdir()
    (folder / "data/demo").symlink_to(demo)
    assert run_here(folder, TTT_PROTOCOL="off", **FAST).returncode == 0
    return folder


@pytest.fixture
def after_a_run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy", symlinks=True)


def test_a_longer_run_goes_on_from_a_finished_one(after_a_run):
    first = (after_a_run / "artifact.pcll").read_bytes()
    longer = FAST | dict(ITERATIONS=5, TTT_PROTOCOL="off", RESUME="latest", RUN_ID="")
    done = run_here(after_a_run, **longer)
    assert done.returncode == 0 and "resumed from checkpoints/test/00000003.pt" in done.stdout
    assert re.findall(r"^step:(\d)/5 train_loss", lines_of(after_a_run), re.M) == ["4", "5"]
    assert (after_a_run / "artifact.pcll").read_bytes() != first

    demo = shutil.copytree(after_a_run / "data/demo", after_a_run / "more")
    shutil.copy(demo / "fineweb_train_000000.bin", demo / "fineweb_train_000001.bin")
    done = run_here(after_a_run, DATA_PATH=demo, **longer)
    assert "\nadded to the training data: fineweb_train_000001.bin\n" in done.stdout
    shutil.copy(demo / "fineweb_val_000000.bin", demo / "fineweb_train_000000.bin")
    refused = run_here(after_a_run, DATA_PATH=demo, **longer)
    sentence = f"DATA_PATH={demo} lacks the fineweb_train_000000.bin that RESUME=checkpoints/test/"
    assert refused.returncode == 2 and refused.stderr.startswith(sentence)
    refused = run_here(after_a_run, **longer | dict(MATRIX_LR=0.5))
    assert refused.returncode == 2 and "MATRIX_LR=0.5, but RESUME=" in refused.stderr


def test_a_script_that_was_changed_goes_on_in_a_log_of_its_own(after_a_run):
    """Whoever reads a log finds in it the source that its score comes from."""
    log = after_a_run / "logs/test.txt"
    older = log.read_text().replace("Trains a small", "Trains a smaller", 1)
    log.write_text(older)
    changes = FAST | dict(RESUME="checkpoints/test/00000003.pt", TTT_PROTOCOL="off")
    done = run_here(after_a_run, RUN_ID="", **changes)
    assert done.returncode == 2
    assert done.stderr.startswith("logs/test.txt begins with another script: set a new RUN_ID.")
    assert log.read_text() == older
    again = run_here(after_a_run, RUN_ID="b", **changes)
    assert again.returncode == 0 and "resumed from" in lines_of(after_a_run, "b")
    own = (after_a_run / "logs/b.txt").read_text()
    assert own.startswith((ROOT / "train_gpt.py").read_text())


# ---- What is no number


def test_an_adaptation_that_diverges_keeps_the_score_of_fixed_weights(home, monkeypatch):
    learn = train_gpt.TestTimeTrainer.learn

    def diverging(self, *args, **options):
        learn(self, *args, **options)
        with torch.no_grad():
            next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(train_gpt.TestTimeTrainer, "learn", diverging)
    done = run_here(home, **FAST)
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


def test_two_runs_at_once_in_a_record_folder(home):
    """Each has its own log, checkpoints and artifact. Of what lies there the last one replaces
    artifact.pcll alone.

    The script of the first one has CRLF lines, and its console is closed after a line.
    """
    handed_in = {"train_seed1337.log": b"log", "submission.json": b"{}", "README.md": b"# entry"}
    for name, data in (handed_in | {"artifact.pcll": b"PCLL earlier"}).items():
        (home / name).write_bytes(data)
    script = home / "train_gpt.py"
    script.write_bytes((ROOT / "train_gpt.py").read_bytes().replace(b"\n", b"\r\n"))
    first = start(home, script=script, RUN_ID="", SEED=1, **FAST)
    second = start(home, RUN_ID="", SEED=2, **FAST)
    assert first.stdout.readline().startswith("python 3")
    first.stdout.close()
    assert first.wait(timeout=300) == 0, first.stderr.read()
    assert ended(second).returncode == 0

    logs = sorted((home / "logs").glob("*.txt"))
    assert len(logs) == len(list((home / "checkpoints").iterdir())) == 2
    seeds = set()
    for path in logs:
        lines = lines_of(home, path.stem)
        seeds |= {*re.findall(r"^seed:(\d)$", lines, re.M)}
        assert len(re.findall(LOSSES, lines)) == 3 and len(re.findall(ADAPTED, lines, re.M)) == 1
        stated = number(r"^artifact_sha256:(\w{64}) ", lines)
        assert hashlib.sha256(path.with_suffix(".pcll").read_bytes()).hexdigest() == stated
        source = script if "\nseed:1\n" in lines else ROOT / "train_gpt.py"
        assert path.read_bytes().startswith(source.read_bytes() + b"\n" + b"=" * 80 + b"\n")
        assert f"\nCode size: {source.stat().st_size} bytes\n" in lines
        assert "\nCheck it: python verify.py artifact.pcll " in lines
    assert seeds == {"1", "2"}
    kept = {path.read_bytes() for path in (home / "logs").glob("*.pcll")}
    assert len(kept) == 2 and (home / "artifact.pcll").read_bytes() in kept
    assert {name: (home / name).read_bytes() for name in handed_in} == handed_in


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


# ---- The console


def test_help_into_a_closed_pipe_is_no_traceback(home):
    """Without docstrings, too."""
    for option, first in (("-OO", "\n"), ("", "Trains a small language model")):
        command = f"{sys.executable} {option} {ROOT / 'train_gpt.py'} --help | head -1"
        done = subprocess.run(command, shell=True, cwd=home, capture_output=True, text=True)
        assert done.stdout.startswith(first) and "Traceback" not in done.stderr


def test_the_last_line_is_quoted_for_the_shell(home):
    folder = home / "it's here"
    (folder / "data").mkdir(parents=True)
    (folder / "my data").symlink_to(home / "data/demo")
    paths = dict(DATA_PATH="my data", TOKENIZER_PATH="my data/bpe_1024.model")
    done = run_here(folder, ARTIFACT_PATH="$HOME/it's.pcll", **paths, **FAST)
    assert done.returncode == 0, done.stderr
    code, printed = verify_here(folder, number(r"^Check it: python (.*)$", done.stdout))
    assert code == 0, printed
    assert os.listdir(folder / "$HOME") == ["it's.pcll"]
