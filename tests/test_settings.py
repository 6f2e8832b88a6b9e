"""Settings: the numbers of both systems, and what a person types is taken or stopped by name.

Expected numbers are literals: a test that reads the table under test cannot see that it is wrong.
"""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT, tiny_settings
from hypothesis import given
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import (
    FIELDS,
    PRESETS,
    Run,
    Settings,
    UserError,
    flat,
    grouped,
    join_ranks,
    load_settings,
    parse_value,
)

SYSTEM = {  # of entry 532 as its author reports it, and of our preset, by group
    "model": dict(
        vocab_size=1024,
        num_layers=11,
        model_dim=512,
        num_heads=8,
        num_kv_heads=4,
        mlp_hidden=1500,
        mlp_negative_slope=0.5,
        train_seq_len=2048,
        rope_dims=16,
        rope_base=50_000,
        qk_gain_init=1.5,
        logit_softcap=30,
        xsa_last_n=4,
        bigram_buckets=2048,
        bigram_dim=128,
        ln_scale=True,
        smear_gate=True,
        value_residual=True,
        gated_attention=True,
        unet_skips=True,
    ),
    "training": dict(
        seed=1337,
        dtype="bfloat16",
        max_wallclock_seconds=600,
        train_batch_tokens=786_432,
        warmup_steps=20,
        warmdown_iters=3000,
        matrix_optimizer="normuon",
        matrix_lr=0.03,
        embed_lr=0.04,
        scalar_lr=0.02,
        muon_momentum=0.99,
        muon_momentum_warmup_start=0.92,
        muon_momentum_warmup_steps=1500,
        weight_decay=0.04,
        grad_clip_norm=0.3,
        ema_decay=0.997,
        late_qat_threshold=0.1,
        late_qat_min_elements=65_536,
    ),
    "export": dict(mlp_levels=48, qkv_levels=80, other_levels=64, size_cap_bytes=16_000_000),
    "evaluation": dict(
        eval_stride=32,
        eval_seconds=600,
        ttt_batch_seqs=16,
        ttt_grad_clip=1,
    ),
}
SOURCES = ("532", "549", "1204", "1218", "1394", "1412", "1445", "1530")
SOURCES += ("1787", "1970", "base", "ours", "challenge")
OWN = {  # where the two differ: ours, entry 532
    "bos_reset": (True, False),
    "bigram_init_std": (0.02, 0),
    "codec": ("trellis", "huffman"),
    "embed_codec": ("trellis", "float16"),
    "calibration_seconds": (3, 0),
    "ttt_protocol": ("score_first", "train_then_score"),
    "ttt_optimizer": ("sgd", "adamw"),
    "ttt_lr": (0.002, 0.001),
    "ttt_epochs": (3, 10),
}


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
@pytest.mark.parametrize("group", SYSTEM)
def test_the_numbers_of_the_system(preset, group):
    values = vars(getattr(load_settings({"PRESET": preset}), group))
    assert {name: values[name] for name in SYSTEM[group]} == SYSTEM[group]


def test_where_the_entry_and_ours_differ():
    ours, entry = (
        flat(*vars(load_settings(environment)).values())
        for environment in ({}, {"PRESET": "pcloadloveletter_v6"})
    )
    del ours["preset"], entry["preset"]
    differ = {name: (ours[name], entry[name]) for name in ours if ours[name] != entry[name]}
    assert differ == OWN


def test_how_ours_adapts_and_exports():
    s = load_settings({})
    assert (s.evaluation.ttt_chunk_tokens, s.evaluation.eval_batch_seqs) == (32_768, 64)
    assert (s.export.calibration_tokens, s.export.trellis_states) == (131_072, 32)
    assert (s.export.quantisation_nats, s.export.fit) == (0.0005, "shrink")
    assert (s.training.iterations, s.run.micro_batch_seqs) == (20_000, 48)


def test_calibration_has_its_part_of_the_cap():
    assert load_settings({}).training_seconds == 597
    assert load_settings({"PRESET": "pcloadloveletter_v6"}).training_seconds == 600
    assert load_settings({"MAX_WALLCLOCK_SECONDS": "0"}).training_seconds == math.inf
    assert 0 < load_settings({"MAX_WALLCLOCK_SECONDS": "2"}).training_seconds < 1e-6


@pytest.mark.parametrize("name", ["pcll", "frontier", "pcloadloveletter_v6", "demo"])
def test_presets_are_valid(name):
    assert load_settings({"PRESET": name}).run.preset == name


