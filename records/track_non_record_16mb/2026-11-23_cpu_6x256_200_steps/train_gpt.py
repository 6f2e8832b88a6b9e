"""Trains a small language model, packs it into `artifact.pcll`, and scores it from that file.

    PRESET=demo python train_gpt.py                               a small model on 2 CPU cores, in minutes
    torchrun --standalone --nproc_per_node=8 train_gpt.py         the full model on 8 GPUs, in 10 minutes

The entry "pcloadloveletter v6" (number 532) of the Parameter Golf challenge, rebuilt: code plus artifact stay under
16,000,000 bytes, the score is bits per byte (bpb) on the FineWeb validation split. Every setting is an environment
variable; the table of them stands below. The artifact's format is specified in `decode_artifact.py`.
In this order: settings, ranks and log, data, model, optimizer, codec, export, evaluation, training, main.
"""

import ast
import bisect
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
import torch.nn.functional as F
import zstandard
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

# ---- Settings -------------------------------------------------------------------------------------------------------

class UserError(Exception):
    """Something that the person who started the run can mend; its text is the one sentence that they see."""


@dataclass(frozen=True)
class Settings:
    """Each is set by the environment variable of its upper-case name. A line ends with the source of the default: an
    entry's number, "base" for the challenge's baseline script, or "ours". The artifact states those of the model and
    after; a checkpoint is resumed only with the same model and training."""

    # Run
    preset: str = "pcll"  # a named set of settings: pcll, frontier, pcloadloveletter_v6, demo; ours
    run_id: str = ""  # name of the log file logs/RUN_ID.txt; empty: date and time; base
    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto: the GPU if there is one; ours
    compile: bool = True  # torch.compile on a GPU; 532
    artifact_path: str = "artifact.pcll"  # where the artifact is written; ours
    data_path: str = "data/datasets/fineweb10B_sp1024"  # folder of fineweb_train_*.bin and fineweb_val_*.bin; base
    tokenizer_path: str = "data/tokenizers/fineweb_1024_bpe.model"  # SentencePiece model; base
    micro_batch_seqs: int = 48  # sequences per forward pass of one rank at most: lower it if memory runs out; base
    train_log_every: int = 50  # steps between lines of the log; base
    val_loss_every: int = 0  # steps between plain validations, 0: at the end only; base
    checkpoint_every: float = -1.0  # seconds between checkpoints; 0: none; -1: 60, none if the cap is 600 or less; ours
    resume: str = ""  # path of a checkpoint to go on from, or "latest" (of RUN_ID, if that is set); ours
    # Model
    vocab_size: int = 1024  # pieces; base
    num_layers: int = 11  # blocks; 532
    model_dim: int = 512  # width of the residual stream; 532
    num_heads: int = 8  # query heads; 532
    num_kv_heads: int = 4  # key/value heads, each serves num_heads/num_kv_heads query heads; 532
    mlp_hidden: int = 1500  # width inside the MLP; 532
    mlp_negative_slope: float = 0.5  # of the leaky ReLU that is then squared (0: plain ReLU squared); 532
    rope_dims: int = 16  # leading dimensions of each head that rotate; 532
    rope_base: float = 50000.0  # base of the rotary wavelengths; 532
    qk_gain_init: float = 1.5  # initial gain of each query head; 532
    logit_softcap: float = 30.0  # c in c * tanh(logit / c); base
    xsa_last_n: int = 4  # last layers with exclusive self-attention; 532
    bigram_buckets: int = 2048  # rows of the bigram hash table, 0: none; 532
    bigram_dim: int = 128  # width of the bigram hash table; 532
    bigram_init_std: float = 0.02  # of the table; 0 as in 532 never learns, as the projection, too, starts at 0; ours
    ln_scale: bool = True  # normed inputs of layer i are scaled by 1/sqrt(i+1); 532
    smear_gate: bool = True  # each position mixes in the one before; 532
    value_residual: bool = True  # layers mix in the first layer's values (arXiv 2410.17897); 532
    gated_attention: bool = True  # a sigmoid gate per head (arXiv 2505.06708); 532
    unet_skips: bool = True  # the first half's outputs are added in the second half; base
    bos_reset: bool = True  # smear gate and bigram hash do not look across a BOS (532 looked across); ours
    # Training
    seed: int = 1337  # seeds the initial weights; base
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations; 532
    iterations: int = 20000  # optimizer steps at most; base
    max_wallclock_seconds: float = 600.0  # training time at most, 0: no limit; base
    train_batch_tokens: int = 786432  # tokens per step over all ranks; 532
    train_seq_len: int = 2048  # tokens per sequence, also the window of the evaluation; 532
    warmup_steps: int = 20  # steps that prime the compiler and are then undone; base
    warmdown_iters: int = 3000  # last steps, over which the learning rates fall linearly to 0; 532
    matrix_optimizer: Literal["normuon", "adamw"] = "normuon"  # of the blocks' matrices; 532
    matrix_lr: float = 0.03  # learning rate of the matrices; 532
    embed_lr: float = 0.04  # learning rate of the embeddings; 532
    scalar_lr: float = 0.02  # learning rate of vectors and scalars; 532
    muon_momentum: float = 0.99  # momentum after its warm-up; 532
    muon_momentum_warmup_start: float = 0.92  # momentum at step 0; 532
    muon_momentum_warmup_steps: int = 1500  # steps of the momentum's linear warm-up; 532
    weight_decay: float = 0.04  # decoupled, in units of the learning rate; 532
    grad_clip_norm: float = 0.3  # global norm of the gradient at most, 0: no limit; 532
    ema_decay: float = 0.997  # of the averaged weights that are exported, 0: the last weights; 0.97 at 200 steps; 532
    late_qat_threshold: float = 0.1  # int6 fake quantisation once the rate's scale is below this, 0: never; 532
    late_qat_min_elements: int = 65536  # matrices with more elements are fake-quantised; 532
    # Export
    calibration_tokens: int = 131072  # training tokens that show which weights' errors matter (trellis); ours
    calibration_seconds: float = 3.0  # of the cap that are kept for this; ours
    quantisation_nats: float = 0.0005  # what quantisation may cost by that measure; FIT changes it; ours
    codec: Literal["huffman", "trellis"] = "trellis"  # of the matrices (huffman: 532); ours
    embed_codec: Literal["float16", "float32", "huffman", "trellis"] = "trellis"  # of tok_emb (532: float16); ours
    mlp_levels: int = 48  # codebook levels (huffman) of the MLP matrices; 532
    qkv_levels: int = 80  # codebook levels of the query, key and value matrices; 532
    other_levels: int = 64  # codebook levels of all other matrices; 532
    trellis_states: Literal[4, 8, 16, 32, 64, 128, 256] = 32  # of the trellis quantiser; ours
    fit: Literal["shrink", "fill", "off"] = "shrink"  # shrink: coarsen if over the cap; fill: refine, too; ours
    size_cap_bytes: int = 16_000_000  # code plus artifact at most; challenge
    # Evaluation
    eval_stride: int = 32  # tokens by which the sliding window moves; 532
    eval_batch_seqs: int = 64  # windows per forward pass of one rank; 532
    eval_doc_reset: bool = False  # score each document on its own; ours
    ttt_protocol: Literal["off", "score_first", "train_then_score"] = "score_first"  # the last is not legal; 549
    ttt_chunk_tokens: int = 32768  # tokens scored, then learned from, at a time; 549
    ttt_epochs: int = 3  # passes over a chunk (train_then_score: over everything); 549
    ttt_optimizer: Literal["adamw", "sgd"] = "sgd"  # sgd: momentum 0.9 (adamw: 532, with a rate of 0.00005); 549
    ttt_lr: float = 0.002  # learning rate at the first chunk, falls as a cosine; 549
    ttt_batch_seqs: int = 16  # sequences per adaptation step over all ranks; 532
    ttt_grad_clip: float = 1.0  # global norm of the adaptation's gradient at most; 532

    @property
    def training_seconds(self) -> float:  # the part of the cap in which steps are made; 0: no limit
        return self.max_wallclock_seconds and max(1e-9, self.max_wallclock_seconds - self.calibration_seconds)


PRESETS: dict[str, dict] = {
    "pcll": {},
    # 38 M parameters, as many as fill the cap at 3.3 bits: more than 100 tokens each, so that size is what is missing.
    "frontier": dict(num_layers=13, mlp_hidden=2048, fit="fill"),
    # The entry as its author reports it. Its adaptation trains on the tokens that it then scores: not legal.
    "pcloadloveletter_v6": dict(
        bos_reset=False, bigram_init_std=0.0, codec="huffman", embed_codec="float16", calibration_seconds=0.0,
        ttt_protocol="train_then_score", ttt_epochs=10, ttt_optimizer="adamw", ttt_lr=0.001),
    # About 0.7 M parameters and a corpus made on the spot: every part of the system in minutes on two CPU cores.
    "demo": dict(
        data_path="data/demo", tokenizer_path="data/demo/bpe_1024.model", dtype="float32",
        num_layers=4, model_dim=128, num_heads=4, num_kv_heads=2, mlp_hidden=320, rope_dims=8, xsa_last_n=2,
        bigram_buckets=1024, bigram_dim=32, iterations=200, max_wallclock_seconds=0.0, train_batch_tokens=8192,
        train_seq_len=256, micro_batch_seqs=32, warmup_steps=1, warmdown_iters=100, muon_momentum_warmup_steps=100,
        calibration_tokens=16384, ema_decay=0.97, late_qat_min_elements=4096, eval_stride=64, ttt_chunk_tokens=8192),
}

TABLES = ("tok_emb", "bigram.table")
MATRICES = (".q", ".k", ".v", ".out", ".up", ".down", "bigram.proj")  # ends of the names of what NorMuon trains
QUANTISED = (*MATRICES, *TABLES)  # by CODEC, tok_emb by EMBED_CODEC
ALL = tuple(field.name for field in dataclasses.fields(Settings))
NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"


def parse_value(field: dataclasses.Field, text: str):
    """The value that an environment variable's text stands for; UserError names the variable."""
    switch = {"0": False, "false": False, "1": True, "true": True}
    choices = switch if field.type is bool else {str(choice): choice for choice in get_args(field.type)}
    try:
        value = choices[text] if choices else field.type(text)
        if value in (math.inf, -math.inf) or value != value:
            raise ValueError
        return value
    except (ValueError, KeyError):
        wanted = {int: "a whole number", float: "a finite number"}.get(field.type) or f"one of {', '.join(choices)}"
        raise UserError(f"{field.name.upper()} must be {wanted}, not {text!r}.") from None


