"""Settings: the numbers of both systems, and what a person types is taken or stopped by name.

Expected numbers are literals: a test that reads the table under test cannot see that it is wrong.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import (
    BASELINE_ONLY,
    FIELDS,
    PRESET_NAMES,
    PRESETS,
    Distributed,
    Settings,
    UserError,
    load_settings,
    parse_value,
    time_limit,
)

SYSTEM = dict(  # of entry 532 as its author reports it, and of our preset
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
    xsa_last_n=4,
    bigram_buckets=2048,
    bigram_dim=128,
    ln_scale=True,
    smear_gate=True,
    value_residual=True,
    gated_attention=True,
    skips="plain",
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
    size_cap_bytes=16_000_000,
    eval_stride=32,
    ttt_batch_seqs=16,
)
SOURCES = ("532", "549", "1204", "1394", "1412", "1530", "1787", "1970")
SOURCES += ("base", "ours", "challenge")
OWN = {  # where the two differ: ours, entry 532
    "bos_reset": (True, False),
    "bigram_init_std": (0.02, 0),
    "codec": ("trellis", "huffman"),
    "ttt_protocol": ("score_first", "train_then_score"),
    "ttt_lr": (0.002, 0.001),
    "ttt_epochs": (3, 10),
}


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
def test_the_numbers_of_the_system(preset):
    values = vars(load_settings({"PRESET": preset}))
    assert {name: values[name] for name in SYSTEM} == SYSTEM


def test_the_constants_of_the_system():
    assert (train_gpt.LOGIT_SOFTCAP, train_gpt.TTT_GRAD_CLIP) == (30, 1)
    assert train_gpt.RECURRENCE_START == 0.35
    assert train_gpt.ttt_optimizer(load_settings({})) == "sgd"
    entry = load_settings({"PRESET": "pcloadloveletter_v6"})
    assert train_gpt.ttt_optimizer(entry) == "adamw"
    levels = {name: role.levels for name, role in train_gpt.ROLES.items() if role.levels}
    mlp = {"mlp.up": 48, "mlp.down": 48}
    qkv = {"attn.q": 80, "attn.k": 80, "attn.v": 80}
    assert levels == mlp | qkv | dict.fromkeys(
        ("attn.out", "tok_emb", "bigram.table", "bigram.proj"), 64
    )


def test_where_the_entry_and_ours_differ():
    ours = vars(load_settings({}))
    entry = vars(load_settings({"PRESET": "pcloadloveletter_v6"}))
    differ = {name: (ours[name], entry[name]) for name in ours if ours[name] != entry[name]}
    assert differ == OWN | {"preset": ("pcll", "pcloadloveletter_v6")}


def test_how_ours_adapts_and_exports():
    s = load_settings({})
    assert (s.ttt_chunk_tokens, s.eval_batch_seqs) == (32_768, 64)
    assert (s.calibration_tokens, s.quantisation_nats, s.fit) == (131_072, 0.0005, "shrink")
    assert (s.iterations, s.micro_batch_seqs) == (20_000, 48)


def test_calibration_has_its_part_of_the_cap():
    reserving = SimpleNamespace(reserved=3.0)
    assert time_limit(reserving, load_settings({})) == 597
    assert time_limit(SimpleNamespace(reserved=0.0), load_settings({})) == 600
    assert time_limit(reserving, load_settings({"MAX_WALLCLOCK_SECONDS": "0"})) == math.inf
    assert 0 < time_limit(reserving, load_settings({"MAX_WALLCLOCK_SECONDS": "2"})) < 1e-6


def test_the_names_of_the_presets():
    assert PRESET_NAMES == tuple(PRESETS) == ("pcll", "frontier", "pcloadloveletter_v6", "demo")


@pytest.mark.parametrize("name", ["pcll", "frontier", "pcloadloveletter_v6", "demo"])
def test_presets_are_valid(name):
    assert load_settings({"PRESET": name}).preset == name


def test_environment_wins_over_preset():
    changes = dict(NUM_LAYERS="6", SMEAR_GATE="0", MATRIX_LR="1e-3", CODEC="huffman")
    s = load_settings({"PRESET": "demo"} | changes)
    assert (s.num_layers, s.smear_gate, s.matrix_lr, s.codec) == (6, False, 1e-3, "huffman")
    assert (s.model_dim, s.train_seq_len) == (128, 256)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True)])
def test_switches(text, value):
    assert tiny_settings(LN_SCALE=text).ln_scale is value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"NUM_LAYERS": "0"}, "NUM_LAYERS must be whole and above 0, not '0'."),
        ({"SEED": "-1"}, "SEED must be whole and at least 0, not '-1'."),
        ({"MATRIX_LR": "x"}, "MATRIX_LR must be at least 0, not 'x'."),
        ({"WARMDOWN_FLOOR": "2"}, "WARMDOWN_FLOOR must be from 0 to 1, not '2'."),
        ({"EMA_DECAY": "1"}, "EMA_DECAY must be at least 0 and below 1, not '1'."),
        ({"CODEC": "zip"}, "CODEC must be one of trellis, huffman, not 'zip'."),
        ({"SMEAR_GATE": ""}, "SMEAR_GATE must be one of 0, 1, not ''."),
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
        text = str(int(member.default) if member.type is bool else member.default)
        assert parse_value(name, text) == member.default, name


def test_presets_and_lists_name_settings():
    names = {name.lower() for name in FIELDS}
    assert {name for preset in PRESETS.values() for name in preset} <= names
    assert {*train_gpt.PER_RUN, *train_gpt.LENGTH_SETTINGS} <= names


def test_what_the_artifact_and_a_checkpoint_state():
    own = """preset run_id compile artifact_path data_path tokenizer_path micro_batch_seqs
        train_log_every val_loss_every checkpoint_every resume""".split()
    after = """calibration_tokens quantisation_nats codec fit size_cap_bytes eval_stride
        eval_batch_seqs ttt_protocol ttt_chunk_tokens ttt_epochs ttt_lr ttt_batch_seqs
        document_rank document_lr document_tokens""".split()
    names = [name.lower() for name in FIELDS]
    assert train_gpt.STATED == [name for name in names if name not in own]
    assert train_gpt.TRAINED_WITH == [name for name in names if name not in own + after]


@settings(max_examples=20, deadline=None)
@given(preset=st.sampled_from(PRESET_NAMES), data=st.data())
def test_what_is_logged_is_read_back(tmp_path_factory, preset, data):
    """The log's lines name:value, set as variables, are the same settings again."""
    values = PRESETS[preset] | {"preset": preset}
    values["seed"] = data.draw(st.integers(0, 10**18))
    values["matrix_lr"] = data.draw(st.floats(0, 1e9))
    values["smear_gate"] = data.draw(st.booleans())
    s = Settings(**values)
    lines = logged_settings(s, tmp_path_factory.mktemp("run"))
    assert lines.keys() == FIELDS.keys()
    assert load_settings(lines) == s


