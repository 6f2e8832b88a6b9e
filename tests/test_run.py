"""Whole runs as a person starts them: one process, torchrun, the demo, verify.py on what it left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

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
    EVAL_STRIDE="256",
    OMP_NUM_THREADS="1",
    DEVICE="cpu",
    LATE_QAT_THRESHOLD="0.6",
    TTT_CHUNK_TOKENS="2048",
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


def run(folder, *, ranks: int = 1, **changes) -> subprocess.CompletedProcess:
    """Runs train_gpt.py in the folder."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={ranks}",
            "--master_port",
            free_port(),
        ]
    command = [*launcher, ROOT / "train_gpt.py"]
    return subprocess.run(
        command, cwd=folder, env=environment(**changes), capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the demo has made its data, with a short validation split."""
    folder = tmp_path_factory.mktemp("home")
    made = run(folder, ITERATIONS=0, WARMUP_STEPS=0, TTT_PROTOCOL="off")
    assert made.returncode == 0, made.stderr
    shard = folder / "data/demo/fineweb_val_000000.bin"
    header, tokens = np.fromfile(shard, "<i4", 256), np.fromfile(shard, "<u2", offset=1024)[:6000]
    header[2] = len(tokens)
    shard.write_bytes(header.tobytes() + tokens.tobytes())
    return folder


def numbers(folder, pattern: str) -> list[float]:
    """What the pattern's group matches in the part of the log that follows the source."""
    text = (folder / "logs/test.txt").read_text().split("=" * 80 + "\n", 1)[1]
    return [float(number) for number in re.findall(pattern, text)]


def test_one_rank_and_several_agree(home):
    losses, scores = {}, {}
    for ranks in (1, 2, 4):
        done = run(home, ranks=ranks)
        assert done.returncode == 0, done.stderr
        losses[ranks] = numbers(home, r"train_loss:([\d.]+)")
        scores[ranks] = numbers(home, r"final_pcll_\w+_exact .*val_bpb:([\d.]+)")
        assert len(losses[ranks]) == 6 and len(scores[ranks]) == 2
    for ranks in (2, 4):
        np.testing.assert_allclose(losses[ranks], losses[1], atol=1.1e-4)  # the log has four digits
        np.testing.assert_allclose(scores[ranks], scores[1], atol=1e-4)


@pytest.mark.parametrize("codec", ["huffman", "trellis"])
def test_a_run_is_reproducible_to_the_byte_and_verifies(home, codec):
    artifacts = []
    for _ in range(2):
        done = run(home, CODEC=codec)
        assert done.returncode == 0, done.stderr
        artifacts.append((home / "artifact.pcll").read_bytes())
    assert artifacts[0] == artifacts[1]
    total = numbers(home, r"Total submission size pcll: (\d+) bytes")[0]
    assert total == len((ROOT / "train_gpt.py").read_bytes()) + len(artifacts[0])
    bpb = numbers(home, r"final_pcll_sliding_exact .*val_bpb:([\d.]+)")[0]
    command = [
        sys.executable,
        ROOT / "verify.py",
        "artifact.pcll",
        "--code",
        ROOT / "train_gpt.py",
        "--json",
        "--data",
        "data/demo",
        "--tokenizer",
        "data/demo/bpe_1024.model",
        "--claim",
        str(bpb),
    ]
    verified = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)


def test_the_log_holds_its_source_and_the_lines_in_use(home):
    assert run(home).returncode == 0
    source, rest = (home / "logs/test.txt").read_text().split("\n" + "=" * 80 + "\n", 1)
    assert source == (ROOT / "train_gpt.py").read_text()
    for pattern in (
        r"^seed:1337$",
        r"^step:6/6 train_loss:\S+ train_time:\d+ms step_avg:\S+ms tok_s:\d+$",
        r"^Code size: \d+ bytes$",
        r"^Serialized model pcll: \d+ bytes$",
        r"^Total submission size pcll: \d+ bytes$",
        r"^final_pcll_sliding_exact val_loss:\S+ val_bpb:\S+ ",
        r"^final_pcll_ttt_exact val_loss:\S+ val_bpb:",
    ):
        assert len(re.findall(pattern, rest, re.MULTILINE)) == 1, pattern


