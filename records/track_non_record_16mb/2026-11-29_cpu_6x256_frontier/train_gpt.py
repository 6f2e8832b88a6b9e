"""Trains a small language model, packs it into `artifact.pcll`, and scores it from that file.

    PRESET=demo python train_gpt.py                               a small model on 2 CPU cores
    torchrun --standalone --nproc_per_node=8 train_gpt.py         the full model on 8 GPUs

The entry "pcloadloveletter v6" (number 532) of the Parameter Golf challenge, rebuilt: code plus
artifact stay under 16,000,000 bytes, training takes 10 minutes, and the score is bits per byte
(bpb) on the FineWeb validation split. Every setting is an environment variable; their table stands
below. The artifact's format is specified in `decode_artifact.py`.

Notable features, with their source (a number is an entry of the challenge):
    model       exclusive self-attention, gated attention, value residual, partial rotary embedding,
                leaky ReLU squared, bigram hash, smear gate, U-Net skips (532)
    optimizer   NorMuon for matrices (arXiv 2510.05491), AdamW for the rest, EMA of weights (532)
    codec       trellis-coded quantization with error feedback, steps by Fisher information,
                interleaved rANS (ours); or k-means codebooks and canonical Huffman codes (532)
    evaluation  a ledger: each token is scored once, before anything learns from it (ours);
                sliding window, then test-time training on scored tokens (549); or low-rank
                adapters that each document trains for itself (1530)

In this order: settings, roles of the parameters, distributed and log, data, model, optimizer,
codec, export, evaluation, training, main.
"""

import ast
import bisect
import collections
import contextlib
import copy
import dataclasses
import difflib
import errno
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shlex
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
import torch.nn.functional as F
import zstandard
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# ---- Settings ------------------------------------------------------------------------------------


class UserError(Exception):
    """An error the user can fix; its message is printed as is."""


NUMBERS = {  # the least and the greatest number a setting may be, by the words for it
    "at least 0": (0, 9e18),
    "above 0": (1e-300, 9e18),
    "from 0 to 1": (0, 1),
    "at least 0 and below 1": (0, 0.999999),
}
POSITIVE = "above 0"
FRACTION = "from 0 to 1"
DECAY = "at least 0 and below 1"
PRESET_NAMES = ("pcll", "frontier", "pcloadloveletter_v6", "demo")
SKIPS = ("off", "plain", "gated")
OPTIMIZERS = ("normuon", "muon_rows", "adamw")
LOADERS = ("sequential", "random")
PROTOCOLS = ("off", "score_first", "per_document", "train_then_score")
DATA_PATH = "data/datasets/fineweb10B_sp1024"
TOKENIZER_PATH = "data/tokenizers/fineweb_1024_bpe.model"


def setting(default: Any, text: str, source: str, allowed: str | tuple = "at least 0") -> Any:
    """A field of the settings.

    source is where the default comes from: the number of an entry, "base" for the challenge's
    baseline script, "challenge" for its rules, or "ours". allowed is a key of NUMBERS or a tuple of
    choices; a switch is 0 or 1, a text without choices may be anything.
    """
    choices = allowed if isinstance(allowed, tuple) else ()
    if isinstance(default, bool):
        choices = ("0", "1")
    if choices:
        allowed = f"one of {', '.join(choices)}"
    elif isinstance(default, str):
        allowed = "one line of text"
    metadata = dict(text=text, source=source, choices=choices, allowed=allowed)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """One field per environment variable of the same name in upper case."""

    # Paths and execution options; none affects the result.
    preset: str = setting("pcll", "a named set of settings", "ours", PRESET_NAMES)
    run_id: str = setting("", "name of logs/RUN_ID.txt; empty: date, time and process", "base")
    compile: str = setting("auto", "torch.compile; auto: on a GPU", "532", ("auto", "0", "1"))
    artifact_path: str = setting("artifact.pcll", "where the artifact is written", "ours")
    data_path: str = setting(DATA_PATH, "folder of fineweb_{train,val}_*.bin", "base")
    tokenizer_path: str = setting(TOKENIZER_PATH, "SentencePiece model", "base")
    micro_batch_seqs: int = setting(48, "sequences per forward pass of a rank", "base", POSITIVE)
    train_log_every: int = setting(50, "steps between log lines", "base", POSITIVE)
    val_loss_every: int = setting(0, "steps between plain validations; 0: none", "base")
    checkpoint_every: float = setting(60.0, "seconds between checkpoints; 0: only the last", "ours")
    resume: str = setting("", 'checkpoint to resume, or "latest" (of RUN_ID if set)', "ours")

    # The network. From here on the artifact states every setting.
    vocab_size: int = setting(1024, "tokens in the vocabulary", "base", POSITIVE)
    num_layers: int = setting(11, "transformer blocks", "532", POSITIVE)
    model_dim: int = setting(512, "width of the residual stream", "532", POSITIVE)
    num_heads: int = setting(8, "query heads", "532", POSITIVE)
    num_kv_heads: int = setting(4, "key/value heads, shared by query heads", "532", POSITIVE)
    mlp_hidden: int = setting(1500, "hidden width of the MLP", "532", POSITIVE)
    mlp_negative_slope: float = setting(0.5, "of the leaky ReLU that is then squared", "532")
    train_seq_len: int = setting(2048, "tokens per sequence and evaluation window", "532", POSITIVE)
    rope_dims: int = setting(16, "leading dimensions of each head that rotate", "532", POSITIVE)
    rope_base: float = setting(50000.0, "base of the rotary wavelengths", "532", POSITIVE)
    qk_gain_init: float = setting(1.5, "initial gain of each query head", "532")
    xsa_last_n: int = setting(4, "last layers with exclusive self-attention", "532")
    parallel_last_n: int = setting(0, "last layers whose MLP reads what attention reads", "1412")
    loop_first: int = setting(0, "first block of the recurrent span", "1204")
    loop_last: int = setting(0, "last block of the recurrent span", "1204")
    loop_passes: int = setting(1, "passes through the recurrent span", "1204", POSITIVE)
    bigram_buckets: int = setting(2048, "rows of the bigram hash table; 0: none", "532")
    bigram_dim: int = setting(128, "width of the bigram hash table", "532", POSITIVE)
    bigram_init_std: float = setting(0.02, "of that table; at 0 (532) it never learns", "ours")
    ln_scale: bool = setting(True, "scale the normed inputs of layer i by 1/sqrt(i+1)", "532")
    smear_gate: bool = setting(True, "each position mixes in the one before", "532")
    smear_dims: int = setting(0, "leading channels the smear gate reads; 0: none", "1787")
    value_residual: bool = setting(True, "mix in layer 0's values (arXiv 2410.17897)", "532")
    gated_attention: bool = setting(True, "a sigmoid gate per head (arXiv 2505.06708)", "532")
    gate_dims: int = setting(0, "leading channels the attention gate reads; 0: all", "1970")
    skips: str = setting("plain", "U-Net skips; gated: by channel (1218)", "base", SKIPS)
    bos_reset: bool = setting(True, "smear gate and bigram hash stop at a BOS (532: not)", "ours")

    # Training. A checkpoint resumes only with the same network and training.
    seed: int = setting(1337, "of the initial weights and the random loader", "base")
    dtype: str = setting("bfloat16", "of activations", "532", ("bfloat16", "float32"))
    iterations: int = setting(20000, "optimizer steps, at most", "base")
    max_wallclock_seconds: float = setting(600.0, "training time, at most; 0: no limit", "base")
    train_batch_tokens: int = setting(786432, "tokens per step over all ranks", "532", POSITIVE)
    warmup_steps: int = setting(20, "steps that prime the compiler and are undone", "base")
    warmdown_iters: int = setting(3000, "last steps, in which the rates fall linearly", "532")
    warmdown_fraction: float = setting(0.0, "the same as a part of the training", "1394", FRACTION)
    warmdown_floor: float = setting(0.0, "scale of the rates at the end", "532", FRACTION)
    matrix_optimizer: str = setting("normuon", "of the blocks' matrices", "532", OPTIMIZERS)
    matrix_lr: float = setting(0.03, "learning rate of the matrices", "532")
    embed_lr: float = setting(0.04, "learning rate of the embeddings", "532")
    scalar_lr: float = setting(0.02, "learning rate of vectors and scalars", "532")
    muon_momentum: float = setting(0.99, "momentum after its warm-up", "532", DECAY)
    muon_momentum_warmup_start: float = setting(0.92, "momentum at step 0", "532", DECAY)
    muon_momentum_warmup_steps: int = setting(1500, "steps of the momentum's warm-up", "532")
    weight_decay: float = setting(0.04, "of the matrices, times the learning rate", "532")
    embed_weight_decay: float = setting(0.0, "of the embeddings", "532")
    scalar_weight_decay: float = setting(0.0, "of vectors and scalars", "532")
    grad_clip_norm: float = setting(0.3, "global gradient norm, at most; 0: no limit", "532")
    adam_beta2: float = setting(0.95, "of AdamW's second moment", "532", DECAY)
    loader: str = setting("sequential", "where a step's sequences come from", "base", LOADERS)
    ema_decay: float = setting(0.997, "of the exported weights; 0: the last ones", "532", DECAY)
    late_qat_threshold: float = setting(0.1, "rates' scale that starts int6 rounding", "532")

    # Export.
    calibration_tokens: int = setting(131072, "training tokens for the codec", "ours", POSITIVE)
    quantisation_nats: float = setting(0.0005, "target loss of quantization", "ours", POSITIVE)
    codec: str = setting("trellis", "of the matrices; huffman: 532", "ours", ("trellis", "huffman"))
    fit: str = setting(
        "shrink", "coarsen only if over the cap, or fill it", "ours", ("shrink", "fill")
    )
    size_cap_bytes: int = setting(16_000_000, "code plus artifact, at most", "challenge")

    # Evaluation.
    eval_stride: int = setting(32, "stride of the sliding window in tokens", "532", POSITIVE)
    eval_batch_seqs: int = setting(64, "windows per forward pass of a rank", "532", POSITIVE)
    ttt_protocol: str = setting(
        "score_first", "train_then_score (532) is not legal", "549", PROTOCOLS
    )
    ttt_chunk_tokens: int = setting(32768, "scored, then learned from, at a time", "549", POSITIVE)
    ttt_epochs: int = setting(3, "passes over a chunk, or over all tokens (532)", "549")
    ttt_lr: float = setting(0.002, "learning rate at first; falls as a cosine", "549")
    ttt_batch_seqs: int = setting(16, "sequences per adaptation step", "532", POSITIVE)
    document_rank: int = setting(96, "rank of per_document's adapters", "1530", POSITIVE)
    document_lr: float = setting(0.0001, "their learning rate", "1530")
    document_tokens: int = setting(48, "of a document, as TTT_CHUNK_TOKENS", "1530", POSITIVE)


FIELDS = {member.name.upper(): member for member in dataclasses.fields(Settings)}
NAMES = list(vars(Settings()))
STATED = NAMES[NAMES.index("vocab_size") :]  # in the artifact's config
TRAINED_WITH = STATED[: STATED.index("calibration_tokens")]

PRESETS = {
    "pcll": {},
    # What public entries measured to help at full size; records/measurements.md has each one's
    # source.
    "frontier": dict(
        data_path="data/datasets/fineweb10B_sp8192",
        tokenizer_path="data/tokenizers/fineweb_8192_bpe.model",
        vocab_size=8192,
        mlp_hidden=2048,
        rope_base=10000.0,
        qk_gain_init=5.25,
        xsa_last_n=11,
        parallel_last_n=4,
        loop_first=3,
        loop_last=5,
        loop_passes=3,
        bigram_buckets=0,
        smear_dims=12,
        value_residual=False,
        gate_dims=32,
        skips="gated",
        loader="random",
        warmdown_fraction=0.75,
        warmdown_floor=0.1,
        matrix_optimizer="muon_rows",
        matrix_lr=0.026,
        embed_lr=0.03,
        muon_momentum=0.97,
        weight_decay=0.095,
        embed_weight_decay=0.085,
        scalar_weight_decay=0.02,
        adam_beta2=0.99,
        ema_decay=0.9965,
        late_qat_threshold=0.0,
        fit="fill",
        eval_stride=64,
        ttt_protocol="per_document",
        ttt_lr=0.005,
    ),
    # The entry as its author reports it. Its adaptation trains on the tokens that it then scores:
    # not legal.
    "pcloadloveletter_v6": dict(
        bos_reset=False,
        bigram_init_std=0.0,
        codec="huffman",
        ttt_protocol="train_then_score",
        ttt_epochs=10,
        ttt_lr=0.001,
    ),
    # About 0.7 M parameters and a corpus made on the spot: every part of the system in minutes on
    # two CPU cores.
    "demo": dict(
        data_path="data/demo",
        tokenizer_path="data/demo/bpe_1024.model",
        dtype="float32",
        num_layers=4,
        model_dim=128,
        num_heads=4,
        num_kv_heads=2,
        mlp_hidden=320,
        rope_dims=8,
        xsa_last_n=2,
        bigram_buckets=1024,
        bigram_dim=32,
        iterations=200,
        max_wallclock_seconds=0.0,
        train_batch_tokens=8192,
        train_seq_len=256,
        micro_batch_seqs=32,
        warmup_steps=1,
        warmdown_iters=100,
        muon_momentum_warmup_steps=100,
        calibration_tokens=16384,
        ema_decay=0.97,
        eval_stride=64,
        ttt_chunk_tokens=8192,
    ),
}

# Settings of the challenge's baseline that do not exist here, and what to do instead.
BASELINE_ONLY = {
    "MLP_MULT": "MLP_HIDDEN is the hidden width itself",
    "TIED_EMBED_LR": "set EMBED_LR",
    "HEAD_LR": "the head is tied to the embedding: set EMBED_LR",
    "BETA2": "set ADAM_BETA2",
    "VAL_BATCH_SIZE": "set EVAL_BATCH_SEQS",
    "LOGIT_SOFTCAP": "it is 30",
    "BETA1": "it is 0.9",
    "ADAM_EPS": "it is 1e-8",
    "MUON_BACKEND_STEPS": "it is 5",
    "TIE_EMBEDDINGS": "they always are tied",
    "TIED_EMBED_INIT_STD": "it is 0.005",
    "CONTROL_TENSOR_NAME_PATTERNS": "ROLES in this script says how each parameter is coded",
    "INT8_KEEP_FLOAT_FP32_NAME_PATTERNS": "ROLES in this script says how each parameter is coded",
}
# Usual variables of other programs whose names are close to a setting's.
OTHER_PROGRAMS = ("MODEL_DIR", "MODEL_ID", "COMPILER", "SKIP")


def parse_value(name: str, text: str) -> Any:
    """The value of an environment variable's text; UserError says what it may be."""
    kind = FIELDS[name].type
    choices = FIELDS[name].metadata["choices"]
    allowed = FIELDS[name].metadata["allowed"]
    if text in choices:
        return text == "1" if kind is bool else text
    if allowed == "one line of text" and text.isprintable() and text == text.strip():
        return text
    with contextlib.suppress(ValueError, KeyError):
        low, high = NUMBERS[allowed]
        value = kind(text)
        if low <= value <= high:
            return value
    whole = "whole and " if kind is int else ""
    raise UserError(f"{name} must be {whole}{allowed}, not {text[:80]!r}.")


