"""Training: each part of a step by its formula, checkpoints, the cap, and every way to end."""

import errno
import hashlib
import io
import itertools
import os
import pickle
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_settings, write_shard

import train_gpt
from train_gpt import (
    GPT,
    Log,
    Ranks,
    Run,
    StopRequest,
    TokenStream,
    Trainer,
    UserError,
    find_checkpoint,
    publish,
    rounded_to_int6,
    start_log,
    train,
    warn_of_slow_steps,
    write_atomically,
)

CPU = torch.device("cpu")
MATRICES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down", "bigram.proj")
CHANGES = dict(
    DATA_PATH=".",
    ITERATIONS=8,
    WARMDOWN_ITERS=6,
    LATE_QAT_MIN_ELEMENTS=64,
    LATE_QAT_THRESHOLD=0.5,
    MAX_WALLCLOCK_SECONDS=0,
)


@pytest.fixture(autouse=True)
def signals():
    """Puts back what answers Ctrl-C and SIGTERM."""
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


def make_trainer(world: int = 1, **changes) -> Trainer:
    """The trainer of the last of `world` ranks."""
    s = tiny_settings(**CHANGES | changes)
    torch.manual_seed(s.training.seed)
    return Trainer(GPT(s.model), s, Ranks(world - 1, world, CPU))