def load_settings(environment: dict[str, str]) -> Settings:
    """The preset's settings with the environment's on top; raises UserError with a sentence that names the variable."""
    preset = environment.get("PRESET", "pcll")
    if preset not in PRESETS:
        raise UserError(f"PRESET must be one of {', '.join(PRESETS)}, not {preset!r}.")
    settings = Settings(**PRESETS[preset] | {field.name: parse_value(field, environment[field.name.upper()])
                                             for field in dataclasses.fields(Settings)
                                             if field.name.upper() in environment})
    check_settings(settings)
    return settings


def check_settings(s: Settings) -> None:
    """Raises UserError for a value out of range or for settings that exclude each other."""
    for name, value in dataclasses.asdict(s).items():
        size = name.startswith(("num_", "model_", "mlp_h", "rope_", "logit_", "bigram_d", "micro_", "train_", "eval_",
                                "calibration_t", "quant"))
        lowest = -1 if name == "checkpoint_every" else 0
        if type(value) in (int, float) and (value < lowest or (value == 0 and size)):
            raise UserError(f"{name.upper()} must be {'above' if size else 'at least'} {lowest}, not {value}.")
    by_sequence = [("train_seq_len", name) for name in ("train_batch_tokens", "calibration_tokens", "ttt_chunk_tokens")]
    for small, large in (("num_heads", "model_dim"), ("num_kv_heads", "num_heads"), *by_sequence):
        if getattr(s, large) % getattr(s, small):
            raise UserError(f"{small.upper()}={getattr(s, small)} must divide {large.upper()}={getattr(s, large)}.")
    limits = {"rope_dims": s.model_dim // s.num_heads, "eval_stride": s.train_seq_len, "vocab_size": 65536,
              "mlp_levels": 255, "qkv_levels": 255, "other_levels": 255, "muon_momentum": 0.9999, "ema_decay": 0.99999}
    for name, limit in limits.items():
        if getattr(s, name) > limit:
            raise UserError(f"{name.upper()}={getattr(s, name)} must be at most {limit}.")
    if s.rope_dims % 2 or s.bigram_buckets == 1 or "/" in s.run_id:
        raise UserError("ROPE_DIMS must be even, BIGRAM_BUCKETS 0 or at least 2, and RUN_ID without a slash.")


# ---- Ranks and log --------------------------------------------------------------------------------------------------

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

    def from_first(self, *values: float) -> list[float]:
        """Rank 0's values, on every rank, once rank 0 is here; they go over the CPU, so that no GPU has to wait."""
        shared = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(shared, src=0)
        return shared.tolist()

    def share(self, count: int) -> range:
        """This rank's part of `count` items; the parts of all ranks differ by one item at most."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)


def join_ranks(s: Settings) -> Ranks:
    """Finds this process's place among those that torchrun started, and its device."""
    rank, local_rank, world = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    gpus = 0 if s.device == "cpu" else torch.cuda.device_count()
    if local_rank >= gpus and (gpus or s.device == "cuda"):
        raise UserError(f"Process {local_rank} finds only {gpus} CUDA GPUs: start fewer processes, or set DEVICE=cpu.")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    return Ranks(rank, max(1, world), device)


class Log:
    """Lines to the console and to logs/RUN_ID.txt; on ranks above 0 it says nothing."""

    def __init__(self, run_id: str, ranks: Ranks, append: bool):
        self.active, self.console_time = ranks.rank == 0, 0.0
        if self.active:
            os.makedirs("logs", exist_ok=True)
            self.file = open(f"logs/{run_id}.txt", "a" if append else "w", encoding="utf-8", buffering=1)
            self.empty = self.file.tell() == 0

    def __call__(self, line: str, console: bool = True) -> None:
        if self.active:
            print(line, file=self.file)
        if self.active and console:
            print(line, flush=True)

    def progress(self, what: str, done: float, seconds: float, note: str = "") -> None:
        """A line with percentage and time left, at most every 5 seconds, on the console only."""
        if self.active and time.monotonic() - self.console_time >= 5.0:
            self.console_time = time.monotonic()
            print(f"{what}: {100 * done:.0f} %, {note}{seconds / done * (1 - done):.0f} s left", flush=True)


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


# ---- Data: shards of tokens, the tokenizer's bytes, and the demo's corpus -------------------------------------------

SHARD_MAGIC, SHARD_VERSION = 20240520, 1
BOS_ID = 1  # every document starts with it


class TokenStream:
    """The shards of a split as one endless sequence that is read by position: loading has no state to lose."""

    def __init__(self, folder: str, split: str, vocab_size: int):
        self.paths = sorted(Path(folder).glob(f"fineweb_{split}_*.bin"))
        if not self.paths:
            raise UserError(f"DATA_PATH={folder} holds no fineweb_{split}_*.bin; PRESET=demo makes its own data.")
        self.changed = [path.stat().st_mtime_ns for path in self.paths]
        self.starts, self.vocab_size = [0], vocab_size  # where each shard begins, and the end
        for path in self.paths:  # 256 int32 (magic, version, token count, zeros), then the tokens as uint16
            size, header = path.stat().st_size, np.fromfile(path, dtype="<i4", count=256)
            if len(header) < 256 or header[0] != SHARD_MAGIC or header[1] != SHARD_VERSION:
                raise UserError(f"{path} is not a token shard: it does not start with {SHARD_MAGIC}, {SHARD_VERSION}.")
            if header[2] < 1 or size != 1024 + 2 * int(header[2]):
                raise UserError(f"{path} states {header[2]} tokens, but its {size} bytes are not 1024 plus twice that.")
            self.starts.append(self.starts[-1] + int(header[2]))
        self.total = self.starts[-1]

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens (uint16) from position `start`; after the last shard comes the first again."""
        pieces = []
        while count > 0:
            index = bisect.bisect(self.starts, start := start % self.total) - 1
            offset, path = start - self.starts[index], self.paths[index]
            wanted = min(count, self.starts[index + 1] - start)
            piece = np.fromfile(path, dtype="<u2", count=wanted, offset=1024 + 2 * offset)
            if len(piece) < wanted or path.stat().st_mtime_ns != self.changed[index]:
                raise UserError(f"{path} was changed while the run was reading it.")
            if piece.max() >= self.vocab_size:
                raise UserError(f"{path} holds token {piece.max()}, but VOCAB_SIZE is {self.vocab_size}.")
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces)


def train_batches(stream: TokenStream, step: int, s: Settings, ranks: Ranks):
    """Yields this rank's part of a step as micro-batches: inputs and targets, int64 [sequences, train_seq_len] each."""
    share, cuda = ranks.share(s.train_batch_tokens // s.train_seq_len), ranks.device.type == "cuda"
    for first in range(share.start, share.stop, s.micro_batch_seqs):
        count = min(s.micro_batch_seqs, share.stop - first)
        tokens = stream.read(step * s.train_batch_tokens + first * s.train_seq_len, count * s.train_seq_len + 1)
        tokens = torch.from_numpy(tokens.astype(np.int64))
        tokens = tokens.pin_memory().to(ranks.device, non_blocking=True) if cuda else tokens
        yield tokens[:-1].view(count, -1), tokens[1:].view(count, -1)


class ByteCounter:
    """How many bytes of text each token stands for: the UTF-8 bytes of its piece, plus one for a leading space unless
    the token before is a control, unknown or unused id."""

    def __init__(self, path: str, vocab_size: int):
        try:
            self.tokenizer = sp = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError):
            raise UserError(f"TOKENIZER_PATH={path} is not a readable SentencePiece model.") from None
        if sp.vocab_size() != vocab_size:
            raise UserError(f"VOCAB_SIZE={vocab_size}, but {path} has {sp.vocab_size()} pieces.")
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        ids = range(vocab_size)
        self.silent = np.array([sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in ids])
        pieces = ["" if self.silent[i] else sp.id_to_piece(i) for i in ids]
        self.space = np.array([piece.startswith("▁") for piece in pieces])
        self.length = np.array([1 if sp.is_byte(i) else len(pieces[i].removeprefix("▁").replace("▁", " ").encode())
                                for i in ids])

    def count(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of tokens[1:], int64 [len(tokens) - 1]."""
        before, after = tokens[:-1], tokens[1:]
        return self.length[after] + (self.space[after] & ~self.silent[before])

    def check(self, tokens: np.ndarray) -> None:
        """Holds the count against the text that the tokenizer decodes, by document; UserError if they differ."""
        for document in np.split(tokens, np.flatnonzero(tokens == BOS_ID)):
            text, counted = self.tokenizer.decode(document.tolist()), int(self.count(document).sum())
            whole = BOS_ID in document[:1] and "\ufffd" not in text  # and of valid UTF-8
            if whole and len(text.encode()) != counted:
                raise UserError(f"TOKENIZER_PATH: {text[:40]!r} has {len(text.encode())} bytes, its pieces {counted}.")


def make_demo_data(s: Settings) -> None:
    """Writes a tokenizer and shards under DATA_PATH, of the English text that comes with Python: its manual's pages and
    the docstrings of its modules. One document in eight validates, the others train."""
    from pydoc_data.topics import topics  # here, because only the demo needs it

    modules = [ast.parse(path.read_bytes()) for path in Path(os.__file__).parent.glob("*.py")]
    texts = {*topics.values(), *(ast.get_docstring(module) or "" for module in modules)}
    documents, model = [" ".join(text.split()) for text in sorted(texts) if len(text) >= 200], io.BytesIO()
    np.random.default_rng(0).shuffle(documents)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=model, model_type="bpe", vocab_size=s.vocab_size,
        byte_fallback=True, split_digits=True, pad_id=0, bos_id=BOS_ID, eos_id=2, unk_id=3, minloglevel=2,
        max_sentence_length=1 << 20)
    write_atomically(Path(s.tokenizer_path), model.getvalue())
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for split, part in (("val", documents[::8]), ("train", [d for i, d in enumerate(documents) if i % 8])):
        tokens = np.concatenate(tokenizer.encode(part, add_bos=True)).astype("<u2")
        header = np.array([SHARD_MAGIC, SHARD_VERSION, len(tokens), *[0] * 253], dtype="<i4")
        write_atomically(Path(s.data_path) / f"fineweb_{split}_000000.bin", header.tobytes() + tokens.tobytes())


# ---- Model. Shapes: B sequences, T tokens, D = model_dim, H query heads, K key/value heads, E = D/H -----------------

def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first 2R of each head's E dimensions; x [B,heads,T,E], cos [T,R]."""
    a, b, rest = x.tensor_split((cos.size(-1), 2 * cos.size(-1)), dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x w^T in the dtype of x."""
    return F.linear(x, w.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, s: Settings, index: int):
        super().__init__()
        dim, self.head_dim, self.group = s.model_dim, s.model_dim // s.num_heads, s.num_heads // s.num_kv_heads
        self.gated, self.mixes_values = s.gated_attention, s.value_residual and index > 0
        self.exclusive = index >= s.num_layers - s.xsa_last_n
        self.q, self.out = nn.Parameter(torch.empty(dim, dim)), nn.Parameter(torch.zeros(dim, dim))
        self.k, self.v = (nn.Parameter(torch.empty(s.num_kv_heads * self.head_dim, dim)) for _ in range(2))
        self.q_gain = nn.Parameter(torch.full((s.num_heads,), s.qk_gain_init))
        if self.gated:
            self.gate_weight = nn.Parameter(torch.zeros(s.num_heads, dim))
            self.gate_bias = nn.Parameter(torch.full((s.num_heads,), 4.0))
        if self.mixes_values:
            self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5]))

    def heads(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B,T,D] through a matrix and split into heads [B,heads,T,E]."""
        return linear(x, w).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, v_first: Tensor | None, rope: tuple, keep: int) -> tuple[Tensor, Tensor]:
        """x [B,T,D] -> the output at the last `keep` positions [B,keep,D], and the raw values [B,K,T,E]."""
        (cos, sin), length = rope, x.size(1)
        last = slice(length - keep, length)
        k, v_raw = self.heads(x, self.k), self.heads(x, self.v)
        x = x[:, last]
        q = rotate(rms_norm(self.heads(x, self.q)), cos[last], sin[last]) * self.q_gain.to(x.dtype)[:, None, None]
        k = rotate(rms_norm(k), cos, sin)
        v = v_raw
        if self.mixes_values:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v_first + mix[1] * v
        mask = None if keep == length else torch.ones(keep, length, dtype=bool, device=x.device).tril(length - keep)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        if self.exclusive:  # take away each head's projection on the position's own value
            own = F.normalize(v[:, :, last], dim=-1).repeat_interleave(self.group, dim=1)
            y = y - (y * own).sum(dim=-1, keepdim=True) * own
        y = y.transpose(1, 2)
        if self.gated:
            y = y * torch.sigmoid(linear(x, self.gate_weight) + self.gate_bias.to(x.dtype))[..., None]
        return linear(y.flatten(-2), self.out), v_raw


class MLP(nn.Module):
    def __init__(self, s: Settings):
        super().__init__()
        self.up = nn.Parameter(torch.empty(s.mlp_hidden, s.model_dim))
        self.down = nn.Parameter(torch.zeros(s.model_dim, s.mlp_hidden))
        self.negative_slope = s.mlp_negative_slope

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(linear(x, self.up), self.negative_slope)
        return linear(x.square(), self.down)


class Block(nn.Module):
    def __init__(self, s: Settings, index: int):
        super().__init__()
        self.attn, self.mlp = Attention(s, index), MLP(s)
        self.attn_scale, self.mlp_scale = (nn.Parameter(torch.ones(s.model_dim)) for _ in range(2))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(s.model_dim), torch.zeros(s.model_dim))))
        self.norm_scale = 1 / math.sqrt(index + 1) if s.ln_scale else 1.0

    def forward(self, x: Tensor, x0: Tensor, v_first: Tensor | None, rope, keep: int) -> tuple[Tensor, Tensor]:
        """x, x0 [B,T,D] -> the block's output at the last `keep` positions [B,keep,D], and the raw values."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attn(rms_norm(x) * self.norm_scale, v_first, rope, keep)
        x = x[:, x.size(1) - keep :] + self.attn_scale.to(x.dtype) * y
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x) * self.norm_scale), v


class BigramHash(nn.Module):
    """An embedding of hashed pairs of neighbouring tokens, added to the token embedding."""

    def __init__(self, s: Settings):
        super().__init__()
        self.table = nn.Parameter(s.bigram_init_std * torch.randn(s.bigram_buckets, s.bigram_dim))
        self.proj = nn.Parameter(torch.zeros(s.model_dim, s.bigram_dim))
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, tokens: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens [B,T], starts [B,T] (true where the token before may not be looked at) -> [B,T,D]."""
        bucket = ((36313 * tokens) ^ (27191 * tokens.roll(1, dims=1))) % (len(self.table) - 1)
        rows = F.embedding(torch.where(starts, len(self.table) - 1, bucket), self.table).to(dtype)
        return self.scale.to(dtype) * linear(rows, self.proj)