def load_settings(environment: dict[str, str]) -> Settings:
    """The preset's settings overridden by the environment's; UserError names a variable that is
    wrong, or looks like a setting but is none."""
    given = {}
    for name, text in environment.items():
        close = difflib.get_close_matches(name.upper(), FIELDS, n=1, cutoff=0.8)
        if name in FIELDS:
            given[name.lower()] = parse_value(name, text)
        elif name in BASELINE_ONLY:
            raise UserError(f"{name} is the baseline's and unknown here: {BASELINE_ONLY[name]}.")
        elif close and name not in OTHER_PROGRAMS:
            raise UserError(f"{name} is no setting. Did you mean {close[0]}? If not, unset {name}.")
    s = Settings(**PRESETS[given.get("preset", Settings.preset)] | given)
    check_together(s)
    return s


def check_together(s: Settings) -> None:
    """Raises UserError for settings that exclude each other."""
    divisions = {
        "model_dim": "num_heads",
        "num_heads": "num_kv_heads",
        "train_batch_tokens": "train_seq_len",
        "calibration_tokens": "train_seq_len",
        "ttt_chunk_tokens": "train_seq_len",
    }
    for whole, part in divisions.items():
        if getattr(s, whole) % getattr(s, part):
            raise UserError(f"{part.upper()} must divide {whole.upper()}={getattr(s, whole)}.")

    even_sizes = range(2, s.model_dim // s.num_heads + 1, 2)
    rules = {
        "ROPE_DIMS must be even and at most the head size": s.rope_dims in even_sizes,
        "EVAL_STRIDE must be at most TRAIN_SEQ_LEN": s.eval_stride <= s.train_seq_len,
        "DOCUMENT_TOKENS must be at most TRAIN_SEQ_LEN": (
            s.ttt_protocol != "per_document" or s.document_tokens <= s.train_seq_len
        ),
        "BIGRAM_BUCKETS must be 0 or at least 2": s.bigram_buckets != 1,
        "LOOP_LAST must be a block, and LOOP_FIRST none after it": (
            s.loop_first <= s.loop_last < s.num_layers
        ),
        "GATE_DIMS and SMEAR_DIMS must be at most MODEL_DIM": (
            max(s.gate_dims, s.smear_dims) <= s.model_dim
        ),
        "RUN_ID must consist of letters, digits, '_', '-' and '.', and not begin with '.'": (
            not s.run_id or re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", s.run_id)
        ),
    }
    for sentence, holds in rules.items():
        if not holds:
            raise UserError(f"{sentence}.")


# ---- Roles of the parameters ---------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """What a parameter is to the optimizer, to the codec and to test-time training."""

    group: str  # of the optimizers: matrix, embedding or scalar
    levels: int = 0  # of its Huffman codebook; 0: never quantized
    ttt_lr_scale: float = 1.0  # factor on TTT_LR (532)


SCALARS = (
    "bigram.scale",
    "smear_gate",
    "smear_scale",
    "skip_weights",
    "skip_gates",
    "resid_mix",
    "attn_scale",
    "mlp_scale",
    "attn.q_gain",
    "attn.gate_weight",
    "attn.gate_bias",
    "attn.value_mix",
)
ROLES = dict.fromkeys(SCALARS, Role("scalar")) | {
    "tok_emb": Role("embedding", levels=64),
    "bigram.table": Role("embedding", levels=64),
    "bigram.proj": Role("matrix", levels=64),
    "attn.q": Role("matrix", levels=80),
    "attn.k": Role("matrix", levels=80),
    "attn.v": Role("matrix", levels=80),
    "attn.out": Role("matrix", levels=64, ttt_lr_scale=3.0),
    "mlp.up": Role("matrix", levels=48, ttt_lr_scale=0.5),
    "mlp.down": Role("matrix", levels=48, ttt_lr_scale=3.0),
}


def role_of(name: str) -> Role:
    """The role of a parameter, by its name without the block's number; UserError if it has none."""
    kind = re.sub(r"^blocks\.\d+\.", "", name)
    if kind not in ROLES:
        raise UserError(f"{name} has no row in ROLES, which says how it is trained and coded.")
    return ROLES[kind]


# ---- Distributed and log -------------------------------------------------------------------------


@dataclass
class Distributed:
    """This process among all ranks of the run; with one rank nothing is communicated."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def init(self) -> None:
        """Joins the ranks that torchrun started, and takes this rank's device."""
        names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
        try:
            rank, local_rank, world_size = (int(os.environ.get(*item)) for item in names.items())
        except ValueError as error:
            raise UserError(f"{', '.join(names)} are whole numbers: {error}.") from None
        gpus = torch.cuda.device_count()
        if 0 < gpus <= local_rank:
            raise UserError(f"Process {local_rank} finds only {gpus} GPUs: start fewer processes.")

        self.rank = rank if world_size > 1 else 0
        self.world_size = world_size
        if gpus:
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if world_size > 1:
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
            except ValueError as error:  # MASTER_ADDR or MASTER_PORT is not set
                raise UserError(f"torchrun sets what is missing here: {error}.") from None

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sums the tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather_objects(self, value: Any) -> list:
        """The value of each rank on every rank, sent through the CPU."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_objects(self, *values: Any) -> list:
        """Rank 0's values on every rank, sent through the CPU so that no GPU has to wait."""
        objects = list(values)
        if self.world_size > 1:
            dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
        return objects


ranks = Distributed()


class Log:
    """Lines to the console and to logs/RUN_ID.txt, once rank 0 has opened it; else it is silent.

    A run survives the loss of either output.
    """

    PROGRESS_SECONDS = 5.0  # between lines of progress
    run_id = ""
    file = None
    last_progress = 0.0

    def open(self, run_id: str, resumed: bool) -> None:
        """A new file, or the resumed run's; UserError if it is another run's."""
        path = Path("logs", f"{run_id}.txt")
        path.parent.mkdir(exist_ok=True)
        mode = "a" if resumed else "x"
        try:
            self.file = open(path, mode, encoding="utf-8", errors="backslashreplace")
        except FileExistsError:
            raise UserError(
                f"RUN_ID={run_id}: {path} exists. RESUME=latest continues that run, if it has a "
                "checkpoint; another RUN_ID starts a new one."
            ) from None
        self.run_id = run_id

    def __call__(self, line: str, console: bool = True) -> None:
        if self.file:
            self.file = self.write(self.file, line)
        if console:
            self.console(line)

    def console(self, line: str) -> None:
        if self.run_id:
            sys.stdout = self.write(sys.stdout, line)

    def write(self, file: TextIO | None, line: str) -> TextIO | None:
        """The file, or None once it cannot be written."""
        try:
            print(line, file=file, flush=True)
            return file
        except (OSError, ValueError) as error:  # ValueError: it is closed, or lacks a letter
            with contextlib.suppress(OSError, ValueError):  # stderr may be the same pipe
                print(f"{file.name}: {error}; the run continues without it.", file=sys.stderr)
            return None

    def progress(self, what: str, done: float, began: float) -> None:
        """The part that is done (0..1) on the console, at most every PROGRESS_SECONDS."""
        now = time.monotonic()
        if now - self.last_progress >= self.PROGRESS_SECONDS:
            self.last_progress = now
            left = (now - began) * max(0.0, 1 / done - 1)
            self.console(f"{what}: {100 * done:.0f} %, {left:.0f} s left")


log = Log()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is either complete or absent, whatever happens in between; an OSError
    names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def require_room(files: list[tuple[Path, int]]) -> None:
    """Raises UserError unless there is room for files of so many bytes, all at once; where a disk
    cannot tell, it is believed. Nothing is left."""
    with contextlib.ExitStack() as opened:
        for path, size in files:
            folder = next(parent for parent in path.absolute().parents if parent.is_dir())
            file = opened.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except (OSError, AttributeError) as error:  # macOS has no such function
                if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise UserError(f"{path} needs {size} bytes: {error.strerror}.") from None


# ---- Data: shards of tokens, the tokenizer's bytes, and the demo's corpus ------------------------

Array = np.ndarray

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 1024  # 256 int32: magic, version, number of tokens, zeros; then uint16 tokens
BOS_ID = 1  # every document starts with it


def download_hint(vocab_size: int) -> str:
    """What to do where shards or tokenizer are missing."""
    return (
        "in the challenge's repository `python data/cached_challenge_fineweb.py --variant "
        f"sp{vocab_size}` downloads it; PRESET=demo without any path makes its own."
    )


def find_shards(folder: str, split: str) -> list[Path]:
    """The shards fineweb_SPLIT_NUMBER.bin in order; UserError if one is missing or there twice."""
    shards = {}
    for path in sorted(Path(folder).glob(f"fineweb_{split}_*.bin")):
        number = path.stem.removeprefix(f"fineweb_{split}_")
        if number.isdecimal() and shards.setdefault(int(number), path) != path:
            raise UserError(f"{path} and {shards[int(number)]} have the same number.")

    for number in range(min(shards, default=0), max(shards, default=0)):
        if number not in shards:
            raise UserError(f"DATA_PATH={folder} lacks the {split} shard number {number}.")
    return [shards[number] for number in sorted(shards)]


def open_shard(path: Path) -> Array:
    """The tokens of a shard, uint16, memory-mapped; UserError if it is none."""
    header = np.fromfile(path, dtype="<i4", count=3).tolist()
    count = (path.stat().st_size - SHARD_HEADER_BYTES) / 2
    if count < 1 or header != [SHARD_MAGIC, SHARD_VERSION, count]:
        raise UserError(
            f"{path} is not a whole token shard: it should start with {SHARD_MAGIC}, "
            f"{SHARD_VERSION} and its number of tokens, by its size {count:g}."
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES)


class TokenStream:
    """The shards of a split as one endless sequence, read by position: no state to lose."""

    def __init__(self, s: Settings, split: str):
        paths = find_shards(s.data_path, split)
        if not paths:
            hint = download_hint(s.vocab_size)
            raise UserError(f"DATA_PATH={s.data_path} holds no fineweb_{split}_*.bin: {hint}")
        self.vocab_size = s.vocab_size
        self.shards = [open_shard(path) for path in paths]
        self.starts = [0, *itertools.accumulate(map(len, self.shards))]  # the last one is the end
        self.total = self.starts[-1]

    def statement(self) -> dict[str, tuple[int, str]]:
        """Of each shard by name its tokens, and the SHA-256 of the first 4,096."""
        return {
            Path(shard.filename).name: (len(shard), hashlib.sha256(shard[:4096]).hexdigest())
            for shard in self.shards
        }

    def read(self, start: int, count: int) -> Array:
        """`count` tokens (uint16) from a position; the first shard follows the last."""
        pieces = []
        while count > 0:
            start %= self.total
            index = bisect.bisect(self.starts, start) - 1
            piece = self.shards[index][start - self.starts[index] :][:count]
            if piece.max() >= self.vocab_size:
                raise UserError(
                    f"{self.shards[index].filename} holds token {piece.max()}, but VOCAB_SIZE is "
                    f"{self.vocab_size}."
                )
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)


Batch = tuple[Tensor, Tensor]  # inputs int64 [sequences, train_seq_len]; targets, one token later


def train_batches(stream: TokenStream, step: int, s: Settings) -> Iterator[Batch]:
    """This rank's micro-batches of a step; all ranks together read the same tokens."""
    length = s.train_seq_len
    sequences = s.train_batch_tokens // length
    starts = step * s.train_batch_tokens + length * np.arange(sequences)
    if s.loader == "random":
        draw = np.random.default_rng((s.seed, step))
        starts = draw.integers(0, stream.total, sequences)

    shard = np.array_split(starts, ranks.world_size)[ranks.rank]
    for first in range(0, len(shard), s.micro_batch_seqs):
        rows = shard[first : first + s.micro_batch_seqs].tolist()
        tokens = np.stack([stream.read(start, length + 1) for start in rows])
        tokens = torch.from_numpy(tokens.astype(np.int64))
        if ranks.device.type == "cuda":
            tokens = tokens.pin_memory().to(ranks.device, non_blocking=True)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class ByteCounter:
    """How many bytes of text each token stands for.

    They are the UTF-8 bytes of its piece, plus one for a leading space unless the token before is
    a control, unknown or unused id.
    """

    def __init__(self, path: str, vocab_size: int):
        if not Path(path).is_file():
            raise UserError(f"TOKENIZER_PATH={path} does not exist: {download_hint(vocab_size)}")
        try:
            sp = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError):
            raise UserError(
                f"TOKENIZER_PATH={path} is not a readable SentencePiece model."
            ) from None
        space = not sp.is_unknown(sp.piece_to_id("▁"))
        if (sp.vocab_size(), sp.bos_id(), space) != (vocab_size, BOS_ID, True):
            raise UserError(
                f"TOKENIZER_PATH={path} has {sp.vocab_size()} tokens and BOS id {sp.bos_id()}; it "
                f"needs VOCAB_SIZE={vocab_size} tokens, one of them a space, and BOS id {BOS_ID}."
            )
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        ids = range(vocab_size)
        boundary = [sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in ids]
        self.is_boundary = np.array(boundary)  # stands for no text at all
        pieces = ["" if boundary[i] else sp.id_to_piece(i) for i in ids]
        self.has_leading_space = np.array([piece.startswith("▁") for piece in pieces])
        texts = [piece.removeprefix("▁").replace("▁", " ").encode() for piece in pieces]
        sizes = [1 if sp.is_byte(i) else len(texts[i]) for i in ids]
        self.base_bytes = np.array(sizes)  # without a leading space

    def count(self, tokens: Array) -> Array:
        """Bytes of tokens[1:], int64 [len(tokens) - 1]."""
        after = tokens[1:]
        space = self.has_leading_space[after] & ~self.is_boundary[tokens[:-1]]
        return self.base_bytes[after] + space


