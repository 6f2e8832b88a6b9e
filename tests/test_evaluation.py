"""Evaluation: each token once, by what stood before it; learning only from what is scored."""

import contextlib
import copy
import dataclasses
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import (
    BOS_ID,
    NOT_LEGAL,
    PLAIN,
    SLIDING,
    Evaluator,
    Ledger,
    Score,
    flatten_grads,
)

ADAPTED = train_gpt.ADAPTED


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    """Ids of the tiny vocabulary, a BOS now and then."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 64, count)
    return np.where(rng.random(count) < 0.1, BOS_ID, tokens).astype(np.uint16)


def evaluator(tokens, s, kind: type = Evaluator) -> Evaluator:
    """An evaluator of given tokens, each of which counts two bytes."""
    tokens = np.asarray(tokens, dtype=np.uint16)
    return kind(tokens, np.full(len(tokens) - 1, 2), s)


def trainer_of(model, s) -> train_gpt.TestTimeTrainer:
    return train_gpt.TestTimeTrainer(model, flatten_grads(model)[:-1], s)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Within it, whatever asks for float32 computes in float64, in train_gpt.py and verify.py.

    Two correct computations of one number then agree to about 1e-12, on every processor. In float32
    no tight bound holds: how sums are ordered depends on the processor, and AdamW's first steps
    divide a gradient by its own size, which turns a rounding error in a small one into a whole
    step.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def exact_model(s, seed: int = 0) -> train_gpt.GPT:
    """A random_model in float64, to be made within float64()."""
    model = train_gpt.GPT(s, torch.float64)
    model.load_state_dict(random_model(s, seed).state_dict())
    return model


@contextlib.contextmanager
def recorded() -> Iterator[list[Ledger]]:
    """The ledgers that are filled within it."""
    made = []

    class Kept(Ledger):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpt, "Ledger", Kept)
        yield made


def score_and_nats(e: Evaluator, *args) -> tuple[Score, np.ndarray]:
    """What e.score(...) returns, and the nats of each position."""
    with recorded() as ledgers:
        score = e.score(*args)
    return score, ledgers[0].nats.numpy()


class Together:
    """All ranks of a run as threads of this process, with sums over all of them."""

    device = torch.device("cpu")

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.own = threading.local()
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.parts = {}

    @property
    def rank(self) -> int:
        return self.own.rank

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.parts[self.rank] = tensor
        self.barrier.wait()
        total = sum(self.parts[rank] for rank in range(self.world_size))
        self.barrier.wait()  # all have added up before any of the parts changes
        return tensor.copy_(total)

    def call(self, function: Callable, rank: int):
        self.own.rank = rank
        return function()


def on_ranks(world_size: int, function: Callable) -> list:
    """What the function returns on each rank."""
    together = Together(world_size)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(world_size) as pool:
        patch.setattr(train_gpt, "ranks", together)
        return list(pool.map(lambda rank: together.call(function, rank), range(world_size)))


# ---- Windows and scores


class Windows:
    """In place of a model: every token is as likely as any other; it keeps what it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, tokens, targets=None, at=None):
        self.calls.append((tokens, at))
        return torch.zeros(tokens.shape if at is None else (len(tokens), len(at), 1024))


def test_context_of_the_system():
    """After the first window, which scores all that it sees, each one of 2,048 tokens scores its
    last 32: at least 2,016 stand before them."""
    s = train_gpt.load_settings({})
    model = Windows()
    tokens = np.arange(2048 + 70 * 32 + 8) % 1024
    score = evaluator(tokens, s).score(model, "", s.eval_stride)
    (first, _), *rest = model.calls
    assert score.tokens == len(tokens) - 1 and first.tolist() == [tokens[:2048].tolist()]
    assert [len(inputs) for inputs, _ in rest] == [64, 7]
    assert all(at.tolist() == list(range(2016, 2048)) for _, at in rest)
    rows = torch.cat([inputs for inputs, _ in rest])
    ends = [2048 + 32 * window for window in range(1, 71)] + [len(tokens) - 1]
    assert rows.tolist() == [tokens[end - 2048 : end].tolist() for end in ends]