def go(trainer: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        trainer.set_schedule()
        trainer.update()
        losses.append(trainer.loss())
    return losses


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---- What a step does


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_the_gradient_is_that_of_the_mean_loss_of_the_whole_step(home, micro):
    trainer = make_trainer(MICRO_BATCH_SEQS=micro, GRAD_CLIP_NORM=0)
    tokens = torch.from_numpy(np.fromfile(home / "fineweb_train_0.bin", "<u2", offset=1024)[:65])
    inputs, targets = tokens[:-1].long().view(4, 16), tokens[1:].long().view(4, 16)
    loss = F.cross_entropy(trainer.model(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(loss, list(trainer.model.parameters()))
    go(trainer, 1)
    assert trainer.loss() == pytest.approx(loss.item(), abs=1e-6)
    for p, wanted in zip(trainer.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("limit", [None, 0.01, 1e9, 0])
def test_the_gradient_is_clipped_to_a_global_norm(home, limit):
    """0.3 if nothing is said; direction and proportions stay."""
    plain = make_trainer(GRAD_CLIP_NORM=0)
    clipped = make_trainer(**{} if limit is None else {"GRAD_CLIP_NORM": limit})
    for trainer in (plain, clipped):
        with torch.no_grad():
            trainer.model.tok_emb.mul_(30)  # so that the norm is above 0.3
        go(trainer, 1)
    whole, part = (
        torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        for trainer in (plain, clipped)
    )
    norm = whole.norm().item()
    assert norm > 0.5
    expected = {None: 0.3, 0.01: 0.01, 1e9: norm, 0: norm}[limit]
    assert part.norm().item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(part / part.norm(), whole / norm, atol=1e-6, rtol=1e-4)
    assert clipped.loss() == plain.loss()


def test_momentum_and_rates_of_each_step(home):
    """Momentum 0.92 to 0.99 over 4 steps, rates down over the last 6 of 8."""
    trainer = make_trainer(MUON_MOMENTUM_WARMUP_STEPS=4)
    momenta, rates = [], []
    for _ in range(8):
        trainer.set_schedule()
        muon, adamw = trainer.optimizers
        momenta.append(muon.param_groups[0]["momentum"])
        rates.append([group["lr"] for o in (muon, adamw) for group in o.param_groups])
        trainer.update()
    warm = [0.92, 0.9375, 0.955, 0.9725, 0.99, 0.99, 0.99, 0.99]
    assert momenta == pytest.approx(warm, abs=1e-9)
    scales = [1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    expected = [[0.03 * scale, 0.04 * scale, 0.02 * scale] for scale in scales]
    np.testing.assert_allclose(rates, expected, atol=1e-9)


@pytest.mark.parametrize("decay", [None, 0.5, 0])
def test_the_average_is_an_exponential_one_from_the_first_step_on(home, decay):
    """0.97 if nothing is said, as the preset here is the demo; 0 means the last weights."""
    trainer = make_trainer(**{} if decay is None else {"EMA_DECAY": decay})
    d = 0.97 if decay is None else decay
    expected = {}
    for step in range(5):
        go(trainer, 1)
        for name, w in copies(trainer.model).items():
            expected[name] = w if step == 0 else d * expected[name] + (1 - d) * w
    moved = 0.0
    for name, p in trainer.average.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], atol=1e-6, rtol=1e-5)
        moved = max(moved, (p - trainer.model.get_parameter(name)).abs().max().item())
    assert (moved > 0.01) == (d > 0)


def test_the_average_of_the_system():
    for preset in ("pcll", "pcloadloveletter_v6"):
        assert train_gpt.load_settings({"PRESET": preset}).training.ema_decay == 0.997


# ---- Checkpoints


@pytest.mark.parametrize("optimizer", ["normuon", "adamw"])
def test_a_resumed_run_equals_the_uninterrupted_one_exactly(home, optimizer):
    whole, first, second = (make_trainer(MATRIX_OPTIMIZER=optimizer) for _ in range(3))
    losses = go(whole, 8)
    assert go(first, 3) == losses[:3]
    second.load(first.save(home / "checkpoints/a"))
    assert go(second, 5) == losses[3:]
    assert same_weights(whole.model, second.model) and same_weights(whole.average, second.average)
    assert second.step == 8


def test_the_warm_up_leaves_no_trace(home):
    plain, warmed = make_trainer(), make_trainer(WARMUP_STEPS="3")
    warmed.warm_up(Log("x", warmed.ranks, resumed=False))
    assert same_weights(warmed.model, plain.model) and same_weights(warmed.average, plain.average)
    assert (warmed.step, warmed.seconds) == (0, 0)
    assert not any(optimizer.state for optimizer in warmed.optimizers)
    assert go(warmed, 3) == go(plain, 3)
    assert same_weights(warmed.model, plain.model) and same_weights(warmed.average, plain.average)


def test_the_warm_up_makes_its_steps(home, monkeypatch):
    trainer, steps = make_trainer(WARMUP_STEPS=3), []
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda: (steps.append(trainer.step), update()))
    trainer.warm_up(Log("x", trainer.ranks, resumed=False))
    assert steps == [0, 1, 2]
    assert train_gpt.load_settings({}).training.warmup_steps == 20


def test_the_newest_two_are_kept_and_found(home):
    trainer = make_trainer()
    for run in ("a", "b"):
        for _ in range(3):
            go(trainer, 1)
            os.utime(trainer.save(home / "checkpoints" / run), (trainer.step, trainer.step))
    assert [path.name for path in sorted((home / "checkpoints").glob("*/*"))] == [
        "00000002.pt",
        "00000003.pt",
        "00000005.pt",
        "00000006.pt",
    ]
    latest, of_a = (
        tiny_settings(RESUME="latest").run,
        tiny_settings(RESUME="latest", RUN_ID="a").run,
    )
    assert str(find_checkpoint(latest)) == "checkpoints/b/00000006.pt"
    assert str(find_checkpoint(of_a)) == "checkpoints/a/00000003.pt"
    for changes in (
        dict(RESUME="latest", RUN_ID="c"),
        dict(RESUME="checkpoints/a"),
        dict(RESUME="nowhere.pt"),
    ):
        sentence = f"RESUME={changes['RESUME']}: there is no such checkpoint"
        with pytest.raises(UserError, match=sentence):
            find_checkpoint(tiny_settings(**changes).run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUM_LAYERS", "2"),
        ("SMEAR_GATE", "False"),
        ("MATRIX_LR", "0.5"),
        ("SEED", "1"),
    ],
)
def test_another_configuration_is_refused_by_name(home, name, value):
    path = make_trainer().save(home)
    other = make_trainer(**{name: value})
    with pytest.raises(UserError, match=rf"^{name}={value}, but RESUME=\S+ has \S+\.$"):
        other.load(path)


def test_settings_that_alter_no_training_may_differ(home):
    path = make_trainer().save(home)
    make_trainer(
        RUN_ID="other", CODEC="huffman", TTT_EPOCHS="9", MICRO_BATCH_SEQS="1", RESUME=path
    ).load(path)


def test_damaged_checkpoints_are_refused(home):
    trainer = make_trainer()
    path = trainer.save(home)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        b"",
        b"PK",
        b"text",
        whole[:1000],
        whole[:-1],
        whole[:-32],
        whole[100:],
        whole + b"0",
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        pickle.dumps({"settings": {}}),
    ):
        (home / "bad.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"^RESUME=\S+bad.pt is not a whole checkpoint of this"):
            trainer.load(home / "bad.pt")
    trainer.load(path)


def seal(path, content):
    """A file that ends with its SHA-256, as a checkpoint does."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    path.write_bytes(data + hashlib.sha256(data).digest())


def test_a_checkpoint_of_another_program_is_refused(home):
    trainer = make_trainer()
    own = trainer.state()
    path = home / "bad.pt"
    for content in ([1, 2], {"model": {}}, "text", None, 5):
        torch.save(content, path)
        with pytest.raises(UserError, match="bad.pt is not a whole checkpoint of this script"):
            trainer.load(path)
        seal(path, content)
        with pytest.raises(UserError, match="bad.pt is not a whole checkpoint of this script"):
            trainer.load(path)
    for name in ("step", "model", "average", "optimizers"):
        seal(path, {key: value for key, value in own.items() if key != name})
        with pytest.raises(UserError, match="bad.pt is not a whole checkpoint of this script"):
            trainer.load(path)
    seal(path, own | {"settings": {}})
    with pytest.raises(UserError, match=r"^VOCAB_SIZE=\d+, but RESUME=\S+bad.pt has None\.$"):
        trainer.load(path)


def test_a_checkpoint_cannot_run_code(home):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    path = home / "evil.pt"
    torch.save({"settings": Evil()}, path)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        make_trainer().load(path)

    seal(path, {"settings": Evil()})  # it looks like ours
    with pytest.raises(UserError, match="not a whole checkpoint"):
        make_trainer().load(path)
    assert not (home / "evil").exists()


@pytest.mark.parametrize(
    "changes",
    [
        dict(ITERATIONS=20),
        dict(ITERATIONS=3),
        dict(MAX_WALLCLOCK_SECONDS=60),
        dict(WARMDOWN_ITERS=2, WARMDOWN_FRACTION=0.5, WARMUP_STEPS=3),
    ],
)
def test_a_run_is_resumed_with_another_length(home, changes):
    trainer = make_trainer()
    go(trainer, 4)
    longer = make_trainer(**changes)
    longer.load(trainer.save(home))
    assert longer.step == 4 and longer.ended() == (changes.get("ITERATIONS") == 3)
    assert same_weights(longer.model, trainer.model)


def test_only_its_own_checkpoints_are_taken_away(home):
    folder = home / "checkpoints/a"
    folder.mkdir(parents=True)
    foreign = ("best.pt", "00000001.pt.bak", "1.pt", "000000001.pt", "0000000a.pt", "notes.txt")
    for name in foreign:
        (folder / name).write_text("mine")
        os.utime(folder / name, (1, 1))
    trainer = make_trainer()
    for _ in range(4):
        go(trainer, 1)
        trainer.save(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {*foreign, "00000003.pt", "00000004.pt"}

    os.utime(folder / "best.pt", (2e9, 2e9))  # newer than all
    os.utime(folder / "00000004.pt", (1.9e9, 1.9e9))
    latest = find_checkpoint(tiny_settings(RESUME="latest").run)
    assert latest.name == "00000004.pt"


def test_a_clock_that_goes_back_does_not_cost_the_newest(home):
    trainer = make_trainer()
    go(trainer, 1)
    for step in (1, 2):
        trainer.step = step
        os.utime(trainer.save(home / "a"), (4e9, 4e9))  # from the future
    trainer.step = 3
    trainer.save(home / "a")
    assert "00000003.pt" in {path.name for path in (home / "a").iterdir()}
    assert len(list((home / "a").iterdir())) == 2


def test_an_update_that_overflows_is_not_saved(home):
    trainer = make_trainer()
    go(trainer, 2)
    path = trainer.save(home / "a")
    go(trainer, 1)  # its loss and gradients are finite
    with torch.no_grad():
        next(trainer.average.parameters())[0] = float("inf")
    with pytest.raises(UserError, match="After step 3 the weights are not finite. Lower the"):
        trainer.save(home / "a")
    assert list((home / "a").iterdir()) == [path]


# ---- Late quantisation-aware training


def test_late_quantisation_rounds_rows_to_63_levels_and_passes_gradients():
    w = torch.randn(4, 300, requires_grad=True)
    exact = w.detach().clone()
    with rounded_to_int6([w]):
        steps = 31 * w.detach() / exact.abs().amax(dim=1, keepdim=True)
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert (w - exact).abs().max() > 0
        (w * torch.arange(300)).sum().backward()
    assert torch.equal(w.detach(), exact)
    assert torch.equal(w.grad, torch.arange(300.0).expand(4, 300))


def test_int6_levels_as_numbers():
    """A row's greatest is 31; the gradient is that of the rounded weights."""
    w = torch.tensor([[31.0, 10.4, -3.6, 0.2], [-0.62, 0.3, 0.31, 0.0]], requires_grad=True)
    with rounded_to_int6([w]):
        rounded = torch.tensor([[31.0, 10, -4, 0], [-31 * 0.02, 15 * 0.02, 16 * 0.02, 0]])
        torch.testing.assert_close(w.detach(), rounded, atol=1e-6, rtol=0)
        w.square().sum().backward()
    torch.testing.assert_close(w.grad, 2 * rounded)


def quantised(trainer: Trainer) -> set[str]:
    """Names of the parameters that are rounded in the next step."""
    trainer.set_schedule()
    chosen = {id(p) for p in trainer.quantised}
    return {name for name, p in trainer.model.named_parameters() if id(p) in chosen}


IN_BLOCKS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
def test_what_the_system_quantises_and_when(home, preset):
    """Matrices of over 65,536 elements in the last 300 of 20,000 steps; no embedding, no hash."""
    environment = {"PRESET": preset, "DATA_PATH": ".", "MAX_WALLCLOCK_SECONDS": "0"}
    s = train_gpt.load_settings(environment)
    device = torch.device("meta")
    with device:
        model = GPT(s.model)
    trainer = Trainer(model, s, Ranks(0, 1, device))
    for step in (0, 17_000, 19_700):
        trainer.step = step
        assert quantised(trainer) == set(), step
    all_of_them = {f"blocks.{i}.{kind}" for i in range(11) for kind in IN_BLOCKS}
    for step in (19_701, 19_999):
        trainer.step = step
        assert quantised(trainer) == all_of_them, step


def test_only_matrices_with_more_elements_are_quantised(home):
    """q, out 32 x 32; k, v 16 x 32; up 48 x 32; down 32 x 48."""
    trainer = make_trainer(LATE_QAT_MIN_ELEMENTS=1024, NUM_LAYERS=2)
    trainer.step = 7
    assert quantised(trainer) == {
        f"blocks.{i}.mlp.{kind}" for i in (0, 1) for kind in ("up", "down")
    }
    trainer = make_trainer(LATE_QAT_MIN_ELEMENTS=1023, NUM_LAYERS=2)
    trainer.step = 7
    assert len(quantised(trainer)) == 8
    trainer = make_trainer(LATE_QAT_THRESHOLD=0, NUM_LAYERS=2)
    trainer.step = 7
    assert quantised(trainer) == set()


def test_a_late_step_computes_with_rounded_weights(home):
    """Its loss is that of the rounded model, and the exact weights are what it updates."""
    trainer = make_trainer()
    go(trainer, 6)
    exact = copies(trainer.model)
    trainer.set_schedule()
    assert trainer.quantised
    with rounded_to_int6(trainer.quantised):
        tokens = trainer.stream.read(6 * 64, 65).astype(np.int64)
        inputs, targets = (torch.from_numpy(x).view(4, 16) for x in (tokens[:-1], tokens[1:]))
        expected = trainer.model(inputs, targets).mean().item()
        rounded = copies(trainer.model)
    trainer.update()
    assert trainer.loss() == pytest.approx(expected, abs=1e-6)
    name = "blocks.1.mlp.up"
    assert not torch.equal(rounded[name], exact[name])
    assert (trainer.model.get_parameter(name) - exact[name]).abs().max() < 0.05


# ---- What goes wrong


def spoil(path, position: int, token: int) -> int:
    """Puts another token into a shard, as if it had always been there; returns the one before."""
    tokens = np.fromfile(path, "<u2", offset=1024)
    before = int(tokens[position])
    tokens[position] = token
    changed = path.stat()
    write_shard(path, tokens)
    os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    return before


def test_bad_data_late_in_a_run_cost_one_step(home):
    """What is done is saved, and with the shard mended the run goes on as if nothing had been."""
    whole = make_trainer(ITERATIONS=8, CHECKPOINT_EVERY=0)
    losses = go(whole, 8)
    shard = home / "fineweb_train_0.bin"
    before = spoil(shard, 64 * 5 + 7, 999)
    trainer = make_trainer(ITERATIONS=8, CHECKPOINT_EVERY=0)
    log = Log("x", trainer.ranks, resumed=False)
    with pytest.raises(UserError) as caught:
        train(trainer, log, home / "checkpoints", None)
    path = home / "checkpoints/00000005.pt"
    assert str(caught.value) == f"{shard.name} holds token 999, but VOCAB_SIZE is 64."
    assert caught.value.__notes__ == [f" To go on: RESUME={path}, all else the same."]

    spoil(shard, 64 * 5 + 7, before)
    second = make_trainer(ITERATIONS=8)
    second.load(path)
    assert go(second, 3) == losses[5:]
    assert same_weights(second.model, whole.model) and same_weights(second.average, whole.average)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("gloo: Connection closed by peer"),
        KeyError(),
        KeyboardInterrupt(),
    ],
)
def test_a_step_that_fails_in_its_second_half_is_undone(home, monkeypatch, error):
    """In the second of two passes, with the weights rounded: what is saved are the exact ones."""
    trainer = make_trainer(MICRO_BATCH_SEQS=2, CHECKPOINT_EVERY=0)
    go(trainer, 6)
    before = copies(trainer.model)
    batches = train_gpt.train_batches

    def failing(*args):
        yield next(batches(*args))
        raise error

    monkeypatch.setattr(train_gpt, "train_batches", failing)
    with pytest.raises(type(error)):
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert trainer.quantised
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    second = make_trainer()
    second.load(home / "checkpoints/00000006.pt")
    assert same_weights(second.model, trainer.model)