def make_demo_data(s: Settings) -> None:
    """Writes a tokenizer and shards, where they are missing, from the English text that comes with
    Python.

    The text is its manual's pages and the docstrings of its modules. One document in eight
    validates, the others train.
    """
    if Path(s.tokenizer_path).is_file() and find_shards(s.data_path, "train"):
        return
    documents = demo_documents()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=s.vocab_size,
            byte_fallback=True,
            split_digits=True,
            pad_id=0,
            bos_id=BOS_ID,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
            max_sentence_length=1 << 20,
        )
    except RuntimeError:
        raise UserError(
            f"VOCAB_SIZE={s.vocab_size}: the demo's text makes no vocabulary of that size."
        ) from None
    write_atomically(Path(s.tokenizer_path), model.getvalue())

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=s.tokenizer_path)
    splits = {"val": documents[::8], "train": documents}
    del documents[::8]
    for split, texts in splits.items():
        tokens = np.concatenate(tokenizer.encode(texts, add_bos=True)).astype("<u2")
        header = np.zeros(SHARD_HEADER_BYTES // 4, dtype="<i4")
        header[:3] = SHARD_MAGIC, SHARD_VERSION, len(tokens)
        path = Path(s.data_path) / f"fineweb_{split}_000000.bin"
        write_atomically(path, header.tobytes() + tokens.tobytes())


def demo_documents() -> list[str]:
    """Texts of at least 200 characters, in a fixed order."""
    topics = {}
    with contextlib.suppress(ImportError):  # some systems' Python comes without its manual
        from pydoc_data.topics import topics

    modules = [ast.parse(path.read_bytes()) for path in Path(os.__file__).parent.glob("*.py")]
    texts = {*topics.values(), *(ast.get_docstring(module) or "" for module in modules)}
    documents = [" ".join(text.split()) for text in sorted(texts) if len(text) >= 200]
    np.random.default_rng(0).shuffle(documents)
    return documents


# ---- Model ---------------------------------------------------------------------------------------
# Shapes: B sequences, T tokens, D = model_dim, H query heads, K key/value heads, E = D/H,
# V = vocab_size. Every matrix is [outputs, inputs]. Parameters are float32, activations have the
# model's dtype.

LOGIT_SOFTCAP = 30.0  # c in c * tanh(logit / c); the baseline's


def parameter(*shape: int, fill: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, fill))


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first 2R of each head's E dimensions.

    x [B,heads,T,E]; cos and sin [T,R].
    """
    half = cos.size(-1)
    a, b, rest = x.tensor_split((half, 2 * half), dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def linear(x: Tensor, w: Tensor, scale: Tensor | None = None) -> Tensor:
    """x w^T in the dtype of x, each output times its scale [outputs].

    Where w is cast anyway, the scale goes into its rows, which spares passes over the activations.
    Else F.linear gets the parameter itself, by which calibration recognizes it. With an adapter, a
    low-rank pair A [B,rank,C] and B [B,R,rank], each row of the batch has w + B A in place of w.
    """
    if hasattr(w, "adapter"):
        a, b = w.adapter
        if scale is not None:
            b = scale[:, None] * b
        return linear(x, w.detach(), scale) + x @ a.to(x.dtype).mT @ b.to(x.dtype).mT
    if scale is None:
        return F.linear(x, w.to(x.dtype))
    if w.dtype == x.dtype:
        return scale * F.linear(x, w)
    return linear(x, scale[:, None] * w)


def shift_right(x: Tensor, no_previous: Tensor) -> Tensor:
    """x [B,T,D] of the position before; 0 where no_previous [B,T] is true."""
    return x.roll(1, dims=1).masked_fill(no_previous[..., None], 0)


def block_order(s: Settings) -> list[int]:
    """The blocks in the order of their passes."""
    blocks = list(range(s.num_layers))
    after = s.loop_last + 1
    span = blocks[s.loop_first : after]
    return blocks[: s.loop_first] + span * s.loop_passes + blocks[after:]


class Attention(nn.Module):
    def __init__(self, s: Settings, index: int):
        super().__init__()
        self.head_dim = s.model_dim // s.num_heads
        self.group = s.num_heads // s.num_kv_heads
        self.exclusive = index >= s.num_layers - s.xsa_last_n
        self.gate_dims = s.gate_dims or s.model_dim

        kv_dim = s.num_kv_heads * self.head_dim
        self.q = parameter(s.model_dim, s.model_dim)
        self.out = parameter(s.model_dim, s.model_dim)
        self.k = parameter(kv_dim, s.model_dim)
        self.v = parameter(kv_dim, s.model_dim)
        self.q_gain = parameter(s.num_heads, fill=s.qk_gain_init)
        self.gate_weight = self.gate_bias = self.value_mix = None
        if s.gated_attention:
            self.gate_weight = parameter(s.num_heads, self.gate_dims)
        if s.gated_attention and s.gate_dims == 0:
            self.gate_bias = parameter(s.num_heads, fill=4.0)
        if s.value_residual and index > 0:
            self.value_mix = parameter(2, fill=0.5)

    def project_heads(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B,T,D] through a matrix and split into heads [B,heads,T,E]."""
        return linear(x, w).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, x: Tensor, v_first: Tensor | None, rotary: tuple[Tensor, Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [B,T,D], v_first [B,K,T,E], scale [D] -> output [B,T,D], this block's values."""
        k = rotate(rms_norm(self.project_heads(x, self.k)), *rotary)
        v_raw = v = self.project_heads(x, self.v)
        if self.value_mix is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v_first + mix[1] * v
        q = rms_norm(self.project_heads(x, self.q)) * self.q_gain.to(x.dtype)[:, None, None]
        q = rotate(q, *rotary)

        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.exclusive:  # XSA: subtract the projection onto the position's own value
            own = F.normalize(v, dim=-1).repeat_interleave(self.group, dim=1)
            y = y - (y * own).sum(dim=-1, keepdim=True) * own
        y = y.transpose(1, 2)
        if self.gate_weight is not None:
            gate = linear(x[..., : self.gate_dims], self.gate_weight)
            if self.gate_bias is not None:
                y = y * torch.sigmoid(gate + self.gate_bias.to(x.dtype))[..., None]
            else:  # 1 at first, as the weights are 0
                y = y * 2 * torch.sigmoid(gate)[..., None]
        return linear(y.flatten(-2), self.out, scale), v_raw


class MLP(nn.Module):
    def __init__(self, s: Settings):
        super().__init__()
        self.up = parameter(s.mlp_hidden, s.model_dim)
        self.down = parameter(s.model_dim, s.mlp_hidden)
        self.negative_slope = s.mlp_negative_slope

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x [B,T,D], the output's scale [D] -> the output [B,T,D]."""
        up = self.up
        down = self.down
        if up.dtype != x.dtype and not hasattr(up, "adapter"):  # cast: to a width GPUs like
            spare = -len(up) % 128
            up = F.pad(up, (0, 0, 0, spare))
            down = F.pad(down, (0, spare))
        x = F.leaky_relu(linear(x, up), self.negative_slope)
        return linear(x.square(), down, scale)


class Block(nn.Module):
    def __init__(self, s: Settings, index: int):
        super().__init__()
        self.attn = Attention(s, index)
        self.mlp = MLP(s)
        self.attn_scale = parameter(s.model_dim, fill=1.0)
        self.mlp_scale = parameter(s.model_dim, fill=1.0)
        self.resid_mix = parameter(2, s.model_dim)  # of the stream and the first hidden state
        self.resid_mix.data[0] = 1
        self.norm_scale = 1 / math.sqrt(index + 1) if s.ln_scale else 1.0
        self.parallel = index >= s.num_layers - s.parallel_last_n

    def forward(
        self, x: Tensor, x0: Tensor, v_first: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x, x0 [B,T,D] -> the block's output [B,T,D] and its raw values [B,K,T,E]."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attn(rms_norm(x) * self.norm_scale, v_first, rotary, self.attn_scale)
        attended = x + y
        x = rms_norm(x if self.parallel else attended) * self.norm_scale
        return attended + self.mlp(x, self.mlp_scale), v


class BigramHash(nn.Module):
    """An embedding of hashed pairs of neighbouring tokens, added to the token embedding."""

    def __init__(self, s: Settings):
        super().__init__()
        self.table = nn.Parameter(s.bigram_init_std * torch.randn(s.bigram_buckets, s.bigram_dim))
        self.proj = parameter(s.model_dim, s.bigram_dim)
        self.scale = parameter(fill=0.05)

    def forward(self, tokens: Tensor, no_previous: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens and no_previous [B,T] -> [B,T,D]."""
        last = len(self.table) - 1  # the bucket of a token without one before it
        bucket = ((36313 * tokens) ^ (27191 * tokens.roll(1, dims=1))) % last
        rows = F.embedding(torch.where(no_previous, last, bucket), self.table).to(dtype)
        return self.scale.to(dtype) * linear(rows, self.proj)


class GPT(nn.Module):
    """The language model; the head shares its matrix with the token embedding."""

    def __init__(self, s: Settings, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.bos_reset = s.bos_reset
        self.smear_dims = s.smear_dims
        self.full_order = block_order(s)
        self.order = self.full_order

        self.tok_emb = parameter(s.vocab_size, s.model_dim)
        self.bigram = BigramHash(s) if s.bigram_buckets else None
        self.smear_gate = self.smear_scale = self.skip_weights = self.skip_gates = None
        if s.smear_gate:
            self.smear_gate = parameter(s.smear_dims or s.model_dim)
        if s.smear_gate and s.smear_dims:
            self.smear_scale = parameter()
        num_skips = len(self.full_order) // 2
        if s.skips != "off" and num_skips:
            self.skip_weights = parameter(num_skips, s.model_dim, fill=1.0)
        if s.skips == "gated" and num_skips:
            self.skip_gates = parameter(num_skips, s.model_dim)
        self.blocks = nn.ModuleList(Block(s, index) for index in range(s.num_layers))

        exponents = torch.arange(0, s.rope_dims, 2, dtype=torch.float32) / s.rope_dims
        positions = torch.arange(s.train_seq_len, dtype=torch.float32)
        angles = torch.outer(positions, s.rope_base**-exponents)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

        nn.init.normal_(self.tok_emb, std=0.005)
        for name, p in self.blocks.named_parameters():
            if name.endswith((".q", ".k", ".v", ".up")):  # output projections stay zero
                nn.init.orthogonal_(p)

    def set_recurrence(self, on: bool) -> None:
        """Passes the recurrent span LOOP_PASSES times, or once like all other blocks."""
        self.order = self.full_order if on else list(range(len(self.blocks)))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> the first hidden state [B,T,D]."""
        no_previous = (tokens == BOS_ID) & self.bos_reset
        no_previous[:, 0] = True

        x = F.embedding(tokens, self.tok_emb).to(self.dtype)
        if self.smear_scale is not None:
            gate = linear(x[..., : self.smear_dims], self.smear_gate[None])
            gate = self.smear_scale.to(x.dtype) * torch.sigmoid(gate)
            x = x + gate * shift_right(x, no_previous)
        if self.bigram is not None:
            x = x + self.bigram(tokens, no_previous, self.dtype)
        x = rms_norm(x)
        if self.smear_gate is not None and self.smear_scale is None:
            gate = torch.sigmoid(self.smear_gate).to(x.dtype)
            x = (1 - gate) * x + gate * shift_right(x, no_previous)
        return x

    def add_skip(self, x: Tensor, skip: Tensor, index: int) -> Tensor:
        """The residual stream x [B,T,D] joined by a skip [B,T,D]."""
        skip = self.skip_weights[index].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + skip
        gate = torch.sigmoid(self.skip_gates[index]).to(x.dtype)
        return gate * x + (1 - gate) * skip

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Logits of the next tokens, or with targets their loss.

        tokens int64 [B,T] -> soft-capped logits float32 [B,T,V], or with `at` int64 [S] those of
        these positions alone [B,S,V]; with targets int64 [B,T] the nats of each, float32 [B,T].
        """
        rotary = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        x0 = x = self.embed(tokens)
        v_first = None
        skips = []
        half = len(self.order) // 2  # its outputs come back in the second half, last one first
        for place, index in enumerate(self.order):
            if self.skip_weights is not None and half <= place < 2 * half:
                x = self.add_skip(x, skips.pop(), place - half)
            x, v = self.blocks[index](x, x0, v_first, rotary)
            if place == 0:
                v_first = v
            if place < half:
                skips.append(x)

        if at is not None:
            x = x[:, at]
        logits = linear(rms_norm(x), self.tok_emb).float()
        logits = LOGIT_SOFTCAP * torch.tanh(logits / LOGIT_SOFTCAP)
        return logits if targets is None else nats_of(logits, targets)


def nats_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of targets int64 [...] under logits [...,V], in nats."""
    nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return nats.view_as(targets)


def choose_attention() -> str:
    """Makes scaled_dot_product_attention take the fastest kernel available; returns its name.

    On a GPU that is FlashAttention-3, if its wheel is installed, else cuDNN's.
    """
    if ranks.device.type != "cuda":
        return "PyTorch's"
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate and importlib.util.find_spec("flash_attn_interface"):
        activate("FA3")
        torch.backends.cuda.enable_cudnn_sdp(False)  # PyTorch would prefer it
        return "FlashAttention-3"
    torch.backends.cuda.enable_flash_sdp(False)
    return "cuDNN's"


def is_compiled(s: Settings) -> bool:
    return s.compile == "1" or (s.compile == "auto" and ranks.device.type == "cuda")


def compile_model(model: GPT, s: Settings) -> None:
    """By torch.compile, if COMPILE says so; its mix-order reductions cost 5.9 ms a step (1420)."""
    if is_compiled(s):
        switch = "triton.mix_order_reduction"  # not in every version
        options = {switch: False} if switch in torch._inductor.list_options() else {}
        model.compile(dynamic=False, options=options)


# ---- Optimizer: NorMuon for matrices, AdamW for the rest -----------------------------------------
# Muon (Keller Jordan, 2024) replaces a matrix's gradient, averaged with momentum, by the nearest
# matrix whose singular values are all 1: no direction of a layer learns faster than another.
# NorMuon (arXiv 2510.05491) also evens out the rows, by a second moment for each, and keeps the
# update's norm. Embeddings, vectors and scalars have no such directions and stay with AdamW.


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices to a stack g [N,R,C], by Muon's iteration.

    In bfloat16 on a GPU, else in float32. The singular values end between about 0.7 and 1.2.
    """
    tall = g.size(-2) > g.size(-1)
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(torch.bfloat16 if g.is_cuda else torch.float32)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class NorMuon(torch.optim.Optimizer):
    """Muon whose update is scaled per row by a second moment, with its norm kept.

    For the matrices of hidden layers only, not for embeddings, vectors or scalars. Matrices of one
    shape are a parameter group and are updated as one stack [N,R,C]. Rank r orthogonalizes every
    world_size-th matrix of a stack from the r-th on; all ranks need the same gradients, and each
    holds the whole state. A group's "lr", the update's spectral norm, must be set before each step.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        row_normalize: bool = False,
    ):
        """With row_normalize each row of the update has norm 1 before it is orthogonalized, and
        there is no second moment (MuonEq-R, entry 1285)."""
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        defaults = dict(base_lr=lr, momentum=momentum, beta2=0.95, weight_decay=weight_decay)
        super().__init__([dict(params=same) for same in by_shape.values()], defaults)
        self.row_normalize = row_normalize

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = group["params"]
            state = self.state[params[0]]  # a stack's state is kept under its first matrix
            grad = torch.stack([p.grad for p in params])
            if not state:
                state["momentum"] = torch.zeros_like(grad)
                state["second_moment"] = torch.zeros_like(grad[..., :1])

            update = self.update_shard(grad, state["momentum"], group["momentum"])
            update = ranks.all_reduce_(update).float()
            if not self.row_normalize:
                update = normalize_rows(update, state["second_moment"], group["beta2"])

            aspect = max(1.0, update.size(-2) / update.size(-1)) ** 0.5
            update *= -group["lr"] * aspect
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update))

    def update_shard(self, grad: Tensor, average: Tensor, momentum: float | Tensor) -> Tensor:
        """Averages the gradients [N,R,C]; this rank's part of the update, and zeros elsewhere."""
        average.lerp_(grad, 1 - momentum)
        update = grad.lerp(average, momentum)  # Nesterov
        if self.row_normalize:
            update = F.normalize(update, dim=-1)

        own = slice(ranks.rank, None, ranks.world_size)
        orthogonal = newton_schulz(update[own])
        update = orthogonal.new_zeros(update.shape)
        update[own] = orthogonal
        return update


def normalize_rows(update: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """The update [N,R,C] with each row over its second moment's root [N,R,1], of the same norm."""
    norm = update.norm(dim=(-2, -1), keepdim=True)
    second_moment.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - beta2)
    update = update * (second_moment + 1e-10).rsqrt()
    return update * (norm / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10))


