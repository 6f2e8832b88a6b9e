"""What only a CUDA GPU can show: `pytest -m gpu`; `-m gpu -k smoke` in less than a minute.

The smoke tests run on the CPU, too, where they show that they themselves are right.
"""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, random_model, tiny_settings, write_shard

import train_gpt
import verify
from train_gpt import Distributed, TokenStream, TrainState, newton_schulz

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = dict(
    PRESET="demo", ITERATIONS="30", WARMDOWN_ITERS="10", WARMUP_STEPS="2", TRAIN_LOG_EVERY="1"
)


def state(figure: str, value: float) -> None:
    """A line of the table that run_on_gpu.sh collects."""
    print(f"\n{figure}\t{value:.6f}")


@pytest.fixture
def on_device(monkeypatch):
    """on_device("cuda"): this process is the only rank, on the CPU or the first GPU; the device."""

    def choose(device: str) -> torch.device:
        where = torch.device(device, 0) if device == "cuda" else torch.device(device)
        monkeypatch.setattr(train_gpt, "ranks", Distributed(0, 1, where))
        return where

    return choose


# ---- Smoke ---------------------------------------------------------------------------------------


def network(device: str) -> tuple[train_gpt.GPT, verify.Model]:
    """A small network in bfloat16, and verify.py's of the same weights; heads of 64, as in pcll."""
    s = tiny_settings(MODEL_DIM=128, NUM_HEADS=2, NUM_KV_HEADS=1, ROPE_DIMS=16)
    ours = random_model(s)
    weights = {name: w.numpy() for name, w in ours.state_dict().items()}
    config = dict(unet_skips=True, skip_gates=False, logit_softcap=train_gpt.LOGIT_SOFTCAP)
    reference = verify.Model(dataclasses.asdict(s) | config, weights, device)
    model = train_gpt.GPT(s, torch.bfloat16)
    model.load_state_dict(ours.state_dict())
    return model.to(device), reference


@pytest.mark.parametrize("device", DEVICES)
def test_smoke_logits_are_those_of_verify(device):
    model, reference = network(device)
    tokens = torch.randint(1, 64, (32, 16), device=device)
    with torch.no_grad():
        exact = reference(tokens)
        rounded = model(tokens)
    assert rounded.dtype == torch.float32 and rounded.shape == exact.shape
    difference = (rounded - exact).abs().mean() / exact.std()
    state("mean difference of the logits, standard deviations", difference.item())
    assert difference < 0.03
    losses = [
        F.cross_entropy(x[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) for x in (exact, rounded)
    ]
    state("difference of the losses, nats", (losses[1] - losses[0]).item())
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=0.02)

    with torch.inference_mode():
        some = model(tokens, at=torch.arange(8, 16, device=device))
    difference = (some - exact[:, 8:]).abs().mean() / exact.std()
    state("mean difference of some logits, standard deviations", difference.item())
    assert difference < 0.03


def orthogonalized(g: torch.Tensor) -> torch.Tensor:
    """Muon's iteration in float64, written out once more."""
    x = g.double() / g.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("device", DEVICES)