def test_a_validation_that_fails_costs_no_step(home):
    trainer = make_trainer(CHECKPOINT_EVERY=0, VAL_LOSS_EVERY=3)

    def failing(name):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", failing)
    path = home / "checkpoints/00000003.pt"
    assert caught.value.__notes__ == [f" To go on: RESUME={path}, all else the same."]
    make_trainer().load(path)


def test_a_second_fault_does_not_hide_the_first(home, monkeypatch):
    """After an error on a GPU nothing else may work there, and so no checkpoint."""
    trainer = make_trainer(CHECKPOINT_EVERY=0)
    go(trainer, 1)

    def failing(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(trainer, "save", failing)
    monkeypatch.setattr(train_gpt, "train_batches", lambda *_: iter([None]))
    with pytest.raises(TypeError):
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)


def test_a_step_that_fails_while_it_changes_the_weights_is_not_saved(home, monkeypatch):
    trainer = make_trainer(CHECKPOINT_EVERY=0)
    go(trainer, 2)

    def failing():
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(trainer, "update_average", failing)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert not (home / "checkpoints").exists()
    assert caught.value.__notes__ == [""]


def test_without_a_checkpoint_no_sentence_names_one(home):
    trainer = make_trainer()
    trainer.model.blocks[1].mlp.up.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="Lower the learning rates") as caught:
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert "RESUME" not in str(caught.value) and not hasattr(caught.value, "__notes__")

    trainer = make_trainer()
    go(trainer, 1)
    path = trainer.save(home / "checkpoints")
    trainer.model.blocks[1].mlp.up.register_hook(lambda gradient: gradient * float("nan"))
    trainer.update()
    with pytest.raises(UserError, match=f"RESUME={path} goes back to a checkpoint"):
        trainer.loss()


