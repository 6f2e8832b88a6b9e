"""What an error in a weight costs, and how the bits are allocated and errors fed back by it."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pairs, random_model, tiny_settings, write_shard
from torch.overrides import TorchFunctionMode

import decode_artifact
import train_gpt
from train_gpt import FisherRecorder, Moments, decode_pcll, encode_pcll, encode_trellis, export

MATRICES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down", "bigram.proj")
TABLES = ("tok_emb", "bigram.table")


def decoded(coded: train_gpt.TrellisTensor) -> np.ndarray:
    return decode_pcll(encode_pcll({}, {"w": coded}))["w"]


def cost(error: np.ndarray, moments: Moments) -> float:
    error = error.astype(np.float64)
    fisher, hessian = moments.output_fisher, moments.input_hessian
    return float(np.einsum("r,rc,cd,rd->", fisher, error, hessian, error, optimize=True))


def without_feedback(moments: Moments) -> Moments:
    return Moments(moments.output_fisher, np.diag(np.diagonal(moments.input_hessian)))


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def correlated(columns: int, strength: float) -> np.ndarray:
    """The second moments of inputs that share some directions."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * columns, columns))
    x += strength * rng.standard_normal((4 * columns, 3)) @ rng.standard_normal((3, columns))
    return x.T @ x / len(x)


def test_moments_of_one_token_are_its_squared_gradients():
    """For one position the gradient of a matrix is the product of its output's gradient and its
    input; the token embedding is the head's matrix but for the row that is looked up."""
    s = tiny_settings()
    model = random_model(s)
    with FisherRecorder(model) as recorder:
        loss = F.cross_entropy(model(torch.tensor([[5]]))[0], torch.tensor([7]))
        loss.backward()
    for name, p in model.named_parameters():
        if name.endswith((".q", ".k")):  # with a single key attention ignores them
            continue
        squares = p.grad.square()
        if name.endswith((*MATRICES, "tok_emb")):
            rows = recorder.factors[p].output_fisher
            columns = recorder.factors[p].input_hessian.diagonal()
            product = torch.outer(rows, columns) / rows.sum()
            others = [r for r in range(len(p)) if name != "tok_emb" or r != 5]
            torch.testing.assert_close(product[others], squares[others], rtol=1e-3, atol=1e-12)
        elif name == "bigram.table":
            looked_up = recorder.factors[p].looked_up
            torch.testing.assert_close(looked_up, squares.mean(dim=1), rtol=1e-3, atol=1e-12)


def test_a_table_is_charged_for_each_token_that_looks_it_up():
    """By the gradient of each, not by that of their sum."""
    model = random_model(tiny_settings())
    tokens = torch.tensor([[9, 5, 5, 8]])
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            y = function(*args, **(kwargs or {}))
            if function is F.embedding and args[1] is model.tok_emb:
                y.retain_grad()
                seen.append(y)
            return y

    with FisherRecorder(model) as recorder, Watch():
        model(tokens, tokens).sum().backward()
    squares = seen[0].grad.square().mean(dim=-1)[0]
    expected = torch.zeros(len(model.tok_emb))
    expected[9], expected[5], expected[8] = squares[0], squares[1] + squares[2], squares[3]
    torch.testing.assert_close(recorder.factors[model.tok_emb].looked_up, expected)


def test_moments_add_up_over_tokens(monkeypatch):
    """Of each matrix the traces of the exact sum of the tokens' gradients, squared."""
    model = random_model(tiny_settings())
    tokens = torch.arange(1, 17).view(1, -1)
    plain = train_gpt.linear
    uses = {}

    def watched(x, w, scale=None):
        y = plain(x, w)
        y.retain_grad()
        uses[w] = x.detach().flatten(0, -2), y
        return y if scale is None else scale * y

    monkeypatch.setattr(train_gpt, "linear", watched)
    with FisherRecorder(model) as recorder:
        model(tokens, tokens).mean().backward()
    for name, p in model.named_parameters():
        if name.endswith((*MATRICES, "tok_emb")):
            x, y = uses[p]
            g = y.grad.flatten(0, -2)
            exact = torch.einsum("tr,tc,td->rcd", g.square(), x, x)
            close = dict(rtol=1e-4, atol=1e-6 * float(exact.abs().max()))
            factors = recorder.factors[p]
            torch.testing.assert_close(factors.input_hessian, exact.sum(dim=0), **close)
            traces = torch.einsum("rcc->r", exact)
            torch.testing.assert_close(factors.output_fisher, traces, **close)


