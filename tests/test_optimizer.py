"""Optimizer: NorMuon and AdamW against plain references, the groups by name, the schedules."""

import math

import pytest
import torch
from conftest import random_model, tiny_settings

from train_gpt import (
    NorMuon,
    Ranks,
    Settings,
    Trainer,
    UserError,
    build_optimizers,
    flat_gradient,
    load_settings,
    momentum_at,
    newton_schulz,
    rate_scale,
    role_of,
    set_rates,
    share_by_cost,
)

CPU = torch.device("cpu")

# The end of a parameter's name -> what trains it in entry 532.
TRAINED_AS = {
    "tok_emb": "table",
    "bigram.table": "table",
    "bigram.proj": "matrix",
    "attn.q": "matrix",
    "attn.k": "matrix",
    "attn.v": "matrix",
    "attn.out": "matrix",
    "mlp.up": "matrix",
    "mlp.down": "matrix",
    "bigram.scale": "vector",
    "smear_gate": "vector",
    "skip_weights": "vector",
    "resid_mix": "vector",
    "attn_scale": "vector",
    "mlp_scale": "vector",
    "attn.q_gain": "vector",
    "attn.gate_weight": "vector",
    "attn.gate_bias": "vector",
    "attn.value_mix": "vector",
}


# The end of a quantised matrix's name -> which of the codebook sizes is its.
LEVELS = {
    "attn.q": "qkv",
    "attn.k": "qkv",
    "attn.v": "qkv",
    "mlp.up": "mlp",
    "mlp.down": "mlp",
    "attn.out": "other",
    "bigram.table": "other",
    "bigram.proj": "other",
    "tok_emb": "other",
}


def trained_as(name: str) -> str:
    (kind,) = [kind for end, kind in TRAINED_AS.items() if f".{name}".endswith(f".{end}")]
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


def test_normuon_equals_a_plain_loop_over_matrices(one_rank):
    torch.manual_seed(1)
    shapes = ((8, 8), (12, 8), (8, 12), (8, 8), (12, 8))
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [
        (p.detach().double(), torch.zeros_like(p).double(), torch.zeros(len(p), 1).double())
        for p in params
    ]
    optimizer = NorMuon(params, one_rank, 0.03, 0.95, 0.04)
    for step in range(4):
        mu = 0.9 + 0.02 * step
        lr = 0.03 * (1 - step / 8)
        set_rates([optimizer], 1 - step / 8)
        optimizer.param_groups[0]["momentum"] = mu
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p)
            expected[i] = reference_step(expected[i], p.grad.double(), lr, mu)
        optimizer.step()
    for p, (wanted, _, _) in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, atol=1e-4, rtol=1e-4)


def test_rows_are_evened_out_and_the_norm_is_kept(one_rank):
    p = torch.nn.Parameter(torch.zeros(8, 16))
    optimizer = NorMuon([p], one_rank, 1.0, 0.0, 0.0)
    set_rates([optimizer], 1.0)
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
def test_tall_matrices_take_larger_steps(one_rank, shape, factor):
    """By the square root of rows over columns, never less than 1."""
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = NorMuon([p], one_rank, 0.03, 0.95, 0.04)
    set_rates([optimizer], 1.0)
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


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_orthogonalisation_is_shared_out_by_operations(world):
    """The full model's matrices: each is one rank's, and no rank has 5 % more than its part."""
    shapes = [(1500, 512), (512, 1500)] * 11 + [(512, 512), (256, 512)] * 22 + [(512, 128)]
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    loads, taken = [], {}
    for rank in range(world):
        optimizer = NorMuon(params, Ranks(rank, world, CPU), 0.03, 0.95, 0.04)
        loads.append(0)
        for stack in optimizer.stacks:
            rows, columns = stack.params[0].shape
            loads[-1] += len(stack.mine) * min(rows, columns) ** 2 * max(rows, columns)
            taken[rows, columns] = taken.get((rows, columns), 0) + len(stack.mine)
    assert taken == {shape: shapes.count(shape) for shape in shapes}
    assert max(loads) <= 1.05 * sum(loads) / world