def defined_windows(count: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, first scored, stop) of each: the first one scores all that it sees, each later one
    what the one before did not."""
    stops = [min(length, count)]
    while stops[-1] < count:
        stops.append(min(stops[-1] + stride, count))
    starts = [max(0, stop - length) for stop in stops]
    return list(zip(starts, [0, *stops], stops, strict=False))


def naive_nats(model, tokens, stride) -> np.ndarray:
    """One position at a time, nothing in the input behind it."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    windows = defined_windows(len(tokens) - 1, 16, stride)
    if stride == 16:  # the plain score: windows follow one another
        windows = [(first, first, stop) for _, first, stop in windows]
    nats = []
    with torch.no_grad():
        for start, first, stop in windows:
            for position in range(first, stop):
                logits = model(ids[None, start : position + 1])[0, -1]
                nats.append(-torch.log_softmax(logits, dim=0)[ids[position + 1]].item())
    return np.array(nats)


@pytest.mark.parametrize("compiled", [0, 1])
@pytest.mark.parametrize(
    ("count", "stride", "batch"),
    [
        (9, 4, 3),
        (90, 16, 64),
        (75, 5, 1),
        (33, 1, 7),
        (2, 2, 2),
        (1, 4, 4),
        (16, 3, 2),
        (17, 16, 2),
    ],
)
def test_scores_equal_a_naive_loop(compiled, count, stride, batch):
    """With COMPILE=1 every batch is padded to one shape; here the model itself is not compiled."""
    s = tiny_settings(EVAL_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=16, COMPILE=compiled)
    tokens = random_tokens(count + 1)
    with float64():
        model = exact_model(s)
        expected = naive_nats(model, tokens, stride)
        score, nats = score_and_nats(evaluator(tokens, s), model, "test", stride)
    np.testing.assert_allclose(nats, expected, atol=1e-9)
    assert score.tokens == count and score.bytes == 2 * count
    assert score.val_loss == pytest.approx(expected.mean(), abs=1e-9)
    assert score.val_bpb == pytest.approx(expected.sum() / math.log(2) / (2 * count), abs=1e-9)


def test_a_score_is_written_with_all_that_it_was_counted_over():
    assert str(Score(1.5, 0.75, 100, 250, 1.2345)) == (
        "val_loss:1.50000000 val_bpb:0.75000000 val_tokens:100 bytes:250 eval_time:1234ms"
    )


