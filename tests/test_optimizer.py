"""Optimizer: NorMuon and AdamW against plain references, and the groups by name."""

import pytest
import torch
from conftest import random_model, tiny_settings

import train_gpt
from train_gpt import (
    NorMuon,
    UserError,
    build_optimizers,
    flatten_grads,
    load_settings,
    newton_schulz,
    role_of,
    set_lr_scale,
)

# What trains a parameter in entry 532, or in the entry that it comes from, by its name's end.
TRAINED_AS = {
    "embedding": "tok_emb bigram.table",
    "matrix": "bigram.proj attn.q attn.k attn.v attn.out mlp.up mlp.down",
    "scalar": """bigram.scale smear_gate smear_scale skip_weights skip_gates resid_mix attn_scale
        mlp_scale attn.q_gain attn.gate_weight attn.gate_bias attn.value_mix""",
}
EVERY_KIND = dict(SKIPS="gated", SMEAR_DIMS=4)  # a tiny network with all of these parameters


def trained_as(name: str) -> str:
    ends = [(kind, f".{end}") for kind, names in TRAINED_AS.items() for end in names.split()]
    (kind,) = [kind for kind, end in ends if f".{name}".endswith(end)]
    return kind


# ---- NorMuon


def reference_step(state, g, lr, mu):
    """One NorMuon step on one matrix, as its paper writes it.

    The state, of which it returns the next, is the matrix, its momentum and its second moment.
    """
    p, momentum, second = state
    momentum = mu * momentum + (1 - mu) * g
    x = (1 - mu) * g + mu * momentum
    transpose = x.shape[0] > x.shape[1]
    x = x.T if transpose else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if transpose else x

    second = 0.95 * second + 0.05 * (x**2).mean(dim=1, keepdim=True)
    scaled = x / second.sqrt()
    scaled = scaled * x.norm() / scaled.norm()
    aspect = max(1, p.shape[0] / p.shape[1]) ** 0.5
    return p * (1 - lr * 0.04) - lr * aspect * scaled, momentum, second


def test_normuon_equals_a_plain_loop_over_matrices():
    torch.manual_seed(1)
    shapes = ((8, 8), (12, 8), (8, 12), (8, 8), (12, 8))
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [
        (p.detach().double(), torch.zeros_like(p).double(), torch.zeros(len(p), 1).double())
        for p in params
    ]
    optimizer = NorMuon(params, 0.03, 0.95, 0.04)
    for step in range(4):
        mu = 0.9 + 0.02 * step
        lr = 0.03 * (1 - step / 8)
        set_lr_scale([optimizer], 1 - step / 8)
        for group in optimizer.param_groups:
            group["momentum"] = mu
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p)
            expected[i] = reference_step(expected[i], p.grad.double(), lr, mu)
        optimizer.step()
    for p, (wanted, _, _) in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, atol=1e-4, rtol=1e-4)


def test_rows_are_evened_out_and_the_norm_is_kept():
    p = torch.nn.Parameter(torch.zeros(8, 16))
    optimizer = NorMuon([p], 1.0, 0.0, 0.0)
    set_lr_scale([optimizer], 1.0)
    torch.manual_seed(0)
    p.grad = torch.randn(8, 16) * torch.arange(1.0, 9)[:, None]
    plain = newton_schulz(p.grad.clone()[None])[0]
    optimizer.step()
    rows = p.detach().norm(dim=1)
    torch.testing.assert_close(rows, rows.mean().expand(8), atol=1e-3, rtol=1e-3)
    assert p.detach().norm().item() == pytest.approx(plain.norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "factor"), [((512, 512), 1), ((256, 512), 1), ((1024, 256), 2), ((512, 128), 2)]
)
def test_tall_matrices_take_larger_steps(shape, factor):
    """By the square root of rows over columns, never less than 1."""
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = NorMuon([p], 0.03, 0.95, 0.04)
    set_lr_scale([optimizer], 1.0)
    torch.manual_seed(0)
    p.grad = torch.randn(shape)
    optimizer.step()
    root_mean_square = p.detach().norm().item() / (0.03 * min(shape) ** 0.5)  # singular values
    assert root_mean_square == pytest.approx(factor * 0.9, rel=0.2)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(shape)))
    assert values.max() < 1.3 and values.median() > 0.6


@pytest.fixture
def train_as_ranks(monkeypatch, as_rank):
    """train_as_ranks(world_size, row_normalize): each rank's matrices after three steps, and all
    that each rank shared.

    What a rank shares depends on gradients alone. So each runs twice: first to note what it shares,
    then with the sums over all ranks.
    """
    shapes = ((8, 8), (12, 8), (8, 8), (8, 12), (8, 8), (12, 8))

    def run(rank: int, world_size: int, row_normalize: bool, all_reduce_) -> list[torch.Tensor]:
        as_rank(rank, world_size)
        monkeypatch.setattr(train_gpt.ranks, "all_reduce_", all_reduce_)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = NorMuon(params, 0.03, 0.95, 0.04, row_normalize)
        set_lr_scale([optimizer], 1.0)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        return [p.detach() for p in params]

    def train(world_size: int, row_normalize: bool):
        shared = [[] for _ in range(world_size)]
        for rank, own in enumerate(shared):
            run(rank, world_size, row_normalize, lambda x, own=own: own.append(x.clone()) or x)
        weights = []
        for rank in range(world_size):
            sums = map(sum, zip(*shared, strict=True))
            weights.append(run(rank, world_size, row_normalize, lambda _, sums=sums: next(sums)))
        return weights, shared

    return train


