"""What an error in a weight costs, and how the bits are allocated and errors fed back by it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, tiny_settings, write_shard

import decode_artifact
import train_gpt
from train_gpt import Moments, code_trellis, decode_pcll, encode_pcll, export


def decoded(coded: train_gpt.Coded, states: int = 8) -> np.ndarray:
    return decode_pcll(encode_pcll({}, {"w": coded}, states))[1]["w"]


def cost(w: np.ndarray, q: np.ndarray, moments: tuple[np.ndarray, np.ndarray]) -> float:
    error = q.astype(np.float64) - w
    return float(np.einsum("r,rc,cd,rd->", moments[0], error, moments[1], error, optimize=True))


def correlated(columns: int, strength: float, seed: int = 0) -> np.ndarray:
    """The second moments of inputs that share some directions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, columns)) + strength * rng.standard_normal(
        (4 * columns, 3)
    ) @ (rng.standard_normal((3, columns)))
    return x.T @ x / len(x)


def test_moments_of_one_token_are_its_squared_gradients():
    """For one position the gradient of a matrix is the product of its output's gradient and its
    input."""
    s = tiny_settings()
    model = random_model(s)
    with Moments(model) as moments:
        loss = F.cross_entropy(model(torch.tensor([[5]]))[0], torch.tensor([7]))
        loss.backward()
    for name, p in model.named_parameters():
        if name.endswith(train_gpt.MATRICES) and not name.endswith(
            (".q", ".k")
        ):  # one key: attention ignores it
            product = torch.outer(moments.rows[name], moments.columns[name].diagonal())
            torch.testing.assert_close(product, p.grad.square(), rtol=1e-3, atol=1e-12)
        elif name in train_gpt.TABLES:
            torch.testing.assert_close(
                moments.rows[name], p.grad.square().mean(dim=1), rtol=1e-3, atol=1e-12
            )


def test_moments_add_up_over_tokens(monkeypatch):
    model, tokens, plain, inputs = (
        random_model(tiny_settings()),
        torch.arange(1, 17).view(1, -1),
        train_gpt.linear,
        {},
    )

    def watched(x, w):
        inputs[w] = x.detach().flatten(0, -2)
        return plain(x, w)

    monkeypatch.setattr(train_gpt, "linear", watched)
    with Moments(model) as moments:
        train_gpt.next_token_loss(model, tokens, tokens).backward()
    for name, p in model.named_parameters():
        if name.endswith(train_gpt.MATRICES):
            torch.testing.assert_close(
                moments.columns[name], inputs[p].T @ inputs[p], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("name", ["0.attn.out", "0.mlp.down", "1.attn.q", "1.mlp.up"])
def test_the_moments_foretell_what_noise_costs(name):
    """The labels are drawn from the model's own distribution, where the second derivative is
    Fisher's information."""
    s = tiny_settings(CALIBRATION_TOKENS=16 * 400)
    model, name = random_model(s), f"blocks.{name}"
    torch.manual_seed(1)
    tokens = torch.randint(3, s.vocab_size, (400, 16))
    with torch.no_grad():
        logits = model(tokens)
        targets = torch.distributions.Categorical(logits=logits).sample()
    with Moments(model) as moments:
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    noise = 0.02 * torch.randn(model.get_parameter(name).shape)
    rows, columns = (m[name].double().numpy() for m in (moments.rows, moments.columns))
    foretold = 0.5 * cost(
        np.zeros_like(noise), noise.numpy(), (rows / targets.numel(), columns / targets.numel())
    )
    with torch.no_grad():
        model.get_parameter(name).add_(noise)
        shift = F.kl_div(
            model(tokens).log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
        )
    assert float(shift) / targets.numel() == pytest.approx(foretold, rel=0.3)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_feedback_buys_the_same_cost_with_fewer_bytes(strength):
    w = np.random.default_rng(0).standard_normal((64, 160)).astype(np.float32)
    row, column = np.random.default_rng(1).uniform(500, 2000, 64), correlated(160, strength)
    fed = code_trellis(w, (row, column), 1.0, 8)
    alone = code_trellis(w, (row, np.diag(np.diagonal(column))), 1.0, 8)
    assert len(encode_pcll({}, {"w": fed}, 8)) < 0.97 * len(encode_pcll({}, {"w": alone}, 8))
    assert cost(w, decoded(fed), (row, column)) < 1.02 * cost(w, decoded(alone), (row, column))


def test_independent_columns_are_quantised_as_one_path():
    w = np.random.default_rng(0).standard_normal((64, 160)).astype(np.float32)
    coded = code_trellis(w, (np.linspace(500, 2000, 64), np.diag(np.linspace(0.5, 2, 160))), 1.0, 8)
    rows, columns = train_gpt.trellis_units(np.frombuffer(coded.side, "<f4")[0], *coded.scales[3:])
    indices, points, _ = train_gpt.trellis_search(w / (4 * rows * columns), 0, 8, 160)
    assert (coded.symbols == indices.ravel()).all() and (
        decoded(coded) == points.astype("f4") * rows * columns
    ).all()


def test_dear_rows_and_columns_get_fine_steps():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 96)).astype(np.float32)
    row, column = np.repeat([20.0, 400.0], 32), np.diag(np.repeat([1.0, 20.0], 48))
    error = np.square(decoded(code_trellis(w, (row, column), 1.0, 8)) - w)
    quarters = np.array(
        [
            [error[r, c].mean() for c in (slice(48), slice(48, 96))]
            for r in (slice(32), slice(32, 64))
        ]
    )
    assert (
        quarters[0, 0] > 5 * quarters[0, 1] > 25 * quarters[1, 1]
        and quarters[0, 0] > 5 * quarters[1, 0]
    )