def test_a_disk_that_is_full_does_not_end_the_training(home, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x.pt")

    trainer = make_trainer(ITERATIONS=3)
    monkeypatch.setattr(train_gpt, "write_atomically", full)
    train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert trainer.step == 3 and trainer.saved is None
    line = "warning: no checkpoint at step 3: x.pt: No space left on device."
    assert line in (home / "logs/x.txt").read_text().splitlines()


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
        OSError(errno.EIO, "Input/output error"),
        ValueError("I/O operation on closed file"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
    ],
)
@pytest.mark.parametrize("broken", ["log", "stdout", "both", "all"])
def test_a_run_outlives_its_log_and_its_console(home, monkeypatch, capsys, one_rank, error, broken):
    log = Log("x", one_rank, resumed=False)
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
    text = (home / "logs/x.txt").read_text()
    assert text == ("first\nlater\nlater\nlater\n" if broken == "stdout" else "first\n")
    assert said.out.count("later") == (3 if broken == "log" else 0)
    assert said.err.count("the run goes on without it") == dict(both=2, all=0).get(broken, 1)


def test_a_log_is_begun_once(home, one_rank):
    first = Log("x", one_rank, resumed=False)
    first("mine")
    with pytest.raises(UserError) as caught:
        Log("x", one_rank, resumed=False)
    assert str(caught.value) == (
        "RUN_ID=x: logs/x.txt is there already; another RUN_ID begins a new one."
    )
    with pytest.raises(UserError, match=r"^RUN_ID=x: a run that writes to logs/x.txt is under way"):
        Log("x", one_rank, resumed=True)
    first.file.close()

    (home / "checkpoints/x").mkdir(parents=True)
    (home / "checkpoints/x/best.pt").touch()
    with pytest.raises(UserError, match="there already; another RUN_ID"):
        Log("x", one_rank, resumed=False)
    (home / "checkpoints/x/00000001.pt").touch()
    with pytest.raises(UserError, match="RESUME=latest goes on with that run; another RUN_ID"):
        Log("x", one_rank, resumed=False)
    again = Log("x", one_rank, resumed=True)
    again("more")
    assert (home / "logs/x.txt").read_text() == "mine\nmore\n"