class GPT(nn.Module):
    """The language model; the head shares its matrix with the token embedding. Every matrix is [outputs, inputs]."""

    def __init__(self, s: Settings, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype, self.logit_softcap, self.bos_reset = dtype, s.logit_softcap, s.bos_reset
        self.half = s.num_layers // 2  # blocks before this one feed the U-Net skips
        self.tok_emb = nn.Parameter(torch.empty(s.vocab_size, s.model_dim))
        self.bigram = BigramHash(s) if s.bigram_buckets else None
        self.smear_gate = nn.Parameter(torch.zeros(s.model_dim)) if s.smear_gate else None
        self.skip_weights = nn.Parameter(torch.ones(self.half, s.model_dim)) if s.unet_skips and self.half else None
        self.blocks = nn.ModuleList(Block(s, index) for index in range(s.num_layers))
        frequencies = s.rope_base ** (-torch.arange(0, s.rope_dims, 2, dtype=torch.float32) / s.rope_dims)
        angles = torch.outer(torch.arange(s.train_seq_len, dtype=torch.float32), frequencies)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)
        nn.init.normal_(self.tok_emb, std=0.005)
        for name, p in self.blocks.named_parameters():
            if name.endswith((".q", ".k", ".v", ".up")):  # output projections stay zero
                nn.init.orthogonal_(p)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> the first hidden state [B,T,D]."""
        starts = tokens == BOS_ID if self.bos_reset else torch.zeros_like(tokens, dtype=torch.bool)
        starts = starts | (torch.arange(tokens.size(1), device=tokens.device) == 0)
        x = F.embedding(tokens, self.tok_emb).to(self.dtype)
        if self.bigram is not None:
            x = x + self.bigram(tokens, starts, self.dtype)
        x = rms_norm(x)
        if self.smear_gate is not None:
            gate = torch.sigmoid(self.smear_gate).to(x.dtype)
            x = (1 - gate) * x + gate * x.roll(1, dims=1).masked_fill(starts[..., None], 0)
        return x

    def forward(self, tokens: Tensor, keep: int | None = None) -> Tensor:
        """tokens int64 [B,T] -> soft-capped logits float32 [B,keep,V] of the last `keep` positions (default: all T)."""
        length = tokens.size(1)
        rope, v_first, skips = (self.cos[:length], self.sin[:length]), None, []
        x0 = x = self.embed(tokens)
        for index, block in enumerate(self.blocks):
            if self.skip_weights is not None and self.half <= index < 2 * self.half:
                x = x + self.skip_weights[index - self.half].to(x.dtype) * skips.pop()
            x, v = block(x, x0, v_first, rope, keep or length if index == len(self.blocks) - 1 else length)
            if index == 0:
                v_first = v
            if index < self.half:
                skips.append(x)
        logits = linear(rms_norm(x), self.tok_emb).float()
        return self.logit_softcap * torch.tanh(logits / self.logit_softcap)


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


# ---- Optimizer: NorMuon for matrices, AdamW for the rest ------------------------------------------------------------

def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices to a stack g [N,R,C], by Muon's iteration (Keller Jordan, 2024)."""
    x = g.mT if g.size(-2) > g.size(-1) else g
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(torch.bfloat16 if g.is_cuda else torch.float32)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if g.size(-2) > g.size(-1) else x


class NorMuon(torch.optim.Optimizer):
    """Muon whose update is scaled per row by a second moment, with its norm kept (arXiv 2510.05491). Matrices of one
    shape are a stack. Only the orthogonalisation, the expensive part, is shared out over the ranks: they must have the
    same gradients, and each holds the whole state. "lr", the update's spectral norm, must be set before each step."""

    def __init__(self, params, ranks: Ranks, lr: float, momentum: float, weight_decay: float, beta2: float = 0.95):
        super().__init__(params, dict(base_lr=lr, momentum=momentum, beta2=beta2, weight_decay=weight_decay))
        self.ranks = ranks
        shapes = dict.fromkeys(p.shape for p in self.param_groups[0]["params"])
        self.stacks = [[p for p in self.param_groups[0]["params"] if p.shape == shape] for shape in shapes]
        cost = {(i, j): min(p.shape) ** 2 * max(p.shape) for i, ps in enumerate(self.stacks) for j, p in enumerate(ps)}
        # owned[rank][stack]: which matrices the rank orthogonalises; the costliest first, each to the least busy rank
        load, self.owned = [0] * ranks.world, [[[] for _ in self.stacks] for _ in range(ranks.world)]
        for i, j in sorted(cost, key=cost.get, reverse=True):
            rank = load.index(min(load))
            load[rank] += cost[i, j]
            self.owned[rank][i].append(j)

    def orthogonalize(self, updates: list[Tensor]) -> list[Tensor]:
        """newton_schulz of every stack: each rank its matrices, zeros for the others, and the sum over the ranks."""
        dtype = torch.bfloat16 if updates[0].is_cuda else torch.float32
        flat = torch.zeros(sum(u.numel() for u in updates), dtype=dtype, device=updates[0].device)
        results = [part.view_as(u) for part, u in zip(flat.split([u.numel() for u in updates]), updates, strict=True)]
        for mine, update, result in zip(self.owned[self.ranks.rank], updates, results, strict=True):
            result[mine] = newton_schulz(update[mine])
        self.ranks.sum_(flat)
        return results

    @torch.no_grad()
    def step(self) -> None:
        group, updates = self.param_groups[0], []
        for params in self.stacks:
            grad = torch.stack([p.grad for p in params])
            state = self.state[params[0]]  # a stack's state is kept under its first matrix
            if not state:
                state["momentum"] = torch.zeros_like(grad)
                state["second_moment"] = torch.zeros_like(grad[..., :1])
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            updates.append(grad.lerp_(state["momentum"], group["momentum"]))  # Nesterov
        for params, update in zip(self.stacks, self.orthogonalize(updates), strict=True):
            update = update.float()
            norm = update.norm(dim=(-2, -1), keepdim=True)
            second = self.state[params[0]]["second_moment"]
            second.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - group["beta2"])
            update = update * (second + 1e-10).rsqrt()
            update *= norm / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10)
            update *= -group["lr"] * max(1.0, update.size(-2) / update.size(-1)) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update))


