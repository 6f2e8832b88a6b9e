"""Training: checkpoints go on exactly, the cap holds, signals and damage end a run with a sentence."""

import errno
import itertools
import os
import pickle
import re
import signal

import numpy as np
import pytest
import torch
from conftest import tiny_settings, write_shard

import train_gpt
from train_gpt import (
    GPT,
    MATRICES,
    Log,
    Ranks,
    TokenStream,
    Trainer,
    UserError,
    find_checkpoint,
    heed_signals,
    rounded_to_int6,
    train,
    write_atomically,
)

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a shard to train on."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "fineweb_train_0.bin", np.random.default_rng(0).integers(1, 64, 4000))
    return tmp_path


def make_trainer(world: int = 1, **changes) -> Trainer:
    """The trainer of the last of `world` ranks."""
    s = tiny_settings(
        DATA_PATH=".",
        ITERATIONS="8",
        WARMDOWN_ITERS="6",
        LATE_QAT_MIN_ELEMENTS="64",
        LATE_QAT_THRESHOLD="0.5",
        MAX_WALLCLOCK_SECONDS="0",
        **changes,
    )
    torch.manual_seed(s.seed)
    return Trainer(GPT(s), s, Ranks(world - 1, world, CPU))


def go(trainer: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        trainer.set_schedule()
        trainer.update()
        losses.append(trainer.loss())
    return losses


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


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
    assert go(warmed, 3) == go(plain, 3)


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
    assert str(find_checkpoint(tiny_settings(RESUME="latest"))) == "checkpoints/b/00000006.pt"
    assert (
        str(find_checkpoint(tiny_settings(RESUME="latest", RUN_ID="a")))
        == "checkpoints/a/00000003.pt"
    )
    for settings in (
        dict(RESUME="latest", RUN_ID="c"),
        dict(RESUME="checkpoints/a"),
        dict(RESUME="nowhere.pt"),
    ):
        with pytest.raises(
            UserError, match=f"RESUME={settings['RESUME']}: there is no such checkpoint"
        ):
            find_checkpoint(tiny_settings(**settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUM_LAYERS", "2"),
        ("SMEAR_GATE", "0"),
        ("MATRIX_LR", "0.5"),
        ("SEED", "1"),
        ("ITERATIONS", "9"),
    ],
)
def test_another_configuration_is_refused_by_name(home, name, value):
    path = make_trainer().save(home)
    s = tiny_settings(
        **dict(
            DATA_PATH=".",
            ITERATIONS="8",
            WARMDOWN_ITERS="6",
            LATE_QAT_MIN_ELEMENTS="64",
            LATE_QAT_THRESHOLD="0.5",
            MAX_WALLCLOCK_SECONDS="0",
        )
        | {name: value}
    )
    with pytest.raises(
        UserError, match=rf"^{name}={re.escape(str(getattr(s, name.lower())))}, but RESUME="
    ):
        Trainer(GPT(s), s, Ranks(0, 1, CPU)).load(path)


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


def test_only_large_matrices_are_quantised_and_only_late(home):
    trainer = make_trainer()
    early, late = (
        [],
        {
            name
            for name, p in trainer.model.named_parameters()
            if name.startswith("blocks")
            and p.ndim == 2
            and p.numel() > 64
            and name.endswith(MATRICES)
        },
    )
    trainer.set_schedule()
    assert trainer.quantised == early
    trainer.step = 6
    trainer.set_schedule()
    assert {
        name
        for name, p in trainer.model.named_parameters()
        if any(p is q for q in trainer.quantised)
    } == late


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
    monkeypatch.setattr(train_gpt, "join_ranks", lambda s: None)
    assert train_gpt.main() == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.count("\n") == 1


def test_a_second_signal_stops_at_once(monkeypatch):
    clock = itertools.count(100.0, 0.6)
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: next(clock))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        times = heed_signals()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # 0.6 seconds later: torchrun passing it on
        assert len(times) == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


# ---- Clock, speed, communication


class Clock:
    """A clock that only a step moves on."""

    def __init__(self, monkeypatch, trainer: Trainer, durations):
        self.now, self.rates = 1000.0, []
        monkeypatch.setattr(train_gpt.time, "monotonic", lambda: self.now)

        def update():
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"] / trainer.s.matrix_lr)
            trainer.step += 1
            trainer.report = torch.ones(2 + len(list(trainer.model.parameters())))
            self.now += next(durations)

        monkeypatch.setattr(trainer, "update", update)


@pytest.mark.parametrize("durations", [[0.5], [0.3, 0.7], [0.2] * 20 + [0.4] * 200])
def test_the_cap_holds_to_a_step_and_the_schedule_ends_there(home, monkeypatch, durations):
    s = dict(
        DATA_PATH=".", ITERATIONS="10000", WARMDOWN_ITERS="40", MAX_WALLCLOCK_SECONDS="53"
    )  # 3 to calibrate
    s = tiny_settings(**s)
    trainer = Trainer(GPT(s), s, Ranks(0, 1, CPU))
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
    s = tiny_settings(
        DATA_PATH=".", ITERATIONS="31", MAX_WALLCLOCK_SECONDS=cap, CHECKPOINT_EVERY=every
    )
    trainer = Trainer(GPT(s), s, Ranks(0, 1, CPU))
    Clock(monkeypatch, trainer, itertools.repeat(9.9))
    train(trainer, Log("x", trainer.ranks, append=False), home / "checkpoints", None)
    assert (home / "logs/x.txt").read_text().count("checkpoint: ") == saves


def test_speed_is_stated_with_the_share_of_the_peak(home, monkeypatch):
    trainer = make_trainer(world=2)
    trainer.step, trainer.seconds = 100, 5.0
    assert trainer.speed() == f"tok_s:{100 * 64 / 5:.0f}"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    trainer.finished = True
    s, weights = trainer.s, dict(trainer.model.named_parameters())
    matrices = [name for name in weights if name.endswith(MATRICES)] + ["tok_emb"]
    flops = sum(6 * weights[name].numel() for name in matrices) + 6 * s.num_layers * 16 * 32
    trainer.seconds = 1e-9
    mfu = float(trainer.speed().partition("mfu:")[2])
    assert mfu == pytest.approx(6400e9 * flops / (2 * 989e12), abs=1e-3)


def test_bytes_that_a_rank_sends_in_a_step(home, monkeypatch):
    """A float32 gradient of each parameter, the loss, and the orthogonalised matrices: nothing else."""
    sent = []
    monkeypatch.setattr(
        train_gpt.dist, "all_reduce", lambda tensor: sent.append(tensor.numel() * tensor.itemsize)
    )
    trainer = make_trainer(world=2)
    go(trainer, 1)
    parameters = dict(trainer.model.named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if name.endswith(MATRICES))
    assert sent == [4 * (sum(p.numel() for p in parameters.values()) + 1), 4 * matrices]
