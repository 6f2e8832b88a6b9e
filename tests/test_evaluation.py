"""Evaluation: each token once, by what stood before it, with the longest context; learning only from what is scored."""

import math

import numpy as np
import pytest
import torch
from conftest import random_model, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from train_gpt import BOS_ID, Evaluator, Learner, Ledger, Ranks, sliding_windows

CPU = torch.device("cpu")


class Quiet:
    def progress(self, *args):
        pass


def evaluator(tokens, s, ranks=None) -> Evaluator:
    """An Evaluator on given tokens, each of which counts two bytes."""
    e = Evaluator.__new__(Evaluator)
    e.s, e.ranks, e.log = s, ranks or Ranks(0, 1, CPU), Quiet()
    e.host_tokens = np.asarray(tokens, dtype=np.uint16)
    e.bytes_before = 2 * np.arange(len(tokens))
    e.tokens = torch.from_numpy(e.host_tokens.astype(np.int64))
    return e


def record_nats(e: Evaluator) -> list[torch.Tensor]:
    """The nats of each chunk that the evaluator will score."""
    recorded, nats = [], e.nats
    e.nats = lambda *args: recorded.append(nats(*args)) or recorded[-1]
    return recorded


def documents(rng, count: int, longest: int = 50) -> np.ndarray:
    parts = [
        np.concatenate(([BOS_ID], rng.integers(4, 64, rng.integers(0, longest))))
        for _ in range(count)
    ]
    return np.concatenate(parts).astype(np.uint16)


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(2, 150),
    stride=st.integers(1, 16),
    reset=st.booleans(),
    seed=st.integers(0, 999),
)
def test_every_position_is_scored_once_with_the_longest_context(length, stride, reset, seed):
    tokens = np.random.default_rng(seed).choice([BOS_ID, 5, 6, 7, 8, 9], length).astype(np.uint16)
    windows = sliding_windows(tokens, tiny_settings(EVAL_DOC_RESET=int(reset)), stride)
    scored = np.concatenate([np.arange(first, stop) for _, first, stop in windows])
    assert scored.tolist() == list(range(length - 1))
    for start, first, stop in windows:
        assert 0 <= start <= first < stop <= start + 16
        segment = 0
        if reset:
            starts = [p for p in range(first + 1) if p == 0 or tokens[p] == BOS_ID]
            segment = starts[-1]
            assert not (tokens[start + 1 : stop] == BOS_ID).any()
        assert (
            start == segment or stop - start == 16
        )  # a window is shorter only where its segment begins
        assert start >= segment
        assert start == first or stop - first <= stride


