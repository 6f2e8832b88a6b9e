"""Settings: the numbers of both systems, and what a person types is taken or stopped by name.

Expected numbers are literals: a test that reads the table under test cannot see that it is wrong.
"""

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import pairs, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import FIELDS, PRESETS, Settings, UserError, load_settings, parse_value, time_limit

# Of entry 532 as its author reports it, and of our preset.
SYSTEM = pairs("""
    VOCAB_SIZE=1024 NUM_LAYERS=11 MODEL_DIM=512 NUM_HEADS=8 NUM_KV_HEADS=4 MLP_HIDDEN=1500
    MLP_NEGATIVE_SLOPE=0.5 TRAIN_SEQ_LEN=2048 ROPE_DIMS=16 ROPE_BASE=50000 QK_GAIN_INIT=1.5
    XSA_LAST_N=4 BIGRAM_BUCKETS=2048 BIGRAM_DIM=128 LN_SCALE=1 SMEAR_GATE=1 VALUE_RESIDUAL=1
    GATED_ATTENTION=1 SKIPS=plain SEED=1337 DTYPE=bfloat16 MAX_WALLCLOCK_SECONDS=600
    TRAIN_BATCH_TOKENS=786432 WARMUP_STEPS=20 WARMDOWN_ITERS=3000 MATRIX_OPTIMIZER=normuon
    MATRIX_LR=0.03 EMBED_LR=0.04 SCALAR_LR=0.02 MUON_MOMENTUM=0.99 MUON_MOMENTUM_WARMUP_START=0.92
    MUON_MOMENTUM_WARMUP_STEPS=1500 WEIGHT_DECAY=0.04 GRAD_CLIP_NORM=0.3 EMA_DECAY=0.997
    LATE_QAT_THRESHOLD=0.1 SIZE_CAP_BYTES=16000000 EVAL_STRIDE=32 TTT_BATCH_SEQS=16
    ITERATIONS=20000 MICRO_BATCH_SEQS=48 CALIBRATION_TOKENS=131072 QUANTISATION_NATS=0.0005
    FIT=shrink EVAL_BATCH_SEQS=64 TTT_CHUNK_TOKENS=32768
""")
OWN = {  # where the two differ: ours, entry 532
    "bos_reset": (True, False),
    "bigram_init_std": (0.02, 0),
    "codec": ("trellis", "huffman"),
    "ttt_protocol": ("score_first", "train_then_score"),
    "ttt_lr": (0.002, 0.001),
    "ttt_epochs": (3, 10),
}
SOURCES = "532 549 1204 1394 1412 1530 1787 1970 base ours challenge".split()


@pytest.mark.parametrize("preset", ["pcll", "pcloadloveletter_v6"])
def test_the_numbers_of_the_system(preset):
    assert SYSTEM.keys() <= FIELDS.keys()
    assert load_settings({"PRESET": preset}) == load_settings({"PRESET": preset} | SYSTEM)


def test_the_constants_of_the_system():
    assert (train_gpt.LOGIT_SOFTCAP, train_gpt.TTT_GRAD_CLIP) == (30, 1)
    assert train_gpt.RECURRENCE_START == 0.35
    levels = {name: str(role.levels) for name, role in train_gpt.ROLES.items() if role.levels}
    assert levels == pairs("""mlp.up=48 mlp.down=48 attn.q=80 attn.k=80 attn.v=80 attn.out=64
        tok_emb=64 bigram.table=64 bigram.proj=64""")


def test_where_the_entry_and_ours_differ():
    ours = vars(load_settings({}))
    entry = vars(load_settings({"PRESET": "pcloadloveletter_v6"}))
    differ = {name: (ours[name], entry[name]) for name in ours if ours[name] != entry[name]}
    assert differ == OWN | {"preset": ("pcll", "pcloadloveletter_v6")}


