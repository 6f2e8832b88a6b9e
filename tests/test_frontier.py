"""PRESET=frontier: its numbers, how its parts begin, and what a training makes of them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import pairs, random_model, tiny_settings, write_shard

import train_gpt
from train_gpt import (
    GPT,
    Settings,
    TokenStream,
    TrainState,
    block_order,
    load_settings,
    newton_schulz,
    train_batches,
)

TOKENS = torch.tensor([[1, 7, 9, 9, 4, 1, 5, 6, 7, 30, 31, 32, 1, 9, 63, 2]])


def test_the_preset_as_its_table_says():
    s = load_settings({"PRESET": "frontier"})
    assert (s.vocab_size, s.num_layers, s.model_dim, s.num_heads) == (8192, 11, 512, 8)
    assert (s.num_kv_heads, s.mlp_hidden, s.rope_dims, s.rope_base) == (4, 2048, 16, 10000.0)
    assert (s.qk_gain_init, s.xsa_last_n, s.parallel_last_n) == (5.25, 11, 4)
    assert (s.loop_first, s.loop_last, s.loop_passes) == (3, 5, 3)
    assert (s.gate_dims, s.smear_dims, s.skips) == (32, 12, "gated")
    assert (s.bigram_buckets, s.value_residual, s.bos_reset) == (0, False, True)

    assert (s.matrix_optimizer, s.loader, s.fit) == ("muon_rows", "random", "fill")
    assert (s.matrix_lr, s.embed_lr, s.scalar_lr) == (0.026, 0.03, 0.02)
    assert (s.weight_decay, s.embed_weight_decay, s.scalar_weight_decay) == (0.095, 0.085, 0.02)
    assert (s.muon_momentum, s.adam_beta2, s.ema_decay) == (0.97, 0.99, 0.9965)
    assert (s.warmdown_fraction, s.warmdown_floor, s.late_qat_threshold) == (0.75, 0.1, 0.0)
    assert (s.eval_stride, s.ttt_protocol, s.ttt_lr) == (64, "per_document", 0.005)
    assert (s.document_rank, s.document_lr, s.document_tokens) == (96, 0.0001, 48)


def test_the_preset_has_36_million_weights_and_17_passes():
    with torch.device("meta"):
        model = GPT(load_settings({"PRESET": "frontier"}))
    assert model.order == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    matrices = 11 * 2_883_584 + 8192 * 512
    vectors = 11 * (2 * 512 + 2 * 512 + 8 + 8 * 32) + 2 * 8 * 512 + 13
    assert sum(p.numel() for p in model.parameters()) == matrices + vectors == 35_947_365


# ---- The model


@pytest.mark.parametrize(
    ("first", "last", "passes", "order"),
    [
        (0, 0, 1, [0, 1, 2, 3]),
        (1, 2, 2, [0, 1, 2, 1, 2, 3]),
        (0, 0, 3, [0, 0, 0, 1, 2, 3]),
        (2, 3, 2, [0, 1, 2, 3, 2, 3]),
    ],
)
def test_recurrent_blocks_pass_again(first, last, passes, order):
    loop = dict(LOOP_FIRST=first, LOOP_LAST=last, LOOP_PASSES=passes)
    s = tiny_settings(NUM_LAYERS=4, **loop)
    assert block_order(s) == order
    model = random_model(s)
    seen = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    model(TOKENS)
    assert seen == order

    seen.clear()
    model.set_recurrence(False)
    model(TOKENS)
    assert seen == [0, 1, 2, 3]


def test_gates_and_smear_begin_at_zero():
    """What they compute is held against verify.py in test_forward.py."""
    model = GPT(tiny_settings(GATE_DIMS=5, SKIPS="gated", SMEAR_DIMS=6))
    attn = model.blocks[0].attn
    assert attn.gate_weight.shape == (4, 5) and not attn.gate_weight.any()
    assert attn.gate_bias is None
    assert not model.skip_gates.any() and (model.skip_weights == 1).all()
    assert model.smear_gate.shape == (6,) and not model.smear_gate.any() and model.smear_scale == 0


# ---- The loader


def test_random_sequences_are_the_same_on_any_ranks_and_change_by_step(tmp_path, as_rank):
    write_shard(tmp_path / "fineweb_train_0.bin", np.arange(3000) % 64)
    options = dict(DATA_PATH=tmp_path, LOADER="random", MICRO_BATCH_SEQS=1, TRAIN_BATCH_TOKENS=96)
    s = tiny_settings(**options)
    stream = TokenStream(s, "train")

    def rows(step: int, world_size: int, s: Settings = s) -> list[list[int]]:
        found = []
        for rank in range(world_size):
            as_rank(rank, world_size)
            for inputs, targets in train_batches(stream, step, s):
                assert (targets[:, :-1] == inputs[:, 1:]).all()
                found += inputs.tolist()
        return found

    steps = [rows(step, 1) for step in range(4)]
    assert all(rows(step, world) == steps[step] for step in (0, 3) for world in (2, 3))
    starts = [row[0] for step in steps for row in step]
    assert len(starts) == 24 and len(set(starts)) > 12
    assert not all((b - a) % 64 == 16 for a, b in itertools.pairwise(starts))
    assert rows(0, 1, tiny_settings(SEED=1, **options)) != steps[0]


# ---- The training

STEPS = 20
# The preset with four blocks, of which the middle two recur.
SMALL = pairs(f"""
    PRESET=frontier DTYPE=float32 TTT_PROTOCOL=off NUM_LAYERS=4 XSA_LAST_N=4 PARALLEL_LAST_N=2
    LOOP_FIRST=1 LOOP_LAST=2 BIGRAM_BUCKETS=0 MICRO_BATCH_SEQS=3 ITERATIONS={STEPS}
    MAX_WALLCLOCK_SECONDS=0 MUON_MOMENTUM_WARMUP_STEPS=10
