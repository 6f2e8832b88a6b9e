"""Evaluation: each token once, by what stood before it; learning only from what is scored."""

import contextlib
import copy
import dataclasses
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

import train_gpt
import verify
from train_gpt import ADAPTED, BOS_ID, NOT_LEGAL, PLAIN, SLIDING, Evaluator, Ledger, Score


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
    return train_gpt.TestTimeTrainer(model, train_gpt.flatten_grads(model)[:-1], s)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Within it, whatever asks for float32 computes in float64, in train_gpt.py and verify.py.

    Two correct computations of one number then agree to about 1e-12. In float32 no tight bound
    holds: AdamW's first steps divide a gradient by its own size, which turns a rounding error in a
    small one into a whole step.
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


def exact_model(s) -> train_gpt.GPT:
    """random_model(s) in float64, to be made within float64()."""
    model = train_gpt.GPT(s, torch.float64)
    model.load_state_dict(random_model(s).state_dict())
    return model


class Together:
    """All ranks of a run as threads of this process, with sums over all of them."""

    device = torch.device("cpu")

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.own = threading.local()
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.parts = {}

    rank = property(lambda self: self.own.rank)

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.parts[self.rank] = tensor
        self.barrier.wait()
        total = sum(self.parts[rank] for rank in range(self.world_size))
        self.barrier.wait()  # all have added up before any of the parts changes
        return tensor.copy_(total)


def pass_nats(score: Callable[[], Score], world_size: int = 1) -> np.ndarray:
    """What a pass enters for each position: once, and the same on every rank."""
    together = Together(world_size)
    ledgers = []

    class Kept(Ledger):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            ledgers.append(self)

    def score_as(rank: int) -> Score:
        together.own.rank = rank
        return score()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(world_size) as pool:
        patch.setattr(train_gpt, "ranks", together)
        patch.setattr(train_gpt, "Ledger", Kept)
        scores = list(pool.map(score_as, range(world_size)))
    nats = ledgers[0].nats.numpy()
    for found, ledger in zip(scores, ledgers, strict=True):
        assert (ledger.scored == 1).all() and (ledger.nats.numpy() == nats).all()
        assert (found.tokens, found.bytes) == (len(nats), 2 * len(nats))
        assert found.val_loss == pytest.approx(nats.mean(dtype="f8"), abs=1e-9)
        assert found.val_bpb == pytest.approx(found.val_loss / math.log(2) / 2, abs=1e-9)
    return nats


def exact_nats(score: Callable[[train_gpt.GPT], Score], s, world_size: int = 1) -> np.ndarray:
    """pass_nats in float64, of the model random_model(s)."""
    with float64():
        model = exact_model(s)
        return pass_nats(lambda: score(copy.deepcopy(model)), world_size)


def sliding_nats(tokens, s, world_size: int = 1, trainer=lambda model, s: None) -> np.ndarray:
    e = evaluator(tokens, s)
    score = lambda model: e.score(model, "", s.eval_stride, trainer(model, s))  # noqa: E731
    return exact_nats(score, s, world_size)


def test_context_of_the_system():
    """After the first window, which scores all that it sees, each one of 2,048 tokens scores its
    last 32: at least 2,016 stand before them."""
    s = train_gpt.load_settings({})
    calls = []

    def model(tokens, targets=None, at=None):
        calls.append((tokens, at))
        return torch.zeros(tokens.shape if at is None else (len(tokens), len(at), 1024))

    tokens = np.arange(2048 + 70 * 32 + 8) % 1024
    score = evaluator(tokens, s).score(model, "", s.eval_stride)
    (first, _), *rest = calls
    assert score.tokens == len(tokens) - 1 and first.tolist() == [tokens[:2048].tolist()]
    assert [len(inputs) for inputs, _ in rest] == [64, 7]
    assert all(at.tolist() == list(range(2016, 2048)) for _, at in rest)
    rows = torch.cat([inputs for inputs, _ in rest])
    ends = [2048 + 32 * window for window in range(1, 71)] + [len(tokens) - 1]
    assert rows.tolist() == [tokens[end - 2048 : end].tolist() for end in ends]


NAIVE = [(9, 4, 3), (90, 16, 64), (75, 5, 1), (33, 1, 7), (2, 2, 2), (1, 4, 4), (16, 3, 2)]
NAIVE += [(17, 16, 2), (139, 4, 6)]  # positions, stride, batch


