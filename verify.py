"""Checks a Parameter Golf submission without trusting who made it; shares no code with
train_gpt.py.

    python verify.py artifact.pcll             size, integrity, bits per byte, probes of an artifact
    python verify.py records/TRACK/DATE_name   a record folder of any entry: submission.json, logs,
                                               code (by records/check.py), and its artifact

Every check ends in a finding with the number behind it:
    PROVEN          recomputed here from the files, by code that does not come from the competitor
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

--json prints one object: schema (1), input (the path), exit_code, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or "")}.

Sections: options and progress, data and byte count, model, scoring, adaptation, probes,
configuration, artifact, score and claim, main.
"""

import argparse
import hashlib
import importlib.util
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import groupby, islice, product
from pathlib import Path
from typing import NamedTuple, get_type_hints
from unittest import mock

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from decode_artifact import ArtifactError, read_pcll
from records.check import (
    CAP_BYTES,
    CONSISTENT,
    FAILED,
    NOT_CHECKABLE,
    PROVEN,
    SP1024_VAL_TOKENS,
    SUSPICION,
    Finding,
    UnusableInput,
    check_folder,
    code_bytes,
    read_code,
    report_on,
    submitted_scores,
)

TOLERANCE = 0.0005  # bits per byte between a claim, usually computed in bfloat16, and float32 here
BOS = 1  # the id that starts every document
SP1024_SHA256 = "4f5e8adb"  # how the sha256 of the challenge's 1,024-piece tokenizer begins
DEFAULT_DATA = ("data/datasets/fineweb10B_sp1024", "data/demo")  # the challenge's, the demo's
NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"
Weights = dict[str, np.ndarray]  # by name; float32
Shapes = dict[str, tuple[int, ...]]  # by name


# ---------------------------------------------------------------- options and progress


class Progress:
    """Lines on stderr, none within 4 s after another."""

    def __init__(self):
        self.last = time.monotonic()

    def say(self, text: str) -> None:
        if time.monotonic() - self.last >= 4:
            print(text, file=sys.stderr, flush=True)
            self.last = time.monotonic()


@dataclass(frozen=True)
class Options:
    """The command line."""

    target: str  # an artifact or a record folder
    code: str | None  # the counted script
    data: str | None  # folder of shards
    tokenizer: str | None  # SentencePiece model
    claim: float | None  # bits per byte
    tolerance: float  # bits per byte
    max_tokens: int | None
    device: str  # "cpu" or "cuda"
    ttt: bool  # replay the adaptation
    model: str | None  # a competitor's script to take the network from
    trust_code: bool
    against: str | None  # scores to beat, with commas
    json: bool
    progress: Progress = field(default_factory=Progress)


# ---------------------------------------------------------------- data and byte count


def read_tokens(folder: Path, vocab_size: int) -> np.ndarray:
    """The validation split, (n >= 2,) uint16: all shards fineweb_val_*.bin of a folder in the order
    of their names. Raises UnusableInput."""
    parts = [np.zeros(0, "<u2")]
    for shard in sorted(folder.glob("fineweb_val_*.bin")):
        header = np.fromfile(shard, "<i4", 256)  # magic, version, tokens, zeros
        whole = len(header) == 256 and shard.stat().st_size == 1024 + 2 * int(header[2])
        if not whole or header[:2].tolist() != [20240520, 1]:
            raise UnusableInput(f"{shard} is not a whole token shard (magic 20240520, version 1)")
        parts.append(np.fromfile(shard, "<u2", offset=1024))

    tokens = np.concatenate(parts)
    if len(tokens) < 2 or int(tokens.max()) >= vocab_size:
        problem = f"hold no tokens, or ids of {vocab_size} and above"
        raise UnusableInput(f"the fineweb_val_*.bin in {folder} {problem}")
    return tokens


