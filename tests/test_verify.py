"""verify.py on artifacts made here by hand: its network against a plain one, its loop, its probes,
its verdicts."""

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from artifacts import CONFIG, TEXTS, make, pack, random_weights, run, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

import verify
from decode_artifact import read_pcll
from records.code import code_bytes, read_code

# ---------------------------------------------------------------- the network


# A definition, to be read from top to bottom.
def plain_logits(  # noqa: C901, PLR0914, PLR0915 - parts of it would hide what it defines
    c: dict, w: dict[str, np.ndarray], tokens: np.ndarray
) -> np.ndarray:
    """The network's definition for one window, position by position in float64; returns logits
    [T, V]."""
    w = {name: array.astype("f8") for name, array in w.items()}
    T, heads, kv_heads = len(tokens), c["num_heads"], c["num_kv_heads"]
    d = c["model_dim"] // heads

    def rms(x):
        return x / np.sqrt((x * x).mean() + np.finfo("f4").eps)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def rope(x, position):
        x, half = x.copy(), c["rope_dims"] // 2
        for j in range(half):
            angle = position * c["rope_base"] ** (-2 * j / c["rope_dims"])
            a, b = x[j], x[j + half]
            x[j], x[j + half] = (
                a * np.cos(angle) + b * np.sin(angle),
                -a * np.sin(angle) + b * np.cos(angle),
            )
        return x

    xs = []
    for t in range(T):
        e = w["tok_emb"][tokens[t]]
        alone = t == 0 or (c["bos_reset"] and tokens[t] == 1)
        if c["bigram_buckets"]:
            last = c["bigram_buckets"] - 1
            bucket = (
                last if alone else ((36313 * int(tokens[t])) ^ (27191 * int(tokens[t - 1]))) % last
            )
            e = e + w["bigram.scale"] * (w["bigram.proj"] @ w["bigram.table"][bucket])
        xs.append(rms(e))
    if c["smear_gate"]:
        g, zero = sigmoid(w["smear_gate"]), np.zeros(c["model_dim"])
        alone = [t == 0 or (c["bos_reset"] and tokens[t] == 1) for t in range(T)]
        xs = [(1 - g) * xs[t] + g * (zero if alone[t] else xs[t - 1]) for t in range(T)]
    x0, outputs, v_first = list(xs), [], None
    for i in range(c["num_layers"]):
        b, half = f"blocks.{i}.", c["num_layers"] // 2
        scale = 1 / math.sqrt(i + 1) if c["ln_scale"] else 1.0
        if c["unet_skips"] and half <= i < 2 * half:
            xs = [
                x + w["skip_weights"][i - half] * s
                for x, s in zip(xs, outputs[half - 1 - (i - half)], strict=True)
            ]
        mix = w[b + "resid_mix"]
        xs = [mix[0] * x + mix[1] * first for x, first in zip(xs, x0, strict=True)]
        hs = [rms(x) * scale for x in xs]
        q, k, v = ([(w[b + "attn." + n] @ h).reshape(-1, d) for h in hs] for n in "qkv")
        if i == 0:
            v_first = v
        elif c["value_residual"]:
            m = w[b + "attn.value_mix"]
            v = [m[0] * v_first[t] + m[1] * v[t] for t in range(T)]
        for t in range(T):
            y = np.zeros((heads, d))
            for h in range(heads):
                own = h // (heads // kv_heads)
                query = rope(rms(q[t][h]), t) * w[b + "attn.q_gain"][h]
                scores = np.array(
                    [query @ rope(rms(k[s][own]), s) for s in range(t + 1)]
                ) / math.sqrt(d)
                p = np.exp(scores - scores.max())
                y[h] = sum(p[s] / p.sum() * v[s][own] for s in range(t + 1))
                if c["gated_attention"]:
                    y[h] *= sigmoid(
                        w[b + "attn.gate_weight"][h] @ hs[t] + w[b + "attn.gate_bias"][h]
                    )
                if i >= c["num_layers"] - c["xsa_last_n"]:
                    unit = v[t][own] / np.linalg.norm(v[t][own])
                    y[h] -= (y[h] @ unit) * unit
            xs[t] = xs[t] + w[b + "attn_scale"] * (w[b + "attn.out"] @ y.reshape(-1))
            u = w[b + "mlp.up"] @ (rms(xs[t]) * scale)
            u = np.where(u > 0, u, c["mlp_negative_slope"] * u) ** 2
            xs[t] = xs[t] + w[b + "mlp_scale"] * (w[b + "mlp.down"] @ u)
        outputs.append(list(xs))
    cap = c["logit_softcap"]
    return np.stack([cap * np.tanh(w["tok_emb"] @ rms(x) / cap) for x in xs])