def logged_settings(s: Settings, folder: Path) -> dict[str, str]:
    """What the log of a run states, by the names of the variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train_gpt, "log", train_gpt.Log())
        train_gpt.start_log(b"", train_gpt.GPT(tiny_settings()), s, None)
        train_gpt.log.file.close()
        (path,) = Path("logs").glob("*.txt")
        text = path.read_text().partition("changed:")[0]
    return {name.upper(): value for name, value in re.findall(r"^([a-z]\w*):(.*)$", text, re.M)}


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
        f"{name} is no setting. Did you mean {meant}? If not, unset {name}."
    )


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("MLP_MULT", "MLP_HIDDEN"),
        ("TIED_EMBED_LR", "EMBED_LR"),
        ("HEAD_LR", "EMBED_LR"),
        ("BETA1", "0.9"),
        ("BETA2", "ADAM_BETA2"),
        ("ADAM_EPS", "1e-8"),
        ("VAL_BATCH_SIZE", "EVAL_BATCH_SEQS"),
        ("LOGIT_SOFTCAP", "30"),
        ("MUON_BACKEND_STEPS", "5"),
        ("TIE_EMBEDDINGS", "tied"),
        ("TIED_EMBED_INIT_STD", "0.005"),
        ("CONTROL_TENSOR_NAME_PATTERNS", "ROLES"),
        ("INT8_KEEP_FLOAT_FP32_NAME_PATTERNS", "ROLES"),
    ],
)
def test_a_setting_of_the_baseline_alone_stops_the_run(name, instead):
    with pytest.raises(UserError) as caught:
        load_settings({name: "3", "PRESET": "demo"})
    sentence = str(caught.value)
    assert sentence.startswith(f"{name} is the baseline's and unknown here: ")
    assert sentence.endswith(".") and re.search(rf"\b{re.escape(instead)}\b", sentence[len(name) :])


def test_what_replaces_a_setting_of_the_baseline_exists():
    assert not BASELINE_ONLY.keys() & FIELDS.keys()
    for hint in BASELINE_ONLY.values():
        assert set(re.findall(r"[A-Z_0-9]{5,}", hint)) <= {*FIELDS, "ROLES"}


def test_other_names_pass():
    """Of shells, launchers, schedulers and libraries."""
    names = """PATH HOME USER SHELL LANG LC_ALL PWD TERM DISPLAY HOSTNAME SHLVL TMPDIR TZ CC CXX
        RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK LOCAL_WORLD_SIZE
        TORCHELASTIC_RUN_ID OMP_NUM_THREADS MKL_NUM_THREADS PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
        CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_PATH NCCL_DEBUG TOKENIZERS_PARALLELISM HF_HOME
        TORCH_HOME TORCH_LOGS WANDB_RUN_ID WANDB_API_KEY SLURM_JOB_ID SLURM_NTASKS JOB_ID MODEL
        MODEL_NAME MODEL_DIR MODEL_ID MODEL_PATH DATA_DIR COMPILER DEVICES SKIP""".split()
    for name in names:
        assert load_settings({name: "1"}) == load_settings({}), name


# ---- Ranges


ENDS_OF_RANGES = {  # accepted, refused
    "at least 0": (("0", "1", "1" + 18 * "0"), ("-1", str(2**63), "1e300", "nan", "inf", "")),
    "above 0": (("1", "7"), ("0", "-1", str(2**64), "1e300", "nan", "x")),
    "from 0 to 1": (("0", "0.5", "1"), ("-0.001", "1.001", "nan")),
    "at least 0 and below 1": (("0", "0.999"), ("-0.001", "1", "nan")),
}
NUMBERS = [name for name, member in FIELDS.items() if member.type in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_range_holds_its_ends_and_nothing_beyond(name):
    allowed = FIELDS[name].metadata["allowed"]
    accepted, refused = ENDS_OF_RANGES[allowed]
    kind = FIELDS[name].type
    if kind is int:
        refused = (*refused, "1.5")
    for text in accepted:
        assert parse_value(name, text) == kind(text)
    for text in refused:
        with pytest.raises(UserError, match=rf"^{name} must be (whole and )?{allowed}, not '"):
            parse_value(name, text)


@pytest.mark.parametrize(
    "name",
    """MICRO_BATCH_SEQS TRAIN_LOG_EVERY VOCAB_SIZE NUM_LAYERS MODEL_DIM NUM_HEADS NUM_KV_HEADS
    MLP_HIDDEN TRAIN_SEQ_LEN ROPE_DIMS ROPE_BASE LOOP_PASSES BIGRAM_DIM TRAIN_BATCH_TOKENS
    CALIBRATION_TOKENS QUANTISATION_NATS EVAL_STRIDE EVAL_BATCH_SEQS TTT_CHUNK_TOKENS
    TTT_BATCH_SEQS DOCUMENT_RANK DOCUMENT_TOKENS""".split(),
)
def test_what_divides_or_counts_is_above_zero(name):
    with pytest.raises(UserError, match=f"^{name} must be (whole and )?above 0, not '0'.$"):
        tiny_settings(**{name: 0})


def test_verify_knows_every_choice():
    choices = dict(
        TTT_PROTOCOL=("off", "score_first", "per_document", "train_then_score"),
        SKIPS=("off", "plain", "gated"),
    )
    for name, values in choices.items():
        assert FIELDS[name].metadata["choices"] == values
        for value in values:
            assert problems(tiny_settings(**{name: value}, DOCUMENT_TOKENS=16)) == []
    for name in ("LN_SCALE", "SMEAR_GATE", "VALUE_RESIDUAL", "GATED_ATTENTION", "BOS_RESET"):
        for value in (0, 1):
            assert problems(tiny_settings(**{name: value})) == []


ENDS = dict(
    MLP_NEGATIVE_SLOPE=("0", "10"),
    ROPE_BASE=("1", "1e9"),
    ROPE_DIMS=("2", "8"),
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
    DOCUMENT_RANK=("1", "65536"),
    DOCUMENT_LR=("0", "1000"),
    DOCUMENT_TOKENS=("1", "65536"),
)


def problems(s: Settings) -> list[str]:
    """What verify.py has against an artifact of these settings."""
    config = {name: getattr(s, name) for name in train_gpt.STATED if name != "skips"} | dict(
        unet_skips=s.skips != "off",
        skip_gates=s.skips == "gated",
        logit_softcap=train_gpt.LOGIT_SOFTCAP,
        ttt_optimizer=train_gpt.ttt_optimizer(s),
        ttt_grad_clip=train_gpt.TTT_GRAD_CLIP,
        tokenizer_sha256="0" * 64,
    )
    shapes = {name: tuple(p.shape) for name, p in train_gpt.GPT(s).named_parameters()}
    return verify.config_problems(config, shapes, False)


@pytest.mark.parametrize("name", ENDS)
def test_a_network_at_the_ends_of_a_range_verifies(name):
    for value in ENDS[name]:
        assert problems(tiny_settings(**{name: value})) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PRESET", "fast"),
        ("NUM_LAYERS", "eleven"),
        ("SMEAR_GATE", "maybe"),
        ("SMEAR_GATE", "2"),
        ("SMEAR_GATE", "true"),
        ("COMPILE", "yes"),
        ("SKIPS", "1"),
        ("FIT", "off"),
        ("TTT_PROTOCOL", "best_of_10"),
        ("NUM_HEADS", "3"),
        ("NUM_KV_HEADS", "3"),
        ("ROPE_DIMS", "3"),
        ("ROPE_DIMS", "10"),
        ("EVAL_STRIDE", "17"),
        ("TRAIN_SEQ_LEN", "15"),
        ("BIGRAM_BUCKETS", "1"),
        ("LOOP_LAST", "3"),
        ("GATE_DIMS", "33"),
        ("ITERATIONS", "9" * 5000),
        ("RUN_ID", "a/b"),
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
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(UserError, match=rf"^{name}\b.*\.$") as caught:
        tiny_settings(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_plain_run_ids_pass():
    for run_id in ("a", "A.b-1_C", "20260101_120000", "-", "x" * 100):
        assert tiny_settings(RUN_ID=run_id).run_id == run_id


# ---- Ranks


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def started_as(monkeypatch):
    """started_as(RANK="0", ...): what one process becomes that torchrun starts with these
    variables."""

    def start(gpus: int = 0, **variables: str) -> Distributed:
        monkeypatch.setattr(train_gpt.torch.cuda, "device_count", lambda: gpus)
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ranks = Distributed()
        ranks.init()
        return ranks

    return start


def test_one_process_is_the_first_of_one(started_as):
    for variables in ({}, dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1"), dict(RANK="3")):
        ranks = started_as(**variables)
        assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (dict(WORLD_SIZE="2"), r"RANK expected, but not set"),
        (dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2"), r"MASTER_ADDR expected, but not set"),
    ],
)
def test_a_part_of_what_torchrun_sets(started_as, variables, sentence):
    with pytest.raises(UserError, match=rf"^torchrun sets what is missing here: .*{sentence}.*\.$"):
        started_as(**variables)


def test_more_processes_than_gpus(started_as):
    with pytest.raises(UserError, match=r"^Process 2 finds only 2 GPUs: start fewer processes\.$"):
        started_as(gpus=2, RANK="2", LOCAL_RANK="2", WORLD_SIZE="3")


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
        assert f"\n  {name}=" in text, name
    assert "\n  NUM_LAYERS=11\n      transformer blocks (above 0)\n" in text
    assert (
        "\n  CODEC=trellis\n      of the matrices; huffman: 532 (one of trellis, huffman)\n" in text
    )


def test_help_gives_a_text_no_range():
    for about in re.split(r"\n\n  (?=[A-Z])", train_gpt.usage()):
        if about.startswith(("RUN_ID=", "DATA_PATH=", "RESUME=")):
            assert "at least 0" not in about


def test_help_without_docstrings(tmp_path):
    run = started(tmp_path, {}, "--help", flags=["-OO"])
    assert run.returncode == 0 and run.stderr == ""
    assert "Presets: pcll, frontier, " in run.stdout and "\n  NUM_LAYERS=11\n" in run.stdout


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
            "TOKENIZER_PATH=nowhere does not exist: in the challenge's repository `python "
            "data/cached_challenge_fineweb.py --variant sp1024` downloads it; PRESET=demo",
        ),
        ({"ITERATION": "10"}, "ITERATION is no setting. Did you mean ITERATIONS?"),
        ({"MLP_MULT": "3"}, "MLP_MULT is the baseline's and unknown here: MLP_HIDDEN"),
    ],
)
def test_the_command_ends_with_one_sentence(tmp_path, change, named):
    run = started(tmp_path, {"PRESET": "pcll"} | change)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and named in run.stderr
    assert not (tmp_path / "artifact.pcll").exists()


def started(
    folder: Path, variables: dict, *arguments: str, flags=()
) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in (*TORCHRUN, *FIELDS)}
    return subprocess.run(
        [sys.executable, *flags, ROOT / "train_gpt.py", *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
    )
