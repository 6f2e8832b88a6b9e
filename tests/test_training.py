"""Training: each part of a step by its formula, checkpoints, the cap, and every way to end."""

import errno
import hashlib
import io
import itertools
import os
import pickle
import re
import resource
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import tiny_settings, write_shard

import train_gpt
from train_gpt import (
    GPT,
    Clock,
    Distributed,
    Log,
    Settings,
    StopRequest,
    TokenStream,
    TrainState,
    UserError,
    fake_quantize,
    find_checkpoint,
    load_settings,
    lr_scale,
    start_log,
    time_limit,
    train,
    train_batches,
    train_step,
    user_message,
    warm_up,
    write_atomically,
)

CPU = torch.device("cpu")
IN_BLOCKS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
MATRICES = (*IN_BLOCKS, "bigram.proj")
CHANGES = dict(
    DATA_PATH=".",
    ITERATIONS=8,
    WARMDOWN_ITERS=6,
    LATE_QAT_THRESHOLD=0.5,
    MAX_WALLCLOCK_SECONDS=0,
)


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """What a new process has: a silent log, one rank, and the system's answers to signals."""
    monkeypatch.setattr(train_gpt, "log", Log())
    monkeypatch.setattr(train_gpt, "ranks", Distributed())
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a shard to train on."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "fineweb_train_0.bin", np.random.default_rng(0).integers(1, 64, 4000))
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """The time that is read, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def logged(home):
    """Opens logs/x.txt; what it returns reads its lines."""
    train_gpt.log.open("x", resumed=False)
    return lambda: (home / "logs/x.txt").read_text().splitlines()


@dataclass
class Training:
    """A training of few steps, and what was seen of them."""

    s: Settings
    state: TrainState
    stream: TokenStream
    losses: list[float] = field(default_factory=list)
    momenta: list[list[float]] = field(default_factory=list)  # of each group of matrices
    rates: list[list[float]] = field(default_factory=list)  # of each group
    quantized: list[set[str]] = field(default_factory=list)  # names of the parameters

    def watch(self, quantized: list) -> None:
        """Notes what a step is given."""
        groups = [group for o in self.state.optimizers for group in o.param_groups]
        self.momenta.append([group["momentum"] for group in groups if "momentum" in group])
        self.rates.append([group["lr"] for group in groups])
        chosen = {id(p) for p in quantized}
        named = self.state.model.named_parameters()
        self.quantized.append({name for name, p in named if id(p) in chosen})

    def run(self, stop_after: int | None = None, score=None, durations=None, clock=None) -> None:
        """train(), with a Ctrl-C in the step that makes `stop_after`. With durations a step only
        moves the clock."""
        with pytest.MonkeyPatch.context() as patch:

            def step(state, batches, quantized, s):
                self.watch(quantized)
                if durations is None:
                    train_step(state, batches, quantized, s)
                else:
                    state.step += 1
                    state.grads = torch.ones(1)
                    clock[0] += next(durations)
                self.losses.append(state.grads[-1].item())
                if state.step == stop_after:
                    signal.raise_signal(signal.SIGINT)

            patch.setattr(train_gpt, "train_step", step)
            train(self.state, self.stream, SimpleNamespace(s=self.s, score=score))

    def go(self, steps: int) -> list[float]:
        """So many steps at the full rates; their losses."""
        losses = []
        train_gpt.set_lr_scale(self.state.optimizers, 1.0)
        for _ in range(steps):
            batches = train_batches(self.stream, self.state.step, self.s)
            train_step(self.state, batches, [], self.s)
            losses.append(self.state.grads[-1].item())
        return losses

    def save(self, folder: Path) -> Path:
        self.state.save(folder, self.s)
        return self.state.saved


def make(**changes) -> Training:
    s = tiny_settings(**CHANGES | changes)
    torch.manual_seed(s.seed)
    stream = TokenStream(s, "train")
    return Training(s, TrainState(GPT(s), s, "", stream.statement()), stream)


def assert_same(a: TrainState, b: TrainState) -> None:
    """To the byte: weights, EMA and what the optimizers hold."""
    flat_a, flat_b = (torch.utils._pytree.tree_leaves(x.state()) for x in (a, b))
    for x, y in zip(flat_a, flat_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---- What a step does


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_the_gradient_is_that_of_the_mean_loss_of_the_whole_step(home, micro):
    t = make(MICRO_BATCH_SEQS=micro, GRAD_CLIP_NORM=0)
    tokens = torch.from_numpy(np.fromfile(home / "fineweb_train_0.bin", "<u2", offset=1024)[:65])
    inputs, targets = tokens[:-1].long().view(4, 16), tokens[1:].long().view(4, 16)
    loss = F.cross_entropy(t.state.model(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(loss, list(t.state.model.parameters()))
    assert t.go(1) == [pytest.approx(loss.item(), abs=1e-6)]
    for p, wanted in zip(t.state.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("limit", [None, 0.01, 1e9, 0])
def test_the_gradient_is_clipped_to_a_global_norm(home, limit):
    """0.3 if nothing is said; direction and proportions stay."""
    plain = make(GRAD_CLIP_NORM=0)
    clipped = make(**{} if limit is None else {"GRAD_CLIP_NORM": limit})
    losses = []
    for t in (plain, clipped):
        with torch.no_grad():
            t.state.model.tok_emb.mul_(30)  # so that the norm is above 0.3
        losses += t.go(1)
    gradients = [[p.grad.flatten() for p in t.state.model.parameters()] for t in (plain, clipped)]
    whole, part = map(torch.cat, gradients)
    norm = whole.norm().item()
    assert norm > 0.5
    expected = {None: 0.3, 0.01: 0.01, 1e9: norm, 0: norm}[limit]
    assert part.norm().item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(part / part.norm(), whole / norm, atol=1e-6, rtol=1e-4)
    assert losses[0] == losses[1]


def test_momentum_and_rates_of_each_step(home):
    """Momentum 0.92 to 0.99 over 4 steps, rates down over the last 6 of 8."""
    t = make(MUON_MOMENTUM_WARMUP_STEPS=4)
    t.run()
    warm = [0.92, 0.9375, 0.955, 0.9725, 0.99, 0.99, 0.99, 0.99]
    shapes = len(t.state.optimizers[0].param_groups)
    assert shapes > 1
    np.testing.assert_allclose(t.momenta, [[momentum] * shapes for momentum in warm], atol=1e-9)
    scales = [1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    expected = [[0.03 * scale] * shapes + [0.04 * scale, 0.02 * scale] for scale in scales]
    np.testing.assert_allclose(t.rates, expected, atol=1e-9)


@pytest.mark.parametrize("decay", [None, 0.5, 0])
def test_the_average_is_an_exponential_one_from_the_first_step_on(home, decay):
    """0.97 if nothing is said, as the preset here is the demo; 0 means the last weights."""
    t = make(**{} if decay is None else {"EMA_DECAY": decay})
    d = 0.97 if decay is None else decay
    expected = {}
    for step in range(5):
        t.go(1)
        for name, w in copies(t.state.model).items():
            expected[name] = w if step == 0 else d * expected[name] + (1 - d) * w
    moved = 0.0
    for name, p in t.state.ema.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], atol=1e-6, rtol=1e-5)
        moved = max(moved, (p - t.state.model.get_parameter(name)).abs().max().item())
    assert (moved > 0.01) == (d > 0)


def test_bytes_that_a_rank_sends_in_a_step(home, monkeypatch, as_rank):
    """A float32 gradient of each parameter, the loss, and the orthogonalized matrices by shape."""
    sent = []
    monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda x: sent.append(x.numel() * x.itemsize))
    as_rank(1, 2)
    t = make()
    t.go(1)
    parameters = dict(t.state.model.named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if name.endswith(MATRICES))
    gradient, *shapes = sent
    assert gradient == 4 * (sum(p.numel() for p in parameters.values()) + 1)
    assert sum(shapes) == 4 * matrices and len(shapes) < 6


# ---- Late fake quantization


def test_int6_levels_as_numbers():
    """A row's greatest is 31; the gradient is that of the rounded weights, on the exact ones."""
    exact = torch.tensor([[31.0, 10.4, -3.6, 0.2], [-0.62, 0.3, 0.31, 0.0]])
    w = exact.clone().requires_grad_()
    with fake_quantize([w]):
        rounded = torch.tensor([[31.0, 10, -4, 0], [-31 * 0.02, 15 * 0.02, 16 * 0.02, 0]])
        torch.testing.assert_close(w.detach(), rounded, atol=1e-6, rtol=0)
        w.square().sum().backward()
    torch.testing.assert_close(w.grad, 2 * rounded)
    assert torch.equal(w.detach(), exact)


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
def test_what_the_system_quantises_and_when(home, monkeypatch, clock, preset):
    """The blocks' matrices in the last 300 of 20,000 steps; no embedding, no hash."""
    s = load_settings({"PRESET": preset, "DATA_PATH": ".", "MAX_WALLCLOCK_SECONDS": "0"})
    with torch.device("meta"):
        state = TrainState(GPT(s), s)
    monkeypatch.setattr(train_gpt, "save_checkpoint", lambda *_: None)
    t = Training(s, state, TokenStream(s, "train"))
    state.step, state.seconds = 19_690, 1969.0
    t.run(durations=itertools.repeat(0.1), clock=clock)
    all_of_them = {f"blocks.{i}.{kind}" for i in range(11) for kind in IN_BLOCKS}
    assert t.quantized == 11 * [set()] + 299 * [all_of_them]


