"""Whole runs as a person starts them: one process, torchrun, two nodes, stopped and resumed.

Where nothing but the result counts they run inside this process, which saves the imports.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, make_demo_data, pairs
from torch._dynamo.utils import counters

import train_gpt
import verify
from decode_artifact import read_pcll
from train_gpt import NOT_LEGAL

SMALL = pairs("""
    PRESET=demo ITERATIONS=6 WARMDOWN_ITERS=4 TRAIN_BATCH_TOKENS=2048 TRAIN_LOG_EVERY=1 MODEL_DIM=64
    NUM_LAYERS=2 XSA_LAST_N=1 MLP_HIDDEN=128 CALIBRATION_TOKENS=1024 EVAL_STRIDE=256
    LATE_QAT_THRESHOLD=0.6 TTT_CHUNK_TOKENS=1024 TTT_EPOCHS=1 CUDA_VISIBLE_DEVICES=
""")


def environment(**changes) -> dict[str, str]:
    """Of a small run whose log is logs/test.txt."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    inherited = {name: value for name, value in os.environ.items() if name not in ranks}
    return inherited | SMALL | {"RUN_ID": "test"} | {k: str(v) for k, v in changes.items()}


def forget(folder, changes: dict) -> None:
    """Takes away the log of an earlier run: its name would be refused."""
    if not changes.get("RESUME"):
        (folder / "logs/test.txt").unlink(missing_ok=True)


def start(folder, *launcher, script=ROOT / "train_gpt.py", **changes) -> subprocess.Popen:
    """A process that runs the script in the folder."""
    forget(folder, changes)
    return subprocess.Popen(
        [sys.executable, *launcher, script],
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_until(process: subprocess.Popen, beginning: str) -> None:
    """Reads what it prints up to the line that begins so."""
    if not any(line.startswith(beginning) for line in process.stdout):
        raise AssertionError(process.stderr.read())


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def ranks(world_size: int) -> list[dict]:
    """What torchrun sets for each process, if each is a node's only one."""
    common = dict(WORLD_SIZE=world_size, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    return [common | dict(RANK=rank, LOCAL_RANK=0) for rank in range(world_size)]


def run_here(folder, **changes) -> subprocess.CompletedProcess:
    """Runs train_gpt.py in the folder inside this process, as a new one would do it on the CPU."""
    forget(folder, changes)
    counters.clear()  # of graphs that were compiled in this process
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, environment(**changes), clear=True),
        mock.patch.object(sys, "argv", ["train_gpt.py"]),
        mock.patch.object(train_gpt, "log", train_gpt.Log()),
        mock.patch.object(train_gpt, "ranks", train_gpt.Distributed()),
        mock.patch.object(torch.cuda, "device_count", lambda: 0),
    ):
        try:
            code = train_gpt.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess("train_gpt.py", code, out.getvalue(), err.getvalue())


def verify_here(folder, command: str) -> tuple[int, str]:
    """The exit code of `verify.py ...` in the folder, and what it prints."""
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        return verify.main(shlex.split(command)[1:]), out.buffer.getvalue().decode()


@dataclass(frozen=True)
class Done:
    """What a run has left."""

    printed: str
    source: str  # the first part of its log
    log: str  # and the rest
    artifact: bytes

    def numbers(self, pattern: str) -> list[float]:
        """What the pattern's group matches in the log's lines."""
        return [float(number) for number in re.findall(pattern, self.log, re.M)]


def finished(folder, process: subprocess.CompletedProcess) -> Done:
    assert process.returncode == 0, process.stderr
    source, log = (folder / "logs/test.txt").read_text().split("\n" + "=" * 80 + "\n", 1)
    return Done(process.stdout, source, log, (folder / "artifact.pcll").read_bytes())


LOSSES = r"train_loss:([\d.]+)"
SLIDING = r"^after export, sliding window: scored:2048 .*val_bpb:([\d.]+)"
FINAL = r"^final_pcll_sliding_exact .*val_bpb:([\d.]+)"
ADAPTED = r"^final_pcll_ttt_exact .*val_bpb:([\d.]+)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the demo's data and a short validation split."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(make_demo_data(tmp_path_factory.getbasetemp()), folder / "data/demo")
    return folder


