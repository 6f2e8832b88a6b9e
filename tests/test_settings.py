"""Settings: what a person types is taken, or stopped with a sentence that names the variable."""

import dataclasses
import os
import subprocess
import sys

import pytest
from conftest import ROOT, tiny_settings

from train_gpt import PRESETS, Settings, UserError, load_settings


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert load_settings({"PRESET": name}).preset == name


def test_the_system_as_reported():
    s = load_settings({})
    assert (s.num_layers, s.model_dim, s.num_heads, s.num_kv_heads, s.mlp_hidden) == (
        11,
        512,
        8,
        4,
        1500,
    )
    assert (s.matrix_lr, s.embed_lr, s.scalar_lr, s.weight_decay, s.grad_clip_norm) == (
        0.03,
        0.04,
        0.02,
        0.04,
        0.3,
    )
    assert (s.train_batch_tokens, s.train_seq_len, s.eval_stride, s.warmdown_iters) == (
        786432,
        2048,
        32,
        3000,
    )
    assert s.bos_reset and s.ttt_protocol == "score_first"
    entry = load_settings({"PRESET": "pcloadloveletter_v6"})
    assert (
        not entry.bos_reset and entry.ttt_protocol == "train_then_score" and entry.ttt_epochs == 10
    )


def test_environment_wins_over_preset():
    s = load_settings(
        {
            "PRESET": "demo",
            "NUM_LAYERS": "6",
            "SMEAR_GATE": "0",
            "MATRIX_LR": "1e-3",
            "CODEC": "trellis",
        }
    )
    assert (s.num_layers, s.smear_gate, s.matrix_lr, s.codec) == (6, False, 1e-3, "trellis")
    assert s.model_dim == PRESETS["demo"]["model_dim"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PRESET", "fast"),
        ("NUM_LAYERS", "eleven"),
        ("NUM_LAYERS", "1.5"),
        ("NUM_LAYERS", "0"),
        ("NUM_LAYERS", ""),
        ("SEED", "-1"),
        ("MATRIX_LR", "nan"),
        ("MATRIX_LR", "inf"),
        ("SMEAR_GATE", "maybe"),
        ("CODEC", "zip"),
        ("TRELLIS_STATES", "33"),
        ("NUM_HEADS", "3"),
        ("NUM_KV_HEADS", "3"),
        ("ROPE_DIMS", "3"),
        ("ROPE_DIMS", "10"),
        ("EVAL_STRIDE", "17"),
        ("TRAIN_BATCH_TOKENS", "65"),
        ("TTT_CHUNK_TOKENS", "33"),
        ("VOCAB_SIZE", "65537"),
        ("MLP_LEVELS", "256"),
        ("MUON_MOMENTUM", "1"),
        ("EMA_DECAY", "1"),
        ("BIGRAM_BUCKETS", "1"),
        ("RUN_ID", "a/b"),
        ("TTT_PROTOCOL", "best_of_10"),
        ("EVAL_BATCH_SEQS", "0"),
        ("DEVICE", "tpu"),
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(UserError, match=name):
        tiny_settings(**{name: value})


def test_every_field_states_its_meaning_and_source():
    lines = (ROOT / "train_gpt.py").read_text().splitlines()
    for field in dataclasses.fields(Settings):
        line = next(line for line in lines if line.startswith(f"    {field.name}: "))
        comment = line.split("  # ")[1]
        assert comment.rsplit("; ", 1)[1] in ("532", "549", "base", "ours", "challenge"), line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"NUM_HEADS": "7"}, "NUM_HEADS"),
        ({"TOKENIZER_PATH": "nowhere"}, "TOKENIZER_PATH=nowhere"),
    ],
)
def test_the_command_ends_with_one_sentence(tmp_path, change, named):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"PRESET": "pcll", "DEVICE": "cpu", "OMP_NUM_THREADS": "1"} | change
    run = subprocess.run(
        [sys.executable, ROOT / "train_gpt.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and named in run.stderr
    assert not (tmp_path / "artifact.pcll").exists()
