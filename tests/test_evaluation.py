"""Evaluation: each token once, by what stood before it; learning only from what is scored."""

import copy
import math

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
    Evaluator,
    Learner,
    Ledger,
    Ranks,
    Score,
    flat,
    has_time,
    load_settings,
    score_artifact,
    sliding_windows,
)

CPU = torch.device("cpu")


class Lines(list):
    """A log that keeps its lines and tells of no progress."""

    def __call__(self, line, console=True):
        self.append(line)

    def progress_is_due(self):
        return False


def evaluator(tokens, s, ranks=None) -> Evaluator:
    """An Evaluator on given tokens, each of which counts two bytes."""
    tokens = np.asarray(tokens, dtype=np.uint16)
    two_each = np.full(len(tokens) - 1, 2)
    return Evaluator(tokens, two_each, s, ranks or Ranks(0, 1, CPU), Lines())


def record_nats(e: Evaluator) -> list[torch.Tensor]:
    """The nats of each chunk that the evaluator will score."""
    recorded, chunk_nats = [], e.chunk_nats

    def recording(*args):
        recorded.append(chunk_nats(*args))
        return recorded[-1]

    e.chunk_nats = recording
    return recorded


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    """Ids of the tiny vocabulary, a BOS now and then."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 64, count)
    return np.where(rng.random(count) < 0.1, BOS_ID, tokens).astype(np.uint16)


# ---- Windows


@given(count=st.integers(1, 150), length=st.integers(1, 20), data=st.data())
def test_every_position_is_scored_once_with_the_longest_context(count, length, data):
    stride = data.draw(st.integers(1, length))
    windows = sliding_windows(count, length, stride)
    assert windows.dtype == np.int64 and windows.shape[1:] == (3,)
    scored = [position for _, first, stop in windows for position in range(first, stop)]
    assert scored == list(range(count))
    for start, first, stop in windows:
        assert 0 <= start <= first < stop and stop - first <= stride
        assert stop - start == min(stop, length)  # as much as fits, or all from the stream's start


def test_windows_as_numbers():
    """Length 8, stride 3: one window ends where the first is full."""
    assert sliding_windows(12, 8, 3).tolist() == [
        [0, 0, 2],
        [0, 2, 5],
        [0, 5, 8],
        [3, 8, 11],
        [4, 11, 12],
    ]
    assert sliding_windows(10, 4, 4).tolist() == [[0, 0, 4], [4, 4, 8], [6, 8, 10]]
    assert sliding_windows(1, 4, 4).tolist() == [[0, 0, 1]]


def test_context_of_the_system():
    """A window of 2,048 and a stride of 32: 2,016 tokens at least before each that is scored."""
    e = load_settings({}).evaluation
    windows = sliding_windows(10_000, 2048, e.eval_stride)
    full = windows[windows[:, 0] > 0]
    assert len(full) == 249 and (full[:-1, 1] - full[:-1, 0] == 2016).all()
    assert (full[:-1, 2] - full[:-1, 1] == 32).all()


# ---- Scores


def naive_nats(model, tokens, windows) -> np.ndarray:
    """One position at a time, nothing in the input behind it."""
    nats, ids = [], torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        for start, first, stop in windows.tolist():
            for position in range(first, stop):
                logits = model(ids[None, start : position + 1])[0, -1].double()
                nats.append(-torch.log_softmax(logits, dim=0)[ids[position + 1]].item())
    return np.array(nats)


@pytest.mark.parametrize("compiled", [0, 1])
@pytest.mark.parametrize(
    ("count", "stride", "batch"), [(9, 4, 3), (90, 16, 64), (75, 5, 1), (33, 1, 7), (2, 2, 2)]
)
def test_scores_equal_a_naive_loop(compiled, count, stride, batch):
    """With COMPILE=1 every batch is padded to one shape; here the model itself is not compiled."""
    s = tiny_settings(EVAL_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=16, COMPILE=compiled)
    tokens, model = random_tokens(count + 1), random_model(s)
    windows = sliding_windows(count, 16, stride)
    if stride == 16:  # the plain score: windows follow one another
        windows[:, 0] = windows[:, 1]
    expected = naive_nats(model, tokens, windows)
    e = evaluator(tokens, s)
    nats = record_nats(e)
    score = e.score(model, "test", stride)
    np.testing.assert_allclose(torch.cat(nats), expected, atol=1e-5)
    assert score.tokens == count and score.bytes == 2 * count
    assert score.val_loss == pytest.approx(expected.mean(), abs=1e-6)
    assert score.val_bpb == pytest.approx(expected.sum() / math.log(2) / (2 * count), abs=1e-6)


def test_a_score_is_written_with_all_that_it_was_counted_over():
    assert str(Score(1.5, 0.75, 100, 250, 1.2345)) == (
        "val_loss:1.50000000 val_bpb:0.75000000 val_tokens:100 bytes:250 eval_time:1234ms"
    )


class Part(Ranks):
    """One of several ranks, whose sums are added up by the test."""

    def sum_(self, tensor):
        return tensor


@settings(max_examples=20, deadline=None)
@given(
    world=st.integers(1, 5),
    batch=st.integers(1, 9),
    chunk=st.sampled_from([16, 32, 64]),
    stride=st.sampled_from([4, 16]),
    compiled=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_ranks_batches_or_chunks(
    world, batch, chunk, stride, compiled, seed
):
    tokens = random_tokens(80 + seed, seed)
    s = tiny_settings(EVAL_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=chunk, COMPILE=compiled)
    model = random_model(s)
    whole = evaluator(tokens, tiny_settings(EVAL_BATCH_SEQS=100)).score(model, "whole", stride)
    losses = []
    for rank in range(world):
        part = evaluator(tokens, s, Part(rank, world, CPU))
        losses.append(part.score(model, "part", stride).val_loss)
    assert sum(losses) == pytest.approx(whole.val_loss, abs=1e-5)


class Shapes:
    """The shapes that go through a model."""

    def __init__(self, model):
        self.seen = set()
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        tensors = [*args, *kwargs.values()]
        self.seen.add(tuple(tuple(x.shape) for x in tensors))


@pytest.mark.parametrize("count", [50, 64, 131])
def test_compiled_each_pass_has_one_shape(count):
    s = tiny_settings(COMPILE=1, EVAL_BATCH_SEQS=5, TTT_CHUNK_TOKENS=48, TTT_BATCH_SEQS=2)
    model = random_model(s)
    e = evaluator(random_tokens(count + 1), s)
    shapes = Shapes(model)
    e.score(model, "sliding", 4)
    assert shapes.seen == {((5, 16), (5, 4))}
    shapes.seen.clear()
    e.score(model, "plain", 16)
    assert shapes.seen == {((4, 16), (4, 16))}  # that of a training step
    shapes.seen.clear()
    e.score(model, "adapted", 4, Learner(model, s, e.ranks))
    assert shapes.seen == {((5, 16), (5, 4)), ((2, 16), (2, 16))}


def test_the_warm_up_has_the_shapes_of_what_follows():
    s = tiny_settings(COMPILE=1, EVAL_BATCH_SEQS=5, TTT_BATCH_SEQS=3)
    model, tokens = random_model(s), random_tokens(200)
    e = evaluator(tokens, s)
    shapes = Shapes(model)
    e.warm_up(model)
    assert shapes.seen == {((5, 16), (5, 4)), ((3, 16), (3, 16))}


# ---- The ledger-


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(torch.arange(11), np.arange(1, 11))
    ledger.enter(0, torch.ones(4))
    return ledger


@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 4), (3, 2), (5, 1), (4, 7), (-1, 1), (4, 0), (10, 1)],
    ids=["twice", "overlap", "skip", "past the end", "before the start", "nothing", "after"],
)
def test_ledger_refuses_scores_out_of_order(ledger, start, count):
    with pytest.raises(ValueError):
        ledger.enter(start, torch.ones(count))
    assert ledger.scored == 4 and ledger.nats.sum() == 4


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (4, 6), (3, 11), (-1, 2), (2, 2), (3, 1)])
def test_ledger_hands_out_nothing_that_is_not_scored(ledger, start, stop):
    with pytest.raises(ValueError):
        ledger.learnable(start, stop)


def test_ledger_hands_out_what_is_scored(ledger):
    assert ledger.learnable(1, 4).tolist() == [1, 2, 3, 4]
    ledger.enter(4, torch.ones(6))
    assert ledger.learnable(0, 10).tolist() == list(range(11))


# ---- Adaptation


class Spy:
    """A learner that only looks."""

    def __init__(self):
        self.seen = []

    def learn(self, tokens, done):
        self.seen.append((tokens.tolist(), done))


def test_learner_gets_each_chunk_after_its_score_and_never_the_last():
    s = tiny_settings(TTT_CHUNK_TOKENS=32)
    tokens = np.arange(110, dtype=np.uint16) % 60 + 4
    spy = Spy()
    evaluator(tokens, s).score(random_model(s), "test", 4, spy)
    assert [done for _, done in spy.seen] == [0, 0.25, 0.5]
    chunks = [tokens[low : low + 33].tolist() for low in (0, 32, 64)]
    assert [seen for seen, _ in spy.seen] == chunks


def adapted_nats(tokens, s, seed=0) -> tuple[np.ndarray, float]:
    model = random_model(s, seed)
    e = evaluator(tokens, s)
    nats = record_nats(e)
    learner = Learner(model, s, e.ranks)
    score = e.score(model, "test", s.evaluation.eval_stride, learner)
    return torch.cat(nats).numpy(), score.val_bpb


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_padding_changes_no_adapted_score(optimizer):
    """The second batch of a chunk has two of three sequences, the last chunk 10 tokens."""
    sizes = dict(EVAL_BATCH_SEQS=7, TTT_CHUNK_TOKENS=80, TTT_BATCH_SEQS=3)
    rate = dict(TTT_OPTIMIZER=optimizer, TTT_LR=0.01, TTT_GRAD_CLIP=1e9)
    tokens = random_tokens(2 * 80 + 11)
    plain, padded = (
        adapted_nats(tokens, tiny_settings(COMPILE=compiled, **sizes, **rate))[0]
        for compiled in (0, 1)
    )
    np.testing.assert_allclose(padded, plain, atol=1e-5)
    assert np.abs(plain - adapted_nats(tokens, tiny_settings(TTT_LR=0))[0]).max() > 0.01


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_changing_a_token_changes_no_score_before_it(optimizer):
    s = tiny_settings(TTT_OPTIMIZER=optimizer, TTT_LR=0.01)
    tokens = random_tokens(120)
    before, _ = adapted_nats(tokens, s)
    for t in (3, 40, 70, len(tokens) - 1):
        changed = tokens.copy()
        changed[t] = (changed[t] + 7) % 60 + 4
        after, _ = adapted_nats(changed, s)
        assert (before[: t - 1] == after[: t - 1]).all() and before[t - 1] != after[t - 1]


def test_the_illegal_protocol_does_let_the_future_change_the_past():
    s = tiny_settings(TTT_PROTOCOL="train_then_score", TTT_LR=0.01)
    tokens = random_tokens(6 * 16 + 1)
    scores = []
    for last in (9, 10):
        tokens[-1] = last
        e = evaluator(tokens, s)
        nats = record_nats(e)
        e.train_then_score(random_model(s))
        scores.append(torch.cat(nats)[:20])
    assert not torch.equal(*scores)


def test_the_illegal_protocol_passes_over_everything_with_a_cosine(monkeypatch):
    calls = []
    learn = lambda self, tokens, done: calls.append((len(tokens), done, self.epochs))  # noqa: E731
    monkeypatch.setattr(Learner, "learn", learn)
    s = tiny_settings(TTT_PROTOCOL="train_then_score", TTT_EPOCHS=10)
    e = evaluator(random_tokens(100), s)
    e.train_then_score(random_model(s))
    assert calls == [(100, epoch / 10, 1) for epoch in range(10)]
    label = "NOT LEGAL (trained on the tokens it scores): epoch"
    assert e.log == [f"{label} {epoch} of 10" for epoch in range(1, 11)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adaptation_lowers_bpb_on_a_repetitive_stream(optimizer):
    tokens = np.tile(random_tokens(50), 12)
    rate = dict(adamw=0.003, sgd=0.1)[optimizer]
    s = tiny_settings(TTT_OPTIMIZER=optimizer, TTT_LR=rate)
    fixed = evaluator(tokens, s).score(random_model(s), "fixed", 4).val_bpb
    assert adapted_nats(tokens, s)[1] < fixed - 0.05
    assert adapted_nats(tokens, tiny_settings(TTT_LR=0))[1] == pytest.approx(fixed, abs=1e-6)


# What an update does, by formulas.

FACTORS = {"attn.out": 3, "mlp.down": 3, "mlp.up": 0.5}  # of the rate, by the end of the name


def rate_factor(name: str) -> float:
    return next((factor for end, factor in FACTORS.items() if name.endswith(end)), 1)


class PlainLearner:
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
        shrink = min(1.0, self.clip / self.norms[-1])
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


def assert_same_weights(model, expected, before, tolerance: float) -> None:
    """Of both models; each weight matrix or vector has moved from `before` by more."""
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        difference = (p - q).abs().max().item()
        assert difference < tolerance, f"{name}: {difference:.2g}"
        if name != "bigram.table":  # of which no row of a pair that does not occur moves
            assert (p - before[name]).abs().max() > tolerance, name


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_chunk_is_learned_by_the_formulas(kind, clip, one_rank):
    """Two epochs over 5 sequences in batches of 2, at half of the cosine."""
    rate = {"sgd": 0.1 / min(1, clip), "adamw": 0.001}[kind]
    s = tiny_settings(
        TTT_OPTIMIZER=kind, TTT_LR=rate, TTT_GRAD_CLIP=clip, TTT_EPOCHS=2, TTT_BATCH_SEQS=2
    )
    model = random_model(s)
    expected = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.from_numpy(random_tokens(5 * 16 + 8).astype(np.int64))
    Learner(model, s, one_rank).learn(tokens, 0.5)

    plain = PlainLearner(expected, kind, rate, clip)
    for first in [0, 2, 4] * 2:
        count = min(2, 5 - first)
        low, high = 16 * first, 16 * (first + count)
        inputs = tokens[low:high].view(count, 16)
        plain.step(inputs, tokens[low + 1 : high + 1].view(count, 16), 0.5)
    assert (min(plain.norms) > clip) == (clip < 1)
    assert_same_weights(model, expected, before, 2e-5 if kind == "sgd" else 5e-6)


def test_a_chunk_shorter_than_a_sequence_teaches_nothing():
    """A stride of 5 leaves 15 of 16 tokens to the second chunk."""
    s = tiny_settings(TTT_CHUNK_TOKENS=16, EVAL_STRIDE=5)
    model = random_model(s)
    e = evaluator(random_tokens(60), s)
    nats = record_nats(e)
    score = e.score(model, "test", 5, Learner(model, s, e.ranks))
    assert 15 in map(len, nats) and score.tokens == 59


def test_rates_fall_as_a_cosine(one_rank):
    s = tiny_settings(TTT_LR=0.002)
    model = random_model(s)
    learner = Learner(model, s, one_rank)
    names = {p: name for name, p in model.named_parameters()}
    for done, scale in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25)):
        learner.learn(torch.arange(5), done)  # too short to learn from: only sets the rates
        rates = {
            names[p]: group["lr"]
            for group in learner.optimizer.param_groups
            for p in group["params"]
        }
        assert rates.keys() == set(names.values())
        for name, rate in rates.items():
            assert rate == pytest.approx(0.002 * rate_factor(name) * scale), name


def theirs(network, tokens: np.ndarray, config: dict):
    """The adaptation of verify.py, which shares no code with ours: learn(chunk, begin, end)."""
    split = verify.Split(tokens, len, "data", len(tokens))
    return verify.learner(network, split, config, verify.Options("artifact.pcll"))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_two_chunks_are_learned_as_verify_learns_them(kind, one_rank):
    """Of three chunks; each has five sequences, in batches of two."""
    rate = {"sgd": 0.05, "adamw": 0.0005}[kind]
    s = tiny_settings(
        TTT_OPTIMIZER=kind, TTT_LR=rate, TTT_CHUNK_TOKENS=80, TTT_BATCH_SEQS=2, TTT_EPOCHS=3
    )
    model, tokens = random_model(s), random_tokens(3 * 80 + 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {name: p.detach().numpy().copy() for name, p in model.state_dict().items()}
    config = flat(s.model, s.training, s.export, s.evaluation)
    network = verify.Model(config, weights, "cpu")
    learn = theirs(network, tokens, config)

    learner, ids = Learner(model, s, one_rank), torch.from_numpy(tokens.astype(np.int64))
    for chunk in (0, 1):
        low, high = 80 * chunk, 80 * (chunk + 1)
        learner.learn(ids[low : high + 1], chunk / 3)
        learn(chunk, low, high)
    for name, p in model.named_parameters():
        assert (p - network.params[name]).abs().max() < 1e-5, name
        assert (p - before[name]).abs().max() > 5e-5, name


class Doubled(Ranks):
    """A rank beside others that have the very same gradients."""

    def sum_(self, tensor):
        return tensor.mul_(self.world)


def test_the_ranks_share_a_step():
    """Two ranks with equal halves of a batch learn what one learns from both."""
    s = tiny_settings(TTT_LR=0.1, TTT_BATCH_SEQS=4)
    half = torch.from_numpy(random_tokens(2 * 16).astype(np.int64)).view(2, 16)
    twice = torch.cat((half, half))
    models = []
    for ranks in (Ranks(0, 1, CPU), Doubled(0, 2, CPU), Doubled(1, 2, CPU)):
        model = random_model(s)
        learner = Learner(model, s, ranks)
        train_gpt.set_rates([learner.optimizer], 1.0)
        learner.step(twice, twice.roll(-1, dims=1))
        models.append(model)
    for other in models[1:]:
        for p, q in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapts", [False, True])
def test_work_grows_with_the_stream_and_memory_does_not(adapts):
    """Counted in tokens through the model: in proportion to the stream, a batch at a time."""
    s = tiny_settings(EVAL_BATCH_SEQS=5, TTT_CHUNK_TOKENS=64, TTT_EPOCHS=1, TTT_BATCH_SEQS=5)
    work = {}
    for length in (400, 800, 1600):
        model, sizes = random_model(s), []
        model.register_forward_hook(
            lambda _, args, result, sizes=sizes: sizes.append((args[0].numel(), len(result)))
        )
        e = evaluator(random_tokens(length), s)
        e.score(model, "", 4, Learner(model, s, e.ranks) if adapts else None)
        work[length] = sum(tokens for tokens, _ in sizes)
        assert max(sequences for _, sequences in sizes) <= 5
    assert work[800] - work[400] <= 1.05 * 400 * (16 / 4 + adapts)
    assert work[1600] - work[800] <= 1.05 * 800 * (16 / 4 + adapts)


# ---- All scores of an artifact


@pytest.fixture
def scored(monkeypatch):
    """Scores a made-up artifact: scored(EVAL_SECONDS=...) -> (headline, scores, lines of the log).

    Each pass takes a second by a clock that nothing else moves on.
    """
    clock = [1000.0]
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: clock[0])
    model = random_model(tiny_settings())
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    monkeypatch.setattr(
        train_gpt, "load_artifact", lambda model, artifact: model.load_state_dict(weights)
    )
    windows = []  # of each call of chunk_nats

    def chunk_nats(self, model, ledger, chunk, stride):
        windows.append(len(chunk))
        clock[0] += len(chunk) / 32
        return plain_chunk_nats(self, model, ledger, chunk, stride)

    plain_chunk_nats = Evaluator.chunk_nats
    monkeypatch.setattr(Evaluator, "chunk_nats", chunk_nats)

    def score(**changes):
        s = tiny_settings(TTT_LR=0.02, **changes)
        e = evaluator(random_tokens(8 * 16 + 1), s)  # 32 windows at the stride of 4: a second
        scores = {train_gpt.BEFORE: Score(0, 0, 0, 0, 2.5)}
        headline = score_artifact(model, b"", e, scores, e.log)
        return headline, scores, list(e.log)

    return score


SLIDING, ADAPTED = "after export, sliding window", "after score-first adaptation, sliding window"
PLAIN = "after export, plain"


def labels(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_the_headline_is_made_first(scored):
    headline, scores, lines = scored()
    assert headline == ADAPTED
    assert list(scores)[1:] == [ADAPTED, PLAIN, SLIDING]
    seconds = 2.5 + 1 + 8 / 32 + 3 / 32 + 1  # before, adapted, plain, a guess, sliding
    assert lines[-1] == f"eval_total_time:{1000 * seconds:.0f}ms"
    assert labels(lines)[:2] == ["final_pcll_ttt_exact", "final_pcll_sliding_exact"]
    assert len(lines) == 3


@pytest.mark.parametrize("protocol", ["off", "score_first"])
def test_the_artifacts_weights_are_scored(protocol):
    """And not those that the model has until then."""
    s = tiny_settings(TTT_PROTOCOL=protocol, TTT_LR=0)
    exported = random_model(s, seed=1)
    state = exported.state_dict().items()
    tensors = {name: train_gpt.code_floats(w.numpy(), "float32") for name, w in state}
    artifact = train_gpt.encode_pcll({}, tensors, 8)

    e = evaluator(random_tokens(60), s)
    scores = {train_gpt.BEFORE: Score(0, 0, 0, 0, 0)}
    headline = score_artifact(random_model(s), artifact, e, scores, e.log)
    expected = e.score(exported, "", 4).val_loss
    assert scores[headline].val_loss == pytest.approx(expected, abs=1e-6)


def test_the_fixed_weights_are_back_for_the_sliding_window(scored):
    _, scores, _ = scored()
    _, alone, _ = scored(TTT_PROTOCOL="off")
    assert scores[SLIDING].val_loss == alone[SLIDING].val_loss != scores[ADAPTED].val_loss
    assert scores[PLAIN].val_loss == alone[PLAIN].val_loss


def test_the_total_is_no_less_than_its_parts(scored):
    for changes in ({}, {"TTT_PROTOCOL": "off"}, {"TTT_PROTOCOL": "train_then_score"}):
        _, scores, lines = scored(**changes)
        total = int(lines[-1].removeprefix("eval_total_time:").removesuffix("ms"))
        assert total >= 1000 * sum(score.seconds for score in scores.values()) - 1


@pytest.mark.parametrize(
    ("seconds", "made"), [("4.7", False), ("4.8", True), ("0", True), ("0.001", False)]
)
def test_what_would_end_too_late_is_left_out(scored, seconds, made):
    """2.5 s before export, 1 adapted, 0.25 plain; 1 more is needed."""
    headline, scores, lines = scored(EVAL_SECONDS=seconds)
    assert headline == ADAPTED and (SLIDING in scores) == made and ADAPTED in scores
    sentence = (
        "The sliding window with fixed weights was left out: 1 s more after 4 s of evaluation "
        f"would have been over EVAL_SECONDS={seconds}."
    )
    assert (sentence in lines) != made
    assert ("final_pcll_sliding_exact" in labels(lines)) == made


def test_the_headline_itself_is_never_left_out(scored):
    headline, scores, lines = scored(EVAL_SECONDS="0.001", TTT_PROTOCOL="off")
    assert headline == SLIDING and SLIDING in scores
    assert labels(lines)[0] == "final_pcll_sliding_exact"


def test_what_is_not_legal_comes_last_and_is_no_headline(scored):
    headline, scores, lines = scored(TTT_PROTOCOL="train_then_score", TTT_EPOCHS=1)
    assert headline == SLIDING and list(scores)[-1].startswith("NOT LEGAL")
    assert "final_pcll_ttt_exact" not in labels(lines)
    assert lines[-2].startswith("NOT LEGAL (trained on the tokens it scores) train_then_score val_")


def test_all_ranks_decide_by_the_first_ones_clock(monkeypatch):
    """Rank 1 finds no time left; rank 0 has enough."""
    s = tiny_settings(EVAL_SECONDS="10")
    e = evaluator(random_tokens(50), s)
    monkeypatch.setattr(e, "estimate", lambda model: 100.0)
    monkeypatch.setattr(Ranks, "from_first", lambda self, *values: [4.0, 5.0])
    assert has_time(e, None, 99.0, e.log) and not e.log
