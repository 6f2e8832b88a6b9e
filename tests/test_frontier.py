"""PRESET=frontier's parts, each against its plain definition."""

import itertools

import numpy as np
import pytest
import torch
from conftest import random_model, tiny_settings, write_shard

from train_gpt import (
    GPT,
    NorMuon,
    Ranks,
    TokenStream,
    Training,
    block_passes,
    build_optimizers,
    load_settings,
    newton_schulz,
    rate_scale,
    rms_norm,
    train_batches,
)

CPU = torch.device("cpu")
TOKENS = torch.tensor([[1, 7, 9, 9, 4, 1, 5, 6, 7, 30, 31, 32, 1, 9, 63, 2]])


def test_the_preset_as_its_table_says():
    s = load_settings({"PRESET": "frontier"})
    m = s.model
    assert (m.vocab_size, m.num_layers, m.model_dim, m.num_heads) == (8192, 11, 512, 8)
    assert (m.num_kv_heads, m.mlp_hidden, m.rope_dims, m.rope_base) == (4, 2048, 16, 10000.0)
    assert (m.qk_gain_init, m.xsa_last_n, m.parallel_last_n) == (5.25, 11, 4)
    assert (m.loop_first, m.loop_last, m.loop_passes, s.training.loop_from) == (3, 5, 3, 0.35)
    assert (m.gate_dims, m.smear_dims, m.skip_gates, m.unet_skips) == (32, 12, True, True)
    assert (m.bigram_buckets, m.value_residual, m.bos_reset) == (0, False, True)

    t = s.training
    assert (t.matrix_optimizer, t.matrix_lr, t.embed_lr, t.scalar_lr) == (
        "muon_rows",
        0.026,
        0.03,
        0.02,
    )
    assert (t.weight_decay, t.embed_weight_decay, t.scalar_weight_decay) == (0.095, 0.085, 0.02)
    assert (t.muon_momentum, t.adam_beta2, t.ema_decay) == (0.97, 0.99, 0.9965)
    assert (t.warmdown_fraction, t.warmdown_floor, t.late_qat_threshold) == (0.75, 0.1, 0.0)
    assert (t.loader, s.export.fit, s.evaluation.eval_stride) == ("random", "fill", 64)
    assert s.evaluation.ttt_lr == 0.005


def test_the_preset_has_36_million_weights_and_17_passes():
    m = load_settings({"PRESET": "frontier"}).model
    with torch.device("meta"):
        model = GPT(m)
    assert model.passes == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    matrices = 11 * 2_883_584 + 8192 * 512
    vectors = 11 * (2 * 512 + 2 * 512 + 8 + 8 * 32) + 2 * 8 * 512 + 13
    assert sum(p.numel() for p in model.parameters()) == matrices + vectors == 35_947_365


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("first", "last", "passes", "order"),
    [
        (0, 0, 1, [0, 1, 2, 3]),
        (1, 2, 2, [0, 1, 2, 1, 2, 3]),
        (0, 0, 3, [0, 0, 0, 1, 2, 3]),
        (2, 3, 2, [0, 1, 2, 3, 2, 3]),
    ],
)
def test_loops_pass_their_blocks_again(first, last, passes, order):
    loop = dict(LOOP_FIRST=first, LOOP_LAST=last, LOOP_PASSES=passes)
    s = tiny_settings(NUM_LAYERS=4, **loop)
    assert block_passes(s.model) == order
    model = random_model(s)
    seen = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    model(TOKENS)
    assert seen == order

    seen.clear()
    model.loop(False)
    model(TOKENS)
    assert seen == [0, 1, 2, 3]


