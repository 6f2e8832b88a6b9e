"""Checks a Parameter Golf submission and trusts nobody; shares no code with train_gpt.py.

    python verify.py artifact.pcll                      size, integrity, bits per byte
    python verify.py artifact.pcll --ttt --claim BPB    replays the adaptation, judges a claim
    python verify.py artifact.pcll --log LOG            also what a log says of the first 2,048,
                                                        4,096, 8,192, ... positions of each pass
    python verify.py artifact.pcll --sample             fixed weights on windows drawn at random
    python verify.py records/TRACK/DATE_name            a record folder of any entry, by
                                                        records/check.py, and its artifact

Every check ends in a finding with the number behind it:
    PROVEN          recomputed here from the files, by code that does not come from the competitor
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).
What --minutes or Ctrl-C ends is reported as far as it got.
"""

import argparse
import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby, islice, pairwise, product
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # python -I leaves the script's folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from records.report import end_on_interrupt

    end_on_interrupt("verify.py")  # in the imports, too

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from decode_artifact import (
    ArtifactError,
    Cursor,
    inflate,
    parse_pcll,
    read_bytes,
    read_config,
    read_table,
)
from records.check import CAP_BYTES, SPLIT_BYTES, SPLIT_TOKENS, check_folder, submitted_scores
from records.code import measure_code
from records.files import open_regular
from records.logs import Prefix, is_log_name, read_prefixes
from records.report import (
    CONSISTENT,
    FAILED,
    NOT_CHECKABLE,
    PROVEN,
    SUSPICION,
    Finding,
    Report,
    UnusableInput,
    report_on,
)

HERE = Path(__file__).resolve().parent
DEFAULT_DATA = ("data/datasets/fineweb10B_sp1024", "data/demo")  # the challenge's, the demo's
MEMORY_BYTES = 8 * 2**30  # that the program may take on a CPU
SPLIT_SLACK = 2e-4  # of the bytes of the challenge's split
BOS = 1  # the id that starts every document
Weights = dict[str, np.ndarray]  # by name; float32
Shapes = dict[str, tuple[int, ...]]  # by name

# Between bfloat16 and float32 a token's nats differ at random: by a standard deviation of 0.019 to
# 0.022 over 131,072 positions of the record's artifact (per document 4,096), in fixed and adapted
# passes alike, without correlation between tokens. In bits per byte that is 0.013 over the square
# root of the number of positions; eight times as much is allowed.
TOLERANCE = 0.0005  # bits per byte
DRIFT = 0.1  # bits per byte times the square root of positions
STEADY_LR = 0.001  # document_lr, up to which an adaptation does not amplify rounding to this


def drift_allowed(count: int) -> float:
    """Bits per byte by which a claim or a log may be off from float32 over so many positions."""
    return TOLERANCE + DRIFT / math.sqrt(count)


# ---------------------------------------------------------------- data


def read_tokens(folder: Path, vocab_size: int) -> np.ndarray:
    """The validation split in a folder, (n >= 2,) uint16: its files fineweb_val_NUMBER.bin by
    number, as train_gpt.py reads them. Raises UnusableInput."""
    shards = {}
    for path in sorted(path for path in folder.glob("fineweb_val_*.bin") if path.is_file()):
        number = path.stem.removeprefix("fineweb_val_")  # bytes_000000 holds no tokens
        if number.isdecimal() and shards.setdefault(int(number), path) != path:
            raise UnusableInput(f"{path} and {shards[int(number)]} have the same number")
    if not shards:
        raise UnusableInput(f"there are no tokens in {folder}: it needs a fineweb_val_000000.bin")

    parts = []
    for number in range(min(shards), max(shards) + 1):
        if number not in shards:
            raise UnusableInput(f"{folder} lacks the validation shard number {number}")
        header = np.fromfile(shards[number], "<i4", 3).tolist()  # magic, version, tokens
        count = (shards[number].stat().st_size - 1024) / 2
        if count < 1 or header != [20240520, 1, count]:
            raise UnusableInput(f"{shards[number]} is not a whole token shard")
        parts.append(np.fromfile(shards[number], "<u2", offset=1024))

    tokens = np.concatenate(parts)
    if len(tokens) < 2 or int(tokens.max()) >= vocab_size:
        problem = f"{len(tokens)} tokens up to {tokens.max()}, the artifact has {vocab_size} pieces"
        raise UnusableInput(f"the fineweb_val_*.bin in {folder} hold {problem}")
    return tokens