def test_allocation_is_the_best_of_all_on_a_toy():
    """Two matrices, one 50 times as dear: no other pair of steps costs less in as few bytes."""
    rng = np.random.default_rng(0)
    weights = {
        f"blocks.{i}.mlp.up": rng.standard_normal((128, 128)).astype(np.float32) for i in range(2)
    }
    moments = {
        name: (np.full(128, unit), np.eye(128))
        for name, unit in zip(weights, (1e2, 5e3), strict=True)
    }

    def outcome(factors) -> tuple[int, float]:
        tensors = {
            name: code_trellis(w, moments[name], factor, 8)
            for (name, w), factor in zip(weights.items(), factors, strict=True)
        }
        artifact = encode_pcll({}, tensors, 8)
        got = decode_pcll(artifact)[1]
        return len(artifact), sum(cost(w, got[name], moments[name]) for name, w in weights.items())

    size, total = outcome((1.0, 1.0))
    for a in np.geomspace(0.25, 4, 7):
        for b in np.geomspace(0.25, 4, 7):
            other_size, other_total = outcome((a, b))
            assert other_size > 0.99 * size or other_total > 0.98 * total, (a, b)


def test_calibration_reads_training_tokens_alone(tmp_path, one_rank):
    write_shard(tmp_path / "fineweb_train_0.bin", np.random.default_rng(0).integers(4, 64, 4096))
    s = tiny_settings(DATA_PATH=tmp_path, CALIBRATION_TOKENS=64)
    model = random_model(s)
    stream = train_gpt.TokenStream(str(tmp_path), "train", s.vocab_size)
    without = train_gpt.calibrate(model, stream, s, one_rank)
    write_shard(tmp_path / "fineweb_val_0.bin", np.full(4096, 5))
    beside = train_gpt.calibrate(model, stream, s, one_rank)
    for name, (rows, columns) in without.items():
        assert (rows == beside[name][0]).all() and (columns == beside[name][1]).all()
        shape = model.get_parameter(name).shape
        assert rows.shape == shape[:1] and columns.shape == (shape[1], shape[1])
    with pytest.raises(train_gpt.UserError, match="fineweb_train"):
        (tmp_path / "fineweb_train_0.bin").unlink()
        train_gpt.TokenStream(str(tmp_path), "train", s.vocab_size)


def test_weights_that_no_gradient_reaches_are_still_written(tmp_path):
    w = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    nothing = np.full(32, 1e-30), 1e-30 * np.eye(48)
    q = decoded(code_trellis(w, nothing, 1.0, 8))
    assert (
        np.isfinite(q).all() and np.square(q - w).mean() < 2
    )  # at most two root mean squares of step
    (tmp_path / "a.pcll").write_bytes(encode_pcll({}, {"w": code_trellis(w, nothing, 1.0, 8)}, 8))
    assert (decode_artifact.read_pcll(tmp_path / "a.pcll")[1]["w"] == q).all()


@pytest.mark.parametrize("preset", train_gpt.PRESETS)
def test_presets_export_what_the_verifier_reads(preset, tmp_path):
    s = dataclasses.replace(
        train_gpt.load_settings({"PRESET": preset}),
        num_layers=3,
        mlp_hidden=96,
        rope_dims=8,
        bigram_buckets=64,
        train_seq_len=32,
    )
    s = dataclasses.replace(s, model_dim=16 * s.num_heads)
    weights = {name: w.numpy() for name, w in random_model(s).state_dict().items()}
    moments = {
        name: (np.full(len(w), 1e3), np.eye(w[0].size)) for name, w in weights.items() if w.ndim > 1
    }
    config = {name: getattr(s, name) for name in train_gpt.ALL[train_gpt.ALL.index("vocab_size") :]}
    artifact = export(
        weights, moments, config, dataclasses.replace(s, fit="shrink"), 1000, lambda line: None
    )
    (tmp_path / "a.pcll").write_bytes(artifact)
    read, theirs = decode_artifact.read_pcll(tmp_path / "a.pcll")
    assert read == config and math.prod(theirs["tok_emb"].shape) == 1024 * s.model_dim
    for name, w in decode_pcll(artifact)[1].items():
        assert (theirs[name] == w).all() and np.square(w - weights[name]).mean() < 0.01