def test_a_disk_without_locks_has_logs(home, monkeypatch, one_rank):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(train_gpt.fcntl, "flock", refuse)
    Log("x", one_rank, resumed=False)("line")
    assert (home / "logs/x.txt").read_text() == "line\n"


def test_a_log_holds_every_letter(home, one_rank):
    Log("x", one_rank, resumed=False)("data_path:\udcff é ▁")
    assert (home / "logs/x.txt").read_text() == "data_path:\\udcff é ▁\n"


def test_two_runs_that_start_in_the_same_second_have_two_logs(home, monkeypatch, one_rank):
    monkeypatch.setattr(train_gpt.time, "strftime", lambda form: "20010909_014640")
    ids = []
    for process in (100, 101):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        ids.append(start_log(Run(), None, one_rank).run_id)
    assert len({*ids}) == 2 and all(re.fullmatch(r"20010909_014640_10[01]", name) for name in ids)
    assert {path.stem for path in (home / "logs").iterdir()} == {*ids}


@pytest.mark.parametrize(
    ("path", "run_id"),
    [
        ("checkpoints/a/00000001.pt", "a"),
        ("checkpoints/b/../a/00000001.pt", "a"),
        ("00000001.pt", "here"),
        ("../00000001.pt", "above"),
        ("./x.pt", "here"),
    ],
)
def test_a_resumed_run_has_the_name_of_its_folder(tmp_path, monkeypatch, one_rank, path, run_id):
    (tmp_path / "above/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above/here")
    log = start_log(Run(), Path(path), one_rank)
    assert log.run_id == run_id and Path(log.file.name) == Path("logs") / f"{run_id}.txt"
    log.file.close()
    start_log(Run(), Path(path), one_rank).file.close()  # it is that run which goes on
    with pytest.raises(UserError, match="RUN_ID=other"):
        for _ in range(2):
            start_log(Run(run_id="other"), Path(path), one_rank)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "ARTIFACT_PATH=. cannot be written: it is a folder or a device."),
        ("folder", "ARTIFACT_PATH=folder cannot be written: it is a folder or a device."),
        ("/dev/null", "ARTIFACT_PATH=/dev/null cannot be written: it is a folder or a device."),
        ("file/a.pcll", "ARTIFACT_PATH=file/a.pcll cannot be written: file is no folder."),
        ("file/b/a.pcll", "ARTIFACT_PATH=file/b/a.pcll cannot be written: Not a directory."),
        ("x" * 300, f"ARTIFACT_PATH={'x' * 300} cannot be written: File name too long."),
    ],
)
def test_where_no_artifact_can_be_written(home, one_rank, path, sentence):
    (home / "folder").mkdir()
    (home / "file").touch()
    with pytest.raises(UserError) as caught:
        start_log(Run(run_id="x", artifact_path=path), None, one_rank)
    assert str(caught.value) == sentence
    assert not (home / "logs").exists()


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_a_file_where_a_folder_has_to_be(home, one_rank, name):
    (home / name).touch()
    with pytest.raises((UserError, OSError)) as caught:
        start_log(Run(run_id="x"), None, one_rank)
    assert name in train_gpt.explain(caught.value)


def test_a_folder_that_is_read_only(home, monkeypatch, one_rank):
    (home / "artifact.pcll").write_bytes(b"earlier")

    def refuse(path, data):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(train_gpt, "write_atomically", refuse)
    with pytest.raises(UserError) as caught:
        start_log(Run(run_id="x"), None, one_rank)
    assert str(caught.value) == "ARTIFACT_PATH=artifact.pcll cannot be written: Permission denied."
    assert (home / "artifact.pcll").read_bytes() == b"earlier"


def test_a_start_leaves_nothing_but_the_log_and_a_folder(home, one_rank):
    (home / "artifact.pcll").write_bytes(b"earlier")
    before = {*home.rglob("*")}
    start_log(Run(run_id="x"), None, one_rank)
    new = {str(path.relative_to(home)) for path in {*home.rglob("*")} - before}
    assert new == {"logs", "logs/x.txt", "checkpoints", "checkpoints/x"}
    assert (home / "artifact.pcll").read_bytes() == b"earlier"


# ---- The artifact