def build_optimizers(model: GPT, s: Settings) -> list[torch.optim.Optimizer]:
    """NorMuon (or AdamW) for matrices, AdamW for embeddings and scalars.

    Each group's "base_lr" is what the schedule scales.
    """
    options = dict(
        matrix=(s.matrix_lr, s.weight_decay),
        embedding=(s.embed_lr, s.embed_weight_decay),
        scalar=(s.scalar_lr, s.scalar_weight_decay),
    )
    groups = {}
    for group, (lr, weight_decay) in options.items():
        params = [p for name, p in model.named_parameters() if role_of(name).group == group]
        groups[group] = dict(params=params, base_lr=lr, weight_decay=weight_decay)

    optimizers = []
    if s.matrix_optimizer != "adamw":
        params = groups.pop("matrix")["params"]
        rates = s.matrix_lr, s.muon_momentum, s.weight_decay
        optimizers.append(NorMuon(params, *rates, row_normalize=s.matrix_optimizer == "muon_rows"))
    fused = ranks.device.type == "cuda"
    adamw = torch.optim.AdamW(list(groups.values()), betas=(0.9, s.adam_beta2), fused=fused)
    return [*optimizers, adamw]


def flatten_grads(model: nn.Module) -> Tensor:
    """One float32 buffer of which every parameter's gradient is a view, and whose last number is
    free for the loss. A single all-reduce then covers everything."""
    params = list(model.parameters())
    sizes = [p.numel() for p in params]
    buffer = torch.zeros(sum(sizes) + 1, device=params[0].device)
    for p, part in zip(params, buffer[:-1].split(sizes), strict=True):
        p.grad = part.view_as(p)
    return buffer


def accumulate_grads(loss: Tensor, params: list[nn.Parameter]) -> None:
    """Adds the loss's gradients to the parameters', all by one kernel."""
    grads = torch.autograd.grad(loss, params, materialize_grads=True)
    torch._foreach_add_([p.grad for p in params], grads)