def test_smoke_newton_schulz_is_that_of_float64(device):
    g = torch.randn(3, 128, 320)
    result = newton_schulz(g.to(device))
    exact = orthogonalized(g)
    assert result.dtype == (torch.float32 if device == "cpu" else torch.bfloat16)
    error = (result.double().cpu() - exact).norm() / exact.norm()
    state("relative error of Newton-Schulz", error.item())
    assert error < (1e-5 if device == "cpu" else 0.05)


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Within it whatever makes the host wait for the GPU is an error. A wait for an event is none:
    by it a step lets the one before finish."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def train_on(on_device, tmp_path, monkeypatch):
    """train_on(device, step): a training of ten steps on 4,095 tokens, whose train_step is this."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def make(device: str, step) -> TrainState:
        write_shard(tmp_path / "fineweb_train_000000.bin", np.arange(4096) % 60 + 1)
        options = dict(ITERATIONS=10, WARMDOWN_ITERS=10, LATE_QAT_THRESHOLD=2, CHECKPOINT_EVERY=0)
        s = tiny_settings(DATA_PATH=tmp_path, **options)
        state = TrainState(random_model(s).to(on_device(device)), s)
        monkeypatch.setattr(train_gpt, "train_step", step)
        train_gpt.train(state, TokenStream(s, "train"), SimpleNamespace(s=s))
        return state

    yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("device", DEVICES)
def test_smoke_a_step_does_not_wait(device, train_on):
    plain = train_gpt.train_step

    def step(state, *rest):
        guard = contextlib.nullcontext()
        if state.step >= 2:  # what is made once, is made before
            guard = no_waiting(train_gpt.ranks.device)
        with guard:
            plain(state, *rest)

    state = train_on(device, step)
    assert state.step == 10 and state.grads[-1].item() > 0


# ---- All else, in minutes ------------------------------------------------------------------------


def run(folder, **changes) -> subprocess.CompletedProcess:
    environment = os.environ | SMALL | {"RUN_ID": "test"} | changes
    command = [sys.executable, ROOT / "train_gpt.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def losses(done: subprocess.CompletedProcess) -> list[float]:
    return [float(loss) for loss in re.findall(r"train_loss:([\d.]+)", done.stdout)]


def loss_and_gradient(device: str, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """Of one small network on the same tokens: the loss, and all gradients in a row."""
    s = tiny_settings()
    weights = random_model(s).state_dict()
    tokens = torch.randint(1, 64, (3, 17))
    model = train_gpt.GPT(s, dtype)
    model.load_state_dict(weights)
    model.to(device)
    loss = model(tokens[:, :-1].to(device), tokens[:, 1:].to(device)).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_gradients_are_those_of_the_cpu(device, dtype):
    exact, gradient = loss_and_gradient("cpu", torch.float32)
    loss, other = loss_and_gradient(device, dtype)
    rounded = dtype == torch.bfloat16
    assert loss == pytest.approx(exact, abs=5e-2 if rounded else 1e-4)
    assert F.cosine_similarity(gradient, other, dim=0) > (0.99 if rounded else 0.9999)


@pytest.mark.parametrize("device", DEVICES)
def test_calibration_is_that_of_the_cpu(device, on_device, tmp_path):
    """On a GPU the backward pass, and so its hooks, runs in a thread of its own."""
    write_shard(tmp_path / "fineweb_train_000000.bin", np.arange(4096) % 60 + 1)
    s = tiny_settings(DATA_PATH=tmp_path, CALIBRATION_TOKENS=256)
    stream = TokenStream(s, "train")
    exact, other = (
        train_gpt.calibrate(random_model(s).to(on_device(where)), stream, s)
        for where in ("cpu", device)
    )
    assert exact.keys() == other.keys() and exact
    for name, a in exact.items():
        b = other[name]
        np.testing.assert_allclose(b.output_fisher, a.output_fisher, rtol=1e-2, err_msg=name)
        close = dict(rtol=1e-2, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(b.input_hessian, a.input_hessian, **close)


@pytest.mark.gpu
def test_a_whole_run_compiles_trains_and_verifies(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recompile_limit" not in done.stderr  # beyond it the network is no longer compiled
    assert losses(done)[-1] < losses(done)[0] - 0.5
    claim = re.search(r"after export, sliding window +([\d.]+) bpb", done.stdout)[1]
    places = "--data data/demo --tokenizer data/demo/bpe_1024.model".split()
    words = ["artifact.pcll", "--code", ROOT / "train_gpt.py", *places, "--claim", claim]
    command = [sys.executable, ROOT / "verify.py", *words]
    verified = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.gpu
def test_compiled_and_plain_runs_agree(tmp_path):
    plain, compiled = (
        losses(run(tmp_path, COMPILE=mode, RUN_ID=f"compile{mode}", TTT_PROTOCOL="off"))
        for mode in ("0", "1")
    )
    assert len(plain) == 30 and max(abs(a - b) for a, b in zip(plain, compiled, strict=True)) < 0.05


@pytest.mark.gpu
def test_a_resumed_run_goes_on(tmp_path):
    whole = run(tmp_path, CHECKPOINT_EVERY="0.001", TTT_PROTOCOL="off")
    before_last = sorted((tmp_path / "checkpoints/test").glob("*.pt"))[0]
    resumed = run(tmp_path, RESUME=str(before_last), TTT_PROTOCOL="off")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(resumed)[-1] == pytest.approx(losses(whole)[-1], abs=0.02)


@pytest.mark.gpu
def test_full_memory_is_one_sentence(tmp_path):
    tokens = str(16384 * 4096)
    lengths = dict(TRAIN_SEQ_LEN="16384", TRAIN_BATCH_TOKENS=tokens, TTT_CHUNK_TOKENS="16384")
    done = run(tmp_path, MICRO_BATCH_SEQS="4096", COMPILE="0", **lengths)
    assert done.returncode == 2 and done.stderr.endswith("EVAL_BATCH_SEQS or TTT_BATCH_SEQS.\n")


@pytest.mark.gpu
def test_the_host_runs_a_step_ahead_of_the_gpu(train_on):
    """A step returns before its own work is done, and the next one only after that."""
    plain = train_gpt.train_step
    done = []  # an event at the end of each step's work

    def step(state, *rest):
        assert all(event.query() for event in done[:-1])
        if state.step == 7:
            torch.cuda._sleep(int(2e9))  # about a second of work in the queue
        plain(state, *rest)
        done.append(torch.cuda.Event())
        done[-1].record()
        if state.step == 8:
            assert not done[-1].query()

    train_on("cuda", step)
    assert len(done) == 10
