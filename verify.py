"""Checks a Parameter Golf submission without trusting who made it; shares no code with
train_gpt.py.

    python verify.py artifact.pcll             size, integrity, bits per byte, probes of an artifact
    python verify.py records/TRACK/DATE_name   a record folder of any entry: submission.json, logs,
                                               code (by records/check.py), and its artifact
    python verify.py artifact.pcll --log LOG   the same, and holds what the log says of the first
                                               2,048, 4,096, 8,192, ... positions of each pass
                                               against its own, adaptation included
    python verify.py artifact.pcll --sample    fixed weights on windows drawn from the whole split

Every check ends in a finding with the number behind it:
    PROVEN          recomputed here from the files, by code that does not come from the competitor
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

Time and memory have one budget: --minutes for what is recomputed (60), --memory in GB (4). What
does not fit is not begun and is NOT CHECKABLE; what ends early, by Ctrl-C too, is reported as far
as it came. A core (Xeon with AVX-512) scores 17 positions a second of the full network (26 M
weights, windows of 2,048 at stride 32), 2,800 of one of 4 M (512, 256), 6,000 of the demo's. So a
log's first 8,192 positions of the full network take 8 minutes with the probes, its first adapted
chunk 40; 5 minutes of --sample are 150 windows, which refute a claim that is 10 % too low.

--json prints one object: schema (1), input (the path), exit_code, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or "")}.

Sections: options and budget, data and byte count, model, their network, scoring, adaptation,
adaptation per document, probes, configuration, costs, artifact, passes, prefixes, claim, samples,
main.
"""

import argparse
import hashlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice, product
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # python -I leaves the script's folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the imports, too
        said = b"verify.py: stopped by Ctrl-C\n"
        signal.signal(signal.SIGINT, lambda *_: (os.write(2, said), os._exit(130)))

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from decode_artifact import (
    HEADER,
    ArtifactError,
    Cursor,
    inflate,
    parse_pcll,
    read_bytes,
    read_config,
    read_table,
)
from records.check import (
    CAP_BYTES,
    CONSISTENT,
    FAILED,
    NOT_CHECKABLE,
    PROVEN,
    SCORES,
    SPLIT_BYTES,
    SPLIT_TOKENS,
    SUSPICION,
    Finding,
    UnusableInput,
    check_folder,
    check_prefix_lines,
    code_bytes,
    code_that_may_count,
    least_packed,
    measure_code,
    read_code,
    report_on,
    run_program,
    submitted_scores,
)
from records.logs import LOG_SUFFIXES, Prefix, read_passes
from records.their_network import ANSWER, APART, LEARN, LOGITS, MESSAGE, TROUBLE

HERE = Path(__file__).resolve().parent
WORKER = HERE / "records/their_network.py"
TOLERANCE = 0.0005  # bits per byte between a claim, usually computed in bfloat16, and float32 here
BOS = 1  # the id that starts every document
OFFICIAL_TOKENIZERS = {  # sha256 of the challenge's, of 1,024 and 8,192 pieces
    "4f5e8adb109c66b4886963bc75a7befd73bda36d27fd7102df8e9e66503b0e2a",
    "0518df93315eaff6bc75ad4d9711b01c1b5e9ac32e8b3da603c040d8653f7f03",
}
DEFAULT_DATA = ("data/datasets/fineweb10B_sp1024", "data/demo")  # the challenge's, the demo's
NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"
Weights = dict[str, np.ndarray]  # by name; float32
Shapes = dict[str, tuple[int, ...]]  # by name


# ---------------------------------------------------------------- options and budget


class Progress:
    """Lines on stderr, none within 4 s after another."""

    def __init__(self):
        self.last = time.monotonic()

    def say(self, text: str) -> None:
        if time.monotonic() - self.last >= 4:
            print(text, file=sys.stderr, flush=True)
            self.last = time.monotonic()


class OutOfTime(Exception):
    """The minutes are over, or what comes next would take longer."""


@dataclass
class Clock:
    """When the run began, and whether Ctrl-C has taken what is left of its minutes."""

    began: float = field(default_factory=time.monotonic)
    stopped: bool = False


@dataclass(frozen=True)
class Options:
    """The command line."""

    target: str  # an artifact or a record folder
    code: str | None = None  # the counted script
    data: str | None = None  # folder of shards
    tokenizer: str | None = None  # SentencePiece model
    claim: float | None = None  # bits per byte
    this_split: bool = False  # the claim is of the split here, whichever it is
    tolerance: float = TOLERANCE  # bits per byte
    max_tokens: int | None = None
    log: str | None = None  # that states scores of prefixes
    sample: bool = False  # windows drawn at random, not all
    seed: int | None = None  # of the sample
    minutes: float = 60.0
    memory: float = 4.0  # GB
    device: str = "cpu"  # or "cuda"
    ttt: bool = False  # replay the adaptation
    model: str | None = None  # a competitor's script to take the network from
    trust_code: bool = False
    against: str | None = None  # scores to beat, with commas
    json: bool = False
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)

    @property
    def left(self) -> float:
        """Seconds until the minutes are over; zero or less when they are."""
        if self.clock.stopped:
            return 0.0
        return self.clock.began + 60 * self.minutes - time.monotonic()


# ---------------------------------------------------------------- data and byte count


class Split(NamedTuple):
    """A validation split; all of its tokens but the first are scored."""

    tokens: np.ndarray  # (n,) uint16
    count_bytes: Callable[[np.ndarray], int]  # UTF-8 bytes of the text of tokens
    folder: str  # where it lies
    whole: int  # tokens of the whole split, of which these may be a part

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1

    def bytes_of(self, count: int) -> int:
        """Of the first so many targets, and of what stands before them."""
        return self.count_bytes(self.tokens[: count + 1])


def is_official(vocab_size: int, targets: int, byte_count: int) -> bool:
    """Whether a split has the challenge's tokens, in whole sequences of 1,024, and bytes."""
    same_tokens = targets // 1024 * 1024 == SPLIT_TOKENS.get(vocab_size)
    return same_tokens and abs(byte_count / SPLIT_BYTES - 1) < 2e-4


def read_tokens(folder: Path, vocab_size: int) -> np.ndarray:
    """The validation split, (n >= 2,) uint16: all shards fineweb_val_*.bin of a folder in the order
    of their names. Raises UnusableInput."""
    parts = [np.zeros(0, "<u2")]
    for shard in sorted(path for path in folder.glob("fineweb_val_*.bin") if path.is_file()):
        header = np.fromfile(shard, "<i4", 256)  # magic, version, tokens, zeros
        whole = len(header) == 256 and shard.stat().st_size == 1024 + 2 * int(header[2])
        if not whole or header[:2].tolist() != [20240520, 1]:
            raise UnusableInput(f"{shard} is not a whole token shard (magic 20240520, version 1)")
        parts.append(np.fromfile(shard, "<u2", offset=1024))

    tokens = np.concatenate(parts)
    if len(tokens) < 2:
        raise UnusableInput(f"there are no tokens in {folder}: it needs a fineweb_val_*.bin")
    if int(tokens.max()) >= vocab_size:
        problem = f"token ids up to {tokens.max()}, the artifact has {vocab_size} pieces"
        raise UnusableInput(f"the fineweb_val_*.bin in {folder} hold {problem}")
    return tokens


