"""Adaptation per document: each learns from its own scored tokens alone, and as verify.py does."""

import contextlib
import hashlib

import numpy as np
import pytest
import torch
from artifacts import make, run, settings_of
from bench.eval import count_documents
from conftest import random_model, tiny_settings
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import evaluator, exact_nats, pass_nats, random_tokens, shapes_of, verify_nats
from test_verify import pieces_of

import train_gpt
import verify
from train_gpt import BOS_ID, Evaluator, Ledger, document_batches


def few_tokens(**changes) -> train_gpt.Settings:
    """A few tokens at a time, at a rate at which they matter."""
    few = dict(TTT_PROTOCOL="per_document", DOCUMENT_RANK=4, DOCUMENT_TOKENS=5, DOCUMENT_LR=0.02)
    return tiny_settings(**few | changes)


def documents_of(lengths: list[int], seed: int = 0) -> np.ndarray:
    """Random documents of so many tokens each, their BOS included."""
    tokens = np.random.default_rng(seed).integers(4, 64, sum(lengths)).astype(np.uint16)
    tokens[np.cumsum([0, *lengths[:-1]])] = BOS_ID
    return tokens


LENGTHS = [30, 3, 17, 1, 41, 16]  # the window has 16; of BOS alone, too
WITHOUT_BOS = random_tokens(60)[random_tokens(60) != BOS_ID]
STREAMS = {
    "of many lengths": documents_of(LENGTHS),
    "without BOS": WITHOUT_BOS,
    "BOS late": np.append(WITHOUT_BOS[:7], documents_of([9, 12])),
    "BOS in a row": np.append(documents_of([1, 1, 1, 8, 1, 1]), documents_of([6])),
    "BOS last": np.append(documents_of([11, 6]), np.uint16(BOS_ID)),
    "a single pair": documents_of([2]),
    "a pair of BOS": np.full(2, BOS_ID, np.uint16),
    "longer than the window": documents_of([70, 17]),
    "exact multiples": documents_of([5, 10, 15, 20, 16, 32, 6]),
}


def pairs_of(tokens: np.ndarray, rows: int = 9) -> list[tuple[int, int]]:
    batches = document_batches(torch.from_numpy(tokens.astype(np.int64)), rows)
    return [tuple(pair) for batch in batches for pair in batch.tolist()]


def nats_of(tokens: np.ndarray, s, model=None) -> np.ndarray:
    """In float32, as in a run, but for another model."""
    model = model or random_model(s)
    return pass_nats(lambda: evaluator(tokens, s).score_documents(model, "test"))


def exact_nats_of(tokens: np.ndarray, s, world_size: int = 1) -> np.ndarray:
    return exact_nats(lambda model: evaluator(tokens, s).score_documents(model, ""), s, world_size)