""")
KINDS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
MATRICES = {f"blocks.{i}.{kind}" for i in range(4) for kind in KINDS}
ONCE, AGAIN = [0, 1, 2, 3], [0, 1, 2, 1, 2, 1, 2, 3]  # orders of the blocks


def weights_of(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def watch(folder, seconds: float = 0.0, **changes) -> list[SimpleNamespace]:
    """What was seen of each step of train(), which goes on after so many seconds of training."""
    write_shard(folder / "fineweb_train_0.bin", np.random.default_rng(0).integers(1, 64, 4000))
    s = tiny_settings(DATA_PATH=folder, **SMALL | changes)
    torch.manual_seed(0)
    state = TrainState(GPT(s), s)
    state.seconds = seconds
    steps, passed = [], []
    for index, block in enumerate(state.model.blocks):
        block.register_forward_hook(lambda *_, index=index: passed.append(index))
    plain = train_gpt.train_step

    def step(state, *rest):
        passed.clear()
        seen = SimpleNamespace(order=state.model.order, before=weights_of(state.model))
        plain(state, *rest)
        seen.passed = passed.copy()
        seen.grads = {name: p.grad.clone() for name, p in state.model.named_parameters()}
        seen.after = weights_of(state.model)
        steps.append(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the checkpoint goes
        patch.setattr(train_gpt, "train_step", step)
        patch.setattr(train_gpt, "StopRequest", lambda: SimpleNamespace(requested=False))
        train_gpt.train(state, TokenStream(s, "train"), SimpleNamespace(s=s))
    return steps


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> list[SimpleNamespace]:
    """The steps of the preset."""
    return watch(tmp_path_factory.mktemp("frontier"))


def test_the_span_recurs_after_a_third_of_the_training(training):
    """At 0.35: after 7 of 20 steps."""
    assert [step.order for step in training] == [ONCE] * 7 + [AGAIN] * 13
    assert all(step.passed == 2 * step.order for step in training)  # two micro-batches


@pytest.mark.parametrize(("seconds", "order"), [(34.9, ONCE), (35.0, AGAIN)])
def test_the_span_recurs_after_a_third_of_the_time(tmp_path, seconds, order):
    training = watch(tmp_path, seconds, MAX_WALLCLOCK_SECONDS=100, ITERATIONS=1)
    assert [step.order for step in training] == [order]


def scales() -> list[float]:
    """Of the rates at each step: they fall in the last 0.75 of the steps, to 0.1 at their end."""
    return [1.0] * 5 + [0.1 + 0.9 * (STEPS - step) / 15 for step in range(5, STEPS)]


def momenta() -> list[float]:
    return [0.92 + 0.005 * min(step, 10) for step in range(STEPS)]


def muon_rows(w, grads: list, lrs: list[float]) -> torch.Tensor:
    """Muon with rows of one norm, by its formulas."""
    momentum = 0.0
    for grad, lr, mu in zip(grads, lrs, momenta(), strict=True):
        momentum = mu * momentum + (1 - mu) * grad
        update = (1 - mu) * grad + mu * momentum
        update = update / update.norm(dim=1, keepdim=True).clamp_min(1e-12)
        aspect = max(1, len(w) / w.size(1)) ** 0.5
        w = w * (1 - lr * 0.095) - lr * aspect * newton_schulz(update[None])[0]
    return w


def adamw(w, grads: list, lrs: list[float], decay: float) -> torch.Tensor:
    """AdamW with betas 0.9 and 0.99, by its formulas."""
    first = second = 0.0
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad**2
        root = (second / (1 - 0.99**t)).sqrt()
        w = w * (1 - lr * decay) - lr * first / (1 - 0.9**t) / (root + 1e-8)
    return w


def test_the_weights_are_those_of_muon_rows_and_adamw(training):
    """All 20 steps: rate and its floor, momentum, decay and betas of every parameter."""
    for name, w in training[0].before.items():
        grads = [step.grads[name].double() for step in training]
        if name in MATRICES:
            expected = muon_rows(w.double(), grads, [0.026 * scale for scale in scales()])
        elif name == "tok_emb":
            expected = adamw(w.double(), grads, [0.03 * scale for scale in scales()], 0.085)
        else:
            expected = adamw(w.double(), grads, [0.02 * scale for scale in scales()], 0.02)
        error = (training[-1].after[name] - expected).abs().max().item()
        assert error < 1e-5, f"{name}: {error:.2g}"