def documents(tokens: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, end) of each document: from one BOS to the next."""
    return pairwise(sorted({0, *np.flatnonzero(tokens == BOS).tolist(), len(tokens)}))


def count_bytes(tokens: np.ndarray, tokenizer: sentencepiece.SentencePieceProcessor) -> int:
    """UTF-8 bytes of the text that the tokens after the first one decode to.

    A byte piece is one byte even where the bytes are no valid UTF-8: a letter stands in for it. The
    challenge leaves out the space that a text begins with, after BOS or another id that is no text;
    decoders do so with some tokenizers alone, so each text is decoded with a letter before it.
    """
    ids = range(tokenizer.vocab_size())
    pieces = [tokenizer.id_to_piece(i) for i in ids]
    letters = set("etaoinsrhldu0123456789")
    letter = next(i for i in ids if pieces[i] in letters)
    silent = [
        tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i) for i in ids
    ]
    stand_in = np.array([letter if tokenizer.is_byte(i) else i for i in ids])
    stand_in[silent] = BOS

    def size(text: np.ndarray) -> int:
        decoded = tokenizer.decode([letter, *text.tolist()])
        return len(decoded.encode()) - 1 - pieces[text[0]].startswith("▁") if len(text) else 0

    ids = stand_in[tokens]
    first = size(ids[:1]) if ids[0] != BOS else 0
    texts = (ids[start:end] for start, end in documents(ids))
    return sum(size(text[int(text[0] == BOS) :]) for text in texts) - first


# ---------------------------------------------------------------- model


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def rotate(x: Tensor, dims: int, base: float) -> Tensor:
    """Rotary position embedding on the first `dims` of the last axis of x [B, heads, T, d]."""
    half = dims // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    position = torch.arange(x.shape[2], dtype=torch.float32, device=x.device)
    angle = position[:, None] * frequency
    a = x[..., :half]
    b = x[..., half:dims]
    first_half = a * angle.cos() + b * angle.sin()
    second_half = b * angle.cos() - a * angle.sin()
    return torch.cat([first_half, second_half, x[..., dims:]], -1)


def layer_order(c: dict) -> list[int]:
    """The layers in the order in which they are passed: those of the loop several times."""
    layers = [*range(c["num_layers"])]
    stop = c["loop_last"] + 1
    loop = layers[c["loop_first"] : stop]
    return layers[: c["loop_first"]] + loop * c["loop_passes"] + layers[stop:]


class Model:
    """The network of an artifact: token ids [B, T] in, float32 logits [B, T, vocabulary] out."""

    def __init__(self, config: dict, weights: Weights, device: str):
        self.config = config
        self.params = {name: torch.tensor(array, device=device) for name, array in weights.items()}

    def previous(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [B, T, ...] of the position before; zero at the first and, with bos_reset, at a BOS."""
        rest = x.dim() - 2  # axes
        x = F.pad(x[:, :-1], [0, 0] * rest + [1, 0])
        first = (tokens == BOS) & self.config["bos_reset"]
        return x.masked_fill(first.view(*first.shape, *[1] * rest), 0)

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [B, T, D]."""
        p = self.params
        c = self.config
        x = p["tok_emb"][tokens]
        if c["smear_gate"] and c["smear_dims"]:
            gate = torch.sigmoid(x[..., : c["smear_dims"]] @ p["smear_gate"])
            x = x + p["smear_scale"] * gate[..., None] * self.previous(x, tokens)
        if c["bigram_buckets"]:
            last = c["bigram_buckets"] - 1  # where there is no token before
            bucket = ((36313 * tokens) ^ (27191 * self.previous(tokens, tokens))) % last
            bucket[:, 0] = last
            bucket[(tokens == BOS) & c["bos_reset"]] = last
            x = x + p["bigram.scale"] * F.linear(p["bigram.table"][bucket], p["bigram.proj"])
        x = rms_norm(x)
        if c["smear_gate"] and not c["smear_dims"]:
            gate = torch.sigmoid(p["smear_gate"])
            x = (1 - gate) * x + gate * self.previous(x, tokens)
        return x

    def attend(self, i: int, p: dict, h: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """What layer i's attention adds for its normed input h [B, T, D], and its values
        [B, KV, T, d]; v_first are those of layer 0."""
        c = self.config
        q, k, v = (F.linear(h, p[f"attn.{name}"]) for name in "qkv")
        d = c["model_dim"] // c["num_heads"]
        q, k, v = (x.unflatten(-1, (-1, d)).transpose(1, 2) for x in (q, k, v))
        if c["value_residual"] and i > 0:
            v = p["attn.value_mix"][0] * v_first + p["attn.value_mix"][1] * v
        q, k = (rotate(rms_norm(x), c["rope_dims"], c["rope_base"]) for x in (q, k))
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        q = q * p["attn.q_gain"][:, None, None]
        y = F.scaled_dot_product_attention(q, keys, values, is_causal=True)

        if c["gated_attention"] and c["gate_dims"]:
            gate = F.linear(h[..., : c["gate_dims"]], p["attn.gate_weight"])
            y = y * 2 * torch.sigmoid(gate).mT[..., None]
        elif c["gated_attention"]:
            gate = F.linear(h, p["attn.gate_weight"], p["attn.gate_bias"])
            y = y * torch.sigmoid(gate).mT[..., None]
        if i >= c["num_layers"] - c["xsa_last_n"]:
            own = values / values.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            y = y - (y * own).sum(-1, keepdim=True) * own
        return F.linear(y.transpose(1, 2).flatten(2), p["attn.out"]), v

    def block(self, i: int, x: Tensor, x0: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Layer i's output, [B, T, D], and its values."""
        c = self.config
        prefix = f"blocks.{i}."
        p = {x.removeprefix(prefix): w for x, w in self.params.items() if x.startswith(prefix)}
        scale = 1 / math.sqrt(i + 1) if c["ln_scale"] else 1.0

        x = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
        y, v = self.attend(i, p, rms_norm(x) * scale, v_first)
        attended = x + p["attn_scale"] * y
        read = x if i >= c["num_layers"] - c["parallel_last_n"] else attended
        up = F.linear(rms_norm(read) * scale, p["mlp.up"])
        up = torch.where(up < 0, c["mlp_negative_slope"] * up, up).square()
        return attended + p["mlp_scale"] * F.linear(up, p["mlp.down"]), v

    def features(self, tokens: Tensor) -> Tensor:
        """What the head reads, [B, T, D], for ids int64 [B, T]."""
        order = layer_order(self.config)
        half = len(order) // 2
        x0 = x = self.embed(tokens)
        v_first = None
        skips = []

        for place, i in enumerate(order):
            if self.config["unet_skips"] and half <= place < 2 * half:
                skip = self.params["skip_weights"][place - half] * skips.pop()
                if self.config["skip_gates"]:
                    gate = torch.sigmoid(self.params["skip_gates"][place - half])
                    x = gate * x
                    skip = (1 - gate) * skip
                x = x + skip
            x, v = self.block(i, x, x0, v_first)
            v_first = v if place == 0 else v_first
            if place < half:
                skips.append(x)
        return rms_norm(x)

    def head(self, x: Tensor) -> Tensor:
        cap = self.config["logit_softcap"]
        matrix = self.params.get("head", self.params["tok_emb"])
        return cap * torch.tanh(F.linear(x, matrix) / cap)

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))


# ---------------------------------------------------------------- configuration

MAX_WEIGHTS = 2**27  # 16 MB at one bit each
MAX_WORK = 2**42  # multiplications of a window: a quarter of an hour of a slow core
LARGEST = 9 * 10**18  # that train_gpt.py takes
SIZES = """vocab_size model_dim num_heads num_kv_heads mlp_hidden train_seq_len eval_stride
    document_rank"""
COUNTS = """rope_dims xsa_last_n parallel_last_n loop_first loop_last bigram_buckets bigram_dim
    smear_dims gate_dims ttt_epochs"""
