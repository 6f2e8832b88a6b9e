"""Adaptation per document: each learns from its own scored tokens alone, and as verify.py does."""

import numpy as np
import pytest
import torch
from artifacts import make, run
from conftest import random_model, tiny_settings
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import CPU, evaluator, labels, random_tokens, scored  # noqa: F401

import train_gpt
import verify
from train_gpt import BOS_ID, LowRank, Ranks, decode_pcll, document_batches, flat, grouped


def settings_of(**changes) -> train_gpt.Settings:
    """A few tokens at a time, at a rate at which they matter."""
    few = dict(TTT_PROTOCOL="per_document", DOCUMENT_RANK=4, DOCUMENT_TOKENS=5, DOCUMENT_LR=0.02)
    return tiny_settings(**few | changes)


def documents_of(lengths: list[int], seed: int = 0) -> np.ndarray:
    """Random documents of so many tokens each, their BOS included."""
    tokens = np.random.default_rng(seed).integers(4, 64, sum(lengths)).astype(np.uint16)
    tokens[np.cumsum([0, *lengths[:-1]])] = BOS_ID
    return tokens


class Keeping(Ranks):
    """One of several ranks, which keeps what it adds to the sum over all."""

    def sum_(self, tensor):
        self.kept.append(tensor.numpy())
        return tensor


def nats_of(tokens: np.ndarray, s: train_gpt.Settings, rank: int = 0, world: int = 1) -> np.ndarray:
    """Nats of each position of this rank's documents."""
    Keeping.kept = []
    evaluator(tokens, s, Keeping(rank, world, CPU)).score_documents(random_model(s), "test")
    return Keeping.kept[0]


LENGTHS = [30, 3, 17, 1, 41, 16]  # the window has 16; of BOS alone, too


@given(count=st.integers(2, 80), rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_position_is_in_one_document(count, rows, seed):
    tokens = random_tokens(count, seed)
    batches = document_batches(tokens, rows)
    assert all(1 <= len(batch) <= rows for batch in batches)
    documents = np.concatenate(batches)
    assert (np.diff(documents[:, 1] - documents[:, 0]) <= 0).all()  # the longest first
    assert sorted(p for low, high in documents for p in range(low, high)) == list(range(count - 1))
    starts = set(documents[:, 0].tolist())
    assert starts == {0, *np.flatnonzero(tokens[:-1] == BOS_ID).tolist()}


def test_a_document_at_rate_0_is_scored_as_ever():
    s = settings_of(DOCUMENT_LR=0, DOCUMENT_TOKENS=4)
    tokens = documents_of(LENGTHS)
    nats = nats_of(tokens, s)
    model = random_model(s)
    ids = torch.from_numpy(tokens.astype(np.int64))
    for start, stop in np.concatenate(document_batches(tokens, 9)):
        for position in range(start, stop):
            chunk = (position - start) // 4
            first = max(start, start + 4 * chunk + 4 - 16)
            with torch.no_grad():
                logits = model(ids[None, first : position + 1])[0, -1]
            expected = -torch.log_softmax(logits, 0)[ids[position + 1]].item()
            assert nats[position] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, dict(LOOP_LAST=1, LOOP_PASSES=2), dict(BIGRAM_BUCKETS=0)])
def test_scores_are_those_of_verify(changes):
    """Position by position; and what is learned matters."""
    s = settings_of(**changes)
    tokens = documents_of(LENGTHS)
    ours = nats_of(tokens, s)

    weights = {name: w.numpy() for name, w in random_model(s).state_dict().items()}
    config = flat(s.model, s.training, s.export, s.evaluation)
    network = verify.Model(config, weights, "cpu")
    entered = []
    theirs = verify.Pass(verify.PER_DOCUMENT, 4)
    theirs.enter = lambda losses: entered.extend(losses) or verify.Pass.enter(theirs, losses)
    split = verify.Split(tokens, len, "data", len(tokens))
    verify.score(network, split, config, verify.Options("artifact.pcll"), theirs)
    np.testing.assert_allclose(ours, entered, atol=1e-5)
    assert np.abs(ours - nats_of(tokens, settings_of(DOCUMENT_LR=0, **changes))).max() > 0.1


def test_no_later_token_and_no_other_document_moves_a_score():
    s = settings_of()
    tokens = documents_of(LENGTHS)
    before = nats_of(tokens, s)
    for start, stop in np.concatenate(document_batches(tokens, 9)):
        for t in {start + 1, (start + stop) // 2, stop - 1} & {*range(start + 1, stop)}:
            changed = tokens.copy()
            changed[t] = (changed[t] + 7) % 60 + 4
            after = nats_of(changed, s)
            same = before == after
            assert same[: t - 1].all() and same[stop:].all() and not same[t - 1]


def test_learning_reaches_the_rest_of_its_document():
    """A token of the first turn changes a score that no window with it makes."""
    s = settings_of()
    tokens = documents_of([60, 60])
    before = nats_of(tokens, s)
    tokens[2] = (tokens[2] + 7) % 60 + 4
    after = nats_of(tokens, s)
    assert (np.abs(before - after)[40:60] > 1e-6).all() and (before == after)[60:].all()


@pytest.mark.parametrize(("world", "batch"), [(1, 2), (2, 1), (3, 4), (8, 2)])
def test_scores_do_not_depend_on_ranks_or_batches(world, batch):
    tokens = documents_of(LENGTHS)
    whole = nats_of(tokens, settings_of(EVAL_BATCH_SEQS=100))
    s = settings_of(EVAL_BATCH_SEQS=batch)
    parts = [nats_of(tokens, s, rank, world) for rank in range(world)]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-5)