@pytest.mark.parametrize(("count", "stride", "batch"), NAIVE)
def test_scores_equal_a_naive_loop(count, stride, batch):
    """One position at a time, nothing in the input behind it; a stride of 16 is the plain score.
    With COMPILE=1 every batch is padded to one shape; here the model itself is not compiled."""
    sizes = dict(EVAL_BATCH_SEQS=batch, MICRO_BATCH_SEQS=batch, TTT_CHUNK_TOKENS=16)
    s, padded = (tiny_settings(EVAL_STRIDE=stride, COMPILE=mode, **sizes) for mode in (0, 1))
    tokens = random_tokens(count + 1, seed=count)
    ids = torch.from_numpy(tokens.astype(np.int64))
    expected = []
    with float64(), torch.no_grad():
        model = exact_model(s)
        for position in range(count):
            stop = min(count, 16 + stride * -(-max(0, position - 15) // stride))
            start = max(0, stop - 16) if stride < 16 else position // 16 * 16
            logits = model(ids[None, start : position + 1])[0, -1]
            expected.append(-torch.log_softmax(logits, dim=0)[ids[position + 1]].item())
    for run, world_size in ((s, 1), (s, 3), (padded, 1), (padded, 2)):
        np.testing.assert_allclose(sliding_nats(tokens, run, world_size), expected, atol=1e-9)


def shapes_of(model) -> list:
    """The shapes that go through a model from now on, or through copies of it."""
    seen = []

    def note(model, args, kwargs):
        seen.append(tuple(tuple(x.shape) for x in [*args, *kwargs.values()]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


PADDED = dict(COMPILE=1, EVAL_BATCH_SEQS=5, TTT_BATCH_SEQS=2, MICRO_BATCH_SEQS=4)
TRAINING = ((4, 16), (4, 16))  # also those of the plain score, and of a stream's first window
SCORING = ((5, 16), (4,))
LEARNING = ((2, 16), (2, 16))


@pytest.mark.parametrize("count", [64, 131])
def test_compiled_each_pass_has_few_shapes_and_the_warm_up_all(count):
    s = tiny_settings(**PADDED, TTT_CHUNK_TOKENS=48)
    model = random_model(s)
    e = evaluator(random_tokens(count + 1), s)
    state = train_gpt.TrainState(model, s)
    stream = SimpleNamespace(read=lambda start, count: random_tokens(count), total=10**6)
    seen = shapes_of(model)
    train_gpt.warm_up(state, stream, e)
    assert set(seen) == {TRAINING, SCORING, LEARNING}
    adapted = (4, trainer_of(model, s))
    for args, shapes in (((16,), {TRAINING}), ((4,), {SCORING}), (adapted, {SCORING, LEARNING})):
        seen.clear()
        e.score(model, "", *args)
        assert set(seen) == shapes | {TRAINING}


@pytest.mark.parametrize("adapts", [0, 1])
def test_work_grows_with_the_stream_and_memory_does_not(adapts):
    """Counted in tokens through the model: in proportion to the stream, a batch at a time."""
    sizes = dict(EVAL_BATCH_SEQS=5, TTT_BATCH_SEQS=5, MICRO_BATCH_SEQS=5)
    s = tiny_settings(TTT_CHUNK_TOKENS=64, TTT_EPOCHS=1, **sizes)
    work = []
    for length in (400, 800, 1600):
        model = random_model(s)
        seen = shapes_of(model)
        trainer = trainer_of(model, s) if adapts else None
        evaluator(random_tokens(length), s).score(model, "", 4, trainer)
        work.append(sum(math.prod(inputs) for inputs, _ in seen))
        assert max(sequences for (sequences, _), _ in seen) <= 5
    assert (np.diff(work) <= 1.05 * np.array([400, 800]) * (16 / 4 + adapts)).all()


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
    "by document: after a BOS": [6],
    "by document: the last": [9],
    "by document: skip within": [5, 7],
    "by document: a BOS twice": [5, 6, 5],
    "by document: overlap": [8, 9, 4, 3],
}


@pytest.mark.parametrize("what", REFUSED)
def test_ledger_refuses_scores_out_of_order(what):
    """A document's first position is in order only by document."""
    ledger = ledger_of(by_document=what.startswith("by document"))
    positions = torch.tensor(REFUSED[what])
    with pytest.raises((ValueError, IndexError)):
        ledger.record(positions, torch.ones(len(positions)))
    assert ledger.scored.tolist() == [1] * 4 + [0] * 6 and ledger.nats.sum() == 4


def test_documents_are_recorded_in_any_order():
    ledger = ledger_of(0, by_document=True)
    for positions in ([8], [5, 6], [9, 0], [1, 2, 7], [3, 4]):
        ledger.record(torch.tensor(positions), torch.tensor(positions, dtype=torch.float32))
    assert ledger.scored.tolist() == [1] * 10 and ledger.nats.tolist() == list(range(10))


@pytest.mark.parametrize("positions", [[4], [3, 4], [[0, 1], [2, 9]], [10], [-1]])
def test_ledger_hands_out_nothing_that_is_not_scored(positions):
    ledger = ledger_of()
    with pytest.raises((ValueError, IndexError)):
        ledger.scored_tokens(torch.tensor(positions))
    inputs, targets = ledger.scored_tokens(torch.tensor([[1, 2], [3, 3]]))
    assert inputs.tolist() == [[12, 13], [14, 14]] and targets.tolist() == [[13, 14], [15, 15]]


def test_a_score_is_of_what_is_recorded():
    score = ledger_of().score(0.0)
    assert (score.val_loss, score.tokens, score.bytes) == (1, 4, 1 + 2 + 3 + 4)
    assert score.val_bpb == pytest.approx(4 / math.log(2) / 10)
    assert ledger_of().score(0.0, 3).bytes == 6
    assert str(Score(1.5, 0.75, 100, 250, 1.2345)) == (
        "val_loss:1.50000000 val_bpb:0.75000000 val_tokens:100 bytes:250 eval_time:1234ms"
    )
    logits = torch.zeros(2, 64, requires_grad=True)
    assert not ledger_of().nll(torch.tensor([4, 5]), logits).requires_grad  # it teaches nothing


def test_the_log_has_the_scores_of_the_first_positions(lines):
    s = tiny_settings()
    e = evaluator(random_tokens(5000), s)
    nats = pass_nats(lambda: e.score(random_model(s), "name", 16))
    assert len(lines) == 2
    for line, count in zip(lines, (2048, 4096), strict=True):
        total = nats[:count].sum(dtype="f8")
        bits = total / math.log(2) / (2 * count)
        found = f"nats:{total:.6f} bytes:{2 * count} val_bpb:{bits:.8f}"
        assert line == f"name: scored:{count} {found}"


CHEATS = {  # what each does with the positions of a window whose nats it has
    "learns from what it scores": lambda ledger, here, nats: ledger.scored_tokens(here),
    "looks ahead": lambda ledger, here, nats: ledger.scored_tokens(torch.arange(here[0] + 1)),
    "scores twice": lambda ledger, here, nats: ledger.record(here, nats + 0.1),
    "leaves out the hardest": lambda ledger, here, nats: ledger.record(
        here[nats < nats.max()], nats[nats < nats.max()]
    ),
    "goes backwards": lambda ledger, here, nats: ledger.record(here[-4:] + 50, nats[-4:]),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_evaluator_that_cheats_is_stopped(cheat, monkeypatch):
    plain = Evaluator.window_nats

    def cheating(self, model, ledger, low, high, stride):
        nats = plain(self, model, ledger, low, high, stride)
        CHEATS[cheat](ledger, torch.arange(low, high), nats)
        return nats

    monkeypatch.setattr(Evaluator, "window_nats", cheating)
    s = tiny_settings()
    with pytest.raises(ValueError):
        evaluator(random_tokens(100), s).score(random_model(s), "", 4)


def test_trainer_gets_each_chunk_after_its_score_and_never_the_last():
    """A chunk ends with a window: by 16 + 7 n."""
    s = tiny_settings(TTT_CHUNK_TOKENS=32, TTT_EPOCHS=2)
    tokens = np.arange(110) % 60 + 4
    seen = []
    spy = SimpleNamespace(learn=lambda x, y, *at: seen.append([x.tolist(), y.tolist(), *at]))
    evaluator(tokens, s).score(random_model(s), "test", 7, spy)
    ends = ((0, 30, 0), (30, 58, 0.25), (58, 93, 0.5))
    expected = [[tokens[low:high], tokens[low + 1 : high + 1], done, 2] for low, high, done in ends]
    assert seen == [[x.tolist(), y.tolist(), *rest] for x, y, *rest in expected]


def test_changing_a_token_changes_no_score_before_it():
    """Bit for bit in float32: the same sums in the same order."""
    s = tiny_settings(TTT_LR=0.01)
    tokens = random_tokens(120)

    def nats_of(tokens) -> np.ndarray:
        e, model = evaluator(tokens, s), random_model(s)
        return pass_nats(lambda: e.score(model, "", 4, trainer_of(model, s)))

    before = nats_of(tokens)
    for t in (3, 40, 70, len(tokens) - 1):
        changed = tokens.copy()
        changed[t] = (changed[t] + 7) % 60 + 4
        after = nats_of(changed)
        assert (before[: t - 1] == after[: t - 1]).all() and before[t - 1] != after[t - 1]


RATE_FACTORS = {"attn.out": 3, "mlp.down": 3, "mlp.up": 0.5}  # by the end of the name


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize(
    ("kind", "protocol"), [("sgd", "score_first"), ("adamw", "train_then_score")]
)
def test_a_chunk_is_learned_by_the_formulas(kind, protocol, clip, monkeypatch):
    """Two epochs over 5 sequences in batches of 2, at rates that fall as a cosine."""
    monkeypatch.setattr(train_gpt, "TTT_GRAD_CLIP", clip)
    rate = {"sgd": 0.1 / min(1, clip), "adamw": 0.001}[kind]
    done, scale = {0.05: (1 / 3, 0.75), 1e9: (2 / 3, 0.25)}[clip]
    s = tiny_settings(TTT_PROTOCOL=protocol, TTT_LR=rate, TTT_BATCH_SEQS=2)
    tokens = torch.from_numpy(random_tokens(5 * 16 + 8).astype(np.int64))
    norms = []
    with float64():
        model = exact_model(s)
        before, plain = copy.deepcopy(model), copy.deepcopy(model)
        trainer_of(model, s).learn(tokens[:-1], tokens[1:], done, 2)

        groups = []
        for name, p in plain.named_parameters():
            factor = next((f for end, f in RATE_FACTORS.items() if name.endswith(end)), 1)
            groups.append(dict(params=[p], lr=factor * rate * scale))
        if kind == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0)
        for first in [0, 2, 4] * 2:
            low, high = 16 * first, 16 * min(first + 2, 5)
            inputs, targets = (tokens[low + at : high + at].view(-1, 16) for at in (0, 1))
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten()).backward()
            norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters())))
            for p in plain.parameters():
                p.grad *= min(1.0, clip / (norms[-1] + 1e-6))
            optimizer.step()

    assert (min(norms) > clip) == (clip < 1)
    for name, p in model.named_parameters():
        # AdamW divides by a gradient's size plus 1e-8: errors of about 1e-15 in it grow 1e8-fold,
        # times the rate.
        assert (p - plain.get_parameter(name)).abs().max() < 1e-9, name
        if name != "bigram.table":  # of which no row of a pair that does not occur moves
            assert (p - before.get_parameter(name)).abs().max() > 1e-5, name


