"""What is written so as to be faster is the same function: the plain forms are the reference."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench import plain
from conftest import random_model, tiny_settings
from torch.overrides import TorchFunctionMode

import train_gpt
from train_gpt import Distributed, Moments, accumulate_grads, flatten_grads

# MLPs of 48 and of 1,500 hidden units are padded, one of 128 is not.
WIDTHS = [48, 128, 1500]
NETWORKS = [
    {},
    dict(PARALLEL_LAST_N=2, SKIPS="gated", GATE_DIMS=5, SMEAR_DIMS=4, VALUE_RESIDUAL=0),
    dict(LOOP_FIRST=1, LOOP_LAST=1, LOOP_PASSES=3, BIGRAM_BUCKETS=0, LN_SCALE=0),
]


def cast_model(**changes) -> train_gpt.GPT:
    """A network that computes in float32 and casts its weights for it: they are float64."""
    model = random_model(tiny_settings(**changes))
    for p in model.parameters():
        p.data = p.data.double()
    return model


def loss_and_gradients(model: train_gpt.GPT) -> tuple[float, dict[str, torch.Tensor]]:
    tokens = torch.randint(1, 64, (4, 17), generator=torch.Generator().manual_seed(3))
    loss = model(tokens[:, :-1], tokens[:, 1:]).mean()
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


FORMS = [[form] for form in plain.PLAIN] + [list(plain.PLAIN)]


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: "+".join(x.__name__ for x in forms))
@pytest.mark.parametrize("changes", NETWORKS, ids=["pcll", "frontier", "loops"])
@pytest.mark.parametrize("width", WIDTHS)
def test_loss_and_gradients_are_those_of_the_plain_form(forms, changes, width):
    """To float32's rounding: 6e-8 an operation, some dozens of them one after the other, and up to
    ten times as much of what is left where the terms of a gradient cancel."""
    model = cast_model(MLP_HIDDEN=width, **changes)
    loss, gradients = loss_and_gradients(model)
    expected, others = loss_and_gradients(plain.make_plain(model, *forms))
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients.items():
        error = (gradient - others[name]).norm() / others[name].norm()
        assert error < 5e-5, name


class Products(TorchFunctionMode):
    """The weights of F.linear while it is active."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            self.weights.append(args[1])
        return function(*args, **(kwargs or {}))


def products(model: train_gpt.GPT) -> list[torch.Tensor]:
    tokens = torch.randint(1, 64, (2, 16))
    with Products() as seen, torch.no_grad():
        model(tokens)
    return seen.weights


@pytest.mark.parametrize("width, padded", [(1, 128), (48, 128), (128, 128), (1500, 1536)])
def test_in_bfloat16_the_mlp_is_a_multiple_of_128_wide(width, padded):
    model = train_gpt.GPT(tiny_settings(MLP_HIDDEN=width), torch.bfloat16)
    shapes = [tuple(w.shape) for w in products(model)]
    assert shapes.count((padded, 32)) == shapes.count((32, padded)) == 3  # one a layer
    assert model.blocks[0].mlp.up.shape == (width, 32)


def test_in_bfloat16_the_scales_are_in_the_weights():
    s = tiny_settings(MLP_HIDDEN=128)
    model = train_gpt.GPT(s, torch.bfloat16)
    model.load_state_dict(random_model(s).state_dict())
    weights = products(model)
    for block in model.blocks:
        for scale, w in ((block.attn_scale, block.attn.out), (block.mlp_scale, block.mlp.down)):
            folded = (scale[:, None] * w).bfloat16()  # rounded once
            assert sum(torch.equal(folded, other) for other in weights) == 1


def test_in_float32_each_product_is_with_the_parameter_itself():
    """So calibration finds it; the gate's is the only other one."""
    model = random_model(tiny_settings())
    named = {id(p): name for name, p in model.named_parameters()}
    names = [named[id(w)] for w in products(model)]
    matrices = [name for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name]
    expected = [name for name in matrices if not name.endswith("resid_mix")]
    assert sorted(names) == sorted([*expected, "bigram.proj", "tok_emb"])


def test_gradients_add_up_in_the_flat_buffer():
    """Of two losses, one of which one parameter does not reach."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    params = list(model.parameters())
    buffer = flatten_grads(model)
    x = torch.tensor([[1.0, -2.0]])
    accumulate_grads(model(x).sum(), params)
    accumulate_grads(model[0](x).sum(), params)
    both = torch.autograd.grad(model(x).sum() + model[0](x).sum(), params)
    expected = torch.cat([gradient.flatten() for gradient in both])
    torch.testing.assert_close(buffer[:-1], expected)
    assert buffer[-1] == 0 and buffer[:-1].abs().sum() > 0


# ---- The compiler's switch


@pytest.mark.parametrize("known", [True, False])
def test_mix_order_reductions_are_off_where_there_is_such_a_switch(monkeypatch, known):
    switches = ["triton.mix_order_reduction", "max_autotune"][not known :]
    monkeypatch.setattr(torch._inductor, "list_options", lambda: switches)
    seen = []
    monkeypatch.setattr(train_gpt.GPT, "compile", lambda self, **options: seen.append(options))
    model = random_model(tiny_settings())
    train_gpt.compile_model(model, tiny_settings(COMPILE="0"))
    assert seen == []
    train_gpt.compile_model(model, tiny_settings(COMPILE="1"))
    options = {"triton.mix_order_reduction": False} if known else {}
    assert seen == [dict(dynamic=False, options=options)]


# ---- The export, shared out over the ranks


class Waits(Exception):
    """A rank has encoded its share and waits for the others."""


def export_of(world_size: int, monkeypatch, as_rank) -> tuple[bytes, list[dict]]:
    """The artifact, and the tensors that each rank encodes; rank 0 comes last."""
    s = tiny_settings(FIT="shrink")
    weights = {name: w.numpy() for name, w in random_model(s).state_dict().items()}
    moments = {
        name: Moments(np.arange(1.0, len(w) + 1), np.eye(w.shape[1]) + 0.1)
        for name, w in weights.items()
        if train_gpt.role_of(name).levels
    }
    shards = []

    def all_gather_objects(self, shard: dict) -> list[dict]:
        shards.append(shard)
        if len(shards) < world_size:
            raise Waits
        return shards

    monkeypatch.setattr(Distributed, "all_gather_objects", all_gather_objects)
    monkeypatch.setattr(Distributed, "broadcast_objects", lambda self, *values: list(values))
    for rank in reversed(range(world_size)):
        as_rank(rank, world_size)
        try:
            artifact = train_gpt.export(weights, moments, {"x": 1}, s, 1000)
        except Waits:
            assert rank > 0
    assert set().union(*shards) == weights.keys()
    return artifact, shards


def test_any_number_of_ranks_exports_the_same_bytes(monkeypatch, as_rank):
    alone, _ = export_of(1, monkeypatch, as_rank)
    for world_size in (2, 3, 8):
        artifact, shards = export_of(world_size, monkeypatch, as_rank)
        assert artifact == alone
        assert sum(map(len, shards)) == len(set().union(*shards))  # each tensor by one rank


def test_two_ranks_have_as_many_tensors_of_each_shape(monkeypatch, as_rank):
    """But for one: those of one shape take as long."""
    _, shards = export_of(2, monkeypatch, as_rank)
    own, other = (Counter(coded.shape for coded in shard.values()) for shard in shards)
    assert own[(48, 32)] + other[(48, 32)] == 3 and own[(32, 32)] + other[(32, 32)] == 6
    for shape in own | other:
        assert abs(own[shape] - other[shape]) <= 1, shape