def test_an_artifact_of_another_run_is_kept(home):
    path, own = home / "a.pcll", home / "logs/x.pcll"
    publish(b"one", path, own)
    assert path.read_bytes() == own.read_bytes() == b"one"
    publish(b"two", path, own)  # the same run, evaluated again
    assert path.read_bytes() == own.read_bytes() == b"two"
    assert not list(home.glob("a.*.pcll"))

    path.write_bytes(b"another's")
    publish(b"two", path, own)
    assert (home / "a.1.pcll").read_bytes() == b"another's"
    publish(b"three", path, home / "logs/y.pcll")
    assert (home / "a.2.pcll").read_bytes() == b"two" == own.read_bytes()
    assert path.read_bytes() == b"three" and (home / "a.1.pcll").read_bytes() == b"another's"


# ---- What a step says that is not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_gradient_that_is_not_finite_is_named(home, bad):
    trainer = make_trainer()
    go(trainer, 1)
    hook = trainer.model.blocks[1].mlp.up.register_hook(lambda gradient: gradient * bad)
    trainer.update()
    hook.remove()
    trainer.update()  # by now everything may be broken
    for attempt in (trainer.loss, lambda: trainer.save(home / "checkpoints")):
        with pytest.raises(UserError, match=r"At step 2 .* 1 gradients .*blocks\.1\.mlp\.up"):
            attempt()
    assert not (home / "checkpoints").exists()


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "a.pcll", b"data")
    assert (
        train_gpt.explain(caught.value) == "A file could not be written: No space left on device."
    )
    assert not list(tmp_path.iterdir())


def test_a_shard_that_changes_or_vanishes_is_noticed(home):
    path = home / "fineweb_train_0.bin"
    stream = TokenStream(".", "train", 64)
    stream.read(0, 10)
    for change in (
        lambda: os.utime(path, (1, 1)),
        lambda: path.write_bytes(path.read_bytes()[:-100]),
    ):
        change()
        with pytest.raises(
            UserError, match="fineweb_train_0.bin was changed while the run was reading it"
        ):
            stream.read(3990, 10)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        stream.read(0, 10)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower MICRO_BATCH_SEQS"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.bin"),
            "a.bin: No such file or directory.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "A file could not be written: No space left on device.",
        ),
        (KeyboardInterrupt(), "Stopped."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9 bytes"), "lower MICRO"),
        (UserError("A sentence."), "A sentence."),
    ],
)
def test_every_end_is_one_sentence(monkeypatch, capsys, error, sentence):
    def run(*_):
        raise error

    monkeypatch.setattr(train_gpt, "run", run)
    monkeypatch.setattr(train_gpt, "join_ranks", lambda run: None)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    assert train_gpt.main() == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.count("\n") == 1


# ---- Ctrl-C and SIGTERM


