"""Model: each feature against its written definition, and what may look where."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, tiny_settings

from train_gpt import GPT, BigramHash, load_settings, rms_norm, rotate

TOKENS = torch.tensor([[1, 7, 9, 9, 4, 1, 5, 6, 7, 30, 31, 32, 1, 9, 63, 2]])


def test_the_full_model_has_26_million_parameters():
    with torch.device("meta"):
        model = GPT(load_settings({}))
    layer = 2 * 512 * 512 + 2 * 256 * 512 + 2 * 512 * 1500  # q, out; k, v; MLP
    layer += 8 + 8 * 512 + 8 + 4 * 512  # query gains; gate; scales and mix
    value_mixes = 10 * 2
    expected = 1024 * 512 + 2048 * 128 + 512 * 128 + 1 + 512 + 5 * 512 + 11 * layer + value_mixes
    assert sum(p.numel() for p in model.parameters()) == expected == 26_469_573


# ---- Initial weights


def initial_weights(preset: str) -> dict[str, torch.Tensor]:
    """Of three layers at full width."""
    torch.manual_seed(0)
    model = GPT(load_settings({"PRESET": preset, "NUM_LAYERS": "3"}))
    return dict(model.named_parameters())


CONSTANT = {  # the end of a parameter's name -> the number that it is full of
    "bigram.proj": 0,
    "bigram.scale": 0.05,
    "smear_gate": 0,
    "skip_weights": 1,
    "attn_scale": 1,
    "mlp_scale": 1,
    "attn.out": 0,
    "attn.q_gain": 1.5,
    "attn.gate_weight": 0,
    "attn.gate_bias": 4,
    "attn.value_mix": 0.5,
    "mlp.down": 0,
}
ORTHOGONAL = ("attn.q", "attn.k", "attn.v", "mlp.up")


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
def test_initial_weights_of_every_kind(preset):
    """Whatever is neither a constant nor orthogonal is named here."""
    rest = {}
    for name, w in initial_weights(preset).items():
        number = next((n for end, n in CONSTANT.items() if name.endswith(end)), None)
        if number is not None:
            assert w.unique().tolist() == [pytest.approx(number)], name
        elif name.endswith(ORTHOGONAL):
            gram = w.double() @ w.mT.double() if len(w) <= w.size(1) else w.mT.double() @ w.double()
            identity = torch.eye(len(gram), dtype=torch.double)
            torch.testing.assert_close(gram, identity, atol=1e-5, rtol=0, msg=name)
        else:
            rest[name] = w

    mixes = [rest.pop(f"blocks.{i}.resid_mix") for i in range(3)]
    assert all(torch.equal(mix, torch.tensor([[1.0], [0.0]]).expand(2, 512)) for mix in mixes)
    assert rest.keys() == {"tok_emb", "bigram.table"}
    assert rest["tok_emb"].std().item() == pytest.approx(0.005, rel=0.01)
    assert abs(rest["tok_emb"].mean().item()) < 1e-4
    std = {"pcll": 0.02, "pcloadloveletter_v6": 0}[preset]
    assert rest["bigram.table"].std().item() == pytest.approx(std, rel=0.01)


def test_the_first_layer_mixes_no_values():
    names = initial_weights("pcll").keys()
    assert [f"blocks.{i}.attn.value_mix" in names for i in range(3)] == [False, True, True]


def test_the_seed_alone_decides():
    a, b = initial_weights("pcll"), initial_weights("pcll")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("layers", "last", "exclusive"), [(11, 4, [7, 8, 9, 10]), (3, 2, [1, 2]), (3, 0, [])]
)
def test_which_layers_have_exclusive_attention(layers, last, exclusive):
    with torch.device("meta"):
        model = GPT(load_settings({"NUM_LAYERS": str(layers), "XSA_LAST_N": str(last)}))
    assert [i for i, block in enumerate(model.blocks) if block.attn.exclusive] == exclusive


# ---- Features


@pytest.mark.parametrize(("std", "learns"), [(0.02, True), (0.0, False)])
def test_the_bigram_hash_learns_only_if_its_table_does_not_start_at_zero(std, learns):
    model = GPT(tiny_settings(BIGRAM_INIT_STD=std))
    model(TOKENS)[0, :, 5].sum().backward()
    assert bool(model.bigram.proj.grad.any()) == learns


def test_rotary_turns_pairs_of_the_first_dimensions_by_position_times_frequency():
    model = GPT(tiny_settings())
    x = torch.randn(1, 1, 16, 8)
    y = rotate(x, model.cos, model.sin)
    assert torch.equal(y[..., 4:], x[..., 4:])
    for t in range(16):
        for pair in range(2):
            angle = t * 50000.0 ** (-2 * pair / 4)
            a, b = x[0, 0, t, pair].item(), x[0, 0, t, pair + 2].item()
            assert y[0, 0, t, pair].item() == pytest.approx(
                a * math.cos(angle) + b * math.sin(angle), abs=1e-5
            )
            assert y[0, 0, t, pair + 2].item() == pytest.approx(
                b * math.cos(angle) - a * math.sin(angle), abs=1e-5
            )


def test_embedding_smear_and_bigram_follow_their_formulas():
    model = random_model(tiny_settings())
    e, rows = model.tok_emb[TOKENS[0]], []
    for i, token in enumerate(TOKENS[0].tolist()):
        fresh = i == 0 or token == 1
        bucket = 31 if fresh else ((36313 * token) ^ (27191 * TOKENS[0, i - 1].item())) % 31
        x = e[i] + model.bigram.scale * (model.bigram.proj @ model.bigram.table[bucket])
        rows.append((x / x.square().mean().add(torch.finfo(torch.float32).eps).sqrt(), fresh))
    gate = torch.sigmoid(model.smear_gate)
    for i, (x, fresh) in enumerate(rows):
        expected = (1 - gate) * x + (0 if fresh else gate * rows[i - 1][0])
        torch.testing.assert_close(model.embed(TOKENS)[0, i], expected)


def test_bigram_buckets_as_numbers():
    """(36313 t xor 27191 t_before) mod 2047; 2047 itself for a token without one before it."""
    bigram = BigramHash(load_settings({}))
    with torch.no_grad():
        bigram.table.copy_(torch.arange(2048.0)[:, None].expand(-1, 128))
        bigram.proj[0, 0] = 1
        bigram.scale.fill_(1)
    tokens = torch.tensor([[5, 7, 1023, 0]])
    starts = torch.tensor([[True, False, False, False]])
    buckets = bigram(tokens, starts, torch.float32)[0, :, 0]
    assert buckets.tolist() == [2047, 1082, 53, 1757]


def head_output(model, attn, head: int, h, v_first) -> torch.Tensor:
    """One head of four, which share two key/value heads, by a loop over positions: [T,E]."""
    mine, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
    keys = rotate(rms_norm(h @ attn.k[shared].T), model.cos, model.sin)
    queries = rotate(rms_norm(h @ attn.q[mine].T), model.cos, model.sin) * attn.q_gain[head]
    values = attn.value_mix[0] * v_first[head // 2] + attn.value_mix[1] * (h @ attn.v[shared].T)
    rows = []
    for t in range(len(h)):
        weights = torch.softmax(queries[t] @ keys[: t + 1].T / math.sqrt(8), dim=0)
        y = weights @ values[: t + 1]
        own = values[t] / values[t].norm()
        y = y - (y @ own) * own
        rows.append(y * torch.sigmoid(attn.gate_weight[head] @ h[t] + attn.gate_bias[head]))
    return torch.stack(rows)


def test_attention_and_mlp_follow_their_formulas():
    """The third block, with value mix, gate and exclusive attention."""
    model = random_model(tiny_settings())
    block, attn = model.blocks[2], model.blocks[2].attn
    x, x0, v_first = torch.randn(1, 16, 32), torch.randn(1, 16, 32), torch.randn(1, 2, 16, 8)
    got, raw = block(x, x0, v_first, (model.cos, model.sin))

    x = (block.resid_mix[0] * x + block.resid_mix[1] * x0)[0]
    h = rms_norm(x) / math.sqrt(3)
    torch.testing.assert_close(raw[0].transpose(0, 1).flatten(1), h @ attn.v.T)
    heads = [head_output(model, attn, head, h, v_first[0]) for head in range(4)]
    x = x + block.attn_scale * (torch.cat(heads, dim=1) @ attn.out.T)
    hidden = F.leaky_relu(rms_norm(x) / math.sqrt(3) @ block.mlp.up.T, 0.5) ** 2
    expected = x + block.mlp_scale * (hidden @ block.mlp.down.T)
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-4)


def test_logits_are_capped_and_tied_to_the_embedding():
    model = random_model(tiny_settings())
    with torch.no_grad():
        model.tok_emb.mul_(20)
        hidden = []
        model.blocks[2].register_forward_hook(lambda m, args, out: hidden.append(out[0]))
        logits = model(TOKENS)
        raw = rms_norm(hidden[0]) @ model.tok_emb.T
    assert raw.abs().max() > 40
    torch.testing.assert_close(logits, 30 * torch.tanh(raw / 30), atol=1e-4, rtol=1e-4)


def test_unet_skips_join_first_half_to_second_half_last_in_first_out():
    model = random_model(tiny_settings(NUM_LAYERS=5))
    assert model.skip_weights.shape == (2, 32)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, args, out, i=i: seen.update({i: (args[0], out[0])}))
    model(TOKENS)
    for block, source in ((2, 1), (3, 0)):
        torch.testing.assert_close(
            seen[block][0], seen[block - 1][1] + model.skip_weights[block - 2] * seen[source][1]
        )
    assert seen[4][0] is seen[3][1]


SWITCHES = [
    {},
    {"SMEAR_GATE": 0},
    {"BIGRAM_BUCKETS": 0},
    {"VALUE_RESIDUAL": 0},
    {"GATED_ATTENTION": 0},
    {"XSA_LAST_N": 0},
    {"SKIPS": "off"},
    {"LN_SCALE": 0},
    {"ROPE_DIMS": 8},
    {"MLP_NEGATIVE_SLOPE": 0},
    {"BOS_RESET": 0},
    {"NUM_LAYERS": 4},
    {"PARALLEL_LAST_N": 2},
    {"LOOP_FIRST": 1, "LOOP_LAST": 2, "LOOP_PASSES": 2},
    {"SKIPS": "gated", "GATE_DIMS": 4, "SMEAR_DIMS": 4},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_causal_with_every_feature_on_and_off(switch):
    model = random_model(tiny_settings(**switch))
    with torch.no_grad():
        before = model(TOKENS)
        for t in (1, 5, 12, 15):
            changed = TOKENS.clone()
            changed[0, t] = (changed[0, t] + 11) % 64
            after = model(changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.equal(before[:, t], after[:, t])


@pytest.mark.parametrize("switch", SWITCHES[1:9], ids=str)
def test_every_feature_has_an_effect(switch):
    torch.manual_seed(0)
    with torch.no_grad():
        with_it, without = random_model(tiny_settings()), random_model(tiny_settings(**switch))
        without.load_state_dict(
            {k: v for k, v in with_it.state_dict().items() if k in without.state_dict()}
        )
        assert (with_it(TOKENS) - without(TOKENS)).abs().max() > 1e-3


@pytest.mark.parametrize("at", [[15], [0], [3, 4, 5, 6], [9, 2, 2, 15], list(range(16))], ids=str)
def test_logits_of_chosen_positions_are_those_of_all(at):
    """The same positions of both sequences, in any order."""
    model = random_model(tiny_settings())
    tokens = torch.cat((TOKENS, TOKENS.flip(1)))
    with torch.no_grad():
        got = model(tokens, at=torch.tensor(at))
        torch.testing.assert_close(got, model(tokens)[:, at], atol=2e-5, rtol=1e-4)


def test_with_targets_the_nats_of_each():
    model = random_model(tiny_settings())
    targets = TOKENS.roll(-1, dims=1)
    logits = model(TOKENS).double()
    expected = -torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0]
    nats = model(TOKENS, targets)
    assert nats.dtype == torch.float32 and nats.shape == (1, 16)
    torch.testing.assert_close(nats.double(), expected, atol=1e-5, rtol=1e-5)


def test_shorter_sequences_are_the_beginning_of_longer_ones():
    model = random_model(tiny_settings())
    with torch.no_grad():
        short = model(TOKENS[:, :7])
        torch.testing.assert_close(short, model(TOKENS)[:, :7], atol=2e-5, rtol=1e-4)


def test_activations_in_bfloat16_and_weights_in_float32():
    s = tiny_settings()
    exact, model = random_model(s), GPT(s, torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    hidden = []
    model.blocks[1].register_forward_hook(lambda m, args, out: hidden.append(out[0].dtype))
    logits = model(TOKENS)
    assert hidden == [torch.bfloat16] and logits.dtype == torch.float32
    assert 0 < (logits - exact(TOKENS)).abs().max() < 0.5


@pytest.mark.parametrize(("reset", "leaks"), [(1, False), (0, True)])
def test_smear_and_bigram_stop_at_a_document_start(reset, leaks):
    """Without attention, nothing but these two can carry the token before a BOS over it."""
    model = random_model(tiny_settings(BOS_RESET=reset))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.zero_()
        changed = TOKENS.clone()
        changed[0, 4] = 50  # the token before the BOS at position 5
        difference = (model(TOKENS) - model(changed)).abs().amax(dim=(0, 2))
    assert (difference[5] > 1e-4) == leaks and difference[6:].max() == 0 and difference[4] > 1e-4