NOISY = ["blocks.0.attn.out", "blocks.0.mlp.down", "blocks.1.attn.q", "blocks.1.mlp.up"]


@pytest.mark.parametrize("name", [*NOISY, "tok_emb", "bigram.table"])
def test_the_moments_foretell_what_noise_costs(name):
    """The labels are drawn from the model's own distribution, where the second derivative is
    Fisher's information."""
    s = tiny_settings(CALIBRATION_TOKENS=16 * 400)
    model = random_model(s)
    torch.manual_seed(1)
    tokens = torch.randint(3, s.vocab_size, (400, 16))
    with torch.no_grad():
        logits = model(tokens)
        targets = torch.distributions.Categorical(logits=logits).sample()
    with FisherRecorder(model) as recorder:
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    noise = 0.02 * torch.randn(model.get_parameter(name).shape)
    factors = recorder.factors[model.get_parameter(name)]
    sums = [tensor.double().numpy() for tensor in vars(factors).values()]
    joint = train_gpt.joint_moments(*sums, targets.numel(), unit=1.0)
    foretold = 0.5 * cost(noise.numpy(), joint)
    with torch.no_grad():
        model.get_parameter(name).add_(noise)
        p, q = logits.log_softmax(-1), model(tokens).log_softmax(-1)
        shift = F.kl_div(q, p, log_target=True, reduction="sum")
    assert float(shift) / targets.numel() == pytest.approx(foretold, rel=0.3)


@pytest.mark.parametrize("strength, bits", [(0.3, 0.19), (1.0, 1.2), (3.0, 2.65)])
def test_feedback_saves_bits_at_the_same_cost(strength, bits):
    """Of each weight; a factor of 4 in the cost is one of them. With 32 states 0.20, 1.26 and 2.68,
    with 8 states 0.28, 1.24 and 2.74."""
    w = gaussian(64, 160)
    moments = Moments(np.random.default_rng(1).uniform(500, 2000, 64), correlated(160, strength))
    fed = encode_trellis(w, moments, 1.0)
    alone = encode_trellis(w, without_feedback(moments), 1.0)
    bytes_saved = len(encode_pcll({}, {"w": alone})) - len(encode_pcll({}, {"w": fed}))
    ratio = cost(decoded(fed) - w, moments) / cost(decoded(alone) - w, moments)
    assert 8 * bytes_saved / w.size - 0.5 * math.log2(ratio) > bits


def test_feedback_is_the_best_that_the_columns_to_come_can_do():
    """What they should be, given the errors so far, solves the normal equations of the cost: damped
    by a hundredth of the mean, 8 columns at a time, with a view of the 24 after them."""
    w, columns = gaussian(24, 100), correlated(100, 1.0)
    coded = encode_trellis(w, Moments(np.full(24, 300.0), columns), 1.0)
    rows, factors = coded.steps.factors()
    columns = columns / np.diagonal(columns).mean() + 0.01 * np.eye(100)

    error = np.zeros((24, 100))
    state = np.zeros(24, dtype=int)
    fed_back = np.empty((24, 100), dtype=int)
    for first in range(0, 100, 8):
        done, block = slice(first), slice(first, first + 8)
        gain = np.linalg.solve(columns[first:, first:], columns[first:, done]).T
        wanted = (w[:, first:] - error[:, done] @ gain)[:, :32]
        y = (wanted / (4 * rows * factors[first : first + 32])).astype(np.float32)
        keep = min(8, 100 - first)
        points, state = train_gpt.viterbi_search(y, state, keep)
        fed_back[:, block] = points
        error[:, block] = points * rows * factors[block] - w[:, block]
    assert (coded.points == fed_back).mean() > 0.99


def test_independent_columns_are_quantized_as_one_path():
    w = gaussian(64, 160)
    moments = Moments(np.linspace(500, 2000, 64), np.diag(np.linspace(0.5, 2, 160)))
    coded = encode_trellis(w, moments, 1.0)
    rows, columns = coded.steps.factors()
    start = np.zeros(64, dtype=int)
    points, _ = train_gpt.viterbi_search(w / (4 * rows * columns), start, 160)
    assert (decoded(coded) == points.astype("f4") * rows * columns).all()