# ---- One run and several


@pytest.fixture(scope="module")
def plain(home) -> Done:
    """One process, nothing changed."""
    return finished(home, run_here(home))


def test_two_runs_agree_to_the_byte(home, plain):
    again = finished(home, run_here(home))
    assert again.artifact == plain.artifact
    for line in (LOSSES, SLIDING, ADAPTED):
        assert again.numbers(line) == plain.numbers(line) != []


def test_one_rank_and_three_agree(home, plain, tmp_path):
    """Eight sequences a step, and so unequal parts. The last rank is on a node without a shared
    disk, where an older artifact lies: what all score are the first one's bytes."""
    (tmp_path / "data").symlink_to(home / "data")
    (tmp_path / "artifact.pcll").write_bytes(b"older")
    folders = zip((home, home, tmp_path), ranks(3), strict=True)
    first, *others = [start(folder, **variables) for folder, variables in folders]
    done = finished(home, ended(first))
    assert [ended(process).returncode for process in others] == [0, 0]

    assert "world_size:3" in done.log and len(plain.numbers(LOSSES)) == 6
    # the log has four digits of these
    np.testing.assert_allclose(done.numbers(LOSSES), plain.numbers(LOSSES), atol=1.1e-4)
    for line in (SLIDING, ADAPTED):
        np.testing.assert_allclose(done.numbers(line), plain.numbers(line), atol=1e-4)
    (stated,) = re.findall(r"^artifact_sha256:(\w{64}) ", done.log, re.M)
    assert stated == hashlib.sha256(done.artifact).hexdigest()
    assert (tmp_path / "artifact.pcll").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "artifact.pcll"}
    assert verify_here(home, re.search(r"verify\.py .*", done.log)[0])[0] == 0


def test_a_rank_that_dies_ends_the_run_on_all_nodes(home):
    changes = dict(ITERATIONS=100000, TRAIN_LOG_EVERY=1000)
    first, second = [start(home, **changes | variables) for variables in ranks(2)]
    read_until(first, "step:3/")
    second.kill()
    assert ended(second).returncode == -signal.SIGKILL
    done = ended(first)
    assert done.returncode == 2 and "The ranks lost touch" in done.stderr, done.stderr


def test_a_stopped_run_goes_on_to_the_same_artifact(home):
    changes = dict(ITERATIONS=20, TTT_PROTOCOL="off")
    whole = finished(home, run_here(home, **changes))
    stopped = start(home, **changes)
    read_until(stopped, "step:3/")
    stopped.send_signal(signal.SIGINT)
    done = ended(stopped)
    assert done.returncode == 2
    sentence = r"Stopped at step \d+\. To continue: RESUME=(\S+), all else the same\.\n"
    path = re.fullmatch(sentence, done.stderr)[1]

    resumed = finished(home, run_here(home, RESUME=path, RUN_ID="", **changes))
    assert f"resumed from {path} at step" in resumed.printed
    assert resumed.artifact == whole.artifact
    assert resumed.numbers(LOSSES) == whole.numbers(LOSSES)  # in one log, under the first's name
    text = (home / "logs/test.txt").read_text()
    assert text.count("Trains a small language model, packs it into") == 1


# ---- What a run writes


def assert_levels_of_532(weights: dict[str, np.ndarray]) -> None:
    """48 for the MLP, 80 for queries, keys and values, 64 for the rest, float16 for embeddings."""
    levels = {".up": 48, ".down": 48, ".q": 80, ".k": 80, ".v": 80, ".out": 64, ".proj": 64}
    for end, most in (levels | {"bigram.table": 64}).items():
        for name in [name for name in weights if name.endswith(end)]:
            assert 0.8 * most <= len(np.unique(weights[name])) <= most, name
    embedding = weights["tok_emb"]
    assert len(np.unique(embedding)) > 1000
    assert (embedding == embedding.astype(np.float16)).all()


