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
    optimizer   NorMuon for matrices (arXiv 2510.05491), AdamW for the rest, weight average (532)
    codec       trellis-coded quantisation with error feedback, steps by Fisher information,
                interleaved rANS (ours); or k-means codebooks and canonical Huffman codes (532)
    evaluation  a ledger: each token is scored once, before anything learns from it (ours);
                sliding window, then test-time training on what is scored (549); or low-rank
                matrices that each document learns for itself (1530)

In this order: settings, roles of the parameters, ranks and log, data, model, optimizer, codec,
export, evaluation, training, main.
"""

import ast
import bisect
import contextlib
import copy
import dataclasses
import difflib
import fcntl
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
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
import torch.nn.functional as F
import zstandard
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# ---- Settings ------------------------------------------------------------------------------------
# Each field below is set by the environment variable of its upper-case name. The artifact states
# those of the model and after; a checkpoint is resumed only with the same model and training.


class UserError(Exception):
    """Something that the person who started the run can mend; its text is the sentence they see."""


def setting(
    default: Any,
    text: str,
    source: str,
    low: float = 0,
    high: float = math.inf,
    choices: tuple = (),
) -> Any:
    """A field of the settings: its default and what it is.

    source is where the default comes from: the number of an entry, "base" for the challenge's
    baseline script, "challenge" for its rules, or "ours". low and high are the least and the
    greatest value of a number, choices the only values of a field that has them.
    """
    metadata = dict(text=text, source=source, low=low, high=high, choices=choices)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Run:
    """Where things lie and how the work is done; nothing of it changes what is computed."""

    preset: str = setting(
        "pcll",
        "a named set of settings",
        "ours",
        choices=("pcll", "frontier", "pcloadloveletter_v6", "demo"),
    )
    run_id: str = setting(
        "", "name of the log logs/RUN_ID.txt; empty: date, time and process", "base"
    )
    allow_unknown: str = setting(
        "", "variables, with commas, that may be close to a setting's name", "ours"
    )
    device: str = setting(
        "auto", "auto: the GPU if there is one", "ours", choices=("auto", "cuda", "cpu")
    )
    compile: str = setting(
        "auto", "torch.compile; auto: on a GPU", "532", choices=("auto", "0", "1")
    )
    artifact_path: str = setting("artifact.pcll", "where the artifact is written", "ours")
    data_path: str = setting(
        "data/datasets/fineweb10B_sp1024",
        "folder of fineweb_train_*.bin and fineweb_val_*.bin",
        "base",
    )
    tokenizer_path: str = setting(
        "data/tokenizers/fineweb_1024_bpe.model", "SentencePiece model", "base"
    )
    micro_batch_seqs: int = setting(
        48,
        "sequences per forward pass of one rank at most: lower it if memory runs out",
        "base",
        low=1,
    )
    train_log_every: int = setting(50, "steps between lines of the log", "base", low=1)
    val_loss_every: int = setting(0, "steps between plain validations, 0: at the end only", "base")
    checkpoint_every: float = setting(
        60.0, "seconds between checkpoints, 0: none but the last", "ours"
    )
    resume: str = setting(
        "", 'a checkpoint to go on from, or "latest" (of RUN_ID, if that is set)', "ours"
    )


@dataclass(frozen=True)
class Model:
    """What rebuilds the network."""

    vocab_size: int = setting(1024, "pieces", "base", low=1, high=65_536)
    num_layers: int = setting(11, "blocks", "532", low=1, high=256)
    model_dim: int = setting(512, "width of the residual stream", "532", low=1, high=65_536)
    num_heads: int = setting(8, "query heads", "532", low=1, high=65_536)
    num_kv_heads: int = setting(
        4,
        "key/value heads, each serves num_heads/num_kv_heads query heads",
        "532",
        low=1,
        high=65_536,
    )
    mlp_hidden: int = setting(1500, "width inside the MLP", "532", low=1, high=65_536)
    mlp_negative_slope: float = setting(
        0.5, "of the leaky ReLU that is then squared (0: plain ReLU squared)", "532", high=10
    )
    train_seq_len: int = setting(
        2048, "tokens per sequence, also the window of the evaluation", "532", low=1, high=65_536
    )
    rope_dims: int = setting(
        16, "leading dimensions of each head that rotate", "532", low=1, high=65_536
    )
    rope_base: float = setting(50000.0, "base of the rotary wavelengths", "532", low=1, high=1e9)
    qk_gain_init: float = setting(1.5, "initial gain of each query head", "532", high=1e6)
    logit_softcap: float = setting(30.0, "c in c * tanh(logit / c)", "base", low=1e-3, high=1e6)
    xsa_last_n: int = setting(4, "last layers with exclusive self-attention", "532", high=256)
    parallel_last_n: int = setting(
        0, "last layers whose attention and MLP read the same input", "1412", high=256
    )
    loop_first: int = setting(
        0, "first block of those that are passed several times", "1204", high=255
    )
    loop_last: int = setting(0, "last block of those", "1204", high=255)
    loop_passes: int = setting(1, "how often they are passed", "1204", low=1, high=16)
    bigram_buckets: int = setting(2048, "rows of the bigram hash table, 0: none", "532", high=2**24)
    bigram_dim: int = setting(128, "width of the bigram hash table", "532", low=1, high=2**24)
    bigram_init_std: float = setting(
        0.02,
        "of the table; 0 as in 532 never learns, as the projection, too, starts at 0",
        "ours",
        high=1e6,
    )
    ln_scale: bool = setting(True, "normed inputs of layer i are scaled by 1/sqrt(i+1)", "532")
    smear_gate: bool = setting(True, "each position mixes in the one before", "532")
    smear_dims: int = setting(
        0, "leading channels that say how much (0: as much everywhere)", "1787", high=65_536
    )
    value_residual: bool = setting(
        True, "layers mix in the first layer's values (arXiv 2410.17897)", "532"
    )
    gated_attention: bool = setting(True, "a sigmoid gate per head (arXiv 2505.06708)", "532")
    gate_dims: int = setting(
        0, "leading channels that the gate reads, 0: all of them", "1970", high=65_536
    )
    unet_skips: bool = setting(
        True, "the first half's outputs are added in the second half", "base"
    )
    skip_gates: bool = setting(False, "a sigmoid gate by channel between stream and skip", "1218")
    bos_reset: bool = setting(
        True, "smear gate and bigram hash do not look across a BOS (532 looked across)", "ours"
    )


@dataclass(frozen=True)
class Training:
    """What the weights depend on, besides the data and the network."""

    seed: int = setting(1337, "seeds the initial weights", "base", high=2**63 - 1)
    dtype: str = setting("bfloat16", "of activations", "532", choices=("bfloat16", "float32"))
    iterations: int = setting(20000, "optimizer steps at most", "base")
    max_wallclock_seconds: float = setting(600.0, "training time at most, 0: no limit", "base")
    train_batch_tokens: int = setting(786432, "tokens per step over all ranks", "532", low=1)
    warmup_steps: int = setting(20, "steps that prime the compiler and are then undone", "base")
    warmdown_iters: int = setting(
        3000, "last steps, over which the learning rates fall linearly to 0", "532"
    )
    warmdown_fraction: float = setting(
        0.0, "last part of the training in place of WARMDOWN_ITERS, 0: none", "1394", high=1
    )
    warmdown_floor: float = setting(0.0, "scale of the rates at the end", "532", high=1)
    matrix_optimizer: str = setting(
        "normuon", "of the blocks' matrices", "532", choices=("normuon", "muon_rows", "adamw")
    )
    matrix_lr: float = setting(0.03, "learning rate of the matrices", "532")
    embed_lr: float = setting(0.04, "learning rate of the embeddings", "532")
    scalar_lr: float = setting(0.02, "learning rate of vectors and scalars", "532")
    muon_momentum: float = setting(0.99, "momentum after its warm-up", "532", high=0.9999)
    muon_momentum_warmup_start: float = setting(0.92, "momentum at step 0", "532", high=0.9999)
    muon_momentum_warmup_steps: int = setting(1500, "steps of the momentum's linear warm-up", "532")
    weight_decay: float = setting(
        0.04, "of the matrices: decoupled, in units of the learning rate", "532"
    )
    embed_weight_decay: float = setting(0.0, "of the embeddings", "532")
    scalar_weight_decay: float = setting(0.0, "of vectors and scalars", "532")
    grad_clip_norm: float = setting(0.3, "global norm of the gradient at most, 0: no limit", "532")
    adam_beta2: float = setting(0.95, "of AdamW's second moment", "532", high=0.99999)
    loop_from: float = setting(
        0.35, "part of the training after which LOOP_PASSES holds; once before", "1445", high=1
    )
    loader: str = setting(
        "sequential",
        "random: sequences from anywhere in the shards",
        "base",
        choices=("sequential", "random"),
    )
    ema_decay: float = setting(
        0.997,
        "of the averaged weights that are exported, 0: the last weights; 0.97 at 200 steps",
        "532",
        high=0.99999,
    )
    late_qat_threshold: float = setting(
        0.1, "int6 fake quantisation once the rate's scale is below this, 0: never", "532"
    )
    late_qat_min_elements: int = setting(
        65536, "matrices with more elements are fake-quantised", "532"
    )


@dataclass(frozen=True)
class Export:
    """How the weights become a file."""

    calibration_tokens: int = setting(
        131072, "training tokens that show which weights' errors matter (trellis)", "ours", low=1
    )
    calibration_seconds: float = setting(3.0, "of the cap that are kept for this", "ours")
    quantisation_nats: float = setting(
        0.0005, "what quantisation may cost by that measure; FIT changes it", "ours", low=1e-12
    )
    codec: str = setting(
        "trellis", "of the matrices (huffman: 532)", "ours", choices=("huffman", "trellis")
    )
    embed_codec: str = setting(
        "trellis",
        "of tok_emb (532: float16)",
        "ours",
        choices=("float16", "float32", "huffman", "trellis"),
    )
    mlp_levels: int = setting(
        48, "codebook levels (huffman) of the MLP matrices", "532", low=2, high=255
    )
    qkv_levels: int = setting(
        80, "codebook levels of the query, key and value matrices", "532", low=2, high=255
    )
    other_levels: int = setting(64, "codebook levels of all other matrices", "532", low=2, high=255)
    trellis_states: int = setting(
        32, "of the trellis quantiser", "ours", choices=(4, 8, 16, 32, 64, 128, 256)
    )
    fit: str = setting(
        "shrink",
        "shrink: coarsen if over the cap; fill: refine, too",
        "ours",
        choices=("shrink", "fill", "off"),
    )
    size_cap_bytes: int = setting(16_000_000, "code plus artifact at most", "challenge")


@dataclass(frozen=True)
class Evaluation:
    """How the artifact is scored."""

    eval_stride: int = setting(
        32, "tokens by which the sliding window moves", "532", low=1, high=65_536
    )
    eval_batch_seqs: int = setting(64, "windows per forward pass of one rank", "532", low=1)
    eval_seconds: float = setting(
        600.0, "after the headline, what would end later is left out; 0: no limit", "challenge"
    )
    ttt_protocol: str = setting(
        "score_first",
        "the last is not legal",
        "549",
        choices=("off", "score_first", "per_document", "train_then_score"),
    )
    ttt_chunk_tokens: int = setting(
        32768, "tokens scored, then learned from, at a time", "549", low=1, high=2**31
    )
    ttt_epochs: int = setting(
        3, "passes over a chunk (train_then_score: over everything)", "549", high=2**24
    )
    ttt_optimizer: str = setting(
        "sgd",
        "sgd: momentum 0.9 (adamw: 532, with a rate of 0.00005)",
        "549",
        choices=("adamw", "sgd"),
    )
    ttt_lr: float = setting(
        0.002, "learning rate at the first chunk, falls as a cosine", "549", high=1000
    )
    ttt_batch_seqs: int = setting(
        16, "sequences per adaptation step over all ranks", "532", low=1, high=65_536
    )
    ttt_grad_clip: float = setting(
        1.0, "global norm of the adaptation's gradient at most", "532", low=1e-9, high=1e9
    )
    document_rank: int = setting(
        96, "of the matrices that per_document learns", "1530", low=1, high=65_536
    )
    document_lr: float = setting(0.0001, "their learning rate", "1530", high=1000)
    document_tokens: int = setting(
        48, "tokens of a document scored, then learned from, at a time", "1530", low=1, high=65_536
    )


@dataclass(frozen=True)
class Settings:
    """All settings; a part of the program takes the group that it needs."""

    run: Run = Run()
    model: Model = Model()
    training: Training = Training()
    export: Export = Export()
    evaluation: Evaluation = Evaluation()

    @property
    def training_seconds(self) -> float:
        """The part of the cap in which steps are made; infinite without a cap."""
        cap = self.training.max_wallclock_seconds or math.inf
        return max(1e-9, cap - self.export.calibration_seconds)


FIELDS = {
    member.name: member
    for group in dataclasses.fields(Settings)
    for member in dataclasses.fields(group.type)
}

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
        skip_gates=True,
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
        ttt_lr=0.005,
    ),
    # The entry as its author reports it. Its adaptation trains on the tokens that it then scores:
    # not legal.
    "pcloadloveletter_v6": dict(
        bos_reset=False,
        bigram_init_std=0.0,
        codec="huffman",
        embed_codec="float16",
        calibration_seconds=0.0,
        ttt_protocol="train_then_score",
        ttt_epochs=10,
        ttt_optimizer="adamw",
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
        late_qat_min_elements=4096,
        eval_stride=64,
        ttt_chunk_tokens=8192,
    ),
}


def flat(*groups: Any) -> dict[str, Any]:
    """Name and value of every setting of these groups."""
    return {name: value for group in groups for name, value in vars(group).items()}


def grouped(values: dict[str, Any]) -> Settings:
    """Settings from names and values; those that are not named keep their defaults."""
    groups = {}
    for group in dataclasses.fields(Settings):
        members = dataclasses.fields(group.type)
        groups[group.name] = group.type(**{m.name: values.get(m.name, m.default) for m in members})
    return Settings(**groups)


def choices_of(member: dataclasses.Field) -> dict[str, Any]:
    """The texts that a setting may have and their values; none if it is free."""
    if member.type is bool:
        return {"0": False, "false": False, "1": True, "true": True}
    return {str(choice): choice for choice in member.metadata["choices"]}


def allowed_values(member: dataclasses.Field) -> str:
    """What a setting may be, in words."""
    choices = choices_of(member)
    if choices:
        return f"one of {', '.join(choices)}"
    if member.type is str:
        return "text"
    kind = {int: "a whole number", float: "a number"}[member.type]
    high = member.metadata["high"]
    end = "on" if high == math.inf else f"to {high}"
    return f"{kind} from {member.metadata['low']} {end}"


def parse_value(name: str, text: str) -> Any:
    """The value that an environment variable's text stands for.

    UserError names the variable and says what it may be.
    """
    member = FIELDS[name]
    choices = choices_of(member)
    try:
        if choices:
            return choices[text.lower()]
        value = member.type(text)
        if member.type is str:
            return value
        if member.metadata["low"] <= value <= member.metadata["high"] and value < math.inf:
            return value
    except (ValueError, KeyError):
        pass
    raise UserError(f"{name.upper()} must be {allowed_values(member)}, not {text[:80]!r}.")


def check_names(environment: dict[str, str]) -> None:
    """Raises UserError for a variable that is none of ours, but close to the name of one."""
    known = {name.upper() for name in FIELDS}
    allowed = environment.get("ALLOW_UNKNOWN", "").split(",")
    for name in sorted(environment.keys() - known - set(allowed)):
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
        if close:
            raise UserError(
                f"{name} is no setting: did you mean {close[0]}? ALLOW_UNKNOWN={name} lets it pass."
            )


def load_settings(environment: dict[str, str]) -> Settings:
    """The preset's settings with the environment's on top; UserError names the variable."""
    check_names(environment)
    given = {
        name: parse_value(name, environment[name.upper()])
        for name in FIELDS
        if name.upper() in environment
    }
    settings = grouped(PRESETS[given.get("preset", Run.preset)] | given)
    check_together(settings)
    return settings


def check_together(s: Settings) -> None:
    """Raises UserError for settings that exclude each other."""
    values = flat(*vars(s).values())
    divisions = {
        "model_dim": "num_heads",
        "num_heads": "num_kv_heads",
        "train_batch_tokens": "train_seq_len",
        "calibration_tokens": "train_seq_len",
        "ttt_chunk_tokens": "train_seq_len",
    }
    for whole, part in divisions.items():
        if values[whole] % values[part]:
            raise UserError(f"{part.upper()} must divide {whole.upper()}={values[whole]}.")

    m = s.model
    rules = {
        "ROPE_DIMS must be even": m.rope_dims % 2 == 0,
        "ROPE_DIMS must be at most the head size": m.rope_dims <= m.model_dim // m.num_heads,
        "EVAL_STRIDE must be at most TRAIN_SEQ_LEN": s.evaluation.eval_stride <= m.train_seq_len,
        "DOCUMENT_TOKENS must be at most TRAIN_SEQ_LEN": (
            s.evaluation.ttt_protocol != "per_document"
            or s.evaluation.document_tokens <= m.train_seq_len
        ),
        "BIGRAM_BUCKETS must be 0 or at least 2": m.bigram_buckets != 1,
        "LOOP_LAST must be a block, and LOOP_FIRST none after it": (
            m.loop_first <= m.loop_last < m.num_layers
        ),
        "GATE_DIMS and SMEAR_DIMS must be at most MODEL_DIM": (
            max(m.gate_dims, m.smear_dims) <= m.model_dim
        ),
        "RUN_ID must be of letters, digits, '_', '-' and '.', and begin with no '.'": (
            not s.run.run_id or re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", s.run.run_id)
        ),
    }
    for sentence, holds in rules.items():
        if not holds:
            raise UserError(f"{sentence}.")


# ---- Roles of the parameters ---------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """What a parameter is to the optimizer, to the codec and to adaptation."""

    trained_as: str  # matrix, table or vector
    levels: str = ""  # its codebook's size: mlp, qkv or other; "": never quantised
    adapt_rate: float = 1.0  # factor on TTT_LR (532)


VECTORS = (
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
ROLES = dict.fromkeys(VECTORS, Role("vector")) | {
    "tok_emb": Role("table", levels="other"),
    "bigram.table": Role("table", levels="other"),
    "bigram.proj": Role("matrix", levels="other"),
    "attn.q": Role("matrix", levels="qkv"),
    "attn.k": Role("matrix", levels="qkv"),
    "attn.v": Role("matrix", levels="qkv"),
    "attn.out": Role("matrix", levels="other", adapt_rate=3.0),
    "mlp.up": Role("matrix", levels="mlp", adapt_rate=0.5),
    "mlp.down": Role("matrix", levels="mlp", adapt_rate=3.0),
}


def role_of(name: str) -> Role:
    """The role of a parameter, by its name without the block's number; UserError if it has none."""
    kind = re.sub(r"^blocks\.\d+\.", "", name)
    if kind not in ROLES:
        raise UserError(
            f"The parameter {name} has no row in ROLES, which says how it is trained and coded."
        )
    return ROLES[kind]