def verify_nats(tokens, s, name: str, precision=float64, model=exact_model) -> np.ndarray:
    """Nats of each position by verify.py, which shares no code with train_gpt.py."""
    config = dataclasses.asdict(s) | dict(skip_gates=s.skips == "gated", logit_softcap=30.0)
    config |= dict(unet_skips=s.skips != "off", ttt_optimizer="sgd", ttt_grad_clip=1.0)
    with precision():
        weights = {name: w.numpy() for name, w in model(s).state_dict().items()}
        subject = verify.Subject(config, weights, tokens, len, verify.parse(["artifact.pcll"]))
        run = verify.Pass(name, s.eval_stride)
        each, enter = [], run.enter
        run.enter = lambda losses: each.extend(losses) or enter(losses)
        verify.score(subject, run)
    return np.array(each)


STRIDES = [(4, 48), (7, 48), (15, 32), (16, 32), (1, 32), (5, 16)]  # and chunks


@pytest.mark.parametrize(("stride", "chunk"), STRIDES)
def test_scores_are_those_of_verify(stride, chunk):
    """Before and after adaptation; strides need not divide a window, a chunk or the stream.

    By 5 of 16, the second chunk has 15 positions, a sequence less one, and so teaches nothing. Of
    some batches a rank gets no sequence. Padding changes nothing.
    """
    sizes = dict(EVAL_STRIDE=stride, TTT_CHUNK_TOKENS=chunk, TTT_BATCH_SEQS=2, TTT_EPOCHS=2)
    s = tiny_settings(**sizes, TTT_LR=0.05)
    padded = tiny_settings(**sizes, TTT_LR=0.05, COMPILE=1)
    tokens = random_tokens(3 * chunk + 20)
    fixed, adapted = (verify_nats(tokens, s, name) for name in (SLIDING, ADAPTED))
    np.testing.assert_allclose(sliding_nats(tokens, s), fixed, atol=1e-9)
    assert np.abs(adapted - fixed).max() > 0.01
    for run, world_size in ((s, 1), (padded, 1), (s, 2), (padded, 3)):
        found = sliding_nats(tokens, run, world_size, trainer_of)
        np.testing.assert_allclose(found, adapted, atol=1e-9)