def test_calibration_has_its_part_of_the_cap():
    reserving = SimpleNamespace(reserved=3.0)
    assert time_limit(reserving, load_settings({})) == 597
    assert time_limit(SimpleNamespace(reserved=0.0), load_settings({})) == 600
    assert time_limit(reserving, load_settings({"MAX_WALLCLOCK_SECONDS": "0"})) == math.inf
    assert 0 < time_limit(reserving, load_settings({"MAX_WALLCLOCK_SECONDS": "2"})) < 1e-6


def test_the_presets_are_valid():
    names = ("pcll", "frontier", "pcloadloveletter_v6", "demo")
    assert train_gpt.PRESET_NAMES == tuple(PRESETS) == names
    assert [load_settings({"PRESET": name}).preset for name in names] == [*names]


def test_environment_wins_over_preset():
    changes = dict(NUM_LAYERS="6", SMEAR_GATE="0", MATRIX_LR="1e-3", CODEC="huffman", LN_SCALE="1")
    s = load_settings({"PRESET": "demo"} | changes)
    assert (s.num_layers, s.matrix_lr, s.codec) == (6, 1e-3, "huffman")
    assert s.smear_gate is False and s.ln_scale is True
    assert (s.model_dim, s.train_seq_len) == (128, 256)


def test_every_field_states_its_meaning_and_source():
    for name, member in FIELDS.items():
        assert member.metadata["text"], name
        assert member.metadata["source"] in SOURCES, name
        assert member.type in (str, int, float, bool), name
        text = str(int(member.default) if member.type is bool else member.default)
        assert parse_value(name, text) == member.default, name
    assert {*train_gpt.PER_RUN, *train_gpt.LENGTH_SETTINGS} <= {name.lower() for name in FIELDS}


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
@given(
    preset=st.sampled_from([*PRESETS]),
    seed=st.integers(0, 10**18),
    matrix_lr=st.floats(0, 1e9),
    smear_gate=st.booleans(),
)
def test_what_is_logged_is_read_back(tmp_path_factory, preset, **drawn):
    """The log's lines name:value, set as variables, are the same settings again."""
    s = Settings(**PRESETS[preset] | {"preset": preset} | drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setattr(train_gpt, "log", train_gpt.Log())
        train_gpt.start_log(b"", train_gpt.GPT(tiny_settings()), s, None)
        train_gpt.log.file.close()
        (path,) = Path("logs").glob("*.txt")
        text = path.read_text().partition("changed:")[0]
    lines = {name.upper(): value for name, value in re.findall(r"(?m)^([a-z]\w*):(.*)$", text)}
    assert lines.keys() == FIELDS.keys()
    assert load_settings(lines) == s


# ---- Names that are none


CLOSE = """ITERATION=ITERATIONS iterations=ITERATIONS MATRIXLR=MATRIX_LR N_LAYERS=NUM_LAYERS
    MAX_WALLCLOCK_SECOND=MAX_WALLCLOCK_SECONDS WALLCLOCK_SECONDS=MAX_WALLCLOCK_SECONDS
    NUM_LAYER=NUM_LAYERS BATCH_TOKENS=TRAIN_BATCH_TOKENS TTT_EPOCH=TTT_EPOCHS SEEDS=SEED
    RUNID=RUN_ID TOKENISER_PATH=TOKENIZER_PATH"""
BASELINE = """MLP_MULT=MLP_HIDDEN TIED_EMBED_LR=EMBED_LR HEAD_LR=EMBED_LR BETA1=0.9
    BETA2=ADAM_BETA2 ADAM_EPS=1e-8 VAL_BATCH_SIZE=EVAL_BATCH_SEQS LOGIT_SOFTCAP=30
    MUON_BACKEND_STEPS=5 TIE_EMBEDDINGS=tied TIED_EMBED_INIT_STD=0.005
    CONTROL_TENSOR_NAME_PATTERNS=ROLES INT8_KEEP_FLOAT_FP32_NAME_PATTERNS=ROLES"""
# Of shells, launchers, schedulers and libraries.
FOREIGN = """PATH HOME USER SHELL LANG LC_ALL PWD TERM DISPLAY HOSTNAME SHLVL TMPDIR TZ CC CXX
    RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK LOCAL_WORLD_SIZE
    TORCHELASTIC_RUN_ID OMP_NUM_THREADS MKL_NUM_THREADS PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
    CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_PATH NCCL_DEBUG TOKENIZERS_PARALLELISM HF_HOME
    TORCH_HOME TORCH_LOGS WANDB_RUN_ID WANDB_API_KEY SLURM_JOB_ID SLURM_NTASKS JOB_ID MODEL
    MODEL_NAME MODEL_DIR MODEL_ID MODEL_PATH DATA_DIR COMPILER DEVICES SKIP"""


@pytest.mark.parametrize(("name", "meant"), pairs(CLOSE).items())
def test_a_name_close_to_a_setting_stops_the_run(name, meant):
    with pytest.raises(UserError) as caught:
        load_settings({name: "3", "PRESET": "demo"})
    assert str(caught.value) == (
        f"{name} is no setting. Did you mean {meant}? If not, unset {name}."
    )


@pytest.mark.parametrize(("name", "instead"), pairs(BASELINE).items())
def test_a_setting_of_the_baseline_alone_stops_the_run(name, instead):
    with pytest.raises(UserError) as caught:
        load_settings({name: "3", "PRESET": "demo"})
    sentence = str(caught.value)
    assert sentence.startswith(f"{name} is the baseline's and unknown here: ")
    assert sentence.endswith(".") and re.search(rf"\b{re.escape(instead)}\b", sentence[len(name) :])
    assert set(re.findall(r"[A-Z_0-9]{5,}", sentence[len(name) :])) <= {*FIELDS, "ROLES"}


def test_other_names_and_plain_run_ids_pass():
    for name in FOREIGN.split():
        assert load_settings({name: "1"}) == load_settings({}), name
    for run_id in ("a", "A.b-1_C", "20260101_120000", "-", "x" * 100):
        assert tiny_settings(RUN_ID=run_id).run_id == run_id


# ---- Ranges


RANGES = {  # accepted, refused
    "at least 0": (("0", "1", "1" + 18 * "0"), ("-1", str(2**63), "1e300", "nan", "inf", "")),
    "above 0": (("1", "7"), ("0", "-1", str(2**64), "1e300", "nan", "x")),
    "from 0 to 1": (("0", "0.5", "1"), ("-0.001", "1.001", "nan")),
    "at least 0 and below 1": (("0", "0.999"), ("-0.001", "1", "nan")),
}
DIVIDES_OR_COUNTS = """MICRO_BATCH_SEQS TRAIN_LOG_EVERY VOCAB_SIZE NUM_LAYERS MODEL_DIM NUM_HEADS
    NUM_KV_HEADS MLP_HIDDEN TRAIN_SEQ_LEN ROPE_DIMS ROPE_BASE LOOP_PASSES BIGRAM_DIM
    TRAIN_BATCH_TOKENS CALIBRATION_TOKENS QUANTISATION_NATS EVAL_STRIDE EVAL_BATCH_SEQS
    TTT_CHUNK_TOKENS TTT_BATCH_SEQS DOCUMENT_RANK DOCUMENT_TOKENS"""
NUMBERS = [name for name, member in FIELDS.items() if member.type in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_range_holds_its_ends_and_nothing_beyond(name):
    allowed = FIELDS[name].metadata["allowed"]
    assert (allowed == "above 0") == (name in DIVIDES_OR_COUNTS.split())
    accepted, refused = RANGES[allowed]
    kind = FIELDS[name].type
    whole = ""
    if kind is int:
        refused, whole = (*refused, "1.5"), "whole and "
    for text in accepted:
        assert parse_value(name, text) == kind(text)
    for text in refused:
        with pytest.raises(UserError) as caught:
            parse_value(name, text)
        assert str(caught.value) == f"{name} must be {whole}{allowed}, not {text!r}."


@pytest.mark.parametrize("text", ["a\nb.pcll", "e ", "f\udcff"], ids=ascii)
def test_a_path_that_no_line_of_a_log_could_hold(text):
    assert parse_value("DATA_PATH", "é 'quoted' -x") == "é 'quoted' -x"
    with pytest.raises(UserError) as caught:
        parse_value("DATA_PATH", text)
    assert str(caught.value) == f"DATA_PATH must be one line of text, not {text!r}."


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("NUM_LAYERS=0", "NUM_LAYERS must be whole and above 0, not '0'."),
        ("CODEC=zip", "CODEC must be one of trellis, huffman, not 'zip'."),
        ("SMEAR_GATE=", "SMEAR_GATE must be one of 0, 1, not ''."),
        ("TRAIN_BATCH_TOKENS=65", "TRAIN_SEQ_LEN must divide TRAIN_BATCH_TOKENS=65."),
        ("TTT_CHUNK_TOKENS=33", "TRAIN_SEQ_LEN must divide TTT_CHUNK_TOKENS=33."),
        ("CALIBRATION_TOKENS=8", "TRAIN_SEQ_LEN must divide CALIBRATION_TOKENS=8."),
        ("LOOP_FIRST=1", "LOOP_LAST must be a block, and LOOP_FIRST none after it."),
        ("SMEAR_DIMS=33", "GATE_DIMS and SMEAR_DIMS must be at most MODEL_DIM."),
        ("DOCUMENT_TOKENS=17", "DOCUMENT_TOKENS must be at most TRAIN_SEQ_LEN."),
    ],
)
def test_sentences(changes, sentence):
    """DOCUMENT_TOKENS matters with TTT_PROTOCOL=per_document alone."""
    protocol = "per_document" if "DOCUMENT" in changes else "score_first"
    with pytest.raises(UserError) as caught:
        tiny_settings(TTT_PROTOCOL=protocol, **pairs(changes))
    assert str(caught.value) == sentence