def build_optimizers(model: GPT, s: Settings, ranks: Ranks) -> list[torch.optim.Optimizer]:
    """NorMuon (or AdamW) for the matrices, AdamW for the rest; each group's "base_lr" is what the schedule scales."""
    matrices, embeddings, others = [], [], []
    for name, p in model.named_parameters():
        (matrices if name.endswith(MATRICES) else embeddings if name in TABLES else others).append(p)
    groups = [dict(params=embeddings, base_lr=s.embed_lr), dict(params=others, base_lr=s.scalar_lr)]
    if s.matrix_optimizer == "adamw":
        groups.append(dict(params=matrices, base_lr=s.matrix_lr))
    cuda, muon = ranks.device.type == "cuda", (ranks, s.matrix_lr, s.muon_momentum, s.weight_decay)
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=s.weight_decay, fused=cuda)
    return [NorMuon(matrices, *muon), adamw] if s.matrix_optimizer == "normuon" else [adamw]


# ---- Codec: the PCLL container and its weight codecs; the format is specified in decode_artifact.py -----------------

FLOAT32, FLOAT16, HUFFMAN, TRELLIS = range(4)
MAX_CODE_LENGTH = 16  # bits of a Huffman code
FREQUENCY_BITS = 14  # a context's rANS frequencies add up to 2^14, or are all 0 where it never occurs
TRELLIS_GAIN = 1.3  # of the trellis over a uniform quantiser of the same step, whose error is step^2 / 12
FEEDBACK_BLOCK = 32  # columns that are quantised before their error is fed back; as many after them are looked at
FINENESS = (-4, 24)  # of a row or column: its root mean square in steps, at least and at most, in quarter octaves
DAMPING = 0.1  # what is added to the moments, as a part of their mean
PARITY_CHECKS = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24),
                 128: (0o235, 0o126), 256: (0o515, 0o362)}  # states: Ungerboeck's h0, h1


@dataclass
class Coded:
    """A tensor on its way into the container."""

    codec: int
    shape: tuple[int, ...]
    side: bytes = b""  # its side data (of trellis tensors: without the scales)
    symbols: np.ndarray | None = None  # flat: uint16 class * K + level (huffman) or int32 indices (trellis)
    lengths: np.ndarray | None = None  # Huffman code lengths, uint8 [classes,K]
    scales: tuple | None = None  # trellis, in quarter octaves: offset, scales of rows and columns, steps of both


def code_floats(w: np.ndarray, dtype: str) -> Coded:
    """Exact in float32, or rounded to float16 if the range allows; planes of like bytes, where zstd finds more."""
    half = dtype == "float16" and np.abs(w).max() < 65504
    planes = w.astype("<f2" if half else "<f4").reshape(-1, 1).view(np.uint8).T
    return Coded(FLOAT16 if half else FLOAT32, w.shape, planes.tobytes())


def kmeans(w: np.ndarray, levels: int, iterations: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (float16, ascending, each nearest to something) and the index of each element's nearest one (uint8,
    flat), by Lloyd's iteration from evenly spaced centroids (entry 532)."""
    ordered = np.sort(w, axis=None)
    sums = np.concatenate(([0.0], np.cumsum(ordered, dtype=np.float64)))
    centroids = np.linspace(float(ordered[0]), float(ordered[-1]), levels)
    for _ in range(iterations):
        middles = ((centroids[1:] + centroids[:-1]) / 2).astype(np.float32)
        edges = np.concatenate(([0], np.searchsorted(ordered, middles), [len(ordered)]))
        counts = np.diff(edges)
        centroids = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centroids)
    centroids = np.unique(centroids.astype(np.float16) + np.float16(0))  # + 0 turns -0 into 0
    exact = centroids.astype(np.float32)
    indices = np.searchsorted((exact[1:] + exact[:-1]) / 2, w.ravel())
    used, indices = np.unique(indices, return_inverse=True)
    return centroids[used], indices.astype(np.uint8)


def code_huffman(w: np.ndarray, levels: int) -> Coded:
    """K-means levels with one Huffman code, or two if that pays: one for each class of columns, by turns refitted."""
    centroids, indices = kmeans(w, levels)
    rows, k = indices.reshape(-1, math.prod(w.shape[1:])), len(centroids)
    counts = np.bincount((rows + np.arange(rows.shape[1]) * k).ravel(), minlength=rows.shape[1] * k).reshape(-1, k)
    one = huffman_lengths(counts.sum(axis=0))
    classes = counts @ one > np.median(counts @ one)
    for _ in range(3):
        lengths = np.unique([huffman_lengths(counts[classes == c].sum(axis=0)) for c in (0, 1)], axis=0)  # ascending
        classes = (counts @ lengths.T).argmin(axis=1)
    if (counts * (one.astype(int) - lengths[classes])).sum() <= 8 * k + len(counts):  # the bits that they cost
        lengths, classes = one[None], 0 * classes
    side = bytes([k]) + code_floats(centroids, "float16").side + np.packbits(classes).tobytes() + lengths.tobytes()
    return Coded(HUFFMAN, w.shape, side, (rows + classes.astype(np.uint16) * k).ravel(), lengths)


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """Optimal code lengths up to MAX_CODE_LENGTH, uint8, by package-merge (Larmore and Hirschberg, 1990). What never
    occurs counts as one: no package may be as light as what it holds."""
    leaves = sorted((max(1, int(count)), (symbol,)) for symbol, count in enumerate(counts))
    packages = []
    for _ in range(MAX_CODE_LENGTH):
        merged = sorted(leaves + packages)
        packages = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(merged[::2], merged[1::2], strict=False)]
    chosen = np.array([symbol for _, symbols in packages[: len(leaves) - 1] for symbol in symbols], dtype=int)
    return np.bincount(chosen, minlength=len(leaves)).astype(np.uint8)


def canonical_codes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (class * K + level) in the order of their codes, class by class, and each symbol's code (uint32)."""
    order = np.argsort(lengths + 32 * np.arange(len(lengths))[:, None], axis=None, kind="stable")
    shift = MAX_CODE_LENGTH - lengths.ravel()[order].astype(np.int64)
    codes = np.empty(lengths.size, dtype=np.uint32)
    codes[order] = (np.cumsum(1 << shift) - (1 << shift)) % (1 << MAX_CODE_LENGTH) >> shift
    return order, codes