# ---- All scores of an artifact


class Lines(list):
    """A log that keeps its lines."""

    def __call__(self, line, console=True):
        self.append(line)

    def progress(self, what, done, began):
        assert 0 < done <= 1


@pytest.fixture
def lines(monkeypatch) -> Lines:
    monkeypatch.setattr(train_gpt, "log", Lines())
    return train_gpt.log


def evaluate(s) -> dict[str, Score]:
    """All scores of an artifact with the weights of one model, by a state with another's."""
    state = train_gpt.TrainState(random_model(s), s)
    weights = random_model(s, 1).state_dict().items()
    tensors = {name: train_gpt.FloatTensor(w.shape, w.numpy()) for name, w in weights}
    artifact = train_gpt.encode_pcll({}, tensors)
    return train_gpt.evaluate(state, artifact, evaluator(random_tokens(129), s))


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
    assert sum(line.startswith(("final_", "eval_total_time")) for line in lines) == 2
    assert math.isfinite(headline.val_bpb)


def test_the_artifacts_weights_are_scored():
    """And not those that the model has until then, nor, in a diagnostic, the adapted ones."""
    s = tiny_settings(TTT_LR=0.02)
    e = evaluator(random_tokens(129), s)
    model = random_model(s, 1)
    plain, sliding = (e.score(model, "", stride).val_loss for stride in (16, 4))
    adapted = e.score(model, "", 4, trainer_of(model, s)).val_loss
    assert adapted != sliding
    fixed = {PLAIN: plain, SLIDING: sliding}
    for protocol, expected in (("off", fixed), ("score_first", {ADAPTED: adapted} | fixed)):
        scores = evaluate(tiny_settings(TTT_LR=0.02, TTT_PROTOCOL=protocol))
        assert {name: score.val_loss for name, score in scores.items()} == expected


