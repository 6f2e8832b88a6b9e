"""What only a CUDA GPU can show: `pytest -m gpu`."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, random_model, tiny_settings

from train_gpt import Ranks, Trainer, newton_schulz

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
SMALL = dict(
    PRESET="demo", ITERATIONS="30", WARMDOWN_ITERS="10", WARMUP_STEPS="2", TRAIN_LOG_EVERY="1"
)


def run(folder, **changes) -> subprocess.CompletedProcess:
    environment = os.environ | SMALL | {"RUN_ID": "test"} | changes
    return subprocess.run(
        [sys.executable, ROOT / "train_gpt.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def losses(done: subprocess.CompletedProcess) -> list[float]:
    return [float(loss) for loss in re.findall(r"train_loss:([\d.]+)", done.stdout)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_and_gradients_are_those_of_the_cpu(dtype):
    s = tiny_settings(DTYPE=dtype)
    tokens = torch.randint(1, 64, (3, 17))
    results = []
    for device in (torch.device("cpu"), GPU):
        model = random_model(s).to(device)
        model.dtype = getattr(torch, dtype if device is GPU else "float32")
        loss = torch.nn.functional.cross_entropy(
            model(tokens[:, :-1].to(device)).flatten(0, 1), tokens[:, 1:].flatten().to(device)
        )
        loss.backward()
        results.append(
            (loss.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
        )
    (a, x), (b, y) = results
    assert a == pytest.approx(b, abs=1e-4 if dtype == "float32" else 5e-2)
    assert torch.nn.functional.cosine_similarity(x, y, dim=0) > (
        0.9999 if dtype == "float32" else 0.99
    )


def test_newton_schulz_in_bfloat16_is_close_to_float32():
    g = torch.randn(3, 64, 96)
    values = torch.linalg.svdvals(newton_schulz(g.to(GPU)).float().cpu())
    assert newton_schulz(g.to(GPU)).dtype == torch.bfloat16
    assert values.max() < 1.3 and values.median() > 0.6


def test_a_whole_run_compiles_trains_and_verifies(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recompile_limit" not in done.stderr  # beyond it the network is no longer compiled
    assert losses(done)[-1] < losses(done)[0] - 0.5
    claim = re.search(r"final_pcll_sliding_exact .*val_bpb:([\d.]+)", done.stdout)[1]
    command = [
        sys.executable,
        ROOT / "verify.py",
        "artifact.pcll",
        "--code",
        ROOT / "train_gpt.py",
        "--data",
        "data/demo",
        "--tokenizer",
        "data/demo/bpe_1024.model",
        "--claim",
        claim,
    ]
    verified = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout


def test_compiled_and_plain_runs_agree(tmp_path):
    plain, compiled = (
        losses(run(tmp_path, COMPILE=mode, TTT_PROTOCOL="off")) for mode in ("0", "1")
    )
    assert len(plain) == 30 and max(abs(a - b) for a, b in zip(plain, compiled, strict=True)) < 0.05


def test_a_resumed_run_goes_on(tmp_path):
    whole = run(tmp_path, CHECKPOINT_EVERY="0.001", TTT_PROTOCOL="off")
    before_last = sorted((tmp_path / "checkpoints/test").glob("*.pt"))[0]
    resumed = run(tmp_path, RESUME=str(before_last), TTT_PROTOCOL="off")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(resumed)[-1] == pytest.approx(losses(whole)[-1], abs=0.02)


def test_full_memory_is_one_sentence(tmp_path):
    done = run(
        tmp_path,
        TRAIN_SEQ_LEN="16384",
        TRAIN_BATCH_TOKENS=str(16384 * 4096),
        MICRO_BATCH_SEQS="4096",
        TTT_CHUNK_TOKENS="16384",
        COMPILE="0",
    )
    assert done.returncode == 2 and done.stderr.endswith("EVAL_BATCH_SEQS or TTT_BATCH_SEQS.\n")


def test_a_step_does_not_wait_for_the_gpu(tmp_path):
    """The host may run a step ahead: an update returns before its own work is done."""
    done = run(tmp_path, ITERATIONS="0", WARMUP_STEPS="0", TTT_PROTOCOL="off")
    assert done.returncode == 0, done.stderr
    s = tiny_settings(DATA_PATH=str(tmp_path / "data/demo"), VOCAB_SIZE="1024")
    trainer = Trainer(random_model(s).to(GPU), s, Ranks(0, 1, GPU))
    for _ in range(3):
        trainer.set_schedule()
        trainer.update()
    torch.cuda.synchronize()
    torch.cuda._sleep(int(2e9))  # about a second of work in the queue
    trainer.update()
    assert not trainer.finished.query()
    torch.cuda.synchronize()