def test_the_illegal_protocol_is_labelled_wherever_its_number_stands(home):
    done = run(home, TTT_PROTOCOL="train_then_score", TTT_EPOCHS=2)
    assert done.returncode == 0, done.stderr
    assert "final_pcll_ttt_exact" not in done.stdout
    legal = numbers(home, r"final_pcll_sliding_exact .*val_bpb:([\d.]+)")[0]
    illegal = numbers(home, re.escape(NOT_LEGAL) + r" train_then_score .*val_bpb:([\d.]+)")[0]
    assert illegal != legal
    lines = [line for line in done.stdout.splitlines() if f"{illegal:.4f}" in line]
    assert lines and all(NOT_LEGAL in line for line in lines)


def test_a_diverged_run_says_so_and_leaves_no_artifact(home):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run(home, EMBED_LR=1e30, SCALAR_LR=1e30, MATRIX_LR=1e30, GRAD_CLIP_NORM=0)
    assert done.returncode == 2 and re.search(
        r"At step \d+ the loss is \S+ and \d+ gradients", done.stderr
    )
    assert not (home / "artifact.pcll").exists()


def test_an_artifact_over_the_cap_is_refused(home):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run(home, SIZE_CAP_BYTES=100000, FIT="off")
    assert done.returncode == 2 and "SIZE_CAP_BYTES=100000" in done.stderr
    assert not list(home.glob("artifact.pcll*"))


def test_more_processes_than_sequences_are_refused(home):
    done = run(home, ranks=2, TRAIN_BATCH_TOKENS=256)
    assert done.returncode != 0 and "TRAIN_BATCH_TOKENS=256 holds fewer sequences" in done.stderr


def start(folder, *launcher, **changes) -> subprocess.Popen:
    """Starts a run and returns it when its first steps are done."""
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
    changes = dict(ITERATIONS=40, TTT_PROTOCOL="off")
    assert run(home, **changes).returncode == 0
    artifact, losses = (home / "artifact.pcll").read_bytes(), numbers(home, r"train_loss:([\d.]+)")
    stopped = start(home, **changes)
    stopped.send_signal(signal.SIGTERM)
    _, sentence = stopped.communicate(timeout=60)
    assert stopped.returncode == 2 and re.fullmatch(
        r"Stopped at step \d+; to go on: RESUME=\S+, all .*\n", sentence
    )
    path = re.search(r"RESUME=(\S+),", sentence)[1]
    done = run(home, RESUME=path, RUN_ID="", **changes)
    assert done.returncode == 0, done.stderr
    assert f"resumed from {path} at step" in done.stdout
    assert (home / "artifact.pcll").read_bytes() == artifact
    assert numbers(home, r"train_loss:([\d.]+)") == losses  # in one log, under the first run's name
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


def test_two_nodes_are_as_one(home):
    changes = dict(ITERATIONS=4, TTT_PROTOCOL="off")
    assert run(home, **changes).returncode == 0
    expected, port = numbers(home, r"train_loss:([\d.]+)"), free_port()
    command = [ROOT / "train_gpt.py"]
    second = subprocess.Popen(
        [sys.executable, *nodes(port, 1), *command], cwd=home, env=environment(**changes)
    )
    first = subprocess.run(
        [sys.executable, *nodes(port, 0), *command],
        cwd=home,
        env=environment(**changes),
        capture_output=True,
        text=True,
    )
    assert first.returncode == 0 and second.wait(timeout=60) == 0, first.stderr
    np.testing.assert_allclose(numbers(home, r"train_loss:([\d.]+)"), expected, atol=1.1e-4)
    assert "world_size:2" in first.stdout


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
    assert first.returncode != 0 and "Another rank has ended" in errors, errors
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_kill_at_any_moment_leaves_only_whole_files(home):
    """100 times kill -9, most of them while a checkpoint is written after every step."""
    rng = np.random.default_rng(0)
    changes = dict(ITERATIONS=100000, CHECKPOINT_EVERY=0.001, TRAIN_LOG_EVERY=1, RUN_ID="killed")
    for attempt in range(100):
        resumable = any((home / "checkpoints/killed").glob("*.pt"))
        process = (
            start(home, **changes)
            if not resumable
            else subprocess.Popen(
                [sys.executable, ROOT / "train_gpt.py"],
                cwd=home,
                env=environment(RESUME="latest", **changes),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
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
        steps = [line for line in log.splitlines() if line.startswith("step:")]
        assert all(
            re.fullmatch(
                r"step:\d+/100000 train_loss:\S+ train_time:\d+ms step_avg:\S+ms tok_s:\d+", line
            )
            for line in steps
        )