@pytest.mark.parametrize(
    "changes", [dict(TTT_LR=1e18), dict(TTT_PROTOCOL="per_document", DOCUMENT_LR=1e18)]
)
def test_after_an_adaptation_that_diverges_the_sliding_window_is_the_headline(changes, lines):
    scores = evaluate(tiny_settings(DOCUMENT_TOKENS=4, DOCUMENT_RANK=4, **changes))
    assert list(scores) == [SLIDING, PLAIN]
    assert lines[0] == f"final_pcll_sliding_exact {scores[SLIDING]}"
    assert lines[1].startswith("eval_total_time:")
    assert not any(line.startswith("final_pcll_ttt_exact") for line in lines)
    fixed = evaluate(tiny_settings(TTT_PROTOCOL="off"))[SLIDING]
    assert scores[SLIDING].val_loss == fixed.val_loss


def test_the_illegal_protocol_passes_over_everything_with_a_cosine(lines, monkeypatch):
    """And scores it all afterwards, the first position by what it learned from the last."""
    calls = []
    learn = train_gpt.TestTimeTrainer.learn

    def noted(trainer, inputs, targets, done, epochs):
        calls.append((inputs.tolist(), targets.tolist(), done, epochs))
        learn(trainer, inputs, targets, done, epochs)

    monkeypatch.setattr(train_gpt.TestTimeTrainer, "learn", noted)
    scores = evaluate(tiny_settings(TTT_PROTOCOL="train_then_score", TTT_EPOCHS=5))
    tokens = random_tokens(129).tolist()
    assert calls == [(tokens[:-1], tokens[1:], epoch / 5, 1) for epoch in range(5)]
    told = [line for line in lines if line.startswith(f"{NOT_LEGAL}: epoch")]
    assert told == [f"{NOT_LEGAL}: epoch {epoch} of 5" for epoch in range(1, 6)]
    assert lines[-1] == f"{NOT_LEGAL} train_then_score {scores[NOT_LEGAL]}"
    assert scores[NOT_LEGAL].val_loss != scores[SLIDING].val_loss