# ---- Ranks and log -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run; with one process nothing is communicated."""

    rank: int
    world: int
    device: torch.device

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds the tensor up over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, *values: Any) -> list:
        """Rank 0's values, on every rank, once rank 0 is here.

        They go over the CPU, so that no GPU has to wait.
        """
        shared = list(values)
        if self.world > 1:
            dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        return shared

    def share(self, count: int) -> range:
        """This rank's part of `count` items; the parts of all ranks differ by one item at most."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)


def join_ranks(run: Run) -> Ranks:
    """Finds this process's place among those that torchrun started, and its device."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    given = [os.environ[name] for name in names if name in os.environ] or ["0", "0", "1"]
    if len(given) < 3 or not all(text.isdecimal() for text in given):
        raise UserError("RANK, LOCAL_RANK and WORLD_SIZE go together: torchrun sets all of them.")
    rank, local_rank, world = map(int, given)
    if rank >= world:
        raise UserError(f"RANK={rank} must be less than WORLD_SIZE={world}.")

    gpus = 0 if run.device == "cpu" else torch.cuda.device_count()
    if local_rank >= gpus and (gpus or run.device == "cuda"):
        raise UserError(
            f"Process {local_rank} finds only {gpus} CUDA GPUs: start fewer processes, or set "
            "DEVICE=cpu."
        )

    device = torch.device("cpu")
    if gpus:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world > 1:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        except ValueError as error:  # MASTER_ADDR or MASTER_PORT is not set
            raise UserError(f"torchrun sets what is missing here: {error}.") from None
    return Ranks(rank, world, device)


class Log:
    """Lines to the console and to logs/RUN_ID.txt; on ranks above 0 it says nothing.

    A run outlives both: where one cannot be written any more, the other still is.
    """

    PROGRESS_SECONDS = 5.0  # between lines of progress

    def __init__(self, run_id: str, ranks: Ranks, resumed: bool):
        self.run_id = run_id
        self.active = ranks.rank == 0
        self.last_progress = 0.0
        if self.active:
            self.file = open_log(Path("logs") / f"{run_id}.txt", resumed)

    def __call__(self, line: str, console: bool = True) -> None:
        if not self.active:
            return
        self.write(self.file, line)
        if console:
            self.write(sys.stdout, line)

    def write(self, file: TextIO, line: str) -> None:
        try:
            print(line, file=file, flush=True)
        except (OSError, ValueError) as error:  # ValueError: it is closed, or lacks a letter
            with contextlib.suppress(OSError, ValueError):  # stderr may be the same pipe
                print(f"{file.name}: {error}; the run goes on without it.", file=sys.stderr)
            nowhere = open(os.devnull, "w")
            if file is sys.stdout:
                sys.stdout = nowhere
            else:
                self.file = nowhere

    def progress_is_due(self) -> bool:
        """True at most every PROGRESS_SECONDS, on rank 0 alone."""
        now = time.monotonic()
        due = self.active and now - self.last_progress >= self.PROGRESS_SECONDS
        if due:
            self.last_progress = now
        return due

    def progress(self, what: str, done: float, left: float, note: str = "") -> None:
        """A line on the console: the part done (0..1) and the seconds left."""
        self.write(sys.stdout, f"{what}: {100 * done:.0f} %, {note}{left:.0f} s left")


def open_log(path: Path, resumed: bool) -> TextIO:
    """A new log, or that of the run that is resumed; UserError if it is another run's."""
    path.parent.mkdir(exist_ok=True)
    mode = "a" if resumed else "x"
    try:
        file = open(path, mode, encoding="utf-8", errors="backslashreplace")
    except FileExistsError:
        way_on = ""
        if any(Path("checkpoints", path.stem).glob(CHECKPOINT_NAMES)):
            way_on = " RESUME=latest goes on with that run;"
        raise UserError(
            f"RUN_ID={path.stem}: {path} is there already;{way_on} another RUN_ID begins a new one."
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"RUN_ID={path.stem}: a run that writes to {path} is under way.") from None
    except OSError:
        pass  # a network's disk may have no locks
    return file


CHECKPOINT_NAMES = "[0-9]" * 8 + ".pt"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is complete or not there, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, name: str) -> None:
    """Raises UserError, which calls it so, unless a file can be written there, or be replaced."""
    sentence = f"{name}{path} cannot be written:"
    if os.path.exists(path) and not os.path.isfile(path):  # also where the name is empty
        raise UserError(f"{sentence} it is a folder or a device.")
    probe = path.with_name(f"{path.name}.{os.getpid()}.probe")
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except FileExistsError as error:
        raise UserError(f"{sentence} {error.filename} is no folder.") from None
    except OSError as error:
        raise UserError(f"{sentence} {error.strerror}.") from None


# ---- Data: shards of tokens, the tokenizer's bytes, and the demo's corpus ------------------------

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 1024  # 256 int32: magic, version, number of tokens, zeros; then uint16 tokens
BOS_ID = 1  # every document starts with it


def get_data(vocab_size: int) -> str:
    """What to do where there are no shards or there is no tokenizer."""
    return (
        "in the challenge's repository `python data/cached_challenge_fineweb.py --variant "
        f"sp{vocab_size}` downloads it; PRESET=demo without any path makes its own."
    )


def find_shards(folder: str, split: str) -> list[Path]:
    """The shards fineweb_SPLIT_NUMBER.bin in order; UserError for one that is left out."""
    shards = {}
    for path in sorted(Path(folder).glob(f"fineweb_{split}*.bin")):
        name = re.fullmatch(rf"fineweb_{split}_(\d+)\.bin", path.name)
        if not name or int(name[1]) in shards:
            raise UserError(
                f"{path} looks like a shard but is not named fineweb_{split}_NUMBER.bin, each "
                "number once: move it elsewhere."
            )
        shards[int(name[1])] = path

    for number in range(min(shards, default=0), max(shards, default=0)):
        if number not in shards:
            raise UserError(f"DATA_PATH={folder} lacks the {split} shard number {number}.")
    return [shards[number] for number in sorted(shards)]


class TokenStream:
    """The shards of a split as one endless sequence, read by position: no state to lose."""

    def __init__(self, folder: str, split: str, vocab_size: int):
        self.paths = find_shards(folder, split)
        if not self.paths:
            raise UserError(
                f"DATA_PATH={folder} holds no fineweb_{split}_*.bin: {get_data(vocab_size)}"
            )

        self.vocab_size = vocab_size
        self.changed = [path.stat().st_mtime_ns for path in self.paths]
        sizes = [shard_tokens(path) for path in self.paths]
        self.starts = [0, *itertools.accumulate(sizes)]  # where each shard begins, and the end
        self.total = sum(sizes)

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens (uint16) from a position; after the last shard comes the first again."""
        pieces = []
        while count > 0:
            start %= self.total
            index = bisect.bisect(self.starts, start) - 1
            piece = self.read_shard(index, start - self.starts[index], count)
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def read_shard(self, index: int, start: int, count: int) -> np.ndarray:
        """`count` tokens of a shard from a position in it, or fewer where it ends before."""
        path = self.paths[index]
        offset = SHARD_HEADER_BYTES + 2 * start
        tokens = np.fromfile(path, dtype="<u2", count=count, offset=offset)

        if path.stat().st_mtime_ns != self.changed[index]:
            raise UserError(f"{path} was changed while the run was reading it.")
        if tokens.max() >= self.vocab_size:
            raise UserError(
                f"{path} holds token {tokens.max()}, but VOCAB_SIZE is {self.vocab_size}."
            )
        return tokens


def shard_tokens(path: Path) -> int:
    """The number of tokens that a shard states and holds; UserError if it is none."""
    header = np.fromfile(path, dtype="<i4", count=3).tolist()
    if len(header) < 3 or header[:2] != [SHARD_MAGIC, SHARD_VERSION]:
        raise UserError(
            f"{path} is not a token shard: it does not start with {SHARD_MAGIC}, {SHARD_VERSION}."
        )

    count = header[2]
    size = path.stat().st_size
    if count < 1 or size != SHARD_HEADER_BYTES + 2 * count:
        raise UserError(
            f"{path} states {count} tokens, but its {size} bytes are not 1024 plus twice that."
        )
    return count


class Batch(NamedTuple):
    inputs: Tensor  # int64 [sequences, train_seq_len]
    targets: Tensor  # the same, one token later


def train_batches(stream: TokenStream, step: int, s: Settings, ranks: Ranks) -> Iterator[Batch]:
    """This rank's part of a step as micro-batches; all ranks together see the same tokens."""
    length = s.model.train_seq_len
    sequences = s.training.train_batch_tokens // length
    starts = step * s.training.train_batch_tokens + length * np.arange(sequences)
    if s.training.loader == "random":
        draw = np.random.default_rng((s.training.seed, step))
        starts = draw.integers(0, stream.total, sequences)

    mine = starts[ranks.share(sequences)]
    for first in range(0, len(mine), s.run.micro_batch_seqs):
        rows = mine[first : first + s.run.micro_batch_seqs].tolist()
        tokens = np.stack([stream.read(start, length + 1) for start in rows])
        tokens = torch.from_numpy(tokens.astype(np.int64))
        if ranks.device.type == "cuda":
            tokens = tokens.pin_memory().to(ranks.device, non_blocking=True)
        yield Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def training_rows(s: Settings, ranks: Ranks) -> int:
    """Sequences in a forward pass of training on one rank."""
    sequences = s.training.train_batch_tokens // s.model.train_seq_len // ranks.world
    return max(1, min(s.run.micro_batch_seqs, sequences))