@pytest.mark.parametrize("codec", ["huffman", "trellis"])
def test_the_artifact_verifies(home, codec):
    done = finished(home, run_here(home, CODEC=codec, TTT_PROTOCOL="off"))
    total = done.numbers(r"^Total submission size pcll: (\d+) bytes")
    assert total == [len((ROOT / "train_gpt.py").read_bytes()) + len(done.artifact)]
    (bpb,) = done.numbers(FINAL)
    places = "--data data/demo --tokenizer data/demo/bpe_1024.model"
    words = f"verify.py artifact.pcll --json --code {ROOT}/train_gpt.py {places} --claim {bpb}"
    code, printed = verify_here(home, words)
    assert code == 0, printed
    assert json.loads(printed)
    if codec == "huffman":
        assert_levels_of_532(read_pcll(home / "artifact.pcll")[1])


def test_the_log_holds_its_source_and_the_lines_in_use(plain):
    assert plain.source == (ROOT / "train_gpt.py").read_text()
    for pattern in (
        r"^seed:1337$",
        r"^preset:demo world_size:1 device:cpu dtype:torch.float32 seed:1337 model_params:\d+$",
        r"^attention by PyTorch's kernel$",
        r"^warm-up and compilation: \S+ s, 0 graphs, not counted as training; "
        r"0.0 s of the cap are kept for calibration$",
        r"^step:6/6 train_loss:\S+ train_time:\d+ms step_avg:\S+ms$",
        r"^train_tokens:12288 of \d+ in the shards$",
        r"^calibration_time:\d+ms$",
        r"^export: step scale 1.0000, \d+ bytes, budget \d+$",
        r"^Code size: \d+ bytes$",
        r"^Serialized model pcll: \d+ bytes$",
        r"^Total submission size pcll: \d+ bytes, \d+ below the cap$",
        r"^final_pcll_ttt_exact val_loss:\d+\.\d{8} val_bpb:\d+\.\d{8} val_tokens:2999 bytes:\d+ "
        r"eval_time:\d+ms$",
        r"^eval_total_time:\d+ms$",
        r"^  before export, plain +\d\.\d{4} bpb +\d+\.\d s diagnostic$",
        r"^  after export, plain +\d\.\d{4} bpb +\d+\.\d s diagnostic$",
        r"^  after export, sliding window +\d\.\d{4} bpb +\d+\.\d s diagnostic$",
        r"^  after score-first adaptation, sliding window +\d\.\d{4} bpb +\d+\.\d s$",
        r"^headline: final_pcll_ttt_exact val_loss:\S+ val_bpb:",
        r"^Check it: python verify.py artifact.pcll --data data/demo --tokenizer "
        r"data/demo/bpe_1024.model --claim \d+\.\d{6} --ttt$",
    ):
        assert len(re.findall(pattern, plain.log, re.M)) == 1, pattern
    last = plain.log.splitlines()[-2:]
    assert last[0].startswith("headline: ") and last[1].startswith("Check it: ")
    final = re.search(r"^final_pcll_ttt_exact .*", plain.log, re.M)
    assert last[0] == f"headline: {final[0]}"


@pytest.fixture(scope="module")
def illegal(home) -> Done:
    """A run that learns from all of the split before it scores it."""
    changes = dict(TTT_PROTOCOL="train_then_score", TTT_EPOCHS=2, MAX_WALLCLOCK_SECONDS="1e3")
    return finished(home, run_here(home, SEED=7, **changes))


def test_the_settings_that_differ_from_the_presets_are_one_line(illegal):
    """But for what differs from run to run: the seed, and where things lie."""
    (line,) = re.findall(r"^changed:(.*)$", illegal.log, re.M)
    assert f"\nchanged:{line}\n" in illegal.printed
    given = dict(word.split("=") for word in line.split(" "))
    not_changed = ("PRESET", "CUDA_VISIBLE_DEVICES")
    expected = {name: value for name, value in SMALL.items() if name not in not_changed}
    own = dict(TTT_PROTOCOL="train_then_score", TTT_EPOCHS="2", MAX_WALLCLOCK_SECONDS="1000.0")
    assert given == expected | own