def lane_count(elements: int) -> int:
    return min(1024, 1 << max(0, (elements // 64).bit_length() - 1) // 2)


def lane_groups(sizes: list[int], lanes: int) -> list[tuple[int, int]]:
    """(start, stop) of the elements that are coded in one step, over all tensors one after the other."""
    return [(start, min(start + lanes, end)) for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True)
            for start in range(end - size, end, lanes)]


def huffman_encode(tensors: list[Coded]) -> bytes:
    """The bits of all tensors' codes, lane after lane: bits of each lane (u32), then words of 16 bits."""
    lanes, parts = lane_count(sum(len(t.symbols) for t in tensors)), []
    for t in tensors:  # length and code of each element, 0 bits where a tensor's last group is filled up
        pairs = np.stack((t.lengths.ravel(), canonical_codes(t.lengths)[1]))[:, t.symbols].astype(np.uint16)
        parts.append(np.pad(pairs, ((0, 0), (0, -len(t.symbols) % lanes))).reshape(2, -1, lanes))
    length, code = np.concatenate(parts, axis=1)
    bits, length, code = length.sum(axis=0, dtype="<u4"), length.T.ravel(), code.T.ravel()
    ends = np.cumsum(length, dtype=np.uint32)
    places = np.repeat(ends, length) - np.arange(1, ends[-1] + 1, dtype=np.uint32)  # of each bit within its code
    packed = np.packbits((np.repeat(code, length) >> places.astype(np.uint16) & 1).astype(bool)).tobytes()
    return bits.tobytes() + np.frombuffer(packed + b"\0" * (len(packed) % 2), ">u2").astype("<u2").tobytes()


def huffman_decode(content: io.BytesIO, tensors: list[tuple]) -> list[np.ndarray]:
    """Weights of each tensor, given as (shape, centroids, class of each column, code lengths [classes,K])."""
    lanes = lane_count(sum(math.prod(shape) for shape, *_ in tensors))
    ends = np.cumsum(take(content, "<u4", lanes), dtype=np.int64)
    at = np.concatenate(([0], ends[:-1]))
    words = np.append(take(content, "<u2", -(-int(ends[-1]) // 16)), [0, 0]).astype(np.uint32)
    pairs = words[:-1] << 16 | words[1:]
    results = []
    for shape, centroids, classes, lengths in tensors:
        order, _ = canonical_codes(lengths)
        length, longest = lengths.ravel()[order], int(lengths.max())
        entries = np.repeat((order % len(centroids)).astype(np.uint16) << 8 | length, 1 << longest - length.astype(int))
        levels = np.empty(math.prod(shape), dtype=np.uint8)
        table = np.resize(classes.astype(np.int64) << longest, len(levels))  # where each element's class begins
        for start, stop in lane_groups([len(levels)], lanes):
            p = at[: stop - start]
            window = pairs.take(p >> 4, mode="clip") >> (32 - longest - (p & 15))
            entry = entries[table[start:stop] + (window & ((1 << longest) - 1))]
            p += entry & 0xFF
            levels[start:stop] = entry >> 8
        results.append(centroids[levels].reshape(shape))
    return results


def quarter_power(e: np.ndarray) -> np.ndarray:
    """2^(e/4) in float64, the same on every machine."""
    return np.ldexp(np.sqrt(np.sqrt([1.0, 2.0, 4.0, 8.0]))[e % 4], e // 4)


def quarter_octaves(mean_square: np.ndarray) -> np.ndarray:
    """round(4 log2(rms)) by exact thresholds 2^(e/2 - 1/4): a logarithm would differ from machine to machine."""
    return np.searchsorted(quarter_power(2 * np.arange(-250, 250) - 1), mean_square, side="right") - 251


def trellis_table(states: int) -> np.ndarray:
    """The next state [states, 2] by state and parity of the index: Ungerboeck's codes in systematic feedback form."""
    (h0, h1), state, parity = PARITY_CHECKS[states], np.arange(states)[:, None], np.arange(2)
    return state >> 1 ^ (state & 1) * (h0 >> 1) ^ parity * (h1 >> 1)


def trellis_search(y: np.ndarray, start: np.ndarray | int, states: int, keep: int) -> tuple:
    """Indices and points (int32 [R,keep]) of the first columns, and the states [R] after them. Points are nearest to
    4y [R,C] in each row's sum of squares, by Viterbi's algorithm, all rows at once, from the states `start`. Both
    branches into a state have the union bit u = its top bit, and differ in parity."""
    before = np.argsort(trellis_table(states), axis=0).T  # the state that a branch of this parity into this comes from
    column, row = np.ascontiguousarray(y.T), np.arange(len(y))  # [C,R]
    point = np.stack((column, -column)) - np.float32(0.25)  # [u,C,R]: the union of u = 1 is the mirror image
    index = np.stack([2 * np.rint((point - np.float32(p)) / 2) + np.float32(p) for p in (0, 1)])  # [parity,u,C,R]
    error = np.square(point - index)
    cost = np.full((states, len(y)), np.inf, dtype=np.float32)
    cost[start, row] = 0
    candidates = np.empty((2, *cost.shape), dtype=np.float32)
    odd = np.empty((len(column), *cost.shape), dtype=bool)
    for c in range(len(column)):
        for parity in (0, 1):
            np.take(cost, before[parity], axis=0, out=candidates[parity])
            candidates[parity].reshape(2, states // 2, -1)[:] += error[parity, :, c, None]
        np.less(candidates[1], candidates[0], out=odd[c])
        np.minimum(candidates[0], candidates[1], out=cost)
    path, (indices, points) = [cost.argmin(axis=0)], np.empty((2, *y.shape), dtype=np.int32)  # path: last state first
    for c in range(len(column) - 1, -1, -1):
        parity, union = odd[c, path[-1], row].astype(np.intp), path[-1] // (states // 2)
        indices[:, c] = index[parity, union, c, row]
        points[:, c] = (4 * indices[:, c] + 1) * (1 - 2 * union)
        path.append(before[parity, path[-1]])
    return indices[:, :keep], points[:, :keep], path[len(column) - keep]


def trellis_units(step: np.float32, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (float32 [R,1] and [C]) between points and weights, of steps of rows and columns in quarter octaves."""
    return quarter_power(rows).astype(np.float32)[:, None], (step / 4.0 * quarter_power(columns)).astype(np.float32)


def trellis_weights(indices: np.ndarray, units: tuple[np.ndarray, np.ndarray], states: int) -> np.ndarray:
    """Weights (float32 [R,C]) of indices [R,C] and the factors of their rows and columns."""
    following, points, state = trellis_table(states), 4 * indices + 1, np.zeros(len(indices), dtype=np.intp)
    for c in range(indices.shape[1]):
        points[:, c] *= 1 - 2 * (state & 1)
        state = following[state, indices[:, c] & 1]
    return points.astype(np.float32) * units[0] * units[1]


def code_trellis(w: np.ndarray, moments: tuple[np.ndarray, np.ndarray], coarseness: float, states: int) -> Coded:
    """Quantised so that every weight's error e costs about coarseness^2, where the moments (row [R], column [C,C]) say
    that row r costs row_r e_r column e_r^T. Each block of columns makes good, as far as it can, what the errors in the
    blocks before it cost (GPTQ, arXiv 2210.17323, in the form of LDLQ, arXiv 2307.13304)."""
    rows = w.reshape(len(w), -1)
    row, column = (m / np.diagonal(m).mean() if m.ndim > 1 else m / m.mean() for m in moments)
    root = np.linalg.cholesky((column + DAMPING * np.eye(len(column)))[::-1, ::-1])[::-1, ::-1]  # root root^T = column
    width = FEEDBACK_BLOCK if np.count_nonzero(column) > len(column) else len(column)  # else nothing is fed back
    blocks = [slice(first, first + width) for first in range(0, len(column), width)]
    cost = np.concatenate([np.square(root[b, b]).sum(axis=1) for b in blocks])  # what no later block can make good
    unit = moments[0].mean() * np.diagonal(moments[1]).mean()
    step = np.float32(min(coarseness * math.sqrt(12 * TRELLIS_GAIN / unit), 8 * np.sqrt(np.square(rows).mean())))
    steps = -quarter_octaves(row + DAMPING), -quarter_octaves(cost)
    for axis in (1, 0):  # no step is more than twice or less than 1/64 of the root mean square of its row or column
        row_unit, column_unit = trellis_units(step, *steps)
        ratio = quarter_octaves(np.square(rows / (4 * row_unit * column_unit)).mean(axis=axis))
        steps[1 - axis][:] = np.clip(steps[1 - axis] + ratio - np.clip(ratio, *FINENESS), -127, 127)
    row_unit, column_unit = trellis_units(step, *steps)
    error, state, (indices, points) = np.zeros_like(rows), 0, np.empty((2, *rows.shape), dtype=np.int32)
    for b in blocks:
        seen, keep = slice(b.start, b.stop + FEEDBACK_BLOCK), indices[:, b].shape[1]
        past = (root[: b.start, seen] @ np.linalg.inv(root[seen, seen])).astype(np.float32)
        target = (rows[:, seen] - error[:, : b.start] @ past) / (4 * row_unit * column_unit[seen])
        indices[:, b], points[:, b], state = trellis_search(np.clip(target, -2000, 2000), state, states, keep)
        error[:, b] = points[:, b] * row_unit * column_unit[b] - rows[:, b]
    row_scales = quarter_octaves(np.square(points / 4).mean(axis=1))
    column_scales = quarter_octaves(np.square(points / 4 / quarter_power(row_scales)[:, None]).mean(axis=0))
    offset = int(np.median(row_scales))
    scales = (np.clip(s, -127, 127) for s in (row_scales - offset + steps[0], column_scales + steps[1]))
    return Coded(TRELLIS, w.shape, struct.pack("<f", step), indices.ravel(), scales=(offset, *scales, *steps))


def trellis_encode(tensors: list[Coded], states: int) -> bytes:
    """Completes the tensors' side data; returns the shared model and the rANS stream (arXiv 1311.2540, 1402.3392)."""
    contexts = [offset + (row - row_step)[:, None] + column - column_step
                for offset, row, column, row_step, column_step in (t.scales for t in tensors)]
    base = max(min(int(c.min()) for c in contexts), max(int(c.max()) for c in contexts) - 63)
    context = np.concatenate([np.maximum(c - base, 0).ravel() for c in contexts])
    for t in tensors:
        offset, *scales = t.scales
        t.side = t.side[:4] + struct.pack("<h", offset - base) + np.concatenate(scales).astype(np.int8).tobytes()
    index = np.concatenate([t.symbols for t in tensors])
    largest = int(np.abs(index).max())
    shape = (int(context.max()) + 1, 2 * largest + 1)
    cell = context * shape[1] + index + largest
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    slots, totals = (1 << FREQUENCY_BITS) * counts.any(axis=1, keepdims=True), counts.sum(axis=1, keepdims=True)
    frequencies = (counts > 0) * (1 + counts * (slots - (counts > 0).sum(axis=1, keepdims=True)) // (totals + 1))
    frequencies[np.arange(len(counts)), counts.argmax(axis=1)] += (slots - frequencies.sum(axis=1, keepdims=True))[:, 0]
    model = struct.pack("<BHB", states.bit_length() - 1, largest, shape[0]) + frequencies.astype("<u2").tobytes()
    frequency = frequencies.astype(np.uint64).ravel()
    below = (np.cumsum(frequencies, axis=1) - frequencies).astype(np.uint64).ravel()
    lanes, words = lane_count(len(index)), []
    state = np.full(lanes, 1 << 16, dtype=np.uint64)
    for start, stop in reversed(lane_groups([len(t.symbols) for t in tensors], lanes)):  # last in, first out
        f, x = frequency[cell[start:stop]], state[: stop - start]
        full = x >= f << np.uint64(32 - FREQUENCY_BITS)
        words.append(x[full].astype("<u2"))
        x[full] >>= np.uint64(16)
        x += x // f * (np.uint64(1 << FREQUENCY_BITS) - f) + below[cell[start:stop]]
    words = np.concatenate(words[::-1])
    return model + state.astype("<u4").tobytes() + struct.pack("<I", len(words)) + words.tobytes()


def trellis_decode(content: io.BytesIO, tensors: list[tuple]) -> list[np.ndarray]:
    """Weights of each tensor, given as (shape, step, offset, row scales, column scales, row steps, column steps)."""
    log_states, largest, num_contexts = (take(content, dtype).item() for dtype in ("u1", "<u2", "u1"))
    frequencies = take(content, "<u2", num_contexts * (2 * largest + 1)).reshape(num_contexts, -1).astype(np.uint32)
    sizes = [math.prod(shape) for shape, *_ in tensors]
    lanes = lane_count(sum(sizes))
    state = take(content, "<u4", lanes).astype(np.uint32)
    words = take(content, "<u2", take(content, "<u4").item()).astype(np.uint32)
    slots = np.repeat(np.tile(np.arange(2 * largest + 1, dtype=np.uint16), num_contexts), frequencies.ravel())
    first = np.cumsum(frequencies.sum(axis=1)) - frequencies.sum(axis=1)  # slot of each context, where it has any
    below = np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies
    context = np.concatenate([(offset + (row - row_step)[:, None] + column - column_step).ravel()
                              for _, _, offset, row, column, row_step, column_step in tensors])
    context = np.clip(context, 0, num_contexts - 1).astype(np.uint8)
    symbols, used = np.empty(len(context), dtype=np.uint16), 0
    for start, stop in lane_groups(sizes, lanes):
        x, c = state[: stop - start], context[start:stop]
        slot = x & ((1 << FREQUENCY_BITS) - 1)
        symbols[start:stop] = symbol = slots[first[c] + slot]
        x[:] = frequencies[c, symbol] * (x >> FREQUENCY_BITS) + slot - below[c, symbol]
        low = np.flatnonzero(x < 1 << 16)
        x[low] = x[low] << 16 | words[used : used + len(low)]
        used += len(low)
    parts = np.split(symbols.astype(np.int32) - largest, np.cumsum(sizes)[:-1])
    return [trellis_weights(part.reshape(shape[0], -1), trellis_units(step, *steps), 1 << log_states).reshape(shape)
            for part, (shape, step, _, _, _, *steps) in zip(parts, tensors, strict=True)]


def encode_pcll(config: dict, tensors: dict[str, Coded], states: int) -> bytes:
    """The bytes of an artifact: config (flat, of strings and numbers) and coded tensors."""
    tensors = dict(sorted(tensors.items()))
    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    table = struct.pack("<H", len(tensors))
    for name, t in tensors.items():
        numbers = struct.pack(f"<BB{len(t.shape)}I", t.codec, len(t.shape), *t.shape)
        table += struct.pack("<B", len(name)) + name.encode() + numbers
    huffman, trellis = ([t for t in tensors.values() if t.codec == codec] for codec in (HUFFMAN, TRELLIS))
    streams = (huffman_encode(huffman) if huffman else b"") + (trellis_encode(trellis, states) if trellis else b"")
    content = struct.pack("<I", len(text)) + text + table + b"".join(t.side for t in tensors.values()) + streams
    frame = zstandard.ZstdCompressor(level=22, write_checksum=True).compress(content)
    if (size := sum(math.prod(t.shape) for t in tensors.values())) > (1 << 16) + 64 * (16 + len(frame)):
        raise UserError(f"The {size} weights are all but constant: no reader takes so many from {len(frame)} bytes.")
    return b"PCLL" + struct.pack("<HHII", 1, 0, len(content), len(frame)) + frame


def take(content: io.BytesIO, dtype: str, count: int = 1) -> np.ndarray:
    return np.frombuffer(content.read(count * np.dtype(dtype).itemsize), dtype)


def read_side_data(content: io.BytesIO, codec: int, shape: tuple[int, ...]):
    """The weights of a float tensor; of others what huffman_decode or trellis_decode needs."""
    size = math.prod(shape)
    if codec in (FLOAT32, FLOAT16):
        width = 4 if codec == FLOAT32 else 2
        planes = np.ascontiguousarray(take(content, "u1", width * size).reshape(width, size).T)
        return planes.view(f"<f{width}").astype(np.float32).reshape(shape)
    if codec == HUFFMAN:
        centroids, columns = read_side_data(content, FLOAT16, (take(content, "u1").item(),)), math.prod(shape[1:])
        classes = np.unpackbits(take(content, "u1", -(-columns // 8)), count=columns)
        lengths = take(content, "u1", (int(classes.max()) + 1) * len(centroids)).reshape(-1, len(centroids))
        return shape, centroids, classes, lengths
    step, offset = take(content, "<f4")[0], take(content, "<i2").item()
    return shape, step, offset, *(take(content, "i1", n).astype(int) for n in 2 * (shape[0], size // shape[0]))


def decode_pcll(artifact: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Config and float32 weights of an artifact that this script wrote; decode_artifact.py reads those of strangers."""
    content = io.BytesIO(zstandard.ZstdDecompressor().decompress(artifact[16:]))
    config = json.loads(take(content, "u1", take(content, "<u4").item()).tobytes())
    table = {}
    for _ in range(take(content, "<u2").item()):
        name = take(content, "u1", take(content, "u1").item()).tobytes().decode()
        codec, dims = take(content, "u1").item(), take(content, "u1").item()
        table[name] = codec, tuple(take(content, "<u4", dims).tolist())
    weights = {name: read_side_data(content, codec, shape) for name, (codec, shape) in table.items()}
    for stream, decode in ((HUFFMAN, huffman_decode), (TRELLIS, trellis_decode)):
        if names := [name for name, (codec, _) in table.items() if codec == stream]:
            weights.update(zip(names, decode(content, [weights[name] for name in names]), strict=True))
    return config, weights


# ---- Export: what errors cost, which tensor gets which codec, and how the file is made to fit under the cap ---------

class Moments(TorchFunctionMode):
    """While it is on, adds up over the tokens of a float32 model's passes, for each matrix [R,C], the squares of the
    gradients at its outputs, rows [R], and the products of its inputs, columns [C,C]. If both are independent, half of
    their product is an error's cost in nats (arXiv 1503.05671). To a table's rows goes the square of their gradient."""

    def __init__(self, model: GPT):
        super().__init__()
        self.names = {p: name for name, p in model.named_parameters() if name.endswith(QUANTISED)}
        self.rows = {name: p.new_full((len(p),), 1e-30) for p, name in self.names.items()}
        self.columns = {name: 1e-30 * torch.eye(p.size(1), device=p.device) for p, name in self.names.items()}
        for name in self.rows.keys() & TABLES:
            model.get_parameter(name).register_hook(lambda g, name=name: self.add(name, g.square().mean(dim=1)))

    def add(self, name: str, squares: Tensor) -> None:
        self.rows[name] += squares

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is F.linear and (name := self.names.get(args[1], "")).endswith(MATRICES):
            inputs = args[0].detach().flatten(0, -2)
            self.columns[name] += inputs.T @ inputs
            result.register_hook(lambda g: self.add(name, g.flatten(0, -2).square().sum(dim=0)))
        return result


def calibrate(model: GPT, stream: TokenStream, s: Settings, ranks: Ranks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each matrix that may be quantised the moments that code_trellis takes, in units of QUANTISATION_NATS; of
    training tokens alone, as `stream` has no others."""
    exact = GPT(s).to(ranks.device)
    exact.load_state_dict(model.state_dict())
    one_by_one = replace(s, train_batch_tokens=s.calibration_tokens, micro_batch_seqs=1)  # the same on any ranks
    with Moments(exact) as moments:
        for inputs, targets in train_batches(stream, 0, one_by_one, ranks):
            (next_token_loss(exact, inputs, targets) * targets.numel()).backward()
    unit = 2 * s.quantisation_nats / sum(p.numel() for p in moments.names)  # what a weight may cost, and the half
    rows, columns = ({name: ranks.sum_(m).double().cpu().numpy() / s.calibration_tokens for name, m in sums.items()}
                     for sums in (moments.rows, moments.columns))
    return {name: (rows[name] / unit, np.eye(len(m)) if name in TABLES else m) for name, m in columns.items()}


def code_tensor(name: str, w: np.ndarray, s: Settings, coarseness: float, dither: float, moments: dict) -> Coded:
    """Matrices are quantised, `coarseness` times as coarsely as set; a `dither` (0..1) lets numbers of levels change by
    one. EMBED_CODEC rules the embedding; all else is float16."""
    codec = s.embed_codec if name == "tok_emb" else s.codec if name.endswith(QUANTISED) else "float16"
    if codec.startswith("float") or np.abs(w).max() >= 65504:
        return code_floats(w, codec if codec == "float32" else "float16")
    if codec == "trellis" and w.ndim > 1 and len(w) >= 16 and np.abs(w).max() > 1e-10:
        return code_trellis(w, moments[name], coarseness, s.trellis_states)
    levels = s.mlp_levels if ".mlp." in name else s.qkv_levels if name.endswith((".q", ".k", ".v")) else s.other_levels
    return code_huffman(w, min(255, max(2, int(levels / coarseness + dither))))


def export(weights: dict[str, np.ndarray], moments: dict, config: dict, s: Settings, code_bytes: int, log) -> bytes:
    """The artifact's bytes, within the cap with the code, or UserError. By secants: an octave is a bit a weight."""
    budget, fitting = s.size_cap_bytes - code_bytes, None
    bit = sum(w.size for name, w in weights.items() if name.endswith(QUANTISED)) / 8  # bytes
    octaves, last, size, low, high = 0.0, 0.0, 0, -4.0, 10.0  # low: too large a file, high: one that fits
    for attempt in range(10):
        tensors = {name: code_tensor(name, w, s, 2.0**octaves, i * 0.618034 % 1, moments)
                   for i, (name, w) in enumerate(weights.items())}
        artifact = encode_pcll(config, tensors, s.trellis_states)
        log(f"export: coarseness {2.0**octaves:.4f}, {len(artifact)} bytes, budget {budget}")
        if len(artifact) <= budget:
            high, fitting = octaves, max(artifact, fitting or b"", key=len)
        else:
            low = octaves
        if s.fit == "off" or (fitting and (s.fit == "shrink" or len(fitting) + code_bytes >= 0.999 * s.size_cap_bytes)):
            break
        slope = min(max((size - len(artifact)) / (octaves - last), bit / 4), 2 * bit) if attempt else bit
        last, size, step = octaves, len(artifact), (len(artifact) - budget + 0.0004 * s.size_cap_bytes) / slope
        octaves += step if fitting else max(step, 0.002 * 2**attempt)
        octaves = octaves if low < octaves < high else (low + high) / 2
    if fitting is None:
        raise UserError(f"SIZE_CAP_BYTES={s.size_cap_bytes} is less than {code_bytes} bytes of code and "
                        f"{len(artifact)} of artifact: make the model smaller, or set FIT=shrink.")
    return fitting


# ---- Evaluation: a ledger of scores, sliding windows, and test-time training ----------------------------------------

class Ledger:
    """The validation tokens t and the score of each position (i predicts t[i+1]), entered once and in order. A target
    is looked at only with the logits that predict it; what to learn from is handed out once scored; else ValueError."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.nats = torch.zeros(len(tokens) - 1, device=tokens.device)
        self.scored = 0  # positions 0..scored-1 are entered

    def surprise(self, positions: Tensor, logits: Tensor) -> Tensor:
        """Nats of the true next tokens: positions [...], logits float32 [...,V]."""
        targets = self.tokens[positions + 1]
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)

    def enter(self, start: int, nats: Tensor) -> None:
        if start != self.scored or len(nats) == 0 or start + len(nats) > len(self.nats):
            raise ValueError(f"{len(nats)} positions from {start} are not the next of {len(self.nats)} to score")
        self.nats[start : start + len(nats)] = nats
        self.scored += len(nats)

    def learnable(self, start: int, stop: int) -> Tensor:
        """Tokens start..stop: the inputs and targets of positions start..stop-1, all of them scored."""
        if not 0 <= start < stop <= self.scored:
            raise ValueError(f"positions {start}..{stop - 1} are not all scored yet: {self.scored} are")
        return self.tokens[start : stop + 1]


@dataclass(frozen=True)
class Score:
    """Of a whole split: nats per token, bits per byte, and what they were counted over."""

    val_loss: float
    val_bpb: float
    tokens: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (f"val_loss:{self.val_loss:.8f} val_bpb:{self.val_bpb:.8f} val_tokens:{self.tokens} bytes:{self.bytes} "
                f"eval_time:{1000 * self.seconds:.0f}ms")


def sliding_windows(tokens: np.ndarray, s: Settings, stride: int) -> np.ndarray:
    """int64 [windows,3]: input positions start..stop-1 go in, first..stop-1 are scored; in order, each position once.
    The first window of the stream (with EVAL_DOC_RESET: of each document) is scored whole."""
    last = len(tokens) - 1
    bounds = np.flatnonzero(tokens[:last] == BOS_ID) if s.eval_doc_reset else np.zeros(0, dtype=np.int64)
    bounds = np.unique(np.concatenate(([0], bounds, [last])))
    windows = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        stops = np.minimum(np.arange(min(begin + s.train_seq_len, end), end + stride, stride), end)
        firsts = np.concatenate(([begin], stops[:-1]))
        windows.append(np.stack((np.maximum(begin, stops - s.train_seq_len), firsts, stops), axis=1))
    return np.concatenate(windows)


class Evaluator:
    """Scores models on the validation split."""

    def __init__(self, counter: ByteCounter, s: Settings, ranks: Ranks, log: Log):
        self.s, self.ranks, self.log = s, ranks, log
        stream = TokenStream(s.data_path, "val", s.vocab_size)
        self.host_tokens = stream.read(0, stream.total)
        if stream.total < 2:
            raise UserError(f"DATA_PATH={s.data_path}: the validation split needs two tokens at least.")
        counter.check(self.host_tokens[: 1 << 20])
        self.bytes_before = np.concatenate(([0], np.cumsum(counter.count(self.host_tokens))))  # each position
        self.tokens = torch.from_numpy(self.host_tokens.astype(np.int64)).to(ranks.device)

    def score(self, model: nn.Module, name: str, stride: int, learner: "Learner | None" = None) -> Score:
        """Scores every token but the first, chunk by chunk; `learner` then learns from each chunk but the last."""
        began, total, size = time.monotonic(), 0.0, int(self.bytes_before[-1])
        ledger = Ledger(self.tokens)
        windows = sliding_windows(self.host_tokens, self.s, stride)
        chunks = (windows[:, 2] - 1) // (self.s.ttt_chunk_tokens * (1 if learner else 4 * self.ranks.world))
        for index, part in enumerate(np.split(windows, np.flatnonzero(np.diff(chunks)) + 1)):
            low, high = int(part[0, 1]), int(part[-1, 2])
            nats, done = self.nats(model, ledger, part, stride), high / len(ledger.nats)
            ledger.enter(low, nats)
            total += float(nats.double().sum())
            self.log.progress(name, done, time.monotonic() - began,
                              f"bpb so far {total / math.log(2) / self.bytes_before[high]:.4f}, ")
            if learner and done < 1:
                learner.learn(ledger.learnable(low, high), index / (chunks[-1] + 1), self.s.ttt_epochs)
        return Score(total / ledger.scored, total / math.log(2) / size, ledger.scored, size, time.monotonic() - began)

    @torch.inference_mode()
    def nats(self, model: nn.Module, ledger: Ledger, windows: np.ndarray, stride: int) -> Tensor:
        """Nats (float32) of the consecutive positions that the windows score. A segment's first window is scored whole,
        padded on the right; of others only the last `stride` positions go through the head."""
        length, batch_size, device = self.s.train_seq_len, self.s.eval_batch_seqs, self.tokens.device
        low, high = int(windows[0, 1]), int(windows[-1, 2])
        nats = torch.zeros(high - low + 1, device=device)  # the last entry takes what is padding
        whole = windows[:, 0] == windows[:, 1]
        batches = [(part[first : first + batch_size], keep)
                   for part, keep in ((windows[whole], length), (windows[~whole], stride))
                   for first in range(0, len(part), batch_size)]
        for batch, keep in batches[self.ranks.rank :: self.ranks.world]:
            start, first, stop = torch.from_numpy(batch).to(device).T[..., None]
            inputs = ledger.tokens[torch.minimum(start + torch.arange(length, device=device), stop - 1)]
            positions = start + torch.arange(length - keep, length, device=device)
            scored = (first <= positions) & (positions < stop)
            surprise = ledger.surprise(torch.where(scored, positions, first), model(inputs, keep))
            nats[torch.where(scored, positions - low, high - low)] = surprise
        return self.ranks.sum_(nats[:-1])

    def train_then_score(self, model: nn.Module) -> Score:
        """What entry 532 did: TTT_EPOCHS passes over all validation tokens, then their score. NOT LEGAL: no ledger."""
        learner, began = Learner(model, self.s, self.ranks), time.monotonic()
        for epoch in range(self.s.ttt_epochs):
            learner.learn(self.tokens, epoch / self.s.ttt_epochs)
            self.log.progress(NOT_LEGAL, (epoch + 1) / self.s.ttt_epochs, time.monotonic() - began)
        return self.score(model, NOT_LEGAL, self.s.eval_stride)


class Learner:
    """Adapts all weights by AdamW or SGD: output projections at 3 times the rate, MLP inputs at half of it (532)."""

    def __init__(self, model: nn.Module, s: Settings, ranks: Ranks):
        self.model, self.s, self.ranks = model, s, ranks
        groups = {3.0: [], 0.5: [], 1.0: []}
        for name, p in model.named_parameters():
            groups[3.0 if name.endswith((".out", ".down")) else 0.5 if name.endswith(".up") else 1.0].append(p)
        groups = [dict(params=params, base_lr=rate * s.ttt_lr) for rate, params in groups.items()]
        adam = s.ttt_optimizer == "adamw"
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0) if adam else torch.optim.SGD(groups, momentum=0.9)
        self.gradient = flat_gradient(list(model.parameters()))

    def learn(self, tokens: Tensor, done: float, epochs: int = 1) -> None:
        """Passes over tokens [k], as sequences of train_seq_len; the rates fall as a cosine with the part done."""
        set_rates([self.optimizer], 0.5 * (1 + math.cos(math.pi * done)))
        length, batch = self.s.train_seq_len, self.s.ttt_batch_seqs
        count = (len(tokens) - 1) // length
        inputs, targets = (tokens[i : i + count * length].view(count, length) for i in (0, 1))
        for first in [*range(0, count, batch)] * epochs:
            rows = min(batch, count - first)
            share = self.ranks.share(rows)
            mine = slice(first + share.start, first + share.stop)
            self.gradient.zero_()
            if share:
                (next_token_loss(self.model, inputs[mine], targets[mine]) * len(share) / rows).backward()
            self.ranks.sum_(self.gradient)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.s.ttt_grad_clip)
            self.optimizer.step()


# ---- Training -------------------------------------------------------------------------------------------------------

def flat_gradient(params: list[nn.Parameter], extra: int = 0) -> Tensor:
    """One float32 buffer of which every parameter's gradient is a view, with `extra` numbers at its end."""
    flat = torch.zeros(sum(p.numel() for p in params) + extra, device=params[0].device)
    for p, part in zip(params, flat.split([p.numel() for p in params] + [extra])[: len(params)], strict=True):
        p.grad = part.view_as(p)
    return flat


def set_rates(optimizers: list[torch.optim.Optimizer], scale: float, momentum: float = 0.9) -> None:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group.update(lr=group["base_lr"] * scale, momentum=momentum)


def rate_scale(step: int, seconds: float, s: Settings) -> float:
    """Scale of all rates: 1, then linearly to 0 over the last steps, which a cap estimates from the mean step time."""
    left = s.iterations - step
    if s.training_seconds and step > 0:
        left = min(left, (s.training_seconds - seconds) * step / seconds)
    return max(0.0, min(1.0, left / max(s.warmdown_iters, 1)))


@contextlib.contextmanager
def rounded_to_int6(matrices: list[Tensor]):
    """Within it, each row of the matrices is rounded to 63 levels. The gradient passes straight through to the exact
    weights (arXiv 1308.3432), which are back afterwards."""
    exact = [w.detach().clone() for w in matrices]
    for w in matrices:
        scale = w.data.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 31
        w.data.div_(scale).round_().mul_(scale)
    yield
    for w, before in zip(matrices, exact, strict=True):
        w.data.copy_(before)


class Trainer:
    """All that changes while a model trains, and that a checkpoint therefore holds."""

    def __init__(self, model: GPT, s: Settings, ranks: Ranks):
        self.model, self.s, self.ranks = model, s, ranks
        self.stream = TokenStream(s.data_path, "train", s.vocab_size)
        if s.train_batch_tokens // s.train_seq_len < ranks.world:
            raise UserError(f"TRAIN_BATCH_TOKENS={s.train_batch_tokens} holds fewer sequences than there are ranks.")
        how = dict(dynamic=False, disable=not (s.compile and model.tok_emb.is_cuda))
        self.runner, self.loss_of = torch.compile(model, **how), torch.compile(next_token_loss, **how)
        self.gradient = flat_gradient(list(model.parameters()), extra=1)
        self.finished = torch.cuda.Event() if ranks.device.type == "cuda" else None
        self.start()

    def start(self) -> None:
        self.optimizers = build_optimizers(self.model, self.s, self.ranks)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.s.ema_decay))
        self.step, self.seconds, self.quantised = 0, 0.0, []
        self.report = torch.zeros(2 + len(list(self.model.parameters())), device=self.gradient.device)

    def update(self) -> None:
        """One update of all parameters. On a GPU it returns when the step before has finished, so that there is always
        work in the queue, and never more than a step of it."""
        self.gradient.zero_()
        with rounded_to_int6(self.quantised):
            for inputs, targets in train_batches(self.stream, self.step, self.s, self.ranks):
                loss = self.loss_of(self.model, inputs, targets) * (inputs.numel() / self.s.train_batch_tokens)
                loss.backward()
                self.gradient[-1] += loss.detach()
        self.ranks.sum_(self.gradient)
        norms = torch.stack(torch._foreach_norm([p.grad for p in self.model.parameters()]))
        self.step += 1
        report = torch.cat((norms.new_tensor([self.step]), self.gradient[-1:], norms))
        self.report = torch.where(self.report.isfinite().all(), report, self.report)  # the first bad one stays
        if self.s.grad_clip_norm > 0:
            self.gradient *= (self.s.grad_clip_norm / (norms.norm() + 1e-6)).clamp(max=1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        if self.finished:
            self.finished.synchronize()
            self.finished.record()

    def ended(self) -> bool:
        return self.step >= self.s.iterations or 0 < self.s.training_seconds <= self.seconds

    def loss(self) -> float:
        """The last step's mean loss in nats over all ranks' tokens; UserError if a loss or gradient was not finite."""
        step, loss, *norms = self.report.tolist()
        bad = [n for (n, _), norm in zip(self.model.named_parameters(), norms, strict=True) if not math.isfinite(norm)]
        if bad or not math.isfinite(loss):
            raise UserError(f"At step {step:.0f} the loss is {loss:.4g} and {len(bad)} gradients are not finite, first "
                            f"{bad[:1]}. Lower the learning rates; RESUME=latest goes back to the last checkpoint.")
        return loss

    def speed(self) -> str:
        """Tokens a second so far, and the model-flops utilisation of H100s and H200s (dense bfloat16): 6 operations for
        each weight of a matrix and token, and 6 T D a layer for causal attention, forward and back."""
        s, rate = self.s, self.step * self.s.train_batch_tokens / self.seconds
        weights = sum(p.numel() for name, p in self.model.named_parameters() if name.endswith((*MATRICES, "tok_emb")))
        mfu = rate * 6 * (weights + s.num_layers * s.train_seq_len * s.model_dim) / (989e12 * self.ranks.world)
        hopper = self.finished and torch.cuda.get_device_name().startswith(("NVIDIA H100", "NVIDIA H200"))
        return f"tok_s:{rate:.0f}" + f" mfu:{mfu:.3f}" * bool(hopper)

    def warm_up(self) -> None:
        """Steps that prime the compiler; what they did is undone."""
        before = {name: w.clone() for name, w in self.model.state_dict().items()}
        set_rates(self.optimizers, 1.0)
        for _ in range(self.s.warmup_steps):
            self.update()
        self.model.load_state_dict(before)
        self.start()

    def set_schedule(self) -> None:
        """Learning rates, momentum and late quantisation-aware training, as the step and the clock have it."""
        scale = rate_scale(self.step, self.seconds, self.s)
        warm, start = self.step / max(self.s.muon_momentum_warmup_steps, 1), self.s.muon_momentum_warmup_start
        set_rates(self.optimizers, scale, start + min(1.0, warm) * (self.s.muon_momentum - start))
        self.quantised = [p for name, p in self.model.named_parameters() if scale < self.s.late_qat_threshold
                          and name.startswith("blocks") and name.endswith(MATRICES)
                          and p.numel() > self.s.late_qat_min_elements]

    def save(self, folder: Path) -> Path:
        """Writes STEP.pt, unless something is not finite, and keeps the newest two."""
        self.loss()
        buffer, path = io.BytesIO(), folder / f"{self.step:08d}.pt"
        torch.save(dict(settings=dataclasses.asdict(self.s), step=self.step, seconds=self.seconds,
                        model=self.model.state_dict(), average=self.average.state_dict(),
                        optimizers=[o.state_dict() for o in self.optimizers], random=torch.get_rng_state()), buffer)
        write_atomically(path, buffer.getbuffer())
        for old in sorted(folder.glob("*.pt"), key=os.path.getmtime)[:-2]:
            old.unlink()
        return path

    def load(self, path: Path) -> None:
        """Goes on where the checkpoint was written; UserError if it is damaged or of another configuration."""
        try:
            theirs = (state := torch.load(path, map_location="cpu", weights_only=True))["settings"]
        except Exception:  # of many kinds, as damage may be anywhere in a pickle in a zip file
            raise UserError(f"RESUME={path} is not a whole checkpoint of this script.") from None
        for name in ALL[ALL.index("vocab_size") : ALL.index("calibration_tokens")]:
            if theirs.get(name) != getattr(self.s, name):
                raise UserError(f"{name.upper()}={getattr(self.s, name)}, but RESUME={path} has {theirs.get(name)}.")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]


def find_checkpoint(s: Settings) -> Path:
    """The file that RESUME means; UserError if there is none."""
    mine = (path for path in Path("checkpoints").glob("*/*.pt") if s.run_id in ("", path.parent.name))
    paths = list(mine) if s.resume == "latest" else [Path(s.resume)]
    if not paths or not paths[0].is_file():
        raise UserError(f"RESUME={s.resume}: there is no such checkpoint.")
    return max(paths, key=os.path.getmtime)


def heed_signals() -> list[float]:
    """The times of all Ctrl-C and SIGTERM from now on: the first asks the training to stop after its step, one a second
    later (torchrun passes each on twice) stops at once."""
    times = []

    def receive(number, frame):
        times.append(time.monotonic())
        if times[-1] > times[0] + 1:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, receive)
    return times


def train(trainer: Trainer, log: Log, folder: Path, validate) -> None:
    """Trains until the last step or the wall-clock cap; validate(model) gives a Score."""
    s, ranks = trainer.s, trainer.ranks
    every = s.checkpoint_every if s.checkpoint_every >= 0 else 0 if 0 < s.max_wallclock_seconds <= 600 else 60
    signals, saved, began = heed_signals(), time.monotonic(), time.monotonic() - trainer.seconds
    while not trainer.ended():
        trainer.set_schedule()
        trainer.update()
        trainer.seconds, stop = ranks.from_first(time.monotonic() - began, len(signals))
        step, seconds = trainer.step, trainer.seconds
        log.progress("training", max(step / s.iterations, seconds / (s.training_seconds or math.inf)), seconds)
        if step <= 5 or step % s.train_log_every == 0 or trainer.ended():
            log(f"step:{step}/{s.iterations} train_loss:{trainer.loss():.4f} train_time:{1000 * seconds:.0f}ms "
                f"step_avg:{1000 * seconds / step:.2f}ms {trainer.speed()}")
        if s.val_loss_every and step % s.val_loss_every == 0:
            log(f"step:{step}/{s.iterations} {validate(trainer.model)} train_time:{1000 * seconds:.0f}ms")
            began = time.monotonic() - seconds  # validation is not training time
        if ranks.rank == 0 and (stop or (every and (time.monotonic() - saved >= every or trainer.ended()))):
            log(f"checkpoint: {trainer.save(folder)}", console=False)
            saved = time.monotonic()
        if stop:
            raise UserError(f"Stopped at step {step}; to go on: RESUME={folder}/{step:08d}.pt, all else the same.")
    signals.append(0.0)  # from now on a signal stops at once
    if trainer.step < s.iterations:
        log(f"stopping_early: wallclock_cap train_time:{1000 * trainer.seconds:.0f}ms "
            f"step:{trainer.step}/{s.iterations}")


# ---- Main -----------------------------------------------------------------------------------------------------------

def log_start(log: Log, source: str, s: Settings, ranks: Ranks, model: GPT) -> None:
    """The source, so that the log can be rerun; then versions, machine and settings."""
    if log.active and log.empty:
        log(f"{source}\n{'=' * 80}", console=False)
    log(f"python {sys.version.split()[0]} torch {torch.__version__} numpy {np.__version__} zstandard "
        f"{zstandard.__version__} GPU {torch.cuda.get_device_name() if ranks.device.type == 'cuda' else 'none'}")
    log("\n".join(f"{name}:{value}" for name, value in dataclasses.asdict(s).items()), console=False)
    log(f"preset:{s.preset} world_size:{ranks.world} device:{ranks.device.type} dtype:{model.dtype} seed:{s.seed} "
        f"model_params:{sum(p.numel() for p in model.parameters())}")


def log_end(log: Log, scores: dict[str, Score], headline: str, code_bytes: int, artifact_bytes: int, s: Settings):
    """A short table, and what to type next; `headline` is the score that stands for the run."""
    for name, score in scores.items():
        log(f"  {name:<44} {score.val_bpb:8.4f} bpb {score.seconds:8.1f} s")
    log(f"  {code_bytes} code + {artifact_bytes} artifact = {code_bytes + artifact_bytes} bytes, headroom "
        f"{s.size_cap_bytes - code_bytes - artifact_bytes}")
    claim = ("--ttt " if "adaptation" in headline else "") + f"--claim {scores[headline].val_bpb:.6f}"
    log(f"Check it: python verify.py {s.artifact_path} --data {s.data_path} --tokenizer {s.tokenizer_path} {claim}")


def write_artifact(trainer: Trainer, tokenizer_sha256: str, code_bytes: int, log: Log) -> None:
    """Calibrates on all ranks; the first one quantises the weights and writes the file."""
    s, ranks, model, began = trainer.s, trainer.ranks, trainer.model, time.monotonic()
    moments = calibrate(model, trainer.stream, s, ranks) if "trellis" in (s.codec, s.embed_codec) else {}
    log(f"calibration_time:{1000 * (time.monotonic() - began):.0f}ms")
    if ranks.rank == 0:
        config = {name: getattr(s, name) for name in ALL[ALL.index("vocab_size") :]}
        weights = {name: w.float().cpu().numpy() for name, w in model.state_dict().items()}
        artifact = export(weights, moments, config | {"tokenizer_sha256": tokenizer_sha256}, s, code_bytes, log)
        write_atomically(Path(s.artifact_path), artifact)
    ranks.from_first()  # all wait for the file
    log(f"export_time:{1000 * (time.monotonic() - began):.0f}ms")


def run(s: Settings, ranks: Ranks) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    code_bytes, checkpoint = len(source.encode()), find_checkpoint(s) if s.resume else None
    run_id = s.run_id or (checkpoint.parent.name if checkpoint else time.strftime("%Y%m%d_%H%M%S"))
    log = Log(run_id, ranks, append=checkpoint is not None)
    if s.preset == "demo" and s.data_path == PRESETS["demo"]["data_path"] and not any(Path(s.data_path).glob("*.bin")):
        if ranks.rank == 0:
            make_demo_data(s)
        ranks.from_first()
    counter = ByteCounter(s.tokenizer_path, s.vocab_size)
    evaluator = Evaluator(counter, s, ranks, log)
    torch.manual_seed(s.seed)
    model = GPT(s, getattr(torch, s.dtype)).to(ranks.device)
    log_start(log, source, s, ranks, model)
    trainer, began = Trainer(model, s, ranks), time.monotonic()
    runner = trainer.runner
    trainer.warm_up()
    log(f"warm-up and compilation: {time.monotonic() - began:.1f} s, not counted as training")
    if checkpoint:
        trainer.load(checkpoint)
        log(f"resumed from {checkpoint} at step {trainer.step}")
    train(trainer, log, Path("checkpoints") / run_id, lambda m: evaluator.score(m, "validation", s.train_seq_len))
    model.load_state_dict(trainer.average.module.state_dict())
    scores = {"before export, plain": evaluator.score(runner, "before export", s.train_seq_len)}
    write_artifact(trainer, counter.sha256, code_bytes, log)
    del trainer  # frees the memory of its optimizers
    artifact = Path(s.artifact_path).read_bytes()
    model.load_state_dict({name: torch.from_numpy(w) for name, w in decode_pcll(artifact)[1].items()})
    log(f"Code size: {code_bytes} bytes\nSerialized model pcll: {len(artifact)} bytes\n"
        f"Total submission size pcll: {code_bytes + len(artifact)} bytes")
    scores["after export, plain"] = evaluator.score(runner, "after export", s.train_seq_len)
    headline = "after export, sliding window"
    scores[headline] = evaluator.score(runner, "sliding window", s.eval_stride)
    log(f"final_pcll_sliding_exact {scores[headline]}")
    if s.ttt_protocol == "score_first":
        headline = "after score-first adaptation, sliding window"
        scores[headline] = evaluator.score(runner, "score-first adaptation", s.eval_stride, Learner(runner, s, ranks))
        log(f"final_pcll_ttt_exact {scores[headline]}")
    elif s.ttt_protocol == "train_then_score":
        scores[NOT_LEGAL] = evaluator.train_then_score(runner)
        log(f"{NOT_LEGAL} train_then_score {scores[NOT_LEGAL]}")
    log_end(log, scores, headline, code_bytes, len(artifact), s)
    if ranks.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def explain(error: BaseException) -> str:
    """One sentence for the person who started the run; raises an error that is a mistake of ours."""
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory is full: lower MICRO_BATCH_SEQS (training), EVAL_BATCH_SEQS or TTT_BATCH_SEQS."
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return "Another rank has ended; its own output says why."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file could not be written'}: {error.strerror}."
    if isinstance(error, UserError | KeyboardInterrupt):
        return str(error) or "Stopped."
    raise error


def main() -> int:
    try:
        run(s := load_settings(dict(os.environ)), join_ranks(s))
        return 0
    except (UserError, OSError, RuntimeError, KeyboardInterrupt) as error:
        print(explain(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