@pytest.mark.parametrize("step_scale", [0.5, 1.0, 2.0])
def test_steps_are_the_inverse_root_of_the_damped_cost(step_scale):
    """In quarter octaves; the mean squared error of a step d is d^2 / (12 * 1.3)."""
    row, column = np.geomspace(30, 900, 64), np.geomspace(1, 30, 96)
    coded = encode_trellis(gaussian(64, 96), Moments(row, np.diag(column)), step_scale)
    size = step_scale * math.sqrt(12 * 1.3 / (row.mean() * column.mean()))
    assert coded.steps.step == np.float32(size)
    damped = column / column.mean() + 0.01
    for steps, cost in ((coded.steps.rows, row / row.mean()), (coded.steps.columns, damped)):
        expected = -np.rint(2 * np.log2(cost))
        assert (steps == expected).mean() > 0.95 and np.abs(steps - expected).max() <= 1


def test_steps_are_at_most_twice_and_at_least_a_64th_of_the_root_mean_square():
    w = gaussian(64, 256) * np.float32(2.0) ** np.arange(-16, 16).repeat(2)[:, None]
    coded = encode_trellis(w, Moments(np.ones(64), np.eye(256)), 0.25)
    step = coded.steps.step * 2.0 ** (coded.steps.rows / 4)
    ratio = np.sqrt(np.square(w).mean(axis=1)) / step
    eighth = 2**0.126  # half a quarter octave of rounding
    assert ratio.min() == pytest.approx(0.5, rel=eighth - 1)
    assert ratio.max() == pytest.approx(64, rel=eighth - 1)
    assert (ratio[:20] < 0.6).all() and (ratio[-8:] > 55).all()


def test_allocation_is_the_best_of_all_on_a_toy():
    """Two matrices, one 50 times as dear: no other pair of steps costs less in as few bytes."""
    weights = dict(zip(("blocks.0.mlp.up", "blocks.1.mlp.up"), gaussian(2, 96, 96), strict=True))
    units = zip(weights, (1e2, 5e3), strict=True)
    moments = {name: Moments(np.full(96, unit), np.eye(96)) for name, unit in units}

    def outcome(*factors: float) -> tuple[int, float]:
        tensors = {
            name: encode_trellis(w, moments[name], factor)
            for (name, w), factor in zip(weights.items(), factors, strict=True)
        }
        artifact = encode_pcll({}, tensors)
        got = decode_pcll(artifact)
        return len(artifact), sum(cost(got[name] - w, moments[name]) for name, w in weights.items())

    size, total = outcome(1.0, 1.0)
    for a, b in itertools.product(np.geomspace(0.25, 4, 5), repeat=2):
        other_size, other_total = outcome(a, b)
        assert other_size > 0.99 * size or other_total > 0.98 * total, (a, b)


@pytest.fixture
def calibrated(tmp_path):
    """Settings, model, training tokens, the places that were read, and the calibrated moments."""
    tokens = np.random.default_rng(0).integers(4, 64, 4096)
    write_shard(tmp_path / "fineweb_train_0.bin", tokens)
    write_shard(tmp_path / "fineweb_val_0.bin", np.full(4096, 5))
    s = tiny_settings(DATA_PATH=tmp_path, CALIBRATION_TOKENS=64)
    model = random_model(s)
    stream = train_gpt.TokenStream(s, "train")
    read = stream.read
    places = []
    stream.read = lambda start, count: places.append((start, count)) or read(start, count)
    moments = train_gpt.calibrate(model, stream, s)
    return SimpleNamespace(s=s, model=model, tokens=tokens, places=places, moments=moments)


def test_calibration_reads_training_tokens_alone(calibrated):
    """The first CALIBRATION_TOKENS, one sequence at a time, each with the token after it."""
    assert calibrated.places == [(0, 17), (16, 17), (32, 17), (48, 17)]


def test_calibration_is_in_units_of_what_a_weight_may_cost(calibrated):
    """Second moments per token, the gradients' in units of 2 * 0.0005 nats / weights."""
    model, moments = calibrated.model, calibrated.moments
    tokens = torch.from_numpy(calibrated.tokens[:65].astype(np.int64))
    inputs, targets = tokens[:-1].view(4, 16), tokens[1:].view(4, 16)
    with FisherRecorder(model) as recorder:
        logits = model(inputs).flatten(0, 1)
        F.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
    quantized = {n: p for n, p in model.named_parameters() if n.endswith((*MATRICES, *TABLES))}
    assert moments.keys() == quantized.keys()
    unit = 2 * 0.0005 / sum(p.numel() for p in quantized.values())
    for name, p in quantized.items():
        assert moments[name].output_fisher.shape == (len(p),)
        assert moments[name].input_hessian.shape == (p.size(1), p.size(1))
        sums = [tensor.numpy() for tensor in vars(recorder.factors[p]).values()]
        joint = train_gpt.joint_moments(*sums, 64, unit)
        fisher, hessian = moments[name].output_fisher, moments[name].input_hessian
        np.testing.assert_allclose(fisher, joint.output_fisher, rtol=1e-3)
        np.testing.assert_allclose(hessian, joint.input_hessian, rtol=1e-3, atol=1e-6)
    table = moments["bigram.table"]  # which is no matrix
    size = len(table.input_hessian)
    np.testing.assert_allclose(table.input_hessian, np.eye(size) / size)