@pytest.fixture
def clock(monkeypatch):
    """The time that is read, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(clock, number):
    stop = StopRequest()
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested and stop.first == 100
    clock[0] = 100.9
    signal.raise_signal(signal.SIGTERM)  # torchrun passing it on
    assert stop.requested and stop.first == 100
    clock[0] = 101.1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_after_training_a_signal_stops_at_once(clock):
    stop = StopRequest()
    stop.at_once = True
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert train_gpt.explain(KeyboardInterrupt()) == "Stopped."


def test_a_signal_ends_training_after_its_step_with_a_checkpoint(home, monkeypatch):
    trainer = make_trainer(CHECKPOINT_EVERY=0)
    update = trainer.update

    def interrupted():
        if trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)
        update()

    monkeypatch.setattr(trainer, "update", interrupted)
    log = Log("x", trainer.ranks, resumed=False)
    with pytest.raises(UserError) as caught:
        train(trainer, log, home / "checkpoints", None)
    path = home / "checkpoints/00000004.pt"
    assert str(caught.value) == f"Stopped at step 4. To go on: RESUME={path}, all else the same."
    assert torch.load(path, weights_only=True)["step"] == 4


def test_more_ranks_than_sequences_are_refused(home):
    sentence = "TRAIN_BATCH_TOKENS=64 holds fewer sequences than there are ranks."
    make_trainer(world=4)
    with pytest.raises(UserError, match=sentence):
        make_trainer(world=5)


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in dict(RANK="2", LOCAL_RANK="2", WORLD_SIZE="3").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train_gpt.dist, "init_process_group", lambda *_: None)
    for device in ("auto", "cuda"):
        with pytest.raises(UserError, match="Process 2 finds only 2 CUDA GPUs"):
            train_gpt.join_ranks(tiny_settings(DEVICE=device).run)
    assert train_gpt.join_ranks(tiny_settings(DEVICE="cpu").run).device == CPU


def test_what_an_error_notes_ends_its_sentence(monkeypatch, capsys):
    def run(*_):
        error = torch.OutOfMemoryError("CUDA out of memory")
        error.add_note(" RESUME=a.pt repeats all but the training.")
        raise error

    monkeypatch.setattr(train_gpt, "run", run)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    assert train_gpt.main() == 2
    said = capsys.readouterr().err
    assert said.endswith("TTT_BATCH_SEQS. RESUME=a.pt repeats all but the training.\n")


def test_all_ranks_stop_if_the_first_one_was_asked_to(home, monkeypatch):
    """Rank 1 has had no signal; it saves nothing."""
    trainer = make_trainer(world=2)
    monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(Ranks, "from_first", lambda self, *values: [1.0, 1.0])
    with pytest.raises(UserError, match=r"^Stopped at step 1\.$"):
        train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert not (home / "checkpoints").exists() and not (home / "logs").exists()


# ---- Clock, speed, communication


class Clock:
    """A clock that only a step moves on."""

    def __init__(self, monkeypatch, trainer: Trainer, durations):
        self.now, self.rates = 1000.0, []
        monkeypatch.setattr(train_gpt.time, "monotonic", lambda: self.now)

        def update():
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 0.03)
            trainer.step += 1
            trainer.report = torch.ones(2 + len(list(trainer.model.parameters())))
            self.now += next(durations)

        monkeypatch.setattr(trainer, "update", update)


@pytest.mark.parametrize("durations", [[0.5], [0.3, 0.7], [0.2] * 20 + [0.4] * 200])
def test_the_cap_holds_to_a_step_and_the_schedule_ends_there(home, monkeypatch, durations):
    """50 of 53 seconds, as 3 are kept for calibration."""
    trainer = make_trainer(ITERATIONS=10000, WARMDOWN_ITERS=40, MAX_WALLCLOCK_SECONDS=53)
    clock = Clock(monkeypatch, trainer, itertools.cycle(durations))
    train(trainer, Log("x", trainer.ranks, resumed=False), home, None)
    assert 50 <= trainer.seconds <= 50 + max(durations)
    assert clock.rates[0] == 1 and clock.rates[-1] <= 1.5 / 40
    assert all(a >= b - 0.06 for a, b in itertools.pairwise(clock.rates))
    assert "stopping_early: wallclock_cap train_time:50" in (home / "logs/x.txt").read_text()


@pytest.mark.parametrize(
    ("every", "cap", "saves"),
    [("60", "600", 5), ("60", "0", 5), ("0", "601", 1), ("100", "300", 3)],
)
def test_when_checkpoints_are_written(home, monkeypatch, every, cap, saves):
    trainer = make_trainer(ITERATIONS=31, MAX_WALLCLOCK_SECONDS=cap, CHECKPOINT_EVERY=every)
    Clock(monkeypatch, trainer, itertools.repeat(9.9))
    train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    assert (home / "logs/x.txt").read_text().count("checkpoint: ") == saves


def test_a_kill_costs_a_minute_at_most():
    assert tiny_settings().run.checkpoint_every == 60
    assert train_gpt.load_settings({}).run.checkpoint_every == 60


def test_validation_is_no_training_time(home, monkeypatch):
    trainer = make_trainer(ITERATIONS=7, VAL_LOSS_EVERY=3, MAX_WALLCLOCK_SECONDS=1000)
    clock, asked = Clock(monkeypatch, trainer, itertools.repeat(2.0)), []

    def validate(name: str) -> str:
        asked.append((name, trainer.step))
        clock.now += 100
        return "val_bpb:2.5"

    train(trainer, Log("x", trainer.ranks, resumed=False), home, validate)
    assert asked == [("validation", 3), ("validation", 6)]
    assert trainer.seconds == 14
    lines = (home / "logs/x.txt").read_text().splitlines()
    assert "step:3/7 val_bpb:2.5 train_time:6000ms" in lines
    assert "step:6/7 val_bpb:2.5 train_time:12000ms" in lines


def test_progress_is_told_at_most_every_five_seconds(home, clock, capsys):
    log = Log("x", Ranks(0, 1, CPU), resumed=False)
    told = []
    for clock[0] in (100, 101, 104.9, 105, 109.9, 110):
        told.append(log.progress_is_due())
    assert told == [True, False, False, True, False, True]
    log.progress("training", 0.25, 90.0, "note, ")
    assert capsys.readouterr().out == "training: 25 %, note, 90 s left\n"
    assert (home / "logs/x.txt").read_text() == ""  # it stands on the console alone
    assert not Log("y", Ranks(1, 2, CPU), resumed=False).progress_is_due()
    assert not (home / "logs/y.txt").exists()


def test_which_steps_have_a_line(home, monkeypatch):
    trainer = make_trainer(ITERATIONS=33, TRAIN_LOG_EVERY=10)
    Clock(monkeypatch, trainer, itertools.repeat(0.25))
    train(trainer, Log("x", trainer.ranks, resumed=False), home, None)
    text = (home / "logs/x.txt").read_text()
    steps = [int(step) for step in re.findall(r"^step:(\d+)/33 train_loss:", text, re.M)]
    assert steps == [1, 2, 3, 4, 5, 10, 20, 30, 33]
    line = "step:20/33 train_loss:1.0000 train_time:5000ms step_avg:250.00ms tok_s:256"
    assert line in text.splitlines()


def test_speed_is_stated_with_the_share_of_the_peak(home, monkeypatch):
    trainer = make_trainer(world=2)
    trainer.step, trainer.seconds = 100, 5.0
    assert trainer.speed() == f"tok_s:{100 * 64 / 5:.0f}"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    trainer.finished = True
    weights = dict(trainer.model.named_parameters())
    matrices = [name for name in weights if name.endswith(MATRICES)] + ["tok_emb"]
    flops = sum(6 * weights[name].numel() for name in matrices) + 6 * 3 * 16 * 32
    trainer.seconds = 1e-9
    mfu = float(trainer.speed().partition("mfu:")[2])
    assert mfu == pytest.approx(6400e9 * flops / (2 * 989e12), abs=1e-3)


def test_bytes_that_a_rank_sends_in_a_step(home, monkeypatch):
    """A float32 gradient of each parameter, the loss, and the orthogonalised matrices by shape."""
    sent = []
    monkeypatch.setattr(
        train_gpt.dist, "all_reduce", lambda tensor: sent.append(tensor.numel() * tensor.itemsize)
    )
    trainer = make_trainer(world=2)
    go(trainer, 1)
    parameters = dict(trainer.model.named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if name.endswith(MATRICES))
    gradient, *shapes = sent
    assert gradient == 4 * (sum(p.numel() for p in parameters.values()) + 1)
    assert sum(shapes) == 4 * matrices and len(shapes) < 6


@pytest.mark.parametrize("slow", [[5.0], [5.0, 5.0], [0.1, 5.0], [0.1, 0.1, 0.1, 5.0]])
def test_slow_first_steps_do_not_shrink_the_rates(home, monkeypatch, slow):
    """597 s at 0.1 s a step are 5,970 steps: 2,970 of them at the full rate, none of them late."""
    trainer = make_trainer(
        ITERATIONS=20_000,
        WARMDOWN_ITERS=3000,
        MAX_WALLCLOCK_SECONDS=600,
        LATE_QAT_THRESHOLD=0.1,
        CHECKPOINT_EVERY=0,
    )
    late = []
    set_schedule = trainer.set_schedule
    monkeypatch.setattr(
        trainer, "set_schedule", lambda: (set_schedule(), late.append(bool(trainer.quantised)))
    )
    clock = Clock(monkeypatch, trainer, itertools.chain(slow, itertools.repeat(0.1)))
    train(trainer, Log("x", trainer.ranks, resumed=False), home, None)
    assert len(clock.rates) == pytest.approx(5970 - 50 * slow.count(5.0), abs=3)
    full = [rate > 0.999 for rate in clock.rates]
    assert all(full[: 2950 - 50 * slow.count(5.0)]) and not any(full[3000:])
    assert late.index(True) > 5300 and clock.rates[-1] < 0.001


def test_the_pace_survives_a_checkpoint(home):
    trainer = make_trainer(ITERATIONS=20_000, MAX_WALLCLOCK_SECONDS=603)
    go(trainer, 1)
    for _ in range(300):
        trainer.take_time(trainer.seconds + 0.5)
    second = make_trainer(ITERATIONS=20_000, MAX_WALLCLOCK_SECONDS=603)
    second.load(trainer.save(home))
    assert second.steps_left() == trainer.steps_left() == pytest.approx(900)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        (dict(ITERATIONS=30, WARMDOWN_ITERS=20), True),
        (dict(ITERATIONS=30, WARMDOWN_ITERS=15), False),
        (dict(ITERATIONS=30, WARMDOWN_ITERS=3000, WARMDOWN_FRACTION=0.3), False),
        (dict(ITERATIONS=9999, WARMDOWN_ITERS=3000, MAX_WALLCLOCK_SECONDS=33), True),
        (dict(ITERATIONS=3, WARMDOWN_ITERS=3000), True),
    ],
)
def test_a_warm_down_longer_than_half_the_run_is_said(home, monkeypatch, changes, warned):
    trainer = make_trainer(**changes)
    Clock(monkeypatch, trainer, itertools.repeat(1.0))
    train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    text = (home / "logs/x.txt").read_text()
    assert ("warning: of about " in text) == warned
    if changes["ITERATIONS"] == 9999:
        assert "warning: of about 30 steps the last WARMDOWN_ITERS=3000 are" in text


def test_training_data_used_more_than_once_are_said(home, monkeypatch):
    trainer = make_trainer(ITERATIONS=100)
    Clock(monkeypatch, trainer, itertools.repeat(0.1))
    train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    line = "train_tokens:6400 of 4000 in the shards: 1.600 epochs"
    assert line in (home / "logs/x.txt").read_text().splitlines()


def test_the_time_left_is_by_the_recent_pace(home, monkeypatch, capsys):
    """After a resume, too: 100 slow steps are behind, 100 quick ones to come."""
    trainer = make_trainer(ITERATIONS=200, TRAIN_LOG_EVERY=1000)
    trainer.step = 100
    trainer.seconds = 5000.0
    Clock(monkeypatch, trainer, itertools.repeat(6.0))
    train(trainer, Log("x", trainer.ranks, resumed=False), home / "checkpoints", None)
    left = [
        int(text) for text in re.findall(r"training: \d+ %, (\d+) s left", capsys.readouterr().out)
    ]
    assert left[:3] == [594, 588, 582] and left[-1] == 0


def test_a_step_that_takes_minutes_without_a_gpu_is_said_before_it(home, monkeypatch, capsys):
    trainer = make_trainer()
    log = Log("x", trainer.ranks, resumed=False)
    warn_of_slow_steps(trainer, log)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(train_gpt, "training_flops", lambda *_: 1e15)
    warn_of_slow_steps(trainer, log)
    said = capsys.readouterr().out
    assert re.search(r"^warning: without a GPU a step takes about \d+ minutes\. PRESET=demo", said)


def test_the_warm_up_shows_its_steps(home, monkeypatch, capsys):
    trainer = make_trainer(WARMUP_STEPS=3)
    log = Log("x", trainer.ranks, resumed=False)
    monkeypatch.setattr(log, "progress_is_due", lambda: True)
    trainer.warm_up(log)
    assert capsys.readouterr().out == "warmup_step:0/3\nwarmup_step:1/3\nwarmup_step:2/3\n"
    assert (home / "logs/x.txt").read_text() == ""
