"""Optimizer: NorMuon against a plain reference, the schedules, and the average of the weights."""

import math

import pytest
import torch
from conftest import random_model, tiny_settings

from train_gpt import (
    MATRICES,
    NorMuon,
    Ranks,
    build_optimizers,
    newton_schulz,
    rate_scale,
    set_rates,
)


def reference_step(p, g, momentum, second, lr, mu, beta2, weight_decay):
    """One NorMuon step on one matrix, as its paper writes it; returns the new p, momentum and second moment."""
    momentum = mu * momentum + (1 - mu) * g
    x = (1 - mu) * g + mu * momentum
    transpose = x.shape[0] > x.shape[1]
    x = x.T if transpose else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if transpose else x
    second = beta2 * second + (1 - beta2) * (x**2).mean(dim=1, keepdim=True)
    scaled = x / second.sqrt()
    scaled = scaled * x.norm() / scaled.norm()
    return (
        p * (1 - lr * weight_decay) - lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * scaled,
        momentum,
        second,
    )


def test_normuon_equals_a_plain_loop_over_matrices(one_rank):
    torch.manual_seed(1)
    params = [
        torch.nn.Parameter(torch.randn(shape))
        for shape in ((8, 8), (12, 8), (8, 12), (8, 8), (12, 8))
    ]
    expected = [
        (p.detach().double(), torch.zeros_like(p).double(), torch.zeros(len(p), 1).double())
        for p in params
    ]
    optimizer = NorMuon(params, one_rank, 0.03, 0.95, 0.04)
    for step in range(4):
        mu = 0.9 + 0.02 * step
        lr = 0.03 * (1 - step / 8)
        set_rates([optimizer], 1 - step / 8, mu)
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p)
            expected[i] = reference_step(
                expected[i][0], p.grad.double(), *expected[i][1:], lr, mu, 0.95, 0.04
            )
        optimizer.step()
    for p, (wanted, _, _) in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(newton_schulz(torch.randn(shape)))
    assert values.max() < 1.3 and values.median() > 0.6


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_orthogonalisation_is_shared_out_by_operations(world):
    shapes = (
        [(1500, 512)] * 11
        + [(512, 1500)] * 11
        + [(512, 512)] * 22
        + [(256, 512)] * 22
        + [(512, 128)]
    )
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    owned = NorMuon(params, Ranks(0, world, torch.device("cpu")), 0.03, 0.95, 0.04).owned
    stacks = list(dict.fromkeys(shapes))
    given = sorted((i, j) for own in owned for i, js in enumerate(own) for j in js)
    assert given == sorted(
        (i, j) for i, shape in enumerate(stacks) for j in range(shapes.count(shape))
    )
    loads = [
        sum(min(stacks[i]) ** 2 * max(stacks[i]) * len(js) for i, js in enumerate(own))
        for own in owned
    ]
    assert max(loads) <= 1.05 * sum(loads) / world


@pytest.mark.parametrize("kind", ["normuon", "adamw"])
def test_every_parameter_is_in_one_group_with_its_rate(one_rank, kind):
    s = tiny_settings(MATRIX_OPTIMIZER=kind)
    model = random_model(s)
    rates = {
        p: g["base_lr"]
        for o in build_optimizers(model, s, one_rank)
        for g in o.param_groups
        for p in g["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        embedding = name in ("tok_emb", "bigram.table")
        assert rates[p] == (
            s.matrix_lr if name.endswith(MATRICES) else s.embed_lr if embedding else s.scalar_lr
        )


def test_schedule_by_steps():
    s = tiny_settings(ITERATIONS=100, WARMDOWN_ITERS=40)
    assert [rate_scale(step, 0.0, s) for step in (0, 60, 70, 90, 100)] == [1, 1, 0.75, 0.25, 0]


def test_schedule_reaches_zero_at_the_wall_clock_cap():
    s = tiny_settings(
        ITERATIONS=10000, WARMDOWN_ITERS=40, MAX_WALLCLOCK_SECONDS=53, CALIBRATION_SECONDS=3
    )
    scales = [
        rate_scale(step, 0.5 * step, s) for step in range(101)
    ]  # half a second a step: 100 steps fit
    assert scales[:61] == [1] * 61 and scales[100] == 0
    assert all(
        math.isclose(a - b, 1 / 40, abs_tol=1e-9)
        for a, b in zip(scales[60:100], scales[61:101], strict=True)
    )