@given(count=st.integers(2, 80), rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_position_is_in_one_document(count, rows, seed):
    tokens = random_tokens(count, seed)
    batches = document_batches(torch.from_numpy(tokens.astype(np.int64)), rows)
    for batch in batches:
        assert 1 <= len(batch) <= rows and batch.diff().max() < 2 * batch.diff().min()  # one octave
    pairs = pairs_of(tokens, rows)
    lengths = [stop - start for start, stop in pairs]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(p for pair in pairs for p in range(*pair)) == list(range(count - 1))
    starts = {0, *np.flatnonzero(tokens[:-1] == BOS_ID).tolist()}
    assert {start for start, _ in pairs} == starts


BATCHED = {  # by stream: the passes, and the shapes of their inputs
    "of many lengths": (20, {(1, 8), (1, 16), (2, 8), (2, 16)}),
    "a single pair": (1, {(1, 8)}),
    "longer than the window": (18, {(1, 8), (1, 16)}),
}


@pytest.mark.parametrize("stream", BATCHED)
def test_documents_of_like_length_are_one_batch_of_few_shapes(stream):
    """Widths are an eighth, a quarter, a half or all of TRAIN_SEQ_LEN, that DOCUMENT_TOKENS fit.

    Of many lengths: turns of 41, of 30 and 17, of 16 less the last, of 3, of 1.
    """
    s = few_tokens()
    model = random_model(s)
    seen = shapes_of(model)
    nats_of(STREAMS[stream], s, model)
    passes, shapes = BATCHED[stream]
    assert len(seen) == passes and set(seen) == {(shape, (5,)) for shape in shapes}


CHANGES = [{}, dict(LOOP_LAST=1, LOOP_PASSES=2), dict(DOCUMENT_TOKENS=16), dict(EVAL_BATCH_SEQS=1)]
CHANGES += [dict(EVAL_BATCH_SEQS=100, BIGRAM_BUCKETS=0)]
CASES = [("of many lengths", changes) for changes in CHANGES]
CASES += [(stream, {}) for stream in STREAMS if stream != "of many lengths"]


@pytest.mark.parametrize(("stream", "changes"), CASES, ids=str)
def test_scores_are_those_of_verify(stream, changes):
    """Position by position, on one rank and on several; and what is learned matters.

    verify.py computes (W + B A) x, train_gpt.py W x + B (A x). AdamW turns a rounding error of
    about 1e-16 in a gradient into one of at most DOCUMENT_LR 1e-16 / 1e-8 = 2e-10.
    """
    s = few_tokens(**changes)
    tokens = STREAMS[stream]
    expected = verify_nats(tokens, s, verify.PER_DOCUMENT)
    for world_size in (1, 3):
        found = exact_nats_of(tokens, s, world_size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    learns = max(stop - start for start, stop in pairs_of(tokens)) > s.document_tokens
    fixed = exact_nats_of(tokens, few_tokens(**changes | dict(DOCUMENT_LR=0)))
    assert (np.abs(expected - fixed).max() > 0.05) == learns


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("rank", [4, 96])
def test_in_float32_the_two_drift_apart_by_a_part_of_the_rate(rate, rank):
    """AdamW divides a gradient by its size: where a sum cancels to rounding, its order decides on a
    step of DOCUMENT_LR. Such gradients are small, and so is what the step does; a rank above the
    width has no more of them."""
    s = few_tokens(DOCUMENT_LR=rate, DOCUMENT_RANK=rank)
    tokens = documents_of(LENGTHS)
    precision = dict(precision=contextlib.nullcontext, model=random_model)
    theirs = verify_nats(tokens, s, verify.PER_DOCUMENT, **precision)
    difference = nats_of(tokens, s) - theirs
    assert np.abs(difference).max() < rate and abs(difference.mean()) < rate / 100 + 1e-6


def test_no_later_token_and_no_other_document_moves_a_score():
    """Bit for bit in float32: the same sums in the same order."""
    s = few_tokens()
    tokens = documents_of(LENGTHS)
    before = nats_of(tokens, s)
    for start, stop in pairs_of(tokens):
        for t in {(start + stop) // 2, stop - 1} & {*range(start + 1, stop)}:
            changed = tokens.copy()
            changed[t] = (changed[t] + 7) % 60 + 4
            after = nats_of(changed, s)
            same = before == after
            assert same[: t - 1].all() and same[stop:].all() and not same[t - 1]


def test_each_turn_is_scored_before_it_is_learned_from(monkeypatch):
    """By the ledger: what is learned from comes out of it. The model's own weights stay."""
    calls = []

    def note(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def noted(self, *args):
            calls.append((name, *(positions.flatten().tolist() for positions in args[:1])))
            return method(self, *args)

        monkeypatch.setattr(kind, name, noted)

    for kind, name in (Ledger, "record"), (Ledger, "scored_tokens"), (torch.optim.AdamW, "step"):
        note(kind, name)
    model, same = random_model(few_tokens()), random_model(few_tokens())
    evaluator(documents_of([13]), few_tokens()).score_documents(model, "")
    turns = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    first, second = ([("record", turn), ("scored_tokens", turn), ("step",)] for turn in turns)
    assert calls == [*first, *second, ("record", [10, 11])]
    for p, before in zip(model.parameters(), same.parameters(), strict=True):
        assert p.requires_grad and p.grad is None and torch.equal(p, before)


CHEATS = ["learns from what it scores", "learns from another", "scores twice", "begins within"]


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_evaluator_that_cheats_is_stopped(cheat):
    """One begins a document at its sixth token, where it is no longer so hard."""

    class Cheat(Evaluator):
        def score_and_adapt(self, model, ledger, documents):
            if cheat == "learns from what it scores":
                ledger.scored_tokens(torch.arange(*documents[0].tolist()))
            if cheat == "begins within":
                documents = documents + torch.tensor([5, 0])
            for _ in range(1 + (cheat == "scores twice")):
                for _ in super().score_and_adapt(model, ledger, documents):
                    if cheat == "learns from another":  # the first token of the next document
                        ledger.scored_tokens(documents[:, 1].clamp(max=len(ledger.nats) - 1))
                    yield

    s = few_tokens(EVAL_BATCH_SEQS=1)
    with pytest.raises(ValueError):
        evaluator(documents_of([20, 30, 9]), s, Cheat).score_documents(random_model(s), "")


def test_bfloat16_learns_as_well():
    """The matrices are then found by the parameter in that dtype."""
    tokens = documents_of([40])
    nats = []
    for rate in (0, 0.02):
        s = few_tokens(DOCUMENT_LR=rate)
        model = train_gpt.GPT(s, torch.bfloat16)
        model.load_state_dict(random_model(s).state_dict())
        nats.append(nats_of(tokens, s, model))
    float32 = nats_of(tokens, s)
    assert np.abs(nats[1] - float32).mean() < 0.3 * np.abs(nats[0] - float32).mean()


def adapters_of(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by the name of their matrix."""
    return {n: p.adapter for n, p in model.named_parameters() if hasattr(p, "adapter")}


def test_adapters_begin_at_right_angles_and_as_nothing():
    """One for each row and matrix; the hash table of the bigram is only looked up."""
    s = few_tokens(DOCUMENT_RANK=7)
    model = random_model(s)
    with train_gpt.document_adapters(model, 3, s):
        found = adapters_of(model)
    assert found.keys() == {n for n, p in model.named_parameters() if verify.is_adapted(n)}
    for name, (a, b) in found.items():
        p = model.get_parameter(name)
        assert a.shape == (3, 7, p.size(1)) and b.shape == (3, len(p), 7)
        assert torch.equal(a[0], a[2]) and not b.any()
        # Cosines in float64, rounded to float32: each product of 7 x 32 is off by 32 * 6e-8.
        torch.testing.assert_close(a[0] @ a[0].T, torch.eye(7), atol=2e-6, rtol=0)


def test_afterwards_the_model_is_as_it_was():
    """No adapters, and weights that train; also where the scoring is given up."""
    s = few_tokens()
    model = random_model(s)
    tokens = documents_of([20])
    e = evaluator(tokens, s)
    ledger = Ledger(e.tokens, e.token_bytes, by_document=True)
    turns = e.score_and_adapt(model, ledger, torch.tensor([[0, 19]]))
    next(turns)
    assert adapters_of(model) and not any(p.requires_grad for p in model.parameters())
    turns.close()
    assert not adapters_of(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adapter_is_added_to_its_matrix(dtype):
    """Also where the scales are multiplied into the matrices, as these are cast: float64."""
    model = random_model(few_tokens())
    for p in model.parameters():
        p.data = p.data.to(dtype)
    tokens = torch.randint(1, 64, (1, 16))
    with torch.no_grad():
        with train_gpt.document_adapters(model, 1, few_tokens()):
            found = adapters_of(model)
            before = model(tokens)
            for name, (_, b) in found.items():
                if name != "tok_emb":  # is looked up as well, without its adapter
                    b.normal_(std=0.1)
            adapted = model(tokens)
        for name, (a, b) in found.items():
            model.get_parameter(name).add_((b @ a)[0])
        merged = model(tokens)
    assert not torch.allclose(before, merged, atol=0.1)
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)


def test_compiled_batches_have_all_their_rows():
    """Two graphs, for the two widths, of EVAL_BATCH_SEQS rows each; and the scores of no compiler
    to float32's rounding."""
    s = few_tokens(COMPILE="1")
    tokens = documents_of(LENGTHS)
    graphs = []

    def compile_graph(graph, inputs):
        tokens = [x for x in inputs if isinstance(x, torch.Tensor) and x.dtype == torch.int64]
        graphs.append(sorted(tuple(x.shape) for x in tokens))
        return graph.forward

    model = random_model(s)
    torch._dynamo.reset()
    model.compile(backend=compile_graph, dynamic=False)
    found = nats_of(tokens, s, model)
    torch._dynamo.reset()
    assert sorted(graphs) == [[(3, 8), (5,)], [(3, 16), (5,)]]
    np.testing.assert_allclose(found, nats_of(tokens, few_tokens()), rtol=0, atol=1e-3)


def test_the_operations_of_documents_are_counted():
    """Of 13 and 9 positions, side by side in two of three rows: three turns of five tokens, the
    first with inputs of 8 and the others of 16; two are learned from."""
    s = few_tokens(BIGRAM_BUCKETS=0)
    cost = count_documents(torch.from_numpy(documents_of([13, 10]).astype(np.int64)), s)
    assert cost.turns == 3
    block = 2 * 32 * 32 + 2 * 16 * 32 + 2 * 48 * 32
    adapters = 4 * (2 * 64 + 2 * 48 + 2 * 80)  # rank 4: outputs and inputs of each matrix
    head = 5 * 64 * 32
    forward = [3 * width * (block + adapters + width * 32) + head for width in (8, 16, 16)]
    assert cost.forward == 3 * 2 * sum(forward)
    back = [3 * w * (2 * block + 4 * adapters + 5 * w * 32) + 2 * head for w in (8, 16)]
    assert cost.backward == 3 * sum(back)
    assert cost.bytes == 2 * 3 * 4 * 7 * (3 * adapters + 4 * (64 + 32))


# ---- An artifact in verify.py

STATED = dict(ttt_protocol="per_document", document_rank=4, document_tokens=8, document_lr=1e-3)


def test_an_artifact_is_replayed_where_that_is_asked_for(home, capsys):
    artifact = make(home, **STATED)
    stated = settings_of(home, **STATED).items()
    s = train_gpt.Settings(**{name: value for name, value in stated if name in train_gpt.NAMES})
    model = train_gpt.GPT(s)
    weights = train_gpt.decode_pcll(artifact.read_bytes())
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    tokens = verify.read_tokens(home / "data/demo", 320)
    counter = train_gpt.ByteCounter("data/demo/bpe.model", 320)
    e = Evaluator(tokens, counter.count(tokens), s)
    claim = e.score_documents(model, "").val_bpb

    code, found = run(capsys, artifact, "--claim", claim)
    assert code == 0 and found["claim"]["verdict"] == "NOT CHECKABLE"
    assert found["adaptation"]["verdict"] == "NOT CHECKABLE"
    code, found = run(capsys, artifact, "--ttt", "--claim", claim)
    assert code == 0 and found["claim"]["verdict"] == found["val_bpb_ttt"]["verdict"] == "PROVEN"
    assert abs(found["val_bpb_ttt"]["number"] - found["val_bpb"]["number"]) > 1e-3
    wrong = found["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--ttt", "--claim", wrong)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"


@pytest.mark.parametrize(("rate", "verdict"), [(0.001, "FAILED"), (0.0011, "NOT CHECKABLE")])
def test_where_rounding_may_decide_nothing_is_proof_against_a_score(home, capsys, rate, verdict):
    """Neither against a claim nor against a log's line; but a wrong number of bytes is."""
    artifact = make(home, **STATED | dict(document_lr=rate))
    code, found = run(capsys, artifact, "--ttt", "--claim", 3.5)
    assert (code, found["claim"]["verdict"]) == (int(verdict == "FAILED"), verdict)

    tokens = verify.read_tokens(home / "data/demo", 320)
    size = verify.count_bytes(tokens[:65], pieces_of(home))
    log = home / "train.log"
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    for stated, expected in ((size, verdict), (size + 1, "FAILED")):
        line = f"{verify.PER_DOCUMENT}: scored:64 nats:99.0 bytes:{stated} val_bpb:3.5"
        log.write_text(f"artifact_sha256:{sha256} own.pcll\n{line}\n")
        prefix = run(capsys, artifact, "--log", log)[1]["prefix"]
        assert prefix["verdict"] == expected


def test_impossible_settings_are_refused(home, capsys):
    found = run(capsys, make(home, **STATED | dict(document_tokens=33)))[1]
    assert found["config"]["verdict"] == "FAILED"
    for changes in (dict(document_rank=0), dict(document_lr=-1.0)):
        found = run(capsys, make(home, **STATED | changes))[1]
        assert found["val_bpb"]["verdict"] == "NOT CHECKABLE" and "config" not in found