FLAGS = """ln_scale smear_gate value_residual gated_attention unet_skips skip_gates bos_reset"""
CONFIG = {  # the lowest and the highest value, or all texts, of every setting that matters here
    **dict.fromkeys(SIZES.split(), (1, 65536)),
    **dict.fromkeys(COUNTS.split(), (0, LARGEST)),
    **dict.fromkeys(("ttt_batch_seqs", "ttt_chunk_tokens", "document_tokens"), (1, LARGEST)),
    **dict.fromkeys(FLAGS.split(), (False, True)),
    "num_layers": (1, 256),
    "loop_passes": (1, 16),
    "mlp_negative_slope": (-10.0, 9e18),
    "rope_base": (1e-300, 9e18),
    "logit_softcap": (1e-3, 1e6),
    "ttt_protocol": ("off", "score_first", "per_document", "train_then_score"),
    "ttt_optimizer": ("adamw", "sgd"),
    "ttt_grad_clip": (1e-9, 1e9),
    **dict.fromkeys(("ttt_lr", "document_lr"), (0.0, 9e18)),
}
UNUSED = """adam_beta2 bigram_init_std calibration_tokens codec dtype ema_decay embed_lr
    embed_weight_decay eval_batch_seqs fit grad_clip_norm iterations late_qat_threshold loader
    matrix_lr matrix_optimizer max_wallclock_seconds muon_momentum muon_momentum_warmup_start
    muon_momentum_warmup_steps qk_gain_init quantisation_nats scalar_lr scalar_weight_decay seed
    size_cap_bytes tokenizer_sha256 train_batch_tokens warmdown_floor warmdown_fraction
    warmdown_iters warmup_steps weight_decay weights_crc32""".split()  # by training and export


def is_allowed(value: object, values: tuple) -> bool:
    if isinstance(values[0], str):
        return value in values
    kinds = (float, int) if isinstance(values[0], float) else (type(values[0]),)
    return type(value) in kinds and values[0] <= value <= values[1]


def unknown_parts(c: dict, shapes: Shapes) -> list[str]:
    """What an artifact states or holds that is not of the network above, or beyond its limits."""
    found = [f"setting {name} is not known" for name in c if name not in (*CONFIG, *UNUSED)]
    stated = {name: c.get(name, "absent") for name in CONFIG}
    odd = [name for name in CONFIG if not is_allowed(stated[name], CONFIG[name])]
    found += [f"{name} = {stated[name]!r:.60} is none of {CONFIG[name]}" for name in odd]
    if found:
        return found

    length = c["train_seq_len"]
    work = c["loop_passes"] * sum(map(math.prod, shapes.values()))
    work += 2 * len(layer_order(c)) * length * c["model_dim"]
    if work * length > MAX_WORK:
        return [f"a window of {length:,} tokens takes {work * length:,} multiplications"]
    wanted = expected_shapes(c)
    return [f"tensor {name} is not known" for name in shapes if name not in wanted]