def naive_nats(model, tokens, windows) -> np.ndarray:
    """One position at a time, nothing in the input behind it."""
    nats = []
    with torch.no_grad():
        for start, first, stop in windows:
            for position in range(first, stop):
                logits = model(
                    torch.from_numpy(tokens[None, start : position + 1].astype(np.int64))
                )[0, -1].double()
                nats.append(-torch.log_softmax(logits, dim=0)[int(tokens[position + 1])].item())
    return np.array(nats)


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize(
    ("count", "stride", "batch"), [(1, 4, 3), (3, 16, 64), (4, 5, 1), (6, 1, 7)]
)
def test_scores_equal_a_naive_loop(reset, count, stride, batch):
    s = tiny_settings(EVAL_DOC_RESET=reset, EVAL_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=16)
    tokens = np.append(documents(np.random.default_rng(count), count), 9).astype(np.uint16)
    model = random_model(s)
    expected = naive_nats(model, tokens, sliding_windows(tokens, s, stride))
    e = evaluator(tokens, s)
    nats = record_nats(e)
    score = e.score(model, "test", stride)
    np.testing.assert_allclose(torch.cat(nats), expected, atol=1e-5)
    assert score.tokens == len(tokens) - 1
    assert score.val_loss == pytest.approx(expected.mean(), abs=1e-6)
    assert score.tokens * score.val_loss / math.log(2) / score.val_bpb == pytest.approx(
        score.bytes, rel=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(
    world=st.integers(1, 5),
    batch=st.integers(1, 9),
    chunk=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_ranks_batches_or_chunks(world, batch, chunk, seed):
    tokens = documents(np.random.default_rng(seed), 4)
    if len(tokens) < 2:
        return
    s = tiny_settings(EVAL_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=chunk)
    model = random_model(s)
    whole = evaluator(tokens, tiny_settings(EVAL_BATCH_SEQS=100)).score(model, "whole", 4)

    class Part(Ranks):
        def sum_(self, tensor):
            return tensor

    parts = [
        evaluator(tokens, s, Part(rank, world, CPU)).score(model, "part", 4).val_loss
        for rank in range(world)
    ]
    assert sum(parts) == pytest.approx(whole.val_loss, abs=1e-5)


# ---- The ledger ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(torch.arange(11))
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


# ---- Adaptation ------------------------------------------------------------------------------------------------------


class Spy:
    """A learner that only looks."""

    def __init__(self):
        self.seen = []

    def learn(self, tokens, done, epochs):
        self.seen.append((tokens.tolist(), done))


def test_learner_gets_each_chunk_after_its_score_and_never_the_last():
    s = tiny_settings(TTT_CHUNK_TOKENS=32)
    tokens = np.arange(110, dtype=np.uint16) % 60 + 4
    spy = Spy()
    evaluator(tokens, s).score(random_model(s), "test", 4, spy)
    assert [done for _, done in spy.seen] == [0, 0.25, 0.5]
    assert [seen for seen, _ in spy.seen] == [
        tokens[low : low + 33].tolist() for low in (0, 32, 64)
    ]


def adapted_nats(tokens, s, seed=0) -> tuple[np.ndarray, float]:
    model = random_model(s, seed)
    e = evaluator(tokens, s)
    nats = record_nats(e)
    score = e.score(model, "test", s.eval_stride, Learner(model, s, e.ranks))
    return torch.cat(nats).numpy(), score.val_bpb


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_changing_a_token_changes_no_score_before_it(optimizer):
    s = tiny_settings(TTT_OPTIMIZER=optimizer, TTT_LR=0.01)
    rng = np.random.default_rng(0)
    tokens = documents(rng, 6)
    before, _ = adapted_nats(tokens, s)
    for t in (3, 40, 70, len(tokens) - 1):
        changed = tokens.copy()
        changed[t] = (changed[t] + 7) % 60 + 4
        after, _ = adapted_nats(changed, s)
        assert (before[: t - 1] == after[: t - 1]).all() and before[t - 1] != after[t - 1]


def test_the_illegal_protocol_does_let_the_future_change_the_past():
    s = tiny_settings(TTT_PROTOCOL="train_then_score", TTT_LR=0.01)
    tokens = documents(np.random.default_rng(0), 6)[: 6 * 16 + 1]
    scores = []
    for last in (9, 10):
        tokens[-1] = last
        e = evaluator(tokens, s)
        nats = record_nats(e)
        e.train_then_score(random_model(s))
        scores.append(torch.cat(nats)[:20])
    assert not torch.equal(*scores)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adaptation_lowers_bpb_on_a_repetitive_stream(optimizer):
    tokens = np.tile(documents(np.random.default_rng(1), 2), 12)
    rate = dict(adamw=0.003, sgd=0.1)[optimizer]
    s = tiny_settings(TTT_OPTIMIZER=optimizer, TTT_LR=rate)
    fixed = evaluator(tokens, s).score(random_model(s), "fixed", s.eval_stride).val_bpb
    assert adapted_nats(tokens, s)[1] < fixed - 0.05
    assert adapted_nats(tokens, tiny_settings(TTT_LR=0))[1] == pytest.approx(fixed, abs=1e-6)


@pytest.mark.parametrize("adapts", [False, True])
def test_work_grows_with_the_stream_and_memory_does_not(adapts):
    """Counted in tokens through the model: at most in proportion to the stream, and never more at once than a batch."""
    s = tiny_settings(EVAL_BATCH_SEQS=5, TTT_CHUNK_TOKENS=64, TTT_EPOCHS=1)
    work = {}
    for length in (400, 800, 1600):
        model, sizes = random_model(s), []
        model.register_forward_hook(
            lambda _, args, logits, sizes=sizes: sizes.append((args[0].numel(), len(logits)))
        )
        e = evaluator(np.random.default_rng(0).integers(4, 64, length), s)
        e.score(model, "", s.eval_stride, Learner(model, s, e.ranks) if adapts else None)
        work[length] = sum(tokens for tokens, _ in sizes)
        assert max(sequences for _, sequences in sizes) <= 5
    assert work[800] - work[400] <= 1.05 * 400 * (16 / s.eval_stride + adapts)
    assert work[1600] - work[800] <= 1.05 * 800 * (16 / s.eval_stride + adapts)