def set_lr_scale(optimizers: list[torch.optim.Optimizer], scale: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale


# ---- Codec: the PCLL container and its weight codecs ---------------------------------------------
#
# The challenge counts bytes, so the fewer bits a weight takes, the larger the network that fits.
# The format is specified in decode_artifact.py; two of its codecs quantize.
#
# huffman (entry 532): k-means levels for each matrix, by Lloyd's iteration, and a Huffman code for
#   the levels. Package-merge (Larmore and Hirschberg, 1990) finds the best code of at most 16 bits
#   a level, so that a decoder reads a level with one look-up.
# trellis (ours): three ideas, each of which saves bytes at the same loss.
#   Trellis-coded quantization (Marcellin and Fischer, 1990). Rounding each weight by itself fills
#     space with cubes; rounder cells have less error. Here a row is a path through a trellis, whose
#     state says in which half of a finer grid the next point lies, and Viterbi's algorithm finds
#     the nearest path. Ungerboeck's code (1982) with 32 states takes 4.6 % fewer bytes than a
#     uniform step at equal error.
#   Asymmetric numeral systems (rANS, arXiv 1311.2540; interleaved, arXiv 1402.3392) code a symbol
#     in a fraction of a bit, by how large weights are in its row and column; a Huffman code rounds
#     to whole bits, which wastes 0.8 %. A thousand lanes side by side keep numpy quick.
#   Error feedback (GPTQ, arXiv 2210.17323; LDLQ, arXiv 2307.13304). Where inputs are correlated,
#     later columns make up for the errors of earlier ones, worth 0.15 to 0.3 bits a weight.
# Without feedback trellis takes 6.3 % fewer bytes than 532's codec at equal error.
#
# Shapes: R rows, C columns (a tensor's other dimensions together), K levels. Sizes of steps and
# spreads are in quarter octaves: the whole number e stands for 2^(e/4).

FLOAT32 = 0  # codec numbers in the table of tensors
FLOAT16 = 1
TRELLIS = 3
HUFFMAN = 4
HALF_LIMIT = 65504  # the largest float16


def byte_planes(values: Array) -> bytes:
    """Little-endian floats by planes of like bytes, least significant first: zstd finds more."""
    return values.reshape(-1, 1).view(np.uint8).T.tobytes()


def read_planes(content: BinaryIO, dtype: str, count: int) -> Array:
    """Floats [count] that byte_planes wrote."""
    planes = read_array(content, "u1", count * np.dtype(dtype).itemsize).reshape(-1, count)
    return np.ascontiguousarray(planes.T).view(dtype).ravel()


def read_array(content: BinaryIO, dtype: str, count: int) -> Array:
    return np.frombuffer(content.read(count * np.dtype(dtype).itemsize), dtype)


@dataclass(frozen=True)
class FloatTensor:
    """A tensor that is not quantized."""

    shape: tuple[int, ...]
    values: Array  # float32 or float16

    @property
    def codec(self) -> int:
        return FLOAT16 if self.values.dtype == np.float16 else FLOAT32

    def side_data(self) -> bytes:
        return byte_planes(self.values)

    def weights(self) -> Array:
        """Float32, in the tensor's shape; the same holds for the other two."""
        return self.values.astype(np.float32).reshape(self.shape)


def lane_count(elements: int) -> int:
    """How many lanes share a stream: enough for speed, few enough for the list of their states."""
    return min(1024, 1 << max(0, (elements // 64).bit_length() - 1) // 2)


def lane_groups(sizes: list[int], lanes: int) -> list[slice]:
    """For each step of a stream the elements that the first lanes code, one each; elements are
    counted over all tensors one after the other."""
    groups = []
    end = 0
    for size in sizes:
        end += size
        groups += [slice(at, min(at + lanes, end)) for at in range(end - size, end, lanes)]
    return groups


# Huffman

KMEANS_ITERATIONS = 20  # entry 532
MAX_CODE_LENGTH = 16  # bits of a Huffman code


@dataclass(frozen=True)
class HuffmanTensor:
    """A tensor of K different values, each with a prefix code."""

    shape: tuple[int, ...]
    centroids: Array  # [K] float16, ascending
    lengths: Array  # [K] uint8: bits of each level's code
    levels: Array  # flat uint8: each element's level
    codec = HUFFMAN

    def side_data(self) -> bytes:
        return bytes([len(self.centroids)]) + byte_planes(self.centroids) + self.lengths.tobytes()

    def weights(self) -> Array:
        return self.centroids.astype(np.float32)[self.levels].reshape(self.shape)


def encode_huffman(w: Array, levels: int) -> HuffmanTensor:
    """At most so many k-means levels, by Lloyd's iteration from evenly spaced centroids (entry
    532), each the nearest to something, and the best code for how often they occur."""
    ordered = np.sort(w, axis=None)
    sums = np.cumsum(np.append(0.0, ordered))
    centroids = np.linspace(float(ordered[0]), float(ordered[-1]), levels)

    for _ in range(KMEANS_ITERATIONS):
        middles = ((centroids[1:] + centroids[:-1]) / 2).astype(np.float32)
        edges = np.concatenate(([0], np.searchsorted(ordered, middles), [len(ordered)]))
        counts = np.diff(edges)
        np.divide(np.diff(sums[edges]), counts, out=centroids, where=counts > 0)

    centroids = np.unique(centroids.astype(np.float16) + 0)  # + 0 turns -0 into 0
    exact = centroids.astype(np.float32)
    nearest = np.searchsorted((exact[1:] + exact[:-1]) / 2, w.ravel())
    used, nearest = np.unique(nearest, return_inverse=True)
    lengths = huffman_lengths(np.bincount(nearest))
    return HuffmanTensor(w.shape, centroids[used], lengths, nearest.astype(np.uint8))


def huffman_lengths(counts: Array) -> Array:
    """Code lengths, uint8 [K], with the fewest bits in all, each at most MAX_CODE_LENGTH.

    Package-merge (Larmore and Hirschberg, 1990): a code of length l is l coins, one each of the
    values 1/2, 1/4, ... 2^-l, all of the symbol's weight; the lightest coins worth K - 1 are the
    best code. From the smallest value on, two coins at a time make a package of the next value.
    """
    coins = sorted((max(1, count), bytes([k])) for k, count in enumerate(counts))
    packages = []
    for _ in range(MAX_CODE_LENGTH):
        merged = sorted(coins + packages)
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(x + y, a + b) for (x, a), (y, b) in pairs]

    spent = b"".join(levels for _, levels in packages[: len(coins) - 1])
    return np.bincount(np.frombuffer(spent, np.uint8), minlength=len(coins)).astype(np.uint8)


def code_table(lengths: Array) -> Array:
    """The level whose code 16 bits begin with (uint8 [2^16]): canonical codes tile the range, the
    shortest first."""
    order = np.argsort(lengths, kind="stable")
    spans = 1 << MAX_CODE_LENGTH - lengths[order].astype(int)
    return np.repeat(order.astype(np.uint8), spans)


def write_huffman(tensors: list[HuffmanTensor]) -> bytes:
    """All tensors' codes, lane after lane: bits of each lane (u32), then words of 16 bits."""
    lanes = lane_count(sum(len(t.levels) for t in tensors))
    parts = []
    for t in tensors:
        _, codes = np.unique(code_table(t.lengths), return_index=True)  # where each level begins
        coded = (codes.astype(np.uint32) << 8 | t.lengths)[t.levels]
        coded = np.pad(coded, (0, -len(coded) % lanes))  # codes of 0 bits in the last step
        parts.append(coded.reshape(-1, lanes))

    coded = np.concatenate(parts).T.ravel()  # lane after lane
    length = coded & 0xFF

    bits = np.unpackbits((coded >> 8).astype(">u2").view(np.uint8)).reshape(-1, MAX_CODE_LENGTH)
    used = np.arange(MAX_CODE_LENGTH) < length[:, None]
    packed = np.packbits(bits[used]).tobytes()
    words = np.frombuffer(packed + bytes(len(packed) % 2), ">u2")
    sizes = length.reshape(lanes, -1).sum(axis=1, dtype="<u4")
    return sizes.tobytes() + words.astype("<u2").tobytes()


def read_huffman(content: BinaryIO, tensors: list[HuffmanTensor]) -> None:
    """Fills in each tensor's levels."""
    lanes = lane_count(sum(len(t.levels) for t in tensors))
    bits = read_array(content, "<u4", lanes).astype(np.int64)
    positions = np.cumsum(bits) - bits  # of each lane
    words = read_array(content, "<u2", -(-bits.sum() // 16))
    words = np.append(words, [0, 0]).astype(np.uint32)
    windows = words[:-1] << 16 | words[1:]  # the 32 bits from each word on

    for t in tensors:
        level_at = code_table(t.lengths)
        for group in lane_groups([len(t.levels)], lanes):
            levels = t.levels[group]
            at = positions[: len(levels)]
            following = windows.take(at >> 4, mode="clip") >> 16 - (at & 15) & 0xFFFF
            levels[:] = level_at[following]
            at += t.lengths[levels]


# Trellis: points and paths

LOG2_STATES = 5
STATES = 1 << LOG2_STATES
H0 = 0o45  # Ungerboeck's parity checks for 32 states
H1 = 0o10
STATE = np.arange(STATES)[:, None]
# [STATES,2], by state and parity of the index, in systematic feedback form:
NEXT_STATE = STATE >> 1 ^ (STATE & 1) * (H0 >> 1) ^ np.arange(2) * (H1 >> 1)


def quarter_power(e: Array) -> Array:
    """2^(e/4) in float64, the same on every machine."""
    return np.ldexp(np.sqrt(np.sqrt([1.0, 2.0, 4.0, 8.0]))[e % 4], e // 4)


def quarter_octaves(mean_square: Array) -> Array:
    """round(4 log2(rms)) by thresholds 2^(e/2 - 1/4): logarithms differ from machine to machine."""
    thresholds = quarter_power(2 * np.arange(-250, 250) - 1)
    return np.searchsorted(thresholds, mean_square, side="right") - 251


def viterbi_search(y: Array, start: Array, keep: int) -> tuple[Array, Array]:
    """The first `keep` columns of the points (int32 [R,keep]) on each row's path that is nearest to
    4y (float32 [R,C]) in the sum of squares, and the states [R] after them.

    Viterbi's algorithm, all rows at once, from the states `start` [R] on. Both branches into a
    state have the same union bit u, its top bit, and differ in the parity of their index. The union
    of u = 1 is the mirror image of the other.
    """
    y = np.ascontiguousarray(y.T)
    place = np.stack((y, -y), axis=1) - 0.25  # index q stands for q + 1/4
    index = np.stack([2 * np.rint((place - odd) / 2) + odd for odd in (0, 1)], axis=1)
    error = np.square(place[:, None] - index)  # [C,parity,u,R], as the nearest indices

    row = np.arange(len(start))
    before = np.argsort(NEXT_STATE, axis=0).T  # [parity,STATES]: where branches are from
    odd, state = viterbi_forward(error, before, start)
    for c in reversed(range(keep, len(y))):
        state = before[odd[c, state, row], state]
    after = state

    points = np.empty((keep, len(row)), np.int32)
    for c in reversed(range(keep)):
        parity = odd[c, state, row]
        union = state // (STATES // 2)
        points[c] = (4 * index[c, parity, union, row] + 1) * (1 - 2 * union)
        state = before[parity, state]
    return points.T, after


def viterbi_forward(error: Array, before: Array, start: Array) -> tuple[Array, Array]:
    """The parity of the cheapest branch into each state (uint8 [C,STATES,R]), and the states [R]
    in which the cheapest paths end; errors [C,parity,u,R], `before` [parity,STATES]."""
    cost = np.full((STATES, len(start)), np.inf, np.float32)
    cost[start, np.arange(len(start))] = 0

    odd = np.empty((len(error), *cost.shape), bool)
    branches = np.empty((2, *cost.shape), np.float32)
    by_union = branches.reshape(2, 2, STATES // 2, -1)
    for c in range(len(error)):
        cost.take(before, axis=0, out=branches, mode="clip")
        by_union += error[c, :, :, None]
        np.greater(*branches, out=odd[c])
        np.minimum(*branches, out=cost)
    return odd.view(np.uint8), cost.argmin(axis=0)


# Trellis: steps and error feedback

TRELLIS_GAIN = 1.3  # over a uniform quantizer of the same step, whose error is step^2 / 12
FEEDBACK_BLOCK = 8  # columns quantized before their error is fed back
LOOK_AHEAD = 24  # columns behind a block that are searched with it
FINENESS = (-4, 24)  # least and greatest root mean square of a row or column in steps; as octaves/4
DAMPING = 0.01  # added to the diagonal of the input Hessian, as a part of its mean


@dataclass(frozen=True)
class Moments:
    """What errors cost: for errors e [C] in row r, output_fisher[r] * e input_hessian e^T."""

    output_fisher: Array  # [R]
    input_hessian: Array  # [C,C]


@dataclass(frozen=True)
class QuantizationCost:
    """Moments as the quantizer needs them: a row's errors e cost unit * rows[r] * |e root|^2."""

    unit: float  # of an average weight's squared error
    rows: Array  # [R], 1 on average
    root: Array  # [C,C] upper triangular
    blocks: list[slice]  # of columns, quantized together before their error is fed back
    columns: Array  # [C]: what an error costs once later blocks have made up for what they can


def quantization_cost(moments: Moments) -> QuantizationCost:
    row_unit = moments.output_fisher.mean()
    column_unit = np.diagonal(moments.input_hessian).mean()
    hessian = moments.input_hessian / column_unit
    size = len(hessian)

    damped = hessian + DAMPING * np.eye(size)
    root = np.flip(np.linalg.cholesky(np.flip(damped)))

    correlated = np.count_nonzero(hessian) > size  # else there is nothing to feed back
    width = FEEDBACK_BLOCK if correlated else size
    blocks = [slice(first, first + width) for first in range(0, size, width)]
    remaining = np.concatenate([np.square(root[b, b]).sum(axis=1) for b in blocks])
    rows = moments.output_fisher / row_unit
    return QuantizationCost(row_unit * column_unit, rows, root, blocks, remaining)


@dataclass(frozen=True)
class Steps:
    """The quantizer's step in row r and column c: step * 2^((rows[r] + columns[c]) / 4)."""

    step: np.float32
    rows: Array  # [R] exponents, within a signed byte
    columns: Array  # [C] exponents, within a signed byte

    def factors(self) -> tuple[Array, Array]:
        """Float32 [R,1] and [C], whose product is the weight of a point of 1, a quarter step."""
        rows = quarter_power(self.rows).astype(np.float32)
        columns = (self.step / 4.0 * quarter_power(self.columns)).astype(np.float32)
        return rows[:, None], columns


def choose_steps(w: Array, cost: QuantizationCost, step_scale: float) -> Steps:
    """Steps by which every weight's error costs about step_scale^2; w [R,C]."""
    wanted = step_scale * math.sqrt(12 * TRELLIS_GAIN / cost.unit)
    largest = 8 * np.sqrt(np.square(w).mean())
    step = np.float32(min(wanted, largest))

    steps = Steps(step, -quarter_octaves(cost.rows), -quarter_octaves(cost.columns))
    steps = replace(steps, rows=limit_steps(steps.rows, w, steps, axis=1))
    return replace(steps, columns=limit_steps(steps.columns, w, steps, axis=0))


def limit_steps(own: Array, w: Array, steps: Steps, axis: int) -> Array:
    """The steps of rows (axis 1) or columns (axis 0) of w [R,C], made finer where the fineness, the
    root mean square of the weights in steps, is below FINENESS, and coarser where it is above."""
    rows, columns = steps.factors()
    fineness = quarter_octaves(np.square(w / (4 * rows * columns)).mean(axis=axis))
    return np.clip(own + fineness - np.clip(fineness, *FINENESS), -127, 127)


def quantize(w: Array, steps: Steps, cost: QuantizationCost) -> Array:
    """Points (int32 [R,C]) for the weights w [R,C].

    Each block of columns makes up, as far as it can, for the cost of the errors in the blocks
    before it (GPTQ in the form of LDLQ). The search looks beyond the block, as its last point binds
    the next.
    """
    rows, columns = steps.factors()
    error = np.zeros_like(w)
    points = np.empty(w.shape, np.int32)
    state = np.zeros(len(w), np.intp)

    for block in cost.blocks:
        done = slice(block.start)
        seen = slice(block.start, block.stop + LOOK_AHEAD)
        gain = cost.root[done, seen] @ np.linalg.inv(cost.root[seen, seen])
        wanted = w[:, seen] - error[:, done] @ gain.astype(np.float32)
        target = np.clip(wanted / (4 * rows * columns[seen]), -2000, 2000)

        points[:, block], state = viterbi_search(target, state, len(columns[block]))
        error[:, block] = points[:, block] * rows * columns[block] - w[:, block]
    return points


@dataclass
class TrellisTensor:
    """A tensor whose rows are paths through a trellis. Its spreads say how large weights are, as a
    multiple of steps.step: in row r and column c, offset + row_spreads[r] + column_spreads[c]."""

    shape: tuple[int, ...]
    steps: Steps
    offset: int
    row_spreads: Array  # [R], within a signed byte
    column_spreads: Array  # [C], within a signed byte
    points: Array  # int32 [R,C]: each weight in quarters of its step
    codec = TRELLIS

    def contexts(self) -> Array:
        """How large weights are in their own steps, flat; a file's model clips them."""
        rows = self.offset + self.row_spreads - self.steps.rows
        columns = self.column_spreads - self.steps.columns
        return np.add.outer(rows, columns, dtype=np.int32).ravel()

    def side_data(self) -> bytes:
        numbers = (self.row_spreads, self.column_spreads, self.steps.rows, self.steps.columns)
        numbers = np.concatenate(numbers).astype(np.int8)
        return struct.pack("<fh", self.steps.step, self.offset) + numbers.tobytes()

    def weights(self) -> Array:
        rows, columns = self.steps.factors()
        return (self.points.astype(np.float32) * rows * columns).reshape(self.shape)


def encode_trellis(w: Array, moments: Moments, step_scale: float) -> TrellisTensor:
    """Quantized so that, by the moments, every weight's error costs about step_scale^2."""
    matrix = w.reshape(len(w), -1)
    cost = quantization_cost(moments)
    steps = choose_steps(matrix, cost, step_scale)
    points = quantize(matrix, steps, cost)

    in_steps = points / 4
    rows = quarter_octaves(np.square(in_steps).mean(axis=1))
    columns = quarter_octaves(np.square(in_steps / quarter_power(rows)[:, None]).mean(axis=0))
    offset = int(np.median(rows))

    row_spreads = np.clip(rows - offset + steps.rows, -127, 127)
    column_spreads = np.clip(columns + steps.columns, -127, 127)
    return TrellisTensor(w.shape, steps, offset, row_spreads, column_spreads, points)


# Trellis: the stream of indices. A cell is a pair of a context and a symbol, an index from -L to L,
# as its place in the table of frequencies [contexts,2L+1].

RANS_BITS = 14
RANS_M = 1 << RANS_BITS  # what the frequencies of a context that occurs add up to
RANS_L = 1 << 16  # rANS states are at least this
MAX_CONTEXTS = 64


def normalize_frequencies(counts: Array) -> Array:
    """Frequencies by counts [contexts,2L+1]: they add up to RANS_M where a context occurs, and are
    at least 1 for a symbol that does. The most frequent one takes what rounding leaves."""
    occurs = counts > 0
    totals = counts.sum(axis=1, keepdims=True)
    slots = RANS_M * (totals > 0)
    spare = slots - occurs.sum(axis=1, keepdims=True)
    frequencies = occurs * (1 + counts * spare // (totals + 1))

    most = np.arange(len(counts)), counts.argmax(axis=1)
    frequencies[most] += slots[:, 0] - frequencies.sum(axis=1)
    return frequencies


def write_trellis(tensors: list[TrellisTensor]) -> bytes:
    """The shared model, and the rANS stream of all tensors' indices. Offsets become those by which
    the greatest contexts end with the last one that is allowed.

    The encoder goes backwards: states, number of words, words.
    """
    points = np.concatenate([t.points.ravel() for t in tensors])
    # A point of the union u = 0 is 1 above a multiple of 4, of u = 1 below.
    index = (np.where(points & 3 == 1, points, -points) - 1) >> 2
    context = np.concatenate([t.contexts() for t in tensors])
    base = max(context.min(), context.max() - (MAX_CONTEXTS - 1))
    for t in tensors:
        t.offset -= base
    context = np.maximum(context - base, 0)
    largest = int(np.abs(index).max())

    kinds = 2 * largest + 1
    cells = context * kinds + index + largest
    counts = np.bincount(cells, minlength=kinds * (context.max() + 1))
    frequencies = normalize_frequencies(counts.reshape(-1, kinds))
    head = struct.pack("<BHB", LOG2_STATES, largest, len(frequencies))
    head += frequencies.astype("<u2").tobytes()

    frequency = frequencies.astype(np.uint64).ravel()
    start = (np.cumsum(frequency) - frequency) % RANS_M  # within its context
    states = np.full(lane_count(len(cells)), RANS_L, np.uint64)
    words = []
    for group in reversed(lane_groups([t.points.size for t in tensors], len(states))):
        f = frequency[cells[group]]
        x = states[: len(f)]
        full = x >= f << 32 - RANS_BITS
        words.append(x[full].astype("<u2"))
        x[full] >>= 16
        x += x // f * (RANS_M - f) + start[cells[group]]

    words = np.concatenate(words[::-1])
    return head + states.astype("<u4").tobytes() + struct.pack("<I", len(words)) + words.tobytes()


def read_trellis(content: BinaryIO, tensors: list[TrellisTensor]) -> None:
    """Fills in each tensor's points."""
    _, largest, contexts = struct.unpack("<BHB", content.read(4))
    kinds = 2 * largest + 1
    frequency = read_array(content, "<u2", contexts * kinds).astype(np.uint32)
    start = np.cumsum(frequency, dtype=np.uint32) - frequency
    first = start[::kinds]  # slot of each context
    cell_at = np.repeat(np.arange(len(start)), frequency)  # by slot

    context = np.concatenate([t.contexts() for t in tensors])
    context = np.clip(context, 0, contexts - 1).astype(np.uint8)
    states = read_array(content, "<u4", lane_count(len(context))).astype(np.uint32)
    content.read(4)  # the number of words
    sizes = [t.points.size for t in tensors]
    indices = np.empty(len(context), np.int32)
    for group in lane_groups(sizes, len(states)):
        x = states[: len(context[group])]
        slot = first[context[group]] + (x & RANS_M - 1)
        cell = cell_at[slot]
        indices[group] = cell % kinds - largest
        x[:] = frequency[cell] * (x >> RANS_BITS) + slot - start[cell]
        low = np.flatnonzero(x < RANS_L)
        x[low] = x[low] << 16 | read_array(content, "<u2", len(low))

    for t, q in zip(tensors, np.split(indices, np.cumsum(sizes)[:-1]), strict=True):
        q = q.reshape(t.points.shape)
        state = np.zeros(len(q), np.intp)
        for c in range(q.shape[1]):  # a walk along each row's path
            t.points[:, c] = (4 * q[:, c] + 1) * (1 - 2 * (state & 1))
            state = NEXT_STATE[state, q[:, c] & 1]


# The container

Coded = FloatTensor | HuffmanTensor | TrellisTensor


def weights_crc32(weights: Iterable[Array]) -> int:
    """Of float32 values, one tensor after the other."""
    return zlib.crc32(b"".join(w.tobytes() for w in weights))


def encode_pcll(config: dict, tensors: dict[str, Coded]) -> bytes:
    """The bytes of an artifact: config (flat, of strings and numbers) and coded tensors."""
    tensors = dict(sorted(tensors.items()))
    config = config | dict(weights_crc32=weights_crc32(t.weights() for t in tensors.values()))
    huffman = [t for t in tensors.values() if t.codec == HUFFMAN]
    streams = write_huffman(huffman) if huffman else b""
    trellis = [t for t in tensors.values() if t.codec == TRELLIS]
    streams += write_trellis(trellis) if trellis else b""

    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    content = struct.pack("<I", len(text)) + text + struct.pack("<H", len(tensors))
    for name, t in tensors.items():
        content += bytes([len(name)]) + name.encode()
        content += struct.pack(f"<BB{len(t.shape)}I", t.codec, len(t.shape), *t.shape)
    content += b"".join(t.side_data() for t in tensors.values()) + streams
    # By level 22's choices for 128 KiB: with more, the dense stream takes four times as long.
    options = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=1 << 17, write_checksum=True
    )
    frame = zstandard.ZstdCompressor(compression_params=options).compress(content)

    return b"PCLL" + struct.pack("<HHII", 1, 0, len(content), len(frame)) + frame


def decode_pcll(artifact: bytes) -> dict[str, Array]:
    """The float32 weights of an artifact that this script wrote; decode_artifact.py reads those of
    strangers."""
    content = io.BytesIO(zstandard.ZstdDecompressor().decompress(artifact[16:]))
    (config_bytes,) = struct.unpack("<I", content.read(4))
    config = json.loads(content.read(config_bytes))

    (count,) = struct.unpack("<H", content.read(2))
    table = {}
    for _ in range(count):
        (length,) = content.read(1)
        name = content.read(length).decode()
        codec, dimensions = content.read(2)
        table[name] = codec, tuple(read_array(content, "<u4", dimensions).tolist())

    tensors = {name: read_tensor(content, *record) for name, record in table.items()}
    for codec, read_stream in ((HUFFMAN, read_huffman), (TRELLIS, read_trellis)):
        coded = [t for t in tensors.values() if t.codec == codec]
        if coded:
            read_stream(content, coded)
    weights = {name: t.weights() for name, t in tensors.items()}
    crc = weights_crc32(weights.values())
    if config.get("weights_crc32", crc) != crc:
        raise UserError("The artifact's weights are not those that it was made of.")
    return weights


def read_tensor(content: BinaryIO, codec: int, shape: tuple[int, ...]) -> Coded:
    """What the side data hold; levels and points are still to be filled in."""
    if codec == HUFFMAN:
        (count,) = content.read(1)
        centroids = read_planes(content, "<f2", count)
        lengths = read_array(content, "u1", count)
        return HuffmanTensor(shape, centroids, lengths, np.empty(math.prod(shape), np.uint8))
    if codec == TRELLIS:
        size, offset = struct.unpack("<fh", content.read(6))
        points = np.empty((shape[0], math.prod(shape[1:])), np.int32)
        *scales, rows, columns = (
            read_array(content, "i1", count).astype(int) for count in 2 * points.shape
        )
        return TrellisTensor(shape, Steps(np.float32(size), rows, columns), offset, *scales, points)
    dtype = "<f2" if codec == FLOAT16 else "<f4"
    return FloatTensor(shape, read_planes(content, dtype, math.prod(shape)))


# ---- Export: what errors cost, which tensor gets which codec, and how the file fits --------------
#
# Bits belong where errors cost most. To second order, and at the end of training, where the
# gradient is small, a change of the weights costs half a quadratic form in nats, whose matrix is
# the Fisher information: the mean of the gradient's outer products over tokens. That is too large
# to hold. For a matrix it is all but a product of two factors (K-FAC, arXiv 1503.05671): the second
# moments of its inputs, and those of the gradients at its outputs, of which the squares suffice. In
# each factor a token weighs by its part in the other, so that both are exact in their traces.
# The token embedding is such a matrix as the head; where it is looked up, an error costs by the
# square of the gradient there.
# Calibration collects the factors from training tokens, and the trellis codec uses them for
#   steps at which every weight's error costs the same, whichever matrix, row or column it is in, so
#     that one number, the step scale, trades loss for bytes over the whole network;
#   error feedback along the correlations of the inputs.

MAX_TRIES = 10
FULL = 0.999  # part of the cap that FIT=fill has to reach
MARGIN = 0.0004  # part of the cap that a try aims below it
FINEST = -4.0  # octaves of the step scale; what quantization costs there is too little to buy back
COARSEST = 10.0


@dataclass
class Factors:
    """Sums over tokens, for a matrix [R,C] with the inputs x and the gradients g at its outputs."""

    output_fisher: Tensor  # [R]: |x|^2 g_r^2
    input_hessian: Tensor  # [C,C]: |g|^2 x x^T
    looked_up: Tensor  # [R]: of an embedding, the mean square of the gradient where r is looked up


class FisherRecorder(TorchFunctionMode):
    """While active, accumulates the Fisher factors of each matrix over a float32 model's passes.
    The token embedding is both a matrix and an embedding."""

    def __init__(self, model: GPT):
        super().__init__()
        self.factors = {}  # by the parameter itself
        for name, p in model.named_parameters():
            if role_of(name).levels:
                eye = torch.eye(p.size(1), device=p.device)
                rows = p.new_ones(len(p))
                self.factors[p] = Factors(1e-30 * rows, 1e-30 * eye, 0 * rows)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (F.linear, F.embedding) and args[1] in self.factors:
            result.register_hook(partial(self.record, function, args[0], self.factors[args[1]]))
        return result

    def record(self, function: Callable, x: Tensor, factors: Factors, gradient: Tensor) -> None:
        """Adds up the factors of a product with the inputs x, or of a look-up of the indices x."""
        squares = gradient.flatten(0, -2).square()
        if function is F.embedding:
            factors.looked_up.index_add_(0, x.flatten(), squares.mean(dim=-1))
            return
        inputs = x.detach().flatten(0, -2)
        factors.output_fisher += inputs.square().sum(dim=1) @ squares
        factors.input_hessian += (inputs * squares.sum(dim=1, keepdim=True)).T @ inputs


def joint_moments(
    fisher: Array, hessian: Array, looked_up: Array, tokens: int, unit: float
) -> Moments:
    """Moments by a recorder's sums over so many tokens, in units of so many nats.

    What is looked up costs the same in every column. The sum of the two products is replaced by one
    that costs as much in each row, for errors alike in all columns. Each row counts as if one token
    more had moved it: one that none has moved is rare, not free.
    """
    alike = len(hessian) * looked_up
    share = fisher.sum() / (fisher.sum() + alike.sum())
    rows = (fisher + alike) / tokens
    even = np.eye(len(hessian)) / len(hessian)
    hessian = share * hessian / np.trace(hessian) + (1 - share) * even
    return Moments((rows + rows.sum() / tokens) / unit, hessian)


def calibrate(model: GPT, stream: TokenStream, s: Settings) -> dict[str, Moments]:
    """Moments of every parameter that may be quantized, from CALIBRATION_TOKENS of the training
    split, in units of QUANTISATION_NATS: a step scale of 1 costs that much in all."""
    exact = copy.deepcopy(model).float()
    exact.dtype = torch.float32
    recorder = FisherRecorder(exact)
    for name, p in exact.named_parameters():
        if role_of(name).group == "matrix":
            p.requires_grad_(False)  # the embeddings' are enough to reach all activations

    one_by_one = replace(s, train_batch_tokens=s.calibration_tokens, micro_batch_seqs=1)
    with recorder:
        for inputs, targets in train_batches(stream, 0, one_by_one):
            exact(inputs, targets).sum().backward()

    # Twice, as an error costs half of the form.
    unit = 2 * s.quantisation_nats / sum(p.numel() for p in recorder.factors)
    moments = {}
    for name, p in exact.named_parameters():
        if p in recorder.factors:
            sums = vars(recorder.factors[p]).values()
            sums = [ranks.all_reduce_(tensor).double().cpu().numpy() for tensor in sums]
            moments[name] = joint_moments(*sums, s.calibration_tokens, unit)
    return moments


def encode_tensor(name: str, w: Array, s: Settings, step_scale: float, moments: dict) -> Coded:
    """Matrices and embeddings are quantized, with steps of so many times their size and as many
    times fewer levels; the rest is float16."""
    levels = role_of(name).levels
    exact = name == "tok_emb" and s.codec == "huffman"
    largest = np.abs(w).max()
    if not levels or exact or largest >= HALF_LIMIT:
        dtype = np.float16 if largest < HALF_LIMIT else np.float32
        return FloatTensor(w.shape, w.astype(dtype))
    if s.codec == "trellis" and len(w) >= 16 and largest > 1e-10:
        return encode_trellis(w, moments[name], step_scale)
    return encode_huffman(w, min(255, max(2, int(levels / step_scale))))


def export(
    weights: dict[str, Array], moments: dict, config: dict, s: Settings, code_bytes: int
) -> bytes:
    """The bytes of the artifact, on every rank, which fit the cap together with the code; UserError
    if none do.

    An octave of the step scale is worth about one bit a weight, so a few tries by that rule
    suffice. A try that leaves the bracket of those before halves it.
    """
    for name, w in weights.items():
        largest = np.abs(w).max()
        if role_of(name).levels and largest >= HALF_LIMIT:
            log(f"warning: {name} stays float32 at 32 bits a weight: it has one of {largest:g}.")

    budget = s.size_cap_bytes - code_bytes
    full = FULL * s.size_cap_bytes - code_bytes
    octave = sum(w.size for name, w in weights.items() if role_of(name).levels) / 8  # bytes
    by_cost = sorted(weights, key=lambda name: (weights[name].size, weights[name].shape))
    own = by_cost[ranks.rank :: ranks.world_size]
    too_fine = -math.inf
    coarse_enough = COARSEST
    octaves = 0.0
    best = b""
    for tries in range(MAX_TRIES):
        shard = {name: encode_tensor(name, weights[name], s, 2.0**octaves, moments) for name in own}
        shards = ranks.all_gather_objects(shard)
        artifact = encode_pcll(config, collections.ChainMap(*shards)) if ranks.rank == 0 else b""
        (artifact,) = ranks.broadcast_objects(artifact)
        size = len(artifact)
        log(f"export: step scale {2.0**octaves:.4f}, {size} bytes, budget {budget}")

        if size <= budget:
            best = max(best, artifact, key=len)
            coarse_enough = octaves
        else:
            too_fine = octaves
        if best and (s.fit == "shrink" or coarse_enough == FINEST or len(best) >= full):
            return best

        margin = MARGIN * s.size_cap_bytes * (1 if best else 2**tries)  # lest it creeps up
        octaves += (size - budget + margin) / octave
        octaves = max(FINEST, octaves)
        if not too_fine < octaves < coarse_enough:
            octaves = (max(too_fine, FINEST) + coarse_enough) / 2
    if not best:
        raise UserError(
            f"SIZE_CAP_BYTES={s.size_cap_bytes} is less than {code_bytes} bytes of code and {size} "
            "of artifact: make the model smaller."
        )
    return best


# ---- Evaluation: a ledger of scores, sliding windows, and test-time training ---------------------
# A score is legal if each token's distribution
#   1. depends on earlier tokens only,
#   2. is fixed before its token is seen;
# and if each token is scored
#   3. once,
#   4. before any training on it.
# The ledger is the one way to the targets and enforces this: what adapts gets its tokens from the
# ledger, and so only those that are scored.

NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"


def read_validation(counter: ByteCounter, s: Settings) -> tuple[Array, Array]:
    """The split's tokens (uint16 [n]) and the bytes of text of each but the first (int64 [n-1]).

    UserError if it holds no text.
    """
    stream = TokenStream(s, "val")
    tokens = stream.read(0, stream.total)
    token_bytes = counter.count(tokens)
    if not token_bytes.any():
        raise UserError(f"DATA_PATH={s.data_path}: the validation split holds no text.")
    return tokens, token_bytes


@dataclass(frozen=True)
class Score:
    """Of a whole split: what it is, and what it was counted over."""

    val_loss: float  # nats per token
    val_bpb: float  # bits per byte
    tokens: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"val_loss:{self.val_loss:.8f} val_bpb:{self.val_bpb:.8f} val_tokens:{self.tokens} "
            f"bytes:{self.bytes} eval_time:{1000 * self.seconds:.0f}ms"
        )


class Ledger:
    """The validation tokens t and the score of each position: i predicts t[i+1].

    Every position is recorded once, after the one before it; with `by_document` a document's first
    is free to come at any time. A target is looked at only with the logits that predict it, and
    handed out to learn from only once it is scored. Anything else is an error.
    """

    def __init__(self, tokens: Tensor, token_bytes: Tensor, by_document: bool = False):
        """tokens int64 [n]; token_bytes int64 [n-1], the bytes of text of tokens[1:]."""
        self.tokens = tokens
        self.token_bytes = token_bytes
        self.nats = torch.zeros_like(token_bytes, dtype=torch.float32)
        self.scored = torch.zeros_like(token_bytes, dtype=torch.int32)
        self.may_begin = (tokens[:-1] == BOS_ID) & by_document
        self.may_begin[0] = True

    def nll(self, positions: Tensor, logits: Tensor) -> Tensor:
        """Nats of the true next tokens: positions int64 [...], logits float32 [...,V]."""
        return nats_of(logits.detach(), self.tokens[positions + 1])

    def record(self, positions: Tensor, nats: Tensor) -> None:
        """Enters the nats float32 [k] of positions int64 [k]."""
        ones = torch.ones_like(positions, dtype=torch.int32)
        scored = self.scored.index_add(0, positions, ones)
        in_order = (scored[positions - 1] == 1) | self.may_begin[positions]
        if not ((scored[positions] == 1) & in_order).all():
            raise ValueError("a position is recorded twice, or before the one that precedes it")
        self.scored = scored
        self.nats[positions] = nats

    def scored_tokens(self, positions: Tensor) -> Batch:
        """Inputs and targets of positions int64 [...], all of which must be scored."""
        if not self.scored[positions].all():
            raise ValueError("a position to learn from is not scored yet")
        return self.tokens[positions], self.tokens[positions + 1]

    def score(self, began: float, count: int | None = None) -> Score:
        """Of the positions recorded so far, or of the first `count`, by a pass that began then."""
        scored = self.scored[:count].bool()
        nats = float(self.nats[:count][scored].double().sum())
        size = int(self.token_bytes[:count][scored].sum())
        count = int(scored.sum())
        bpb = nats / math.log(2) / max(size, 1)
        return Score(nats / count, bpb, count, size, time.monotonic() - began)

    def close(self, name: str, began: float) -> Score:
        """The score of a whole pass. The log also states those of the first 2,048, 4,096, 8,192,
        ... positions, for whoever recomputes only so many."""
        score = self.score(began)
        count = 2048
        while count <= len(self.nats):
            first = self.score(began, count)
            log(
                f"{name}: scored:{count} nats:{first.val_loss * count:.6f} bytes:{first.bytes} "
                f"val_bpb:{first.val_bpb:.8f}",
                console=False,
            )
            count *= 2
        return score


def document_batches(tokens: Tensor, rows: int) -> list[Tensor]:
    """All documents, the longest first, in batches of at most so many whose lengths lie within an
    octave: int64 [S,2], (start, stop).

    The positions start..stop-1 are those whose last input is of the document.
    """
    begins = tokens[:-1] == BOS_ID
    begins[0] = True
    edges = F.pad(begins.nonzero().flatten(), (0, 1), value=len(begins))
    lengths, order = edges.diff().sort(descending=True, stable=True)
    documents = torch.stack((edges[:-1], edges[1:]), dim=1)[order]
    _, counts = lengths.float().frexp().exponent.unique_consecutive(return_counts=True)
    return [batch for group in documents.split(counts.tolist()) for batch in group.split(rows)]


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """x [n,...] with its last row repeated up to a number of rows: one shape needs one graph."""
    return x[torch.arange(rows, device=x.device).clamp(max=len(x) - 1)]


TTT_GRAD_CLIP = 1.0  # global norm of the adaptation's gradient, at most (532)


class TestTimeTrainer:
    """Adapts all weights, each at its role's multiple of TTT_LR, by SGD (549) or AdamW (532)."""

    def __init__(self, model: GPT, grads: Tensor, s: Settings):
        """grads is the flat gradient of all parameters."""
        self.model = model
        self.grads = grads
        self.s = s
        by_lr = {}
        for name, p in model.named_parameters():
            by_lr.setdefault(s.ttt_lr * role_of(name).ttt_lr_scale, []).append(p)
        groups = [dict(params=params, base_lr=lr) for lr, params in by_lr.items()]
        if s.ttt_protocol == "train_then_score":
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=0.9)

    def learn(self, inputs: Tensor, targets: Tensor, done: float, epochs: int) -> None:
        """Epochs over tokens int64 [n] as sequences of train_seq_len; a shorter rest is left out.

        The rates fall as a cosine with the part of the split that is done (0..1). The ranks share
        each batch.
        """
        set_lr_scale([self.optimizer], 0.5 * (1 + math.cos(math.pi * done)))
        length = self.s.train_seq_len
        count = len(inputs) // length
        sequences = (x[: count * length].view(count, length) for x in (inputs, targets))
        batches = [*zip(*(x.split(self.s.ttt_batch_seqs) for x in sequences), strict=True)]
        for batch in batches * (epochs if count else 0):
            self.grads.zero_()
            shard = [x.tensor_split(ranks.world_size)[ranks.rank] for x in batch]
            size = len(shard[0])
            if size:
                if is_compiled(self.s):
                    rows = -(-self.s.ttt_batch_seqs // ranks.world_size)
                    shard = [pad_rows(x, rows) for x in shard]
                nats = self.model(*shard)[:size]
                loss = nats.mean(dim=1).sum() / len(batch[0])
                accumulate_grads(loss, list(self.model.parameters()))
            ranks.all_reduce_(self.grads)
            nn.utils.clip_grad_norm_(self.model.parameters(), TTT_GRAD_CLIP)
            self.optimizer.step()


@contextlib.contextmanager
def document_adapters(model: GPT, rows: int, s: Settings) -> Iterator[torch.optim.AdamW]:
    """Within it each matrix [R,C] has an adapter (LoRA, arXiv 2106.09685) for every row of a batch,
    and nothing else has a gradient; yields the adapters' optimizer, with 1530's settings.

    A [rows,rank,C] starts as rows of the fourth discrete cosine transform, of norm 1, which are
    orthogonal up to the C-th; B [rows,R,rank] starts as zeros.
    """
    model.requires_grad_(False)
    by_name = dict(model.named_parameters())
    by_name.pop("bigram.table", None)  # that one is only looked up
    matrices = [p for name, p in by_name.items() if role_of(name).levels]
    for p in matrices:
        size = p.size(1)
        rank, column = (torch.arange(n, dtype=torch.float64) for n in (s.document_rank, size))
        cosines = torch.outer(rank + 0.5, column + 0.5).mul(math.pi / size).cos()
        a = (math.sqrt(2 / size) * cosines).to(p.device, torch.float32).repeat(rows, 1, 1)
        b = a.new_zeros(rows, len(p), s.document_rank)
        p.adapter = a.requires_grad_(), b.requires_grad_()
    params = [x for p in matrices for x in p.adapter]
    try:
        yield torch.optim.AdamW(params, s.document_lr, betas=(0.0, 0.999), weight_decay=0.5)
    finally:
        model.requires_grad_(True)
        for p in matrices:
            del p.adapter


class Evaluator:
    """Scores a model on the validation split; every pass fills a ledger of its own."""

    def __init__(self, tokens: Array, token_bytes: Array, s: Settings):
        """tokens uint16 [n]; token_bytes int64 [n-1], the bytes of text of tokens[1:]."""
        self.s = s
        self.tokens = torch.from_numpy(tokens.astype(np.int64)).to(ranks.device)
        self.token_bytes = torch.from_numpy(token_bytes).to(ranks.device)
        self.offsets = torch.arange(s.train_seq_len, device=ranks.device)

    def score(
        self, model: GPT, name: str, stride: int, trainer: TestTimeTrainer | None = None
    ) -> Score:
        """Scores every position, chunk by chunk; the trainer learns from each but the last.

        With a stride of train_seq_len the windows do not overlap: the plain score.
        """
        began = time.monotonic()
        ledger = Ledger(self.tokens, self.token_bytes)
        size = self.s.ttt_chunk_tokens
        if trainer is None:
            size *= 4 * ranks.world_size  # a chunk then only sets the pace of progress lines

        count = len(ledger.nats)
        # A chunk ends with a window: they end at train_seq_len, then every `stride` positions.
        ends = [end - (end - len(self.offsets)) % stride for end in range(size, count, size)]
        for chunk, (low, high) in enumerate(itertools.pairwise([0, *ends, count])):
            positions = torch.arange(low, high, device=ranks.device)
            ledger.record(positions, self.window_nats(model, ledger, low, high, stride))
            log.progress(name, high / count, began)
            if trainer and high < count:
                done = chunk / (len(ends) + 1)
                trainer.learn(*ledger.scored_tokens(positions), done, self.s.ttt_epochs)
        return ledger.close(name, began)

    def window_nats(self, model: GPT, ledger: Ledger, low: int, high: int, stride: int) -> Tensor:
        """Nats float32 [high-low] of positions low..high-1, each with up to train_seq_len inputs.

        The stream's first window scores all that it sees, every later one its last `stride`
        positions. The ranks share the batches.
        """
        length = len(self.offsets)
        plain = stride == length
        if low == 0 and not plain:
            first = min(length, high)
            nats = self.window_nats(model, ledger, 0, first, length)
            return torch.cat((nats, self.window_nats(model, ledger, first, high, stride)))

        rows = self.s.micro_batch_seqs if plain else self.s.eval_batch_seqs
        nats = torch.zeros(high - low, device=ranks.device)
        stops = torch.arange(low, high, stride, device=ranks.device)[:, None] + stride
        for i in range(0, len(stops), rows)[ranks.rank :: ranks.world_size]:
            batch = stops[i : i + rows]
            if is_compiled(self.s):
                batch = pad_rows(batch, rows)
            ends = batch if plain else batch.clamp(max=high)  # the last one overlaps the one before
            positions = ends - length + self.offsets
            scored = positions[:, -stride:]
            fresh = (scored >= batch - stride) & (scored < high)

            positions = positions.clamp(max=high - 1)
            inputs = self.tokens[positions]
            if plain:  # by the graph that training has compiled
                found = model(inputs, self.tokens[positions + 1]).detach()
            else:
                with torch.inference_mode():
                    found = ledger.nll(scored, model(inputs, at=self.offsets[-stride:]))
            nats[scored[fresh] - low] = found[fresh]
        return ranks.all_reduce_(nats)

    def score_documents(self, model: GPT, name: str) -> Score:
        """Scores each document by itself while it trains low-rank adapters of its own."""
        began = time.monotonic()
        ledger = Ledger(self.tokens, self.token_bytes, by_document=True)
        batches = document_batches(self.tokens, self.s.eval_batch_seqs)
        for documents in batches[ranks.rank :: ranks.world_size]:
            for _ in self.score_and_adapt(model, ledger, documents):
                done = ledger.scored.float().mean().item() * ranks.world_size
                log.progress(name, done, began)
        ranks.all_reduce_(ledger.nats)
        ranks.all_reduce_(ledger.scored)
        return ledger.close(name, began)

    def score_and_adapt(self, model: GPT, ledger: Ledger, documents: Tensor) -> Iterator[None]:
        """Scores documents int64 [S,2], (start, stop), side by side, and adapts in between.

        In each turn the next DOCUMENT_TOKENS of every document are scored, then learned from. The
        inputs are padded to a static width, and the batch to EVAL_BATCH_SEQS documents: four
        graphs.
        """
        size = self.s.document_tokens
        length = len(self.offsets)
        rows = self.s.eval_batch_seqs if is_compiled(self.s) else len(documents)
        real = torch.arange(rows, device=ranks.device)[:, None] < len(documents)
        start, stop = pad_rows(documents, rows).T[..., None]
        longest = int((stop - start).max())
        widths = [length // 8, length // 4, length // 2, length]

        with document_adapters(model, rows, self.s) as optimizer:
            for low in range(0, longest, size):
                end = (start + low + size).minimum(stop)  # [rows,1]: behind what the turn scores
                needed = min(low + size, length)
                width = widths[bisect.bisect_left(widths, needed)]
                first = low + size - needed
                inside = (start + first + self.offsets[:width]).minimum(end - 1)
                positions = start + low + self.offsets[:size]
                scored = (positions < end) & real
                positions = positions.minimum(end - 1)

                logits = model(self.tokens[inside], at=low - first + self.offsets[:size])
                ledger.record(positions[scored], ledger.nll(positions, logits)[scored])
                if low + size < longest:
                    _, targets = ledger.scored_tokens(positions)
                    optimizer.zero_grad()  # what a document that has ended learns is never used
                    nats_of(logits, targets).mean(dim=1).sum().backward()
                    optimizer.step()
                yield


# ---- Training ------------------------------------------------------------------------------------

RECURRENCE_START = 0.35  # part of the training after which the recurrent span recurs (1445)
LENGTH_SETTINGS = (  # a resumed run may be longer or shorter
    "iterations",
    "max_wallclock_seconds",
    "warmdown_iters",
    "warmdown_fraction",
    "warmup_steps",
)
LOWER = "Lower the learning rates."


class TrainState:
    """All that changes while a model trains, and that a checkpoint therefore holds."""

    def __init__(self, model: GPT, s: Settings, tokenizer: str = "", shards: dict | None = None):
        """tokenizer is the SHA-256 of what cut the training data into tokens, shards the
        TokenStream.statement() of them."""
        self.model = model
        self.ema = copy.deepcopy(model)
        self.grads = flatten_grads(model)  # at its end the loss
        self.optimizers = build_optimizers(model, s)
        self.step = 0
        self.seconds = 0.0  # of training
        self.reserved = 0.0  # seconds of the cap that are kept for calibration
        self.tokenizer = tokenizer
        self.shards = shards or {}
        self.saved = None  # the last checkpoint's path

    def parts(self) -> dict[str, Any]:
        optimizers = {f"optimizer{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return dict(model=self.model, ema=self.ema, **optimizers)

    def state(self) -> dict[str, Any]:
        """What a training resumes from; its tensors are the live ones."""
        parts = {name: part.state_dict() for name, part in self.parts().items()}
        names = ("step", "seconds", "reserved", "tokenizer", "shards")
        return {name: getattr(self, name) for name in names} | parts

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("step", "seconds", "reserved"):
            setattr(self, name, state[name])
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def save(self, folder: Path, s: Settings) -> None:
        """Writes STEP.pt and keeps the one before it; UserError if the weights are not finite.

        Later steps' are of a training that was resumed from an earlier one, and go. The file's last
        32 bytes are the SHA-256 of those before.
        """
        if not all(p.isfinite().all() for p in self.ema.parameters()):
            raise UserError(f"After step {self.step} the weights are not finite. {LOWER}")
        buffer = io.BytesIO()
        torch.save(dict(settings=dataclasses.asdict(s), **self.state()), buffer)
        data = buffer.getvalue()
        path = folder / f"{self.step:08d}.pt"
        write_atomically(path, data + hashlib.sha256(data).digest())

        self.saved = path
        paths = list_checkpoints(folder)
        at = paths.index(path)
        for other in paths[: max(0, at - 1)] + paths[at + 1 :]:
            other.unlink()

    def load(self, path: Path, s: Settings) -> list[str]:
        """Resumes a checkpoint; UserError if it is damaged, or of another configuration or data.

        Returns the names of the shards that it did not have, behind those that it has read.
        """
        data = path.read_bytes()
        try:
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                raise ValueError
            state = torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
            for name in TRAINED_WITH:
                own = getattr(s, name)
                saved = state["settings"].get(name)
                if name not in LENGTH_SETTINGS and saved != own:
                    raise UserError(f"{name.upper()}={own}, but RESUME={path} has {saved}.")
            added = self.check_data(state, path, s)
            self.restore(state)
        except UserError:
            raise
        except Exception:  # of many kinds: whoever wrote the file could sum it up, too
            raise UserError(f"RESUME={path} is not a whole checkpoint of this script.") from None
        self.saved = path
        return added

    def check_data(self, state: dict[str, Any], path: Path, s: Settings) -> list[str]:
        """The added shards; UserError if the training would not go on in the data that it had."""
        if self.tokenizer != state["tokenizer"]:
            raise UserError(
                f"TOKENIZER_PATH={s.tokenizer_path} is not what RESUME={path} was trained with."
            )
        before = state["shards"]
        for name, statement in before.items():
            if self.shards.get(name) != statement:
                raise UserError(
                    f"DATA_PATH={s.data_path} lacks the {name} that RESUME={path} was trained on."
                )
        added = [name for name in self.shards if name not in before]
        total = sum(tokens for tokens, _ in before.values())
        in_order = list(self.shards)[: len(before)] == list(before) and s.loader == "sequential"
        if added and not (in_order and state["step"] * s.train_batch_tokens < total):
            raise UserError(
                f"DATA_PATH={s.data_path} has {added[0]}, without which RESUME={path} was trained: "
                "it would go on elsewhere in the data."
            )
        return added


def list_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, by their steps."""
    name = re.compile(r"[0-9]{8}\.pt|[1-9][0-9]{8,18}\.pt")
    paths = [path for path in folder.glob("*.pt") if name.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.stem))


def find_checkpoint(s: Settings) -> Path:
    """The file that RESUME means; UserError if there is none. The latest is that of the last step,
    of the run that has written last."""
    path = Path(s.resume)
    if s.resume == "latest":
        runs = filter(None, map(list_checkpoints, Path("checkpoints").glob(s.run_id or "*")))
        latest = max(runs, key=lambda run: max(map(os.path.getmtime, run)), default=[path])
        path = latest[-1]
    if not path.is_file():
        raise UserError(f"RESUME={s.resume}: there is no such checkpoint.")
    return path


def time_limit(state: TrainState, s: Settings) -> float:
    """Seconds in which steps are made."""
    return max(1e-9, (s.max_wallclock_seconds or math.inf) - state.reserved)


def progress(state: TrainState, s: Settings) -> float:
    """The part of the training that is done, by steps or by time, whichever is further: 1 or more
    at its end."""
    by_steps = state.step / s.iterations if s.iterations else 1.0
    return max(by_steps, state.seconds / time_limit(state, s))


def lr_scale(state: TrainState, s: Settings) -> float:
    """Scale of all learning rates: 1, then linearly to WARMDOWN_FLOOR at the training's end.

    Under the wall-clock cap the steps left are estimated from the mean step time.
    """
    steps_left = s.iterations - state.step
    if state.step > 4:
        seconds_left = time_limit(state, s) - state.seconds
        steps_left = min(steps_left, state.step * seconds_left / state.seconds)
    left = steps_left / max(s.warmdown_iters, 1)
    if s.warmdown_fraction:
        left = (1 - progress(state, s)) / s.warmdown_fraction
    return s.warmdown_floor + (1 - s.warmdown_floor) * max(0.0, min(1.0, left))


@contextlib.contextmanager
def fake_quantize(matrices: list[Tensor]) -> Iterator[None]:
    """Within it, each row of the matrices is rounded to 63 levels.

    The gradient passes straight through to the exact weights (arXiv 1308.3432), which are back
    afterwards.
    """
    exact = [w.detach().clone() for w in matrices]
    for w in matrices:
        scale = w.data.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 31
        w.data.div_(scale).round_().mul_(scale)
    try:
        yield
    finally:
        for w, before in zip(matrices, exact, strict=True):
            w.data.copy_(before)


class Clock:
    """Seconds of training. It runs except while paused, and waits for the GPU before it pauses: the
    steps in its queue are training."""

    def __init__(self, seconds: float):
        self.began = time.monotonic() - seconds

    def seconds(self) -> float:
        return time.monotonic() - self.began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        stopped = time.monotonic()
        yield
        self.began += time.monotonic() - stopped


class StopRequest:
    """Ctrl-C and SIGTERM from now on.

    The first asks the training to stop after its step. One that comes more than a second later
    (torchrun passes each on twice), or any once `at_once` is set, raises KeyboardInterrupt.
    """

    REPEATED_SECONDS = 1.0

    def __init__(self):
        self.requested = False
        self.at_once = False
        self.first = math.inf  # when it was requested
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.at_once or now > self.first + self.REPEATED_SECONDS:
            raise KeyboardInterrupt
        self.first = min(self.first, now)
        self.requested = True


def train_step(state: TrainState, batches: Iterator[Batch], quantized: list, s: Settings) -> None:
    """One update of the weights and their EMA. Nothing in it waits for a GPU."""
    params = list(state.model.parameters())
    state.grads.zero_()
    with fake_quantize(quantized):
        for inputs, targets in batches:
            part = inputs.numel() / s.train_batch_tokens
            loss = state.model(inputs, targets).mean() * part
            accumulate_grads(loss, params)
            state.grads[-1] += loss.detach()
    ranks.all_reduce_(state.grads)

    if s.grad_clip_norm:
        nn.utils.clip_grad_norm_(params, s.grad_clip_norm)
    for optimizer in state.optimizers:
        optimizer.step()
    decay = s.ema_decay if state.step > 0 else 0.0  # it starts with the first step's weights
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), params, 1 - decay)
    state.step += 1


def train(state: TrainState, stream: TokenStream, evaluator: Evaluator) -> None:
    """Trains until the last step or the wall-clock cap; UserError if it was asked to stop.

    The last step is always followed by a checkpoint, so that what comes after can be repeated.
    """
    s = evaluator.s
    named = state.model.blocks.named_parameters(prefix="blocks")
    matrices = [p for name, p in named if role_of(name).group == "matrix"]
    finished = torch.cuda.Event() if ranks.device.type == "cuda" else None
    stop = StopRequest()
    clock = Clock(state.seconds)
    saved_at = time.monotonic()

    while progress(state, s) < 1:
        scale = lr_scale(state, s)
        set_lr_scale(state.optimizers, scale)
        warm = min(1.0, state.step / max(s.muon_momentum_warmup_steps, 1))
        start = s.muon_momentum_warmup_start
        for group in state.optimizers[0].param_groups:
            group["momentum"] = start + warm * (s.muon_momentum - start)
        state.model.set_recurrence(progress(state, s) >= RECURRENCE_START)

        batches = train_batches(stream, state.step, s)
        late = scale < s.late_qat_threshold
        train_step(state, batches, matrices if late else [], s)
        if finished:  # the GPU always has work queued, and never more than a step
            finished.synchronize()
            finished.record()

        state.seconds, stopping = ranks.broadcast_objects(clock.seconds(), stop.requested)
        step = f"step:{state.step}/{s.iterations}"
        train_time = f"train_time:{1000 * state.seconds:.0f}ms"
        done = progress(state, s)
        log.progress("training", done, clock.began)
        if state.step <= 5 or state.step % s.train_log_every == 0 or done >= 1:
            loss = state.grads[-1].item()
            if not math.isfinite(loss):
                raise UserError(f"At step {state.step} the loss is {loss}. {LOWER}")
            pace = f"step_avg:{1000 * state.seconds / state.step:.2f}ms"
            log(f"{step} train_loss:{loss:.4f} {train_time} {pace}")
        if s.val_loss_every and state.step % s.val_loss_every == 0:
            with clock.paused():
                score = evaluator.score(state.model, "validation", s.train_seq_len)
            log(f"{step} {score} {train_time}")
        if stopping or 0 < s.checkpoint_every <= time.monotonic() - saved_at:
            with clock.paused():
                save_checkpoint(state, s)
            saved_at = time.monotonic()
        if stopping:
            raise UserError(f"Stopped at step {state.step}.")
        if done >= 1 and state.step < s.iterations:
            log(f"stopping_early: wallclock_cap {train_time} {step}")

    log(f"train_tokens:{state.step * s.train_batch_tokens} of {stream.total} in the shards")
    save_checkpoint(state, s)
    stop.at_once = True


def save_checkpoint(state: TrainState, s: Settings) -> None:
    """By rank 0; if it cannot be written, the run continues without it."""
    if ranks.rank == 0:
        try:
            state.save(Path("checkpoints", log.run_id), s)
            log(f"checkpoint: {state.saved}", console=False)
        except OSError as error:
            log(f"warning: no checkpoint at step {state.step}: {user_message(error)}")


# ---- Main ----------------------------------------------------------------------------------------

CPU_SPEED = 1e12  # weights times tokens that two usual cores train on in a minute
# Settings that may differ between runs of one system.
PER_RUN = ("preset", "run_id", "seed", "artifact_path", "checkpoint_every", "resume")


def start_log(source: bytes, model: GPT, s: Settings, checkpoint: Path | None) -> None:
    """Opens the log of RUN_ID, or of the resumed run, or named by rank 0's date, time and process,
    and writes the source, so that it can be rerun, then versions, machine and settings.

    UserError if a file of the run could not be written, or if the resumed log begins with another
    source: its score would be of neither.
    """
    (new,) = ranks.broadcast_objects(f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}")
    resumed = checkpoint.resolve().parent.name if checkpoint else ""
    run_id = s.run_id or resumed or new
    params = sum(p.numel() for p in model.parameters())
    if ranks.rank == 0:
        path = Path(s.artifact_path)
        if path.exists() and not path.is_file():
            raise UserError(f"ARTIFACT_PATH={path} is a folder or a device.")
        try:
            embedded = f"{source.decode()}\n{'=' * 80}"
        except UnicodeDecodeError:
            raise UserError(f"{__file__} is not UTF-8, as its log has to be.") from None
        probe = path.with_name(f"{path.name}.probe")
        write_atomically(probe, b"")
        probe.unlink()
        checkpoint_bytes = 16 * params  # at most: weights, EMA, and two moments of each weight
        artifact_bytes = min(4 * params, s.size_cap_bytes)
        files = [(Path("checkpoints", run_id), checkpoint_bytes)] * (1 if checkpoint else 3)
        files += [(Path("logs", f"{run_id}.pcll"), artifact_bytes), (path, artifact_bytes)]
        require_room([(path, size) for path, size in files if size])
        log.open(run_id, run_id == resumed)
        before = Path(log.file.name).read_bytes()
        if before and not before.startswith(source):
            raise UserError(f"{log.file.name} begins with another script: set a new RUN_ID.")
        if not before:
            log(embedded, console=False)

    versions = [f"{module.__name__} {module.__version__}" for module in (torch, np, zstandard)]
    gpu = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "none"
    log(f"python {sys.version.split()[0]} {' '.join(versions)} GPU {gpu}")
    usual = vars(Settings()) | PRESETS[s.preset]
    changed = []
    for name, value in vars(s).items():
        value = int(value) if isinstance(value, bool) else value  # as it is set: 0 or 1
        log(f"{name}:{value}", console=False)
        if name not in PER_RUN and value != usual[name]:
            changed.append(f"{name.upper()}={value}")
    log(f"changed:{' '.join(changed)}")
    log(
        f"preset:{s.preset} world_size:{ranks.world_size} device:{ranks.device.type} "
        f"dtype:{model.dtype} seed:{s.seed} model_params:{params}"
    )
    minutes = params * s.train_batch_tokens / ranks.world_size / CPU_SPEED
    if ranks.device.type == "cpu" and minutes > 0.5:
        log(
            f"warning: without a GPU a step takes about {minutes:.0f} minutes. PRESET=demo is made "
            "for a CPU; a lower TRAIN_BATCH_TOKENS makes shorter steps."
        )


def warm_up(state: TrainState, stream: TokenStream, evaluator: Evaluator) -> None:
    """Primes training, evaluation and calibration before their clocks start, and measures the
    calibration; what the steps did is undone."""
    s = evaluator.s
    began = time.monotonic()
    log.console("warming up")
    before = copy.deepcopy(state.state())
    set_lr_scale(state.optimizers, 1.0)
    for step in range(s.warmup_steps):
        state.model.set_recurrence(step % 2 == 1)
        train_step(state, train_batches(stream, step, s), [], s)
    state.model.set_recurrence(True)
    if is_compiled(s):  # one batch each of scoring and of adaptation
        length = s.train_seq_len
        high = length + s.eval_batch_seqs * ranks.world_size * s.eval_stride
        high = min(high, len(evaluator.token_bytes))
        ledger = Ledger(evaluator.tokens, evaluator.token_bytes)
        evaluator.window_nats(state.model, ledger, 0, high, s.eval_stride)
        if s.ttt_protocol == "per_document":  # a document of train_seq_len passes all its graphs
            ledger = Ledger(evaluator.tokens, evaluator.token_bytes, by_document=True)
            document = torch.tensor([[0, min(length, len(evaluator.token_bytes))]])
            for _ in evaluator.score_and_adapt(state.model, ledger, document.to(ranks.device)):
                pass
        elif s.ttt_protocol != "off":
            trainer = TestTimeTrainer(state.model, state.grads[:-1], s)
            tokens = evaluator.tokens.new_zeros(s.ttt_batch_seqs * length)
            trainer.learn(tokens, tokens.clone(), 0.0, epochs=1)
    state.restore(before)

    if state.step == 0 and s.max_wallclock_seconds and s.codec == "trellis":
        for tokens in (s.train_seq_len * ranks.world_size, s.calibration_tokens):
            calibration_began = time.monotonic()  # of the second one: the first primes it
            calibrate(state.model, stream, replace(s, calibration_tokens=tokens))
        (state.reserved,) = ranks.broadcast_objects(time.monotonic() - calibration_began)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    log(
        f"warm-up and compilation: {time.monotonic() - began:.1f} s, {graphs} graphs, not counted "
        f"as training; {state.reserved:.1f} s of the cap are kept for calibration"
    )


BEFORE = "before export, plain"
PLAIN = "after export, plain"
SLIDING = "after export, sliding window"
ADAPTED = "after score-first adaptation, sliding window"
PER_DOCUMENT = "after adaptation per document"
FINAL_LINES = {
    SLIDING: "final_pcll_sliding_exact",
    ADAPTED: "final_pcll_ttt_exact",
    PER_DOCUMENT: "final_pcll_ttt_exact",
}


def evaluate(state: TrainState, artifact: bytes, evaluator: Evaluator) -> dict[str, Score]:
    """The scores of the artifact's weights by name.

    The first one is the headline, which stands for the run; those after it are diagnostics. A
    legal adaptation that diverged has no score.
    """
    s = evaluator.s
    model = state.model
    began = time.monotonic()
    weights = {name: torch.from_numpy(w) for name, w in decode_pcll(artifact).items()}
    model.load_state_dict(weights)
    scores = {}
    if s.ttt_protocol == "score_first":
        trainer = TestTimeTrainer(model, state.grads[:-1], s)
        scores[ADAPTED] = evaluator.score(model, ADAPTED, s.eval_stride, trainer)
        model.load_state_dict(weights)
    if s.ttt_protocol == "per_document":
        scores[PER_DOCUMENT] = evaluator.score_documents(model, PER_DOCUMENT)
    scores = {name: score for name, score in scores.items() if math.isfinite(score.val_bpb)}
    if not scores:
        scores[SLIDING] = evaluator.score(model, SLIDING, s.eval_stride)
    for name, score in scores.items():
        log(f"{FINAL_LINES[name]} {score}")
    log(f"eval_total_time:{1000 * (time.monotonic() - began):.0f}ms")

    scores[PLAIN] = evaluator.score(model, PLAIN, s.train_seq_len)
    if SLIDING not in scores:
        scores[SLIDING] = evaluator.score(model, SLIDING, s.eval_stride)
    if s.ttt_protocol == "train_then_score":  # what entry 532 did: nothing comes from a ledger
        trainer = TestTimeTrainer(model, state.grads[:-1], s)
        tokens = evaluator.tokens
        for epoch in range(s.ttt_epochs):
            log(f"{NOT_LEGAL}: epoch {epoch + 1} of {s.ttt_epochs}")
            trainer.learn(tokens[:-1], tokens[1:], epoch / s.ttt_epochs, epochs=1)
        scores[NOT_LEGAL] = evaluator.score(model, NOT_LEGAL, s.eval_stride)
        log(f"{NOT_LEGAL} train_then_score {scores[NOT_LEGAL]}")
    return scores


def log_end(scores: dict[str, Score], s: Settings) -> None:
    """A short table, the line to quote, and what to type next; the headline is the first score."""
    headline = next(iter(scores))
    for name, score in scores.items():
        note = "" if name == headline else " diagnostic"
        log(f"  {name:<44} {score.val_bpb:8.4f} bpb {score.seconds:8.1f} s{note}")
    log(f"headline: {FINAL_LINES[headline]} {scores[headline]}")

    paths = (s.artifact_path, s.data_path, s.tokenizer_path)
    artifact, data, tokenizer = (f"./{x}" if x.startswith("-") else x for x in paths)
    words = [artifact, "--data", data, "--tokenizer", tokenizer]
    words += ["--claim", f"{scores[headline].val_bpb:.6f}"]
    if headline != SLIDING:
        words.append("--ttt")
    log(f"Check it: python verify.py {shlex.join(words)}")


def run(s: Settings) -> None:
    """Reads the data, then trains, exports and scores."""
    source = Path(__file__).read_bytes()
    checkpoint = find_checkpoint(s) if s.resume else None
    paths = dict(data_path=s.data_path, tokenizer_path=s.tokenizer_path)
    if s.preset == "demo" and PRESETS["demo"].items() >= paths.items() and ranks.rank == 0:
        make_demo_data(s)
    ranks.broadcast_objects(None)  # all wait for it
    counter = ByteCounter(s.tokenizer_path, s.vocab_size)
    evaluator = Evaluator(*read_validation(counter, s), s)
    stream = TokenStream(s, "train")
    torch.manual_seed(s.seed)
    model = GPT(s, getattr(torch, s.dtype)).to(ranks.device)
    state = TrainState(model, s, counter.sha256, stream.statement())
    added = state.load(checkpoint, s) if checkpoint else []

    start_log(source, model, s, checkpoint)
    name = Path(s.data_path).name
    log(f"train_loader:dataset:{name} train_shards:{len(stream.shards)} tokens:{stream.total}")
    attention = choose_attention()
    log(f"attention by {attention} kernel")
    compile_model(model, s)
    warm_up(state, stream, evaluator)
    if checkpoint:
        log(f"resumed from {checkpoint} at step {state.step}")
    if added:
        log(f"added to the training data: {', '.join(added)}")
    try:
        train(state, stream, evaluator)
        finish(state, stream, evaluator, counter.sha256, len(source))
    except BaseException as error:  # also a Ctrl-C
        if state.saved:
            path = shlex.quote(str(state.saved))
            error.add_note(f" To continue: RESUME={path}, all else the same.")
        raise
    if ranks.world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def finish(
    state: TrainState, stream: TokenStream, evaluator: Evaluator, tokenizer: str, code_bytes: int
) -> None:
    """Exports the EMA weights and scores the artifact; tokenizer is its SHA-256."""
    s = evaluator.s
    model = state.model
    model.set_recurrence(True)
    model.load_state_dict(state.ema.state_dict())
    before = evaluator.score(model, BEFORE, s.train_seq_len)
    if not math.isfinite(before.val_bpb):
        raise UserError(f"The trained weights have no finite score. {LOWER}")

    began = time.monotonic()
    moments = calibrate(model, stream, s) if s.codec == "trellis" else {}
    seconds = time.monotonic() - began
    log(f"calibration_time:{1000 * seconds:.0f}ms")
    total = state.seconds + seconds
    if 0 < s.max_wallclock_seconds < total:
        log(
            f"warning: training and calibration took {total:.1f} s, more than "
            f"MAX_WALLCLOCK_SECONDS={s.max_wallclock_seconds:g}."
        )
    config = {name: getattr(s, name) for name in STATED if name != "skips"} | dict(
        unet_skips=s.skips != "off",
        skip_gates=s.skips == "gated",
        logit_softcap=LOGIT_SOFTCAP,
        ttt_optimizer="adamw" if s.ttt_protocol == "train_then_score" else "sgd",
        ttt_grad_clip=TTT_GRAD_CLIP,
        tokenizer_sha256=tokenizer,
    )
    weights = {name: w.cpu().numpy() for name, w in model.state_dict().items()}
    artifact = export(weights, moments, config, s, code_bytes)
    own = Path("logs", f"{log.run_id}.pcll")
    lost = []
    for path in (own, Path(s.artifact_path)) if ranks.rank == 0 else ():
        try:
            write_atomically(path, artifact)
        except OSError as error:
            lost.append(user_message(error))
            log(f"warning: {lost[-1]} The artifact is scored from memory.")
    total = code_bytes + len(artifact)
    log(
        f"artifact_sha256:{hashlib.sha256(artifact).hexdigest()} {own}\n"
        f"Code size: {code_bytes} bytes\n"
        f"Serialized model pcll: {len(artifact)} bytes\n"
        f"Total submission size pcll: {total} bytes, {s.size_cap_bytes - total} below the cap"
    )

    scores = evaluate(state, artifact, evaluator)
    log_end(scores | {BEFORE: before}, s)
    (lost,) = ranks.broadcast_objects(lost)
    if lost:
        score = next(iter(scores.values())).val_bpb
        raise UserError(f"{' '.join(lost)} The artifact in memory scored val_bpb:{score:.8f}.")
    if s.ttt_protocol in ("score_first", "per_document") and next(iter(scores)) == SLIDING:
        raise UserError("The adaptation diverged and has no score: lower TTT_LR or DOCUMENT_LR.")


def user_message(error: BaseException) -> str:
    """One sentence for the user; raises an error that is a fault of this script."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            "The memory is full: lower MICRO_BATCH_SEQS (training), EVAL_BATCH_SEQS or "
            "TTT_BATCH_SEQS."
        )
    if isinstance(error, getattr(dist, "DistError", ())) or "gloo" in text:
        return f"The ranks lost touch: {text} If another rank has ended, its own output says why."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'A file could not be written'}: {error.strerror}."
    if isinstance(error, OSError | ImportError | UserError | KeyboardInterrupt):
        return text or "Stopped."
    raise error


def usage() -> str:
    """What --help prints: how to run, the presets, and every setting with its range."""
    lines = [(__doc__ or "").partition("The entry")[0], f"Presets: {', '.join(PRESETS)}"]
    for name, member in FIELDS.items():
        default = int(member.default) if member.type is bool else member.default
        about = "      {text} ({allowed})".format(**member.metadata)
        lines += [f"\n  {name}={default}", about]
    return "\n".join(lines)


def main() -> int:
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h"}.intersection(arguments):
            print(usage(), flush=True)
            return 0
        if arguments:
            raise UserError(
                f"{arguments[0]} is no argument: settings are environment variables, as in "
                "PRESET=demo python train_gpt.py; --help lists them."
            )
        s = load_settings(dict(os.environ))
        ranks.init()
        run(s)
    except (UserError, OSError, ImportError, RuntimeError, KeyboardInterrupt) as error:
        print(user_message(error), *getattr(error, "__notes__", ()), sep="", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