def documents(tokens: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each document: from one BOS to the next."""
    edges = sorted({0, *np.flatnonzero(tokens == BOS).tolist(), len(tokens)})
    return list(zip(edges, edges[1:], strict=False))


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
# The network written a second time: functions of named tensors in float32.

MASK_ELEMENTS = 2**24  # of the last layer's attention: beyond it all positions are computed


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def rotate(x: Tensor, dims: int, base: float, first: int = 0) -> Tensor:
    """Rotary position embedding on the first `dims` of the last axis of x [B, heads, T, d], which
    are the positions from `first` on."""
    half = dims // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    end = first + x.shape[2]
    position = torch.arange(first, end, dtype=torch.float32, device=x.device)
    angle = position[:, None] * frequency
    a = x[..., :half]
    b = x[..., half:dims]
    first_half = a * angle.cos() + b * angle.sin()
    second_half = b * angle.cos() - a * angle.sin()
    return torch.cat([first_half, second_half, x[..., dims:]], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention; k and v [B, KV, T, d], q [B, H, t, d] of the last t of these
    positions; query head h uses key head h // (H / KV)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    late = k.shape[2] - q.shape[2]
    if not late:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(late)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def split_heads(x: Tensor, d: int) -> Tensor:
    """[B, T, heads * d] to [B, heads, T, d]."""
    return x.unflatten(-1, (-1, d)).transpose(1, 2)


class Model:
    """The network of an artifact: token ids [B, T] in, float32 logits [B, T, vocabulary] out.

    The logits come in two steps, features and head, as they are larger than all else.
    """

    rows = None  # windows that go through it together: as many as BATCH_TOKENS allows

    def __init__(self, config: dict, weights: Weights, device: str):
        self.config = config
        self.pieces = config["vocab_size"]
        self.params = {name: torch.tensor(array, device=device) for name, array in weights.items()}

    def close(self) -> None:
        """There is nothing to end."""

    def previous(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [B, T, ...] of the position before; zero at the first and, with bos_reset, where a
        document begins."""
        rest = x.dim() - 2  # axes
        x = F.pad(x[:, :-1], [0, 0] * rest + [1, 0])
        first = (tokens == BOS) & self.config["bos_reset"]
        return x.masked_fill(first.view(*first.shape, *[1] * rest), 0)

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [B, T, D]; only the bigram and the smear look at another
        position here."""
        p = self.params
        c = self.config
        x = p["tok_emb"][tokens]
        if c["smear_gate"] and c["smear_dims"]:
            gate = torch.sigmoid(x[..., : c["smear_dims"]] @ p["smear_gate"])
            x = x + p["smear_scale"] * gate[..., None] * self.previous(x, tokens)
        if c["bigram_buckets"]:
            table = p["bigram.table"][self.bigram_buckets(tokens)]
            x = x + p["bigram.scale"] * F.linear(table, p["bigram.proj"])
        x = rms_norm(x)
        if c["smear_gate"] and not c["smear_dims"]:
            gate = torch.sigmoid(p["smear_gate"])
            x = (1 - gate) * x + gate * self.previous(x, tokens)
        return x

    def bigram_buckets(self, tokens: Tensor) -> Tensor:
        """int64 [B, T]; the last bucket is that of a token which has none before it."""
        last = self.config["bigram_buckets"] - 1
        bucket = ((36313 * tokens) ^ (27191 * self.previous(tokens, tokens))) % last
        bucket[:, 0] = last
        if self.config["bos_reset"]:
            bucket[tokens == BOS] = last
        return bucket

    def attend(self, i: int, h: Tensor, v_first: Tensor | None, first: int) -> tuple:
        """What layer i's attention adds to the positions from `first` on, for its normed input
        h [B, T, D], and its values [B, KV, T, d]; v_first are those of layer 0."""
        c = self.config
        d = c["model_dim"] // c["num_heads"]
        prefix = f"blocks.{i}.attn."
        names = [name for name in self.params if name.startswith(prefix)]
        p = {name.removeprefix(prefix): self.params[name] for name in names}

        asking = h[:, first:]
        inputs = {"q": asking, "k": h, "v": h}
        q, k, v = (split_heads(F.linear(x, p[name]), d) for name, x in inputs.items())
        if c["value_residual"] and i > 0:
            v = p["value_mix"][0] * v_first + p["value_mix"][1] * v
        q = rotate(rms_norm(q), c["rope_dims"], c["rope_base"], first)
        k = rotate(rms_norm(k), c["rope_dims"], c["rope_base"])
        y = attention(q * p["q_gain"][:, None, None], k, v)

        if c["gated_attention"] and c["gate_dims"]:
            read = asking[..., : c["gate_dims"]]
            y = y * 2 * torch.sigmoid(F.linear(read, p["gate_weight"])).mT[..., None]
        elif c["gated_attention"]:
            gate = torch.sigmoid(F.linear(asking, p["gate_weight"], p["gate_bias"]))
            y = y * gate.mT[..., None]
        if i >= c["num_layers"] - c["xsa_last_n"]:
            y = without_own_value(y, v[:, :, first:])
        return F.linear(y.transpose(1, 2).flatten(2), p["out"]), v

    def feed_forward(self, i: int, h: Tensor) -> Tensor:
        """What layer i's MLP adds for its normed input h [B, T, D]."""
        up = F.linear(h, self.params[f"blocks.{i}.mlp.up"])
        up = torch.where(up < 0, self.config["mlp_negative_slope"] * up, up).square()
        return F.linear(up, self.params[f"blocks.{i}.mlp.down"])

    def block(
        self, i: int, x: Tensor, x0: Tensor, v_first: Tensor | None, first: int
    ) -> tuple[Tensor, Tensor]:
        """Layer i's output at the positions from `first` on, and its values at all."""
        p = self.params
        mix = p[f"blocks.{i}.resid_mix"]
        scale = 1 / math.sqrt(i + 1) if self.config["ln_scale"] else 1.0

        x = mix[0] * x + mix[1] * x0
        y, v = self.attend(i, rms_norm(x) * scale, v_first, first)
        x = x[:, first:]
        attended = x + p[f"blocks.{i}.attn_scale"] * y
        parallel = i >= self.config["num_layers"] - self.config["parallel_last_n"]
        read = x if parallel else attended
        y = self.feed_forward(i, rms_norm(read) * scale)
        return attended + p[f"blocks.{i}.mlp_scale"] * y, v

    def with_skip(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, T, D] joined by the i-th of the skips."""
        skip = self.params["skip_weights"][i] * skip
        if not self.config["skip_gates"]:
            return x + skip
        gate = torch.sigmoid(self.params["skip_gates"][i])
        return gate * x + (1 - gate) * skip

    def features(self, tokens: Tensor, first: int = 0) -> Tensor:
        """What the head reads at the positions from `first` on, [B, T - first, D], for ids int64
        [B, T]. The last layer computes these positions alone."""
        c = self.config
        order = layer_order(c)
        half = len(order) // 2
        length = tokens.shape[1]
        late = first if (length - first) * length <= MASK_ELEMENTS else 0
        x0 = x = self.embed(tokens)
        v_first = None
        skips = []

        for place, i in enumerate(order):
            if c["unet_skips"] and half <= place < 2 * half:
                x = self.with_skip(place - half, x, skips.pop())
            last = place == len(order) - 1
            x, v = self.block(i, x, x0, v_first, late if last else 0)
            if place == 0:
                v_first = v
            if place < half:
                skips.append(x)
        return rms_norm(x[:, first - late :])

    def head(self, x: Tensor) -> Tensor:
        cap = self.config["logit_softcap"]
        matrix = self.params.get("head", self.params["tok_emb"])
        return cap * torch.tanh(F.linear(x, matrix) / cap)

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Logits [B, T - first, V] of the positions from `first` on."""
        return self.head(self.features(tokens, first))


def layer_order(c: dict) -> list[int]:
    """The layers in the order in which they are passed: those of the loop several times."""
    layers = [*range(c["num_layers"])]
    stop = c["loop_last"] + 1
    order = layers[: c["loop_first"]]
    for _ in range(c["loop_passes"]):
        order += layers[c["loop_first"] : stop]
    return order + layers[stop:]


def without_own_value(y: Tensor, v: Tensor) -> Tensor:
    """y [B, H, T, d] without its part along the position's own value, v [B, KV, T, d]."""
    own = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    own = own.repeat_interleave(y.shape[1] // v.shape[1], 1)
    return y - (y * own).sum(-1, keepdim=True) * own


# ---------------------------------------------------------------- their network


class TheirCodeStopped(Exception):
    """A competitor's code gave no usable answer; the message says how."""


class TheirModel:
    """GPT of a competitor's file, in a process of its own (records/their_network.py).

    It takes a dataclass of settings or plain arguments, filled by name from the artifact's
    configuration; its forward_logits or forward maps ids [B, T] to logits [B, T, vocabulary].
    """

    rows = 1  # windows that overlap hold one another's targets

    def __init__(self, file: Path, artifact: bytes, pieces: int, options: Options):
        self.options = options
        self.pieces = pieces
        self.folder = tempfile.TemporaryDirectory(prefix="verify-")
        script = self.copy_sources(file, Path(self.folder.name))
        (script.parent / "artifact.pcll").write_bytes(artifact)
        self.socket, theirs = socket.socketpair()
        memory = 0 if options.device == "cuda" else int(1e9 * options.memory)
        words = [WORKER, WORKER.parents[1], script, options.device, memory, theirs.fileno()]
        kept = ("OMP_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
        clean = {name: os.environ[name] for name in kept if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=script.parent,
            env=clean | {"PATH": os.defpath, "HOME": self.folder.name},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def copy_sources(self, file: Path, folder: Path) -> Path:
        """Copies the file and what it pulls in, no compiled code among it."""
        files, _ = read_code(file)
        root = file.resolve().parent
        for path in files:
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        return folder / file.resolve().name

    def close(self) -> None:
        """Ends the process and what it started."""
        self.socket.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.folder.cleanup()

    def receive(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            if self.options.left <= 0:
                raise OutOfTime
            self.socket.settimeout(max(0.01, self.options.left))
            part = self.socket.recv(min(size - len(data), 2**20))
            if not part:
                raise TheirCodeStopped("it ended without an answer")
            data += part
        return data

    def ask(self, what: bytes, tokens: Tensor, first: int = 0, rate: float = 0.0) -> Tensor:
        """Float32 numbers, of the shape that is asked for but for the last axis."""
        tokens = tokens.cpu()
        rows, columns = tokens.shape
        try:
            self.socket.settimeout(max(0.01, self.options.left))
            self.socket.sendall(MESSAGE.pack(what, rows, columns, first, rate))
            self.socket.sendall(tokens.numpy().astype("<i4").tobytes())
            kind, *shape = ANSWER.unpack(self.receive(ANSWER.size))
            if kind == TROUBLE:
                text = bytes(self.receive(min(shape[0], 500))).decode("utf-8", "replace")
                raise TheirCodeStopped(f"it stopped by {text}")
            wanted = [rows, columns - first] if what != LEARN else [0, 0]
            if kind != what or shape[:2] != wanted or shape[2] > self.pieces:
                raise TheirCodeStopped(f"its answer has the shape {shape}, {wanted} was asked for")
            numbers = np.frombuffer(self.receive(4 * math.prod(shape)), "<f4")
        except TimeoutError:
            raise OutOfTime from None
        except OSError:
            raise TheirCodeStopped("it ended without an answer") from None
        return torch.from_numpy(numbers.reshape(shape))

    def features(self, tokens: Tensor, first: int = 0) -> Tensor:
        return self.ask(LOGITS, tokens, first)

    def apart(self, tokens: Tensor) -> Tensor:
        """Logits without what attention brings from other positions."""
        return self.ask(APART, tokens)

    def head(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        return self.features(tokens, first)


# ---------------------------------------------------------------- scoring
# verify.py keeps the loop: a model maps token ids to logits and never holds the target of the
# position it is asked for.

BATCH_TOKENS = {"cpu": 4096, "cuda": 131_072}  # that go through the network at a time
HEAD_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}  # logits that exist at a time


class Window(NamedTuple):
    """Inputs [start, end) go in, the predictions of inputs [first, end) count."""

    start: int
    end: int
    first: int


@dataclass
class Pass:
    """One way through the split, and how far it has come."""

    name: str  # as train_gpt.py's logs have it
    stride: int
    marks: list[int] = field(default_factory=list)  # positions, ascending
    learn: Callable | None = None  # learn(chunk, begin, end) when a chunk's scores are final
    dtype: torch.dtype = torch.float32
    ends: float = math.inf  # when its time is over, on the monotonic clock
    done: int = 0  # positions
    nats: float = 0.0
    at: dict[int, float] = field(default_factory=dict)  # nats of the first positions, by mark
    fixed: tuple = (0, 0.0, {})  # done, nats, at when the first chunk was learned from
    ended: str = ""  # why it went no further: "the minutes are over"

    def enter(self, losses: np.ndarray) -> None:
        """The next positions' nats, (n,) float64."""
        for mark in self.marks:
            if self.done < mark <= self.done + len(losses):
                self.at[mark] = self.nats + float(losses[: mark - self.done].sum())
        self.done += len(losses)
        self.nats += float(losses.sum())

    def start_from(self, other: "Pass") -> None:
        """What another pass found before it learned, its weights and windows being the same."""
        self.done, self.nats, at = other.fixed
        self.at = dict(at)


def windows(tokens: np.ndarray, config: dict) -> Iterator[Window]:
    """The windows in order; each input's prediction counts in one of them."""
    length = config["train_seq_len"]
    stride = config["eval_stride"]
    inputs = len(tokens) - 1
    first = 0
    end = min(length, inputs)
    while first < inputs:
        yield Window(max(0, end - length), end, first)
        first = end
        end = min(end + stride, inputs)


def batches(tokens: np.ndarray, config: dict, most: int) -> Iterator[tuple[int, list[Window]]]:
    """A chunk's number and at most so many neighbouring windows of one shape that lie in it."""

    def chunk_and_shape(window: Window) -> tuple[int, ...]:
        chunk = (window.end - 1) // config["ttt_chunk_tokens"]
        return chunk, window.end - window.start, window.end - window.first

    for key, group in groupby(windows(tokens, config), chunk_and_shape):
        while batch := list(islice(group, most)):
            yield key[0], batch


def batch_rows(model: Callable, config: dict, device: str) -> int:
    return model.rows or max(1, BATCH_TOKENS[device] // config["train_seq_len"])


def score(model: Callable, split: Split, config: dict, options: Options, run: Pass) -> None:
    """Takes a pass on from where it stands, to the split's end or that of its time.

    Ends early, too, where a score is not finite, and on Ctrl-C, which takes all time.
    """
    try:
        if run.name == PER_DOCUMENT:
            score_documents(model, split, config, options, run)
        else:
            score_chunks(model, split, config | {"eval_stride": run.stride}, options, run)
    except OutOfTime:
        run.ended = "the minutes are over"
    except KeyboardInterrupt:
        run.ended = "stopped by Ctrl-C"
        options.clock.stopped = True


def score_chunks(model: Callable, split: Split, config: dict, options: Options, run: Pass) -> None:
    began = time.monotonic()
    start = run.done
    last_chunk = 0
    learned = 0
    rows = batch_rows(model, config, options.device)

    for chunk, batch in batches(split.tokens, config, rows):
        if batch[0].first < run.done:
            continue
        if time.monotonic() > run.ends:
            raise OutOfTime
        if run.learn and chunk != last_chunk:
            if not learned:
                run.fixed = (run.done, run.nats, dict(run.at))
            run.learn(last_chunk, learned, run.done)
            learned = run.done
        last_chunk = chunk

        run.enter(batch_losses(model, split.tokens, batch, options.device, run.dtype))
        if not math.isfinite(run.nats):
            run.ended = f"of positions {batch[0].first:,} to {run.done - 1:,} one has no score"
            return
        say_progress(run, split, (time.monotonic() - began) / (run.done - start), options)
    if not learned:
        run.fixed = (run.done, run.nats, dict(run.at))


def say_progress(run: Pass, split: Split, pace: float, options: Options) -> None:
    """Pace: seconds a position."""
    left = pace * (split.targets - run.done)
    allowed = run.ends - time.monotonic()
    whole = f"{left:,.0f} s left"
    if left > allowed:
        whole = f"{allowed:,.0f} s left, {left:,.0f} would be needed"
    nats = run.nats / run.done
    options.progress.say(
        f"{run.name}: {run.done / split.targets:6.1%}, {run.done:,} positions scored, "
        f"{nats:.4f} nats a token, {whole}"
    )


def batch_losses(
    model: Callable, tokens: np.ndarray, batch: list[Window], device: str, dtype: torch.dtype
) -> np.ndarray:
    """Nats (n,) float64 of the positions that windows of one shape score, in their order."""
    inputs = np.stack([tokens[window.start : window.end] for window in batch])
    targets = np.stack([tokens[window.first + 1 : window.end + 1] for window in batch])
    inputs = torch.from_numpy(inputs.astype(np.int64)).to(device)
    targets = torch.from_numpy(targets.astype(np.int64)).flatten().to(device)

    losses = []
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        x = model.features(inputs, batch[0].first - batch[0].start).flatten(0, 1)
        step = max(1, HEAD_ELEMENTS[device] // model.pieces)
        for i in range(0, len(x), step):
            logits = model.head(x[i : i + step]).to(targets.device).float()
            losses.append(F.cross_entropy(logits, targets[i : i + step], reduction="none"))
    return torch.cat(losses).double().cpu().numpy()


# ---------------------------------------------------------------- adaptation

LEARNING_FACTORS = {"attn.out": 3.0, "mlp.down": 3.0, "mlp.up": 0.5}  # by the end of the name


class Adapter:
    """Score-first test-time training of a network's parameters, a step at a time."""

    def __init__(self, model: Callable, params: dict[str, Tensor], config: dict, device: str):
        self.model = model
        self.params = list(params.values())
        self.config = config
        self.device = device
        self.optimizer = adaptation_optimizer(params, config["ttt_optimizer"])

    def step(self, block: Tensor, rate: float) -> None:
        """From sequences and their targets, int64 [S, T + 1]; the rate is in units of ttt_lr."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config["ttt_lr"] * group["factor"] * rate
        self.optimizer.zero_grad()
        length = block.shape[1] - 1
        rows = max(1, BATCH_TOKENS[self.device] // (8 * length))  # learning takes more memory

        for i in range(0, len(block), rows):
            part = block[i : i + rows].to(self.device)
            logits = self.model(part[:, :-1].contiguous()).flatten(0, 1).float()
            loss = F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum")
            (loss / (len(block) * length)).backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.config["ttt_grad_clip"])
        self.optimizer.step()


def learner(model: Callable, split: Split, config: dict, options: Options) -> Callable:
    """learn(chunk, begin, end) trains the model on inputs [begin, end), already scored. The rate
    follows a cosine over the whole split's chunks."""
    length = config["train_seq_len"]
    size = config["ttt_batch_seqs"]
    chunks = math.ceil((split.whole - 1) / config["ttt_chunk_tokens"])
    step = model_step(model, config, options)

    def learn(chunk: int, begin: int, end: int) -> None:
        rate = 0.5 * (1 + math.cos(math.pi * chunk / chunks))
        starts = range(begin, end - length + 1, length)
        steps = math.ceil(len(starts) / size)
        began = time.monotonic()
        for epoch in range(config["ttt_epochs"] if steps else 0):
            for i in range(steps):
                if options.left <= 0:
                    raise OutOfTime
                rows = [split.tokens[s : s + length + 1] for s in starts[i * size :][:size]]
                step(torch.from_numpy(np.stack(rows).astype(np.int64)), rate)

                done = epoch * steps + i + 1
                left = (time.monotonic() - began) * (config["ttt_epochs"] * steps / done - 1)
                options.progress.say(
                    f"learning from chunk {chunk + 1:,} of {chunks:,}: step {done:,} of "
                    f"{config['ttt_epochs'] * steps:,}, {left:,.0f} s left of it"
                )

    return learn


def model_step(model: Callable, config: dict, options: Options) -> Callable:
    """Where a step is made: here, or in their process."""
    if isinstance(model, TheirModel):
        return lambda block, rate: model.ask(LEARN, block, 0, rate)
    return Adapter(model, model.params, config, options.device).step


def adaptation_optimizer(params: dict[str, Tensor], name: str) -> torch.optim.Optimizer:
    groups = []
    for param_name, param in params.items():
        end = ".".join(param_name.split(".")[-2:])
        factor = LEARNING_FACTORS.get(end, 1.0)
        groups.append({"params": [param.requires_grad_()], "factor": factor})
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=0.0)
    return torch.optim.SGD(groups, 1e-3, momentum=0.9)


# ---------------------------------------------------------------- adaptation per document


class LowRank:
    """What a document learns: for each matrix W [R, C] the matrices A [rank, C] and B [R, rank],
    which make it W + B A. The head's is not that of the embedding."""

    def __init__(self, model: Model, config: dict):
        self.model = model
        self.fixed = model.params
        self.pairs = {}
        for name, w in self.fixed.items():
            if is_adapted(name):
                rows, columns = w.shape
                a = first_matrix(config["document_rank"], columns).to(w.device)
                b = torch.zeros(rows, config["document_rank"], device=w.device)
                self.pairs[name] = (a.requires_grad_(), b.requires_grad_())
        learned = [x for pair in self.pairs.values() for x in pair]
        self.optimizer = torch.optim.AdamW(
            learned, config["document_lr"], betas=(0.0, 0.999), weight_decay=0.5
        )

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats of the targets (n,), which follow the last n of the tokens (T,)."""
        sums = {name: self.fixed[name] + b @ a for name, (a, b) in self.pairs.items()}
        sums["head"] = sums.pop("tok_emb")
        self.model.params = self.fixed | sums
        try:
            logits = self.model(tokens[None], len(tokens) - len(targets))[0]
        finally:
            self.model.params = self.fixed
        return F.cross_entropy(logits, targets, reduction="none")

    def learn(self, losses: Tensor) -> None:
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()


def is_adapted(name: str) -> bool:
    """Whether a tensor is a matrix that low-rank ones are added to."""
    ends = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
    return name.endswith(ends) or name in ("tok_emb", "bigram.proj")


def first_matrix(rank: int, columns: int) -> Tensor:
    """A as it begins: row i holds sqrt(2 / C) cos(pi (i + 1/2) (j + 1/2) / C)."""
    halves = (np.arange(size) + 0.5 for size in (rank, columns))
    angles = np.pi / columns * np.outer(*halves)
    return torch.from_numpy(np.sqrt(2 / columns) * np.cos(angles)).float()


def score_documents(model: Model, split: Split, config: dict, options: Options, run: Pass) -> None:
    """One document after the other, document_tokens at a time: scored, then learned from.

    A document sees nothing of those before it; its last prediction is of the next one's BOS.
    """
    began = time.monotonic()
    size = config["document_tokens"]
    ids = torch.from_numpy(split.tokens.astype(np.int64)).to(options.device)

    for start, end in documents(split.tokens[:-1]):
        lora = LowRank(model, config)
        for low in range(start, end, size):
            if time.monotonic() > run.ends:
                raise OutOfTime
            high = min(low + size, end)
            seen = max(start, low + size - config["train_seq_len"])
            losses = lora.losses(ids[seen:high], ids[low + 1 : high + 1])
            run.enter(losses.detach().double().cpu().numpy())
            if not math.isfinite(run.nats):
                run.ended = f"of positions {low:,} to {high - 1:,} one has no score"
                return
            if high < end:
                lora.learn(losses)
            say_progress(run, split, (time.monotonic() - began) / run.done, options)


# ---------------------------------------------------------------- probes
# Of whatever computes the logits, ours or theirs, on a window of the data.

PROBE_TOKENS = 1024  # length of the probed window, at most; of their network all of it
PROBE_ELEMENTS = 2**22  # probabilities that are compared at a time: of all positions, or of some
PROBE_SUFFIXES = 8
PROBE_LIMIT = 1e-6  # of a probability, or of a value that enters the first layer
BATCH_LIMIT = 1e-5  # of a probability in another batch, whose sums run in another order


@dataclass
class Probed:
    """What is asked, and what is compared."""

    model: Callable
    options: Options
    tokens: np.ndarray  # enough for neighbouring windows, int64
    length: int
    cuts: list[int]  # where a suffix begins that changes
    positions: Tensor  # whose probabilities are compared, ascending

    def window(self, start: int) -> Tensor:
        row = self.tokens[start : start + self.length]
        return torch.from_numpy(row).to(self.options.device)

    def ask(self, *rows: Tensor) -> Tensor:
        """Probabilities float64 [rows, positions, V], for rows of ids, int64 [T]."""
        self.options.progress.say("probing the network")
        if self.options.left <= 0:
            raise OutOfTime
        with torch.no_grad():
            x = self.model.features(torch.stack(rows))
            logits = self.model.head(x[:, self.positions.to(x.device)])
            return logits.double().softmax(-1)


def check_probes(
    model: Callable, tokens: np.ndarray | None, config: dict, options: Options
) -> list[Finding]:
    """Causality, normalisation, determinism, isolation, on the data's first window; random tokens
    without data. Of their network, which computes as it likes, they are CONSISTENT at best."""
    theirs = isinstance(model, TheirModel)
    length = config["train_seq_len"]
    if not theirs:
        length = min(PROBE_TOKENS, length)
    if length < 2:
        return [Finding(NOT_CHECKABLE, "causality", "windows of one token cannot be probed")]

    try:
        probed = choose_probes(model, tokens, config, options, length)
        found = [*probe_probabilities(probed, config), probe_isolation(probed, config)]
    except OutOfTime:
        return [Finding(NOT_CHECKABLE, "causality", "the minutes ended before the probes did")]
    except KeyboardInterrupt:
        options.clock.stopped = True
        return [Finding(NOT_CHECKABLE, "causality", "stopped by Ctrl-C before the probes ended")]
    if not theirs:
        return found
    return [f._replace(verdict=CONSISTENT) if f.verdict == PROVEN else f for f in found]


def choose_probes(
    model: Callable, tokens: np.ndarray | None, config: dict, options: Options, length: int
) -> Probed:
    random = np.random.default_rng(0)
    vocab = config["vocab_size"]
    needed = length + max(1, config["eval_stride"])
    held = tokens is not None and len(tokens) >= needed
    ids = tokens[:needed].astype(np.int64) if held else random.integers(0, vocab, needed)

    cuts = [1, length // 2, length - 1]
    cuts += random.integers(1, length, PROBE_SUFFIXES - 3).tolist()
    positions = np.arange(length)
    most = max(1, PROBE_ELEMENTS // vocab)
    if length > most:
        chosen = random.choice(length, most, replace=False)
        positions = np.unique([*chosen, *(cut - 1 for cut in cuts)])
    return Probed(model, options, ids, length, cuts, torch.from_numpy(positions))


def probe(check: str, number: float, detail: str, limit: float = PROBE_LIMIT) -> Finding:
    """Proven where a number is within the limit."""
    verdict = PROVEN if number <= limit else FAILED
    return Finding(verdict, check, f"{detail}, limit {limit}", number)


def probe_probabilities(probed: Probed, config: dict) -> list[Finding]:
    """Whether they change before a cut with the tokens after it, add up, and come out again."""
    vocab = config["vocab_size"]
    window = probed.window(0)
    shift = np.random.default_rng(1).integers(1, vocab, probed.length)
    other = (window + torch.from_numpy(shift).to(window.device)) % vocab  # differs everywhere

    base = probed.ask(window)[0]
    seen = 0.0
    for cut in probed.cuts:
        changed = probed.ask(torch.cat([window[:cut], other[cut:]]))[0]
        before = probed.positions < cut
        seen = max(seen, change(base[before], changed[before]))
    again = change(base, probed.ask(window)[0])
    beside = probe_batches(probed, base, other, config["eval_stride"])

    sums = base.sum(-1)
    count = base.shape[-1]
    off = change(sums, torch.ones_like(sums)) if count == vocab else math.inf
    suffixes = f"{len(probed.cuts)} changed suffixes of {probed.length:,} tokens"
    rows = "change in a second run, beside other and neighbouring rows, and in another order"
    return [
        probe("causality", seen, f"change before {suffixes}"),
        probe("normalised", off, f"largest |sum - 1| of {count} probabilities"),
        probe("determinism", max(again, beside), rows, BATCH_LIMIT),
    ]


def probe_batches(probed: Probed, base: Tensor, other: Tensor, stride: int) -> float:
    """Largest change of a window's probabilities beside what else may lie in its batch: unlike
    rows, and windows that overlap with it and so hold its targets."""
    window = probed.window(0)
    near = probed.window(1)
    later = probed.window(stride)
    rows = [window, near, other, window, later]
    alone = {0: base, 1: probed.ask(near)[0], 3: base, 4: probed.ask(later)[0]}
    straight = probed.ask(*rows)
    backward = probed.ask(*rows[::-1]).flip(0)

    changes = [change(straight[i], expected) for i, expected in alone.items()]
    changes += [change(backward[i], expected) for i, expected in alone.items()]
    return max(changes)


def probe_isolation(probed: Probed, config: dict) -> Finding:
    """What a token before a BOS changes after it, attention apart: in our network, what enters the
    first layer; in theirs, the logits with an F.scaled_dot_product_attention that returns each
    position's own value, and it may attend without that."""
    begin = probed.length // 2
    window = probed.window(0).clone()
    window[begin] = BOS
    changed = window.clone()
    changed[begin - 1] = (window[begin - 1] + 1) % config["vocab_size"]

    theirs = isinstance(probed.model, TheirModel)
    entered = probed.model.apart if theirs else probed.model.embed
    with torch.no_grad():
        leak = change(entered(window[None])[0, begin:], entered(changed[None])[0, begin:])
    detail = "change after a BOS by the token before it, apart from F.scaled_dot_product_attention"
    finding = probe("isolation", leak, detail)
    if theirs and finding.verdict == FAILED:
        return finding._replace(verdict=NOT_CHECKABLE)
    return finding


def change(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|; infinity where one is NaN."""
    if a.shape != b.shape:
        return math.inf
    return (a - b).abs().nan_to_num(math.inf).max().item()


# ---------------------------------------------------------------- configuration


class Allowed(NamedTuple):
    """The values that a setting may have."""

    kind: type
    low: object
    high: object

    def holds(self, value: object) -> bool:
        kinds = (float, int) if self.kind is float else (self.kind,)
        return type(value) in kinds and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.kind.__name__} from {self.low} to {self.high}"


FLAG = Allowed(bool, 0, 1)
SIZE = Allowed(int, 1, 65536)
COUNT = Allowed(int, 0, 2**24)
TEXT = Allowed(str, "", "~")
SCORING = {  # what the loop needs, also of a changed architecture
    "vocab_size": SIZE,
    "train_seq_len": SIZE,
    "eval_stride": SIZE,
    "ttt_batch_seqs": SIZE,
    "ttt_chunk_tokens": Allowed(int, 1, 2**31),
    "ttt_epochs": COUNT,
    "ttt_lr": Allowed(float, 0, 1000),
    "ttt_grad_clip": Allowed(float, 1e-9, 1e9),
    "document_rank": SIZE,
    "document_lr": Allowed(float, 0, 1000),
    "document_tokens": SIZE,
    "tokenizer_sha256": TEXT,
    "ttt_protocol": TEXT,
    "ttt_optimizer": TEXT,
}
CONFIG = SCORING | {  # what the network needs
    "num_layers": Allowed(int, 1, 256),
    "model_dim": SIZE,
    "num_heads": SIZE,
    "num_kv_heads": SIZE,
    "mlp_hidden": SIZE,
    "rope_dims": COUNT,
    "rope_base": Allowed(float, 1, 1e9),
    "logit_softcap": Allowed(float, 1e-3, 1e6),
    "xsa_last_n": COUNT,
    "bigram_buckets": COUNT,
    "bigram_dim": COUNT,
    "mlp_negative_slope": Allowed(float, -10, 10),
    "ln_scale": FLAG,
    "smear_gate": FLAG,
    "value_residual": FLAG,
    "gated_attention": FLAG,
    "unet_skips": FLAG,
    "bos_reset": FLAG,
    "parallel_last_n": COUNT,
    "loop_first": COUNT,
    "loop_last": COUNT,
    "loop_passes": Allowed(int, 1, 16),
    "gate_dims": COUNT,
    "smear_dims": COUNT,
    "skip_gates": FLAG,
}
ABSENT = {  # what a file means that does not state it
    "parallel_last_n": 0,
    "loop_first": 0,
    "loop_last": 0,
    "loop_passes": 1,
    "gate_dims": 0,
    "smear_dims": 0,
    "skip_gates": False,
    "document_rank": 96,
    "document_lr": 0.0001,
    "document_tokens": 48,
}


def config_problems(c: dict, shapes: Shapes, theirs: bool) -> list[str]:
    """Why a configuration is impossible or does not fit the tensors; of a changed architecture,
    what scoring needs."""
    found = []
    for name, allowed in (SCORING if theirs else CONFIG).items():
        if not allowed.holds(c.get(name)):
            found.append(f"{name} = {c.get(name, 'missing')!r} is no {allowed}")
    if found:
        return found

    rules = {
        "eval_doc_reset is on, which is not replayed": not c.get("eval_doc_reset"),
        "eval_stride is above train_seq_len": c["eval_stride"] <= c["train_seq_len"],
        "ttt_protocol is unknown": (
            c["ttt_protocol"] in ("off", "score_first", "per_document", "train_then_score")
        ),
        "document_tokens is above train_seq_len": (
            c["ttt_protocol"] != "per_document" or c["document_tokens"] <= c["train_seq_len"]
        ),
        "ttt_optimizer is unknown": c["ttt_optimizer"] in ("adamw", "sgd"),
    }
    if not theirs:
        rotated = range(0, c["model_dim"] // c["num_heads"] + 1, 2)
        rules |= {
            "num_heads does not divide model_dim": c["model_dim"] % c["num_heads"] == 0,
            "num_kv_heads does not divide num_heads": c["num_heads"] % c["num_kv_heads"] == 0,
            "rope_dims is odd or above the head size": c["rope_dims"] in rotated,
            "bigram_buckets is 1": c["bigram_buckets"] != 1,
            "loop_first or loop_last is no layer": (
                c["loop_first"] <= c["loop_last"] < c["num_layers"]
            ),
            "gate_dims is above model_dim": c["gate_dims"] <= c["model_dim"],
            "smear_dims is above model_dim": c["smear_dims"] <= c["model_dim"],
        }
    found = [text for text, holds in rules.items() if not holds]
    return found if theirs or found else shape_problems(expected_shapes(c), shapes)


def shape_problems(wanted: Shapes, shapes: Shapes) -> list[str]:
    found = [f"tensor {name} is not asked for" for name in shapes if name not in wanted]
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            found.append(f"{name} is {shapes.get(name, 'absent')}, not {shape}")
    return found


def expected_shapes(c: dict) -> Shapes:
    """Name and shape of every tensor that a configuration asks for."""
    D = c["model_dim"]
    H = c["num_heads"]
    kv = D // H * c["num_kv_heads"]
    layers = c["num_layers"]
    block = {
        "resid_mix": (2, D),
        "attn_scale": (D,),
        "mlp_scale": (D,),
        "mlp.up": (c["mlp_hidden"], D),
        "mlp.down": (D, c["mlp_hidden"]),
        "attn.q": (D, D),
        "attn.k": (kv, D),
        "attn.v": (kv, D),
        "attn.out": (D, D),
        "attn.q_gain": (H,),
        "attn.gate_weight": (H, c["gate_dims"] or D),
        "attn.gate_bias": (H,),
        "attn.value_mix": (2,),
    }
    if not c["gated_attention"]:
        del block["attn.gate_weight"]
    if not c["gated_attention"] or c["gate_dims"]:
        del block["attn.gate_bias"]
    if not c["value_residual"]:
        del block["attn.value_mix"]
    shapes = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    shapes.pop("blocks.0.attn.value_mix", None)  # the first layer has no values before it

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
    shapes["tok_emb"] = (c["vocab_size"], D)
    return shapes


# ---------------------------------------------------------------- costs
# Judged from the configuration and the table of tensors, before anything of that size is made.

SLOW_CORE = 5e9  # operations a second that the slowest machine is taken to do
DECODING_BYTES = 16  # an element, at most, while it is decoded


class Head(NamedTuple):
    """What an artifact says of itself before its weights."""

    config: dict
    shapes: Shapes
    content: int  # bytes

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_head(data: bytes, memory: float) -> Head:
    """Of an artifact's bytes; raises ArtifactError, and OutOfMemory before what would use more."""
    if len(data) >= HEADER.size:
        stated = HEADER.unpack_from(data)[3]  # inflate refuses it above the format's limit
        require_memory(min(stated, 2**20 + 64 * len(data)), memory, "its content")
    content = inflate(data)
    cursor = Cursor(content)
    config = ABSENT | read_config(cursor)
    tensors = read_table(cursor, len(data))
    return Head(config, {tensor.name: tensor.shape for tensor in tensors}, len(content))


class OutOfMemory(Exception):
    """What is refused, and what it needs."""


def require_memory(size: float, memory: float, what: str) -> None:
    if size > 1e9 * memory:
        detail = f"{what} needs {size / 1e9:,.1f} GB, --memory allows {memory:g}"
        raise OutOfMemory(detail)


def scoring_bytes(c: dict, elements: int, device: str) -> int:
    """What the network's weights and the largest batch take at most."""
    tokens = max(BATCH_TOKENS[device], c["train_seq_len"])
    layers = len(layer_order(c))
    wide = 16 * c["model_dim"] + 3 * c["mlp_hidden"] + c["bigram_dim"]
    wide += (layers // 2) * c["model_dim"] + c["model_dim"] * c["unet_skips"]
    head = 4 * max(HEAD_ELEMENTS[device], c["vocab_size"]) + 24 * PROBE_ELEMENTS
    mask = 8 * MASK_ELEMENTS
    return 8 * elements + 4 * tokens * wide + 4 * head + mask


def learning_bytes(c: dict, elements: int, device: str) -> int:
    """What a step of the adaptation takes besides: gradients, moments, and all activations."""
    tokens = max(BATCH_TOKENS[device] // 8, c["train_seq_len"])
    layer = 24 * c["model_dim"] + 6 * c["mlp_hidden"]
    wide = len(layer_order(c)) * layer + 4 * c["vocab_size"] + 4 * c["bigram_dim"]
    return 16 * elements + 4 * tokens * wide


def their_bytes(c: dict, elements: int) -> int:
    """Of a network that we do not know: its weights and one window's logits, sent and received."""
    return 8 * elements + 16 * c["train_seq_len"] * c["vocab_size"]


def window_seconds(c: dict, elements: int) -> float:
    """What one window of our network takes on the slowest machine."""
    length = c["train_seq_len"]
    tables = c["bigram_buckets"] * c["bigram_dim"]
    passes = len(layer_order(c))
    read = 2 * (elements - tables) * passes / c["num_layers"]  # looped layers more than once
    seen = 2 * passes * length * c["model_dim"]
    return length * (read + seen) / SLOW_CORE


def require_budget(head: Head, options: Options) -> None:
    """Raises OutOfMemory or OutOfTime where even one window is too much."""
    if options.model:
        require_memory(their_bytes(head.config, head.elements), options.memory, "its network")
        return
    size = scoring_bytes(head.config, head.elements, options.device)
    if options.device == "cpu":
        require_memory(size, options.memory, "a batch of its windows")
        seconds = window_seconds(head.config, head.elements)
        if seconds > options.left:
            detail = f"one window may take {seconds:,.0f} s, --minutes {options.minutes:g} are left"
            raise OutOfTime(detail)


# ---------------------------------------------------------------- artifact


class Data(NamedTuple):
    """Where the validation split of an artifact lies."""

    folder: Path | None  # of shards
    tokenizer: Path | None
    same: bool  # whether the tokenizer has the artifact's sha256


@dataclass
class Subject:
    """An artifact whose network is at hand."""

    model: Callable
    weights: Weights
    config: dict
    options: Options
    data: bytes  # the file
    verdict: str  # the best that its numbers can have: PROVEN; CONSISTENT where their code runs
    split: Split | None = None  # once it is found


def check_artifact(
    path: Path, options: Options, submitted: list[float], logs: list[Path]
) -> list[Finding]:
    """Every check of one artifact; `submitted` holds the bits per byte that a submission.json
    claims for it, if any, `logs` those that may state scores of prefixes."""
    beside = path.with_name("train_gpt.py")
    script = options.code or options.model
    if not script and beside.is_file() and beside.resolve().parent == path.resolve().parent:
        script = beside
    found = [check_size(path, Path(script) if script else None)]
    try:
        artifact = decode(path, options)
        found.append(artifact.integrity)
        model = load_model(artifact.head.config, artifact.weights, artifact.data, options)
    except Refused as refused:
        return [*found, refused.finding]

    verdict = CONSISTENT if options.model else PROVEN
    config = artifact.head.config
    subject = Subject(model, artifact.weights, config, options, artifact.data, verdict)
    stated = find_prefixes(logs, artifact.data)
    found += check_stated(logs, stated, options)
    try:
        return found + check_network(subject, submitted, stated.lines)
    finally:
        model.close()


class Refused(Exception):
    """Why an artifact goes no further."""

    def __init__(self, finding: Finding):
        super().__init__(finding.detail)
        self.finding = finding


class Artifact(NamedTuple):
    """A decoded file."""

    data: bytes
    head: Head
    weights: Weights
    integrity: Finding


def decode(path: Path, options: Options) -> Artifact:
    """Judges the cap, then what the file says of itself, and decodes it; raises Refused."""
    if path.stat().st_size > CAP_BYTES:
        detail = "over the cap by itself, so it is not decoded"
        raise Refused(Finding(NOT_CHECKABLE, "integrity", detail))
    try:
        data = read_bytes(path)
        head = read_head(data, options.memory)
        problems = config_problems(head.config, head.shapes, options.model is not None)
        if problems:
            detail = "; ".join(problems[:5])
            raise Refused(Finding(FAILED, "config", detail, len(problems), "problems"))
        size = head.content + DECODING_BYTES * head.elements
        require_memory(size, options.memory, "decoding its weights")
        require_budget(head, options)
        _, _, weights = parse_pcll(data)
    except ArtifactError as error:
        raise Refused(Finding(FAILED, "integrity", str(error))) from None
    except (OutOfMemory, OutOfTime) as error:
        says = f"the artifact cannot be scored: {error}"
        raise Refused(Finding(NOT_CHECKABLE, "val_bpb", str(error), says=says)) from None

    detail = f"{len(weights)} tensors, by decode_artifact.py"
    integrity = Finding(PROVEN, "integrity", detail, head.elements, "weights")
    return Artifact(data, head, weights, integrity)


def check_network(subject: Subject, submitted: list[float], stated: list[Prefix]) -> list[Finding]:
    """Tokenizer, probes, scores and claims. What their code does instead of an answer ends its own
    checks alone."""
    config = subject.config
    options = subject.options
    data = find_data(config, options)
    claims = submitted if options.claim is None else [options.claim]
    found = [describe_model(subject), check_tokenizer(data, config), *check_range(claims)]
    try:
        tokens = read_tokens(data.folder, config["vocab_size"]) if data.folder else None
        found += check_probes(subject.model, tokens, config, options)
        if tokens is None or not data.same:
            detail = "no validation shards for this tokenizer here; see --data"
            says = f"the artifact cannot be scored: {detail}"
            return [*found, Finding(NOT_CHECKABLE, "val_bpb", detail, says=says)]

        subject.split = read_split(data, tokens, options)
        found.append(check_bytes(subject.split))
        check = check_sample if options.sample else check_scores
        return found + check(subject, claims, stated)
    except TheirCodeStopped as error:
        return [*found, Finding(NOT_CHECKABLE, "model", f"their code in {options.model}: {error}")]


def read_split(data: Data, tokens: np.ndarray, options: Options) -> Split:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.tokenizer))
    part = tokens[: options.max_tokens]
    return Split(part, lambda ids: count_bytes(ids, pieces), str(data.folder), len(tokens))


def check_bytes(split: Split) -> Finding:
    count = split.bytes_of(split.targets)
    detail = f"of decoded text, {count / split.targets:.4f} a token, by {split.folder}"
    return Finding(PROVEN, "bytes", detail, count, "bytes")


def check_size(artifact: Path, script: Path | None) -> Finding:
    """Code plus artifact against the cap; proven where every file is known that the code may read,
    else both bounds."""
    held = artifact.stat().st_size
    if script is None:
        detail = f"artifact {held:,}, and no train_gpt.py here, see --code"
        verdict = FAILED if held > CAP_BYTES else NOT_CHECKABLE
        return Finding(verdict, "size", f"{detail}; {room(held)}", held, "bytes")

    code = measure_code(script)
    raw, packed = code_bytes(code.used)
    names = " + ".join(path.name for path in code.used[:8])
    total = raw + held
    detail = f"code {raw:,} ({names}; {packed:,} by lzma) + artifact {held:,}: {room(total)}"
    if not code.proven:
        detail = f"at least {detail}; at most {code.most + held:,}, {code_that_may_count(code)}"

    verdict = PROVEN if code.proven else NOT_CHECKABLE
    if total > CAP_BYTES:
        verdict = SUSPICION
        detail += "; over the cap, unless its code is handed in compressed"
    if min(raw, least_packed(packed)) + held > CAP_BYTES:
        verdict = FAILED
    return Finding(verdict, "size", detail, total, "bytes")


def room(total: int) -> str:
    """How far a total is from the cap."""
    below = CAP_BYTES - total
    return f"{abs(below):,} {'below' if below >= 0 else 'above'} cap of {CAP_BYTES:,}"


def load_model(config: dict, weights: Weights, data: bytes, options: Options) -> Callable:
    if options.model:
        return TheirModel(Path(options.model), data, config["vocab_size"], options)
    return Model(config, weights, options.device)


def describe_model(subject: Subject) -> Finding:
    theirs = subject.options.model
    if theirs:
        detail = f"the logits come from their code in {theirs}, the loop is ours"
        return Finding(CONSISTENT, "model", detail)
    unused = [name for name in subject.config if name not in CONFIG and name != "preset"]
    detail = f"every tensor has the shape it asks for; {len(unused)} settings are not used here"
    if unused:
        detail += f": {', '.join(unused[:6])}" + (", ..." if unused[6:] else "")
    return Finding(PROVEN, "config", detail, len(subject.weights), "tensors")


def default_folders(target: Path) -> list[Path]:
    """Where the data may lie if none is named: beside verify.py, or in the current directory unless
    that belongs to what is checked."""
    checked = target if target.is_dir() else target.parent
    roots = [HERE]
    with suppress(FileNotFoundError):  # the current directory may have been removed
        if not Path.cwd().is_relative_to(checked.resolve()):
            roots.append(Path.cwd())
    return [root / name for root in roots for name in DEFAULT_DATA]


def find_data(config: dict, options: Options) -> Data:
    """As named, or else the first default folder whose tokenizer is the artifact's."""
    target = Path(options.target)
    folders = default_folders(target)
    if options.data:
        named = Path(options.data)
        if target.is_dir() and named.resolve().is_relative_to(target.resolve()):
            raise UnusableInput(f"{named} lies in the folder that is checked: data is never theirs")
        folders = [named, *folders]

    pairs = []  # of a folder and a tokenizer
    for folder in folders:
        near = [*folder.glob("*.model"), *folder.parent.parent.glob("tokenizers/*.model")]
        pairs += [(folder, model) for model in near if model.is_file()]
    tokenizer = Path(options.tokenizer) if options.tokenizer else None
    if tokenizer:
        pairs.append((None, tokenizer))

    sha256 = config["tokenizer_sha256"]
    fitting = [pair for pair in pairs if hashlib.sha256(pair[1].read_bytes()).hexdigest() == sha256]
    folder, model = fitting[0] if fitting else (None, None)
    if options.data:
        folder = Path(options.data)
    model = tokenizer or model
    return Data(folder, model, model in [pair[1] for pair in fitting])


def check_tokenizer(data: Data, config: dict) -> Finding:
    wanted = f"sha256 {config['tokenizer_sha256'][:16]}, the artifact's"
    if data.same:
        return Finding(PROVEN, "tokenizer", f"{data.tokenizer} has {wanted}")
    if data.tokenizer:
        return Finding(FAILED, "tokenizer", f"{data.tokenizer} has not {wanted}; see --tokenizer")
    return Finding(NOT_CHECKABLE, "tokenizer", f"none here has {wanted}; see --tokenizer")


# ---------------------------------------------------------------- passes

PLAIN = "after export, plain"
SLIDING = "after export, sliding window"
ADAPTED = "after score-first adaptation, sliding window"
PER_DOCUMENT = "after adaptation per document"
CHECKS = {
    PLAIN: "val_bpb plain",
    SLIDING: "val_bpb",
    ADAPTED: "val_bpb_ttt",
    PER_DOCUMENT: "val_bpb_ttt",
}
OF_WEIGHTS = {  # what a score is of, in the first line
    PLAIN: "with fixed weights, in windows side by side",
    SLIDING: "with fixed weights",
    ADAPTED: "after score-first adaptation",
    PER_DOCUMENT: "after adaptation per document",
}
SHARES = {PLAIN: 1, SLIDING: 4, ADAPTED: 4, PER_DOCUMENT: 4}  # of the time that is left
REPLAYED = {"score_first": ADAPTED, "per_document": PER_DOCUMENT}  # what --ttt makes, by protocol


def check_scores(subject: Subject, claims: list[float], stated: list[Prefix]) -> list[Finding]:
    """Bits per byte with fixed weights, and, with --ttt or where a log states them, with adapted
    ones; the prefixes of each, and the claims."""
    options = subject.options
    runs = planned_passes(subject, stated)
    replayed = any(run.name in REPLAYED.values() for run in runs)
    found = check_protocol(subject.config, options, replayed)
    for i, run in enumerate(runs):
        share = SHARES[run.name] / sum(SHARES[other.name] for other in runs[i:])
        run.ends = time.monotonic() + options.left * share
        score_pass(subject, run, runs[:i])
        found.append(measured(subject, run))
        found += check_prefix(subject, run, [line for line in stated if line.name == run.name])
    found += check_other_passes({run.name for run in runs}, stated)
    if options.device == "cuda" and options.left > 0:
        rough = Pass(SLIDING, subject.config["eval_stride"], dtype=torch.bfloat16)
        rough.ends = time.monotonic() + options.left
        score_pass(subject, rough, [])
        found.append(measured(subject, rough))
    return found + check_claims(subject, claims, runs)


def planned_passes(subject: Subject, stated: list[Prefix]) -> list[Pass]:
    """Those whose prefixes a log states, and that of the claim."""
    config = subject.config
    marks = {}
    for line in stated:
        marks.setdefault(line.name, set()).add(line.count)

    wanted = [SLIDING]
    adapted = REPLAYED.get(config["ttt_protocol"])
    possible = adapted != PER_DOCUMENT or not subject.options.model  # theirs does not take matrices
    if adapted and possible and (subject.options.ttt or adapted in marks):
        wanted = [adapted, SLIDING]
    if PLAIN in marks:
        wanted = [PLAIN, *wanted]
    strides = {PLAIN: config["train_seq_len"]}
    return [
        Pass(name, strides.get(name, config["eval_stride"]), sorted(marks.get(name, [])))
        for name in wanted
    ]


def score_pass(subject: Subject, run: Pass, before: list[Pass]) -> None:
    """Takes one pass as far as its time allows; what is learned in it is undone."""
    options = subject.options
    config = subject.config
    for other in before:
        if other.stride == run.stride and run.name != PER_DOCUMENT:
            run.start_from(other)

    if run.name not in REPLAYED.values():
        score(subject.model, subject.split, config, options, run)
        return
    try:
        model = load_learner(subject)
    except OutOfMemory as error:
        run.ended = str(error)
        return
    try:
        if run.name == ADAPTED:
            run.learn = learner(model, subject.split, config, options)
        score(model, subject.split, config, options, run)
    finally:
        model.close()


def load_learner(subject: Subject) -> Callable:
    """The network anew, as learning changes it; raises OutOfMemory."""
    config = subject.config
    options = subject.options
    if not options.model and options.device == "cpu":
        weights = subject.weights
        elements = sum(array.size for array in weights.values())
        if config["ttt_protocol"] == "per_document":
            adapted = (weights[name] for name in weights if is_adapted(name))
            elements += sum(config["document_rank"] * sum(array.shape) for array in adapted)
        size = scoring_bytes(config, elements, "cpu") + learning_bytes(config, elements, "cpu")
        require_memory(size, options.memory, "a step of its adaptation")
    return load_model(config, subject.weights, subject.data, options)


def measured(subject: Subject, run: Pass) -> Finding:
    """A pass's bits per byte; PROVEN of a whole split alone."""
    split = subject.split
    check = CHECKS[run.name]
    if run.dtype != torch.float32:
        check += " bf16"
    told = check in SCORES  # in the first line
    if not run.done:
        detail = f"{run.name}: {run.ended}, nothing was scored"
        says = f"nothing was scored {OF_WEIGHTS[run.name]}: {run.ended}" if told else ""
        return Finding(NOT_CHECKABLE, check, detail, says=says)
    if not math.isfinite(run.nats):
        detail = f"{run.name}: {run.ended}: a model gives each token a probability"
        return Finding(FAILED, check, detail, run.done, "positions")

    byte_count = split.bytes_of(run.done)
    bpb = run.nats / math.log(2) / max(1, byte_count)
    detail = f"{run.name}, val_loss {run.nats / run.done:.6f}; {run.done:,} tokens, each once"
    if run.done + 1 < split.whole:
        detail += f"; PARTIAL: the first {run.done / (split.whole - 1):.1%} of the split here"
        if run.ended:
            detail += f", {run.ended}"
        part = f"{run.done:,} of {split.whole - 1:,} positions"
        says = f"{OF_WEIGHTS[run.name]} the first {part} were scored here" if told else ""
        return Finding(NOT_CHECKABLE, check, detail, bpb, "bits/byte", says=says)
    detail += f"; {split_words(subject, byte_count)}"
    says = f"val_bpb {bpb:.6f} {OF_WEIGHTS[run.name]} was {recomputed(subject)}" if told else ""
    return Finding(subject.verdict, check, detail, bpb, "bits/byte", says=says)


def split_words(subject: Subject, byte_count: int) -> str:
    """Which split it is."""
    split = subject.split
    if is_official(subject.config["vocab_size"], split.whole - 1, byte_count):
        return f"the challenge's whole split by its tokens and its {byte_count:,} bytes"
    return f"of the split in {split.folder}, {byte_count:,} bytes, not the challenge's whole"


def recomputed(subject: Subject) -> str:
    """By whom, and on which split."""
    split = subject.split
    place = f"the split in {split.folder}, which is not the challenge's whole"
    if is_official(subject.config["vocab_size"], split.whole - 1, split.bytes_of(split.targets)):
        place = "the challenge's whole split"
    how = "computed by their code" if subject.options.model else "recomputed here"
    return f"{how} on {place}"


def check_protocol(config: dict, options: Options, replayed: bool) -> list[Finding]:
    protocol = config["ttt_protocol"]
    if protocol == "train_then_score":
        detail = (
            f"the artifact's test-time training is {protocol}: "
            f"any score made with it is {NOT_LEGAL}"
        )
        return [Finding(FAILED if options.ttt else SUSPICION, "adaptation", detail)]
    if protocol == "off" and options.ttt:
        return [Finding(NOT_CHECKABLE, "adaptation", "the artifact stores none")]
    if protocol == "per_document" and options.model:
        detail = "per document: not replayed with a network that is not ours"
        return [Finding(NOT_CHECKABLE, "adaptation", detail)]
    if protocol in REPLAYED and not replayed:
        words = {"score_first": "score-first", "per_document": "per document"}
        detail = f"{words[protocol]}, not replayed: add --ttt"
        says = f"the score {OF_WEIGHTS[REPLAYED[protocol]]} was not recomputed"
        return [Finding(NOT_CHECKABLE, "adaptation", detail, says=says)]
    return []


# ---------------------------------------------------------------- prefixes

# Between bfloat16 and float32 a token's nats differ at random: by a standard deviation of 0.019 to
# 0.021 over 131,072 positions of the record's artifact, in plain, sliding and adapted passes alike,
# without correlation between tokens. In bits per byte that is 0.013 over the square root of the
# number of positions; eight times as much is allowed.
DRIFT = 0.1
ANOTHER_SPLIT = "the nats differ, too: it may be of another split than the one here, see --data"


def drift_allowed(count: int, tolerance: float) -> float:
    """Bits per byte by which a log may be off over the first so many positions."""
    return tolerance + DRIFT / math.sqrt(count)


class Stated(NamedTuple):
    """What logs say of prefixes."""

    lines: list[Prefix]  # that may be of the artifact
    others: list[Prefix]  # of other artifacts


def find_prefixes(logs: list[Path], data: bytes) -> Stated:
    """Of an artifact's bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    stated = Stated([], [])
    for line in (line for log in logs for line in read_passes(log).lines):
        kept = stated.lines if line.artifact in ("", sha256) else stated.others
        kept.append(line)
    return stated


def check_stated(logs: list[Path], stated: Stated, options: Options) -> list[Finding]:
    """Whether the logs say anything of prefixes of this artifact."""
    names = ", ".join(log.name for log in logs)
    if stated.lines or not (options.log or stated.others):
        return []
    detail = f"{names}: no line such as '{SLIDING}: scored:2048 nats:... bytes:... val_bpb:...'"
    if stated.others:
        sha256 = stated.others[0].artifact
        detail = f"{names}: the prefixes are those of another artifact, sha256 {sha256}"
    return [Finding(NOT_CHECKABLE, "prefix", detail)]


def check_prefix(subject: Subject, run: Pass, lines: list[Prefix]) -> list[Finding]:
    """What a log states of the first positions of a pass, against what was computed here."""
    reached = [line for line in lines if line.count in run.at]
    for line in sorted(reached, key=lambda line: line.count):
        problem = prefix_problem(subject, run, line)
        if problem:
            certain = line.artifact and ANOTHER_SPLIT not in problem
            verdict = FAILED if certain else NOT_CHECKABLE
            if not line.artifact:
                problem += "; the log names no artifact_sha256 and may be of another"
            return [Finding(verdict, "prefix", problem, line.count, "positions", line.quote)]

    positions = f"of {subject.split.whole - 1:,} positions"
    if lines and not reached:
        least = min(line.count for line in lines)
        detail = f"{run.name}: {run.done:,} {positions}, the log's first line is of {least:,}"
        if run.ended:
            detail += f"; {run.ended}"
        return [Finding(NOT_CHECKABLE, "prefix", detail, run.done, "positions")]
    if not lines:
        return []

    far = max(reached, key=lambda line: line.count)
    rest = "the rest rests on the log"
    if far.count == subject.split.whole - 1:
        rest = "these are all"
    elif any(line.final for line in lines):
        alone = subject.split.whole - 1 - far.count
        rest = f"the rest rests on the log: the other {alone:,} positions on its word alone"
    detail = (
        f"{run.name}: the first {far.count:,} {positions} come to the log's {far.bpb:.6f} within "
        f"{drift_allowed(far.count, subject.options.tolerance):.4f}, {len(reached)} lines; a score "
        f"made by training on what it scores, or by another file, fails here; {rest}"
    )
    part = f"{far.count:,} of {subject.split.whole - 1:,} positions"
    says = f"{OF_WEIGHTS[run.name]} the log's first {part} are right, the rest rests on the log"
    return [
        Finding(subject.verdict, "prefix", detail, far.count, "positions", far.quote, says=says)
    ]


def check_other_passes(names: set[str], stated: list[Prefix]) -> list[Finding]:
    """Those that the artifact cannot give again."""
    others = sorted({line.name for line in stated} - names)
    if not others:
        return []
    detail = (
        f"{'; '.join(others)}: no pass of this artifact, whose protocols are fixed weights and "
        "the score-first adaptation that it stores"
    )
    return [Finding(NOT_CHECKABLE, "prefix", detail)]


def prefix_problem(subject: Subject, run: Pass, line: Prefix) -> str:
    """How a line of a log differs from what was computed here; empty where it does not."""
    begin = f"{run.name}: the first {line.count:,} positions"
    byte_count = subject.split.bytes_of(line.count)
    bits = math.log(2) * max(1, byte_count)
    here = run.at[line.count] / bits
    allowed = drift_allowed(line.count, subject.options.tolerance)
    nats_agree = abs(line.nats / bits - here) <= allowed

    if line.bytes != byte_count:
        text = f"{begin} are {byte_count:,} bytes of text, the log says {line.bytes:,}"
        split = subject.split
        whole = split.bytes_of(split.targets)
        official = is_official(subject.config["vocab_size"], split.targets, whole)
        return text if nats_agree or official else f"{text}; {ANOTHER_SPLIT}"
    if nats_agree and abs(line.bpb - here) <= allowed:
        return ""
    words = "val_bpb" if nats_agree else "nats"
    stated = line.bpb if nats_agree else line.nats / bits
    return (
        f"{begin} come to {here:.6f} bits/byte here, by the log's {words} {stated:.6f}: "
        f"{stated - here:+.6f}, allowed is {allowed:.4f}"
    )


# ---------------------------------------------------------------- claim

ABSURD = 100.0  # bits per byte; an untrained network has below 10


def check_range(claims: list[float]) -> list[Finding]:
    """Claims that no model can have."""
    for claim in claims:
        if not 0 < claim < ABSURD:
            detail = f"no model has {claim:g} bits per byte"
            return [Finding(FAILED, "claim", detail, claim, "bits/byte")]
    return []


def check_claims(subject: Subject, claims: list[float], runs: list[Pass]) -> list[Finding]:
    """The closest pair of claim and score, of the passes that went through the whole split; a part
    where none did."""
    claims = [claim for claim in claims if 0 < claim < ABSURD]
    runs = [run for run in runs if run.name != PLAIN and run.done and math.isfinite(run.nats)]
    if subject.options.claim is not None and subject.options.ttt:
        replayed = REPLAYED.get(subject.config["ttt_protocol"])
        runs = [run for run in runs if run.name == replayed] or runs
    whole = [run for run in runs if run.done + 1 >= subject.split.whole]
    if not claims or not runs:
        return []

    scores = {}
    for run in whole or runs:
        bits = math.log(2) * max(1, subject.split.bytes_of(run.done))
        scores[run.name] = run.nats / bits
    claim, name = min(product(claims, scores), key=lambda pair: abs(pair[0] - scores[pair[1]]))
    off = claim - scores[name]
    same = abs(off) <= subject.options.tolerance
    run = next(run for run in runs if run.name == name)
    unfinished = [run for run in runs if run not in whole]
    adapted = any(run.name in REPLAYED.values() for run in runs)
    verdict, reason = judge_claim(subject, run.done, same, adapted, unfinished)
    return [claim_finding(subject, (claim, scores[name], name), verdict, reason)]


def claim_finding(
    subject: Subject,
    pair: tuple[float, float, str],  # the claim, the score here, and its pass
    verdict: str,
    reason: str,
) -> Finding:
    claim, score, name = pair
    detail = (
        f"{claim - score:+.6f} from {score:.6f} here {OF_WEIGHTS[name]}, tolerance "
        f"{subject.options.tolerance:g}; {reason}"
    )
    says = f"the claim of {claim:.6f} is the score {OF_WEIGHTS[name]}, {recomputed(subject)}"
    if verdict == NOT_CHECKABLE:
        says = f"the claim of {claim:.6f} is not decided: {reason}"
    return Finding(verdict, "claim", detail, claim, "bits/byte", says=says)


def judge_claim(
    subject: Subject, done: int, same: bool, adapted: bool, unfinished: list[Pass]
) -> tuple[str, str]:
    """Verdict and reason for a claim that is, or is not, the score here; `unfinished` are passes
    that it may be of as well.

    PROVEN is only what is claimed of the challenge's split. On another it is the claimant's word
    that it is of this one: a claim of submission.json is not.
    """
    split = subject.split
    if done + 1 < split.whole:
        return NOT_CHECKABLE, "the claim is of the whole split"
    byte_count = split.bytes_of(done)
    words = split_words(subject, byte_count)
    official = is_official(subject.config["vocab_size"], split.whole - 1, byte_count)
    ours = official or subject.options.this_split
    if not ours and subject.options.claim is None:
        return NOT_CHECKABLE, f"{words}; see --data, or --this-split if the claim is of it"
    if same:
        return (subject.verdict if official else CONSISTENT), words

    if unfinished:
        run = unfinished[0]
        part = f"whose pass came to {run.done:,} of {split.whole - 1:,} positions"
        return NOT_CHECKABLE, f"it may be the score {OF_WEIGHTS[run.name]}, {part}"
    if subject.config["ttt_protocol"] in REPLAYED and not adapted:
        return NOT_CHECKABLE, "it may be the score after adaptation: add --ttt"
    smaller = split.whole - 1 < SPLIT_TOKENS.get(subject.config["vocab_size"], 0)
    if not ours and smaller and subject.config["tokenizer_sha256"] in OFFICIAL_TOKENIZERS:
        return NOT_CHECKABLE, f"{words}; see --data, or --this-split if the claim is of it"
    return FAILED, words


# ---------------------------------------------------------------- samples

MIN_WINDOWS = 16  # below so many no interval is stated
BIAS_EVERY = 8  # of so many windows one is also scored as the protocol has it
NORMAL_99 = 2.5758  # standard deviations that hold 99 % of a normal distribution


@dataclass
class Estimate:
    """Nats of a whole split from some of its cells, drawn at random.

    A cell is as many positions as a window's later half. They are scored together in the window
    that ends with the cell, and so see less than under the protocol, by which each `stride`
    positions end a window of their own. That bias is estimated on some cells and taken off.
    """

    known: float  # nats of the first window, which is not sampled
    rest: int  # positions behind it
    cells: int  # that these make
    sums: list[float] = field(default_factory=list)  # nats of each cell that was drawn
    counts: list[int] = field(default_factory=list)  # its positions
    biases: list[float] = field(default_factory=list)  # nats a position, of some of them

    def bias(self) -> tuple[float, float]:
        """Nats a position, and the standard error."""
        if len(self.biases) < 2:
            return 0.0, 0.0
        return float(np.mean(self.biases)), float(np.std(self.biases, ddof=1)) / math.sqrt(
            len(self.biases)
        )

    def nats(self) -> tuple[float, float]:
        """Of the whole split, and half of the interval that holds it in 99 of 100 cases."""
        n = len(self.sums)
        sums = np.array(self.sums)
        counts = np.array(self.counts)
        mean = sums.sum() / counts.sum()
        spread = np.std(sums - mean * counts, ddof=1) / counts.mean()
        error = spread / math.sqrt(n) * math.sqrt(1 - n / self.cells)

        bias, bias_error = self.bias()
        least = min(n, len(self.biases) or n)
        half = student_99(least - 1) * math.hypot(error, bias_error)
        return self.known + (mean - bias) * self.rest, half * self.rest


def student_99(freedom: int) -> float:
    """How many standard errors hold 99 % where the error is estimated, too: Student's quantile by
    its expansion in 1 / freedom."""
    z = NORMAL_99
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


class Sampler:
    """Draws cells of a split in a random order and scores them."""

    def __init__(self, subject: Subject, seed: int):
        self.subject = subject
        config = subject.config
        self.length = min(config["train_seq_len"], subject.split.targets)
        self.stride = config["eval_stride"]
        blocks = max(1, self.length // 2 // self.stride)
        self.size = blocks * self.stride
        self.random = np.random.default_rng(seed)

        targets = subject.split.targets
        self.starts = np.arange(self.length, targets, self.size)
        known = self.losses([Window(0, self.length, 0)]).sum()
        self.estimate = Estimate(float(known), targets - self.length, len(self.starts))

    def losses(self, batch: list[Window]) -> np.ndarray:
        """(windows, positions) of windows of one shape."""
        subject = self.subject
        device = subject.options.device
        flat = batch_losses(subject.model, subject.split.tokens, batch, device, torch.float32)
        return flat.reshape(len(batch), -1)

    def window(self, first: int, size: int) -> Window:
        end = min(first + size, self.subject.split.targets)
        return Window(max(0, end - self.length), end, first)

    def run(self, most: float = math.inf) -> None:
        """Until the minutes are over, or all cells or so many are scored."""
        options = self.subject.options
        rows = batch_rows(self.subject.model, self.subject.config, options.device)
        drawn = self.random.permutation(self.starts)
        cells = [self.window(int(first), self.size) for first in drawn]
        for _, group in groupby(cells, lambda cell: cell.end - cell.first):
            while batch := list(islice(group, rows)):
                if options.left <= 0 or len(self.estimate.sums) >= most:
                    return
                self.enter(batch)
                self.say()

    def enter(self, batch: list[Window]) -> None:
        for cell, losses in zip(batch, self.losses(batch), strict=True):
            self.estimate.sums.append(float(losses.sum()))
            self.estimate.counts.append(len(losses))
            blocks = len(losses) // self.stride
            if blocks > 1 and len(self.estimate.sums) % BIAS_EVERY == 1:
                self.estimate.biases.append(self.bias(cell, losses))

    def bias(self, cell: Window, losses: np.ndarray) -> float:
        """Nats a position that a cell's losses are too high, by one of its blocks but the last,
        which ends the cell's window and so has no bias."""
        blocks = len(losses) // self.stride
        low = self.stride * int(self.random.integers(blocks - 1))
        exact = self.losses([self.window(cell.first + low, self.stride)])
        high = losses[low : low + self.stride].mean() - exact.mean()
        return float(high) * (blocks - 1) / blocks

    def say(self) -> None:
        options = self.subject.options
        done = len(self.estimate.sums)
        options.progress.say(
            f"sample: {done:,} of {self.estimate.cells:,} windows, {options.left:,.0f} s left"
        )


def check_sample(subject: Subject, claims: list[float], _: list[Prefix]) -> list[Finding]:
    """An estimate with fixed weights, its interval, and the closest claim."""
    seed = subject.options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    sampler = Sampler(subject, seed)
    try:
        sampler.run()
    except (KeyboardInterrupt, OutOfTime):
        subject.options.progress.say("stopped; what was drawn so far counts")

    drawn = sampler.estimate
    windows_drawn = len(drawn.sums)
    if windows_drawn < min(MIN_WINDOWS, drawn.cells):
        detail = f"{windows_drawn} windows in the time allowed, {MIN_WINDOWS} are needed"
        return [Finding(NOT_CHECKABLE, "sample", detail, windows_drawn, "windows")]
    nats, half = drawn.nats()
    if not math.isfinite(nats):
        return [Finding(FAILED, "sample", f"a position has no finite score; seed {seed}")]
    return [sample_finding(subject, drawn, claims, seed, (nats, half))]


def sample_finding(
    subject: Subject,
    drawn: Estimate,
    claims: list[float],
    seed: int,
    result: tuple[float, float],  # nats of the split, half of the interval
) -> Finding:
    count = subject.split.targets
    bits = math.log(2) * max(1, subject.split.bytes_of(count))
    bpb, half = (nats / bits for nats in result)
    estimate = f"fixed weights: {bpb:.4f} ± {half:.4f} (99 %)"
    detail = f"{estimate} {drawn_words(drawn, seed, bits)}"
    claims = [claim for claim in claims if 0 < claim < ABSURD]
    if not claims:
        words = f"{detail}; no claim to compare with, see --claim"
        says = f"a sample's estimate, {estimate}"
        return Finding(NOT_CHECKABLE, "sample", words, bpb, "bits/byte", says=says)

    claim = min(claims, key=lambda claim: abs(claim - bpb))
    same = abs(claim - bpb) <= half + subject.options.tolerance
    verdict, reason = judge_claim(subject, count, same, False, [])
    place = "within" if same else "outside"
    caution = "" if same else ", as 1 honest claim in 100 is: see another --seed"
    detail += f"; the claim of {claim:.6f} is {place}{caution}; {reason}"
    says = f"the claim of {claim:.6f} is {place} a sample's estimate, {estimate}"
    verdict = CONSISTENT if verdict == PROVEN else verdict
    return Finding(verdict, "sample", detail, bpb, "bits/byte", says=says)


def drawn_words(drawn: Estimate, seed: int, bits: float) -> str:
    """What an estimate rests on."""
    bias, error = (x * drawn.rest / bits for x in drawn.bias())
    return (
        f"by {len(drawn.sums):,} windows of {drawn.cells:,}, seed {seed}; shorter contexts cost "
        f"{bias:.4f} ± {error:.4f}, taken off"
    )


# ---------------------------------------------------------------- main


def positive(text: str) -> float:
    """A finite number above zero."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def parse(argv: list[str] | None) -> Options:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("verify.py", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("target", help="an artifact.pcll or a record folder")
    add("--code", help="the counted script (default: train_gpt.py beside the artifact, else none)")
    add(
        "--data",
        help=f"folder with fineweb_val_*.bin (default: {' or '.join(DEFAULT_DATA)}, beside "
        "verify.py or in the current directory; never in the folder that is checked)",
    )
    add(
        "--tokenizer",
        help="SentencePiece model (default: the one near the data with the artifact's sha256)",
    )
    add("--claim", type=float, metavar="BPB", help="claimed val_bpb, after adaptation with --ttt")
    add("--this-split", action="store_true", help="the claim is of the split here, be it any")
    add(
        "--tolerance",
        type=positive,
        default=TOLERANCE,
        metavar="BPB",
        help="between claim and result (%(default)s)",
    )
    add("--max-tokens", type=int, metavar="N", help="score the first N tokens only")
    add("--log", metavar="FILE", help="compare with what it says of prefixes (a folder: its logs)")
    add("--sample", action="store_true", help="windows drawn at random, fixed weights")
    add("--seed", type=int, metavar="N", help="of the sample (default: any, and printed)")
    add("--minutes", type=positive, default=60.0, metavar="M", help="in all (%(default)g)")
    add("--memory", type=positive, default=4.0, metavar="GB", help="at most (%(default)g)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--ttt", action="store_true", help="replay the artifact's score-first adaptation")
    add(
        "--model",
        metavar="FILE",
        help="take GPT from this file (a changed architecture); runs their code",
    )
    add("--trust-code", action="store_true", help="allow --model to run their code")
    add(
        "--against",
        metavar="BPB[,BPB...]",
        help="scores to beat, one or a seed each (record folders)",
    )
    add("--json", action="store_true", help="findings for machines")
    return Options(**vars(parser.parse_args(argv)))


def check(options: Options) -> list[Finding]:
    """All findings on the target; raises UnusableInput where nothing can be checked."""
    target = Path(options.target)
    if options.model and not options.trust_code:
        wanted = "add --trust-code if you have read it"
        raise UnusableInput(f"--model runs the code in {options.model}; {wanted}")
    if options.max_tokens is not None and options.max_tokens < 2:
        raise UnusableInput("--max-tokens must be at least 2")
    if options.seed is not None and options.seed < 0:
        raise UnusableInput("--seed must be at least 0")
    require_files(options)

    if target.is_dir():
        found = check_folder(target, options.against) + check_artifacts(target, options)
        return found + check_named_log(options)
    if target.stat() and not target.is_file():
        raise UnusableInput(f"{target} is neither a folder nor a regular file")
    with target.open("rb") as file:
        if file.read(4) != b"PCLL":
            raise UnusableInput(f"{target} is neither a folder nor a PCLL artifact")
    found = check_artifact(target, options, [], [Path(options.log)] if options.log else [])
    return found + check_named_log(options)


def check_named_log(options: Options) -> list[Finding]:
    """Whether what it says of prefixes and results can be at all."""
    if not options.log:
        return []
    found = check_prefix_lines([read_passes(Path(options.log))])
    return [finding for finding in found if finding.verdict == FAILED]


def require_files(options: Options) -> None:
    """What is named must be a regular file: a pipe may never end."""
    named = (options.code, options.tokenizer, options.log, options.model)
    for path in filter(None, named):
        if Path(path).stat() and not Path(path).is_file():
            raise UnusableInput(f"{path} is no regular file")


def check_artifacts(folder: Path, options: Options) -> list[Finding]:
    """Those of a record folder, whose name goes before each detail."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    logs = [path for path in files if path.suffix in LOG_SUFFIXES]
    if options.log:
        logs = [Path(options.log)]
    found = []
    for path in files:
        if path.suffix == ".pcll":
            for finding in check_artifact(path, options, submitted_scores(folder), logs):
                says = finding.says and f"{path.name}: {finding.says}"
                found.append(finding._replace(detail=f"{path.name}: {finding.detail}", says=says))
    return found


def main(argv: list[str] | None = None) -> int:
    if sys.stdout is None:
        print("verify.py: stdout is closed, there is nowhere to report to", file=sys.stderr)
        return 2
    options = parse(argv)
    suspect = f", maybe in {options.model}" if options.model else ""
    return report_on(lambda: check(options), options.target, options.json, "verify.py", suspect)


if __name__ == "__main__":
    sys.exit(run_program(main, "verify.py"))