def test_a_matrix_that_is_looked_up_costs_the_sum_of_both():
    """In each row, for errors that are independent and alike; 1,000 tokens of which one more moved
    every row."""
    columns = correlated(40, 1.0)
    rows, looked_up = np.linspace(1, 9, 20), np.linspace(3, 0, 20)
    joint = train_gpt.joint_moments(rows, columns, looked_up, 1000, unit=0.1)
    energy = rows + 40 * looked_up
    cost_of_rows = 0.1 * joint.output_fisher * np.trace(joint.input_hessian)
    np.testing.assert_allclose(cost_of_rows, energy / 1e3 + 1.3e3 / 1e6)
    share = joint.input_hessian[0, 1] / (columns / np.trace(columns))[0, 1]
    assert energy.sum() == pytest.approx(1.3e3) and share == pytest.approx(1e2 / 1.3e3)


def test_quantization_costs_as_many_nats_as_the_setting_says(calibrated):
    """By the moments, half of the quadratic form, at a step scale of 1."""
    total = 0.0
    for name, moments in calibrated.moments.items():
        w = calibrated.model.get_parameter(name).detach().numpy()
        plain = without_feedback(moments)
        total += cost(decoded(encode_trellis(w, plain, 1.0)) - w, plain)
    weights = sum(len(m.output_fisher) * len(m.input_hessian) for m in calibrated.moments.values())
    assert 0.5 * total * 2 * 0.0005 / weights == pytest.approx(0.0005, rel=0.25)


def test_calibration_leaves_the_model_alone(tmp_path):
    write_shard(tmp_path / "fineweb_train_0.bin", np.random.default_rng(0).integers(4, 64, 4096))
    s = tiny_settings(DATA_PATH=tmp_path, CALIBRATION_TOKENS=64)
    torch.manual_seed(0)
    model = train_gpt.GPT(s, torch.bfloat16)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    stream = train_gpt.TokenStream(s, "train")
    moments = train_gpt.calibrate(model, stream, s)
    assert model.dtype == torch.bfloat16
    for name, p in model.named_parameters():
        assert (p == before[name]).all() and p.grad is None and p.requires_grad
        assert not p._backward_hooks
    for m in moments.values():
        assert m.output_fisher.dtype == m.input_hessian.dtype == np.float64


def test_weights_that_no_gradient_reaches_are_still_written():
    w = gaussian(32, 48)
    q = decoded(encode_trellis(w, Moments(np.full(32, 1e-30), 1e-30 * np.eye(48)), 1.0))
    assert np.square(q - w).mean() < 2  # at most two root mean squares of step


@pytest.mark.parametrize("preset", train_gpt.PRESETS)
def test_presets_export_what_the_verifier_reads(preset, tmp_path):
    small = pairs("""NUM_LAYERS=3 MLP_HIDDEN=96 ROPE_DIMS=8 BIGRAM_BUCKETS=64 TRAIN_SEQ_LEN=32
        EVAL_STRIDE=32 DOCUMENT_TOKENS=16 FIT=shrink VOCAB_SIZE=1024 LOOP_FIRST=0 LOOP_LAST=1""")
    width = 16 * train_gpt.load_settings({"PRESET": preset}).num_heads
    s = train_gpt.load_settings(small | {"PRESET": preset, "MODEL_DIM": str(width)})
    weights = {name: w.numpy() for name, w in random_model(s).state_dict().items()}
    matrices = {name: w for name, w in weights.items() if w.ndim > 1}
    moments = {n: Moments(np.full(len(w), 1e3), np.eye(w[0].size)) for n, w in matrices.items()}
    config = {name: getattr(s, name) for name in train_gpt.STATED}
    artifact = export(weights, moments, config, s, 1000)
    (tmp_path / "a.pcll").write_bytes(artifact)
    read, theirs = decode_artifact.read_pcll(tmp_path / "a.pcll")
    crc = read.pop("weights_crc32")
    assert read == config and 0 <= crc < 2**32 and theirs["tok_emb"].shape == (1024, width)
    for name, w in decode_pcll(artifact).items():
        assert (theirs[name] == w).all() and np.square(w - weights[name]).mean() < 0.01