def test_a_loop_equals_blocks_of_the_same_weights():
    shape = dict(UNET_SKIPS=0, VALUE_RESIDUAL=0, LN_SCALE=0, XSA_LAST_N=0)
    looped = random_model(tiny_settings(LOOP_FIRST=1, LOOP_LAST=1, LOOP_PASSES=3, **shape))
    deep = GPT(tiny_settings(NUM_LAYERS=5, **shape).model)
    source = {0: 0, 1: 1, 2: 1, 3: 1, 4: 2}
    for index, own in source.items():
        deep.blocks[index].load_state_dict(looped.blocks[own].state_dict())
    rest = {n: w for n, w in looped.state_dict().items() if not n.startswith("blocks")}
    deep.load_state_dict(rest, strict=False)
    torch.testing.assert_close(looped(TOKENS), deep(TOKENS))


def test_a_parallel_block_adds_both_to_what_both_read():
    model = random_model(tiny_settings(PARALLEL_LAST_N=1, LN_SCALE=0))
    before, block = model.blocks[1], model.blocks[2]
    assert block.parallel and not before.parallel
    x = torch.randn(1, 16, 32)
    x0 = torch.randn(1, 16, 32)
    v_first = torch.randn(1, 2, 16, 8)
    got, _ = block(x, x0, v_first, (model.cos, model.sin))

    mixed = block.resid_mix[0] * x + block.resid_mix[1] * x0
    attended, _ = block.attn(rms_norm(mixed), v_first, (model.cos, model.sin), None)
    read = block.mlp(rms_norm(mixed))
    torch.testing.assert_close(got, mixed + block.attn_scale * attended + block.mlp_scale * read)


def test_skip_gates_weigh_stream_and_skip():
    model = random_model(tiny_settings(NUM_LAYERS=4, SKIP_GATES=1))
    assert model.skip_gates.shape == model.skip_weights.shape == (2, 32)
    x = torch.randn(1, 16, 32)
    skip = torch.randn(1, 16, 32)
    g = torch.sigmoid(model.skip_gates[1])
    expected = g * x + (1 - g) * model.skip_weights[1] * skip
    torch.testing.assert_close(model.join(x, skip, 1), expected)
    fresh = GPT(tiny_settings(SKIP_GATES=1).model)
    assert not fresh.skip_gates.any() and (fresh.skip_weights == 1).all()


def test_a_narrow_gate_is_one_at_first_and_reads_the_first_channels():
    s = tiny_settings(GATE_DIMS=5)
    model = random_model(s)
    attn = model.blocks[2].attn
    assert attn.gate_weight.shape == (4, 5) and attn.gate_bias is None
    assert not GPT(s.model).blocks[0].attn.gate_weight.any()

    x = torch.randn(1, 16, 32)
    v_first = torch.randn(1, 2, 16, 8)
    rotary = (model.cos, model.sin)
    gate = 2 * torch.sigmoid(x[..., :5] @ attn.gate_weight.T)
    got, _ = attn(x, v_first, rotary, None)
    attn.gated = False
    attn.out.data, out = torch.eye(32), attn.out.data.clone()
    heads, _ = attn(x, v_first, rotary, None)
    gated = heads.unflatten(-1, (4, 8)) * gate[..., None]
    torch.testing.assert_close(got, gated.flatten(-2) @ out.T)


def test_content_smear_adds_the_raw_embedding_before_but_not_across_a_document():
    model = random_model(tiny_settings(SMEAR_DIMS=6, BIGRAM_BUCKETS=0))
    assert model.smear_gate.shape == (6,) and model.smear_scale.shape == ()
    e = model.tok_emb[TOKENS[0]]
    gate = torch.sigmoid(e[:, :6] @ model.smear_gate)
    for i, token in enumerate(TOKENS[0].tolist()):
        x = e[i]
        if i > 0 and token != 1:
            x = x + model.smear_scale * gate[i] * e[i - 1]
        torch.testing.assert_close(model.embed(TOKENS)[0, i], rms_norm(x))
    fresh = GPT(tiny_settings(SMEAR_DIMS=6).model)
    assert not fresh.smear_gate.any() and fresh.smear_scale == 0