WRONG = """PRESET=fast NUM_LAYERS=eleven SMEAR_GATE=maybe SMEAR_GATE=2 SMEAR_GATE=true COMPILE=yes
    SKIPS=1 FIT=off TTT_PROTOCOL=best_of_10 NUM_HEADS=3 NUM_KV_HEADS=3 ROPE_DIMS=3 ROPE_DIMS=10
    EVAL_STRIDE=17 TRAIN_SEQ_LEN=15 BIGRAM_BUCKETS=1 LOOP_LAST=3 GATE_DIMS=33
    RUN_ID=a/b RUN_ID=.. RUN_ID=. RUN_ID=.x RUN_ID=a* RUN_ID=é"""
WRONG_TEXTS = [f"RUN_ID={'x' * 101}", "RUN_ID=a b", "RUN_ID=a\n", "RUN_ID=\udcff"]


@pytest.mark.parametrize("change", [*WRONG.split(), *WRONG_TEXTS, f"ITERATIONS={'9' * 5000}"])
def test_a_wrong_value_is_named(change):
    name, value = change.split("=")
    with pytest.raises(UserError, match=rf"^{name}\b.*\.$") as caught:
        tiny_settings(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


CHOICES = """TTT_PROTOCOL=off,score_first,per_document,train_then_score SKIPS=off,plain,gated
    LN_SCALE=0,1 SMEAR_GATE=0,1 VALUE_RESIDUAL=0,1 GATED_ATTENTION=0,1 BOS_RESET=0,1"""
ENDS = """MLP_NEGATIVE_SLOPE=0,9e18 ROPE_BASE=1e-300,9e18 ROPE_DIMS=2,8 XSA_LAST_N=0,9{0}
    NUM_LAYERS=1,256 BIGRAM_BUCKETS=0,2 BIGRAM_DIM=1,4096 VOCAB_SIZE=1,65536 EVAL_STRIDE=1,16
    TTT_CHUNK_TOKENS=16,9{0} TTT_EPOCHS=0,9{0} TTT_LR=0,9e18 TTT_BATCH_SEQS=1,9{0}
    DOCUMENT_RANK=1,65536 DOCUMENT_LR=0,9e18 DOCUMENT_TOKENS=1,9{0}""".format("0" * 18)


@pytest.mark.parametrize(("name", "values"), pairs(CHOICES + " " + ENDS).items())
def test_verify_accepts_every_choice_and_the_ends_of_ranges(name, values):
    choices = FIELDS[name].metadata["choices"]
    assert choices == (tuple(values.split(",")) if name in pairs(CHOICES) else ())
    for value in values.split(","):
        s = tiny_settings(**{"DOCUMENT_TOKENS": 16, name: value})
        config = {field: getattr(s, field) for field in train_gpt.STATED if field != "skips"}
        config |= dict(
            unet_skips=s.skips != "off",
            skip_gates=s.skips == "gated",
            logit_softcap=train_gpt.LOGIT_SOFTCAP,
            ttt_optimizer="adamw" if s.ttt_protocol == "train_then_score" else "sgd",
            ttt_grad_clip=train_gpt.TTT_GRAD_CLIP,
            tokenizer_sha256="0" * 64,
        )
        shapes = {field: tuple(p.shape) for field, p in train_gpt.GPT(s).named_parameters()}
        assert verify.unknown_parts(config, shapes) == []
        assert verify.contradictions(config, shapes) == []


# ---- Ranks


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def started_as(monkeypatch):
    """started_as("RANK=0"): what one process becomes that torchrun starts so."""

    def start(variables: str, gpus: int = 0) -> train_gpt.Distributed:
        monkeypatch.setattr(train_gpt.torch.cuda, "device_count", lambda: gpus)
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in pairs(variables).items():
            monkeypatch.setenv(name, value)
        ranks = train_gpt.Distributed()
        ranks.init()
        return ranks

    return start


def test_one_process_is_the_first_of_one(started_as):
    for variables in ("", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1", "RANK=3"):
        ranks = started_as(variables)
        assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ("WORLD_SIZE=2", "torchrun sets what is missing here: .*RANK expected, but not set.*"),
        ("RANK=0 LOCAL_RANK=0 WORLD_SIZE=2", "torchrun sets .*MASTER_ADDR expected, but not set.*"),
        ("RANK=2 LOCAL_RANK=2 WORLD_SIZE=3", "Process 2 finds only 2 GPUs: start fewer processes"),
    ],
)
def test_ranks_that_cannot_start(started_as, variables, sentence):
    with pytest.raises(UserError, match=rf"^{sentence}\.$"):
        started_as(variables, gpus=2 if "GPUs" in sentence else 0)