def test_the_costliest_go_to_the_least_busy():
    assert share_by_cost([1, 5, 3, 3], 2) == [[1, 0], [2, 3]]
    assert share_by_cost([4], 3) == [[0], [], []]


class Collected(Ranks):
    """A rank whose sums are added up by the test."""

    def sum_(self, tensor):
        self.buffers.append(tensor)
        return tensor


def test_the_ranks_updates_add_up_to_that_of_one(one_rank):
    torch.manual_seed(0)
    updates = [torch.randn(3, 8, 8), torch.randn(2, 12, 8)]
    params = [torch.nn.Parameter(u) for stack in updates for u in stack]
    whole = NorMuon(params, one_rank, 0.03, 0.95, 0.04).orthogonalize(updates)
    parts = []
    for rank in range(3):
        ranks = Collected(rank, 3, CPU)
        object.__setattr__(ranks, "buffers", [])
        NorMuon(params, ranks, 0.03, 0.95, 0.04).orthogonalize(updates)
        parts.append(torch.cat([buffer.flatten() for buffer in ranks.buffers]))
    together = torch.cat([update.flatten() for update in whole])
    torch.testing.assert_close(sum(parts), together, atol=1e-6, rtol=1e-6)


# ---- Groups


@pytest.mark.parametrize("kind", ["normuon", "adamw"])
def test_every_parameter_is_in_one_group_with_its_rate(one_rank, kind):
    s = tiny_settings(MATRIX_OPTIMIZER=kind)
    model = random_model(s)
    found = {}
    for optimizer in build_optimizers(model, s.training, one_rank):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert p not in found
                found[p] = type(optimizer).__name__, group["base_lr"]

    rates = {"matrix": 0.03, "table": 0.04, "vector": 0.02}
    assert len(found) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        muon = kind == "normuon" and trained_as(name) == "matrix"
        assert found[p] == ("NorMuon" if muon else "AdamW", rates[trained_as(name)]), name


def test_the_constants_of_both_optimizers(one_rank):
    s = load_settings({"NUM_LAYERS": "2", "MODEL_DIM": "128", "MLP_HIDDEN": "64"})
    muon, adamw = build_optimizers(random_model(s), s.training, one_rank)
    (group,) = muon.param_groups
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
def test_adamw_follows_its_formulas(one_rank, kind):
    """Three steps; rates of 0.04 for tables, 0.02 for vectors and, if by AdamW, 0.03 for matrices.

    Only matrices decay, by 0.04.
    """
    s = tiny_settings(MATRIX_OPTIMIZER=kind)
    model = random_model(s)
    optimizers = build_optimizers(model, s.training, one_rank)
    set_rates(optimizers, 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: [] for name in before}
    torch.manual_seed(0)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = 0.01 * torch.randn_like(p)
            gradients[name].append(p.grad.clone())
        for optimizer in optimizers:
            optimizer.step()

    rates = {"table": 0.04, "vector": 0.02, "matrix": 0.03}
    decays = {"table": 0, "vector": 0, "matrix": 0.04}
    for name, p in model.named_parameters():
        role = trained_as(name)
        if kind == "normuon" and role == "matrix":
            continue
        expected = adamw_reference(before[name], gradients[name], rates[role] / 2, decays[role])
        error = (p.detach().double() - expected).abs().max().item()
        assert error < 1e-6, f"{name}: {error:.2g}"


def test_a_parameter_without_a_role_stops_the_run(one_rank):
    s = tiny_settings()
    model = random_model(s)
    model.blocks[1].attn.temperature = torch.nn.Parameter(torch.ones(4))
    sentence = "The parameter blocks.1.attn.temperature has no row in ROLES, which says how it is"
    with pytest.raises(UserError, match=sentence):
        build_optimizers(model, s.training, one_rank)


def test_which_codebook_size_is_whose():
    for name, _ in random_model(tiny_settings()).named_parameters():
        expected = [size for end, size in LEVELS.items() if f".{name}".endswith(f".{end}")]
        assert [role_of(name).levels] == (expected or [""]), name


@pytest.mark.parametrize("name", ["temperature", "q", "blocks.0.q", "blocks.x.attn.q", "bigram"])
def test_no_role_by_likeness(name):
    with pytest.raises(UserError, match=f"The parameter {name} has no row in ROLES"):
        role_of(name)