FEATURES = [
    {},
    {"bigram_buckets": 0},
    {"smear_gate": False},
    {"value_residual": False},
    {"gated_attention": False},
    {"unet_skips": False},
    {"bos_reset": False},
    {"ln_scale": False},
    {"xsa_last_n": 0},
    {"xsa_last_n": 5},
    {"num_kv_heads": 4},
    {"num_kv_heads": 1},
    {"rope_dims": 0},
    {"rope_dims": 8},
    {"num_layers": 1},
    {"num_layers": 4},
    {"mlp_negative_slope": 0.0},
]


@pytest.mark.parametrize("changes", FEATURES, ids=str)
def test_network_against_a_plain_one(changes):
    config = CONFIG | changes
    weights = random_weights(config)
    tokens = np.random.default_rng(1).integers(0, 320, (2, 20))
    tokens[:, [0, 9]] = 1
    model = verify.Model(config, weights, "cpu")
    logits = model(torch.from_numpy(tokens)).numpy()
    plain = np.stack([plain_logits(config, weights, row) for row in tokens])
    assert np.abs(logits - plain).max() < 1e-4
    assert np.abs(model(torch.from_numpy(tokens), 13).numpy() - plain[:, 13:]).max() < 1e-4
    if changes.get("num_layers") != 1:  # a lone layer has no skips, no residual values
        base = plain_logits(CONFIG, random_weights(CONFIG), tokens[0])
        assert not changes or np.abs(plain[0] - base).max() > 1e-2, (
            "the feature shows in the logits"
        )


# ---------------------------------------------------------------- bytes


def pieces_of(home: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(home / "data/demo/bpe.model"))


def test_bytes_are_those_of_the_text(home):
    pieces = pieces_of(home)
    for text in TEXTS[:5]:
        tokens = np.array([1, *pieces.encode(text)])
        assert verify.count_bytes(tokens, pieces) == len(text.encode())
    assert any(pieces.is_byte(i) for i in pieces.encode(TEXTS[1])), (
        "byte pieces are part of the test"
    )


def test_bytes_of_broken_utf8_and_of_many_documents(home):
    pieces, byte = pieces_of(home), [i for i in range(320) if pieces_of(home).is_byte(i)]
    ids = [
        1,
        *pieces.encode("abc"),
        byte[0xE6],
        byte[0xBC],
        1,
        *pieces.encode("the dog"),
        1,
        byte[0xFF],
        1,
    ]
    assert verify.count_bytes(np.array(ids), pieces) == 3 + 2 + 7 + 1


# ---------------------------------------------------------------- windows and score