# ---- The command line


@pytest.mark.parametrize("arguments", ["--help", "-h", "x --help"])
def test_help_states_presets_and_every_setting(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *arguments.split()])
    assert train_gpt.main() == 0
    text = capsys.readouterr().out
    assert "PRESET=demo python train_gpt.py" in text
    assert "Presets: pcll, frontier, pcloadloveletter_v6, demo" in text
    for name in FIELDS:
        assert f"\n  {name}=" in text, name
    for row in (
        "NUM_LAYERS=11\n      transformer blocks (above 0)\n",
        "CODEC=trellis\n      of the matrices; huffman: 532 (one of trellis, huffman)\n",
        "LN_SCALE=1\n      scale the normed inputs of layer i by 1/sqrt(i+1) (one of 0, 1)\n",
        "RUN_ID=\n      name of logs/RUN_ID.txt; empty: date, time and process (one line of",
    ):
        assert f"\n  {row}" in text


@pytest.mark.parametrize("argument", ["demo", "--demo", "PRESET=demo", "--iterations=3", ""])
def test_an_argument_is_no_setting(monkeypatch, capsys, argument):
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", argument])
    assert train_gpt.main() == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{argument} is no argument: settings are environment variables")
    assert said.err.count("\n") == 1 and said.out == ""
