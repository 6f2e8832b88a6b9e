"""Whole runs as a person starts them: one process, torchrun, two nodes, stopped and resumed.

Where nothing but the result counts they run inside this process, which saves the imports.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, make_demo_data

import train_gpt
from decode_artifact import read_pcll
from train_gpt import NOT_LEGAL

SMALL = dict(
    PRESET="demo",
    ITERATIONS="6",
    WARMDOWN_ITERS="4",
    TRAIN_BATCH_TOKENS="2048",
    TRAIN_LOG_EVERY="1",
    MODEL_DIM="64",
    NUM_LAYERS="2",
    XSA_LAST_N="1",
    MLP_HIDDEN="128",
    CALIBRATION_TOKENS="1024",
    EVAL_STRIDE="256",
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
    LATE_QAT_THRESHOLD="0.6",
    TTT_CHUNK_TOKENS="1024",
    TTT_EPOCHS="1",
)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def environment(**changes) -> dict[str, str]:
    """Of a small run whose log is logs/test.txt."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return inherited | SMALL | {"RUN_ID": "test"} | {k: str(v) for k, v in changes.items()}


def forget(folder, changes: dict) -> None:
    """Takes away the log of an earlier run: its name would be refused."""
    if not changes.get("RESUME"):
        (folder / "logs/test.txt").unlink(missing_ok=True)


def run(folder, *, ranks: int = 1, **changes) -> subprocess.CompletedProcess:
    """Runs train_gpt.py in the folder, in which no run was before, or that of RESUME."""
    forget(folder, changes)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
        launcher += ["--master_port", free_port()]
    command = [*launcher, ROOT / "train_gpt.py"]
    return subprocess.run(
        command, cwd=folder, env=environment(**changes), capture_output=True, text=True
    )


