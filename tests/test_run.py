"""Whole runs as a person starts them: one process, torchrun, the demo, verify.py on what it left."""

import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from train_gpt import NOT_LEGAL

SMALL = dict(
    PRESET="demo", ITERATIONS="6", WARMDOWN_ITERS="4", TRAIN_BATCH_TOKENS="2048", TRAIN_LOG_EVERY="1", MODEL_DIM="64",
    NUM_LAYERS="2", XSA_LAST_N="1", MLP_HIDDEN="128", EVAL_STRIDE="256", OMP_NUM_THREADS="1", DEVICE="cpu",
    LATE_QAT_THRESHOLD="0.6", TTT_CHUNK_TOKENS="2048",
)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run(folder, *, ranks: int = 1, **changes) -> subprocess.CompletedProcess:
    """Runs train_gpt.py in the folder; its log is logs/test.txt."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = inherited | SMALL | {"RUN_ID": "test"} | {k: str(v) for k, v in changes.items()}
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port", free_port()]
    command = [*launcher, ROOT / "train_gpt.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


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
    command = [sys.executable, ROOT / "verify.py", "artifact.pcll", "--code", ROOT / "train_gpt.py", "--json",
               "--data", "data/demo", "--tokenizer", "data/demo/bpe_1024.model", "--claim", str(bpb)]
    verified = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)


def test_the_log_holds_its_source_and_the_lines_in_use(home):
    assert run(home).returncode == 0
    source, rest = (home / "logs/test.txt").read_text().split("\n" + "=" * 80 + "\n", 1)
    assert source == (ROOT / "train_gpt.py").read_text()
    for pattern in (
        r"^seed:1337$", r"^step:6/6 train_loss:\S+ train_time:\d+ms step_avg:\S+ms$", r"^Code size: \d+ bytes$",
        r"^Serialized model pcll: \d+ bytes$", r"^Total submission size pcll: \d+ bytes$",
        r"^final_pcll_sliding_exact val_loss:\S+ val_bpb:\S+ ", r"^final_pcll_ttt_exact val_loss:\S+ val_bpb:",
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
    assert done.returncode == 2 and re.search(r"The loss is \S+ at step \d", done.stderr)
    assert not (home / "artifact.pcll").exists()


def test_an_artifact_over_the_cap_is_refused(home):
    (home / "artifact.pcll").unlink(missing_ok=True)
    done = run(home, SIZE_CAP_BYTES=100000, FIT="off")
    assert done.returncode == 2 and "SIZE_CAP_BYTES=100000" in done.stderr
    assert not list(home.glob("artifact.pcll*"))


def test_more_processes_than_sequences_are_refused(home):
    done = run(home, ranks=2, TRAIN_BATCH_TOKENS=256)
    assert done.returncode != 0 and "TRAIN_BATCH_TOKENS=256 holds fewer sequences" in done.stderr