def contradictions(c: dict, shapes: Shapes) -> list[str]:
    """Why no network has a configuration, or why it is not that of the tensors."""
    per_document = c["ttt_protocol"] == "per_document"
    length = c["train_seq_len"]
    D = c["model_dim"]
    rotated = range(0, D // c["num_heads"] + 1, 2)
    rules = {
        "eval_stride is above train_seq_len": c["eval_stride"] > length,
        "document_tokens is above train_seq_len": per_document and c["document_tokens"] > length,
        "num_heads does not divide model_dim": D % c["num_heads"] != 0,
        "num_kv_heads does not divide num_heads": c["num_heads"] % c["num_kv_heads"] != 0,
        "rope_dims is odd or above the head size": c["rope_dims"] not in rotated,
        "bigram_buckets is 1": c["bigram_buckets"] == 1,
        "loop_last is no layer": c["loop_last"] >= c["num_layers"],
        "loop_first is above loop_last": c["loop_first"] > c["loop_last"],
        "gate_dims or smear_dims is above model_dim": max(c["gate_dims"], c["smear_dims"]) > D,
    }
    wanted = expected_shapes(c)
    wrong = [name for name in wanted if shapes.get(name) != wanted[name]]
    found = [f"{name} is {shapes.get(name, 'absent')}, not {wanted[name]}" for name in wrong]
    return [text for text, broken in rules.items() if broken] or found


def expected_shapes(c: dict) -> Shapes:
    """Name and shape of every tensor that a configuration asks for."""
    D = c["model_dim"]
    H = c["num_heads"]
    kv = D // H * c["num_kv_heads"]
    block = {"resid_mix": (2, D), "attn_scale": (D,), "mlp_scale": (D,), "attn.q_gain": (H,)}
    block |= {"attn.q": (D, D), "attn.k": (kv, D), "attn.v": (kv, D), "attn.out": (D, D)}
    block |= {"mlp.up": (c["mlp_hidden"], D), "mlp.down": (D, c["mlp_hidden"])}
    if c["gated_attention"]:
        block["attn.gate_weight"] = (H, c["gate_dims"] or D)
    if c["gated_attention"] and not c["gate_dims"]:
        block["attn.gate_bias"] = (H,)
    if c["value_residual"]:
        block["attn.value_mix"] = (2,)
    layers = range(c["num_layers"])
    shapes = {f"blocks.{i}.{name}": shape for i in layers for name, shape in block.items()}
    shapes.pop("blocks.0.attn.value_mix", None)  # the first layer has no values before it

    shapes["tok_emb"] = (c["vocab_size"], D)
    if c["bigram_buckets"]:
        shapes["bigram.table"] = (c["bigram_buckets"], c["bigram_dim"])
        shapes["bigram.proj"] = (D, c["bigram_dim"])
        shapes["bigram.scale"] = ()
    if c["smear_gate"]:
        shapes["smear_gate"] = (c["smear_dims"] or D,)
    if c["smear_gate"] and c["smear_dims"]:
        shapes["smear_scale"] = ()
    skips = len(layer_order(c)) // 2
    if c["unet_skips"] and skips:
        shapes["skip_weights"] = (skips, D)
    if c["unet_skips"] and skips and c["skip_gates"]:
        shapes["skip_gates"] = (skips, D)
    return shapes


# ---------------------------------------------------------------- passes
# The network maps token ids to logits and never holds the target of the position it is asked for.

BATCH_TOKENS = {"cpu": 4096, "cuda": 131_072}  # that go through the network at a time
PLAIN = "after export, plain"  # the passes, as train_gpt.py's logs have them
SLIDING = "after export, sliding window"
ADAPTED = "after score-first adaptation, sliding window"
PER_DOCUMENT = "after adaptation per document"


class Ended(Exception):
    """Why a pass goes no further."""


class Clock:
    """The minutes of a run, and lines on stderr, none within 4 s after another."""

    def __init__(self, minutes: float):
        self.said = time.monotonic()
        self.ends = self.said + 60 * minutes

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def say(self, text: str) -> None:
        if time.monotonic() - self.said >= 4:
            self.said = time.monotonic()
            print(f"{text}; stops within {max(0, self.left):,.0f} s", file=sys.stderr, flush=True)


@dataclass
class Subject:
    """An artifact's network, and the validation split that it is scored on."""

    config: dict
    weights: Weights
    tokens: np.ndarray  # (n,) uint16, of which all but the first are targets
    bytes_of: Callable[[int], int]  # UTF-8 bytes of the text of the first so many targets
    options: argparse.Namespace  # the command line, with a clock, claims and lines of logs
    folder: Path = HERE  # of the split
    lines: list[Prefix] = field(default_factory=list)  # that logs have of its first positions

    def network(self) -> Model:
        """A copy of its own: learning changes it."""
        return Model(self.config, self.weights, self.options.device)

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1

    def bpb(self, nats: float, count: int) -> float:
        """Bits per byte of the first so many targets."""
        return nats / math.log(2) / max(1, self.bytes_of(count))

    @property
    def official(self) -> bool:
        """Whether its split has the challenge's tokens, in whole sequences of 1,024, and bytes."""
        same = self.targets // 1024 * 1024 == SPLIT_TOKENS.get(self.config["vocab_size"])
        return same and abs(self.bytes_of(self.targets) / SPLIT_BYTES - 1) < SPLIT_SLACK

    @property
    def split(self) -> str:
        other = f"the split in {self.folder}, not the challenge's whole one"
        return "the challenge's whole split" if self.official else other


class Window(NamedTuple):
    """Inputs [start, end) go in, the predictions of inputs [first, end) count."""

    start: int
    end: int
    first: int


@dataclass
class Pass:
    """One way through the split, and how far it has come."""

    name: str
    stride: int
    marks: list[int] = field(default_factory=list)  # positions
    ends: float = math.inf  # when its time is over, on the monotonic clock
    done: int = 0  # positions
    nats: float = 0.0
    at: dict[int, float] = field(default_factory=dict)  # nats of the first positions, by mark
    ended: str = ""  # why it went no further
    steady: bool = True  # else rounding may decide its score, and none is proof against a claim

    def enter(self, losses: np.ndarray) -> None:
        """The next positions' nats, (n,) float64."""
        for mark in self.marks:
            if self.done < mark <= self.done + len(losses):
                self.at[mark] = self.nats + float(losses[: mark - self.done].sum())
        self.done += len(losses)
        self.nats += float(losses.sum())
        if not math.isfinite(self.nats):
            raise Ended(f"one of the positions up to {self.done:,} has no score")

    def require_time(self) -> None:
        if time.monotonic() > self.ends:
            raise Ended("no time is left")

    def __str__(self) -> str:
        return f"{self.name}: {self.done:,} positions, {self.nats / self.done:.4f} nats each"


def windows(tokens: np.ndarray, config: dict) -> Iterator[Window]:
    """In order; each input counts in one. Where windows do not overlap, the last one is short."""
    length = config["train_seq_len"]
    inputs = len(tokens) - 1
    first = 0
    end = min(length, inputs)
    while first < inputs:
        yield Window(first if config["eval_stride"] == length else max(0, end - length), end, first)
        first = end
        end = min(end + config["eval_stride"], inputs)


def batches(tokens: np.ndarray, config: dict, most: int) -> Iterator[tuple[int, list[Window]]]:
    """A chunk's number and at most so many neighbouring windows of one shape that lie in it."""

    def chunk_and_shape(window: Window) -> tuple[int, ...]:
        chunk = (window.end - 1) // config["ttt_chunk_tokens"]
        return chunk, window.end - window.start, window.end - window.first

    for key, group in groupby(windows(tokens, config), chunk_and_shape):
        while batch := list(islice(group, most)):
            yield key[0], batch


def batch_rows(subject: Subject) -> int:
    return max(1, BATCH_TOKENS[subject.options.device] // subject.config["train_seq_len"])


def batch_losses(model: Model, subject: Subject, batch: list[Window]) -> np.ndarray:
    """Nats (n,) float64 of the positions that windows of one shape score, in their order."""
    tokens = subject.tokens
    inputs = np.stack([tokens[window.start : window.end] for window in batch])
    targets = np.stack([tokens[window.first + 1 : window.end + 1] for window in batch])
    inputs = torch.from_numpy(inputs.astype(np.int64)).to(subject.options.device)
    targets = torch.from_numpy(targets.astype(np.int64)).flatten().to(subject.options.device)

    with torch.no_grad():
        x = model.features(inputs)[:, batch[0].first - batch[0].start :].flatten(0, 1)
        losses = F.cross_entropy(model.head(x), targets, reduction="none")
    return losses.double().cpu().numpy()


def score(subject: Subject, run: Pass) -> None:
    """Takes a pass to its end, or notes why not; Ctrl-C takes the time of all others, too."""
    made = score_documents if run.name == PER_DOCUMENT else score_windows
    try:
        made(subject, run)
    except Ended as ended:
        run.ended = str(ended)
    except KeyboardInterrupt:
        run.ended = "stopped by Ctrl-C"
        subject.options.clock.ends = 0.0


def score_windows(subject: Subject, run: Pass) -> None:
    model = subject.network()
    learner = Learner(subject, model) if run.name == ADAPTED else None
    config = subject.config | {"eval_stride": run.stride}
    last_chunk = 0
    learned = 0

    for chunk, batch in batches(subject.tokens, config, batch_rows(subject)):
        run.require_time()
        if learner and chunk != last_chunk:
            learner.learn(run, last_chunk, learned)
            learned = run.done
        last_chunk = chunk
        run.enter(batch_losses(model, subject, batch))
        subject.options.clock.say(f"{run}, of {subject.targets:,}")


# ---------------------------------------------------------------- adaptation

LEARNING_FACTORS = {"attn.out": 3.0, "mlp.down": 3.0, "mlp.up": 0.5}  # by the end of the name


class Learner:
    """Score-first test-time training of a network's parameters."""

    def __init__(self, subject: Subject, model: Model):
        self.subject = subject
        self.config = subject.config
        self.model = model
        groups = []
        for name, param in model.params.items():
            factor = LEARNING_FACTORS.get(".".join(name.split(".")[-2:]), 1.0)
            groups.append({"params": [param.requires_grad_()], "factor": factor})
        self.optimizer = torch.optim.SGD(groups, 1e-3, momentum=0.9)
        if self.config["ttt_optimizer"] == "adamw":
            self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def learn(self, run: Pass, chunk: int, begin: int) -> None:
        """Trains on scored inputs, from `begin` on; the rate is a cosine over the whole split."""
        length = self.config["train_seq_len"]
        size = self.config["ttt_batch_seqs"]
        chunks = math.ceil(self.subject.targets / self.config["ttt_chunk_tokens"])
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * chunk / chunks))
            group["lr"] = self.config["ttt_lr"] * group["factor"] * cosine

        starts = range(begin, run.done - length + 1, length)
        for epoch in range(self.config["ttt_epochs"] if starts else 0):
            for i in range(0, len(starts), size):
                run.require_time()
                self.step(starts[i : i + size], length)
                words = f"epoch {epoch + 1:,}, {i:,} of {len(starts):,} sequences"
                self.subject.options.clock.say(f"learning from chunk {chunk + 1:,}: {words}")

    def step(self, starts: range, length: int) -> None:
        """From the sequences that begin there."""
        device = self.subject.options.device
        blocks = [self.subject.tokens[i : i + length + 1] for i in starts]
        rows = max(1, BATCH_TOKENS[device] // (8 * length))  # learning takes more memory
        self.optimizer.zero_grad()
        for part in torch.from_numpy(np.stack(blocks).astype(np.int64)).to(device).split(rows):
            logits = self.model(part[:, :-1].contiguous()).flatten(0, 1)
            loss = F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum")
            (loss / (len(blocks) * length)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.params.values(), self.config["ttt_grad_clip"])
        self.optimizer.step()


def is_adapted(name: str) -> bool:
    """Whether a tensor is a matrix that a document adds low-rank ones to."""
    ends = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
    return name.endswith(ends) or name in ("tok_emb", "bigram.proj")


def low_rank(w: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The matrices A [rank, C] and B [R, rank] that make w [R, C] w + B A, as they begin: B is zero
    and row i of A holds sqrt(2 / C) cos(pi (i + 1/2) (j + 1/2) / C)."""
    rows, columns = w.shape
    halves = (np.arange(size) + 0.5 for size in (rank, columns))
    a = np.sqrt(2 / columns) * np.cos(np.pi / columns * np.outer(*halves))
    a = torch.from_numpy(a).float().to(w.device)
    return a.requires_grad_(), torch.zeros(rows, rank, device=w.device, requires_grad=True)


def score_documents(subject: Subject, run: Pass) -> None:
    """One document after the other, document_tokens at a time: scored, then learned from.

    A document sees nothing of those before it; its last prediction is of the next one's BOS.
    """
    c = subject.config
    model = subject.network()
    fixed = model.params
    ids = torch.from_numpy(subject.tokens.astype(np.int64)).to(subject.options.device)
    for start, end in documents(subject.tokens[:-1]):
        pairs = {x: low_rank(w, c["document_rank"]) for x, w in fixed.items() if is_adapted(x)}
        learned = [matrix for pair in pairs.values() for matrix in pair]
        optimizer = torch.optim.AdamW(learned, c["document_lr"], (0.0, 0.999), weight_decay=0.5)
        for low in range(start, end, c["document_tokens"]):
            run.require_time()
            high = min(low + c["document_tokens"], end)
            seen = max(start, low + c["document_tokens"] - c["train_seq_len"])
            sums = {name: fixed[name] + b @ a for name, (a, b) in pairs.items()}
            sums["head"] = sums.pop("tok_emb")  # the embedding stays as it is
            model.params = fixed | sums
            x = model.features(ids[None, seen:high])[0, low - seen :]
            losses = F.cross_entropy(model.head(x), ids[low + 1 : high + 1], reduction="none")
            run.enter(losses.detach().double().cpu().numpy())
            if high < end:
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
            subject.options.clock.say(f"{run}, of {subject.targets:,}")


# ---------------------------------------------------------------- scores


class Kind(NamedTuple):
    """What a pass finds."""

    check: str
    words: str  # what its score is of
    share: int  # of the time that is left


KINDS = {
    PLAIN: Kind("val_bpb plain", "with fixed weights, in windows side by side", 1),
    SLIDING: Kind("val_bpb", "with fixed weights", 4),
    ADAPTED: Kind("val_bpb_ttt", "after score-first adaptation", 4),
    PER_DOCUMENT: Kind("val_bpb_ttt", "after adaptation per document", 4),
}
REPLAYED = {"score_first": ADAPTED, "per_document": PER_DOCUMENT}  # by --ttt, of each protocol


def check_scores(subject: Subject) -> Iterator[Finding]:
    """Bits per byte with fixed weights and, by --ttt or where a log states them, with adapted ones;
    the log's lines of each pass, and the closest claim."""
    runs = planned_passes(subject)
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        shares = [KINDS[name].share for name in names[i:]]
        run.ends = time.monotonic() + subject.options.clock.left * shares[0] / sum(shares)
        score(subject, run)
        yield measured(subject, run)
        yield from check_prefixes(subject, run, [x for x in subject.lines if x.name == run.name])

    yield from check_protocol(subject, names)
    for name in sorted({line.name for line in subject.lines} - {*names}):
        yield Finding(NOT_CHECKABLE, "prefix", f"{name}: no artifact here repeats it")
    yield from check_claim(subject, runs)


def planned_passes(subject: Subject) -> list[Pass]:
    """Those whose prefixes a log states, and that of the claim."""
    marks = {name: [line.count for line in subject.lines if line.name == name] for name in KINDS}
    stride = subject.config["eval_stride"]
    runs = [Pass(SLIDING, stride, marks[SLIDING])]
    adapted = REPLAYED.get(subject.config["ttt_protocol"])
    if adapted and (subject.options.ttt or marks[adapted]):
        steady = adapted == ADAPTED or subject.config["document_lr"] <= STEADY_LR
        runs.insert(0, Pass(adapted, stride, marks[adapted], steady=steady))
    if marks[PLAIN]:
        runs.insert(0, Pass(PLAIN, subject.config["train_seq_len"], marks[PLAIN]))
    return runs


def check_protocol(subject: Subject, names: list[str]) -> Iterator[Finding]:
    """Whether the artifact's adaptation is legal, and among the passes."""
    protocol = subject.config["ttt_protocol"]
    replayed = REPLAYED.get(protocol)
    if protocol == "train_then_score":
        detail = f"{protocol}: a score by it is NOT LEGAL (trained on the tokens it scores)"
        verdict = FAILED if subject.options.ttt else SUSPICION
        yield Finding(verdict, "adaptation", detail)
    elif protocol == "off" and subject.options.ttt:
        yield Finding(NOT_CHECKABLE, "adaptation", "the artifact states none")
    elif replayed and replayed not in names:
        says = f"the score {KINDS[replayed].words} was not recomputed"
        yield Finding(NOT_CHECKABLE, "adaptation", f"{protocol}: add --ttt", says=says)


def measured(subject: Subject, run: Pass) -> Finding:
    """A pass's bits per byte; PROVEN of a whole split alone."""
    check, words, _ = KINDS[run.name]
    part = f"{run.done:,} of {subject.targets:,} positions"
    if not math.isfinite(run.nats):
        detail = f"{run.name}: {run.ended}; a model gives each token a probability"
        return Finding(FAILED, check, detail, run.done, "positions")
    if not run.done:
        says = f"nothing was scored {words}: {run.ended}"
        return Finding(NOT_CHECKABLE, check, f"{run.name}: {part}; {run.ended}", says=says)

    bpb = subject.bpb(run.nats, run.done)
    detail = f"{run.name}, {part}, each once; val_loss {run.nats / run.done:.6f}; "
    if run.done < subject.targets:
        says = "" if run.at else f"the first {part} scored {words}"  # or check_prefixes
        detail += f"PARTIAL: {run.ended}"
        return Finding(NOT_CHECKABLE, check, detail, bpb, "bits/byte", says=says)
    says = f"val_bpb {bpb:.6f} recomputed {words}"
    detail += f"of {subject.split}"
    return Finding(PROVEN, check, detail, bpb, "bits/byte", says=says)


def check_prefixes(subject: Subject, run: Pass, lines: list[Prefix]) -> Iterator[Finding]:
    """A log's word on the first positions of a pass, against what was computed here."""
    part = f"of {subject.targets:,} positions"
    reached = sorted((line for line in lines if line.count in run.at), key=lambda line: line.count)
    for line in reached:
        problem = prefix_problem(subject, run, line)
        if problem:
            same_text = line.bytes == subject.bytes_of(line.count)
            sure = run.steady or not same_text
            open_point = "" if sure else "; at its document_lr rounding may decide"
            open_point += "" if subject.official or same_text else "; of another split? see --data"
            open_point += "" if line.artifact else "; the log names no artifact_sha256"
            verdict = NOT_CHECKABLE if open_point else FAILED
            detail = f"{run.name}: the first {line.count:,} {part} {problem}{open_point}"
            yield Finding(verdict, "prefix", detail, line.count, "positions", line.quote)
            return
    if reached:
        part = f"first {line.count:,} {part}"
        rest = f"the other {subject.targets - line.count:,} rest on the log's word"
        detail = f"{run.name}: the {part} come to the log's {line.bpb:.6f} within "
        detail += f"{drift_allowed(line.count):.4f}, {len(reached)} lines; {rest}"
        whole = run.done == subject.targets  # then measured() says enough
        says = "" if whole else f"the log's {part} are right {KINDS[run.name].words}"
        yield Finding(PROVEN, "prefix", detail, line.count, "positions", line.quote, says)
    elif lines:
        detail = f"{run.name}: {run.done:,} {part}, fewer than the log's first line; {run.ended}"
        yield Finding(NOT_CHECKABLE, "prefix", detail, run.done, "positions")


def prefix_problem(subject: Subject, run: Pass, line: Prefix) -> str:
    """How a line of a log differs from what was computed here; empty where it does not."""
    size = subject.bytes_of(line.count)
    if line.bytes != size:
        return f"are {size:,} bytes of text, the log says {line.bytes:,}"
    here = subject.bpb(run.at[line.count], line.count)
    allowed = drift_allowed(line.count)
    for words, bpb in (("nats", subject.bpb(line.nats, line.count)), ("val_bpb", line.bpb)):
        if not abs(bpb - here) <= allowed:
            text = f"come to {here:.6f} bits/byte here, by the log's {words} {bpb:.6f}"
            return f"{text}: {bpb - here:+.6f}, allowed is {allowed:.4f}"
    return ""


def check_lines(lines: list[Prefix]) -> Iterator[Finding]:
    """Whether logs fit together: where a pass goes on, its nats and bytes do not fall."""
    for before, line in pairwise(lines):
        same = before.name == line.name and before.artifact == line.artifact
        rounding = 1e-5 + 2e-8 * line.count  # a result is a mean of eight decimals
        fall = line.bytes < before.bytes or line.nats < before.nats - rounding
        if same and fall and line.count >= before.count:
            detail = f"{line.name}: {line.count:,} positions have fewer nats or bytes than "
            detail += f"the first {before.count:,} of them"
            yield Finding(FAILED, "prefix lines", detail, line=line.quote)


def check_claim(subject: Subject, runs: list[Pass]) -> Iterator[Finding]:
    """The closest pair of claim and score, of the passes that went through the whole split."""
    runs = [run for run in runs if run.name != PLAIN]
    replayed = REPLAYED.get(subject.config["ttt_protocol"])
    if subject.options.claim is not None and subject.options.ttt and replayed:
        runs = [run for run in runs if run.name == replayed]

    pairs = []  # of a claim, by how much it is off, and the pass
    for claim, run in product(subject.options.claims, runs):
        if run.done == subject.targets and math.isfinite(run.nats):
            pairs.append((claim, claim - subject.bpb(run.nats, run.done), run))
    if pairs:
        claim, off, run = min(pairs, key=lambda pair: abs(pair[1]))
        allowed = drift_allowed(run.done)
        verdict, reason = judge_claim(subject, abs(off) <= allowed, runs)
        words = KINDS[run.name].words
        detail = f"{off:+.6f} ({allowed:.4f} allowed) from {claim - off:.6f} here {words}; "
        says = f"the claim of {claim:.6f} agrees with the score {words}"
        if verdict == NOT_CHECKABLE:
            says = f"the claim of {claim:.6f} is not decided: {reason}"
        yield Finding(verdict, "claim", detail + reason, claim, "bits/byte", says=says)


def judge_claim(subject: Subject, same: bool, runs: list[Pass]) -> tuple[str, str]:
    """Verdict and reason for a claim that is, or is not, the score here; it may be of any of the
    passes. That of a submission.json is of the challenge's split."""
    ours = subject.official or subject.options.this_split
    if same and (ours or subject.options.claim is not None):
        return (PROVEN if subject.official else CONSISTENT), f"of {subject.split}"
    if not ours:
        return NOT_CHECKABLE, f"{subject.split}; see --data, or --this-split if the claim is of it"

    for run in runs:
        if run.done < subject.targets:
            part = f"whose pass came to {run.done:,} of {subject.targets:,} positions"
            return NOT_CHECKABLE, f"it may be the score {KINDS[run.name].words}, {part}"
        if not run.steady:
            return NOT_CHECKABLE, "at the document_lr of the adaptation rounding may decide"
    replayed = REPLAYED.get(subject.config["ttt_protocol"])
    if replayed and replayed not in [run.name for run in runs]:
        return NOT_CHECKABLE, "it may be the score after adaptation: add --ttt"
    return FAILED, f"of {subject.split}"


# ---------------------------------------------------------------- sample

MIN_WINDOWS = 16  # below so many no interval is stated
ERRORS_99 = 2.95  # standard errors that hold 99 %: Student's quantile for MIN_WINDOWS windows


class Estimate(NamedTuple):
    """Nats of the whole split, by so many of its windows."""

    nats: float
    half: float  # of the interval that holds them in 99 of 100 cases
    drawn: int
    windows: int


def draw_windows(subject: Subject, seed: int) -> Iterator[Estimate]:
    """The estimate after each batch of the sliding pass's windows in a random order. The first
    window and a shorter last one are not drawn: they are scored in any case."""
    model = subject.network()
    targets = subject.targets
    stride = subject.config["eval_stride"]
    length = min(subject.config["train_seq_len"], targets)
    count, rest = divmod(targets - length, stride)
    known = batch_losses(model, subject, [Window(0, length, 0)]).sum()
    if rest:
        last = Window(targets - (rest if stride == length else length), targets, targets - rest)
        known += batch_losses(model, subject, [last]).sum()

    ends = length + stride * (1 + np.random.default_rng(seed).permutation(count))
    sums = np.zeros(0)  # nats of each window's scored positions
    while len(sums) < count:
        drawn = ends[len(sums) :][: batch_rows(subject)].tolist()
        batch = [Window(end - length, end, end - stride) for end in drawn]
        losses = batch_losses(model, subject, batch).reshape(len(batch), stride)
        sums = np.append(sums, losses.sum(1))
        n = len(sums)
        error = sums.std(ddof=min(1, n - 1)) * math.sqrt((1 - n / count) / n)
        yield Estimate(known + count * sums.mean(), ERRORS_99 * count * error, n, count)


def check_sample(subject: Subject) -> Finding:
    """An estimate with fixed weights, its interval, and the closest claim."""
    seed = subject.options.seed
    found = Estimate(0.0, 0.0, 0, MIN_WINDOWS)
    with suppress(KeyboardInterrupt):  # what was drawn so far counts
        for found in draw_windows(subject, seed):
            subject.options.clock.say(f"sample: {found.drawn:,} of {found.windows:,} windows")
            if subject.options.clock.left <= 0:
                break
    if found.drawn < min(MIN_WINDOWS, found.windows):
        detail = f"{found.drawn} windows in the time allowed, {MIN_WINDOWS} are needed"
        return Finding(NOT_CHECKABLE, "sample", detail, found.drawn, "windows")

    bpb, half = (subject.bpb(nats, subject.targets) for nats in found[:2])
    if not math.isfinite(bpb):
        return Finding(FAILED, "sample", f"a position has no finite score; seed {seed}")
    says = f"a sample's estimate, fixed weights: {bpb:.4f} ± {half:.4f} (99 %)"
    detail = f"{says}, by {found.drawn:,} windows of {found.windows:,}, seed {seed}"
    if not subject.options.claims:
        detail += "; no claim to compare with, see --claim"
        return Finding(NOT_CHECKABLE, "sample", detail, bpb, "bits/byte", says=says)

    claim = min(subject.options.claims, key=lambda claim: abs(claim - bpb))
    same = abs(claim - bpb) <= half + drift_allowed(subject.targets)
    verdict, reason = judge_claim(subject, same, [])
    verdict = CONSISTENT if verdict == PROVEN else verdict
    place = f"the claim of {claim:.6f} is {'within' if same else 'outside'}"
    caution = "" if same else ", as 1 honest claim in 100 is (see another --seed)"
    detail += f"; {place} it{caution}; {reason}"
    return Finding(verdict, "sample", detail, bpb, "bits/byte", says=f"{place} {says}")


# ---------------------------------------------------------------- artifact


def check_artifact(path: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """Every check of one artifact."""
    yield check_size(path, options)
    if path.stat().st_size > CAP_BYTES:
        yield unscored("integrity", "over the cap by itself, so it is not decoded")
        return
    data = read_bytes(path)
    try:
        cursor = Cursor(inflate(data))
        config = read_config(cursor)
        shapes = {tensor.name: tensor.shape for tensor in read_table(cursor, len(data))}
        count = sum(map(math.prod, shapes.values()))
        if count > MAX_WEIGHTS:
            yield unscored("integrity", f"{count:,} weights, of which {MAX_WEIGHTS:,} are decoded")
            return
        _, _, weights = parse_pcll(data)
    except ArtifactError as error:
        yield Finding(FAILED, "integrity", str(error))
        return
    proof = " and the CRC-32 that the config states" if "weights_crc32" in config else ""
    detail = f"{len(weights)} tensors, by decode_artifact.py{proof}"
    yield Finding(PROVEN, "integrity", detail, count, "weights")

    if unknown := unknown_parts(config, shapes):
        yield unscored("val_bpb", f"{'; '.join(unknown[:3])} (see README.md, Contributing)")
    elif problems := contradictions(config, shapes):
        yield Finding(FAILED, "config", "; ".join(problems[:5]), len(problems), "problems")
    else:
        detail = "the network is known, and every tensor has the shape that it asks for"
        yield Finding(PROVEN, "config", detail, len(shapes), "tensors")
        sha256 = hashlib.sha256(data).hexdigest()
        own = [line for line in options.lines if line.artifact in ("", sha256)]
        named = {line.artifact for line in options.lines} - {""}
        if (options.lines or options.log) and (not own or (named and sha256 not in named)):
            detail = f"no line '{SLIDING}: scored:2048 nats:...' of the artifact {sha256}"
            yield Finding(NOT_CHECKABLE, "prefix", detail, says="no log is of this artifact")
        yield from check_network(config, weights, own, options)


def unscored(check: str, why: str) -> Finding:
    return Finding(NOT_CHECKABLE, check, why, says=f"the artifact cannot be scored: {why}")


def check_size(artifact: Path, options: argparse.Namespace) -> Finding:
    """Code plus artifact against the cap; PROVEN where nothing else could be code or data."""
    held = artifact.stat().st_size
    script = Path(options.code) if options.code else artifact.with_name("train_gpt.py")
    here = script.is_file() and script.resolve().parent == artifact.resolve().parent
    if not here and not options.code:
        verdict = FAILED if held > CAP_BYTES else NOT_CHECKABLE
        detail = f"artifact alone, of {CAP_BYTES:,}; no train_gpt.py here, see --code"
        return Finding(verdict, "size", detail, held, "bytes")

    code = measure_code(script)
    total = code.bytes + held
    names = " + ".join(path.name for path in code.used[:8])
    detail = f"of {CAP_BYTES:,}: code {code.bytes:,} ({names}) + artifact {held:,}"
    if code.others:
        most = total + sum(path.stat().st_size for path in code.others)
        detail += f"; {most:,} with all that could be code or data: {code.other_names()}"
    verdict = CONSISTENT if code.others else PROVEN
    return Finding(FAILED if total > CAP_BYTES else verdict, "size", detail, total, "bytes")


def check_network(
    config: dict, weights: Weights, lines: list[Prefix], options: argparse.Namespace
) -> Iterator[Finding]:
    """Tokenizer, bytes of text, scores and claims of a network that is known here."""
    sha256 = str(config.get("tokenizer_sha256"))
    folder, tokenizer = find_data(sha256, options)
    if not tokenizer:
        detail = f"none here has sha256 {sha256[:16]}, the artifact's; see --tokenizer"
        yield Finding(NOT_CHECKABLE, "tokenizer", detail)
        yield unscored("val_bpb", "no tokenizer with its sha256 here; see --tokenizer and --data")
        return
    yield Finding(PROVEN, "tokenizer", f"{tokenizer} has the artifact's sha256 {sha256[:16]}")

    tokens = read_tokens(folder, config["vocab_size"])
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.read_bytes())
    bytes_of = cache(lambda count: count_bytes(tokens[: count + 1], pieces))
    subject = Subject(config, weights, tokens, bytes_of, options, folder, lines)
    size = bytes_of(subject.targets)
    detail = f"of decoded text, {size / subject.targets:.4f} a token, of {subject.split}"
    says = f"the text is {subject.split}"
    yield Finding(PROVEN, "bytes", detail, size, "bytes", says=says)
    if options.sample:
        yield check_sample(subject)
    else:
        yield from check_scores(subject)


def find_data(sha256: str, options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """A folder of shards and a tokenizer with that sha256: as named, or else the first default
    folder beside verify.py that has it near; never the folder that is checked."""
    folders = [HERE / name for name in DEFAULT_DATA if (HERE / name).is_dir()]
    if options.data:
        folders = [Path(options.data)]
        if not folders[0].is_dir():
            raise UnusableInput(f"--data {options.data} is no folder")
        if folders[0].resolve().is_relative_to(Path(options.target).resolve()):
            raise UnusableInput(f"{options.data} lies in the folder that is checked")
    for folder in folders:
        near = [*folder.glob("*.model"), *folder.parent.parent.glob("tokenizers/*.model")]
        for model in [Path(options.tokenizer)] if options.tokenizer else near:
            if model.is_file() and hashlib.sha256(model.read_bytes()).hexdigest() == sha256:
                return folder, model
    return None, None


# ---------------------------------------------------------------- main


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("verify.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = lambda message: parser.exit(2, f"verify.py: {message}\n")  # without the usage
    add = parser.add_argument
    add("target", help="an artifact.pcll or a record folder")
    add("--code", metavar="FILE", help="the counted script (default: train_gpt.py beside it)")
    add("--data", metavar="DIR", help=f"of shards (default: {' or '.join(DEFAULT_DATA)} here)")
    add("--tokenizer", metavar="FILE", help="SentencePiece model (default: the one near the data)")
    add("--claim", type=positive, metavar="BPB", help="val_bpb, after adaptation with --ttt")
    add("--this-split", action="store_true", help="the claim is about the split here")
    add("--log", metavar="FILE", help="that states scores of prefixes (of a folder: its logs)")
    add("--sample", action="store_true", help="windows drawn at random, fixed weights")
    add("--seed", type=int, default=time.time_ns() % 10**9, help="of --sample (default: any)")
    add("--minutes", type=positive, default=60.0, metavar="M", help="in all (default: %(default)g)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--ttt", action="store_true", help="replay the adaptation that the artifact states")
    add("--against", metavar="BPB[,BPB...]", help="scores to beat, one or one per seed")
    add("--json", action="store_true", help="findings for machines")
    options = parser.parse_args(argv)
    options.clock = Clock(options.minutes)
    options.claims = [] if options.claim is None else [options.claim]
    options.lines = []
    return options


def check(options: argparse.Namespace) -> Report:
    """All findings on the target; raises UnusableInput where nothing can be checked."""
    target = Path(options.target)
    for named in filter(None, (options.code, options.tokenizer, options.log)):
        open_regular(Path(named)).close()  # a pipe may never end
    if options.log:
        options.lines = read_prefixes(Path(options.log))

    if target.is_dir():
        report = check_folder(target, options.against)
        report.findings.extend(check_artifacts(target, options))
    else:
        with open_regular(target) as file:
            if file.read(4) != b"PCLL" or options.against:
                what = "record folder" if options.against else "folder and no PCLL artifact"
                raise UnusableInput(f"{target} is no {what}")
        scores = ("claim",) if options.claims else ("val_bpb", "val_bpb_ttt", "claim")
        needed = (("size",), scores, ("prefix",)) if options.log else (("size",), scores)
        report = Report(so_far(check_artifact(target, options)), needed)
    report.findings.extend(check_lines(options.lines))
    return report


def check_artifacts(folder: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """Of each artifact in a record folder, with what its submission.json and logs claim."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    options.claims = options.claims or submitted_scores(folder)
    if not options.log:
        logs = [path for path in files if is_log_name(path.name)]
        options.lines = [line for log in logs for line in read_prefixes(log)]
    for path in [path for path in files if path.suffix == ".pcll"]:
        start = f"{path.name}: "
        for finding in so_far(check_artifact(path, options)):
            says = finding.says and start + finding.says
            start = "" if says else start
            yield replace(finding, file=path.name, says=says)


def so_far(findings: Iterator[Finding]) -> list[Finding]:
    """What was found before Ctrl-C or the end of the memory."""
    found = []
    try:
        for finding in findings:
            found.append(finding)
    except KeyboardInterrupt:
        found.append(unscored("val_bpb", "stopped by Ctrl-C"))
    except (MemoryError, RuntimeError) as error:
        if "memory" not in repr(error).lower():
            raise
        found.append(unscored("val_bpb", f"{MEMORY_BYTES / 1e9:.1f} GB of memory are too few"))
    return found


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if argv is None and options.device == "cpu":
        with suppress(ValueError):  # a lower limit stays
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    return report_on(lambda: check(options), "verify.py", options.target, options.json)


if __name__ == "__main__":
    sys.exit(main())