def test_environment_wins_over_preset():
    changes = dict(NUM_LAYERS="6", SMEAR_GATE="0", MATRIX_LR="1e-3", CODEC="huffman")
    s = load_settings({"PRESET": "demo"} | changes)
    assert (s.model.num_layers, s.model.smear_gate) == (6, False)
    assert (s.training.matrix_lr, s.export.codec) == (1e-3, "huffman")
    assert (s.model.model_dim, s.model.train_seq_len) == (128, 256)


@pytest.mark.parametrize("text", ["0", "false", "False", "1", "true", "TRUE"])
def test_switches(text):
    assert tiny_settings(LN_SCALE=text).model.ln_scale == (text.lower() in ("1", "true"))


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
        ("MATRIX_LR", "-0.1"),
        ("SMEAR_GATE", "maybe"),
        ("SMEAR_GATE", "2"),
        ("COMPILE", "yes"),
        ("CODEC", "zip"),
        ("TRELLIS_STATES", "33"),
        ("NUM_HEADS", "3"),
        ("NUM_KV_HEADS", "3"),
        ("ROPE_DIMS", "3"),
        ("ROPE_DIMS", "10"),
        ("EVAL_STRIDE", "17"),
        ("EVAL_SECONDS", "-1"),
        ("TRAIN_SEQ_LEN", "15"),
        ("VOCAB_SIZE", "65537"),
        ("MLP_LEVELS", "256"),
        ("MUON_MOMENTUM", "1"),
        ("EMA_DECAY", "1"),
        ("BIGRAM_BUCKETS", "1"),
        ("RUN_ID", "a/b"),
        ("TTT_PROTOCOL", "best_of_10"),
        ("EVAL_BATCH_SEQS", "0"),
        ("CHECKPOINT_EVERY", "-1"),
        ("DEVICE", "tpu"),
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(UserError, match=rf"^{name}\b.*\.$") as caught:
        tiny_settings(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"NUM_LAYERS": "0"}, "NUM_LAYERS must be a whole number from 1 to 256, not '0'."),
        ({"MATRIX_LR": "x"}, "MATRIX_LR must be a number from 0 on, not 'x'."),
        ({"CODEC": "zip"}, "CODEC must be one of huffman, trellis, not 'zip'."),
        ({"SMEAR_GATE": ""}, "SMEAR_GATE must be one of 0, false, 1, true, not ''."),
        ({"TRAIN_BATCH_TOKENS": "65"}, "TRAIN_SEQ_LEN must divide TRAIN_BATCH_TOKENS=65."),
        ({"TTT_CHUNK_TOKENS": "33"}, "TRAIN_SEQ_LEN must divide TTT_CHUNK_TOKENS=33."),
        ({"CALIBRATION_TOKENS": "8"}, "TRAIN_SEQ_LEN must divide CALIBRATION_TOKENS=8."),
        (
            {"TTT_PROTOCOL": "per_document", "DOCUMENT_TOKENS": "17"},
            "DOCUMENT_TOKENS must be at most TRAIN_SEQ_LEN.",
        ),
    ],
)
def test_sentences(change, sentence):
    with pytest.raises(UserError) as caught:
        tiny_settings(**change)
    assert str(caught.value) == sentence


def test_every_field_states_its_meaning_and_source():
    for name, member in FIELDS.items():
        assert member.metadata["text"], name
        assert member.metadata["source"] in SOURCES, name
        assert member.type in (str, int, float, bool), name
        assert parse_value(name, str(member.default)) == member.default, name


def test_no_name_stands_in_two_groups():
    groups = [group.type for group in dataclasses.fields(Settings)]
    assert len(FIELDS) == sum(len(dataclasses.fields(group)) for group in groups)
    assert {name for preset in PRESETS.values() for name in preset} <= FIELDS.keys()


@given(st.sampled_from(["pcll", "frontier", "pcloadloveletter_v6", "demo"]), st.data())
def test_what_is_printed_is_read_back(preset, data):
    """The text of each value, as the log has it, is that value again."""
    values = PRESETS[preset] | {"preset": preset}
    values["seed"] = data.draw(st.integers(0, 2**63 - 1))
    values["matrix_lr"] = data.draw(st.floats(0, 1e9))
    values["smear_gate"] = data.draw(st.booleans())
    s = grouped(values)
    printed = {name.upper(): str(value) for name, value in flat(*vars(s).values()).items()}
    assert load_settings(printed) == s