PARTS = [
    {"PARALLEL_LAST_N": 2},
    {"LOOP_FIRST": 1, "LOOP_LAST": 2, "LOOP_PASSES": 2},
    {"SKIP_GATES": 1},
    {"GATE_DIMS": 4},
    {"SMEAR_DIMS": 4},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_parts_are_causal_and_keep_single_positions(part):
    model = random_model(tiny_settings(NUM_LAYERS=4, **part))
    at = torch.tensor([[3, 9, 15]])
    with torch.no_grad():
        before = model(TOKENS)
        torch.testing.assert_close(model(TOKENS, at=at), before[:, at[0]], atol=2e-5, rtol=1e-4)
        for t in (1, 5, 12):
            changed = TOKENS.clone()
            changed[0, t] = (changed[0, t] + 11) % 64
            after = model(changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.equal(before[:, t], after[:, t])


# ---------------------------------------------------------------- optimizer, schedule, loader


def test_rows_have_one_norm_before_they_are_made_orthogonal():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 9))
    before = p.detach().clone()
    optimizer = NorMuon([p], Ranks(0, 1, CPU), 0.02, 0.9, 0.1, rows_first=True)
    optimizer.param_groups[0].update(lr=0.02, momentum=0.9)
    p.grad = torch.randn(6, 9)
    momentum = 0.1 * p.grad
    update = 0.1 * p.grad + 0.9 * momentum
    optimizer.step()
    rows = update / update.norm(dim=1, keepdim=True)
    expected = before * (1 - 0.02 * 0.1) - 0.02 * newton_schulz(rows[None])[0]
    torch.testing.assert_close(p.detach(), expected, atol=1e-5, rtol=1e-4)


def test_decay_and_beta_by_role():
    s = load_settings({"PRESET": "frontier", "NUM_LAYERS": "6", "XSA_LAST_N": "6"})
    with torch.device("meta"):
        model = GPT(s.model)
    muon, adamw = build_optimizers(model, s.training, Ranks(0, 1, CPU))
    assert muon.param_groups[0]["weight_decay"] == 0.095 and muon.rows_first
    tables, vectors = adamw.param_groups
    assert (tables["weight_decay"], tables["base_lr"], tables["betas"]) == (
        0.085,
        0.03,
        (0.9, 0.99),
    )
    assert (vectors["weight_decay"], vectors["base_lr"]) == (0.02, 0.02)


def test_the_rates_fall_by_time_to_a_floor():
    t = Training(warmdown_fraction=0.75, warmdown_floor=0.1)
    scales = [rate_scale(1e9, done, t) for done in (0.0, 0.25, 0.625, 1.0)]
    assert scales == pytest.approx([1.0, 1.0, 0.55, 0.1])


def test_random_sequences_are_the_same_on_any_ranks_and_change_by_step(tmp_path):
    write_shard(tmp_path / "fineweb_train_0.bin", np.arange(3000) % 64)
    stream = TokenStream(str(tmp_path), "train", 64)
    s = tiny_settings(LOADER="random", MICRO_BATCH_SEQS=1, TRAIN_BATCH_TOKENS=96)

    def inputs(step: int, world: int) -> list[list[int]]:
        ranks = [Ranks(rank, world, CPU) for rank in range(world)]
        batches = [batch for rank in ranks for batch in train_batches(stream, step, s, rank)]
        assert all((b.targets[:, :-1] == b.inputs[:, 1:]).all() for b in batches)
        return [row for batch in batches for row in batch.inputs.tolist()]

    steps = [inputs(step, 1) for step in range(4)]
    assert all(inputs(step, world) == steps[step] for step in (0, 3) for world in (2, 3))
    starts = [row[0] for rows in steps for row in rows]
    assert len(starts) == 24 and len(set(starts)) > 12
    assert not all((b - a) % 64 == 16 for a, b in itertools.pairwise(starts))
    other = tiny_settings(LOADER="random", SEED=1, TRAIN_BATCH_TOKENS=96)
    (batch,) = train_batches(stream, 0, other, Ranks(0, 1, CPU))
    assert batch.inputs.tolist() != steps[0]