class ByteCounter:
    """How many bytes of text each token stands for.

    They are the UTF-8 bytes of its piece, plus one for a leading space unless the token before is
    a control, unknown or unused id.
    """

    def __init__(self, path: str, vocab_size: int):
        if not Path(path).is_file():
            raise UserError(f"TOKENIZER_PATH={path} is not there: {get_data(vocab_size)}")
        try:
            self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError):
            raise UserError(
                f"TOKENIZER_PATH={path} is not a readable SentencePiece model."
            ) from None

        sp = self.tokenizer
        rules = {
            f"has {sp.vocab_size()} pieces, but VOCAB_SIZE={vocab_size}": (
                sp.vocab_size() == vocab_size
            ),
            f"begins documents with the id {sp.bos_id()}, not {BOS_ID}": sp.bos_id() == BOS_ID,
            "has no piece for a space, which then counts three bytes": (
                not sp.is_unknown(sp.piece_to_id("▁"))
            ),
        }
        for sentence, holds in rules.items():
            if not holds:
                raise UserError(f"TOKENIZER_PATH={path} {sentence}.")

        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        ids = range(vocab_size)
        silent = [sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in ids]
        self.silent = np.array(silent)  # what stands for no text at all
        pieces = ["" if silent[i] else sp.id_to_piece(i) for i in ids]
        self.space = np.array([piece.startswith("▁") for piece in pieces])
        texts = [piece.removeprefix("▁").replace("▁", " ").encode() for piece in pieces]
        sizes = [1 if sp.is_byte(i) else len(texts[i]) for i in ids]
        self.length = np.array(sizes)  # in bytes, a leading space apart

    def count(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of tokens[1:], int64 [len(tokens) - 1]."""
        after = tokens[1:]
        return self.length[after] + (self.space[after] & ~self.silent[tokens[:-1]])

    def check(self, tokens: np.ndarray) -> None:
        """Holds the count against the decoded text, by document; UserError if they differ."""
        for document in np.split(tokens, np.flatnonzero(tokens == BOS_ID)):
            text = self.tokenizer.decode(document.tolist())
            size = len(text.encode())
            counted = int(self.count(document).sum())
            whole = BOS_ID in document[:1] and "\ufffd" not in text  # and of valid UTF-8
            # A tokenizer that adds no space of its own keeps the one that a text begins with.
            if whole and size - counted not in (0, text.startswith(" ")):
                raise UserError(
                    f"TOKENIZER_PATH: {text[:40]!r} has {size} bytes, its pieces {counted}."
                )


def make_demo_data(run: Run, vocab_size: int) -> None:
    """Writes a tokenizer and shards under DATA_PATH, of the English text that comes with Python.

    The text is its manual's pages and the docstrings of its modules. One document in eight
    validates, the others train.
    """
    documents = demo_documents()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
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
            f"VOCAB_SIZE={vocab_size}: the demo's text makes no tokenizer of so many pieces."
        ) from None
    write_atomically(Path(run.tokenizer_path), model.getvalue())

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=run.tokenizer_path)
    splits = {"val": documents[::8], "train": documents}
    del documents[::8]
    for split, texts in splits.items():
        tokens = np.concatenate(tokenizer.encode(texts, add_bos=True)).astype("<u2")
        header = np.zeros(SHARD_HEADER_BYTES // 4, dtype="<i4")
        header[:3] = SHARD_MAGIC, SHARD_VERSION, len(tokens)
        path = Path(run.data_path) / f"fineweb_{split}_000000.bin"
        write_atomically(path, header.tobytes() + tokens.tobytes())


def demo_documents() -> list[str]:
    """Texts of 200 characters at least, in an order that is always the same."""
    from pydoc_data.topics import topics  # here, because only the demo needs it

    modules = [ast.parse(path.read_bytes()) for path in Path(os.__file__).parent.glob("*.py")]
    texts = {*topics.values(), *(ast.get_docstring(module) or "" for module in modules)}
    documents = [" ".join(text.split()) for text in sorted(texts) if len(text) >= 200]
    np.random.default_rng(0).shuffle(documents)
    return documents


# ---- Model ---------------------------------------------------------------------------------------
# Shapes: B sequences, T tokens, D = model_dim, H query heads, K key/value heads, E = D/H, V pieces.
# Every matrix is [outputs, inputs]. Parameters are float32, activations have the model's dtype.


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first 2R of each head's E dimensions.

    x [B,heads,T,E]; cos and sin [T,R], or [B,1,T,R] where the positions differ by sequence.
    """
    half = cos.size(-1)
    a, b, rest = x.tensor_split((half, 2 * half), dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x w^T in the dtype of x."""
    return F.linear(x, w.to(x.dtype))


def at_positions(x: Tensor, at: Tensor) -> Tensor:
    """The rows of x [B,T,D] at the positions `at` int64 [B,S] -> [B,S,D]."""
    return torch.take_along_dim(x, at[..., None], dim=1)


def previous(x: Tensor, starts: Tensor) -> Tensor:
    """x [B,T,D] of the position before; 0 where starts [B,T] says that none may be looked at."""
    return x.roll(1, dims=1).masked_fill(starts[..., None], 0)


def block_passes(m: Model) -> list[int]:
    """The blocks in the order in which they are passed."""
    blocks = list(range(m.num_layers))
    after = m.loop_last + 1
    again = blocks[m.loop_first : after] * (m.loop_passes - 1)
    return blocks[:after] + again + blocks[after:]


class Attention(nn.Module):
    def __init__(self, m: Model, index: int):
        super().__init__()
        self.head_dim = m.model_dim // m.num_heads
        self.group = m.num_heads // m.num_kv_heads
        self.gated = m.gated_attention
        self.mixes_values = m.value_residual and index > 0
        self.exclusive = index >= m.num_layers - m.xsa_last_n

        kv_dim = m.num_kv_heads * self.head_dim
        self.q = nn.Parameter(torch.empty(m.model_dim, m.model_dim))
        self.out = nn.Parameter(torch.zeros(m.model_dim, m.model_dim))
        self.k = nn.Parameter(torch.empty(kv_dim, m.model_dim))
        self.v = nn.Parameter(torch.empty(kv_dim, m.model_dim))
        self.q_gain = nn.Parameter(torch.full((m.num_heads,), m.qk_gain_init))
        if self.gated:
            self.gate_dims = m.gate_dims or m.model_dim
            self.gate_weight = nn.Parameter(torch.zeros(m.num_heads, self.gate_dims))
            self.gate_bias = None
            if m.gate_dims == 0:
                self.gate_bias = nn.Parameter(torch.full((m.num_heads,), 4.0))
        if self.mixes_values:
            self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5]))

    def heads(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B,T,D] through a matrix and split into heads [B,heads,T,E]."""
        return linear(x, w).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, x: Tensor, v_first: Tensor | None, rotary: tuple[Tensor, Tensor], at: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [B,T,D] -> the output [B,T,D], at the positions `at` [B,S] alone if given [B,S,D], and
        the raw values [B,K,T,E]."""
        cos, sin = rotary
        k = rotate(rms_norm(self.heads(x, self.k)), cos, sin)
        v_raw = v = self.heads(x, self.v)
        if self.mixes_values:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v_first + mix[1] * v

        own = v
        if at is not None:
            x = at_positions(x, at)
            cos = cos[at][:, None]
            sin = sin[at][:, None]
            own = torch.take_along_dim(v, at[:, None, :, None], dim=2)
        q = rotate(rms_norm(self.heads(x, self.q)), cos, sin)
        q = q * self.q_gain.to(x.dtype)[:, None, None]

        if at is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:  # only cuDNN's kernel takes both a mask and groups of heads
            k, v = (z.repeat_interleave(self.group, dim=1) for z in (k, v))
            mask = torch.arange(k.size(2), device=x.device) <= at[:, None, :, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.exclusive:  # take away each head's projection on the position's own value
            own = F.normalize(own, dim=-1).repeat_interleave(self.group, dim=1)
            y = y - (y * own).sum(dim=-1, keepdim=True) * own
        y = y.transpose(1, 2)
        if self.gated:
            gate = linear(x[..., : self.gate_dims], self.gate_weight)
            if self.gate_bias is not None:
                y = y * torch.sigmoid(gate + self.gate_bias.to(x.dtype))[..., None]
            else:  # 1 at first, as the weights are 0
                y = y * 2 * torch.sigmoid(gate)[..., None]
        return linear(y.flatten(-2), self.out), v_raw


class MLP(nn.Module):
    def __init__(self, m: Model):
        super().__init__()
        self.up = nn.Parameter(torch.empty(m.mlp_hidden, m.model_dim))
        self.down = nn.Parameter(torch.zeros(m.model_dim, m.mlp_hidden))
        self.negative_slope = m.mlp_negative_slope

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(linear(x, self.up), self.negative_slope)
        return linear(x.square(), self.down)


class Block(nn.Module):
    def __init__(self, m: Model, index: int):
        super().__init__()
        self.attn = Attention(m, index)
        self.mlp = MLP(m)
        self.attn_scale = nn.Parameter(torch.ones(m.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(m.model_dim))
        mix = torch.stack((torch.ones(m.model_dim), torch.zeros(m.model_dim)))
        self.resid_mix = nn.Parameter(mix)  # of the residual stream and the first hidden state
        self.norm_scale = 1 / math.sqrt(index + 1) if m.ln_scale else 1.0
        self.parallel = index >= m.num_layers - m.parallel_last_n

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        v_first: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        at: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, x0 [B,T,D] -> the block's output [B,T,D], at the positions `at` [B,S] alone if given
        [B,S,D], and the raw values [B,K,T,E]."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attn(rms_norm(x) * self.norm_scale, v_first, rotary, at)

        if at is not None:
            x = at_positions(x, at)
        attended = x + self.attn_scale.to(x.dtype) * y
        read = x if self.parallel else attended
        y = self.mlp(rms_norm(read) * self.norm_scale)
        return attended + self.mlp_scale.to(x.dtype) * y, v


class BigramHash(nn.Module):
    """An embedding of hashed pairs of neighbouring tokens, added to the token embedding."""

    def __init__(self, m: Model):
        super().__init__()
        self.table = nn.Parameter(m.bigram_init_std * torch.randn(m.bigram_buckets, m.bigram_dim))
        self.proj = nn.Parameter(torch.zeros(m.model_dim, m.bigram_dim))
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, tokens: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens [B,T], starts [B,T] (true where the token before may not be looked at)
        -> [B,T,D]."""
        last = len(self.table) - 1  # the bucket of a token without one before it
        bucket = ((36313 * tokens) ^ (27191 * tokens.roll(1, dims=1))) % last
        rows = F.embedding(torch.where(starts, last, bucket), self.table).to(dtype)
        return self.scale.to(dtype) * linear(rows, self.proj)


class GPT(nn.Module):
    """The language model; the head shares its matrix with the token embedding."""

    def __init__(self, m: Model, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.logit_softcap = m.logit_softcap
        self.bos_reset = m.bos_reset
        self.smear_dims = m.smear_dims
        self.passes = block_passes(m)
        self.order = self.passes  # as it is now: before LOOP_FROM each block is passed once

        self.tok_emb = nn.Parameter(torch.empty(m.vocab_size, m.model_dim))
        self.bigram = BigramHash(m) if m.bigram_buckets else None
        self.smear_gate = self.smear_scale = None
        if m.smear_gate:
            self.smear_gate = nn.Parameter(torch.zeros(m.smear_dims or m.model_dim))
        if m.smear_gate and m.smear_dims:
            self.smear_scale = nn.Parameter(torch.zeros(()))
        skips = len(self.passes) // 2
        self.skip_weights = self.skip_gates = None
        if m.unet_skips and skips:
            self.skip_weights = nn.Parameter(torch.ones(skips, m.model_dim))
        if m.skip_gates and self.skip_weights is not None:
            self.skip_gates = nn.Parameter(torch.zeros(skips, m.model_dim))
        self.blocks = nn.ModuleList(Block(m, index) for index in range(m.num_layers))

        exponents = torch.arange(0, m.rope_dims, 2, dtype=torch.float32) / m.rope_dims
        positions = torch.arange(m.train_seq_len, dtype=torch.float32)
        angles = torch.outer(positions, m.rope_base**-exponents)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

        nn.init.normal_(self.tok_emb, std=0.005)
        for name, p in self.blocks.named_parameters():
            if name.endswith((".q", ".k", ".v", ".up")):  # output projections stay zero
                nn.init.orthogonal_(p)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> the first hidden state [B,T,D]."""
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[:, 0] = True
        if self.bos_reset:
            starts = starts | (tokens == BOS_ID)

        x = F.embedding(tokens, self.tok_emb).to(self.dtype)
        if self.smear_scale is not None:
            gate = linear(x[..., : self.smear_dims], self.smear_gate[None])
            x = x + self.smear_scale.to(x.dtype) * torch.sigmoid(gate) * previous(x, starts)
        if self.bigram is not None:
            x = x + self.bigram(tokens, starts, self.dtype)
        x = rms_norm(x)
        if self.smear_gate is not None and self.smear_scale is None:
            gate = torch.sigmoid(self.smear_gate).to(x.dtype)
            x = (1 - gate) * x + gate * previous(x, starts)
        return x

    def loop(self, on: bool) -> None:
        """Passes blocks LOOP_FIRST to LOOP_LAST several times, or once like all others."""
        self.order = self.passes if on else list(range(len(self.blocks)))

    def hidden(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """tokens [B,T] -> the last hidden state [B,T,D], at the positions `at` alone [B,S,D]."""
        rotary = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        x0 = x = self.embed(tokens)
        v_first = None
        skips = []
        half = len(self.order) // 2  # whose outputs come back in the second, the last one first

        for place, index in enumerate(self.order):
            if self.skip_weights is not None and half <= place < 2 * half:
                x = self.join(x, skips.pop(), place - half)
            last = place == len(self.order) - 1
            x, v = self.blocks[index](x, x0, v_first, rotary, at if last else None)
            if place == 0:
                v_first = v
            if place < half:
                skips.append(x)
        return x

    def join(self, x: Tensor, skip: Tensor, index: int) -> Tensor:
        """The stream [B,T,D] with a skip [B,T,D]."""
        skip = self.skip_weights[index].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + skip
        gate = torch.sigmoid(self.skip_gates[index]).to(x.dtype)
        return gate * x + (1 - gate) * skip

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Logits of the next tokens, or with targets [B,T] their loss.

        tokens int64 [B,T] -> soft-capped logits float32 [B,T,V]; with `at` int64 [B,S] only those
        of these positions [B,S,V]; with targets the nats of each, float32 [B,T].
        """
        logits = linear(rms_norm(self.hidden(tokens, at)), self.tok_emb).float()
        logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        if targets is None:
            return logits
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nats.view_as(targets)


def is_compiled(run: Run, device: torch.device) -> bool:
    return run.compile == "1" or (run.compile == "auto" and device.type == "cuda")


def compile_model(model: GPT) -> None:
    """Compiles the forward pass: a graph for each shape and use, and so one for each of training,
    learning and scoring."""
    model.compile(dynamic=False)


def choose_attention(m: Model, device: torch.device, dtype: torch.dtype) -> str:
    """Makes scaled_dot_product_attention take the fastest kernel that is here; returns its name.

    On Hopper GPUs that is FlashAttention-3, if its wheel is installed, else cuDNN's.
    """
    if device.type != "cuda":
        return "PyTorch's"
    installed = importlib.util.find_spec("flash_attn_interface")
    if installed and hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        torch.nn.attention.activate_flash_attention_impl("FA3")
        torch.backends.cuda.enable_cudnn_sdp(False)  # PyTorch would prefer it
        return "FlashAttention-3"

    head_dim = m.model_dim // m.num_heads
    q = torch.empty(1, m.num_heads, m.train_seq_len, head_dim, device=device, dtype=dtype)
    k = q[:, : m.num_kv_heads]
    case = torch.backends.cuda.SDPAParams(q, k, k, None, 0.0, True, True)
    if torch.backends.cuda.can_use_cudnn_attention(case):
        torch.backends.cuda.enable_flash_sdp(False)
        return "cuDNN's"
    return "PyTorch's choice"


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


def share_by_cost(costs: list[int], world: int) -> list[list[int]]:
    """For each rank which items it takes: the costliest first, each to the least busy rank."""
    taken = [[] for _ in range(world)]
    for item in sorted(range(len(costs)), key=lambda i: costs[i], reverse=True):
        least_busy = min(taken, key=lambda items: sum(costs[i] for i in items))
        least_busy.append(item)
    return taken


@dataclass
class Stack:
    """Matrices of one shape, which are updated together, and which of them this rank makes
    orthogonal."""

    params: list[nn.Parameter]  # N of shape [R,C]
    mine: Tensor  # int64 indices, on the parameters' device


class NorMuon(torch.optim.Optimizer):
    """Muon whose update is scaled per row by a second moment, with its norm kept.

    For the matrices of hidden layers alone, not for embeddings, vectors or scalars. Matrices of one
    shape are a stack. Only the orthogonalisation, the expensive part, is shared out over the ranks:
    they must have the same gradients, and each holds the whole state. A group's "lr", the update's
    spectral norm, must be set before each step.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        ranks: Ranks,
        lr: float,
        momentum: float,
        weight_decay: float,
        rows_first: bool = False,
    ):
        """With rows_first each row of the update has the norm 1 before it is made orthogonal, and
        there is no second moment (MuonEq-R, entry 1285)."""
        defaults = dict(base_lr=lr, momentum=momentum, beta2=0.95, weight_decay=weight_decay)
        super().__init__(params, defaults)
        self.ranks = ranks
        self.rows_first = rows_first

        costs = [min(p.shape) ** 2 * max(p.shape) for p in params]
        mine = share_by_cost(costs, ranks.world)[ranks.rank]
        by_shape = {}
        for i, p in enumerate(params):
            by_shape.setdefault(p.shape, []).append(i)

        self.stacks = []
        for members in by_shape.values():
            own = [place for place, i in enumerate(members) if i in mine]
            own = torch.tensor(own, dtype=torch.int64, device=params[0].device)
            self.stacks.append(Stack([params[i] for i in members], own))

    def orthogonalize(self, updates: list[Tensor]) -> list[Tensor]:
        """newton_schulz of every stack's update [N,R,C].

        Each rank makes its own matrices and zeros for the others; then all ranks add up.
        """
        results = []
        for stack, update in zip(self.stacks, updates, strict=True):
            own = newton_schulz(update.index_select(0, stack.mine))
            results.append(own.new_zeros(update.shape).index_copy_(0, stack.mine, own))
        return [self.ranks.sum_(result) for result in results]

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        updates = [self.nesterov(stack, group["momentum"]) for stack in self.stacks]
        if self.rows_first:
            updates = [F.normalize(update, dim=-1) for update in updates]
        for stack, update in zip(self.stacks, self.orthogonalize(updates), strict=True):
            update = update.float()
            if not self.rows_first:
                update = self.normalize_rows(stack, update, group["beta2"])
            aspect = max(1.0, update.size(-2) / update.size(-1)) ** 0.5
            update *= -group["lr"] * aspect
            torch._foreach_mul_(stack.params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(stack.params, list(update))

    def nesterov(self, stack: Stack, momentum: float) -> Tensor:
        """The gradients [N,R,C], averaged with Nesterov's momentum."""
        grad = torch.stack([p.grad for p in stack.params])
        state = self.state[stack.params[0]]  # a stack's state is kept under its first matrix
        if not state:
            state["momentum"] = torch.zeros_like(grad)
            state["second_moment"] = torch.zeros_like(grad[..., :1])
        state["momentum"].lerp_(grad, 1 - momentum)
        return grad.lerp_(state["momentum"], momentum)

    def normalize_rows(self, stack: Stack, update: Tensor, beta2: float) -> Tensor:
        """The update [N,R,C] with each row over its second moment's root, of the same norm."""
        norm = update.norm(dim=(-2, -1), keepdim=True)
        second = self.state[stack.params[0]]["second_moment"]
        second.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - beta2)
        update = update * (second + 1e-10).rsqrt()
        update *= norm / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10)
        return update


def build_optimizers(model: GPT, t: Training, ranks: Ranks) -> list[torch.optim.Optimizer]:
    """NorMuon (or AdamW) for matrices, AdamW for tables and vectors, which do not decay (532).

    Each group's "base_lr" is what the schedule scales.
    """
    groups = dict(
        table=dict(params=[], base_lr=t.embed_lr, weight_decay=t.embed_weight_decay),
        vector=dict(params=[], base_lr=t.scalar_lr, weight_decay=t.scalar_weight_decay),
        matrix=dict(params=[], base_lr=t.matrix_lr, weight_decay=t.weight_decay),
    )
    for name, p in model.named_parameters():
        groups[role_of(name).trained_as]["params"].append(p)

    optimizers = []
    if t.matrix_optimizer != "adamw":
        params = groups.pop("matrix")["params"]
        rows_first = t.matrix_optimizer == "muon_rows"
        optimizers.append(
            NorMuon(params, ranks, t.matrix_lr, t.muon_momentum, t.weight_decay, rows_first)
        )
    fused = ranks.device.type == "cuda"
    adamw = torch.optim.AdamW(list(groups.values()), betas=(0.9, t.adam_beta2), fused=fused)
    return [*optimizers, adamw]


def flat_gradient(model: nn.Module, extra: int = 0) -> Tensor:
    """One float32 buffer of which every parameter's gradient is a view.

    `extra` numbers are free for other use at its end. One sum over the ranks then does for all.
    """
    params = list(model.parameters())
    sizes = [p.numel() for p in params]
    buffer = torch.zeros(sum(sizes) + extra, device=params[0].device)
    for p, part in zip(params, buffer[: sum(sizes)].split(sizes), strict=True):
        p.grad = part.view_as(p)
    return buffer


def set_rates(optimizers: list[torch.optim.Optimizer], scale: float) -> None:
    """Scales every group's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale


# ---- Codec: the PCLL container and its weight codecs ---------------------------------------------
#
# The challenge counts bytes, so the fewer bits a weight takes, the larger the network that fits.
# The format is specified in decode_artifact.py; two of its codecs quantise.
#
# huffman (entry 532): k-means levels for each matrix, by Lloyd's iteration, and a Huffman code for
#   the levels. Package-merge (Larmore and Hirschberg, 1990) finds the best code of at most 16 bits
#   a level, so that a decoder reads a level with one look-up.
# trellis (ours): three ideas, each of which saves bytes at the same loss.
#   Trellis-coded quantisation (Marcellin and Fischer, 1990). Rounding each weight by itself fills
#     space with cubes; rounder cells have less error. Here a row is a path through a trellis, whose
#     state says in which half of a finer grid the next point lies, and Viterbi's algorithm finds
#     the nearest path. Ungerboeck's codes (1982) with 32 states take 4.6 % fewer bytes than a
#     uniform step at equal error.
#   Asymmetric numeral systems (rANS, arXiv 1311.2540; interleaved, arXiv 1402.3392) code a symbol
#     in a fraction of a bit, by how large weights are in its row and column; a Huffman code rounds
#     to whole bits, which wastes 0.8 %. A thousand lanes side by side keep numpy quick.
#   Error feedback (GPTQ, arXiv 2210.17323; LDLQ, arXiv 2307.13304). Where inputs are correlated,
#     later columns make good what earlier ones got wrong, which is worth 0.15 to 0.3 bits a weight.
# Without feedback trellis takes 6.3 % fewer bytes than 532's codec at equal error.
#
# Shapes: R rows, C columns (a tensor's other dimensions together), K levels. Sizes of steps and
# scales are in quarter octaves: the whole number e stands for 2^(e/4).

Array = np.ndarray

FLOAT32 = 0  # codec numbers in the table of tensors
FLOAT16 = 1
TRELLIS = 3
HUFFMAN = 4
HALF_LIMIT = 65504  # the largest float16
KMEANS_ITERATIONS = 20  # entry 532
MAX_CODE_LENGTH = 16  # bits of a Huffman code
FREQUENCY_BITS = 14
SLOTS = 1 << FREQUENCY_BITS  # what the rANS frequencies of a context that occurs add up to
STATE_FLOOR = 1 << 16  # rANS states are at least this
MAX_CONTEXTS = 64
TRELLIS_GAIN = 1.3  # over a uniform quantiser of the same step, whose error is step^2 / 12
FEEDBACK_BLOCK = 8  # columns quantised before their error is fed back
LOOK_AHEAD = 24  # columns behind a block that are searched with it
FINENESS = (-4, 24)  # least and greatest root mean square of a row or column in steps; as octaves/4
DAMPING = 0.01  # what is added to the moments of inputs, as a part of their mean
PARITY_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}  # states: Ungerboeck's h0 and h1


@dataclass(frozen=True)
class FloatTensor:
    """A tensor that is not quantised."""

    shape: tuple[int, ...]
    codec: int  # FLOAT32 or FLOAT16
    values: Array  # float32 or float16

    def side_data(self) -> bytes:
        return byte_planes(self.values)

    def weights(self) -> Array:
        """Float32, in the tensor's shape; so have the other two."""
        return self.values.astype(np.float32).reshape(self.shape)


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


@dataclass(frozen=True)
class Steps:
    """The quantiser's step in row r and column c: size * 2^((rows[r] + columns[c]) / 4)."""

    size: np.float32
    rows: Array  # [R], within a signed byte
    columns: Array  # [C], within a signed byte

    def factors(self) -> tuple[Array, Array]:
        """Float32 [R,1] and [C], whose product is the weight of a point of 1, a quarter step."""
        rows = quarter_power(self.rows).astype(np.float32)
        columns = (self.size / 4.0 * quarter_power(self.columns)).astype(np.float32)
        return rows[:, None], columns


@dataclass(frozen=True)
class TrellisTensor:
    """A tensor whose rows are paths through a trellis. Its scales say how large weights are, as a
    multiple of steps.size: in row r and column c, offset + row_scales[r] + column_scales[c]."""

    shape: tuple[int, ...]
    steps: Steps
    offset: int
    row_scales: Array  # [R], within a signed byte
    column_scales: Array  # [C], within a signed byte
    points: Array  # int32 [R,C]: each weight in quarters of its step
    codec = TRELLIS

    def contexts(self) -> Array:
        """How large weights are in their own steps, flat; a file's model clips them."""
        rows = self.offset + self.row_scales - self.steps.rows
        columns = self.column_scales - self.steps.columns
        return np.add.outer(rows, columns).ravel()

    def side_data(self) -> bytes:
        numbers = (self.row_scales, self.column_scales, self.steps.rows, self.steps.columns)
        numbers = np.concatenate(numbers).astype(np.int8)
        return struct.pack("<fh", self.steps.size, self.offset) + numbers.tobytes()

    def weights(self) -> Array:
        rows, columns = self.steps.factors()
        return (self.points.astype(np.float32) * rows * columns).reshape(self.shape)


Coded = FloatTensor | HuffmanTensor | TrellisTensor


def byte_planes(values: Array) -> bytes:
    """Little-endian floats by planes of like bytes, least significant first: zstd finds more."""
    return values.reshape(-1, 1).view(np.uint8).T.tobytes()


def code_floats(w: Array, dtype: str) -> FloatTensor:
    """Exact in float32; with dtype "float16" rounded, if the range allows."""
    if dtype == "float16" and np.abs(w).max() < HALF_LIMIT:
        return FloatTensor(w.shape, FLOAT16, w.astype(np.float16))
    return FloatTensor(w.shape, FLOAT32, w)


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


def code_huffman(w: Array, levels: int) -> HuffmanTensor:
    """K-means levels, at most as many as asked for, and the best code for how often they occur."""
    centroids, nearest = kmeans(w, levels)
    lengths = huffman_lengths(np.bincount(nearest))
    return HuffmanTensor(w.shape, centroids, lengths, nearest)


def kmeans(w: Array, levels: int) -> tuple[Array, Array]:
    """Centroids (float16 [K], ascending, each the nearest to something) and each element's nearest
    (uint8, flat), by Lloyd's iteration from evenly spaced centroids (entry 532)."""
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
    return centroids[used], nearest.astype(np.uint8)


def huffman_lengths(counts: Array) -> Array:
    """Code lengths, uint8 [K], of the fewest bits in all among those of MAX_CODE_LENGTH at most.

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


def encode_huffman(tensors: list[HuffmanTensor]) -> bytes:
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


def decode_huffman(content: BinaryIO, tensors: list[HuffmanTensor]) -> None:
    """Fills in each tensor's levels."""
    lanes = lane_count(sum(len(t.levels) for t in tensors))
    bits = take(content, "<u4", lanes).astype(np.int64)
    positions = np.cumsum(bits) - bits  # of each lane
    words = np.append(take(content, "<u2", -(-bits.sum() // 16)), [0, 0]).astype(np.uint32)
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


def quarter_power(e: Array) -> Array:
    """2^(e/4) in float64, the same on every machine."""
    return np.ldexp(np.sqrt(np.sqrt([1.0, 2.0, 4.0, 8.0]))[e % 4], e // 4)


def quarter_octaves(mean_square: Array) -> Array:
    """round(4 log2(rms)) by thresholds 2^(e/2 - 1/4): logarithms differ from machine to machine."""
    thresholds = quarter_power(2 * np.arange(-250, 250) - 1)
    return np.searchsorted(thresholds, mean_square, side="right") - 251


def trellis_table(states: int) -> Array:
    """The next state [states,2] by state and parity of the index, in systematic feedback form."""
    h0, h1 = PARITY_CHECKS[states]
    state = np.arange(states)[:, None]
    parity = np.arange(2)
    return state >> 1 ^ (state & 1) * (h0 >> 1) ^ parity * (h1 >> 1)


def trellis_points(indices: Array, states: int) -> Array:
    """Points (int32 [R,C], in quarters of a step) of indices [R,C], by a walk along each row."""
    following = trellis_table(states)
    points = 4 * indices + 1

    state = np.zeros(len(indices), np.intp)
    for c in range(indices.shape[1]):
        points[:, c] *= 1 - 2 * (state & 1)
        state = following[state, indices[:, c] & 1]
    return points


def point_indices(points: Array) -> Array:
    """Indices of points: a point of the union u = 0 is 1 above a multiple of 4, of u = 1 below."""
    return (np.where(points % 4 == 1, points, -points) - 1) // 4


def trellis_search(y: Array, start: Array, states: int, keep: int) -> tuple[Array, Array]:
    """The first `keep` columns of the points (int32 [R,keep]) on each row's path that is nearest to
    4y (float32 [R,C]) in the sum of squares, and the states [R] after them.

    Viterbi's algorithm, all rows at once, from the states `start` [R] on. Both branches into a
    state have the same union bit u, its top bit, and differ in the parity of their index.
    """
    before = np.argsort(trellis_table(states), axis=0).T  # [parity,states]: where branches are from
    index, error = nearest_indices(np.ascontiguousarray(y.T))

    row = np.arange(len(y))
    points = np.empty((len(index), len(y)), np.int32)
    after = np.empty((len(index), len(y)), np.intp)  # the state after each column
    odd, state = cheapest_branches(error, before, start)
    for c in reversed(range(len(index))):
        after[c] = state
        parity = odd[c, state, row]
        union = state // (states // 2)
        points[c] = (4 * index[c, parity, union, row] + 1) * (1 - 2 * union)
        state = before[parity, state]
    return points[:keep].T, after[keep - 1]


def nearest_indices(y: Array) -> tuple[Array, Array]:
    """For weights in steps (float32 [C,R]) the nearest index of each parity and union, and its
    squared error, float32 [C,parity,u,R]. The union of u = 1 is the mirror image of the other."""
    place = np.stack((y, -y), axis=1) - 0.25  # index q stands for q + 1/4
    index = np.stack([2 * np.rint((place - odd) / 2) + odd for odd in (0, 1)], axis=1)
    return index, np.square(place[:, None] - index)


def cheapest_branches(error: Array, before: Array, start: Array) -> tuple[Array, Array]:
    """The parity of the cheapest branch into each state (uint8 [C,states,R]), and the states [R]
    in which the cheapest paths end; errors [C,parity,u,R], `before` [parity,states]."""
    cost = np.full((before.shape[1], len(start)), np.inf, np.float32)
    cost[start, np.arange(len(start))] = 0

    odd = np.empty((len(error), *cost.shape), bool)
    for c in range(len(error)):
        branches = cost[before] + error[c].repeat(len(cost) // 2, axis=1)
        np.greater(*branches, out=odd[c])
        np.minimum(*branches, out=cost)
    return odd.view(np.uint8), cost.argmin(axis=0)


# Trellis: which steps, and feedback


@dataclass(frozen=True)
class Moments:
    """What errors cost: row r with the errors e [C] costs rows[r] * e columns e^T."""

    rows: Array  # [R]
    columns: Array  # [C,C]


@dataclass(frozen=True)
class ErrorCost:
    """Moments as the quantiser needs them: a row's errors e cost unit * rows[r] * |e root|^2."""

    unit: float  # of an average weight's squared error
    rows: Array  # [R], 1 on average
    root: Array  # [C,C] upper triangular
    blocks: list[slice]  # of columns, quantised together before their error is fed back
    columns: Array  # [C]: what an error costs once later blocks have made good what they can


def error_cost(moments: Moments) -> ErrorCost:
    row_unit = moments.rows.mean()
    column_unit = np.diagonal(moments.columns).mean()
    columns = moments.columns / column_unit
    size = len(columns)

    damped = columns + DAMPING * np.eye(size)
    root = np.flip(np.linalg.cholesky(np.flip(damped)))

    correlated = np.count_nonzero(columns) > size  # else there is nothing to feed back
    width = FEEDBACK_BLOCK if correlated else size
    blocks = [slice(first, first + width) for first in range(0, size, width)]
    remaining = np.concatenate([np.square(root[b, b]).sum(axis=1) for b in blocks])
    return ErrorCost(row_unit * column_unit, moments.rows / row_unit, root, blocks, remaining)


def choose_steps(w: Array, cost: ErrorCost, coarseness: float) -> Steps:
    """Steps by which every weight's error costs about coarseness^2; w [R,C]."""
    wanted = coarseness * math.sqrt(12 * TRELLIS_GAIN / cost.unit)
    largest = 8 * np.sqrt(np.square(w).mean())
    size = np.float32(min(wanted, largest))

    steps = Steps(size, -quarter_octaves(cost.rows), -quarter_octaves(cost.columns))
    steps = replace(steps, rows=limit_steps(steps.rows, w, steps, axis=1))
    return replace(steps, columns=limit_steps(steps.columns, w, steps, axis=0))


def limit_steps(own: Array, w: Array, steps: Steps, axis: int) -> Array:
    """The steps of rows (axis 1) or columns (axis 0) of w [R,C], made finer where the fineness, the
    root mean square of the weights in steps, is below FINENESS, and coarser where it is above."""
    rows, columns = steps.factors()
    fineness = quarter_octaves(np.square(w / (4 * rows * columns)).mean(axis=axis))
    return np.clip(own + fineness - np.clip(fineness, *FINENESS), -127, 127)


def quantise(w: Array, steps: Steps, cost: ErrorCost, states: int) -> Array:
    """Points (int32 [R,C]) for the weights w [R,C].

    Each block of columns makes good, as far as it can, what the errors in the blocks before it cost
    (GPTQ in the form of LDLQ). The search looks beyond the block, as its last point binds the next.
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

        points[:, block], state = trellis_search(target, state, states, len(columns[block]))
        error[:, block] = points[:, block] * rows * columns[block] - w[:, block]
    return points


def code_trellis(w: Array, moments: Moments, coarseness: float, states: int) -> TrellisTensor:
    """Quantised so that, by the moments, every weight's error costs about coarseness^2."""
    matrix = w.reshape(len(w), -1)
    cost = error_cost(moments)
    steps = choose_steps(matrix, cost, coarseness)
    points = quantise(matrix, steps, cost, states)

    in_steps = points / 4
    rows = quarter_octaves(np.square(in_steps).mean(axis=1))
    columns = quarter_octaves(np.square(in_steps / quarter_power(rows)[:, None]).mean(axis=0))
    offset = int(np.median(rows))

    row_scales = np.clip(rows - offset + steps.rows, -127, 127)
    column_scales = np.clip(columns + steps.columns, -127, 127)
    return TrellisTensor(w.shape, steps, offset, row_scales, column_scales, points)


# Trellis: the stream of indices. A cell is a pair of a context and a symbol, an index from -L to L,
# as its place in the table of frequencies [contexts,2L+1].


def start_contexts_at_zero(tensors: list[TrellisTensor]) -> list[TrellisTensor]:
    """Offsets by which the greatest contexts, of MAX_CONTEXTS at most, end with the last one."""
    contexts = np.concatenate([t.contexts() for t in tensors])
    base = max(contexts.min(), contexts.max() - (MAX_CONTEXTS - 1))
    return [replace(t, offset=t.offset - base) for t in tensors]


def share_slots(counts: Array) -> Array:
    """Frequencies by counts [contexts,2L+1]: they add up to SLOTS where a context occurs, and are
    at least 1 for a symbol that does. The most frequent one takes what rounding leaves."""
    occurs = counts > 0
    totals = counts.sum(axis=1, keepdims=True)
    slots = SLOTS * (totals > 0)
    spare = slots - occurs.sum(axis=1, keepdims=True)
    frequencies = occurs * (1 + counts * spare // (totals + 1))

    most = np.arange(len(counts)), counts.argmax(axis=1)
    frequencies[most] += slots[:, 0] - frequencies.sum(axis=1)
    return frequencies


def encode_trellis(tensors: list[TrellisTensor], states: int) -> bytes:
    """The shared model, and the stream of all tensors' indices; contexts start at zero."""
    index = np.concatenate([point_indices(t.points).ravel() for t in tensors])
    context = np.maximum(np.concatenate([t.contexts() for t in tensors]), 0)
    largest = int(np.abs(index).max())

    kinds = 2 * largest + 1
    cells = context * kinds + index + largest
    counts = np.bincount(cells, minlength=kinds * (context.max() + 1))
    frequencies = share_slots(counts.reshape(-1, kinds))

    head = struct.pack("<BHB", states.bit_length() - 1, largest, len(frequencies))
    stream = encode_cells(cells, frequencies, [t.points.size for t in tensors])
    return head + frequencies.astype("<u2").tobytes() + stream


def encode_cells(cells: Array, frequencies: Array, sizes: list[int]) -> bytes:
    """States, number of words and words of the rANS stream; the encoder goes backwards."""
    frequency = frequencies.astype(np.uint64).ravel()
    start = (np.cumsum(frequency) - frequency) % SLOTS  # within its context
    states = np.full(lane_count(len(cells)), STATE_FLOOR, np.uint64)

    words = []
    for group in reversed(lane_groups(sizes, len(states))):
        f = frequency[cells[group]]
        x = states[: len(f)]
        full = x >= f << 32 - FREQUENCY_BITS
        words.append(x[full].astype("<u2"))
        x[full] >>= 16
        x += x // f * (SLOTS - f) + start[cells[group]]

    words = np.concatenate(words[::-1])
    return states.astype("<u4").tobytes() + struct.pack("<I", len(words)) + words.tobytes()


def decode_trellis(content: BinaryIO, tensors: list[TrellisTensor]) -> None:
    """Fills in each tensor's points."""
    log2_states, largest, contexts = struct.unpack("<BHB", content.read(4))
    kinds = 2 * largest + 1
    frequency = take(content, "<u2", contexts * kinds).astype(np.uint32)

    context = np.concatenate([t.contexts() for t in tensors])
    context = np.clip(context, 0, contexts - 1).astype(np.uint8)
    sizes = [t.points.size for t in tensors]
    symbols = decode_symbols(content, frequency, kinds, context, sizes)

    parts = np.split(symbols.astype(np.int32) - largest, np.cumsum(sizes)[:-1])
    for t, indices in zip(tensors, parts, strict=True):
        t.points[:] = trellis_points(indices.reshape(t.points.shape), 1 << log2_states)


def decode_symbols(
    content: BinaryIO, frequency: Array, kinds: int, context: Array, sizes: list[int]
) -> Array:
    """All tensors' symbols (uint16, flat) of `kinds` kinds from the rANS stream, given the
    frequencies of the cells (uint32, flat) and the elements' contexts (uint8, flat)."""
    start = np.cumsum(frequency, dtype=np.uint32) - frequency
    first = start[::kinds]  # slot of each context
    cell_at = np.repeat(np.arange(len(start)), frequency)  # by slot
    states = take(content, "<u4", lane_count(len(context))).astype(np.uint32)
    content.read(4)  # the number of words

    symbols = np.empty(len(context), np.uint16)
    for group in lane_groups(sizes, len(states)):
        x = states[: len(context[group])]
        slot = first[context[group]] + (x & SLOTS - 1)
        cell = cell_at[slot]
        symbols[group] = cell % kinds
        x[:] = frequency[cell] * (x >> FREQUENCY_BITS) + slot - start[cell]
        low = np.flatnonzero(x < STATE_FLOOR)
        x[low] = x[low] << 16 | take(content, "<u2", len(low))
    return symbols


# The container


def encode_pcll(config: dict, tensors: dict[str, Coded], states: int) -> bytes:
    """The bytes of an artifact: config (flat, of strings and numbers) and coded tensors; UserError
    if the weights are so alike that no reader believes their number."""
    tensors = dict(sorted(tensors.items()))
    trellis = {name: t for name, t in tensors.items() if t.codec == TRELLIS}
    huffman = [t for t in tensors.values() if t.codec == HUFFMAN]
    streams = encode_huffman(huffman) if huffman else b""
    if trellis:
        rebased = start_contexts_at_zero(list(trellis.values()))
        tensors |= zip(trellis, rebased, strict=True)
        streams += encode_trellis(rebased, states)

    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    content = struct.pack("<I", len(text)) + text + struct.pack("<H", len(tensors))
    for name, t in tensors.items():
        content += bytes([len(name)]) + name.encode()
        content += struct.pack(f"<BB{len(t.shape)}I", t.codec, len(t.shape), *t.shape)
    content += b"".join(t.side_data() for t in tensors.values()) + streams
    frame = zstandard.ZstdCompressor(level=22, write_checksum=True).compress(content)

    weights = sum(math.prod(t.shape) for t in tensors.values())
    if weights > (1 << 16) + 64 * (16 + len(frame)):
        raise UserError(
            f"The {weights} weights are all but constant: "
            f"no reader takes so many from {len(frame)} bytes."
        )
    return b"PCLL" + struct.pack("<HHII", 1, 0, len(content), len(frame)) + frame


def take(content: BinaryIO, dtype: str, count: int) -> Array:
    return np.frombuffer(content.read(count * np.dtype(dtype).itemsize), dtype)


def take_one(content: BinaryIO, dtype: str) -> int:
    return take(content, dtype, 1).item()


def read_tensor(content: BinaryIO, codec: int, shape: tuple[int, ...]) -> Coded:
    """What the side data hold; levels and points are still to be filled in."""
    if codec == HUFFMAN:
        count = take_one(content, "u1")
        centroids = read_planes(content, "<f2", count)
        lengths = take(content, "u1", count)
        return HuffmanTensor(shape, centroids, lengths, np.empty(math.prod(shape), np.uint8))
    if codec == TRELLIS:
        size, offset = struct.unpack("<fh", content.read(6))
        points = np.empty((shape[0], math.prod(shape[1:])), np.int32)
        *scales, rows, columns = (
            take(content, "i1", count).astype(int) for count in 2 * points.shape
        )
        return TrellisTensor(shape, Steps(np.float32(size), rows, columns), offset, *scales, points)
    dtype = "<f2" if codec == FLOAT16 else "<f4"
    return FloatTensor(shape, codec, read_planes(content, dtype, math.prod(shape)))


def read_planes(content: BinaryIO, dtype: str, count: int) -> Array:
    """Floats [count] that byte_planes wrote."""
    planes = take(content, "u1", count * np.dtype(dtype).itemsize).reshape(-1, count)
    return np.ascontiguousarray(planes.T).view(dtype).ravel()


def decode_pcll(artifact: bytes) -> tuple[dict, dict[str, Array]]:
    """Config and float32 weights of an artifact that this script wrote; decode_artifact.py reads
    those of strangers."""
    content = io.BytesIO(zstandard.ZstdDecompressor().decompress(artifact[16:]))
    config = json.loads(content.read(take_one(content, "<u4")))
    table = {}
    for _ in range(take_one(content, "<u2")):
        name = content.read(take_one(content, "u1")).decode()
        codec, dimensions = content.read(2)
        table[name] = codec, tuple(take(content, "<u4", dimensions).tolist())

    tensors = {name: read_tensor(content, *record) for name, record in table.items()}
    for codec, decode in ((HUFFMAN, decode_huffman), (TRELLIS, decode_trellis)):
        coded = [t for t in tensors.values() if t.codec == codec]
        if coded:
            decode(content, coded)
    return config, {name: t.weights() for name, t in tensors.items()}


# ---- Export: what errors cost, which tensor gets which codec, and how the file fits --------------
#
# Bits belong where errors cost most. To second order, and at the end of training, where the
# gradient is small, a change of the weights costs half a quadratic form in nats, whose matrix is
# Fisher's information: the mean of the gradient's outer products over tokens. That is too large to
# hold. For a matrix it is all but a product of two factors (K-FAC, arXiv 1503.05671): the second
# moments of its inputs, and those of the gradients at its outputs, of which the squares suffice. In
# each factor a token weighs by its part in the other, so that both are exact in their traces.
# The token embedding is such a matrix, too, as the head; where it is looked up, an error costs by
# the square of the gradient there.
# Calibration collects them from training tokens, and the trellis codec takes the rest from them:
#   the same expected cost for every weight, whichever matrix, row or column it is in, so that one
#     number, the coarseness, trades loss for bytes over the whole network;
#   the correlations of the inputs for its error feedback.

MAX_TRIES = 10
FULL = 0.999  # part of the cap that FIT=fill has to reach
MARGIN = 0.0004  # part of the cap that a try stays below it


class MomentRecorder(TorchFunctionMode):
    """While it is on, adds up over the tokens of a float32 model's passes what errors cost.

    A token with the input x [C] of a matrix and the gradient g [R] at its output adds |x|^2 g_r^2
    to rows [R] and |g|^2 x x^T to columns [C,C]. One that looks up row r of a table adds the mean
    square of the gradient there to looked_up [R]. The token embedding is both.
    """

    def __init__(self, model: GPT):
        super().__init__()
        self.names = {}  # the parameter itself: its name
        self.rows = {}
        self.columns = {}
        self.looked_up = {}
        for name, p in model.named_parameters():
            if role_of(name).levels:
                self.names[p] = name
                self.rows[name] = p.new_full((len(p),), 1e-30)
                self.columns[name] = 1e-30 * torch.eye(p.size(1), device=p.device)
                self.looked_up[name] = p.new_zeros(len(p))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        uses = {F.linear: self.watch_matrix, F.embedding: self.watch_table}
        name = self.names.get(args[1]) if function in uses else None
        if name:
            uses[function](name, args[0], result)
        return result

    def watch_matrix(self, name: str, x: Tensor, y: Tensor) -> None:
        x = x.detach().flatten(0, -2)

        def add(gradient: Tensor) -> None:
            squares = gradient.flatten(0, -2).square()
            self.rows[name] += x.square().sum(dim=1) @ squares
            self.columns[name] += (x * squares.sum(dim=1, keepdim=True)).T @ x

        y.register_hook(add)

    def watch_table(self, name: str, indices: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares = gradient.square().mean(dim=-1)
            self.looked_up[name].index_add_(0, indices.flatten(), squares.flatten())

        y.register_hook(add)


def joint_moments(rows: Array, columns: Array, looked_up: Array, tokens: int) -> Moments:
    """Moments by a recorder's sums over so many tokens.

    What is looked up costs the same in every column. The sum of the two products is taken for one
    that is as dear in each row, for errors alike in all columns. Each row counts as if one token
    more had moved it: one that none has moved is rare, not free.
    """
    alike = len(columns) * looked_up
    share = rows.sum() / (rows.sum() + alike.sum())
    rows = (rows + alike) / tokens
    even = np.eye(len(columns)) / len(columns)
    columns = share * columns / np.trace(columns) + (1 - share) * even
    return Moments(rows + rows.sum() / tokens, columns)


def calibrate(model: GPT, stream: TokenStream, s: Settings, ranks: Ranks) -> dict[str, Moments]:
    """Moments of every parameter that may be quantised, in units of QUANTISATION_NATS, so that a
    coarseness of 1 costs that much in all; of training tokens alone, as `stream` has no others."""
    exact = copy.deepcopy(model).float()
    exact.dtype = torch.float32
    recorder = MomentRecorder(exact)
    for p, name in recorder.names.items():
        if role_of(name).trained_as == "matrix":
            p.requires_grad_(False)  # the tables' are enough to reach all activations

    count = s.export.calibration_tokens
    training = replace(s.training, train_batch_tokens=count)
    one_by_one = replace(s, training=training, run=replace(s.run, micro_batch_seqs=1))
    with recorder:
        for inputs, targets in train_batches(stream, 0, one_by_one, ranks):
            exact(inputs, targets).sum().backward()

    weights = sum(p.numel() for p in recorder.names)
    unit = 2 * s.export.quantisation_nats / weights  # twice, as an error costs half of the form

    moments = {}
    for name in recorder.rows:
        sums = (recorder.rows[name], recorder.columns[name], recorder.looked_up[name])
        sums = [ranks.sum_(tensor).double().cpu().numpy() for tensor in sums]
        joint = joint_moments(*sums, count)
        moments[name] = replace(joint, rows=joint.rows / unit)
    return moments


def code_tensor(
    name: str, w: Array, s: Export, coarseness: float, dither: float, moments: dict
) -> Coded:
    """Matrices and tables are quantised, `coarseness` times as coarsely as set; `dither` (0..1)
    lets numbers of levels change by one. All else is float16."""
    levels = role_of(name).levels
    codec = s.codec if levels else "float16"
    if name == "tok_emb":
        codec = s.embed_codec

    largest = np.abs(w).max()
    if codec.startswith("float") or largest >= HALF_LIMIT:
        return code_floats(w, codec)
    if codec == "trellis" and w.ndim > 1 and len(w) >= 16 and largest > 1e-10:
        return code_trellis(w, moments[name], coarseness, s.trellis_states)
    levels = int(getattr(s, f"{levels}_levels") / coarseness + dither)
    return code_huffman(w, min(255, max(2, levels)))


@dataclass
class Search:
    """For the coarseness at which the file fits under the cap or, with FIT=fill, fills it. By
    secants: a file shrinks by about one bit a weight with each octave of coarseness."""

    fit: str  # the setting FIT
    cap: int  # bytes that code and artifact may have
    budget: int  # bytes that the artifact may have
    bit: float  # bytes of one bit for each quantised weight
    octaves: float = 0.0  # log2 of the coarseness of the next try
    too_fine: float = -4.0  # octaves of the last try that was too large
    coarse_enough: float = 10.0  # octaves of the last try that fitted
    tries: tuple = ()  # octaves and bytes of each so far

    def settled(self, best: bytes) -> bool:
        """Whether the largest artifact that fits, b"" if there is none, is to be the last."""
        if not best:
            return self.fit == "off"
        return self.fit != "fill" or len(best) + self.cap - self.budget >= FULL * self.cap

    def learn(self, size: int) -> None:
        """Chooses the next octaves after a file of this size."""
        slope = self.bit  # bytes that an octave saves
        if self.tries:
            before, larger = self.tries[-1]
            slope = (larger - size) / (self.octaves - before)
        slope = min(max(slope, self.bit / 4), 2 * self.bit)
        step = (size - self.budget + MARGIN * self.cap) / slope

        if size <= self.budget:
            self.coarse_enough = self.octaves
        else:
            self.too_fine = self.octaves
        if self.coarse_enough == Search.coarse_enough:
            step = max(step, 0.002 * 2 ** len(self.tries))  # lest it creeps up on the cap

        self.tries += ((self.octaves, size),)
        self.octaves += step
        if not self.too_fine < self.octaves < self.coarse_enough:
            self.octaves = (self.too_fine + self.coarse_enough) / 2


def export(
    weights: dict, moments: dict, config: dict, s: Export, code_bytes: int, log: Log
) -> bytes:
    """The artifact's bytes, within the cap with the code, or UserError; weights (float32) and
    moments by name. Multiples of the golden ratio spread the dither evenly over the tensors."""
    quantised = sum(w.size for name, w in weights.items() if role_of(name).levels)
    search = Search(s.fit, s.size_cap_bytes, s.size_cap_bytes - code_bytes, quantised / 8)
    best = b""
    for _ in range(MAX_TRIES):
        coarseness = 2.0**search.octaves
        tensors = {
            name: code_tensor(name, w, s, coarseness, i * 0.618034 % 1, moments)
            for i, (name, w) in enumerate(weights.items())
        }
        artifact = encode_pcll(config, tensors, s.trellis_states)
        log(f"export: coarseness {coarseness:.4f}, {len(artifact)} bytes, budget {search.budget}")

        if len(artifact) <= search.budget:
            best = max(artifact, best, key=len)
        if search.settled(best):
            break
        search.learn(len(artifact))

    if not best:
        way_out = ", or set FIT=shrink" if s.fit == "off" else ""
        raise UserError(
            f"SIZE_CAP_BYTES={s.size_cap_bytes} is less than {code_bytes} bytes of code and "
            f"{len(artifact)} of artifact: make the model smaller{way_out}."
        )
    return best


# ---- Evaluation: a ledger of scores, sliding windows, and test-time training ---------------------
# A score is legal if the distribution of each token depends on the tokens before it alone, stands
# before that token is looked at, is entered once, and is entered before anything learns from the
# token. The ledger is the one way to the targets and enforces this; what adapts gets its tokens
# from the ledger, and so only those that are scored. What a document learns by itself comes from a
# ledger of its own.

NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"


def read_validation(counter: ByteCounter, s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The split's tokens (uint16 [n]) and the bytes of text of each but the first (int64 [n-1]).

    UserError if it is too short or its bytes are not those of its text.
    """
    stream = TokenStream(s.run.data_path, "val", s.model.vocab_size)
    if stream.total < 2:
        raise UserError(f"DATA_PATH={s.run.data_path}: the validation split has but one token.")
    tokens = stream.read(0, stream.total)
    counter.check(tokens[: 1 << 20])
    token_bytes = counter.count(tokens)
    if not token_bytes.any():
        raise UserError(f"DATA_PATH={s.run.data_path}: the validation split stands for no text.")
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

    Positions are entered once and in order. A target is looked at only with the logits that predict
    it; what to learn from is handed out once it is scored. All else is a ValueError.
    """

    def __init__(self, tokens: Tensor, token_bytes: np.ndarray):
        self.tokens = tokens  # int64 [n]
        self.nats = torch.zeros(len(tokens) - 1, device=tokens.device)
        self.bytes_before = np.concatenate(([0], np.cumsum(token_bytes)))  # each position
        self.scored = 0  # positions 0..scored-1 are entered

    def surprise(self, positions: Tensor, logits: Tensor) -> Tensor:
        """Nats of the true next tokens: positions [...], logits float32 [...,V]."""
        targets = self.tokens[positions + 1]
        nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return nats.view_as(targets)

    def enter(self, start: int, nats: Tensor) -> None:
        stop = start + len(nats)
        if start != self.scored or stop == start or stop > len(self.nats):
            raise ValueError(
                f"{len(nats)} positions from {start} are not the next of {len(self.nats)} to score"
            )
        self.nats[start:stop] = nats
        self.scored = stop

    def learnable(self, start: int, stop: int) -> Tensor:
        """Tokens start..stop: the inputs and targets of positions start..stop-1, all scored."""
        if not 0 <= start < stop <= self.scored:
            raise ValueError(
                f"positions {start}..{stop - 1} are not all scored yet: {self.scored} are"
            )
        return self.tokens[start : stop + 1]

    def prefix(self, count: int) -> str:
        """What the first `count` positions came to, for those who recompute only so many."""
        nats = float(self.nats[:count].double().sum())
        size = int(self.bytes_before[count])
        bpb = nats / math.log(2) / max(size, 1)
        return f"scored:{count} nats:{nats:.6f} bytes:{size} val_bpb:{bpb:.8f}"

    def score(self, seconds: float) -> Score:
        """Of the positions entered so far, which took so many seconds."""
        nats = float(self.nats[: self.scored].double().sum())
        size = int(self.bytes_before[self.scored])
        bpb = nats / math.log(2) / max(size, 1)
        return Score(nats / self.scored, bpb, self.scored, size, seconds)


def sliding_windows(count: int, length: int, stride: int) -> np.ndarray:
    """Windows that score so many positions, `stride` at a time: int64 [W,3], (start, first, stop).

    The inputs start..stop-1 go in, the positions first..stop-1 are scored. Each window sees the
    `length` inputs up to its end, or all from the stream's start.
    """
    begin = length % stride or stride  # so that one window ends where the first is full
    stop = np.minimum(np.arange(begin, count + stride, stride), count)
    first = np.append(0, stop[:-1])
    return np.stack((np.maximum(stop - length, 0), first, stop), axis=1)


def document_batches(tokens: np.ndarray, rows: int) -> list[np.ndarray]:
    """All documents, the longest first, in batches of so many: int64 [S,2], (start, stop).

    The positions start..stop-1 are those whose last input is of the document.
    """
    count = len(tokens) - 1
    edges = np.unique(np.concatenate(([0], np.flatnonzero(tokens[:count] == BOS_ID), [count])))
    documents = np.stack((edges[:-1], edges[1:]), axis=1)
    documents = documents[np.argsort(edges[:-1] - edges[1:], kind="stable")]
    return np.split(documents, range(rows, len(documents), rows))


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """x with its last row repeated up to a number of rows."""
    return torch.cat((x, x[-1:].expand(rows - len(x), -1)))


class Evaluator:
    """Scores a model on the validation split; every pass fills a ledger of its own."""

    def __init__(
        self, tokens: np.ndarray, token_bytes: np.ndarray, s: Settings, ranks: Ranks, log: Log
    ):
        """tokens uint16 [n]; token_bytes int64 [n-1], the bytes of text of tokens[1:]."""
        self.s = s
        self.ranks = ranks
        self.log = log
        self.tokens = torch.from_numpy(tokens.astype(np.int64)).to(ranks.device)
        self.token_bytes = token_bytes
        self.offsets = torch.arange(s.model.train_seq_len, device=ranks.device)
        self.pads = is_compiled(s.run, ranks.device)  # batches of one shape need one graph

    def score(self, model: GPT, name: str, stride: int, learner: "Learner | None" = None) -> Score:
        """Scores every position, chunk by chunk; the learner learns from each but the last.

        With a stride of train_seq_len the windows follow one another: the plain score.
        """
        began = time.monotonic()
        ledger = Ledger(self.tokens, self.token_bytes)
        windows = sliding_windows(len(ledger.nats), len(self.offsets), stride)
        size = self.s.evaluation.ttt_chunk_tokens
        if learner is None:
            size *= 4 * self.ranks.world  # a chunk is then only what a line of progress tells of

        edges = np.flatnonzero(np.diff((windows[:, 2] - 1) // size)) + 1
        for index, chunk in enumerate(np.split(windows, edges)):
            low = int(chunk[0, 1])
            high = int(chunk[-1, 2])
            ledger.enter(low, self.chunk_nats(model, ledger, chunk, stride))
            self.show_progress(name, ledger, time.monotonic() - began)
            self.log_prefixes(name, ledger, low)
            if learner and high < len(ledger.nats):
                learner.learn(ledger.learnable(low, high), index / (len(edges) + 1))
        return ledger.score(time.monotonic() - began)

    def log_prefixes(self, name: str, ledger: Ledger, before: int) -> None:
        """States the scores of the first 2,048, 4,096, 8,192, ... positions, of which `before` had
        been entered earlier."""
        mark = 2048
        while mark <= ledger.scored:
            if mark > before:
                self.log(f"{name}: {ledger.prefix(mark)}", console=False)
            mark *= 2

    def score_documents(self, model: GPT, name: str) -> Score:
        """Scores each document by itself, while it learns low-rank matrices of its own."""
        began = time.monotonic()
        frozen = copy.deepcopy(model).to(model.dtype).requires_grad_(False)  # and not compiled
        batches = document_batches(self.tokens.cpu().numpy(), self.s.evaluation.eval_batch_seqs)
        shares = share_by_cost([int(np.ptp(batch[0])) for batch in batches], self.ranks.world)
        mine = [batches[index] for index in shares[self.ranks.rank]]

        whole = Ledger(self.tokens, self.token_bytes)
        nats = torch.zeros_like(whole.nats)
        scored = 0
        for documents in mine:
            ledgers = [
                Ledger(self.tokens[start : stop + 1], self.token_bytes[start:stop])
                for start, stop in documents
            ]
            for count in self.turns(frozen, ledgers):
                scored += count
                if self.log.progress_is_due():
                    done = scored / sum(int(np.ptp(batch, axis=1).sum()) for batch in mine)
                    left = (time.monotonic() - began) / done * (1 - done)
                    self.log.progress(name, done, left)
            for (start, stop), own in zip(documents, ledgers, strict=True):
                nats[start:stop] = own.nats

        whole.enter(0, self.ranks.sum_(nats))
        self.log_prefixes(name, whole, 0)
        return whole.score(time.monotonic() - began)

    def turns(self, model: GPT, ledgers: list[Ledger]) -> Iterator[int]:
        """Fills the ledgers of documents side by side, the longest first, and learns in between.

        In each turn DOCUMENT_TOKENS of every document are scored, then learned from. Yields how
        many these were.
        """
        size = self.s.evaluation.document_tokens
        rows = nn.utils.rnn.pad_sequence([own.tokens for own in ledgers], batch_first=True)
        lora = LowRank(model, len(rows), self.s.evaluation)
        longest = len(ledgers[0].nats)

        for low in range(0, longest, size):
            going = [own for own in ledgers if low < len(own.nats)]
            first = max(0, low + size - len(self.offsets))
            inputs = rows[: len(going), first : low + size]
            lora.keep(len(going))
            at = torch.arange(low - first, inputs.size(1), device=rows.device)
            with lora:
                logits = model(inputs, at=at.expand(len(going), -1))

            loss = 0.0
            for own, row in zip(going, logits, strict=True):
                positions = torch.arange(low, min(low + size, len(own.nats)), device=rows.device)
                row = row[: len(positions)]
                own.enter(low, own.surprise(positions, row.detach()))
                loss = loss + F.cross_entropy(row, own.learnable(low, own.scored)[1:])
            if low + size < longest:
                lora.learn(loss)
            yield sum(own.scored - low for own in going)

    def chunk_nats(self, model: GPT, ledger: Ledger, windows: np.ndarray, stride: int) -> Tensor:
        """Nats (float32) of the consecutive positions that these windows score.

        Each rank scores its part of the batches; then all ranks add up.
        """
        windows = torch.from_numpy(windows).to(self.tokens.device)
        rows = self.s.evaluation.eval_batch_seqs
        if stride == len(self.offsets):
            rows = training_rows(self.s, self.ranks)

        table = torch.zeros(len(windows), stride, device=self.tokens.device)
        for low in range(0, len(windows), rows)[self.ranks.rank :: self.ranks.world]:
            batch = windows[low : low + rows]
            padded = pad_rows(batch, rows) if self.pads else batch
            nats = self.batch_nats(model, ledger, padded, stride)
            table[low : low + rows] = nats[: len(batch)]
        self.ranks.sum_(table)

        _, first, stop = windows.T[..., None]
        return table[first + self.offsets[:stride] < stop]

    def batch_nats(self, model: GPT, ledger: Ledger, windows: Tensor, stride: int) -> Tensor:
        """Nats float32 [B,stride] of the positions from each window's first on.

        Those behind its end are void, and no input behind it goes in.
        """
        start, first, stop = windows.T[..., None]
        positions = torch.minimum(first + self.offsets[:stride], stop - 1)
        if stride == len(self.offsets):  # by the graph that training has compiled
            return model(ledger.tokens[positions], ledger.tokens[positions + 1]).detach()

        inside = torch.minimum(start + self.offsets, stop - 1)
        with torch.inference_mode():
            logits = model(ledger.tokens[inside], at=positions - start)
            return ledger.surprise(positions, logits)

    def show_progress(self, name: str, ledger: Ledger, seconds: float) -> None:
        if self.log.progress_is_due():
            bpb = ledger.score(seconds).val_bpb
            done = ledger.scored / len(ledger.nats)
            left = seconds / done * (1 - done)
            self.log.progress(name, done, left, f"bpb so far {bpb:.4f}, ")

    def estimate(self, model: GPT) -> float:
        """Seconds that the sliding window would take, by one batch of each rank."""
        began = time.monotonic()
        ledger = Ledger(self.tokens, self.token_bytes)
        stride = self.s.evaluation.eval_stride
        windows = sliding_windows(len(ledger.nats), len(self.offsets), stride)
        sample = windows[: self.s.evaluation.eval_batch_seqs * self.ranks.world]
        self.chunk_nats(model, ledger, sample, stride)
        return (time.monotonic() - began) * len(windows) / len(sample)

    def warm_up(self, model: GPT) -> None:
        """Runs each graph of the evaluation once, so that nothing is compiled within its time."""
        self.estimate(model)
        rows = learning_rows(self.s.evaluation, self.ranks)
        tokens = self.tokens.new_zeros(rows, len(self.offsets))
        model(tokens, tokens.clone()).sum().backward()  # one tensor twice were another graph

    def train_then_score(self, model: GPT) -> Score:
        """What entry 532 did: TTT_EPOCHS passes over all validation tokens, then their score.

        NOT LEGAL: what is learned from does not come from a ledger.
        """
        learner = Learner(model, self.s, self.ranks)
        learner.epochs = 1
        epochs = self.s.evaluation.ttt_epochs
        for epoch in range(epochs):
            self.log(f"{NOT_LEGAL}: epoch {epoch + 1} of {epochs}")
            learner.learn(self.tokens, epoch / epochs)
        return self.score(model, NOT_LEGAL, self.s.evaluation.eval_stride)


def learning_rows(e: Evaluation, ranks: Ranks) -> int:
    """Sequences in an adaptation step of one rank, at most."""
    return -(-e.ttt_batch_seqs // ranks.world)


class Learner:
    """Adapts all weights by AdamW or SGD, each at its role's multiple of TTT_LR."""

    def __init__(self, model: GPT, s: Settings, ranks: Ranks):
        self.model = model
        self.ranks = ranks
        self.e = s.evaluation
        self.length = s.model.train_seq_len
        self.epochs = s.evaluation.ttt_epochs
        self.pads = is_compiled(s.run, ranks.device)

        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            by_rate.setdefault(self.e.ttt_lr * role_of(name).adapt_rate, []).append(p)
        groups = [dict(params=params, base_lr=rate) for rate, params in by_rate.items()]
        if self.e.ttt_optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.gradient = flat_gradient(model)

    def learn(self, tokens: Tensor, done: float) -> None:
        """Passes over tokens int64 [n] as sequences of train_seq_len; a shorter rest is left out.

        The rates fall as a cosine with the part of the split that is done.
        """
        set_rates([self.optimizer], 0.5 * (1 + math.cos(math.pi * done)))
        count = (len(tokens) - 1) // self.length
        inputs = tokens[: count * self.length].view(count, self.length)
        targets = tokens[1 : count * self.length + 1].view(count, self.length)
        batch = self.e.ttt_batch_seqs
        for first in [*range(0, count, batch)] * self.epochs:
            self.step(inputs[first : first + batch], targets[first : first + batch])

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One update on sequences [S,T], which the ranks share."""
        self.gradient.zero_()
        share = self.ranks.share(len(inputs))
        if share:
            mine = inputs[share.start : share.stop], targets[share.start : share.stop]
            if self.pads:
                mine = [pad_rows(x, learning_rows(self.e, self.ranks)) for x in mine]
            nats = self.model(*mine)[: len(share)]
            (nats.mean(dim=1).sum() / len(inputs)).backward()
        self.ranks.sum_(self.gradient)

        nn.utils.clip_grad_norm_(self.model.parameters(), self.e.ttt_grad_clip)
        self.optimizer.step()


def cosines(count: int, length: int) -> Tensor:
    """Rows of the fourth discrete cosine transform, float32 [count,length]: of norm 1, and at right
    angles up to the length-th."""
    rows = torch.arange(count, dtype=torch.float64) + 0.5
    columns = torch.arange(length, dtype=torch.float64) + 0.5
    angles = torch.outer(rows, columns) * (math.pi / length)
    return (math.sqrt(2 / length) * angles.cos()).float()


class LowRank(TorchFunctionMode):
    """While it is on, every row of a batch goes through matrices of its own: to each matrix W [R,C]
    of the frozen model is added B A (LoRA, arXiv 2106.09685).

    A [rows,rank,C] starts as cosines, B [rows,R,rank] as zeros. Both learn by AdamW with betas 0
    and 0.999, and a decay of 0.5 (1530).
    """

    def __init__(self, model: GPT, rows: int, e: Evaluation):
        super().__init__()
        self.rate = e.document_lr
        self.steps = 0
        self.pairs = {}  # the parameter itself: its A and B
        for name, p in model.named_parameters():
            if role_of(name).levels and name != "bigram.table":  # the one that is only looked up
                a = cosines(e.document_rank, p.size(1)).to(p.device).repeat(rows, 1, 1)
                self.pairs[p] = a, a.new_zeros(rows, len(p), e.document_rank)
        self.squares = [torch.zeros_like(x) for pair in self.pairs.values() for x in pair]

    def keep(self, rows: int) -> None:
        """Goes on with the first rows alone."""
        for p, pair in self.pairs.items():
            self.pairs[p] = tuple(x[:rows].detach().requires_grad_() for x in pair)
        self.squares = [square[:rows] for square in self.squares]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        pair = self.pairs.get(args[1]) if function is F.linear else None
        if pair is None:
            return result
        x = args[0]
        a, b = (z.to(x.dtype).mT for z in pair)
        return result + x @ a @ b

    def learn(self, loss: Tensor) -> None:
        """A step of each row, from a sum over them."""
        self.steps += 1
        learned = [x for pair in self.pairs.values() for x in pair]
        gradients = torch.autograd.grad(loss, learned)
        for x, square, g in zip(learned, self.squares, gradients, strict=True):
            square.lerp_(g.square(), 0.001)
            size = (square / (1 - 0.999**self.steps)).sqrt() + 1e-8
            x.data.mul_(1 - 0.5 * self.rate).addcdiv_(g, size, value=-self.rate)


# ---- Training ------------------------------------------------------------------------------------


def rate_scale(steps_left: float, part_done: float, t: Training) -> float:
    """Scale of all learning rates: 1, then linearly to WARMDOWN_FLOOR at the training's end."""
    left = steps_left / max(t.warmdown_iters, 1)
    if t.warmdown_fraction:
        left = (1 - part_done) / t.warmdown_fraction
    return t.warmdown_floor + (1 - t.warmdown_floor) * max(0.0, min(1.0, left))


def momentum_at(step: int, t: Training) -> float:
    """Muon's momentum, which warms up linearly."""
    warm = min(1.0, step / max(t.muon_momentum_warmup_steps, 1))
    start = t.muon_momentum_warmup_start
    return start + warm * (t.muon_momentum - start)


@contextlib.contextmanager
def rounded_to_int6(matrices: list[Tensor]) -> Iterator[None]:
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


class Trainer:
    """All that changes while a model trains, and that a checkpoint therefore holds."""

    def __init__(self, model: GPT, s: Settings, ranks: Ranks):
        self.model = model
        self.s = s
        self.ranks = ranks
        self.stream = TokenStream(s.run.data_path, "train", s.model.vocab_size)
        sequences = s.training.train_batch_tokens // s.model.train_seq_len
        if sequences < ranks.world:
            raise UserError(
                f"TRAIN_BATCH_TOKENS={s.training.train_batch_tokens} holds fewer sequences than "
                "there are ranks."
            )
        self.gradient = flat_gradient(model, extra=1)  # at its end the sum of the losses
        self.finished = torch.cuda.Event() if ranks.device.type == "cuda" else None
        self.optimizers = build_optimizers(model, s.training, ranks)
        self.average = copy.deepcopy(model)
        self.step = 0
        self.seconds = 0.0
        self.durations = []  # of the last steps, in seconds
        self.saved = None  # the last checkpoint's path
        self.quantised = []  # the parameters that are rounded while it trains
        # Step, loss, and the norm of each parameter's gradient, which only loss() reads: a look at
        # it makes the host wait for the GPU.
        self.report = self.gradient.new_zeros(2 + len(list(model.parameters())))

    def set_schedule(self) -> None:
        """Rates, momentum and late quantisation-aware training, as step and clock have it."""
        t = self.s.training
        scale = rate_scale(self.steps_left(), self.part_done(), t)
        set_rates(self.optimizers, scale)
        self.optimizers[0].param_groups[0]["momentum"] = momentum_at(self.step, t)  # Muon's
        self.model.loop(self.part_done() >= t.loop_from)

        late = scale < t.late_qat_threshold
        self.quantised = [
            p
            for name, p in self.model.blocks.named_parameters(prefix="blocks")
            if late and role_of(name).trained_as == "matrix" and p.numel() > t.late_qat_min_elements
        ]

    def update(self) -> None:
        """One update of all parameters.

        On a GPU it returns when the step before has finished: there is always work in the queue,
        and never more than a step of it. Nothing else in it waits for the GPU.
        """
        self.add_gradients()
        norms = torch.stack(torch._foreach_norm([p.grad for p in self.model.parameters()]))
        self.step += 1
        self.take_down(norms)

        limit = self.s.training.grad_clip_norm
        if limit > 0:
            self.gradient *= (limit / (norms.norm() + 1e-6)).clamp(max=1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.update_average()

        if self.finished:
            self.finished.synchronize()
            self.finished.record()

    def add_gradients(self) -> None:
        """The gradients and the loss of a whole step, over all ranks' tokens."""
        self.gradient.zero_()
        with rounded_to_int6(self.quantised):
            for inputs, targets in train_batches(self.stream, self.step, self.s, self.ranks):
                part = inputs.numel() / self.s.training.train_batch_tokens
                loss = self.model(inputs, targets).mean() * part
                loss.backward()
                self.gradient[-1] += loss.detach()
        self.ranks.sum_(self.gradient)

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average, which the first step's weights begin, towards the present weights."""
        decay = self.s.training.ema_decay if self.step > 1 else 0.0
        average = list(self.average.parameters())
        torch._foreach_lerp_(average, list(self.model.parameters()), 1 - decay)

    def take_down(self, norms: Tensor) -> None:
        """Notes the step's loss and norms, unless a step before it had one that is not finite."""
        step = self.gradient.new_full((1,), self.step)
        report = torch.cat((step, self.gradient[-1:], norms))
        self.report = torch.where(self.report.isfinite().all(), report, self.report)

    def loss(self) -> float:
        """The last step's mean loss in nats over all ranks' tokens.

        UserError if a loss or gradient was not finite, with the first step at which that was so.
        """
        step, loss, *norms = self.report.tolist()
        named = zip(self.model.named_parameters(), norms, strict=True)
        bad = [name for (name, _), norm in named if not math.isfinite(norm)]
        if bad or not math.isfinite(loss):
            way_back = f" RESUME={self.saved} goes back to a checkpoint." if self.saved else ""
            raise UserError(
                f"At step {step:.0f} the loss is {loss:.4g} and {len(bad)} gradients are not "
                f"finite, first {bad[:1]}. {SLOWER}{way_back}"
            )
        return loss

    def ended(self) -> bool:
        return self.step >= self.s.training.iterations or self.seconds >= self.s.training_seconds

    def step_text(self) -> str:
        return f"step:{self.step}/{self.s.training.iterations}"

    def time_text(self) -> str:
        return f"train_time:{1000 * self.seconds:.0f}ms"

    def part_done(self) -> float:
        """Of the training, by steps or by time, whichever is further (0..1)."""
        by_steps = self.step / max(self.s.training.iterations, 1)
        by_time = self.seconds / self.s.training_seconds
        return min(1.0, max(by_steps, by_time))

    def steps_left(self) -> float:
        """Until the last step or, at the pace of the middle one of the last steps, until the cap.

        The very first steps may still have had to prime something.
        """
        left = self.s.training.iterations - self.step
        if len(self.durations) > 4:
            pace = statistics.median(self.durations)
            left = min(left, (self.s.training_seconds - self.seconds) / max(pace, 1e-9))
        return left

    def seconds_left(self) -> float:
        """Until the last step at the same pace, or until the cap."""
        by_steps = self.steps_left() * statistics.median(self.durations)
        return max(0.0, min(by_steps, self.s.training_seconds - self.seconds))

    def take_time(self, seconds: float) -> None:
        """Notes that the training has taken so long, now that a step is done."""
        self.durations = [*self.durations[-49:], seconds - self.seconds]
        self.seconds = seconds

    def speed(self) -> str:
        """Tokens a second so far, and the model-flops utilisation of H100s and H200s."""
        rate = self.step * self.s.training.train_batch_tokens / self.seconds
        text = f"tok_s:{rate:.0f}"
        if self.finished and torch.cuda.get_device_name().startswith(HOPPER):
            used = rate * training_flops(self.model, self.s.model)
            text += f" mfu:{used / (HOPPER_FLOPS * self.ranks.world):.3f}"
        return text

    def warm_up(self, log: Log) -> None:
        """Steps that prime the compiler; what they did is undone."""
        before = copy.deepcopy(self.state())
        set_rates(self.optimizers, 1.0)
        for step in range(self.s.training.warmup_steps):
            self.model.loop(step % 2 == 1)  # the graphs of before and after LOOP_FROM
            if log.progress_is_due():
                log.write(sys.stdout, f"warmup_step:{step}/{self.s.training.warmup_steps}")
            self.update()
        self.model.loop(True)
        self.restore(before)

    def state(self) -> dict[str, Any]:
        """All that a training goes on from; its tensors are the trainer's own."""
        return dict(
            settings=flat(*vars(self.s).values()),
            step=self.step,
            seconds=self.seconds,
            durations=self.durations,
            model=self.model.state_dict(),
            average=self.average.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
        )

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.durations = state["durations"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.report.zero_()

    def save(self, folder: Path) -> Path:
        """Writes STEP.pt, unless something is not finite, and keeps the newest two of them.

        The file's last 32 bytes are the SHA-256 of those before.
        """
        self.loss()
        if not all(p.isfinite().all() for p in self.average.parameters()):
            raise UserError(f"After step {self.step} the weights are not finite. {SLOWER}")
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        data = buffer.getvalue()
        path = folder / f"{self.step:08d}.pt"
        write_atomically(path, data + hashlib.sha256(data).digest())

        others = {*folder.glob(CHECKPOINT_NAMES)} - {path}
        for old in sorted(others, key=os.path.getmtime)[:-1]:
            old.unlink()
        self.saved = path
        return path

    def load(self, path: Path) -> None:
        """Goes on where the checkpoint was written.

        UserError if it is damaged or of another configuration; it may be of a shorter run.
        """
        damaged = UserError(f"RESUME={path} is not a whole checkpoint of this script.")
        data = path.read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise damaged
        try:
            state = torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
            theirs = dict(state["settings"])
        except Exception:  # of many kinds: whoever wrote the file could sum it up, too
            raise damaged from None

        for name, value in flat(self.s.model, self.s.training).items():
            saved = theirs.get(name)
            if name not in LENGTH_SETTINGS and saved != value:
                raise UserError(f"{name.upper()}={value}, but RESUME={path} has {saved}.")
        try:
            self.restore(state)
        except Exception:
            raise damaged from None
        self.saved = path


SLOWER = "Lower the learning rates."
# How long a run is may change when it is resumed.
LENGTH_SETTINGS = (
    "iterations",
    "max_wallclock_seconds",
    "warmdown_iters",
    "warmdown_fraction",
    "warmup_steps",
)
HOPPER = ("NVIDIA H100", "NVIDIA H200")
HOPPER_FLOPS = 989e12  # operations a second, dense bfloat16


def training_flops(model: GPT, m: Model) -> float:
    """Operations for each token that is trained on.

    6 for each weight of a matrix, and 6 T D a layer for causal attention, forward and back.
    """
    weights = model.tok_emb.numel()
    if model.bigram is not None:
        weights += model.bigram.proj.numel()
    for index in model.order:
        for name, p in model.blocks[index].named_parameters():
            if role_of(name).trained_as == "matrix":
                weights += p.numel()
    return 6.0 * (weights + len(model.order) * m.train_seq_len * m.model_dim)


def find_checkpoint(run: Run) -> Path:
    """The file that RESUME means; UserError if there is none."""
    path = Path(run.resume)
    if run.resume == "latest":
        paths = Path("checkpoints").glob(f"{run.run_id or '*'}/{CHECKPOINT_NAMES}")
        path = max(paths, key=os.path.getmtime, default=path)
    if not path.is_file():
        raise UserError(f"RESUME={run.resume}: there is no such checkpoint.")
    return path


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


def train(trainer: Trainer, log: Log, folder: Path, validate: Callable[[str], Score]) -> None:
    """Trains until the last step or the wall-clock cap; UserError if it was asked to stop.

    The last step is always followed by a checkpoint, so that what comes after can be repeated.
    """
    run = trainer.s.run
    stop = StopRequest()
    saved = time.monotonic()
    began = saved - trainer.seconds

    while not trainer.ended():
        trainer.set_schedule()
        with saving_what_is_done(trainer, log, folder):
            trainer.update()
        seconds, stopping = trainer.ranks.from_first(time.monotonic() - began, stop.requested)
        trainer.take_time(seconds)
        if log.progress_is_due():
            log.progress("training", trainer.part_done(), trainer.seconds_left())
        if trainer.step == 5 or trainer.ended():
            warn_of_short_run(trainer, log)
        if trainer.step <= 5 or trainer.step % run.train_log_every == 0 or trainer.ended():
            average = f"step_avg:{1000 * seconds / trainer.step:.2f}ms"
            loss = f"train_loss:{trainer.loss():.4f}"
            log(f"{trainer.step_text()} {loss} {trainer.time_text()} {average} {trainer.speed()}")

        if run.val_loss_every and trainer.step % run.val_loss_every == 0:
            with saving_what_is_done(trainer, log, folder):
                score = validate("validation")
            log(f"{trainer.step_text()} {score} {trainer.time_text()}")
            began = time.monotonic() - seconds  # validation is not training time
        if stopping or 0 < run.checkpoint_every <= time.monotonic() - saved:
            save_checkpoint(trainer, log, folder)
            saved = time.monotonic()
            began = saved - seconds  # nor is writing
        if stopping:
            raise UserError(f"Stopped at step {trainer.step}.{way_on(trainer)}")

    if trainer.step < trainer.s.training.iterations:
        log(f"stopping_early: wallclock_cap {trainer.time_text()} {trainer.step_text()}")
    tokens = trainer.step * trainer.s.training.train_batch_tokens
    epochs = tokens / trainer.stream.total
    log(f"train_tokens:{tokens} of {trainer.stream.total} in the shards: {epochs:.3f} epochs")
    save_checkpoint(trainer, log, folder)
    stop.at_once = True


def warn_of_short_run(trainer: Trainer, log: Log) -> None:
    """Says so if the learning rates fall during more than half of the training."""
    t = trainer.s.training
    total = trainer.step + trainer.steps_left()
    if total < 2 * t.warmdown_iters and not t.warmdown_fraction:
        log(
            f"warning: of about {total:.0f} steps the last WARMDOWN_ITERS={t.warmdown_iters} are "
            "trained with falling learning rates; with WARMDOWN_FRACTION=0.5 the last half is."
        )


def save_checkpoint(trainer: Trainer, log: Log, folder: Path) -> None:
    """By rank 0; if it cannot be written, the run goes on without it."""
    if trainer.ranks.rank == 0:
        try:
            log(f"checkpoint: {trainer.save(folder)}", console=False)
        except OSError as error:
            log(f"warning: no checkpoint at step {trainer.step}: {explain(error)}")


@contextlib.contextmanager
def saving_what_is_done(trainer: Trainer, log: Log, folder: Path) -> Iterator[None]:
    """What fails before it changes the weights, by bad data or for lack of memory, loses no step
    but its own."""
    done = trainer.step
    try:
        yield
    except BaseException as error:  # also a Ctrl-C
        if 0 < done == trainer.step:
            with contextlib.suppress(Exception):  # as the GPU may have failed
                save_checkpoint(trainer, log, folder)
        error.add_note(way_on(trainer))
        raise


def way_on(trainer: Trainer) -> str:
    """How to go on from the last checkpoint."""
    return f" To go on: RESUME={trainer.saved}, all else the same." if trainer.saved else ""


# ---- Main ----------------------------------------------------------------------------------------


# What may differ between runs of one system.
PER_RUN = ("preset", "run_id", "seed", "artifact_path", "checkpoint_every", "resume")


def log_start(log: Log, source: str, s: Settings, ranks: Ranks, model: GPT) -> None:
    """The source, so that the log can be rerun; then versions, machine and settings.

    UserError if a log that goes on begins with another source: its score would be of neither.
    """
    before = Path(log.file.name).read_bytes() if log.active else b""
    if not before:
        log(f"{source}\n{'=' * 80}", console=False)
    elif not before.startswith(source.encode()):
        raise UserError(
            f"{log.file.name} begins with another {Path(__file__).name}: give RUN_ID another name, "
            "for a new log."
        )
    gpu = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "none"
    log(
        f"python {sys.version.split()[0]} torch {torch.__version__} numpy {np.__version__} "
        f"zstandard {zstandard.__version__} GPU {gpu}"
    )
    usual = PRESETS[s.run.preset]
    changed = []
    for name, value in flat(*vars(s).values()).items():
        log(f"{name}:{value}", console=False)
        if name not in PER_RUN and value != usual.get(name, FIELDS[name].default):
            changed.append(f"{name.upper()}={value}")
    log(
        f"changed:{' '.join(changed)}\n"
        f"preset:{s.run.preset} world_size:{ranks.world} device:{ranks.device.type} "
        f"dtype:{model.dtype} seed:{s.training.seed} "
        f"model_params:{sum(p.numel() for p in model.parameters())}\n"
        f"attention by {choose_attention(s.model, ranks.device, model.dtype)} kernel"
    )


def warn_of_slow_steps(trainer: Trainer, log: Log) -> None:
    """Says how long a step will take if that is long, as it is for a full model without a GPU."""
    if trainer.ranks.device.type == "cuda":
        return
    rate = 5e10 * torch.get_num_threads()  # operations a second, as a usual core does them
    tokens = trainer.s.training.train_batch_tokens / trainer.ranks.world
    seconds = tokens * training_flops(trainer.model, trainer.s.model) / rate
    if seconds > 30:
        log(
            f"warning: without a GPU a step takes about {seconds / 60:.0f} minutes. PRESET=demo is "
            "made for a CPU; a lower TRAIN_BATCH_TOKENS makes shorter steps."
        )


def warm_up(trainer: Trainer, evaluator: Evaluator, log: Log) -> None:
    """Primes the training and, where it is compiled, the evaluation, before their clocks."""
    warn_of_slow_steps(trainer, log)
    began = time.monotonic()
    trainer.warm_up(log)
    if evaluator.pads:
        evaluator.warm_up(trainer.model)
        sequences = trainer.s.model.train_seq_len * trainer.ranks.world
        export = replace(trainer.s.export, calibration_tokens=sequences)
        calibrate(trainer.model, trainer.stream, replace(trainer.s, export=export), trainer.ranks)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    log(
        f"warm-up and compilation: {time.monotonic() - began:.1f} s, {graphs} graphs, not counted "
        "as training"
    )


def write_artifact(
    trainer: Trainer, tokenizer_sha256: str, code_bytes: int, own: Path, log: Log
) -> bytes:
    """Calibrates on all ranks; the first one quantises the weights and writes the file.

    Every rank gets the bytes from it: what lies on another node's disk may be another run's.
    """
    s = trainer.s
    began = time.monotonic()
    moments = {}
    if "trellis" in (s.export.codec, s.export.embed_codec):
        moments = calibrate(trainer.model, trainer.stream, s, trainer.ranks)
    log(f"calibration_time:{1000 * (time.monotonic() - began):.0f}ms")

    artifact = b""
    if trainer.ranks.rank == 0:
        config = flat(s.model, s.training, s.export, s.evaluation)
        config["tokenizer_sha256"] = tokenizer_sha256
        state = trainer.model.state_dict()
        weights = {name: w.cpu().numpy() for name, w in state.items()}
        artifact = export(weights, moments, config, s.export, code_bytes, log)
        publish(artifact, Path(s.run.artifact_path), own)
    (artifact,) = trainer.ranks.from_first(artifact)
    total = code_bytes + len(artifact)
    below = s.export.size_cap_bytes - total
    log(
        f"export_time:{1000 * (time.monotonic() - began):.0f}ms\n"
        f"artifact_sha256:{hashlib.sha256(artifact).hexdigest()} {own}\n"
        f"Code size: {code_bytes} bytes\n"
        f"Serialized model pcll: {len(artifact)} bytes\n"
        f"Total submission size pcll: {total} bytes, {below} below the cap"
    )
    return artifact


def publish(artifact: bytes, path: Path, own: Path) -> None:
    """Writes the artifact under the run's own name and to ARTIFACT_PATH.

    What lies there and is not of this run is kept beside it: artifact.1.pcll, artifact.2.pcll, ...
    """
    earlier = own.read_bytes() if own.is_file() else artifact
    write_atomically(own, artifact)
    if path.is_file() and path.read_bytes() not in (earlier, artifact):
        names = (path.with_name(f"{path.stem}.{i}{path.suffix}") for i in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
    write_atomically(path, artifact)


def load_artifact(model: GPT, artifact: bytes) -> None:
    """Gives the model the weights that a reader of the file would have."""
    _, weights = decode_pcll(artifact)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})


BEFORE = "before export, plain"
AFTER = "after export, plain"
SLIDING = "after export, sliding window"
ADAPTED = "after score-first adaptation, sliding window"
PER_DOCUMENT = "after adaptation per document"
FINAL_LINES = {
    SLIDING: "final_pcll_sliding_exact",
    ADAPTED: "final_pcll_ttt_exact",
    PER_DOCUMENT: "final_pcll_ttt_exact",
}
BY_PROTOCOL = {
    "score_first": ADAPTED,
    "per_document": PER_DOCUMENT,
    "train_then_score": NOT_LEGAL,
}


def score_artifact(
    model: GPT, artifact: bytes, evaluator: Evaluator, scores: dict[str, Score], log: Log
) -> str:
    """Adds all scores of the file's weights; returns the name of the one that stands for the run.

    That one is made first. What follows is left out if it would end after EVAL_SECONDS. An
    adaptation that diverged has no score.
    """
    e = evaluator.s.evaluation
    began = time.monotonic() - scores[BEFORE].seconds
    load_artifact(model, artifact)
    headline = SLIDING
    if e.ttt_protocol in ("score_first", "per_document"):
        name = BY_PROTOCOL[e.ttt_protocol]
        if name == ADAPTED:
            learner = Learner(model, evaluator.s, evaluator.ranks)
            adapted = evaluator.score(model, name, e.eval_stride, learner)
            load_artifact(model, artifact)
        else:
            adapted = evaluator.score_documents(model, name)
        if math.isfinite(adapted.val_bpb):
            headline = name
            scores[name] = adapted
            log(f"{FINAL_LINES[name]} {adapted}")

    scores[AFTER] = evaluator.score(model, AFTER, evaluator.s.model.train_seq_len)
    if headline == SLIDING or has_time(evaluator, model, time.monotonic() - began, log):
        scores[SLIDING] = evaluator.score(model, SLIDING, e.eval_stride)
        log(f"{FINAL_LINES[SLIDING]} {scores[SLIDING]}")
    if e.ttt_protocol == "train_then_score":
        adapted = evaluator.train_then_score(model)
        if math.isfinite(adapted.val_bpb):
            scores[NOT_LEGAL] = adapted
            log(f"{NOT_LEGAL} train_then_score {adapted}")
    log(f"eval_total_time:{1000 * (time.monotonic() - began):.0f}ms")
    return headline


def has_time(evaluator: Evaluator, model: GPT, spent: float, log: Log) -> bool:
    """Whether a sliding window ends within EVAL_SECONDS, so many of which are spent."""
    spent, needed = evaluator.ranks.from_first(spent, evaluator.estimate(model))
    limit = evaluator.s.evaluation.eval_seconds or math.inf
    if spent + needed > limit:
        log(
            f"The sliding window with fixed weights was left out: {needed:.0f} s more after "
            f"{spent:.0f} s of evaluation would have been over EVAL_SECONDS={limit:g}."
        )
    return spent + needed <= limit


def log_end(log: Log, scores: dict[str, Score], headline: str, s: Settings) -> None:
    """A short table, the line to quote, and what to type next."""
    for name in (BEFORE, AFTER, SLIDING, *BY_PROTOCOL.values()):
        if name in scores:
            log(f"  {name:<44} {scores[name].val_bpb:8.4f} bpb {scores[name].seconds:8.1f} s")
    log(f"headline: {FINAL_LINES[headline]} {scores[headline]}")

    words = [s.run.artifact_path, "--data", s.run.data_path, "--tokenizer", s.run.tokenizer_path]
    if headline != SLIDING:
        words.append("--ttt")
    words += ["--claim", f"{scores[headline].val_bpb:.6f}"]
    log(f"Check it: python verify.py {shlex.join(words)}")


def open_data(s: Settings, ranks: Ranks) -> ByteCounter:
    """The tokenizer's byte counts; the demo's tokenizer and shards are made if there are none."""
    paths = dict(data_path=s.run.data_path, tokenizer_path=s.run.tokenizer_path)
    own = s.run.preset == "demo" and paths.items() <= PRESETS["demo"].items()
    made = Path(s.run.tokenizer_path).is_file() and find_shards(s.run.data_path, "train")
    if own and not made:
        if ranks.rank == 0:
            make_demo_data(s.run, s.model.vocab_size)
        ranks.from_first(None)  # all wait for it
    return ByteCounter(s.run.tokenizer_path, s.model.vocab_size)


def start_log(run: Run, checkpoint: Path | None, ranks: Ranks) -> Log:
    """The log RUN_ID, or of the run that is resumed, or by date, time and process of rank 0.

    UserError if it or another file of the run could not be written.
    """
    (new,) = ranks.from_first(f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}")
    resumed = checkpoint.resolve().parent.name if checkpoint else ""
    run_id = run.run_id or resumed or new
    if ranks.rank == 0:
        check_writable(Path(run.artifact_path), "ARTIFACT_PATH=")
        check_writable(Path("checkpoints") / run_id / "0.pt", "")
    return Log(run_id, ranks, run_id == resumed)


def run(s: Settings, ranks: Ranks) -> None:
    """Trains, exports and scores; UserError for what the person who started it can mend."""
    source = Path(__file__).read_bytes()
    checkpoint = find_checkpoint(s.run) if s.run.resume else None
    counter = open_data(s, ranks)
    validation = read_validation(counter, s)

    torch.manual_seed(s.training.seed)
    model = GPT(s.model, getattr(torch, s.training.dtype)).to(ranks.device)
    trainer = Trainer(model, s, ranks)
    if checkpoint:
        trainer.load(checkpoint)

    log = start_log(s.run, checkpoint, ranks)
    log_start(log, source.decode(), s, ranks, model)
    if is_compiled(s.run, ranks.device):
        compile_model(model)
    evaluator = Evaluator(*validation, s, ranks, log)
    warm_up(trainer, evaluator, log)
    if checkpoint:
        log(f"resumed from {checkpoint} at step {trainer.step}")

    def plain_score(name: str) -> Score:
        return evaluator.score(model, name, s.model.train_seq_len)

    train(trainer, log, Path("checkpoints") / log.run_id, plain_score)
    try:
        finish(trainer, evaluator, counter.sha256, len(source), log)
    except BaseException as error:  # also a Ctrl-C
        saved = trainer.saved
        error.add_note(f" RESUME={saved} repeats all but the training." if saved else "")
        raise
    if ranks.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def finish(
    trainer: Trainer, evaluator: Evaluator, tokenizer_sha256: str, code_bytes: int, log: Log
) -> None:
    """Exports the averaged weights and scores the artifact; a checkpoint is enough to repeat it."""
    s = trainer.s
    model = trainer.model
    model.loop(True)
    model.load_state_dict(trainer.average.state_dict())
    scores = {BEFORE: evaluator.score(model, BEFORE, s.model.train_seq_len)}
    if not math.isfinite(scores[BEFORE].val_bpb):
        raise UserError(f"The trained weights have no finite score. {SLOWER}")
    own = Path("logs") / f"{log.run_id}.pcll"
    artifact = write_artifact(trainer, tokenizer_sha256, code_bytes, own, log)
    headline = score_artifact(model, artifact, evaluator, scores, log)
    log_end(log, scores, headline, s)
    protocol = s.evaluation.ttt_protocol
    if BY_PROTOCOL.get(protocol, headline) not in scores:
        rate = "DOCUMENT_LR" if protocol == "per_document" else "TTT_LR"
        raise UserError(f"The adaptation diverged, so that it has no score: lower {rate}.")


def explain(error: BaseException) -> str:
    """One sentence for the person who started the run; raises an error that is ours to mend."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            "The memory is full: lower MICRO_BATCH_SEQS (training), EVAL_BATCH_SEQS or "
            "TTT_BATCH_SEQS."
        )
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return "Another rank has ended; its own output says why."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file could not be written'}: {error.strerror}."
    if isinstance(error, UserError | KeyboardInterrupt):
        return str(error) or "Stopped."
    raise error


def usage() -> str:
    """What --help prints: the file's first words, the presets, and every setting with its range."""
    lines = [__doc__.partition("The entry")[0], f"Presets: {', '.join(PRESETS)}"]
    for group in dataclasses.fields(Settings):
        lines.append(f"\n{group.type.__name__}: {group.type.__doc__}")
        for member in dataclasses.fields(group.type):
            explained = f"{member.metadata['text']} ({allowed_values(member)})"
            lines.append(f"  {member.name.upper()}={member.default}\n      {explained}")
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
        settings = load_settings(dict(os.environ))
        run(settings, join_ranks(settings.run))
    except (UserError, OSError, RuntimeError, KeyboardInterrupt) as error:
        print(explain(error), *getattr(error, "__notes__", ()), sep="", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