@settings(max_examples=20, deadline=None)
@given(
    world=st.integers(1, 4),
    batch=st.integers(1, 9),
    chunk=st.sampled_from([16, 32, 64]),
    stride=st.sampled_from([4, 7, 16]),
    compiled=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_ranks_batches_or_chunks(
    world, batch, chunk, stride, compiled, seed
):
    tokens = random_tokens(80 + seed, seed)
    sizes = dict(EVAL_BATCH_SEQS=batch, MICRO_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=chunk)
    s = tiny_settings(COMPILE=compiled, **sizes)
    with float64():
        model = exact_model(s)
        whole = evaluator(tokens, tiny_settings()).score(model, "whole", stride)
        for score in on_ranks(world, lambda: evaluator(tokens, s).score(model, "part", stride)):
            assert score.val_loss == pytest.approx(whole.val_loss, abs=1e-9)
            assert (score.tokens, score.bytes) == (whole.tokens, whole.bytes)


def shapes_of(model) -> set:
    """The shapes that go through a model from now on."""
    seen = set()

    def note(model, args, kwargs):
        seen.add(tuple(tuple(x.shape) for x in [*args, *kwargs.values()]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


PADDED = dict(COMPILE=1, EVAL_BATCH_SEQS=5, TTT_BATCH_SEQS=2, MICRO_BATCH_SEQS=4)
TRAINING = ((4, 16), (4, 16))  # also those of the plain score, and of a stream's first window
SCORING = ((5, 16), (4,))
LEARNING = ((2, 16), (2, 16))


@pytest.mark.parametrize("count", [50, 64, 131])
def test_compiled_each_pass_has_few_shapes(count):
    s = tiny_settings(**PADDED, TTT_CHUNK_TOKENS=48)
    model = random_model(s)
    e = evaluator(random_tokens(count + 1), s)
    seen = shapes_of(model)
    e.score(model, "plain", 16)
    assert seen == {TRAINING}
    seen.clear()
    e.score(model, "sliding", 4)
    assert seen == {TRAINING, SCORING}
    seen.clear()
    e.score(model, "adapted", 4, trainer_of(model, s))
    assert seen == {TRAINING, SCORING, LEARNING}


def test_the_warm_up_has_the_shapes_of_what_follows():
    s = tiny_settings(**PADDED)
    model = random_model(s)
    state = train_gpt.TrainState(model, s)
    read = lambda start, count: random_tokens(count)  # noqa: E731
    seen = shapes_of(model)
    train_gpt.warm_up(
        state, SimpleNamespace(read=read, total=10**6), evaluator(random_tokens(200), s)
    )
    assert seen == {TRAINING, SCORING, LEARNING}


# ---- The ledger


def ledger_of(scored: int = 4, by_document: bool = False) -> Ledger:
    """Of 11 tokens, a BOS at 0, 5 and 8; of their 10 positions so many are recorded."""
    tokens = torch.tensor([1, 12, 13, 14, 15, 1, 17, 18, 1, 20, 21])
    ledger = Ledger(tokens, torch.arange(1, 11), by_document)
    ledger.record(torch.arange(scored), torch.ones(scored))
    return ledger


REFUSED = {  # positions that follow upon 0..3, by what is wrong with them
    "twice": [0, 1, 2, 3],
    "overlap": [3, 4],
    "one twice at once": [4, 4],
    "skip": [5],
    "skip within": [4, 6],
    "backwards": [9],
    "after the end": [4, 5, 6, 7, 8, 9, 10],
    "before the start": [-1],
}


@pytest.mark.parametrize("what", REFUSED)
def test_ledger_refuses_scores_out_of_order(what):
    """A document's first position is in order only by_document."""
    ledger = ledger_of()
    positions = torch.tensor(REFUSED[what])
    with pytest.raises((ValueError, IndexError)):
        ledger.record(positions, torch.ones(len(positions)))
    assert ledger.scored.tolist() == [1] * 4 + [0] * 6 and ledger.nats.sum() == 4


@pytest.mark.parametrize("positions", [[6], [9], [5, 7], [5, 6, 5], [8, 9, 4, 3]])
def test_a_document_begins_at_its_bos_only(positions):
    ledger = ledger_of(by_document=True)
    with pytest.raises(ValueError):
        ledger.record(torch.tensor(positions), torch.ones(len(positions)))
    assert ledger.scored.sum() == 4


def test_documents_are_recorded_in_any_order():
    ledger = ledger_of(0, by_document=True)
    for positions in ([8], [5, 6], [9, 0], [1, 2, 7], [3, 4]):
        ledger.record(torch.tensor(positions), torch.tensor(positions, dtype=torch.float32))
    assert ledger.scored.tolist() == [1] * 10 and ledger.nats.tolist() == list(range(10))
    with pytest.raises(ValueError):
        ledger.record(torch.tensor([8]), torch.ones(1))


@pytest.mark.parametrize("positions", [[4], [3, 4], [[0, 1], [2, 9]], [10], [-1]])
def test_ledger_hands_out_nothing_that_is_not_scored(positions):
    with pytest.raises((ValueError, IndexError)):
        ledger_of().scored_tokens(torch.tensor(positions))


def test_ledger_hands_out_what_is_scored():
    inputs, targets = ledger_of().scored_tokens(torch.tensor([[1, 2], [3, 3]]))
    assert inputs.tolist() == [[12, 13], [14, 14]] and targets.tolist() == [[13, 14], [15, 15]]


def test_what_the_ledger_says_of_a_target_teaches_nothing():
    logits = torch.zeros(2, 64, requires_grad=True)
    nats = ledger_of().nll(torch.tensor([4, 5]), logits)
    assert nats.tolist() == pytest.approx([math.log(64)] * 2) and not nats.requires_grad


def test_a_score_is_of_what_is_recorded():
    ledger = ledger_of()
    score = ledger.score(0.0)
    assert (score.val_loss, score.tokens, score.bytes) == (1, 4, 1 + 2 + 3 + 4)
    assert score.val_bpb == pytest.approx(4 / math.log(2) / 10)
    assert ledger.score(0.0, 3).bytes == 6


def test_the_log_has_the_scores_of_the_first_positions(lines):
    s = tiny_settings(EVAL_STRIDE=16)
    e = evaluator(random_tokens(5000), s)
    score, nats = score_and_nats(e, random_model(s), "name", 16)
    assert score.tokens == 4999 and len(lines) == 2
    for line, count in zip(lines, (2048, 4096), strict=True):
        name, scored, stated, size, bpb = line.split()
        total = nats[:count].astype("f8").sum()
        assert (name, scored, size) == ("name:", f"scored:{count}", f"bytes:{2 * count}")
        assert float(stated.removeprefix("nats:")) == pytest.approx(total, abs=1e-5)
        bits = total / math.log(2) / (2 * count)
        assert float(bpb.removeprefix("val_bpb:")) == pytest.approx(bits, abs=1e-7)


class LearnsFromWhatItScores(Evaluator):
    def window_nats(self, model, ledger, low, high, stride):
        ledger.scored_tokens(torch.arange(low, high))
        return super().window_nats(model, ledger, low, high, stride)


class LooksAhead(Evaluator):
    def window_nats(self, model, ledger, low, high, stride):
        ledger.scored_tokens(torch.arange(low + 1))
        return super().window_nats(model, ledger, low, high, stride)


class ScoresTwice(Evaluator):
    """And keeps the better one."""

    def window_nats(self, model, ledger, low, high, stride):
        nats = super().window_nats(model, ledger, low, high, stride)
        ledger.record(torch.arange(low, high), nats + 0.1)
        return nats


class LeavesOut(Evaluator):
    """The position that it finds hardest, in each chunk."""

    def window_nats(self, model, ledger, low, high, stride):
        nats = super().window_nats(model, ledger, low, high, stride)
        keep = torch.arange(high - low) != nats.argmax()
        ledger.record(torch.arange(low, high)[keep], nats[keep])
        return nats


class GoesBackwards(Evaluator):
    def window_nats(self, model, ledger, low, high, stride):
        count = len(ledger.nats)
        nats = super().window_nats(model, ledger, count - 16, count, 16)
        ledger.record(torch.arange(count - 16, count), nats)
        return nats


CHEATS = [LearnsFromWhatItScores, LooksAhead, ScoresTwice, LeavesOut, GoesBackwards]


@pytest.mark.parametrize("kind", CHEATS)
def test_an_evaluator_that_cheats_is_stopped(kind):
    s = tiny_settings()
    with pytest.raises(ValueError):
        evaluator(random_tokens(100), s, kind).score(random_model(s), "", 4)


# ---- Adaptation


class Spy:
    """A trainer that only looks."""

    def __init__(self):
        self.seen = []

    def learn(self, inputs, targets, done, epochs):
        self.seen.append((inputs.tolist(), targets.tolist(), done, epochs))


def test_trainer_gets_each_chunk_after_its_score_and_never_the_last():
    s = tiny_settings(TTT_CHUNK_TOKENS=32, TTT_EPOCHS=2)
    tokens = np.arange(110) % 60 + 4
    spy = Spy()
    evaluator(tokens, s).score(random_model(s), "test", 4, spy)
    assert spy.seen == [
        (tokens[low : low + 32].tolist(), tokens[low + 1 : low + 33].tolist(), done, 2)
        for low, done in ((0, 0), (32, 0.25), (64, 0.5))
    ]


def adapted_nats(tokens, s) -> tuple[np.ndarray, float]:
    """In float32, as in a run."""
    model = random_model(s)
    score, nats = score_and_nats(
        evaluator(tokens, s), model, "test", s.eval_stride, trainer_of(model, s)
    )
    return nats, score.val_bpb


def exactly_adapted(tokens, s) -> np.ndarray:
    with float64():
        model = exact_model(s)
        trainer = trainer_of(model, s)
        return score_and_nats(evaluator(tokens, s), model, "", s.eval_stride, trainer)[1]


def test_padding_changes_no_adapted_score():
    """The second batch of a chunk has two of three sequences, the last chunk 10 tokens."""
    sizes = dict(EVAL_BATCH_SEQS=7, TTT_CHUNK_TOKENS=80, TTT_BATCH_SEQS=3, TTT_LR=0.01)
    tokens = random_tokens(2 * 80 + 11)
    plain = exactly_adapted(tokens, tiny_settings(**sizes))
    padded = exactly_adapted(tokens, tiny_settings(COMPILE=1, **sizes))
    np.testing.assert_allclose(padded, plain, atol=1e-9)
    assert np.abs(plain - exactly_adapted(tokens, tiny_settings(TTT_LR=0))).max() > 0.01


def test_changing_a_token_changes_no_score_before_it():
    """Bit for bit in float32: the same sums in the same order."""
    s = tiny_settings(TTT_LR=0.01)
    tokens = random_tokens(120)
    before, _ = adapted_nats(tokens, s)
    for t in (3, 40, 70, len(tokens) - 1):
        changed = tokens.copy()
        changed[t] = (changed[t] + 7) % 60 + 4
        after, _ = adapted_nats(changed, s)
        assert (before[: t - 1] == after[: t - 1]).all() and before[t - 1] != after[t - 1]


def test_adaptation_lowers_bpb_on_a_repetitive_stream():
    tokens = np.tile(random_tokens(50), 12)
    s = tiny_settings(TTT_LR=0.1)
    fixed = evaluator(tokens, s).score(random_model(s), "fixed", 4).val_bpb
    assert adapted_nats(tokens, s)[1] < fixed - 0.05


# What an update does, by formulas.

FACTORS = {"attn.out": 3, "mlp.down": 3, "mlp.up": 0.5}  # of the rate, by the end of the name


def rate_factor(name: str) -> float:
    return next((factor for end, factor in FACTORS.items() if name.endswith(end)), 1)


class PlainTrainer:
    """SGD with momentum 0.9, or AdamW without decay, by their formulas."""

    def __init__(self, model, kind: str, rate: float, clip: float):
        self.model, self.kind, self.rate, self.clip = model, kind, rate, clip
        self.first = {name: 0.0 for name, _ in model.named_parameters()}
        self.second = dict(self.first)
        self.steps = 0
        self.norms = []

    def step(self, inputs, targets, scale: float) -> None:
        self.model.zero_grad()
        logits = self.model(inputs)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        self.norms.append(math.sqrt(sum(g.square().sum().item() for g in grads.values())))
        shrink = min(1.0, self.clip / (self.norms[-1] + 1e-6))
        self.steps += 1
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p -= self.rate * rate_factor(name) * scale * self.direction(name, shrink * p.grad)

    def direction(self, name: str, grad):
        if self.kind == "sgd":
            self.first[name] = 0.9 * self.first[name] + grad
            return self.first[name]
        self.first[name] = 0.9 * self.first[name] + 0.1 * grad
        self.second[name] = 0.999 * self.second[name] + 0.001 * grad**2
        mean = self.first[name] / (1 - 0.9**self.steps)
        return mean / ((self.second[name] / (1 - 0.999**self.steps)).sqrt() + 1e-8)


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize(
    ("kind", "protocol"), [("sgd", "score_first"), ("adamw", "train_then_score")]
)
def test_a_chunk_is_learned_by_the_formulas(kind, protocol, clip, monkeypatch):
    """Two epochs over 5 sequences in batches of 2, at half of the cosine."""
    monkeypatch.setattr(train_gpt, "TTT_GRAD_CLIP", clip)
    rate = {"sgd": 0.1 / min(1, clip), "adamw": 0.001}[kind]
    s = tiny_settings(TTT_PROTOCOL=protocol, TTT_LR=rate, TTT_BATCH_SEQS=2)
    tokens = torch.from_numpy(random_tokens(5 * 16 + 8).astype(np.int64))
    with float64():
        model = exact_model(s)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        plain = PlainTrainer(copy.deepcopy(model), kind, rate, clip)
        trainer_of(model, s).learn(tokens[:-1], tokens[1:], 0.5, 2)
        for first in [0, 2, 4] * 2:
            low, high = 16 * first, 16 * min(first + 2, 5)
            inputs, targets = (tokens[low + at : high + at].view(-1, 16) for at in (0, 1))
            plain.step(inputs, targets, 0.5)

    assert (min(plain.norms) > clip) == (clip < 1)
    expected = dict(plain.model.named_parameters())
    for name, p in model.named_parameters():
        # AdamW divides by a gradient's size plus 1e-8: errors of about 1e-15 in it grow 1e8-fold,
        # times the rate.
        assert (p - expected[name]).abs().max() < 1e-9, name
        if name != "bigram.table":  # of which no row of a pair that does not occur moves
            assert (p - before[name]).abs().max() > 1e-5, name


def test_rates_fall_as_a_cosine():
    s = tiny_settings(TTT_LR=0.002)
    model = random_model(s)
    trainer = trainer_of(model, s)
    names = {p: name for name, p in model.named_parameters()}
    for done, scale in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25)):
        trainer.learn(torch.arange(16), torch.arange(16), done, epochs=0)  # only sets the rates
        groups = trainer.optimizer.param_groups
        rates = {names[p]: group["lr"] for group in groups for p in group["params"]}
        assert rates.keys() == set(names.values())
        for name, rate in rates.items():
            assert rate == pytest.approx(0.002 * rate_factor(name) * scale), name


def config_of(s) -> dict:
    """What an artifact of these settings states."""
    return dataclasses.asdict(s) | dict(
        unet_skips=s.skips != "off",
        skip_gates=s.skips == "gated",
        logit_softcap=30.0,
        ttt_optimizer="adamw" if s.ttt_protocol == "train_then_score" else "sgd",
        ttt_grad_clip=1.0,
    )


class Entered(verify.Pass):
    """A pass that keeps each position's nats."""

    def enter(self, losses):
        self.each = [*getattr(self, "each", []), *losses]
        super().enter(losses)


def nats_of_verify(tokens, s, name: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Nats by verify.py, which shares no code with train_gpt.py, and the chunks learned from."""
    learned = []
    with float64():
        weights = {name: w.numpy() for name, w in exact_model(s).state_dict().items()}
        config = config_of(s)
        network = verify.Model(config, weights, "cpu")
        split = verify.Split(tokens, len, "data", len(tokens))
        options = verify.Options("artifact.pcll")
        run = Entered(name, s.eval_stride, dtype=torch.float64)
        if name == ADAPTED:
            learn = verify.learner(network, split, config, options)
            run.learn = lambda *chunk: learned.append(chunk[1:]) or learn(*chunk)
        verify.score(network, split, config, options, run)
    return np.array(run.each), learned


STRIDES = [(4, 48), (7, 48), (11, 32), (15, 32), (16, 32), (1, 32), (5, 16)]  # and chunks


@pytest.mark.parametrize(("stride", "chunk"), STRIDES)
def test_scores_are_those_of_verify(stride, chunk):
    """Before and after adaptation; strides need not divide a window or a chunk.

    By 5 of 16, the second chunk has 15 positions, a sequence less one, and so teaches nothing.
    """
    s = tiny_settings(
        EVAL_STRIDE=stride, TTT_CHUNK_TOKENS=chunk, TTT_LR=0.05, TTT_BATCH_SEQS=2, TTT_EPOCHS=2
    )
    tokens = random_tokens(3 * chunk + 17)
    expected, _ = nats_of_verify(tokens, s, SLIDING)
    with float64():
        fixed = score_and_nats(evaluator(tokens, s), exact_model(s), "", stride)[1]
    np.testing.assert_allclose(fixed, expected, atol=1e-9)

    adapted, edges = nats_of_verify(tokens, s, ADAPTED)
    np.testing.assert_allclose(exactly_adapted(tokens, s), adapted, atol=1e-9)
    assert np.abs(adapted - expected).max() > 0.01
    spy = Spy()
    evaluator(tokens, s).score(random_model(s), "", stride, spy)
    stops = list(itertools.accumulate(len(inputs) for inputs, *_ in spy.seen))
    assert edges == list(itertools.pairwise([0, *stops]))


@pytest.mark.parametrize(("world", "batch"), [(2, 4), (3, 4), (2, 1), (4, 3)])
def test_ranks_adapt_as_one(world, batch):
    """Also where a rank gets no sequence of a batch."""
    s = tiny_settings(TTT_LR=0.05, TTT_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=80, EVAL_BATCH_SEQS=2)
    tokens = random_tokens(200)
    with float64():
        fixed = exact_model(s)

        def score() -> Score:
            model = copy.deepcopy(fixed)
            return evaluator(tokens, s).score(model, "", 4, trainer_of(model, s))

        expected = score()
        for found in on_ranks(world, score):
            assert found.val_loss == pytest.approx(expected.val_loss, abs=1e-9)
            assert found.tokens == expected.tokens


@pytest.mark.parametrize("adapts", [False, True])
def test_work_grows_with_the_stream_and_memory_does_not(adapts):
    """Counted in tokens through the model: in proportion to the stream, a batch at a time."""
    sizes = dict(EVAL_BATCH_SEQS=5, TTT_BATCH_SEQS=5, MICRO_BATCH_SEQS=5)
    s = tiny_settings(TTT_CHUNK_TOKENS=64, TTT_EPOCHS=1, **sizes)
    work = {}
    for length in (400, 800, 1600):
        model, sizes = random_model(s), []
        model.register_forward_hook(
            lambda _, args, result, sizes=sizes: sizes.append((args[0].numel(), len(result)))
        )
        e = evaluator(random_tokens(length), s)
        e.score(model, "", 4, trainer_of(model, s) if adapts else None)
        work[length] = sum(tokens for tokens, _ in sizes)
        assert max(sequences for _, sequences in sizes) <= 5
    assert work[800] - work[400] <= 1.05 * 400 * (16 / 4 + adapts)
    assert work[1600] - work[800] <= 1.05 * 800 * (16 / 4 + adapts)


# ---- All scores of an artifact


class Lines(list):
    """A log that keeps its lines."""

    def __call__(self, line, console=True):
        self.append(line)

    def progress(self, what, done, began):
        assert 0 < done <= 1


@pytest.fixture
def lines(monkeypatch) -> Lines:
    log = Lines()
    monkeypatch.setattr(train_gpt, "log", log)
    return log


def evaluate(s, tokens=None, exported: int = 1) -> dict[str, Score]:
    """All scores of an artifact with the weights of one model, by a state with another's."""
    state = train_gpt.TrainState(random_model(s), s)
    weights = random_model(s, exported).state_dict().items()
    tensors = {name: train_gpt.FloatTensor(w.shape, w.numpy()) for name, w in weights}
    artifact = train_gpt.encode_pcll({}, tensors)
    tokens = random_tokens(8 * 16 + 1) if tokens is None else tokens
    return train_gpt.evaluate(state, artifact, evaluator(tokens, s))


def labels(lines: list[str]) -> list[str]:
    return [line.split()[0].partition(":")[0] for line in lines]


@pytest.mark.parametrize(
    ("protocol", "line", "names"),
    [
        ("off", "final_pcll_sliding_exact", [SLIDING, PLAIN]),
        ("score_first", "final_pcll_ttt_exact", [ADAPTED, PLAIN, SLIDING]),
        ("train_then_score", "final_pcll_sliding_exact", [SLIDING, PLAIN, NOT_LEGAL]),
        ("per_document", "final_pcll_ttt_exact", [train_gpt.PER_DOCUMENT, PLAIN, SLIDING]),
    ],
)
def test_the_headline_is_made_first_and_timed_alone(protocol, line, names, lines, monkeypatch):
    """A second goes by in each pass, by a clock that nothing else moves on."""
    clock = [1000.0]
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: clock[0])
    close = Ledger.close

    def closed(ledger, name, began):
        clock[0] += 1
        lines.append(f"pass {name}")
        return close(ledger, name, began)

    monkeypatch.setattr(Ledger, "close", closed)
    scores = evaluate(tiny_settings(TTT_PROTOCOL=protocol, TTT_EPOCHS=1, DOCUMENT_TOKENS=8))
    assert list(scores) == names
    assert [line for line in lines if line.startswith("pass")] == [f"pass {n}" for n in names]
    headline = scores[names[0]]
    assert lines[:3] == [f"pass {names[0]}", f"{line} {headline}", "eval_total_time:1000ms"]
    assert labels(lines).count(line) == labels(lines).count("eval_total_time") == 1
    assert math.isfinite(headline.val_bpb)


@pytest.mark.parametrize("protocol", ["off", "score_first"])
def test_the_artifacts_weights_are_scored(protocol):
    """And not those that the model has until then."""
    s = tiny_settings(TTT_PROTOCOL=protocol, TTT_LR=0)
    headline, *_ = evaluate(s).values()
    expected = evaluator(random_tokens(8 * 16 + 1), s).score(random_model(s, 1), "", 4).val_loss
    assert headline.val_loss == expected


def test_the_fixed_weights_are_back_for_the_diagnostics():
    scores = evaluate(tiny_settings(TTT_LR=0.02))
    alone = evaluate(tiny_settings(TTT_PROTOCOL="off"))
    assert scores[SLIDING].val_loss == alone[SLIDING].val_loss != scores[ADAPTED].val_loss
    assert scores[PLAIN].val_loss == alone[PLAIN].val_loss


@pytest.mark.parametrize(
    "changes", [dict(TTT_LR=1e18), dict(TTT_PROTOCOL="per_document", DOCUMENT_LR=1e18)]
)
def test_after_an_adaptation_that_diverges_the_sliding_window_is_the_headline(changes, lines):
    scores = evaluate(tiny_settings(DOCUMENT_TOKENS=4, DOCUMENT_RANK=4, **changes))
    assert list(scores) == [SLIDING, PLAIN]
    assert scores[SLIDING].val_loss == evaluate(tiny_settings(TTT_PROTOCOL="off"))[SLIDING].val_loss
    assert labels(lines)[:2] == ["final_pcll_sliding_exact", "eval_total_time"]
    assert "final_pcll_ttt_exact" not in labels(lines)


def test_the_illegal_protocol_does_let_the_future_change_the_past():
    s = tiny_settings(TTT_PROTOCOL="train_then_score", TTT_LR=0.01)
    tokens = random_tokens(6 * 16 + 1)
    scores = []
    for last in (9, 10):
        tokens[-1] = last
        with recorded() as ledgers:
            evaluate(s, tokens)
        scores.append(ledgers[-1].nats[:20])
    assert not torch.equal(*scores)


def test_the_illegal_protocol_passes_over_everything_with_a_cosine(lines, monkeypatch):
    calls = []

    def learn(self, inputs, targets, done: float, epochs: int) -> None:
        calls.append((inputs, targets, done, epochs))

    monkeypatch.setattr(train_gpt.TestTimeTrainer, "learn", learn)
    tokens = random_tokens(100)
    evaluate(tiny_settings(TTT_PROTOCOL="train_then_score", TTT_EPOCHS=10), tokens)
    assert [call[2:] for call in calls] == [(epoch / 10, 1) for epoch in range(10)]
    for inputs, targets, *_ in calls:
        assert inputs.tolist() == tokens[:-1].tolist() and targets.tolist() == tokens[1:].tolist()
    told = [line for line in lines if line.startswith(f"{NOT_LEGAL}: epoch")]
    assert told == [f"{NOT_LEGAL}: epoch {epoch} of 10" for epoch in range(1, 11)]
    assert lines[-1].startswith(f"{NOT_LEGAL} train_then_score val_loss:")