def documents(tokens: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each document: from one BOS to the next."""
    edges = sorted({0, *np.flatnonzero(tokens == BOS).tolist(), len(tokens)})
    return list(zip(edges, edges[1:], strict=False))


def count_bytes(tokens: np.ndarray, tokenizer: sentencepiece.SentencePieceProcessor) -> int:
    """UTF-8 bytes of the text that the tokens decode to, one document at a time.

    A byte piece is one byte even where the bytes are no valid UTF-8: a letter stands in for it. The
    decoder leaves out the space before a document.
    """
    ids = range(tokenizer.vocab_size())
    letters = set("etaoinsrhldu0123456789")
    letter = next(i for i in ids if tokenizer.id_to_piece(i) in letters)
    stand_in = np.array([letter if tokenizer.is_byte(i) else i for i in ids])

    ids = stand_in[tokens]
    texts = (tokenizer.decode(ids[start:end].tolist()) for start, end in documents(tokens))
    return sum(len(text.encode()) for text in texts)


# ---------------------------------------------------------------- model
# The network written a second time: functions of named tensors in float32.


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
    first = a * angle.cos() + b * angle.sin()
    second = b * angle.cos() - a * angle.sin()
    return torch.cat([first, second, x[..., dims:]], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention; q [B, H, T, d], k and v [B, KV, T, d], query head h uses key head
    h // (H / KV)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Model:
    """The network of an artifact: token ids [B, T] in, float32 logits [B, T, vocabulary] out."""

    def __init__(self, config: dict, weights: Weights, device: str):
        self.config = config
        self.params = {name: torch.tensor(array, device=device) for name, array in weights.items()}

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

    def attend(self, i: int, h: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """What layer i's attention adds for its normed input h [B, T, D], and its values
        [B, KV, T, d]; v_first are those of layer 0."""
        c = self.config
        d = c["model_dim"] // c["num_heads"]
        prefix = f"blocks.{i}.attn."
        names = [name for name in self.params if name.startswith(prefix)]
        p = {name.removeprefix(prefix): self.params[name] for name in names}

        q, k, v = (F.linear(h, p[name]).unflatten(-1, (-1, d)).transpose(1, 2) for name in "qkv")
        if c["value_residual"] and i > 0:
            v = p["value_mix"][0] * v_first + p["value_mix"][1] * v
        q, k = (rotate(rms_norm(x), c["rope_dims"], c["rope_base"]) for x in (q, k))
        y = attention(q * p["q_gain"][:, None, None], k, v)

        if c["gated_attention"] and c["gate_dims"]:
            gate = 2 * torch.sigmoid(F.linear(h[..., : c["gate_dims"]], p["gate_weight"]))
            y = y * gate.mT[..., None]
        elif c["gated_attention"]:
            y = y * torch.sigmoid(F.linear(h, p["gate_weight"], p["gate_bias"])).mT[..., None]
        if i >= c["num_layers"] - c["xsa_last_n"]:
            y = without_own_value(y, v)
        return F.linear(y.transpose(1, 2).flatten(2), p["out"]), v

    def feed_forward(self, i: int, h: Tensor) -> Tensor:
        """What layer i's MLP adds for its normed input h [B, T, D]."""
        up = F.linear(h, self.params[f"blocks.{i}.mlp.up"])
        up = torch.where(up < 0, self.config["mlp_negative_slope"] * up, up).square()
        return F.linear(up, self.params[f"blocks.{i}.mlp.down"])

    def block(self, i: int, x: Tensor, x0: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """What leaves layer i, [B, T, D], and its values."""
        c = self.config
        p = {name: self.params[f"blocks.{i}.{name}"] for name in BLOCK_VECTORS}
        scale = 1 / math.sqrt(i + 1) if c["ln_scale"] else 1.0

        x = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
        y, v = self.attend(i, rms_norm(x) * scale, v_first)
        attended = x + p["attn_scale"] * y
        parallel = i >= c["num_layers"] - c["parallel_last_n"]
        read = x if parallel else attended
        return attended + p["mlp_scale"] * self.feed_forward(i, rms_norm(read) * scale), v

    def with_skip(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, T, D] joined by the i-th of the skips."""
        skip = self.params["skip_weights"][i] * skip
        if not self.config["skip_gates"]:
            return x + skip
        gate = torch.sigmoid(self.params["skip_gates"][i])
        return gate * x + (1 - gate) * skip

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Logits [B, T - first, V] of the positions from `first` on, for ids int64 [B, T]."""
        c = self.config
        order = layer_order(c)
        half = len(order) // 2
        x0 = x = self.embed(tokens)
        v_first = None
        skips = []

        for place, i in enumerate(order):
            if c["unet_skips"] and half <= place < 2 * half:
                x = self.with_skip(place - half, x, skips.pop())
            x, v = self.block(i, x, x0, v_first)
            if place == 0:
                v_first = v
            if place < half:
                skips.append(x)

        cap = c["logit_softcap"]
        logits = F.linear(rms_norm(x[:, first:]), self.params["tok_emb"])
        return cap * torch.tanh(logits / cap)


BLOCK_VECTORS = ("resid_mix", "attn_scale", "mlp_scale")


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


class TheirModel:
    """GPT of a competitor's file: runs their code.

    It takes a dataclass of settings or plain arguments, filled by name from the artifact's
    configuration; its forward_logits or forward maps ids [B, T] to logits [B, T, vocabulary].
    """

    def __init__(self, file: Path, config: dict, weights: Weights, device: str):
        net = their_network(file, config)
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.net = net.float().eval().to(device)
        self.params = dict(net.named_parameters())

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        return getattr(self.net, "forward_logits", self.net)(tokens)[:, first:]


def their_network(file: Path, config: dict) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("their_model", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["their_model"] = module
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)

    names = list(inspect.signature(module.GPT).parameters)
    settings = get_type_hints(module.GPT.__init__).get(names[0])
    if not is_dataclass(settings):
        return module.GPT(**{name: config[name] for name in names if name in config})
    names = [field.name for field in fields(settings)]
    return module.GPT(settings(**{name: config[name] for name in names if name in config}))


# ---------------------------------------------------------------- scoring
# verify.py keeps the loop: a model maps token ids to logits and never holds the target of the
# position it is asked for.

BATCH_TOKENS = {"cpu": 4096, "cuda": 131_072}  # that go through the network at a time


class Split(NamedTuple):
    """The part of the validation split that is scored."""

    tokens: np.ndarray  # (n,) uint16, of which all but the first are scored
    byte_count: int  # UTF-8 bytes of their text
    whole: int  # tokens of the whole split

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1


class Window(NamedTuple):
    """Inputs [start, end) go in, the predictions of inputs [first, end) count."""

    start: int
    end: int
    first: int


class Score(NamedTuple):
    bpb: float  # bits a byte
    loss: float  # nats a token


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


def batches(tokens: np.ndarray, config: dict, device: str) -> Iterator[tuple[int, list[Window]]]:
    """A chunk's number and neighbouring windows of one shape that lie in it."""

    def chunk_and_shape(window: Window) -> tuple[int, ...]:
        chunk = (window.end - 1) // config["ttt_chunk_tokens"]
        return chunk, window.end - window.start, window.end - window.first

    most = max(1, BATCH_TOKENS[device] // config["train_seq_len"])
    for key, group in groupby(windows(tokens, config), chunk_and_shape):
        while batch := list(islice(group, most)):
            yield key[0], batch


def score(
    model: Callable,
    split: Split,
    config: dict,
    options: Options,
    learn: Callable | None = None,
    dtype: torch.dtype = torch.float32,
) -> Score:
    """Of a split's tokens[1:]; learn(chunk, begin, end) when a chunk's scores are final."""
    began = time.monotonic()
    nats = 0.0
    done = 0
    last_chunk = 0
    learned = 0

    for chunk, batch in batches(split.tokens, config, options.device):
        if learn and chunk != last_chunk:
            learn(last_chunk, learned, batch[0].first)
            learned = batch[0].first
        last_chunk = chunk

        nats += batch_nats(model, split.tokens, batch, options.device, dtype)
        done += sum(window.end - window.first for window in batch)

        share = done / split.targets
        bpb = nats / share / math.log(2) / split.byte_count
        left = (time.monotonic() - began) * (1 / share - 1)
        options.progress.say(f"{share:6.1%} scored, bpb {bpb:.4f}, {left:,.0f} s left")

    return Score(nats / math.log(2) / split.byte_count, nats / done)


def batch_nats(
    model: Callable, tokens: np.ndarray, batch: list[Window], device: str, dtype: torch.dtype
) -> float:
    """Nats of what counts in windows of one shape; float32 and more unless dtype says less."""
    inputs = np.stack([tokens[window.start : window.end] for window in batch])
    targets = np.concatenate([tokens[window.first + 1 : window.end + 1] for window in batch])
    inputs = torch.from_numpy(inputs.astype(np.int64)).to(device)
    targets = torch.from_numpy(targets.astype(np.int64))

    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logits = model(inputs, batch[0].first - batch[0].start).float().cpu()
    losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    return losses.double().sum().item()


# ---------------------------------------------------------------- adaptation

LEARNING_FACTORS = {"attn.out": 3.0, "mlp.down": 3.0, "mlp.up": 0.5}  # by the end of the name


def learner(model: Callable, split: Split, config: dict, options: Options) -> Callable:
    """Score-first test-time training: learn(chunk, begin, end) trains model.params on inputs
    [begin, end), already scored. The learning rate follows a cosine over the whole split's
    chunks."""
    length = config["train_seq_len"]
    size = config["ttt_batch_seqs"]
    chunks = math.ceil((split.whole - 1) / config["ttt_chunk_tokens"])
    optimizer = adaptation_optimizer(model.params, config["ttt_optimizer"])

    def learn(chunk: int, begin: int, end: int) -> None:
        cosine = 0.5 * (1 + math.cos(math.pi * chunk / chunks))
        for group in optimizer.param_groups:
            group["lr"] = config["ttt_lr"] * group["factor"] * cosine

        starts = range(begin, end - length + 1, length)
        for epoch, i in product(range(config["ttt_epochs"]), range(0, len(starts), size)):
            said = f"learning from chunk {chunk + 1} of {chunks}, epoch {epoch + 1}"
            optimizer.zero_grad()
            add_gradients(model, split.tokens, starts[i : i + size], length, options, said)
            torch.nn.utils.clip_grad_norm_(list(model.params.values()), config["ttt_grad_clip"])
            optimizer.step()

    return learn


def add_gradients(
    model: Callable, tokens: np.ndarray, starts: range, length: int, options: Options, said: str
) -> None:
    """Of the mean loss of the sequences that start there, some rows at a time."""
    rows = max(1, BATCH_TOKENS[options.device] // (8 * length))  # learning takes more memory
    for i in range(0, len(starts), rows):
        options.progress.say(said)
        block = np.stack([tokens[start : start + length + 1] for start in starts[i : i + rows]])
        block = torch.from_numpy(block.astype(np.int64)).to(options.device)
        logits = model(block[:, :-1].contiguous()).flatten(0, 1).float()
        loss = F.cross_entropy(logits, block[:, 1:].flatten(), reduction="sum")
        (loss / (len(starts) * length)).backward()


def adaptation_optimizer(params: dict[str, Tensor], name: str) -> torch.optim.Optimizer:
    groups = []
    for param_name, param in params.items():
        end = ".".join(param_name.split(".")[-2:])
        factor = LEARNING_FACTORS.get(end, 1.0)
        groups.append({"params": [param.requires_grad_()], "factor": factor})
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=0.0)
    return torch.optim.SGD(groups, 1e-3, momentum=0.9)


# ---------------------------------------------------------------- probes
# Of whatever computes the logits, ours or theirs, on a window of the data.

PROBE_TOKENS = 1024  # length of the probed window, at most
PROBE_SUFFIXES = 8
PROBE_LIMIT = 1e-6  # of a probability, or of a value that enters the first layer


def check_probes(
    model: Callable, tokens: np.ndarray | None, config: dict, options: Options
) -> list[Finding]:
    """Causality, normalisation, determinism, isolation, on the data's first window; random tokens
    without data."""
    length = min(PROBE_TOKENS, config["train_seq_len"])
    if length < 2:
        return [Finding(NOT_CHECKABLE, "causality", "windows of one token cannot be probed")]

    random = np.random.default_rng(0)
    vocab = config["vocab_size"]
    held = tokens is not None and len(tokens) >= length
    ids = tokens[:length].astype(np.int64) if held else random.integers(0, vocab, length)
    window = torch.from_numpy(ids).to(options.device)
    shift = torch.from_numpy(random.integers(1, vocab, length)).to(options.device)
    other = (window + shift) % vocab  # differs everywhere
    cuts = [1, length // 2, length - 1]
    cuts += random.integers(1, length, PROBE_SUFFIXES - 3).tolist()

    def ask(*rows: Tensor) -> Tensor:
        """Probabilities of the first row, float64 [T, V], for rows of ids, int64 [T]."""
        options.progress.say("probing the network")
        with torch.no_grad():
            return model(torch.stack(rows)).double().softmax(-1)[0]

    return [
        *probe_probabilities(ask, window, other, cuts, vocab),
        probe_isolation(model, window, config),
    ]


def probe(check: str, number: float, detail: str, worse: str = FAILED) -> Finding:
    """Proven where a number is within the limit, else `worse`."""
    verdict = PROVEN if number <= PROBE_LIMIT else worse
    return Finding(verdict, check, f"{detail}, limit {PROBE_LIMIT}", number)


def probe_probabilities(
    ask: Callable, window: Tensor, other: Tensor, cuts: list[int], vocab: int
) -> list[Finding]:
    """Whether they change before a cut with the tokens after it, add up, and come out again."""
    base = ask(window)
    seen = 0.0
    for cut in cuts:
        changed = ask(torch.cat([window[:cut], other[cut:]]))
        seen = max(seen, change(base[:cut], changed[:cut]))
    again = change(base, ask(window))
    beside = change(ask(window, other), ask(window, other.flip(0)))
    sums = base.sum(-1)
    count = base.shape[-1]
    off = change(sums, torch.ones_like(sums)) if count == vocab else math.inf
    suffixes = f"{PROBE_SUFFIXES} changed suffixes of {len(window)} tokens"
    return [
        probe("causality", seen, f"change before {suffixes}"),
        probe("normalised", off, f"largest |sum - 1| of {count} probabilities"),
        probe("determinism", max(again, beside), "change in a second run and beside other rows"),
    ]


def probe_isolation(model: Callable, window: Tensor, config: dict) -> Finding:
    """What a token before a BOS changes after it, attention apart: in our network, what enters the
    first layer; in theirs, the logits with an F.scaled_dot_product_attention that returns each
    position's own value, and it may attend without that."""
    begin = len(window) // 2
    window = window.clone()
    window[begin] = BOS
    changed = window.clone()
    changed[begin - 1] = (window[begin - 1] + 1) % config["vocab_size"]

    def own_value(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    ours = isinstance(model, Model)
    entered = model.embed if ours else model
    with torch.no_grad(), mock.patch.object(F, "scaled_dot_product_attention", own_value):
        leak = change(entered(window[None])[0, begin:], entered(changed[None])[0, begin:])
    detail = "change after a BOS by the token before it, apart from F.scaled_dot_product_attention"
    return probe("isolation", leak, detail, FAILED if ours else NOT_CHECKABLE)


def change(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|; infinity where one is NaN."""
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
}


def config_problems(c: dict, weights: Weights, theirs: bool) -> list[str]:
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
        "ttt_protocol is unknown": c["ttt_protocol"] in ("off", "score_first", "train_then_score"),
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
    return found if theirs or found else shape_problems(expected_shapes(c), weights)


def shape_problems(wanted: Shapes, weights: Weights) -> list[str]:
    found = [f"tensor {name} is not asked for" for name in weights if name not in wanted]
    shapes = {name: array.shape for name, array in weights.items()}
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


# ---------------------------------------------------------------- artifact


class Data(NamedTuple):
    """Where the validation split of an artifact lies."""

    folder: Path | None  # of shards
    tokenizer: Path | None
    same: bool  # whether the tokenizer has the artifact's sha256


def check_artifact(path: Path, options: Options, submitted: list[float]) -> list[Finding]:
    """Every check of one artifact; `submitted` holds the bits per byte that a submission.json
    claims for it, if any."""
    beside = path.with_name("train_gpt.py")
    script = options.code or options.model
    if not script and beside.is_file():
        script = beside
    found = check_size(path, Path(script) if script else None)
    try:
        stated, weights = read_pcll(path)
        config = ABSENT | stated
    except ArtifactError as error:
        return [*found, Finding(FAILED, "integrity", str(error))]
    count = sum(array.size for array in weights.values())
    detail = f"{len(weights)} tensors, by decode_artifact.py"
    found.append(Finding(PROVEN, "integrity", detail, count, "weights"))

    problems = config_problems(config, weights, options.model is not None)
    if problems:
        detail = "; ".join(problems[:5])
        return [*found, Finding(FAILED, "config", detail, len(problems), "problems")]
    model, finding = load_model(config, weights, options)
    data = find_data(config, options)
    found += [finding, check_tokenizer(data, config)]

    tokens = read_tokens(data.folder, config["vocab_size"]) if data.folder else None
    found += check_probes(model, tokens, config, options)
    if tokens is None or not data.same:
        detail = "no validation shards for this tokenizer here; see --data"
        return [*found, Finding(NOT_CHECKABLE, "val_bpb", detail)]
    return found + check_score(model, tokens, data.tokenizer, config, options, submitted)


def check_size(artifact: Path, script: Path | None) -> list[Finding]:
    """Code plus artifact against the cap, and the calls whose target is computed."""
    held = artifact.stat().st_size
    files, computed = read_code(script) if script else ([], [])
    raw, packed = code_bytes(files)

    names = " + ".join(file.name for file in files) or "no train_gpt.py here, see --code"
    detail = (
        f"code {raw:,} ({names}; {packed:,} by lzma) + artifact {held:,}: "
        f"{CAP_BYTES - raw - held:,} below cap of {CAP_BYTES:,}"
    )
    verdict = PROVEN if script else NOT_CHECKABLE
    if raw + held > CAP_BYTES:
        verdict = FAILED
    found = [Finding(verdict, "size", detail, raw + held, "bytes")]

    if computed:
        detail = "what these read or run is known only when they run: " + ", ".join(computed[:12])
        found.append(Finding(NOT_CHECKABLE, "code", detail, len(computed), "call(s)"))
    return found


def load_model(config: dict, weights: Weights, options: Options) -> tuple[Callable, Finding]:
    if options.model:
        model = TheirModel(Path(options.model), config, weights, options.device)
        detail = f"the logits come from their code in {options.model}, the loop is ours"
        return model, Finding(CONSISTENT, "model", detail)
    unused = [name for name in config if name not in CONFIG and name != "preset"]
    detail = (
        "every tensor has the shape it asks for; settings not used here: "
        f"{', '.join(unused) or 'none'}"
    )
    finding = Finding(PROVEN, "config", detail, len(weights), "tensors")
    return Model(config, weights, options.device), finding


def find_data(config: dict, options: Options) -> Data:
    """As named, or else the first default folder whose tokenizer is the artifact's."""
    pairs = []  # of a folder and a tokenizer
    for folder in (options.data, *DEFAULT_DATA):
        if folder:
            folder = Path(folder)
            near = [*folder.glob("*.model"), *folder.parent.parent.glob("tokenizers/*.model")]
            pairs += [(folder, model) for model in near]
    named = Path(options.tokenizer) if options.tokenizer else None
    if named:
        pairs.append((None, named))

    sha256 = config["tokenizer_sha256"]
    fitting = [pair for pair in pairs if hashlib.sha256(pair[1].read_bytes()).hexdigest() == sha256]
    folder, model = fitting[0] if fitting else (None, None)
    if options.data:
        folder = Path(options.data)
    model = named or model
    return Data(folder, model, model in [pair[1] for pair in fitting])


def check_tokenizer(data: Data, config: dict) -> Finding:
    has = "has" if data.same else "has not"
    detail = (
        f"{data.tokenizer or 'none here'} {has} sha256 {config['tokenizer_sha256'][:16]}, "
        "the artifact's; see --tokenizer"
    )
    verdict = FAILED if data.tokenizer else NOT_CHECKABLE
    if data.same:
        verdict = PROVEN
    return Finding(verdict, "tokenizer", detail)


# ---------------------------------------------------------------- score and claim


def check_score(
    model: Callable,
    tokens: np.ndarray,
    tokenizer: Path,
    config: dict,
    options: Options,
    submitted: list[float],
) -> list[Finding]:
    """Bytes, bits per byte with frozen weights, with --ttt adapted ones, and the claim."""
    part = tokens[: options.max_tokens]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    split = Split(part, count_bytes(part, pieces), len(tokens))
    detail = f"of decoded text, {split.byte_count / split.targets:.4f} a token"
    found = [Finding(PROVEN, "bytes", detail, split.byte_count, "bytes")]

    verdict = PROVEN if isinstance(model, Model) else CONSISTENT
    frozen = score(model, split, config, options)
    found.append(measured("val_bpb", "sliding window, float32", frozen, split, verdict))
    if options.device == "cuda":
        rough = score(model, split, config, options, dtype=torch.bfloat16)
        how = "sliding window, bfloat16 autocast"
        found.append(measured("val_bpb bf16", how, rough, split, verdict))
    found += check_adaptation(model, split, config, options, verdict)

    scores = [f.number for f in found if f.check in ("val_bpb", "val_bpb_ttt")]
    doubts = claim_doubts(split, config, options, len(scores) > 1)
    claims = submitted
    if options.claim is not None:
        claims = [options.claim]
        scores = scores[-1:]
    return found + check_claim(claims, scores, doubts, verdict, options.tolerance)


def measured(check: str, how: str, result: Score, split: Split, verdict: str) -> Finding:
    detail = f"{how}, val_loss {result.loss:.6f}; {split.targets:,} tokens, each scored once"
    share = len(split.tokens) / split.whole
    if share < 1:
        detail += f"; PARTIAL: the first {share:.1%} of the split here"
    return Finding(verdict, check, detail, result.bpb, "bits/byte")


def check_adaptation(
    model: Callable, split: Split, config: dict, options: Options, verdict: str
) -> list[Finding]:
    protocol = config["ttt_protocol"]
    if protocol == "train_then_score":
        detail = (
            f"the artifact's test-time training is {protocol}: "
            f"any score made with it is {NOT_LEGAL}"
        )
        return [Finding(FAILED if options.ttt else SUSPICION, "adaptation", detail)]

    if options.ttt and protocol == "score_first":
        learn = learner(model, split, config, options)
        adapted = score(model, split, config, options, learn)
        how = "score-first adaptation replayed"
        return [measured("val_bpb_ttt", how, adapted, split, verdict)]

    if protocol == "off" and not options.ttt:
        return []
    detail = "the artifact stores none" if options.ttt else "score-first, not replayed: add --ttt"
    return [Finding(NOT_CHECKABLE, "adaptation", detail)]


def claim_doubts(split: Split, config: dict, options: Options, adapted: bool) -> tuple[str, str]:
    """Why no verdict on the claim is possible, and why FAILED is not; empty where nothing stands
    against it."""
    partial = "the claim is of the whole split" if len(split.tokens) < split.whole else ""
    if options.claim is not None:
        return partial, ""
    official = config["tokenizer_sha256"].startswith(SP1024_SHA256)
    if official and split.targets // 1024 * 1024 != SP1024_VAL_TOKENS:
        partial = f"the claim is of the challenge's whole split of {SP1024_VAL_TOKENS:,} tokens"
    if config["ttt_protocol"] == "off" or adapted:
        return partial, ""
    return partial, "it may be the score after test-time training"


def check_claim(
    claims: list[float],
    scores: list[float],
    doubts: tuple[str, str],
    verdict: str,
    tolerance: float,
) -> list[Finding]:
    """The closest pair of claim and score."""
    if not claims:
        return []
    claim, bpb = min(product(claims, scores), key=lambda pair: abs(pair[0] - pair[1]))
    same = abs(claim - bpb) <= tolerance
    partial, doubt = doubts
    unsure = partial
    if not same and not partial:
        unsure = doubt
    detail = f"{claim - bpb:+.6f} from {bpb:.6f} here, tolerance {tolerance:g}"
    if unsure:
        detail += f"; {unsure}"
        verdict = NOT_CHECKABLE
    elif not same:
        verdict = FAILED
    return [Finding(verdict, "claim", detail, claim, "bits/byte")]


# ---------------------------------------------------------------- main


def parse(argv: list[str] | None) -> Options:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("verify.py", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("target", help="an artifact.pcll or a record folder")
    add("--code", help="the counted script (default: train_gpt.py beside the artifact, else none)")
    add("--data", help=f"folder with fineweb_val_*.bin (default: {' or '.join(DEFAULT_DATA)})")
    add(
        "--tokenizer",
        help="SentencePiece model (default: the one near the data with the artifact's sha256)",
    )
    add("--claim", type=float, metavar="BPB", help="claimed val_bpb, after adaptation with --ttt")
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="BPB",
        help="between claim and result (%(default)s)",
    )
    add("--max-tokens", type=int, metavar="N", help="score the first N tokens only")
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

    if target.is_dir():
        return check_folder(target, options.against) + check_artifacts(target, options)
    with target.open("rb") as file:
        if file.read(4) != b"PCLL":
            raise UnusableInput(f"{target} is neither a folder nor a PCLL artifact")
    return check_artifact(target, options, [])


def check_artifacts(folder: Path, options: Options) -> list[Finding]:
    """Those of a record folder, whose name goes before each detail."""
    found = []
    for path in sorted(path for path in folder.glob("*.pcll") if path.is_file()):
        for finding in check_artifact(path, options, submitted_scores(folder)):
            found.append(finding._replace(detail=f"{path.name}: {finding.detail}"))
    return found


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    suspect = f", maybe in {options.model}" if options.model else ""
    return report_on(lambda: check(options), options.target, options.json, "verify.py", suspect)


if __name__ == "__main__":
    sys.exit(main())