def test_the_gradients_are_views_of_one_buffer():
    model = random_model(tiny_settings())
    buffer = flat_gradient(model, extra=1)
    assert len(buffer) == sum(p.numel() for p in model.parameters()) + 1
    buffer.fill_(2)
    assert all((p.grad == 2).all() for p in model.parameters())
    next(model.parameters()).grad.zero_()
    assert (buffer == 0).sum() == 64 * 32


# ---- Schedules


def scale_at(s: Settings, step: int, pace: float) -> float:
    """The scale of a trainer's rates after so many steps of `pace` seconds."""
    trainer = Trainer.__new__(Trainer)
    trainer.s = s
    trainer.step = step
    trainer.seconds = pace * step
    trainer.durations = [pace] * step
    return rate_scale(trainer.steps_left(), trainer.part_done(), s.training)


def test_schedule_by_steps():
    s = tiny_settings(ITERATIONS=100, WARMDOWN_ITERS=40)
    assert [scale_at(s, step, 0.0) for step in (0, 60, 70, 90, 100)] == [1, 1, 0.75, 0.25, 0]


def test_schedule_of_the_system():
    """20,000 steps that need no more than the cap: the last 3,000 fall."""
    s = load_settings({"MAX_WALLCLOCK_SECONDS": "0"})
    scales = [scale_at(s, step, 0.1) for step in (0, 17_000, 18_500, 19_700, 20_000)]
    assert scales == pytest.approx([1, 1, 0.5, 0.1, 0], abs=1e-12)


def test_schedule_under_the_cap_of_the_system():
    """597 s at 0.1 s a step: 5,970 steps, of which the last 3,000 fall."""
    scales = [scale_at(load_settings({}), step, 0.1) for step in (0, 1, 2970, 4470, 5970)]
    assert scales == pytest.approx([1, 1, 1, 0.5, 0], abs=1e-9)


def test_schedule_reaches_zero_at_the_wall_clock_cap():
    """Half a second a step: 100 steps fit."""
    times = dict(MAX_WALLCLOCK_SECONDS=53, CALIBRATION_SECONDS=3)
    s = tiny_settings(ITERATIONS=10000, WARMDOWN_ITERS=40, **times)
    scales = [scale_at(s, step, 0.5) for step in range(101)]
    assert scales[:61] == [1] * 61 and scales[100] == 0
    for a, b in zip(scales[60:100], scales[61:101], strict=True):
        assert math.isclose(a - b, 1 / 40, abs_tol=1e-9)


def test_a_part_of_the_time_instead_of_steps():
    """WARMDOWN_FRACTION: of the steps, or of the time where that is further."""
    s = tiny_settings(ITERATIONS=1000, WARMDOWN_FRACTION=0.5, MAX_WALLCLOCK_SECONDS=103)
    by_steps = [scale_at(s, step, 0.0) for step in (0, 500, 750, 1000)]
    assert by_steps == [1, 1, 0.5, 0]
    by_time = [scale_at(s, step, 0.5) for step in (0, 100, 150, 200)]  # 100 s: 200 steps
    assert by_time == pytest.approx([1, 1, 0.5, 0])


def test_momentum_warms_up_over_1500_steps():
    t = load_settings({}).training
    momenta = [momentum_at(step, t) for step in (0, 375, 750, 1500, 1501, 20_000)]
    assert momenta == pytest.approx([0.92, 0.9375, 0.955, 0.99, 0.99, 0.99], abs=1e-12)


def test_momentum_without_a_warm_up():
    t = tiny_settings(MUON_MOMENTUM_WARMUP_STEPS=0).training
    assert momentum_at(0, t) == pytest.approx(0.92) and momentum_at(1, t) == pytest.approx(0.99)


def test_rates_scale_the_base(one_rank):
    s = tiny_settings()
    optimizers = build_optimizers(random_model(s), s.training, one_rank)
    set_rates(optimizers, 0.5)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == [0.015, 0.02, 0.01]
    assert optimizers[0].param_groups[0]["momentum"] == 0.99  # which is the trainer's to set