# ---- Names that are none


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ITERATION", "ITERATIONS"),
        ("iterations", "ITERATIONS"),
        ("MATRIXLR", "MATRIX_LR"),
        ("MAX_WALLCLOCK_SECOND", "MAX_WALLCLOCK_SECONDS"),
        ("WALLCLOCK_SECONDS", "MAX_WALLCLOCK_SECONDS"),
        ("N_LAYERS", "NUM_LAYERS"),
        ("NUM_LAYER", "NUM_LAYERS"),
        ("BATCH_TOKENS", "TRAIN_BATCH_TOKENS"),
        ("TTT_EPOCH", "TTT_EPOCHS"),
        ("SEEDS", "SEED"),
        ("RUNID", "RUN_ID"),
        ("TOKENISER_PATH", "TOKENIZER_PATH"),
    ],
)
def test_a_name_close_to_a_setting_stops_the_run(name, meant):
    with pytest.raises(UserError) as caught:
        load_settings({name: "3", "PRESET": "demo"})
    assert str(caught.value) == (
        f"{name} is no setting: did you mean {meant}? ALLOW_UNKNOWN={name} lets it pass."
    )
    assert load_settings({name: "3", "ALLOW_UNKNOWN": name}).run.preset == "pcll"
    assert load_settings({name: "3", "ALLOW_UNKNOWN": f"ELSE,{name}"}).run.preset == "pcll"
    with pytest.raises(UserError, match=f"^{name} is no setting"):
        load_settings({name: "3", "ALLOW_UNKNOWN": "ELSE"})


def test_other_names_pass():
    """Of shells, launchers, schedulers and libraries."""
    names = """PATH HOME USER SHELL LANG LC_ALL PWD TERM DISPLAY HOSTNAME SHLVL TMPDIR TZ CC CXX
        RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK LOCAL_WORLD_SIZE
        TORCHELASTIC_RUN_ID OMP_NUM_THREADS MKL_NUM_THREADS PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
        CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_PATH NCCL_DEBUG TOKENIZERS_PARALLELISM HF_HOME
        TORCH_HOME TORCH_LOGS WANDB_RUN_ID WANDB_API_KEY SLURM_JOB_ID SLURM_NTASKS JOB_ID MODEL
        MODEL_NAME DATA_DIR MODEL_PATH""".split()
    assert load_settings(dict.fromkeys(names, "1")) == load_settings({})


# ---- One table of ranges


NUMBERS = [name for name, member in FIELDS.items() if member.type in (int, float)]
RANGED = [name for name in NUMBERS if not FIELDS[name].metadata["choices"]]


@pytest.mark.parametrize("name", RANGED)
def test_a_range_holds_its_ends_and_nothing_beyond(name):
    member = FIELDS[name]
    low = member.metadata["low"]
    high = member.metadata["high"]
    step = 1 if member.type is int else 1e-3 * max(abs(low), 1e-9)
    assert parse_value(name, str(low)) == low
    with pytest.raises(UserError, match=f"^{name.upper()} must be"):
        parse_value(name, str(low - step))
    if high < math.inf:
        assert parse_value(name, str(high)) == high
        with pytest.raises(UserError, match=f"^{name.upper()} must be"):
            parse_value(name, str(high + 1 if member.type is int else high * 1.001))


@pytest.mark.parametrize("name", [name for name in verify.CONFIG if name in FIELDS])
def test_what_trains_verifies(name):
    """Both ends of each range, and each choice, are what verify.py takes."""
    member = FIELDS[name]
    values = train_gpt.choices_of(member).values()
    values = values or (member.metadata["low"], member.metadata["high"])
    for value in values:
        assert verify.CONFIG[name].holds(member.type(value)), (name, value)


def test_verify_knows_every_protocol_and_optimizer():
    protocols = ("off", "score_first", "per_document", "train_then_score")
    assert FIELDS["ttt_protocol"].metadata["choices"] == protocols
    assert FIELDS["ttt_optimizer"].metadata["choices"] == ("adamw", "sgd")
    for protocol in protocols:
        for optimizer in ("adamw", "sgd"):
            s = tiny_settings(TTT_PROTOCOL=protocol, TTT_OPTIMIZER=optimizer, DOCUMENT_TOKENS=16)
            assert problems(s) == []


ENDS = dict(
    MLP_NEGATIVE_SLOPE=("0", "10"),
    ROPE_BASE=("1", "1e9"),
    ROPE_DIMS=("2", "8"),
    LOGIT_SOFTCAP=("1e-3", "1e6"),
    XSA_LAST_N=("0", "256"),
    NUM_LAYERS=("1", "256"),
    BIGRAM_BUCKETS=("0", "2"),
    BIGRAM_DIM=("1", "4096"),
    VOCAB_SIZE=("1", "65536"),
    EVAL_STRIDE=("1", "16"),
    TTT_CHUNK_TOKENS=("16", "2147483648"),
    TTT_EPOCHS=("0", "16777216"),
    TTT_LR=("0", "1000"),
    TTT_BATCH_SEQS=("1", "65536"),
    TTT_GRAD_CLIP=("1e-9", "1e9"),
    DOCUMENT_RANK=("1", "65536"),
    DOCUMENT_LR=("0", "1000"),
    DOCUMENT_TOKENS=("1", "65536"),
)