def test_each_turn_is_scored_before_it_is_learned_from(monkeypatch):
    """By the document's own ledger: what is learned from comes out of it."""
    calls = []
    for name in ("enter", "learnable"):
        method = getattr(train_gpt.Ledger, name)

        def noted(self, *args, name=name, method=method):
            calls.append((name, args[0]))
            return method(self, *args)

        monkeypatch.setattr(train_gpt.Ledger, name, noted)
    learn = LowRank.learn
    monkeypatch.setattr(LowRank, "learn", lambda *args: calls.append(("learn",)) or learn(*args))
    evaluator(documents_of([12]), settings_of()).score_documents(random_model(settings_of()), "")
    turn = [("enter", 0), ("learnable", 0), ("learn",), ("enter", 5), ("learnable", 5), ("learn",)]
    assert calls == [*turn, ("enter", 10), ("learnable", 10), ("enter", 0)]  # the last: the split's


def test_the_model_is_left_as_it_was():
    s = settings_of()
    model = random_model(s)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    evaluator(documents_of(LENGTHS), s).score_documents(model, "test")
    for name, p in model.named_parameters():
        assert p.requires_grad and p.grad is None and torch.equal(p, before[name])


def test_bfloat16_learns_as_well():
    """The matrices are then found by the parameter in that dtype."""
    nats = []
    for rate in (0, 0.02):
        s = settings_of(DOCUMENT_LR=rate)
        model = train_gpt.GPT(s.model, torch.bfloat16)
        model.load_state_dict(random_model(s).state_dict())
        Keeping.kept = []
        evaluator(documents_of([40]), s, Keeping(0, 1, CPU)).score_documents(model, "")
        nats.append(Keeping.kept[0])
    float32 = nats_of(documents_of([40]), s)
    assert np.abs(nats[1] - float32).mean() < 0.3 * np.abs(nats[0] - float32).mean()


def test_cosines_are_at_right_angles():
    rows = train_gpt.cosines(7, 12)
    torch.testing.assert_close(rows @ rows.T, torch.eye(7), atol=1e-6, rtol=0)


def test_it_is_the_headline(scored):  # noqa: F811
    headline, scores, lines = scored(TTT_PROTOCOL="per_document", DOCUMENT_TOKENS=16)
    assert headline == train_gpt.PER_DOCUMENT == verify.PER_DOCUMENT
    assert list(scores)[1:] == [headline, train_gpt.AFTER, train_gpt.SLIDING]
    assert labels(lines)[:2] == ["final_pcll_ttt_exact", "final_pcll_sliding_exact"]


def test_one_that_diverges_is_no_score(scored):  # noqa: F811
    headline, scores, _ = scored(TTT_PROTOCOL="per_document", DOCUMENT_TOKENS=4, DOCUMENT_LR=1000)
    assert headline == train_gpt.SLIDING and train_gpt.PER_DOCUMENT not in scores


def test_prefixes_are_in_the_log():
    s = settings_of(DOCUMENT_TOKENS=16)
    e = evaluator(documents_of([700, 900, 600]), s)
    score = e.score_documents(random_model(s), "name")
    assert score.tokens == 2199 and len(e.log) == 1 and "name: scored:2048 nats:" in e.log[0]


# ---- An artifact in verify.py

PER_DOCUMENT = dict(
    ttt_protocol="per_document", document_rank=4, document_tokens=8, document_lr=0.01
)


def test_an_artifact_is_replayed(home, capsys):
    artifact = make(home, **PER_DOCUMENT)
    config, weights = decode_pcll(artifact.read_bytes())
    s = grouped({name: value for name, value in config.items() if name in train_gpt.FIELDS})
    model = train_gpt.GPT(s.model)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    counter = train_gpt.ByteCounter("data/demo/bpe.model", 320)
    tokens = verify.read_tokens(home / "data/demo", 320)
    e = evaluator(tokens, s)
    e.token_bytes = counter.count(tokens)
    claim = e.score_documents(model, "").val_bpb

    code, found = run(capsys, artifact, "--ttt", "--claim", claim, "--tolerance", 1e-5)
    assert code == 0 and found["claim"]["verdict"] == found["val_bpb_ttt"]["verdict"] == "PROVEN"
    assert abs(found["val_bpb_ttt"]["number"] - found["val_bpb"]["number"]) > 1e-3
    wrong = found["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--ttt", "--claim", wrong, "--tolerance", 1e-5)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"


def test_one_that_is_not_replayed_is_not_checkable(home, capsys):
    code, found = run(capsys, make(home, **PER_DOCUMENT), "--claim", 3.0)
    assert code == 0 and found["claim"]["verdict"] == "NOT CHECKABLE"
    assert found["adaptation"]["verdict"] == "NOT CHECKABLE"


@pytest.mark.parametrize(
    "changes", [dict(document_tokens=33), dict(document_rank=0), dict(document_lr=-1.0)]
)
def test_impossible_settings_are_refused(home, capsys, changes):
    assert run(capsys, make(home, **PER_DOCUMENT | changes))[1]["config"]["verdict"] == "FAILED"


def test_a_rank_that_takes_too_much_memory_is_not_tried(home, capsys):
    artifact = make(home, **PER_DOCUMENT | dict(document_rank=65536))
    found = run(capsys, artifact, "--ttt", "--memory", 1)[1]["val_bpb_ttt"]
    assert found["verdict"] == "NOT CHECKABLE" and "GB" in found["detail"]
