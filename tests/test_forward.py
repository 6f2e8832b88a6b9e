"""The forward pass of verify.py against that of train_gpt.py: two implementations, one network."""

import dataclasses
from collections import ChainMap

import pytest
import torch
import torch.nn.functional as F
from conftest import pairs

import train_gpt
import verify

SMALL = pairs("""
    vocab_size=300 num_layers=5 model_dim=64 num_heads=8 num_kv_heads=4 mlp_hidden=96 rope_dims=4
    xsa_last_n=2 bigram_buckets=128 bigram_dim=16 train_seq_len=64
""")
ABSENT = [{"bigram_buckets": 0}, {"skips": "off"}, {"xsa_last_n": 0}]
ABSENT += [{"value_residual": False}, {"smear_gate": False}, {"gated_attention": False}]
ABSENT += [{"bos_reset": False}, {"ln_scale": False}]
FRONTIER = [{"xsa_last_n": 5}, {"parallel_last_n": 3}, {"gate_dims": 7}, {"smear_dims": 5}]
FRONTIER += [{"skips": "gated"}, {"loop_first": 1, "loop_last": 2, "loop_passes": 3}]
SWITCHES = [
    {},
    *ABSENT,
    dict(ChainMap(*ABSENT)),
    *FRONTIER,
    dict(ChainMap(*FRONTIER, {"bigram_buckets": 0, "value_residual": False})),
    {"num_kv_heads": 8},
    {"num_kv_heads": 1},
    {"rope_dims": 2},
    {"rope_dims": 8},
    {"num_layers": 2},
    {"num_layers": 6},
    {"mlp_negative_slope": 0.0},
    {"rope_base": 100.0},
    {"loop_first": 0, "loop_last": 0, "loop_passes": 2},
    {"loop_first": 3, "loop_last": 4, "loop_passes": 2, "value_residual": False},
    {"smear_dims": 5, "bos_reset": False},
]


def both(changes: dict) -> tuple[train_gpt.GPT, verify.Model]:
    """The two networks on the same weights, none of them left at its initial zero or one."""
    sizes = {name: int(size) for name, size in SMALL.items()}
    settings = train_gpt.Settings(**sizes | changes)
    theirs = train_gpt.GPT(settings)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in theirs.parameters():
            scale = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.7
            p.copy_(scale * torch.randn(p.shape, generator=draw))
    weights = {name: p.detach().numpy() for name, p in theirs.state_dict().items()}
    config = dataclasses.asdict(settings) | dict(
        unet_skips=settings.skips != "off",
        skip_gates=settings.skips == "gated",
        logit_softcap=train_gpt.LOGIT_SOFTCAP,
    )
    return theirs, verify.Model(config, weights, "cpu")


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_same_logits(changes):
    theirs, ours = both(changes)
    shapes = {name: tuple(p.shape) for name, p in ours.params.items()}
    assert shapes == verify.expected_shapes(ours.config)
    tokens = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(1))
    tokens[:, [0, 17, 40]] = verify.BOS
    with torch.no_grad():
        expected = theirs(tokens)
        assert expected.std() > 0.3, "logits that say something"
        assert (ours(tokens) - expected).abs().max() < 1e-4
        last = torch.arange(50, 64)
        assert (ours(tokens)[:, 50:] - theirs(tokens, at=last)).abs().max() < 1e-4
        assert (ours(tokens[:, :1]) - theirs(tokens[:, :1])).abs().max() < 1e-4


def test_verify_reads_the_softcap_from_the_config(monkeypatch):
    monkeypatch.setattr(train_gpt, "LOGIT_SOFTCAP", 0.5)
    theirs, ours = both({})
    tokens = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens)
        assert 0.4 < expected.abs().max() <= 0.5
        assert (ours(tokens) - expected).abs().max() < 1e-4


def test_same_gradients():
    theirs, ours = both({})
    tokens = torch.randint(0, 300, (2, 65), generator=torch.Generator().manual_seed(2))
    for p in ours.params.values():
        p.requires_grad_()
    theirs(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    F.cross_entropy(ours(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(ours.params[name].grad, p.grad, rtol=1e-3, atol=1e-5)