def test_a_late_step_computes_with_rounded_weights(home):
    """Its loss is that of the rounded model, and the exact weights are what it updates."""
    t = make()
    t.go(6)
    model = t.state.model
    exact = copies(model)
    matrices = [p for name, p in model.named_parameters() if name.endswith(IN_BLOCKS)]
    with fake_quantize(matrices):
        ((inputs, targets),) = train_batches(t.stream, 6, t.s)
        expected = model(inputs, targets).mean().item()
        rounded = copies(model)
    train_step(t.state, train_batches(t.stream, 6, t.s), matrices, t.s)
    assert t.state.grads[-1].item() == pytest.approx(expected, abs=1e-6)
    name = "blocks.1.mlp.up"
    assert not torch.equal(rounded[name], exact[name])
    assert (model.get_parameter(name) - exact[name]).abs().max() < 0.05


# ---- The clock and the cap


def test_the_clock_counts_what_the_device_still_has_to_do(monkeypatch, clock):
    """Steps return before the GPU has made them: the 3 seconds that are in its queue when the clock
    is paused are training, the 40 within the pause are none."""
    queued = [0.0]

    def synchronize():
        clock[0] += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(train_gpt, "ranks", Distributed(0, 1, torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    training = Clock(100.0)
    clock[0] += 1.0
    queued[0] = 3.0
    with training.paused():
        assert queued == [0.0]
        clock[0] += 40.0
    assert training.seconds() == 104
    with training.paused():  # nothing waits
        clock[0] += 7.0
    clock[0] += 2.0
    assert training.seconds() == 106


@pytest.mark.parametrize("durations", [[0.5], [0.3, 0.7], [0.2] * 20 + [0.4] * 200])
def test_the_cap_holds_to_a_step_and_the_schedule_ends_there(home, clock, logged, durations):
    """50 of 53 seconds, as 3 are kept for calibration."""
    t = make(ITERATIONS=10000, WARMDOWN_ITERS=40, MAX_WALLCLOCK_SECONDS=53)
    t.state.reserved = 3.0
    t.run(durations=itertools.cycle(durations), clock=clock)
    assert 50 <= t.state.seconds <= 50 + max(durations)
    rates = [rates[0] / 0.03 for rates in t.rates]
    assert rates[0] == 1 and rates[-1] <= 1.5 / 40
    assert all(a >= b - 0.06 for a, b in itertools.pairwise(rates))
    assert any(line.startswith("stopping_early: wallclock_cap train_time:50") for line in logged())


@pytest.mark.parametrize(
    ("changes", "step", "seconds", "expected"),
    [
        (dict(ITERATIONS=10, WARMDOWN_ITERS=4), 6, 6.0, 1.0),
        (dict(ITERATIONS=10, WARMDOWN_ITERS=4), 7, 7.0, 0.75),
        (dict(ITERATIONS=10, WARMDOWN_ITERS=0), 9, 9.0, 1.0),
        (dict(ITERATIONS=10, WARMDOWN_ITERS=4, WARMDOWN_FLOOR=0.2), 9, 9.0, 0.4),
        (dict(ITERATIONS=10, WARMDOWN_ITERS=4, WARMDOWN_FRACTION=0.5), 7, 7.0, 0.6),
        (dict(ITERATIONS=99, WARMDOWN_FRACTION=0.5, MAX_WALLCLOCK_SECONDS=12), 7, 8.0, 0.4),
        (dict(ITERATIONS=99, WARMDOWN_ITERS=4, MAX_WALLCLOCK_SECONDS=12), 8, 8.0, 0.5),
        (dict(ITERATIONS=99, WARMDOWN_ITERS=4, MAX_WALLCLOCK_SECONDS=12), 4, 9.0, 1.0),  # too early
    ],
)
def test_the_scale_of_the_rates(home, changes, step, seconds, expected):
    """Under the cap of 12 s, 2 of them reserved, by the mean step time."""
    t = make(**changes)
    t.state.step, t.state.seconds, t.state.reserved = step, seconds, 2.0
    assert lr_scale(t.state, t.s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("every", "cap", "saves"),
    [("60", "600", 5), ("60", "0", 5), ("0", "601", 1), ("100", "300", 3)],
)
def test_when_checkpoints_are_written(home, clock, logged, every, cap, saves):
    """Every minute, so that a kill costs no more, and at the end."""
    t = make(ITERATIONS=31, MAX_WALLCLOCK_SECONDS=cap, CHECKPOINT_EVERY=every)
    t.run(durations=itertools.repeat(9.9), clock=clock)
    assert "\n".join(logged()).count("checkpoint: ") == saves
    assert load_settings({}).checkpoint_every == 60


def test_neither_validation_nor_a_checkpoint_is_training_time(home, monkeypatch, clock, logged):
    t = make(ITERATIONS=7, VAL_LOSS_EVERY=3, CHECKPOINT_EVERY=1, MAX_WALLCLOCK_SECONDS=1000)
    asked = []

    def score(model, name, stride):
        asked.append((name, stride, t.state.step))
        clock[0] += 100
        return "val_bpb:2.5"

    def save(*_):
        clock[0] += 50

    monkeypatch.setattr(train_gpt, "save_checkpoint", save)
    t.run(score=score, durations=itertools.repeat(2.0), clock=clock)
    assert asked == [("validation", 16, 3), ("validation", 16, 6)]
    assert t.state.seconds == 14 and clock[0] == 1000 + 14 + 2 * 100 + 8 * 50
    lines = logged()
    assert "step:3/7 val_bpb:2.5 train_time:6000ms" in lines
    assert "step:6/7 val_bpb:2.5 train_time:12000ms" in lines


def test_which_steps_have_a_line(home, clock, logged):
    t = make(ITERATIONS=33, TRAIN_LOG_EVERY=10)
    t.run(durations=itertools.repeat(0.25), clock=clock)
    lines = logged()
    steps = re.findall(r"^step:(\d+)/33 train_loss:", "\n".join(lines), re.M)
    assert [*map(int, steps)] == [1, 2, 3, 4, 5, 10, 20, 30, 33]
    assert "step:20/33 train_loss:1.0000 train_time:5000ms step_avg:250.00ms" in lines
    assert "train_tokens:2112 of 4000 in the shards" in lines


# ---- The warm-up, and what it reserves


def warm(t: Training) -> None:
    warm_up(t.state, t.stream, SimpleNamespace(s=t.s))


def test_the_warm_up_leaves_no_trace(home):
    plain, warmed = make(), make(WARMUP_STEPS=3)
    warm(warmed)
    assert (warmed.state.step, warmed.state.seconds) == (0, 0)
    assert not any(optimizer.state for optimizer in warmed.state.optimizers)
    assert_same(warmed.state, plain.state)
    assert warmed.go(3) == plain.go(3)
    assert_same(warmed.state, plain.state)


def test_the_warm_up_makes_its_steps(home, monkeypatch):
    t = make(WARMUP_STEPS=3, LOOP_FIRST=0, LOOP_LAST=1, LOOP_PASSES=2)
    seen = []

    def step(state, *rest):
        seen.append((state.step, len(state.model.order)))
        train_step(state, *rest)

    monkeypatch.setattr(train_gpt, "train_step", step)
    warm(t)
    assert seen == [(0, 3), (1, 5), (2, 3)]  # with the recurrence, and without it
    assert load_settings({}).warmup_steps == 20


@pytest.fixture
def calibrations(monkeypatch, clock):
    """In place of calibrations, the tokens that each was asked for: the first takes 100 s, as all
    is new to it, every later one 3."""
    asked = []

    def calibrate(model, stream, s):
        clock[0] += 3.0 if asked else 100.0
        asked.append(s.calibration_tokens)

    monkeypatch.setattr(train_gpt, "calibrate", calibrate)
    return asked


@pytest.mark.parametrize(
    ("changes", "reserved", "limit"),
    [
        (dict(MAX_WALLCLOCK_SECONDS=53), 3.0, 50.0),
        (dict(MAX_WALLCLOCK_SECONDS=53, CODEC="huffman"), 0.0, 53.0),
        (dict(MAX_WALLCLOCK_SECONDS=0), 0.0, float("inf")),
    ],
)
def test_the_measured_calibration_is_reserved(home, calibrations, logged, changes, reserved, limit):
    t = make(CALIBRATION_TOKENS=640, **changes)
    warm(t)
    assert calibrations == ([16, 640] if reserved else [])
    assert t.state.reserved == reserved and time_limit(t.state, t.s) == limit
    assert logged()[-1].endswith(f"; {reserved} s of the cap are kept for calibration")


def test_the_reserve_is_kept_over_a_resume(home, calibrations):
    first = make(MAX_WALLCLOCK_SECONDS=53)
    warm(first)
    first.go(1)
    calibrations.clear()  # the next one would be slow
    second = make(MAX_WALLCLOCK_SECONDS=53)
    second.state.load(first.save(home), second.s)
    warm(second)
    assert calibrations == [] and time_limit(second.state, second.s) == 50


def test_all_ranks_reserve_what_the_first_one_measured(home, monkeypatch, calibrations, as_rank):
    as_rank(1, 2)
    monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(Distributed, "broadcast_objects", lambda self, *values: [7.5])
    t = make(MAX_WALLCLOCK_SECONDS=53)
    warm(t)
    assert t.state.reserved == 7.5


# ---- Checkpoints


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (4, dict()),  # in the middle of the warm-down
        (4, dict(MATRIX_OPTIMIZER="adamw", LOADER="random")),
        (7, dict(MATRIX_OPTIMIZER="muon_rows")),  # the weights are fake-quantized by now
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one_exactly(home, step, changes):
    whole, first, second = (make(**changes) for _ in range(3))
    whole.run()
    path = Path(f"checkpoints/{step:08d}.pt")
    with pytest.raises(UserError, match=f"^Stopped at step {step}.$"):
        first.run(stop_after=step)
    assert first.state.saved == path
    second.state.load(path, second.s)
    second.run()
    assert first.losses + second.losses == whole.losses and len(whole.losses) == 8
    assert first.rates + second.rates == whole.rates
    second.state.seconds = whole.state.seconds  # of the machine's clock
    assert_same(second.state, whole.state)


def test_the_schedule_under_the_cap_is_resumed_exactly(home, clock):
    """Each step takes 0.25 s; in the middle of the warm-down the process is gone for 1,000 s."""
    limits = dict(ITERATIONS=1000, WARMDOWN_ITERS=20, MAX_WALLCLOCK_SECONDS=8)
    whole, first, second = (make(**limits) for _ in range(3))
    for t in (whole, first):
        t.state.reserved = 2.0
    whole.run(durations=itertools.repeat(0.25), clock=clock)
    with pytest.raises(UserError, match="Stopped at step 12"):
        first.run(stop_after=12, durations=itertools.repeat(0.25), clock=clock)
    clock[0] += 1000
    second.state.load(first.state.saved, second.s)
    second.run(durations=itertools.repeat(0.25), clock=clock)
    assert len(whole.rates) == 24 and 0 < second.rates[0][0] < 0.03
    assert first.rates + second.rates == whole.rates


def saved_in(folder: str | Path) -> list[int]:
    """The steps of a folder's checkpoints."""
    return sorted(int(path.stem) for path in Path(folder).glob("*.pt"))


def test_the_newest_two_are_kept_and_found(home):
    t = make()
    for run in ("a", "b"):
        for _ in range(3):
            t.go(1)
            os.utime(t.save(home / "checkpoints" / run), (t.state.step, t.state.step))
    assert saved_in("checkpoints/a") + saved_in("checkpoints/b") == [2, 3, 5, 6]
    latest, of_a = tiny_settings(RESUME="latest"), tiny_settings(RESUME="latest", RUN_ID="a")
    assert str(find_checkpoint(latest)) == "checkpoints/b/00000006.pt"
    assert str(find_checkpoint(of_a)) == "checkpoints/a/00000003.pt"
    for path, run_id in (("latest", "c"), ("checkpoints/a", ""), ("nowhere.pt", "")):
        with pytest.raises(UserError, match=f"RESUME={path}: there is no such checkpoint"):
            find_checkpoint(tiny_settings(RESUME=path, RUN_ID=run_id))


@pytest.mark.parametrize(
    ("name", "value"),
    [("NUM_LAYERS", "2"), ("SMEAR_GATE", "0"), ("MATRIX_LR", "0.5"), ("SEED", "1")],
)
def test_another_configuration_is_refused_by_name(home, name, value):
    path = make().save(home)
    other = make(**{name: value})
    own = {"0": "False"}.get(value, value)
    with pytest.raises(UserError, match=rf"^{name}={own}, but RESUME=\S+ has \S+\.$"):
        other.state.load(path, other.s)


@pytest.mark.parametrize(
    "changes",
    [
        dict(RUN_ID="other", CODEC="huffman", TTT_EPOCHS=9, MICRO_BATCH_SEQS=1),
        dict(ITERATIONS=20),
        dict(ITERATIONS=3),
        dict(MAX_WALLCLOCK_SECONDS=60),
        dict(WARMDOWN_ITERS=2, WARMDOWN_FRACTION=0.5, WARMUP_STEPS=3),
    ],
)
def test_a_run_is_resumed_with_another_length_or_export(home, changes):
    t = make()
    t.go(4)
    other = make(**changes)
    other.state.load(t.save(home), other.s)
    assert_same(other.state, t.state)
    assert (train_gpt.progress(other.state, other.s) >= 1) == (changes.get("ITERATIONS") == 3)


def seal(path: Path, content) -> None:
    """A file that ends with its SHA-256, as a checkpoint does."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    path.write_bytes(data + hashlib.sha256(data).digest())


REFUSED = r"^RESUME=\S+bad.pt is not a whole checkpoint of this script\.$"


def test_damaged_checkpoints_are_refused(home):
    t = make()
    path = t.save(home)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    damaged = [b"", b"PK", b"text", whole[:1000], whole[:-1], whole[:-32], whole[100:], flipped]
    for data in (*damaged, whole + b"0", pickle.dumps({"settings": {}})):
        (home / "bad.pt").write_bytes(data)
        with pytest.raises(UserError, match=REFUSED):
            t.state.load(home / "bad.pt", t.s)
    for content in ([1, 2], {"model": {}}, "text", None, 5):  # whole, but another program's
        seal(home / "bad.pt", content)
        with pytest.raises(UserError, match=REFUSED):
            t.state.load(home / "bad.pt", t.s)
    t.state.load(path, t.s)


def test_a_checkpoint_of_an_older_layout_is_refused(home):
    """Keys that are missing or named otherwise, and settings that went or are new."""
    t = make()
    settings = vars(t.s)
    own = dict(settings=settings, **t.state.state())
    path = home / "bad.pt"
    seal(path, own)
    t.state.load(path, t.s)  # so that each refusal is by what is changed
    older = own | dict(average=own["ema"], durations=[0.1], optimizers=[own["optimizer0"]])
    del older["ema"], older["reserved"], older["optimizer0"], older["optimizer1"]
    for content in (
        *({name: x for name, x in own.items() if name != missing} for missing in own),
        own | {"optimizer0": own["optimizer1"]},
        own | {"model": {}},
        older,
    ):
        seal(path, content)
        with pytest.raises(UserError, match=REFUSED):
            t.state.load(path, t.s)

    seal(path, own | {"settings": settings | {"eval_seconds": 600, "codec": "older"}})
    t.state.load(path, t.s)
    del settings["skips"]
    seal(path, own | {"settings": settings})
    with pytest.raises(UserError, match=r"^SKIPS=plain, but RESUME=\S+bad.pt has None\.$"):
        t.state.load(path, t.s)


def test_a_checkpoint_cannot_run_code(home):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    t = make()
    seal(home / "bad.pt", {"settings": Evil()})  # it looks like ours
    with pytest.raises(UserError, match=REFUSED):
        t.state.load(home / "bad.pt", t.s)
    assert not (home / "evil").exists()


@pytest.mark.parametrize(
    ("steps", "times", "kept"),
    [
        ((7, 8), (9, 8), [7, 8]),
        ((1, 2, 3), (9, 8, 7), [2, 3]),  # the clock goes back
        ((1, 2, 5, 6), (9e4, 9e4 + 1, 3, 4), [5, 6]),  # or was two hours fast
        ((99_999_999, 100_000_000), (9, 8), [99_999_999, 100_000_000]),
        ((4, 8, 3), (1, 2, 3), [3]),  # a training that was resumed from step 2
        ((4, 8, 5), (1, 2, 3), [4, 5]),
    ],
)
def test_within_a_run_the_step_decides_not_the_clock(home, steps, times, kept):
    t = make()
    for t.state.step, time in zip(steps, times, strict=True):
        os.utime(t.save(home / "checkpoints/a"), (time, time))
    assert saved_in("checkpoints/a") == kept
    assert int(find_checkpoint(tiny_settings(RESUME="latest")).stem) == kept[-1]


@pytest.mark.parametrize(
    ("name", "tokens", "changes", "step", "refusal"),
    [
        ("fineweb_train_0.bin", range(1, 64), {}, 4, "DATA_PATH=. lacks the fineweb_train_0.bin "),
        ("fineweb_train_0.bin", [2] * 4000, {}, 4, "DATA_PATH=. lacks the fineweb_train_0.bin "),
        ("fineweb_train_1.bin", [2] * 500, {}, 62, ""),  # 3,968 of 4,000 tokens are read
        ("fineweb_train_1.bin", [2] * 500, {}, 63, "DATA_PATH=. has fineweb_train_1.bin, without"),
        ("fineweb_train_1.bin", [2], dict(LOADER="random"), 4, "DATA_PATH=. has fineweb_train_1."),
        ("fineweb_val_0.bin", [2] * 500, {}, 63, ""),
        ("tokenizer", None, {}, 4, "TOKENIZER_PATH=data/demo/bpe_1024.model is not what RESUME="),
    ],
)
def test_a_training_goes_on_with_its_own_data(home, name, tokens, changes, step, refusal):
    t = make(**changes)
    t.state.step = step
    path = t.save(home / "a")
    if tokens:
        write_shard(home / name, tokens)
    again = make(**changes)
    again.state.tokenizer = "" if tokens else "another"
    if not refusal:
        added = [name] if "train" in name else []
        assert again.state.load(path, again.s) == added and again.state.step == step
        return
    with pytest.raises(UserError) as caught:
        again.state.load(path, again.s)
    assert str(caught.value).startswith(refusal) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((20_000, 1), "a/x.pt needs 20000 bytes: File too large."),
        ((1, 20_000), "b/y.pcll needs 20000 bytes: File too large."),
        ((9_000, 9_000), ""),
    ],
)
def test_room_is_looked_for_before_it_is_needed(home, sizes, sentence):
    """A file may have 10,000 bytes here."""
    (home / "a").mkdir()
    files = [*zip((Path("a/x.pt"), Path("b/y.pcll")), sizes, strict=True)]
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    said = ""
    try:
        train_gpt.require_room(files)
    except UserError as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert said == sentence
    assert not list((home / "a").iterdir()) and not (home / "b").exists()


def test_only_its_own_checkpoints_are_taken_away(home):
    folder = home / "checkpoints/a"
    folder.mkdir(parents=True)
    foreign = ("best.pt", "00000001.pt.bak", "1.pt", "000000001.pt", "0000000a.pt", "notes.txt")
    for name in foreign:
        (folder / name).write_text("mine")
        os.utime(folder / name, (1, 1))
    t = make()
    for step in range(1, 5):
        t.go(1)
        os.utime(t.save(folder), (step, step))
    names = {path.name for path in folder.iterdir()}
    assert names == {*foreign, "00000003.pt", "00000004.pt"}

    os.utime(folder / "best.pt", (2e9, 2e9))  # newer than all
    assert find_checkpoint(tiny_settings(RESUME="latest")).name == "00000004.pt"


def test_weights_that_overflowed_are_not_saved(home):
    t = make()
    t.go(2)
    path = t.save(home / "a")
    t.go(1)  # its loss and gradients are finite
    with torch.no_grad():
        next(t.state.ema.parameters())[0] = float("inf")
    with pytest.raises(UserError, match="^After step 3 the weights are not finite. Lower the"):
        t.save(home / "a")
    assert list((home / "a").iterdir()) == [path]


def test_a_disk_that_is_full_does_not_end_the_training(home, monkeypatch, logged):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x.pt")

    t = make(ITERATIONS=3)
    monkeypatch.setattr(train_gpt, "write_atomically", full)
    t.run()
    assert t.state.step == 3 and t.state.saved is None
    assert "warning: no checkpoint at step 3: x.pt: No space left on device." in logged()


# ---- Ctrl-C and SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(clock, number):
    stop = StopRequest()
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested and stop.first == 1000
    clock[0] = 1000.9
    signal.raise_signal(signal.SIGTERM)  # torchrun passing it on
    assert stop.requested and stop.first == 1000
    clock[0] = 1001.1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_all_ranks_stop_if_the_first_one_was_asked_to(home, monkeypatch, as_rank):
    """Rank 1 has had no signal; it saves nothing."""
    as_rank(1, 2)
    monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(Distributed, "broadcast_objects", lambda self, *values: [1.0, True])
    with pytest.raises(UserError, match=r"^Stopped at step 1\.$"):
        make().run()
    assert not (home / "checkpoints").exists() and not (home / "logs").exists()


# ---- Sentences


LIBRARY = "libcudnn.so.9: cannot open shared object file: No such file or directory"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower MICRO_BATCH_SEQS"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9 bytes"), "lower MICRO"),
        (FileNotFoundError(2, "No such file", "a.bin"), "a.bin: No such file."),
        (OSError(28, "No space left"), "A file could not be written: No space left."),
        (OSError(LIBRARY), LIBRARY),  # dlopen's have no number
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (dist.DistBackendError(NCCL), NCCL),
        (dist.DistError("a peer is gone"), "The ranks lost touch: a peer is gone"),
        (RuntimeError("gloo: Connection closed by peer"), "gloo: Connection closed by peer"),
        (KeyboardInterrupt(), "Stopped."),
        (UserError("A sentence."), "A sentence."),
    ],
)
def test_every_end_is_one_sentence(monkeypatch, capsys, error, sentence):
    """With what an error notes after it."""

    def run(*_):
        error.add_note(" To continue: a note.")
        raise error

    monkeypatch.setattr(train_gpt, "run", run)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert train_gpt.main() == 2
    said = capsys.readouterr().err
    assert sentence in said and said.endswith(" To continue: a note.\n") and said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a shape is wrong"), RuntimeError()])
def test_a_fault_of_the_script_keeps_its_traceback(error):
    with pytest.raises(RuntimeError) as caught:
        user_message(error)
    assert caught.value is error


# ---- The log


class Broken:
    """A file on which nothing can be written."""

    name = "logs/x.txt"

    def __init__(self, error: Exception):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("I/O operation on closed file"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
    ],
)
@pytest.mark.parametrize("broken", ["log", "stdout", "both", "all"])
def test_a_run_outlives_its_log_and_its_console(monkeypatch, capsys, logged, error, broken):
    log = train_gpt.log
    log("first")
    if broken != "stdout":
        log.file = Broken(error)
    if broken != "log":
        monkeypatch.setattr(sys, "stdout", Broken(error))
    if broken == "all":
        monkeypatch.setattr(sys, "stderr", Broken(error))
    for _ in range(3):
        log("later")
    said = capsys.readouterr()
    assert logged() == ["first", *(3 * ["later"] if broken == "stdout" else [])]
    assert said.out.count("later") == (3 if broken == "log" else 0)
    assert said.err.count("the run continues without it") == dict(both=2, all=0).get(broken, 1)


def test_an_existing_run_id_is_refused(home, logged):
    train_gpt.log("mine")
    with pytest.raises(UserError) as caught:
        Log().open("x", resumed=False)
    sentence = (
        "RUN_ID=x: logs/x.txt exists. RESUME=latest continues that run, if it has a checkpoint; "
    )
    assert str(caught.value) == sentence + "another RUN_ID starts a new one."
    again = Log()
    again.open("x", resumed=True)
    again("data_path:\udcff é ▁")
    assert logged() == ["mine", "data_path:\\udcff é ▁"]


def test_only_an_opened_log_says_anything(home, capsys):
    """That is rank 0's."""
    train_gpt.log("line")
    train_gpt.log.progress("training", 0.5, 0.0)
    assert capsys.readouterr().out == "" and not (home / "logs").exists()


def test_progress_is_told_at_most_every_five_seconds(clock, logged, capsys):
    for clock[0] in (1000, 1001, 1004.9, 1005, 1009.9, 1010):
        train_gpt.log.progress("training", 0.25, 990.0)
    lines = [f"training: 25 %, {seconds} s left" for seconds in (30, 45, 60)]
    assert capsys.readouterr().out.splitlines() == lines
    assert logged() == []  # it stands on the console alone


# ---- The start


def start(checkpoint: Path | None = None, source: bytes = b"source", **changes) -> Log:
    """The log of a run that starts."""
    train_gpt.log = Log()  # the fixture puts the first one back
    s = tiny_settings(**changes)
    start_log(source, GPT(s), s, checkpoint)
    return train_gpt.log


def test_two_runs_that_start_in_the_same_second_have_two_logs(home, monkeypatch):
    monkeypatch.setattr(train_gpt.time, "strftime", lambda form: "20010909_014640")
    ids = []
    for process in (100, 101):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        ids.append(start().run_id)
    assert ids == ["20010909_014640_100", "20010909_014640_101"]
    assert {path.stem for path in (home / "logs").iterdir()} == {*ids}


@pytest.mark.parametrize(
    ("path", "run_id"),
    [
        ("checkpoints/a/00000001.pt", "a"),
        ("checkpoints/b/../a/00000001.pt", "a"),
        ("00000001.pt", "here"),
        ("../00000001.pt", "above"),
    ],
)
def test_a_resumed_run_has_the_name_of_its_folder(tmp_path, monkeypatch, path, run_id):
    (tmp_path / "above/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above/here")
    log = start(Path(path))
    assert log.run_id == run_id and Path(log.file.name) == Path("logs") / f"{run_id}.txt"
    start(Path(path))  # it is that run which goes on
    assert Path(log.file.name).read_text().count("source") == 1
    with pytest.raises(UserError, match="begins with another script: set a new RUN_ID"):
        start(Path(path), source=b"other")
    start(Path(path), source=b"other", RUN_ID="other")
    with pytest.raises(UserError, match=r"train_gpt.py is not UTF-8, as its log has to be\.$"):
        start(Path(path), source=b"# -*- coding: latin-1 -*-\n# \xe9", RUN_ID="latin")
    assert not Path("logs/latin.txt").exists()
    with pytest.raises(UserError, match="RUN_ID=other"):
        start(Path(path), source=b"other", RUN_ID="other")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "ARTIFACT_PATH=. is a folder or a device."),
        ("folder", "ARTIFACT_PATH=folder is a folder or a device."),
        ("/dev/null", "ARTIFACT_PATH=/dev/null is a folder or a device."),
        ("file/a.pcll", "file: File exists."),
        ("file/b/a.pcll", "file/b: Not a directory."),
        ("x" * 300, "File name too long."),
        ("a.pcll", "logs: File exists."),
    ],
)
def test_where_no_artifact_or_log_can_be_written(home, path, sentence):
    """It is found before the training, and before a log is begun."""
    (home / "folder").mkdir()
    if path == "a.pcll":
        (home / "logs").touch()
    (home / "file").touch()
    with pytest.raises((UserError, OSError)) as caught:
        start(RUN_ID="x", ARTIFACT_PATH=path)
    assert user_message(caught.value).endswith(sentence)
    assert not (home / "logs").is_dir()


def test_a_start_leaves_nothing_but_the_log(home):
    (home / "artifact.pcll").write_bytes(b"earlier")
    before = {*home.rglob("*")}
    start(RUN_ID="x")
    new = {str(path.relative_to(home)) for path in {*home.rglob("*")} - before}
    assert new == {"logs", "logs/x.txt"}
    assert (home / "artifact.pcll").read_bytes() == b"earlier"


def test_a_step_that_takes_minutes_without_a_gpu_is_said_before_it(home, capsys):
    start()
    assert "warning" not in capsys.readouterr().out
    s = tiny_settings(TRAIN_BATCH_TOKENS=2**30)
    params = sum(p.numel() for p in GPT(s).parameters())
    start(RUN_ID="x", TRAIN_BATCH_TOKENS=2**30)
    minutes = round(6 * params * 2**30 / 1e11 / 60)
    sentence = f"\nwarning: without a GPU a step takes about {minutes} minutes. PRESET=demo is made"
    assert minutes > 10 and sentence in capsys.readouterr().out


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "a.pcll", b"data")
    assert user_message(caught.value) == f"{tmp_path}/a.pcll: No space left on device."
    assert not list(tmp_path.iterdir())