@pytest.mark.parametrize("row_normalize", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_updates_add_up_to_that_of_one(train_as_ranks, world_size, row_normalize):
    """Three matrices of one shape, two of another, one of a third: not every rank has one of it."""
    (alone,), _ = train_as_ranks(1, row_normalize)
    weights, shared = train_as_ranks(world_size, row_normalize)
    for params in weights:
        torch.testing.assert_close(params, alone, atol=1e-6, rtol=1e-6)

    for rank, stacks in enumerate(shared):  # each orthogonalizes its own matrices alone
        for stack in stacks:
            places = torch.arange(len(stack))
            assert torch.equal(stack.flatten(1).any(dim=1), places % world_size == rank)


# ---- Groups


@pytest.mark.parametrize("kind", ["normuon", "adamw"])
def test_every_parameter_is_in_one_group_with_its_rate(kind):
    s = tiny_settings(MATRIX_OPTIMIZER=kind, **EVERY_KIND)
    model = random_model(s)
    found = {}
    for optimizer in build_optimizers(model, s):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert p not in found
                found[p] = type(optimizer).__name__, group["base_lr"]

    rates = {"matrix": 0.03, "embedding": 0.04, "scalar": 0.02}
    assert len(found) == len(list(model.parameters()))
    assert {trained_as(name) for name, _ in model.named_parameters()} == rates.keys()
    for name, p in model.named_parameters():
        muon = kind == "normuon" and trained_as(name) == "matrix"
        assert found[p] == ("NorMuon" if muon else "AdamW", rates[trained_as(name)]), name


def test_the_constants_of_both_optimizers():
    s = load_settings({"NUM_LAYERS": "2", "MODEL_DIM": "128", "MLP_HIDDEN": "64"})
    muon, adamw = build_optimizers(random_model(s), s)
    assert len(muon.param_groups) == 3  # shapes
    for group in muon.param_groups:
        assert (group["momentum"], group["beta2"], group["weight_decay"]) == (0.99, 0.95, 0.04)
    for group in adamw.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-8)
        assert not group["amsgrad"] and not group["maximize"]


def adamw_reference(w: torch.Tensor, grads: list, rate: float, decay: float) -> torch.Tensor:
    """AdamW with betas 0.9 and 0.95, epsilon 1e-8 and decoupled decay, by its formulas."""
    w, first, second = w.double(), 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        grad = grad.double()
        first = 0.9 * first + 0.1 * grad
        second = 0.95 * second + 0.05 * grad**2
        step = first / (1 - 0.9**t) / ((second / (1 - 0.95**t)).sqrt() + 1e-8)
        w = w - rate * decay * w - rate * step
    return w


@pytest.mark.parametrize("kind", ["normuon", "adamw"])
def test_adamw_follows_its_formulas(kind):
    """Three steps; rates of 0.04 for embeddings, 0.02 for scalars and, if by AdamW, 0.03 for
    matrices. Only matrices decay, by 0.04."""
    s = tiny_settings(MATRIX_OPTIMIZER=kind)
    model = random_model(s)
    optimizers = build_optimizers(model, s)
    set_lr_scale(optimizers, 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: [] for name in before}
    torch.manual_seed(0)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = 0.01 * torch.randn_like(p)
            gradients[name].append(p.grad.clone())
        for optimizer in optimizers:
            optimizer.step()

    rates = {"embedding": 0.04, "scalar": 0.02, "matrix": 0.03}
    decays = {"embedding": 0, "scalar": 0, "matrix": 0.04}
    for name, p in model.named_parameters():
        role = trained_as(name)
        if kind == "normuon" and role == "matrix":
            continue
        expected = adamw_reference(before[name], gradients[name], rates[role] / 2, decays[role])
        error = (p.detach().double() - expected).abs().max().item()
        assert error < 1e-6, f"{name}: {error:.2g}"


def test_a_parameter_without_a_role_stops_the_run():
    s = tiny_settings()
    model = random_model(s)
    model.blocks[1].attn.temperature = torch.nn.Parameter(torch.ones(4))
    sentence = r"^blocks\.1\.attn\.temperature has no row in ROLES, which says how it is trained"
    with pytest.raises(UserError, match=sentence):
        build_optimizers(model, s)


@pytest.mark.parametrize("name", ["temperature", "q", "blocks.0.q", "blocks.x.attn.q", "bigram"])
def test_no_role_by_likeness(name):
    with pytest.raises(UserError, match=f"^{name} has no row in ROLES"):
        role_of(name)


def test_the_gradients_are_views_of_one_buffer():
    model = random_model(tiny_settings())
    buffer = flatten_grads(model)
    assert len(buffer) == sum(p.numel() for p in model.parameters()) + 1
    buffer.fill_(2)
    assert all((p.grad == 2).all() for p in model.parameters())
    next(model.parameters()).grad.zero_()
    assert (buffer == 0).sum() == 64 * 32