def test_the_illegal_protocol_is_labelled_wherever_its_number_stands(illegal):
    assert "final_pcll_ttt_exact" not in illegal.log
    (legal,) = illegal.numbers(FINAL)
    (score,) = illegal.numbers(re.escape(NOT_LEGAL) + r" train_then_score .*val_bpb:([\d.]+)")
    assert score != legal
    lines = [line for line in illegal.printed.splitlines() if f"{score:.4f}" in line]
    assert lines and all(NOT_LEGAL in line for line in lines)
    assert "headline: final_pcll_sliding_exact val_loss:" in illegal.log
    assert f"--claim {legal:.6f}" in illegal.log and "--ttt" not in illegal.log


DIVERGING = dict(EMBED_LR=9e18, SCALAR_LR=9e18, MATRIX_LR=9e18, GRAD_CLIP_NORM=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (DIVERGING, r"At step \d+ the loss is (nan|inf)\. Lower the learning rates\."),
        (dict(SIZE_CAP_BYTES=100000, ITERATIONS=1), "SIZE_CAP_BYTES=100000 is less than "),
    ],
)
def test_a_failed_run_says_so_and_leaves_no_artifact(home, changes, sentence):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run_here(home, **changes)
    assert done.returncode == 2 and re.search(sentence, done.stderr)
    assert not list(home.glob("artifact.pcll*"))


@pytest.mark.parametrize(("cap", "warned"), [(0.001, True), (1000, False), (0, False)])
def test_the_cap_covers_training_and_calibration(home, cap, warned):
    """Where they take longer, as here in a cap shorter than a step, the log warns."""
    changes = dict(MAX_WALLCLOCK_SECONDS=cap, ITERATIONS=2, NUM_LAYERS=1, TTT_PROTOCOL="off")
    done = finished(home, run_here(home, **changes))
    (trained,) = done.numbers(r"^step:\d/2 .*train_time:(\d+)ms")[-1:]
    (calibrated,) = done.numbers(r"^calibration_time:(\d+)ms$")
    warnings = done.numbers(
        r"^warning: training and calibration took ([\d.]+) s, more than "
        rf"MAX_WALLCLOCK_SECONDS={cap}\.$"
    )
    # three numbers, each rounded by half a unit of its last digit
    expected = [pytest.approx((trained + calibrated) / 1000, abs=0.052)]
    assert warnings == (expected if warned else [])
    (reserved,) = done.numbers(r"; ([\d.]+) s of the cap are kept for calibration$")
    assert reserved == 0 or cap


def test_a_run_of_no_steps_is_exported_and_scored(home):
    done = finished(home, run_here(home, ITERATIONS=0, WARMUP_STEPS=0, TTT_PROTOCOL="off"))
    assert not done.numbers(LOSSES) and len(done.numbers(FINAL)) == 1
    assert "train_tokens:0 of " in done.log


@pytest.mark.slow
def test_kill_at_any_moment_leaves_only_whole_files(home):
    """100 times kill -9, most of them while a checkpoint is written after every step."""
    rng = np.random.default_rng(0)
    changes = dict(ITERATIONS=100000, CHECKPOINT_EVERY=0.001, TRAIN_LOG_EVERY=1, RUN_ID="killed")
    for attempt in range(100):
        resumable = any((home / "checkpoints/killed").glob("*.pt"))
        process = start(home, RESUME="latest" if resumable else "", **changes)
        read_until(process, "step:")
        try:
            process.wait(timeout=rng.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"attempt {attempt}: {errors}"
        for path in (home / "checkpoints/killed").glob("*.pt"):
            assert torch.load(path, weights_only=True)["step"] == int(path.stem)
        log = (home / "logs/killed.txt").read_text().split("=" * 80 + "\n", 1)[1]
        whole = r"step:\d+/100000 train_loss:\S+ train_time:\d+ms step_avg:\S+ms"
        for line in log.splitlines():
            assert not line.startswith("step:") or re.fullmatch(whole, line)