def run_here(folder, **changes) -> subprocess.CompletedProcess:
    """The same inside this process, as a new one would do it on the CPU with one thread."""
    forget(folder, changes)
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
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
            torch.set_num_threads(1)
            code = train_gpt.main()
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess("train_gpt.py", code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Done:
    """What a run has left."""

    printed: str
    log: str  # without the source
    artifact: bytes

    def numbers(self, pattern: str) -> list[float]:
        """What the pattern's group matches in the log's lines."""
        return [float(number) for number in re.findall(pattern, self.log, re.M)]


def finished(folder, process: subprocess.CompletedProcess) -> Done:
    assert process.returncode == 0, process.stderr
    log = (folder / "logs/test.txt").read_text().split("=" * 80 + "\n", 1)[1]
    return Done(process.stdout, log, (folder / "artifact.pcll").read_bytes())


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


@pytest.fixture(scope="module")
def plain(home) -> Done:
    """One process, nothing changed."""
    return finished(home, run(home))


def test_one_rank_and_three_agree(home, plain):
    """Eight sequences a step, and so unequal parts."""
    several = finished(home, run(home, ranks=3))
    assert len(plain.numbers(LOSSES)) == 6
    # the log has four digits of these
    np.testing.assert_allclose(several.numbers(LOSSES), plain.numbers(LOSSES), atol=1.1e-4)
    for line in (SLIDING, ADAPTED):
        np.testing.assert_allclose(several.numbers(line), plain.numbers(line), atol=1e-4)


def test_two_runs_agree_to_the_byte(home, plain):
    again = finished(home, run_here(home))
    assert again.artifact == plain.artifact
    assert again.numbers(LOSSES) == plain.numbers(LOSSES)
    for line in (SLIDING, ADAPTED):
        assert again.numbers(line) == plain.numbers(line)


def test_codebooks_have_their_numbers_of_levels(home):
    """Those of entry 532: 48 for the MLP, 80 for queries, keys and values, 64 for the rest."""
    finished(home, run_here(home, CODEC="huffman", ITERATIONS=2))
    weights = read_pcll(home / "artifact.pcll")[1]
    for end, levels in (
        ("mlp.up", 48),
        ("mlp.down", 48),
        ("attn.q", 80),
        ("attn.k", 80),
        ("attn.v", 80),
        ("attn.out", 64),
        ("bigram.proj", 64),
        ("bigram.table", 64),
    ):
        for name in [name for name in weights if name.endswith(end)]:
            assert 0.8 * levels <= len(np.unique(weights[name])) <= levels, name
    embedding = weights["tok_emb"]
    assert len(np.unique(embedding)) > 1000
    assert (embedding == embedding.astype(np.float16)).all()


@pytest.mark.parametrize("codec", ["huffman", "trellis"])
def test_the_artifact_verifies(home, codec):
    done = finished(home, run_here(home, CODEC=codec, TTT_PROTOCOL="off"))
    total = done.numbers(r"^Total submission size pcll: (\d+) bytes")
    assert total == [len((ROOT / "train_gpt.py").read_bytes()) + len(done.artifact)]
    command = [sys.executable, ROOT / "verify.py", "artifact.pcll", "--json"]
    command += ["--code", ROOT / "train_gpt.py"]
    command += ["--data", "data/demo", "--tokenizer", "data/demo/bpe_1024.model"]
    (bpb,) = done.numbers(FINAL)
    verified = subprocess.run(
        [*command, "--claim", str(bpb)], cwd=home, capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)


def test_the_log_holds_its_source_and_the_lines_in_use(home):
    process = run_here(home, NUM_LAYERS=1)
    assert process.returncode == 0
    source, lines = (home / "logs/test.txt").read_text().split("\n" + "=" * 80 + "\n", 1)
    assert source == (ROOT / "train_gpt.py").read_text()
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
        assert len(re.findall(pattern, lines, re.MULTILINE)) == 1, pattern
    last = lines.splitlines()[-2:]
    assert last[0].startswith("headline: ") and last[1].startswith("Check it: ")
    final = re.search(r"^final_pcll_ttt_exact .*", lines, re.M)
    assert last[0] == f"headline: {final[0]}"


def test_the_settings_that_differ_from_the_presets_are_one_line(home):
    """But for what differs from run to run: the seed, and where things lie."""
    done = finished(home, run_here(home, SMEAR_GATE=0, MAX_WALLCLOCK_SECONDS="1e3", SEED=7))
    (line,) = re.findall(r"^changed:(.*)$", done.log, re.M)
    assert f"\nchanged:{line}\n" in done.printed
    given = dict(word.split("=") for word in line.split(" "))
    expected = {name: value for name, value in SMALL.items() if name in given}
    not_changed = {"PRESET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
    assert expected.keys() == SMALL.keys() - not_changed
    assert given == expected | dict(SMEAR_GATE="0", MAX_WALLCLOCK_SECONDS="1000.0")


def test_the_illegal_protocol_is_labelled_wherever_its_number_stands(home):
    done = finished(home, run_here(home, TTT_PROTOCOL="train_then_score", TTT_EPOCHS=2))
    assert "final_pcll_ttt_exact" not in done.log
    (legal,) = done.numbers(FINAL)
    (illegal,) = done.numbers(re.escape(NOT_LEGAL) + r" train_then_score .*val_bpb:([\d.]+)")
    assert illegal != legal
    lines = [line for line in done.printed.splitlines() if f"{illegal:.4f}" in line]
    assert lines and all(NOT_LEGAL in line for line in lines)
    assert "headline: final_pcll_sliding_exact val_loss:" in done.log
    assert f"--claim {legal:.6f}" in done.log and "--ttt" not in done.log


def test_a_diverged_run_says_so_and_leaves_no_artifact(home):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run_here(home, EMBED_LR=9e18, SCALAR_LR=9e18, MATRIX_LR=9e18, GRAD_CLIP_NORM=0)
    assert done.returncode == 2
    assert re.search(r"At step \d+ the loss is (nan|inf)\. Lower the learning rates\.", done.stderr)
    assert not (home / "artifact.pcll").exists()


def test_an_artifact_over_the_cap_is_refused(home):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run_here(home, SIZE_CAP_BYTES=100000)
    assert done.returncode == 2 and "SIZE_CAP_BYTES=100000 is less than " in done.stderr
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


def test_a_run_without_docstrings_and_assertions(home):
    forget(home, {})
    process = subprocess.run(
        [sys.executable, "-OO", ROOT / "train_gpt.py"],
        cwd=home,
        env=environment(ITERATIONS=2, NUM_LAYERS=1),
        capture_output=True,
        text=True,
    )
    done = finished(home, process)
    assert len(done.numbers(LOSSES)) == 2 and len(done.numbers(ADAPTED)) == 1


def start(folder, *launcher, **changes) -> subprocess.Popen:
    """Starts a run and returns it when its first steps are done."""
    forget(folder, changes)
    process = subprocess.Popen(
        [sys.executable, *launcher, ROOT / "train_gpt.py"],
        cwd=folder,
        text=True,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for line in process.stdout:
        if line.startswith("step:3/"):
            return process
    raise AssertionError(process.stderr.read())


def test_a_stopped_run_goes_on_to_the_same_artifact(home):
    changes = dict(ITERATIONS=20, TTT_PROTOCOL="off")
    whole = finished(home, run_here(home, **changes))
    stopped = start(home, **changes)
    stopped.send_signal(signal.SIGINT)
    _, sentence = stopped.communicate(timeout=60)
    assert stopped.returncode == 2
    assert re.fullmatch(
        r"Stopped at step \d+\. To continue: RESUME=\S+, all else the same\.\n", sentence
    )

    path = re.search(r"RESUME=(\S+),", sentence)[1]
    resumed = finished(home, run_here(home, RESUME=path, RUN_ID="", **changes))
    assert f"resumed from {path} at step" in resumed.printed
    assert resumed.artifact == whole.artifact
    assert resumed.numbers(LOSSES) == whole.numbers(LOSSES)  # in one log, under the first's name
    text = (home / "logs/test.txt").read_text()
    assert text.count("Trains a small language model, packs it into") == 1


def nodes(port: str, node: int) -> list[str]:
    """torchrun's arguments for one of two nodes of one process each."""
    return [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        f"--node_rank={node}",
        "--nproc_per_node=1",
        "--master_addr=127.0.0.1",
        f"--master_port={port}",
    ]


def test_two_nodes_are_as_one(home, plain):
    port, command = free_port(), [ROOT / "train_gpt.py"]
    forget(home, {})
    second = subprocess.Popen(
        [sys.executable, *nodes(port, 1), *command], cwd=home, env=environment()
    )
    first = subprocess.run(
        [sys.executable, *nodes(port, 0), *command],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert first.returncode == 0 and second.wait(timeout=60) == 0, first.stderr
    done = finished(home, first)
    np.testing.assert_allclose(done.numbers(LOSSES), plain.numbers(LOSSES), atol=1.1e-4)
    assert "world_size:2" in done.printed


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    return [int(child) for child in listed.split()]


def test_a_rank_that_dies_ends_the_run_on_all_nodes(home):
    changes, port = dict(ITERATIONS=100000, TRAIN_LOG_EVERY=1000), free_port()
    command = [sys.executable, *nodes(port, 1), ROOT / "train_gpt.py"]
    second = subprocess.Popen(
        command, cwd=home, env=environment(**changes), stderr=subprocess.PIPE, text=True
    )
    first = start(home, *nodes(port, 0), **changes)
    began = time.monotonic()
    os.kill(children(second.pid)[0], signal.SIGKILL)
    assert "SIGKILL" in second.communicate(timeout=60)[1] and second.returncode != 0
    _, errors = first.communicate(timeout=60)
    assert first.returncode != 0 and "The ranks lost touch" in errors, errors
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_kill_at_any_moment_leaves_only_whole_files(home):
    """100 times kill -9, most of them while a checkpoint is written after every step."""
    rng = np.random.default_rng(0)
    changes = dict(ITERATIONS=100000, CHECKPOINT_EVERY=0.001, TRAIN_LOG_EVERY=1, RUN_ID="killed")
    for attempt in range(100):
        resumable = any((home / "checkpoints/killed").glob("*.pt"))
        process = subprocess.Popen(
            [sys.executable, ROOT / "train_gpt.py"],
            cwd=home,
            env=environment(RESUME="latest" if resumable else "", **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if line.startswith("step:"):
                break
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