def defined_windows(n: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Window ends are min(L + k stride, n); each scores what the one before did not."""
    ends = [min(length, n)]
    while ends[-1] < n:
        ends.append(min(length + len(ends) * stride, n))
    return [(max(0, hi - length), hi, lo) for hi, lo in zip(ends, [0, *ends], strict=False)]


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_windows_follow_the_definition(n, length, data):
    stride = data.draw(st.integers(1, length))
    config = {"train_seq_len": length, "eval_stride": stride}
    found = list(verify.windows(np.full(n + 1, 5), config))
    assert found == defined_windows(n, length, stride)
    assert [i for _, end, first in found for i in range(first, end)] == list(range(n))


def reference_bpb(home: Path, config: dict, weights: dict) -> float:
    """Every target by itself, its window found by the definition; bytes from the texts that were
    encoded."""
    tokens = verify.read_tokens(Path("data/demo"), 320)
    model, nats = verify.Model(config, weights, "cpu"), 0.0
    for start, end, first in defined_windows(
        len(tokens) - 1, config["train_seq_len"], config["eval_stride"]
    ):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens[None, start:end].astype("i8")))[0].double()
        for i in range(first, end):
            nats -= logits[i - start].log_softmax(-1)[int(tokens[i + 1])].item()
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)


def test_all_proven_on_an_honest_artifact(home, capsys):
    config = settings_of(home)
    weights = random_weights(config)
    artifact = pack(home / "artifact.pcll", config, weights)
    claim = reference_bpb(home, config, weights)
    code, found = run(capsys, artifact, "--claim", claim, "--tolerance", 1e-6)
    assert code == 0
    assert {f["verdict"] for f in found.values()} == {"PROVEN"}, found
    assert found["val_bpb"]["number"] == pytest.approx(claim, abs=1e-7)
    assert found["bytes"]["number"] == sum(len(text.encode()) for text in TEXTS)
    assert found["size"]["number"] == artifact.stat().st_size + len("print('train')\n")
    assert found["integrity"]["number"] == sum(array.size for array in weights.values())


# Each of these makes a claim with a fault in it; the fault must show as a FAILED claim.


def smear_across_documents(patch):
    whole = verify.Model.embed

    def embed(self, tokens):
        self.config = self.config | {"bos_reset": False}
        return whole(self, tokens)

    patch.setattr(verify.Model, "embed", embed)


def rotate_queries_one_too_far(patch):
    original = verify.rotate

    def rotate(x, dims, base, first=0):
        return original(x, dims, base, first + (x.shape[1] == CONFIG["num_heads"]))

    patch.setattr(verify, "rotate", rotate)


def count_spaces_twice(patch):
    original = verify.count_bytes

    def count_bytes(tokens, pieces):
        return original(tokens, pieces) + sum(
            pieces.id_to_piece(int(i)).startswith("▁") for i in tokens
        )

    patch.setattr(verify, "count_bytes", count_bytes)


def drop_the_last_window(patch):
    original = verify.windows
    patch.setattr(verify, "windows", lambda tokens, config: list(original(tokens, config))[:-1])


def read_the_target(patch):
    original = verify.attention

    def attention(q, k, v):
        return original(q.roll(-1, 2), k.roll(-1, 2), v.roll(-1, 2))

    patch.setattr(verify, "attention", attention)


@pytest.mark.parametrize(
    "fault",
    [
        smear_across_documents,
        rotate_queries_one_too_far,
        count_spaces_twice,
        drop_the_last_window,
        read_the_target,
    ],
)
def test_claims_made_with_a_fault_fail(home, capsys, fault):
    artifact = make(home)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        claim = run(capsys, artifact)[1]["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--claim", claim, "--tolerance", 1e-5)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"
    code, found = run(capsys, artifact, "--claim", found["val_bpb"]["number"], "--tolerance", 1e-5)
    assert code == 0 and found["claim"]["verdict"] == "PROVEN"


LATER = ["parallel_last_n", "loop_first", "loop_last", "loop_passes", "gate_dims", "smear_dims"]


def test_files_from_before_a_setting_mean_that_it_is_off(home, capsys):
    stated = run(capsys, make(home))[1]["val_bpb"]["number"]
    artifact = make(home)
    config, weights = read_pcll(artifact)
    for name in (*LATER, "skip_gates"):
        del config[name]
    pack(artifact, config, weights)
    code, found = run(capsys, artifact)
    assert code == 0 and found["val_bpb"]["number"] == stated


def test_documents_scored_apart_are_refused(home, capsys):
    """Old artifacts state eval_doc_reset; what says that it is on was scored otherwise."""
    assert run(capsys, make(home, eval_doc_reset=False))[1]["val_bpb"]["verdict"] == "PROVEN"
    code, found = run(capsys, make(home, eval_doc_reset=True))
    assert code == 1 and "eval_doc_reset is on" in found["config"]["detail"]


def test_a_partial_run_says_so(home, capsys):
    artifact = make(home)
    whole = run(capsys, artifact)[1]["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--max-tokens", 100, "--claim", whole)
    assert code == 0 and found["claim"]["verdict"] == "NOT CHECKABLE"
    assert "PARTIAL" in found["val_bpb"]["detail"] and "99 tokens" in found["val_bpb"]["detail"]
    part = found["val_bpb"]["number"]  # who claims this claims it of the whole
    code, found = run(capsys, artifact, "--max-tokens", 100, "--claim", part)
    assert code == 0 and found["claim"]["verdict"] == "NOT CHECKABLE"


# ---------------------------------------------------------------- adaptation


def adaptation_optimizer(config: dict, model: verify.Model) -> torch.optim.Optimizer:
    factors = {"out": 3.0, "down": 3.0, "up": 0.5}
    groups = [
        {"params": [p], "factor": factors.get(n.split(".")[-1], 1.0)}
        for n, p in model.params.items()
    ]
    if config["ttt_optimizer"] == "sgd":
        return torch.optim.SGD(groups, 1.0, 0.9)
    return torch.optim.AdamW(groups, weight_decay=0.0)


def adapted_nats(config: dict, weights: dict, tokens: np.ndarray) -> np.ndarray:
    """Each position's nats under score-first adaptation step by step, with no batches of windows
    and no micro-batches."""
    model = verify.Model(config, weights, "cpu")
    for parameter in model.params.values():
        parameter.requires_grad_()
    optimizer = adaptation_optimizer(config, model)
    n, length, size = len(tokens), config["train_seq_len"], config["ttt_chunk_tokens"]
    chunks = -(-(n - 1) // size)
    by_chunk: dict[int, list] = {}
    for window in defined_windows(n - 1, length, config["eval_stride"]):
        by_chunk.setdefault((window[1] - 1) // size, []).append(window)
    ids, nats = torch.from_numpy(tokens.astype("i8")), []
    for chunk, group in by_chunk.items():
        for start, end, first in group:
            with torch.no_grad():
                logits = model(ids[None, start:end])[0, first - start :]
            nats += F.cross_entropy(logits, ids[first + 1 : end + 1], reduction="none").tolist()
        if chunk == max(by_chunk):
            return np.array(nats)
        for parameters in optimizer.param_groups:
            parameters["lr"] = (
                config["ttt_lr"]
                * parameters["factor"]
                * (1 + math.cos(math.pi * chunk / chunks))
                / 2
            )
        lo, hi = group[0][2], group[-1][1]
        sequences = [ids[s : s + length + 1] for s in range(lo, hi, length) if s + length <= hi]
        for _ in range(config["ttt_epochs"]):
            for at in range(0, len(sequences), config["ttt_batch_seqs"]):
                batch = torch.stack(sequences[at : at + config["ttt_batch_seqs"]])
                optimizer.zero_grad()
                F.cross_entropy(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:]).backward()
                torch.nn.utils.clip_grad_norm_(model.params.values(), config["ttt_grad_clip"])
                optimizer.step()
    raise AssertionError("no last chunk")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adaptation_replay(home, capsys, monkeypatch, optimizer):
    monkeypatch.setitem(verify.BATCH_TOKENS, "cpu", 40)  # one sequence at a time
    config = settings_of(home, ttt_protocol="score_first", ttt_optimizer=optimizer, ttt_lr=0.001)
    weights = random_weights(config)
    artifact = pack(home / "artifact.pcll", config, weights)
    tokens = verify.read_tokens(Path("data/demo"), 320)
    expected = adapted_nats(config, weights, tokens).mean()
    claim = expected * (len(tokens) - 1) / math.log(2) / verify.count_bytes(tokens, pieces_of(home))
    code, found = run(capsys, artifact, "--ttt", "--claim", claim, "--tolerance", 1e-5)
    assert code == 0 and found["claim"]["verdict"] == found["val_bpb_ttt"]["verdict"] == "PROVEN"
    assert abs(found["val_bpb_ttt"]["number"] - found["val_bpb"]["number"]) > 1e-3, (
        "it learned something"
    )
    code, found = run(
        capsys, artifact, "--ttt", "--claim", found["val_bpb"]["number"], "--tolerance", 1e-5
    )
    assert code == 1 and found["claim"]["verdict"] == "FAILED"


def test_what_is_learned_comes_after_the_score(home):
    """Changed tokens at the end leave the adapted scores of all earlier chunks as they were."""
    config = settings_of(home, ttt_protocol="score_first")
    options = verify.parse(["x"])
    tokens = verify.read_tokens(Path("data/demo"), 320)[:513]
    other = tokens.copy()
    other[400:] = other[400:][::-1]
    seen = []
    for data in (tokens, other):
        model, nats = verify.Model(config, random_weights(config), "cpu"), []
        split = verify.Split(data, len, "data", len(data))
        learn = verify.learner(model, split, config, options)

        def watch(chunk, lo, hi, learn=learn, model=model, nats=nats):
            nats.append((chunk, lo, hi, model.params["tok_emb"].sum().item()))
            learn(chunk, lo, hi)

        run = verify.Pass(verify.ADAPTED, config["eval_stride"], learn=watch)
        verify.score(model, split, config, options, run)
        seen.append(nats)
    assert seen[0] == seen[1] and [row[:3] for row in seen[0]] == [
        (0, 0, 128),
        (1, 128, 256),
        (2, 256, 384),
    ]


def test_train_then_score_is_labelled(home, capsys):
    artifact = make(home, ttt_protocol="train_then_score")
    code, found = run(capsys, artifact)
    assert (
        code == 0
        and found["adaptation"]["verdict"] == "SUSPICION"
        and "NOT LEGAL" in found["adaptation"]["detail"]
    )
    code, found = run(capsys, artifact, "--ttt", "--claim", 1.0487)
    assert code == 1 and found["adaptation"]["verdict"] == "FAILED"


def test_adaptation_that_is_not_replayed_is_not_checkable(home, capsys):
    assert (
        run(capsys, make(home, ttt_protocol="score_first"))[1]["adaptation"]["verdict"]
        == "NOT CHECKABLE"
    )
    assert run(capsys, make(home), "--ttt")[1]["adaptation"]["verdict"] == "NOT CHECKABLE"


# ---------------------------------------------------------------- probes and their models

THEIRS = """
import torch
from torch import nn
import torch.nn.functional as F

class GPT(nn.Module):
    def __init__(self, vocab_size: int, model_dim: int):
        super().__init__()
        self.tok_emb = nn.Parameter(torch.zeros(vocab_size, model_dim))

    def forward(self, tokens):
        x = self.tok_emb[tokens]
        q = x[:, None]
        y = F.scaled_dot_product_attention(q, q, q, is_causal=CAUSAL)[:, 0]
        EXTRA
        return F.linear(x + y, self.tok_emb)
"""


def their_model(home: Path, extra: str = "", causal: bool = True) -> list:
    config = settings_of(home)
    artifact = pack(home / "artifact.pcll", config, {"tok_emb": random_weights(config)["tok_emb"]})
    file = home / "theirs.py"
    file.write_text(THEIRS.replace("CAUSAL", str(causal)).replace("EXTRA", extra))
    return [artifact, "--model", file, "--trust-code"]


def test_their_model_is_scored_by_our_loop(home, capsys):
    code, found = run(capsys, *their_model(home))
    assert code == 0 and found["val_bpb"]["verdict"] == found["model"]["verdict"] == "CONSISTENT"
    assert {
        found[name]["verdict"] for name in ("causality", "normalised", "determinism", "isolation")
    } == {"CONSISTENT"}


@pytest.mark.parametrize(
    "probe, verdict, extra, causal",
    [
        ("causality", "FAILED", "", False),
        ("causality", "FAILED", "x = x + 0.01 * x.mean(1, keepdim=True)", True),
        ("determinism", "FAILED", "x = x + 0.001 * torch.rand_like(x)", True),
        ("determinism", "FAILED", "x = x + 0.001 * x.mean(0, keepdim=True)", True),
        ("isolation", "NOT CHECKABLE", "x = x + F.pad(x, (0, 0, 1, 0))[:, :-1]", True),
        ("normalised", "FAILED", "return F.linear(x + y, self.tok_emb[:300])", True),
        ("causality", "FAILED", "x = x * float('nan')", True),
    ],
)
def test_probes_notice(  # noqa: PLR0913 - the columns above and the fixtures
    home, capsys, monkeypatch, probe, verdict, extra, causal
):
    monkeypatch.setattr(verify, "check_scores", lambda *_: [])
    found = run(capsys, *their_model(home, extra, causal))[1]
    assert found[probe]["verdict"] == verdict, found


def test_their_code_runs_only_when_trusted(home, capsys):
    artifact, option, file, _ = their_model(home)
    ran = home / "ran"
    file.write_text(f"raise SystemExit(open({str(ran)!r}, 'w').close())")
    assert verify.main([str(artifact), option, str(file)]) == 2 and not ran.exists()
    assert capsys.readouterr().err.count("\n") == 1
    code, found = run(capsys, artifact, option, file, "--trust-code")
    assert code == 0 and ran.exists()
    assert "ended without an answer" in found["model"]["detail"]


def test_a_leak_across_documents_fails(home, capsys):
    code, found = run(capsys, make(home, bos_reset=False))
    assert code == 1 and found["isolation"]["verdict"] == "FAILED"
    assert found["isolation"]["number"] > 0.01


# ---------------------------------------------------------------- verdicts on changed files


def test_a_changed_byte_fails_the_integrity(home, capsys):
    artifact = make(home)
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    code, found = run(capsys, artifact)
    assert code == 1 and found["integrity"]["verdict"] == "FAILED" and "val_bpb" not in found


def test_a_changed_weight_or_setting_fails_the_claim(home, capsys):
    claim = run(capsys, make(home))[1]["val_bpb"]["number"]
    config = settings_of(home)
    weights = random_weights(config)
    weights["blocks.2.attn.q_gain"][1] += 0.1
    changed = [(config, weights)]
    weights = random_weights(config)
    changes = {
        "rope_base": 90.0,
        "logit_softcap": 20.0,
        "xsa_last_n": 1,
        "ln_scale": False,
        "eval_stride": 16,
    }
    changed += [(config | {name: value}, weights) for name, value in changes.items()]
    for config, weights in changed:
        artifact = pack(home / "artifact.pcll", config, weights)
        code, found = run(capsys, artifact, "--claim", claim, "--tolerance", 1e-6)
        assert code == 1 and found["claim"]["verdict"] == "FAILED"


BAD_CONFIGS = [
    {"num_layers": 4},
    {"num_layers": 6},
    {"num_heads": 5},
    {"num_heads": 8},
    {"num_kv_heads": 3},
    {"rope_dims": 3},
    {"rope_dims": 10},
    {"model_dim": 16},
    {"vocab_size": 321},
    {"bigram_buckets": 1},
    {"smear_gate": False},
    {"gated_attention": False},
    {"eval_stride": 33},
    {"eval_stride": 0},
    {"train_seq_len": 10**9},
    {"num_layers": 10**9},
    {"ttt_protocol": "later"},
    {"ttt_optimizer": "adam"},
    {"ln_scale": 1},
    {"num_layers": True},
    {"num_heads": "4"},
    {"logit_softcap": 0.0},
    {"tokenizer_sha256": 3},
    {"ttt_lr": -1.0},
]


@pytest.mark.parametrize("change", BAD_CONFIGS, ids=str)
def test_a_configuration_that_does_not_fit_fails(home, capsys, change):
    config = settings_of(home)
    artifact = pack(home / "artifact.pcll", config | change, random_weights(config))
    code, found = run(capsys, artifact)
    detail = found["config"]["detail"]
    assert code == 1 and found["config"]["verdict"] == "FAILED" and "val_bpb" not in found
    assert next(iter(change)) in detail or "not asked for" in detail or ", not (" in detail


def test_missing_and_unasked_tensors_and_settings_fail(home, capsys):
    config = settings_of(home)
    weights = random_weights(config)
    for changed in (
        (config, weights | {"payload": np.zeros(9, "f4")}),
        (config, {name: array for name, array in weights.items() if name != "smear_gate"}),
        ({name: value for name, value in config.items() if name != "rope_base"}, weights),
    ):
        assert (
            run(capsys, pack(home / "artifact.pcll", *changed))[1]["config"]["verdict"] == "FAILED"
        )


def test_the_tokenizer_must_be_the_artifacts(home, capsys, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "other.model"
    other.write_bytes((home / "data/demo/bpe.model").read_bytes() + b"\0")
    code, found = run(capsys, make(home), "--tokenizer", other)
    assert (
        code == 1
        and found["tokenizer"]["verdict"] == "FAILED"
        and found["val_bpb"]["verdict"] == "NOT CHECKABLE"
    )
    code, found = run(capsys, make(home, tokenizer_sha256="0" * 64))
    assert (
        code == 0
        and found["tokenizer"]["verdict"] == found["val_bpb"]["verdict"] == "NOT CHECKABLE"
    )


def test_a_submitted_score_is_of_the_challenges_split(home, capsys, monkeypatch):
    artifact = make(home)
    bpb = run(capsys, artifact)[1]["val_bpb"]["number"]
    args = [home, "--tolerance", "1e-6"]
    monkeypatch.setattr(verify, "submitted_scores", lambda folder: [bpb + 0.1, bpb])
    assert run(capsys, *args)[1]["claim"]["verdict"] == "PROVEN"
    monkeypatch.setattr(verify, "submitted_scores", lambda folder: [bpb + 0.1])
    assert run(capsys, *args)[1]["claim"]["verdict"] == "FAILED"

    make(home, ttt_protocol="score_first")
    found = run(capsys, *args)[1]["claim"]
    assert found["verdict"] == "NOT CHECKABLE" and "add --ttt" in found["detail"]
    assert run(capsys, *args, "--ttt")[1]["claim"]["verdict"] == "FAILED"

    make(home)
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {320: 10**6})
    for claim in (bpb, bpb + 0.1):
        monkeypatch.setattr(verify, "submitted_scores", lambda folder, claim=claim: [claim])
        found = run(capsys, *args)[1]["claim"]
        assert found["verdict"] == "NOT CHECKABLE" and "not the challenge's" in found["detail"]


# ---------------------------------------------------------------- size


def test_the_cap(home, capsys, monkeypatch):
    artifact = make(home)
    total = artifact.stat().st_size + len("print('train')\n")
    for cap, code, verdict in ((total, 0, "PROVEN"), (total - 1, 1, "FAILED")):
        monkeypatch.setattr(verify, "CAP_BYTES", cap)
        assert run(capsys, artifact, "--max-tokens", 50)[0] == code
        assert run(capsys, artifact, "--max-tokens", 50)[1]["size"]["verdict"] == verdict
    (home / "elsewhere").mkdir()
    artifact = artifact.rename(
        home / "elsewhere" / artifact.name
    )  # the code here is not what it was made with
    assert run(capsys, artifact, "--max-tokens", 50)[1]["size"]["verdict"] == "NOT CHECKABLE"
    monkeypatch.setattr(verify, "CAP_BYTES", 10)
    assert run(capsys, artifact, "--max-tokens", 50)[1]["size"]["verdict"] == "FAILED"


def test_the_size_is_a_proof_or_two_bounds(home, capsys, monkeypatch):
    """As in a folder: what may be read counts at most, and code over the cap may be compressed."""
    artifact = make(home)
    (home / "weights.bin").write_bytes(bytes(range(256)) * 9_000)
    script = home / "train_gpt.py"
    words = [artifact, "--max-tokens", 50]
    assert run(capsys, *words)[1]["size"]["verdict"] == "PROVEN"  # nothing reads it
    script.write_text("import sys\nopen(sys.argv[1])\n")
    size = run(capsys, *words)[1]["size"]
    most = artifact.stat().st_size + script.stat().st_size + 256 * 9_000
    assert size["verdict"] == "NOT CHECKABLE" and f"at most {most:,}" in size["detail"]
    assert "weights.bin 2,304,000" in size["detail"] and "train_gpt.py:2 open" in size["detail"]

    script.write_text("x = 1\n" * 5_000)
    monkeypatch.setattr(verify, "CAP_BYTES", artifact.stat().st_size + 10_000)
    size = run(capsys, *words)[1]["size"]
    assert size["verdict"] == "SUSPICION" and "handed in compressed" in size["detail"]
    script.write_text("exec(open('weights.bin').read())\n")
    monkeypatch.setattr(verify, "CAP_BYTES", artifact.stat().st_size + 500)
    assert run(capsys, *words)[1]["size"]["verdict"] == "FAILED"


COUNTED = [  # (source of train_gpt.py, files counted besides it, calls that cannot be followed)
    ("import json, os", [], 0),
    ("import helper", ["helper.py", "deep.py"], 0),
    ("def late():\n    from helper import x", ["helper.py", "deep.py"], 0),
    ("from pack.part import x", ["pack/__init__.py", "pack/part.py"], 0),
    ("from pack import part", ["pack/__init__.py", "pack/part.py"], 0),
    ("import importlib\nimportlib.import_module('helper')", ["helper.py", "deep.py"], 0),
    ("__import__('deep')", ["deep.py"], 0),
    ("exec(open('deep.py').read())", ["deep.py"], 0),
    ("exec(compile(open('deep.py').read(), 'deep.py', 'exec'))", ["deep.py"], 0),
    ("import runpy\nrunpy.run_path('deep.py')", ["deep.py"], 0),
    (
        "from pathlib import Path\nPath(__file__).with_name('table.json').read_text()",
        ["table.json"],
        0,
    ),
    ("HERE = Path(__file__).parent\n(HERE / 'pack' / 'part.py').read_bytes()", ["pack/part.py"], 0),
    (
        "import os\nopen(os.path.join(os.path.dirname(__file__), 'table.json'), 'rb')",
        ["table.json"],
        0,
    ),
    ("from pathlib import Path\nwith Path('table.json').open() as f: pass", ["table.json"], 0),
    ("NAME = 'table.json'\nopen(NAME)", ["table.json"], 0),
    ("import ctypes\nctypes.CDLL('./fast.so')", ["fast.so"], 0),
    ("open('table.json', 'w')", [], 0),
    ("open('../outside.py')", [], 0),
    ("open('absent.py')", [], 0),
    ("open(__file__).read()", [], 0),
    ("model.eval(); model.open", [], 0),
    ("print('helper.py table.json')", [], 0),
    ("import sys\nopen(sys.argv[1])", [], 1),
    ("import os\nopen(os.environ.get('DATA', 'table.json'))", [], 1),
    ("exec(lzma.decompress(blob))", [], 1),
    ("importlib.import_module(name)", [], 1),
    ("open('deep.py', encoding='utf-8')", ["deep.py"], 0),
    ("open('a'); open('table.json', mode='w')", ["a"], 0),
    ("spec = importlib.util.spec_from_file_location('part', 'pack/part.py')", ["pack/part.py"], 0),
    (f"import deep\nopen({'n' * 300!r})\nopen('table\\0.json')", ["deep.py"], 1),
    ("def broken(:", [], 1),
    (f"import helper\nfrom {'.' * 99} import x", ["helper.py", "deep.py"], 1),
    (f"import helper\nimport {'n' * 300}.part", ["helper.py", "deep.py"], 1),
    ("import bad", ["bad.py"], 1),
    ("open('bad.py')", ["bad.py"], 1),
    ("import loop", ["loop.py"], 0),
]


@pytest.mark.parametrize("source, counted, computed", COUNTED, ids=[row[0] for row in COUNTED])
def test_code_that_the_script_pulls_in_counts(tmp_path, source, counted, computed):
    folder = tmp_path / "entry"
    (folder / "pack").mkdir(parents=True)
    for name, text in {
        "helper.py": "import deep",
        "deep.py": "x = 1",
        "pack/__init__.py": "",
        "pack/part.py": "x = 2",
        "table.json": "{}",
        "fast.so": "\x7fELF",
        "loop.py": "import loop, train_gpt",
        "../outside.py": "x = 3",
        "a": "",
        "bad.py": "\0",
    }.items():
        (folder / name).write_text(text)
    script = folder / "train_gpt.py"
    script.write_text(source)
    files, unknown = read_code(script)
    assert sorted(str(f.relative_to(folder)) for f in files) == sorted(["train_gpt.py", *counted])
    assert len(unknown) == computed
    raw, compressed = code_bytes(files)
    assert raw == sum(f.stat().st_size for f in files) and compressed > 0


# ---------------------------------------------------------------- the command line


def test_the_report_for_people(home, capsys):
    artifact = make(home)
    assert verify.main([str(artifact), "--claim", "1.0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    words = "claim: 1.000000 bits/byte, -5.598265 from 6.598265 here with fixed weights"
    assert lines[0].startswith(f"FAILED — {words}")
    assert "PROVEN" in lines and lines.index("FAILED") < lines.index("PROVEN")
    assert lines[-1].startswith("1 FAILED")
    assert (
        len(lines) < 40
        and max(map(len, lines)) <= 120
        and not any("\033" in line for line in lines)
    )


def test_progress_on_stderr_at_least_every_ten_seconds(home, capsys, monkeypatch):
    clock = itertools.count(0, 5)
    monkeypatch.setattr(verify.time, "monotonic", lambda: next(clock))
    make(home, ttt_protocol="score_first")
    verify.main(["artifact.pcll", "--ttt", "--json"])
    lines = capsys.readouterr().err.splitlines()
    scored = re.compile(
        r"after .*: *[\d.]+%, [\d,]+ positions scored, [\d.]+ nats a token, [\d,]+ s left.*"
    )
    assert len(list(filter(scored.fullmatch, lines))) > 10
    assert "probing the network" in lines
    learning = [line for line in lines if line.startswith("learning from chunk 2 of ")]
    assert len(learning) == len(set(learning)) > 1  # a step each


def test_as_a_program(home):
    make(home)
    program = [sys.executable, Path(verify.__file__), "artifact.pcll"]
    done = subprocess.run(
        [*program, "--claim", "1", "--data", "data/demo"],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert done.returncode == 1 and "FAILED" in done.stdout and "Traceback" not in done.stderr
    done = subprocess.run([*program[:2], "absent"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "verify.py: absent: No such file or directory\n"


def test_unusable_input_is_one_sentence(home, capsys):
    make(home)
    (home / "noise").write_bytes(b"\x89PNG")
    (home / "shards").mkdir()
    options = [
        "--data shards",
        "--max-tokens 1",
        "--seed -1",
        "--code absent.py",
        "--model x.py",
        "--tokenizer absent.model",
    ]
    for line in ["absent.pcll", "noise", *(f"artifact.pcll {option}" for option in options)]:
        code = verify.main(line.split())
        captured = capsys.readouterr()
        assert code == 2 and captured.out == "" and captured.err.startswith("verify.py: ")
        assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_bad_shards_are_named(home, capsys):
    artifact, shards = make(home), home / "shards"
    shards.mkdir()
    tokenizer = ["--tokenizer", "data/demo/bpe.model"]
    good = (home / "data/demo/fineweb_val_000000.bin").read_bytes()
    for bad in (good[:100], good[:-2], b"\0" * 2000, good[:1024] + b"\xff" * (len(good) - 1024)):
        (shards / "fineweb_val_000000.bin").write_bytes(bad)
        assert verify.main([str(artifact), "--data", "shards", *tokenizer]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_report_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.pcll"
    path.write_bytes(b"PCLL" + data)
    assert verify.main([str(path), "--json", "--code", str(path)]) == 1