def problems(s: Settings) -> list[str]:
    """What verify.py has against an artifact of these settings."""
    config = flat(s.model, s.training, s.export, s.evaluation) | {"tokenizer_sha256": "0" * 64}
    shapes = {name: tuple(p.shape) for name, p in train_gpt.GPT(s.model).named_parameters()}
    return verify.config_problems(config, shapes, False)


@pytest.mark.parametrize("name", ENDS)
def test_a_network_at_the_ends_of_a_range_verifies(name):
    for value in ENDS[name]:
        assert problems(tiny_settings(**{name: value})) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TTT_BATCH_SEQS", "0"),
        ("TTT_CHUNK_TOKENS", "0"),
        ("TTT_GRAD_CLIP", "0"),
        ("TTT_LR", "2000"),
        ("ROPE_BASE", "0.5"),
        ("LOGIT_SOFTCAP", "1e7"),
        ("LOGIT_SOFTCAP", "0"),
        ("MLP_NEGATIVE_SLOPE", "20"),
        ("XSA_LAST_N", "1000000000"),
        ("SEED", str(2**64)),
        ("SEED", str(2**63)),
        ("ITERATIONS", "9" * 5000),
        ("QK_GAIN_INIT", "1e300"),
        ("BIGRAM_INIT_STD", "1e300"),
        ("RUN_ID", ".."),
        ("RUN_ID", "."),
        ("RUN_ID", ".x"),
        ("RUN_ID", "a b"),
        ("RUN_ID", "a\n"),
        ("RUN_ID", "a*"),
        ("RUN_ID", "\udcff"),
        ("RUN_ID", "é"),
        ("RUN_ID", "x" * 101),
    ],
)
def test_what_would_fail_later_is_refused_at_once(name, value):
    with pytest.raises(UserError, match=rf"^{name}\b.*\.$") as caught:
        tiny_settings(**{name: value})
    assert len(str(caught.value)) < 200


def test_plain_run_ids_pass():
    for run_id in ("a", "A.b-1_C", "20260101_120000", "-", "x" * 100):
        assert tiny_settings(RUN_ID=run_id).run.run_id == run_id


# ---- Ranks


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK and WORLD_SIZE go together"),
        ({"RANK": "0"}, "RANK, LOCAL_RANK and WORLD_SIZE go together"),
        ({"LOCAL_RANK": "0"}, "RANK, LOCAL_RANK and WORLD_SIZE go together"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "RANK, LOCAL_RANK and WORLD_SIZE go together"),
        ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "go together"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "-1"}, "go together"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 must be less than"),
        ({"RANK": "3", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "must be less than WORLD_SIZE=2"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR expected"),
    ],
)
def test_a_part_of_what_torchrun_sets(monkeypatch, given, sentence):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert join_ranks(Run(device="cpu")).world == 1
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{sentence}.*\.$"):
        join_ranks(Run(device="cpu"))


# ---- The command line


def command(monkeypatch, *arguments: str) -> int:
    def run(*_):
        raise AssertionError("it starts")

    monkeypatch.setattr(train_gpt, "run", run)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *arguments])
    return train_gpt.main()


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("x", "--help")])
def test_help_states_presets_and_every_setting(monkeypatch, capsys, arguments):
    assert command(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert "PRESET=demo python train_gpt.py" in text
    assert "Presets: pcll, frontier, pcloadloveletter_v6, demo" in text
    for name in FIELDS:
        assert f"\n  {name.upper()}=" in text, name
    assert "\n  NUM_LAYERS=11\n      blocks (a whole number from 1 to 256)\n" in text
    assert "(one of huffman, trellis)" in text


@pytest.mark.parametrize("argument", ["demo", "--demo", "PRESET=demo", "--iterations=3", ""])
def test_an_argument_is_no_setting(monkeypatch, capsys, argument):
    assert command(monkeypatch, argument) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{argument} is no argument: settings are environment variables")
    assert said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"NUM_HEADS": "7"}, "NUM_HEADS"),
        (
            {"TOKENIZER_PATH": "nowhere"},
            "TOKENIZER_PATH=nowhere is not there: in the challenge's repository `python "
            "data/cached_challenge_fineweb.py --variant sp1024` downloads it; PRESET=demo",
        ),
        ({"ITERATION": "10"}, "ITERATION is no setting: did you mean ITERATIONS?"),
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
