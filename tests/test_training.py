"""Training: each part of a step by its formula, checkpoints, the cap, and every way to end."""

import errno
import itertools
import os
import pickle
import re
import signal

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
    StopRequest,
    TokenStream,
    Trainer,
    UserError,
    checkpoint_interval,
    find_checkpoint,
    rounded_to_int6,
    train,
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
    for name, p in trainer.average.module.named_parameters():
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
    warmed.warm_up()
    assert same_weights(warmed.model, plain.model) and same_weights(warmed.average, plain.average)
    assert (warmed.step, warmed.seconds) == (0, 0)
    assert not any(optimizer.state for optimizer in warmed.optimizers)
    assert go(warmed, 3) == go(plain, 3)
    assert same_weights(warmed.model, plain.model) and same_weights(warmed.average, plain.average)


def test_the_warm_up_makes_its_steps(home, monkeypatch):
    trainer, steps = make_trainer(WARMUP_STEPS=3), []
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda: (steps.append(trainer.step), update()))
    trainer.warm_up()
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
        ("ITERATIONS", "9"),
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
    whole = trainer.save(home).read_bytes()
    for damaged in (
        b"",
        b"PK",
        whole[:1000],
        whole[:-1],
        b"text",
        pickle.dumps({"settings": {}}),
        whole[100:],
    ):
        (home / "bad.pt").write_bytes(damaged)
        with pytest.raises(UserError, match="bad.pt is not a whole checkpoint"):
            trainer.load(home / "bad.pt")


def test_a_checkpoint_cannot_run_code(home):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    torch.save({"settings": Evil()}, "evil.pt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        make_trainer().load(home / "evil.pt")
    assert not (home / "evil").exists()


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
        (UserError("A sentence."), "A sentence."),
    ],
)
def test_every_end_is_one_sentence(monkeypatch, capsys, error, sentence):
    def run(*_):
        raise error

    monkeypatch.setattr(train_gpt, "run", run)
    monkeypatch.setattr(train_gpt, "join_ranks", lambda run: None)
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


def test_a_signal_ends_training_after_its_step_with_a_checkpoint(home, monkeypatch):
    trainer = make_trainer(CHECKPOINT_EVERY=0)
    update = trainer.update

    def interrupted():
        if trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)
        update()

    monkeypatch.setattr(trainer, "update", interrupted)
    log = Log("x", trainer.ranks, append=False)
    with pytest.raises(UserError) as caught:
        train(trainer, log, home / "checkpoints", None)
    path = home / "checkpoints/00000004.pt"
    assert str(caught.value) == f"Stopped at step 4; to go on: RESUME={path}, all else the same."
    assert torch.load(path, weights_only=True)["step"] == 4


def test_more_ranks_than_sequences_are_refused(home):
    sentence = "TRAIN_BATCH_TOKENS=64 holds fewer sequences than there are ranks."
    make_trainer(world=4)
    with pytest.raises(UserError, match=sentence):
        make_trainer(world=5)


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    for device in ("auto", "cuda"):
        with pytest.raises(UserError, match="Process 2 finds only 2 CUDA GPUs"):
            train_gpt.join_ranks(tiny_settings(DEVICE=device).run)
    assert train_gpt.join_ranks(tiny_settings(DEVICE="cpu").run).device == CPU


def test_all_ranks_stop_if_the_first_one_was_asked_to(home, monkeypatch):
    """Rank 1 has had no signal; it saves nothing."""
    trainer = make_trainer(world=2)
    monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(Ranks, "from_first", lambda self, *values: [1.0, 1.0])
    with pytest.raises(UserError, match="Stopped at step 1; to go on"):
        train(trainer, Log("x", trainer.ranks, append=False), home / "checkpoints", None)
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
    train(trainer, Log("x", trainer.ranks, append=False), home, None)
    assert 50 <= trainer.seconds <= 50 + max(durations)
    assert clock.rates[0] == 1 and clock.rates[-1] <= 1.5 / 40
    assert all(a >= b - 0.06 for a, b in itertools.pairwise(clock.rates))
    assert "stopping_early: wallclock_cap train_time:50" in (home / "logs/x.txt").read_text()


@pytest.mark.parametrize(
    ("every", "cap", "saves"),
    [("-1", "600", 0), ("-1", "601", 5), ("0", "601", 0), ("100", "300", 3)],
)
def test_when_checkpoints_are_written(home, monkeypatch, every, cap, saves):
    trainer = make_trainer(ITERATIONS=31, MAX_WALLCLOCK_SECONDS=cap, CHECKPOINT_EVERY=every)
    Clock(monkeypatch, trainer, itertools.repeat(9.9))
    train(trainer, Log("x", trainer.ranks, append=False), home / "checkpoints", None)
    assert (home / "logs/x.txt").read_text().count("checkpoint: ") == saves


def test_seconds_between_checkpoints():
    for cap, seconds in (("600", 0), ("599", 0), ("601", 60), ("0", 60)):
        assert checkpoint_interval(tiny_settings(MAX_WALLCLOCK_SECONDS=cap)) == seconds
    assert checkpoint_interval(tiny_settings(CHECKPOINT_EVERY="7.5")) == 7.5


def test_validation_is_no_training_time(home, monkeypatch):
    trainer = make_trainer(ITERATIONS=7, VAL_LOSS_EVERY=3, MAX_WALLCLOCK_SECONDS=1000)
    clock, asked = Clock(monkeypatch, trainer, itertools.repeat(2.0)), []

    def validate(name: str) -> str:
        asked.append((name, trainer.step))
        clock.now += 100
        return "val_bpb:2.5"

    train(trainer, Log("x", trainer.ranks, append=False), home, validate)
    assert asked == [("validation", 3), ("validation", 6)]
    assert trainer.seconds == 14
    lines = (home / "logs/x.txt").read_text().splitlines()
    assert "step:3/7 val_bpb:2.5 train_time:6000ms" in lines
    assert "step:6/7 val_bpb:2.5 train_time:12000ms" in lines


def test_progress_is_told_at_most_every_five_seconds(home, clock, capsys):
    log = Log("x", Ranks(0, 1, CPU), append=False)
    told = []
    for clock[0] in (100, 101, 104.9, 105, 109.9, 110):
        told.append(log.progress_is_due())
    assert told == [True, False, False, True, False, True]
    log.progress("training", 0.25, 30.0, "note, ")
    assert capsys.readouterr().out == "training: 25 %, note, 90 s left\n"
    assert (home / "logs/x.txt").read_text() == ""  # it stands on the console alone
    assert not Log("y", Ranks(1, 2, CPU), append=False).progress_is_due()
    assert not (home / "logs/y.txt").exists()


def test_which_steps_have_a_line(home, monkeypatch):
    trainer = make_trainer(ITERATIONS=33, TRAIN_LOG_EVERY=10)
    Clock(monkeypatch, trainer, itertools.repeat(0.25))
    train(trainer, Log("x", trainer.ranks, append=False), home, None)
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
    """A float32 gradient of each parameter, the loss, and the orthogonalised matrices."""
    sent = []
    monkeypatch.setattr(
        train_gpt.dist, "all_reduce", lambda tensor: sent.append(tensor.numel() * tensor.itemsize)
    )
    trainer = make_trainer(world=2)
    go(trainer, 1)
    parameters = dict(trainer.model.named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if name.endswith(MATRICES))
    assert sent == [4 * (sum(p.numel() for p in parameters.values()) + 1), 4 * matrices]
