"""Checks a Parameter Golf submission without trusting who made it; shares no code with train_gpt.py.

    python verify.py artifact.pcll                 size, integrity, bits per byte, probes of one artifact
    python verify.py records/TRACK/DATE_name       a record folder of any entry: submission.json, logs, code, artifact

Every check ends in a finding with the number behind it:
    PROVEN          recomputed here from the files, by code that does not come from the competitor
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

--json prints one object: schema (1), input (the path), exit_code, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or "")}.
"""

import argparse
import ast
import base64
import hashlib
import importlib.util
import inspect
import json
import lzma
import math
import os
import re
import sys
import textwrap
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import groupby, islice, product
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple, get_type_hints
from unittest import mock

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from decode_artifact import ArtifactError, read_pcll

CAP_BYTES = 16_000_000  # code plus artifact, decimal
TOLERANCE = 0.0005  # bits per byte between a claim, usually computed in bfloat16, and float32 here
BOS = 1  # the id that starts every document
SP1024_SHA256 = "4f5e8adb"  # how the sha256 of the challenge's 1,024-piece tokenizer begins
SP1024_VAL_TOKENS = 62_021_632  # its scored validation tokens, in whole sequences of 1,024
DEFAULT_DATA = (
    "data/datasets/fineweb10B_sp1024",
    "data/demo",
)  # the challenge's folder of shards, the demo's
NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"
UNREADABLE = (
    SyntaxError,
    ValueError,
    IndexError,
    RecursionError,
    MemoryError,
    OSError,
)  # of a program in any state


# ---- Findings and report

PROVEN, CONSISTENT, NOT_CHECKABLE, FAILED = "PROVEN", "CONSISTENT", "NOT CHECKABLE", "FAILED"
SUSPICION = "SUSPICION"
COLOURS = {
    PROVEN: 32,
    CONSISTENT: 36,
    NOT_CHECKABLE: 33,
    SUSPICION: 35,
    FAILED: 31,
}  # in the report's order


class Finding(NamedTuple):
    """One check's outcome. `number` is what the verdict rests on, in `unit`; `line` quotes evidence that is text."""

    verdict: str
    check: str  # a short name: "size", "val_bpb", "seeds"
    detail: str  # one sentence
    number: float | int | None = None
    unit: str = ""  # "bytes", "bits/byte", "s", ...
    line: str = ""  # "train_seed1337.log:1203: final_..._exact val_loss:1.9 val_bpb:1.12"


class UnusableInput(Exception):
    """The input cannot be checked at all; the message is the one sentence the user sees (exit code 2)."""


def clean(text: str, limit: int = 500) -> str:
    """Text from a file, safe on a terminal: one line, printable, at most `limit` characters."""
    text = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def print_report(findings: list[Finding]) -> None:
    """One screen: the findings grouped by verdict, failures last, then the count of each."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    counts = Counter(f.verdict for f in findings)
    for verdict, code in COLOURS.items():
        if counts[verdict]:
            print(f"\033[1;{code}m{verdict}\033[0m" if colour else verdict)
        for f in findings:
            if f.verdict == verdict:
                form = (
                    ","
                    if isinstance(f.number, int)
                    else ".6f"
                    if not f.number or abs(f.number) >= 1e-3
                    else ".1e"
                )
                number = "" if f.number is None else f"{f.number:{form}} {f.unit}"
                text = f"  {f.check:<15} {number:<22} {clean(f.detail)}"
                print(textwrap.fill(text, 110, subsequent_indent=" " * 41))
                print(f"{'':18}> {clean(f.line, 90)}\n" if f.line else "", end="")
    print(
        " · ".join(
            f"{counts[verdict]} {verdict}"
            for verdict in COLOURS
            if counts[verdict] or verdict == FAILED
        )
    )


def say(text: str) -> None:
    """A line of progress on stderr, unless there was one in the last 4 s."""
    if time.monotonic() - say.last >= 4:
        print(text, file=sys.stderr, flush=True)
        say.last = time.monotonic()


say.last = 0.0


# ---- Code size
# What a script pulls in from its own folder counts as code. It is found in the syntax tree, so nothing is run; a call
# whose target is only computed at run time is listed as not checkable.

TEXT_BYTES = 1_000_000  # a larger script, README or submission.json is not read
NOT_CODE = {".bin", ".model", ".vocab", ".pcll"}  # shards, tokenizer, artifact
FILE_CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "exec",
    "eval",
    "run_path",
    "CDLL",
    "spec_from_file_location",
}
MODULE_CALLS = {"import_module", "__import__", "run_module"}
PATH_WORDS = FILE_CALLS | MODULE_CALLS | {  # names that a path may contain and still be constant
    "__file__", "Path", "pathlib", "os", "path", "str", "compile", "read", "parent", "join", "joinpath", "dirname",
    "abspath", "resolve", "with_name", "io", "runpy", "importlib", "util", "ctypes",
}  # fmt: skip


def read_code(script: Path) -> tuple[list[Path], list[str]]:
    """(a script and the files it pulls in from beside it, its calls that may read or run more: "x.py:12 open")."""
    folder, files, computed = script.resolve().parent, [script.resolve()], []
    for file in files:  # grows on the way
        used, unknown = references(file, folder) if file.suffix == ".py" else ([], [])
        computed += unknown
        used = [
            path.resolve() for path in used if os.path.isfile(path) and path.suffix not in NOT_CODE
        ]
        files += [
            path
            for path in dict.fromkeys(used)
            if path.is_relative_to(folder) and path not in files
        ]
    return files, computed


def code_bytes(files: list[Path]) -> tuple[int, int]:
    """(bytes as they lie there, bytes with each file compressed by lzma)."""
    texts = [file.read_bytes() for file in files]
    return sum(map(len, texts)), sum(len(lzma.compress(text)) for text in texts)


def references(file: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """(paths that a Python file imports, opens or runs, which need not exist; its calls whose target is computed)."""
    found, unknown, names = [], [], dict.fromkeys(PATH_WORDS, "")
    if file.stat().st_size > TEXT_BYTES:
        return [], [f"{file.name} as a whole (over {TEXT_BYTES:,} bytes)"]
    try:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                level, module = getattr(node, "level", 0), getattr(node, "module", None) or ""
                base = file.parents[level - 1] if level else folder
                found += [
                    path
                    for name in node.names
                    for path in module_files(f"{module}.{name.name}", base)
                ]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, text = node.targets[0].id, constant_path(node.value, names)
                names[name] = text if name not in names else None  # a name that changes is computed
            elif isinstance(node, ast.Call) and (target := call_target(node)):
                text, call = constant_path(target, names), ast.unparse(node.func).split(".")[-1]
                beside = [
                    (file.parent if "__file__" in ast.unparse(target) else folder) / (text or "")
                ]
                found += module_files(text or "", folder) if call in MODULE_CALLS else beside
                unknown += [f"{file.name}:{node.lineno} {call}"] * (text is None)
    except UNREADABLE as error:
        unknown.append(f"{file.name} as a whole ({type(error).__name__})")
    return found, unknown


def read_text(path: Path | None) -> str:
    """A text file; empty where there is none or it is over TEXT_BYTES."""
    return (
        path.read_bytes().decode("utf-8-sig", "replace")
        if path and path.stat().st_size <= TEXT_BYTES
        else ""
    )


def call_target(call: ast.Call) -> ast.expr | None:
    """The expression that names what a call reads, runs or imports; None for a call that does nothing of the kind."""
    args, dotted = call.args, isinstance(call.func, ast.Attribute)
    name = call.func.attr if dotted else getattr(call.func, "id", "")
    others = [*args[not dotted :], *(keyword.value for keyword in call.keywords)]
    modes = [
        a.value
        for a in others
        if isinstance(a, ast.Constant) and set(str(a.value)) <= set("rwaxbt+")
    ]
    if (
        name == "open"
        and modes
        and not set(modes[0]) & set("r+")
        or name in ("exec", "eval")
        and dotted
    ):
        return None  # it only writes, or is no exec
    if dotted and (
        name in ("read_text", "read_bytes") or name == "open" and len(modes) == len(args)
    ):
        return call.func.value
    position = -1 if name == "spec_from_file_location" else 0
    return args[position] if args and name in FILE_CALLS | MODULE_CALLS else None


def constant_path(node: ast.expr, names: dict[str, str | None]) -> str | None:
    """The path lib/x.py for Path(__file__).parent / "lib" / NAME and the like; None for what is computed."""
    tokens = re.findall(r"'([^'\\]*)'|(\w+)|([^\s./,()])", ast.unparse(node))
    parts = [names.get(word) if word else None if other else text for text, word, other in tokens]
    return None if None in parts else os.path.join("", *parts)


def module_files(name: str, base: Path) -> list[Path]:
    """Where an imported module could lie: a.b as a/__init__.py, a.py, a/b/__init__.py, a/b.py, a/b.*.so, ..."""
    parts = [part for part in name.split(".") if part.isidentifier()]
    stems = [base.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    names = [
        stem.parent / f"{stem.name}{end}"
        for stem in stems
        for end in ("/__init__.py", ".py", ".pyc")
    ]
    return names + [file for stem in stems for file in stem.parent.glob(f"{stem.name}.*so")]


def check_size(artifact: Path, script: Path | None) -> list[Finding]:
    """Code plus artifact against the cap, and the calls whose target is computed."""
    held = artifact.stat().st_size
    files, computed = read_code(script) if script else ([], [])
    raw, compressed = code_bytes(files)
    verdict = FAILED if raw + held > CAP_BYTES else PROVEN if script else NOT_CHECKABLE
    names = " + ".join(file.name for file in files) or "no train_gpt.py here, see --code"
    detail = f"code {raw:,} ({names}; {compressed:,} by lzma) + artifact {held:,}: {CAP_BYTES - raw - held:,} below cap"
    found = [Finding(verdict, "size", f"{detail} of {CAP_BYTES:,}", raw + held, "bytes")]
    detail = f"what these read or run is known only when they run: {', '.join(computed[:12])}"
    return found + [Finding(NOT_CHECKABLE, "code", detail, len(computed), "call(s)")] * bool(
        computed
    )


# ---- Data and byte count


def read_tokens(folder: Path, vocab_size: int) -> np.ndarray:
    """The validation split, uint16 [n >= 2]: all shards fineweb_val_*.bin of a folder in the order of their names."""
    parts = []
    for shard in sorted(folder.glob("fineweb_val_*.bin")):
        header, size = (
            np.fromfile(shard, "<i4", 256),
            shard.stat().st_size,
        )  # magic, version, tokens, zeros
        if (
            len(header) < 256
            or header[:2].tolist() != [20240520, 1]
            or size != 1024 + 2 * int(header[2])
        ):
            raise UnusableInput(f"{shard} is not a whole token shard (magic 20240520, version 1)")
        parts.append(np.fromfile(shard, "<u2", offset=1024))
    tokens = np.concatenate(parts or [np.zeros(0, "<u2")])
    if len(tokens) < 2 or int(tokens.max()) >= vocab_size:
        raise UnusableInput(
            f"the fineweb_val_*.bin in {folder} hold no tokens, or ids of {vocab_size} and above"
        )
    return tokens


def documents(tokens: np.ndarray) -> list[tuple[int, int]]:
    """[a, b) of each document: from one BOS to the next."""
    edges = sorted({0, *np.flatnonzero(tokens == BOS).tolist(), len(tokens)})
    return list(zip(edges, edges[1:], strict=False))


def count_bytes(tokens: np.ndarray, tokenizer: sentencepiece.SentencePieceProcessor) -> int:
    """UTF-8 bytes of the text that the tokens decode to, one document at a time. A byte piece is one byte even where
    the bytes are no valid UTF-8: a letter stands in for it. The decoder leaves out the space before a document."""
    ids = range(tokenizer.vocab_size())
    letter = next(i for i in ids if tokenizer.id_to_piece(i) in set("etaoinsrhldu0123456789"))
    stand_in = np.array([letter if tokenizer.is_byte(i) else i for i in ids])
    return sum(
        len(tokenizer.decode(stand_in[tokens[a:b]].tolist()).encode()) for a, b in documents(tokens)
    )


# ---- Model
# The network written a second time: functions of named tensors in float32.


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def rotate(x: Tensor, dims: int, base: float) -> Tensor:
    """Rotary position embedding on the first `dims` of the last axis of x [B, heads, T, head size]."""
    half, T = dims // 2, x.shape[2]
    frequency = base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = torch.arange(T, dtype=torch.float32, device=x.device)[:, None] * frequency
    a, b, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    return torch.cat(
        [a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin(), rest], -1
    )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention; q [B, H, T, d], k and v [B, KV, T, d], query head h uses key head h // (H / KV)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Model:
    """The network of an artifact: token ids [B, T] in, float32 logits [B, T, vocabulary] out."""

    def __init__(self, config: dict, weights: dict[str, np.ndarray], device: str):
        self.config = config
        self.params = {name: torch.tensor(array, device=device) for name, array in weights.items()}

    def previous(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [B, T, ...] of the position before; zero at the first and, with bos_reset, where a document begins."""
        x = F.pad(x[:, :-1], [0, 0] * (x.dim() - 2) + [1, 0])
        first = (tokens == BOS) & self.config["bos_reset"]
        return x.masked_fill(first.view(*first.shape, *[1] * (x.dim() - 2)), 0)

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [B, T, D]; only the bigram and the smear look at another position here."""
        p, c = self.params, self.config
        x = p["tok_emb"][tokens]
        if c["bigram_buckets"]:
            last = c["bigram_buckets"] - 1
            bucket = ((36313 * tokens) ^ (27191 * self.previous(tokens, tokens))) % last
            bucket[:, 0] = last
            if c["bos_reset"]:
                bucket[tokens == BOS] = last
            x = x + p["bigram.scale"] * F.linear(p["bigram.table"][bucket], p["bigram.proj"])
        x = rms_norm(x)
        if c["smear_gate"]:
            gate = torch.sigmoid(p["smear_gate"])
            x = (1 - gate) * x + gate * self.previous(x, tokens)
        return x

    def attend(self, i: int, h: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """(what layer i's attention adds, its values [B, KV, T, d]) for its normed input h [B, T, D]."""
        prefix, c = f"blocks.{i}.attn.", self.config
        p = {
            name.removeprefix(prefix): value
            for name, value in self.params.items()
            if name.startswith(prefix)
        }
        d = c["model_dim"] // c["num_heads"]
        q, k, v = (F.linear(h, p[name]).unflatten(-1, (-1, d)).transpose(1, 2) for name in "qkv")
        if c["value_residual"] and v_first is not None:
            v = p["value_mix"][0] * v_first + p["value_mix"][1] * v
        q, k = (rotate(rms_norm(x), c["rope_dims"], c["rope_base"]) for x in (q, k))
        y = attention(q * p["q_gain"][:, None, None], k, v)
        if c["gated_attention"]:
            y = y * torch.sigmoid(F.linear(h, p["gate_weight"], p["gate_bias"])).mT[..., None]
        if i >= c["num_layers"] - c["xsa_last_n"]:
            own = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            own = own.repeat_interleave(y.shape[1] // v.shape[1], 1)
            y = y - (y * own).sum(-1, keepdim=True) * own
        return F.linear(y.transpose(1, 2).flatten(2), p["out"]), v

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Logits [B, T - first, V] of the positions from `first` on, for token ids int64 [B, T]."""
        p, c, half = self.params, self.config, self.config["num_layers"] // 2
        x = x0 = self.embed(tokens)
        v_first, skips = None, []
        for i in range(c["num_layers"]):
            if c["unet_skips"] and half <= i < 2 * half:
                x = x + p["skip_weights"][i - half] * skips.pop()
            mix, scale = p[f"blocks.{i}.resid_mix"], 1 / math.sqrt(i + 1) if c["ln_scale"] else 1.0
            x = mix[0] * x + mix[1] * x0
            y, v = self.attend(i, rms_norm(x) * scale, v_first)
            v_first = v if i == 0 else v_first
            x = x + p[f"blocks.{i}.attn_scale"] * y
            up = F.linear(rms_norm(x) * scale, p[f"blocks.{i}.mlp.up"])
            up = torch.where(up < 0, c["mlp_negative_slope"] * up, up).square()
            x = x + p[f"blocks.{i}.mlp_scale"] * F.linear(up, p[f"blocks.{i}.mlp.down"])
            if i < half:
                skips.append(x)
        cap = c["logit_softcap"]
        return cap * torch.tanh(F.linear(rms_norm(x[:, first:]), p["tok_emb"]) / cap)


class TheirModel:
    """GPT of a competitor's file: runs their code. It takes a dataclass of settings or plain arguments, filled by name
    from the artifact's configuration; its forward_logits or forward maps ids [B, T] to logits [B, T, vocabulary]."""

    def __init__(self, file: Path, config: dict, weights: dict[str, np.ndarray], device: str):
        spec = importlib.util.spec_from_file_location("their_model", file)
        module = sys.modules["their_model"] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(file.parent))
        spec.loader.exec_module(module)
        names = list(inspect.signature(module.GPT).parameters)
        settings = get_type_hints(module.GPT.__init__).get(names[0])
        names = [field.name for field in fields(settings)] if is_dataclass(settings) else names
        known = {name: config[name] for name in names if name in config}
        net = module.GPT(settings(**known)) if is_dataclass(settings) else module.GPT(**known)
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.net = net.float().eval().to(device)
        self.params = dict(net.named_parameters())

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        return getattr(self.net, "forward_logits", self.net)(tokens)[:, first:]


# ---- Scoring
# verify.py keeps the loop: a model maps token ids to logits and never holds the target of the position it is asked for.

BATCH_TOKENS = {
    "cpu": 4096,
    "cuda": 131_072,
}  # tokens that go through the network at a time; an eighth to learn


def windows(tokens: np.ndarray, config: dict) -> Iterator[tuple[int, int, int]]:
    """(start, end, first): inputs [start, end) go in, the predictions of inputs [first, end) count; each input once."""
    length, stride, n = config["train_seq_len"], config["eval_stride"], len(tokens) - 1
    for a, b in documents(tokens) if config["eval_doc_reset"] else [(0, n)]:
        first, end, b = a, min(a + length, b, n), min(b, n)
        while first < b:
            yield max(a, end - length), end, first
            first, end = end, min(end + stride, b)


def batches(
    tokens: np.ndarray, config: dict, device: str
) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """(chunk, neighbouring windows of one shape that lie in this chunk)."""
    chunk, most = (
        config["ttt_chunk_tokens"],
        max(1, BATCH_TOKENS[device] // config["train_seq_len"]),
    )
    for key, group in groupby(
        windows(tokens, config), lambda w: ((w[1] - 1) // chunk, w[1] - w[0], w[1] - w[2])
    ):
        while batch := list(islice(group, most)):
            yield key[0], batch


def score(model: Callable, tokens: np.ndarray, config: dict, args: argparse.Namespace, held: int,
          learn: Callable | None = None, dtype: torch.dtype = torch.float32) -> tuple[float, float]:  # fmt: skip
    """(bits a byte, nats a token) of tokens[1:], `held` bytes; learn(chunk, lo, hi) when a chunk's scores are final."""
    n, began, nats, done, last, learned = len(tokens) - 1, time.monotonic(), 0.0, 0, 0, 0
    for chunk, batch in batches(tokens, config, args.device):
        start, _, first = batch[0]
        if learn and chunk != last:
            learn(last, learned, first)
            learned = first
        last = chunk
        inputs = np.stack([tokens[a:b] for a, b, _ in batch]).astype(np.int64)
        targets = np.concatenate([tokens[c + 1 : b + 1] for _, b, c in batch]).astype(np.int64)
        with torch.no_grad(), torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            logits = model(torch.from_numpy(inputs).to(args.device), first - start).float().cpu()
        nats += (
            F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets), reduction="none")
            .double()
            .sum()
            .item()
        )
        done += len(targets)
        left = (time.monotonic() - began) * (n / done - 1)
        say(
            f"{done / n:6.1%} scored, bpb {nats / done / math.log(2) * n / held:.4f}, {left:,.0f} s left"
        )
    return nats / math.log(2) / held, nats / done


def learner(
    model: Callable, tokens: np.ndarray, config: dict, args: argparse.Namespace, total: int
) -> Callable:
    """Score-first test-time training: learn(chunk, lo, hi) trains model.params on inputs [lo, hi), already scored; the
    learning rate follows a cosine over the chunks of the whole split, of `total` tokens."""
    length, size = config["train_seq_len"], config["ttt_batch_seqs"]
    chunks = math.ceil((total - 1) / config["ttt_chunk_tokens"])
    factors = {
        "attn.out": 3.0,
        "mlp.down": 3.0,
        "mlp.up": 0.5,
    }  # of the learning rate, by the end of the name
    groups = [{"params": [p.requires_grad_()], "factor": factors.get(".".join(name.split(".")[-2:]), 1.0)}
              for name, p in model.params.items()]  # fmt: skip
    adamw, rows = (
        config["ttt_optimizer"] == "adamw",
        max(1, BATCH_TOKENS[args.device] // (8 * length)),
    )
    optimizer = (
        torch.optim.AdamW(groups, weight_decay=0.0)
        if adamw
        else torch.optim.SGD(groups, 1e-3, momentum=0.9)
    )

    def learn(chunk: int, lo: int, hi: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = (
                config["ttt_lr"] * group["factor"] * 0.5 * (1 + math.cos(math.pi * chunk / chunks))
            )
        starts = range(lo, hi - length + 1, length)
        for epoch, i in product(range(config["ttt_epochs"]), range(0, len(starts), size)):
            batch = starts[i : i + size]
            optimizer.zero_grad()
            for part in (batch[j : j + rows] for j in range(0, len(batch), rows)):
                say(f"learning from chunk {chunk + 1} of {chunks}, epoch {epoch + 1}")
                block = np.stack([tokens[s : s + length + 1] for s in part]).astype(np.int64)
                block = torch.from_numpy(block).to(args.device)
                logits = model(block[:, :-1].contiguous()).flatten(0, 1).float()
                loss = F.cross_entropy(logits, block[:, 1:].flatten(), reduction="sum")
                (loss / (len(batch) * length)).backward()
            torch.nn.utils.clip_grad_norm_(list(model.params.values()), config["ttt_grad_clip"])
            optimizer.step()

    return learn


# ---- Probes
# Of whatever computes the logits, ours or theirs, on a window of the data.

PROBE_TOKENS = 1024  # length of the probed window, at most
PROBE_SUFFIXES = 8
PROBE_LIMIT = 1e-6  # of a probability, or of a value that enters the first layer


def check_probes(
    model: Callable, tokens: np.ndarray | None, config: dict, args: argparse.Namespace
) -> list[Finding]:
    """Causality, normalisation, determinism, isolation, on the data's first window; random tokens without data."""
    T, vocab, random = (
        min(PROBE_TOKENS, config["train_seq_len"]),
        config["vocab_size"],
        np.random.default_rng(0),
    )
    if T < 2:
        return [Finding(NOT_CHECKABLE, "causality", "windows of one token cannot be probed")]
    held = tokens is not None and len(tokens) >= T
    window = torch.from_numpy(
        tokens[:T].astype(np.int64) if held else random.integers(0, vocab, T)
    ).to(args.device)
    other = (
        window + torch.from_numpy(random.integers(1, vocab, T)).to(args.device)
    ) % vocab  # differs everywhere

    def probabilities(*rows: Tensor) -> Tensor:
        say("probing the network")
        with torch.no_grad():
            return model(torch.stack(rows)).double().softmax(-1)[0]

    base = probabilities(window)
    cuts = [1, T // 2, T - 1, *random.integers(1, T, PROBE_SUFFIXES - 3).tolist()]
    seen = max(
        change(base[:p], probabilities(torch.cat([window[:p], other[p:]]))[:p]) for p in cuts
    )
    again = change(base, probabilities(window))
    beside = change(probabilities(window, other), probabilities(window, other.flip(0)))
    off = (
        change(base.sum(-1), torch.ones_like(base.sum(-1))) if base.shape[-1] == vocab else math.inf
    )
    reset = config["eval_doc_reset"]  # then no window reaches across a document's start
    leak = 0.0 if reset else isolation_leak(model, window, vocab)
    theirs = not isinstance(model, Model)  # may attend without F.scaled_dot_product_attention
    probes = {
        "causality": (seen, FAILED, f"change before {PROBE_SUFFIXES} changed suffixes of {T} tokens"),
        "normalised": (off, FAILED, f"largest |sum - 1| of {base.shape[-1]} probabilities"),
        "determinism": (max(again, beside), FAILED, "change in a second run and beside other rows"),
        "isolation": (leak, NOT_CHECKABLE if theirs else FAILED, "no window crosses a document's start" if reset else
                      "change after a BOS by the token before it, apart from F.scaled_dot_product_attention"),
    }  # fmt: skip
    return [Finding(PROVEN if number <= PROBE_LIMIT else worse, name, f"{detail}, limit {PROBE_LIMIT}", number)
            for name, (number, worse, detail) in probes.items()]  # fmt: skip


def isolation_leak(model: Callable, window: Tensor, vocab: int) -> float:
    """What a token before a BOS changes after it, attention apart: in our network, what enters the first layer; in
    theirs, the logits with an F.scaled_dot_product_attention that returns each position's own value."""
    changed, begin = window.clone(), len(window) // 2
    window[begin] = changed[begin] = BOS
    changed[begin - 1] = (window[begin - 1] + 1) % vocab

    def own_value(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    with torch.no_grad(), mock.patch.object(F, "scaled_dot_product_attention", own_value):
        entered = model.embed if isinstance(model, Model) else model
        return change(entered(window[None])[0, begin:], entered(changed[None])[0, begin:])


def change(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|; infinity where one is NaN."""
    return (a - b).abs().nan_to_num(math.inf).max().item()


# ---- Artifact

FLAG, SIZE, COUNT = (bool, 0, 1), (int, 1, 65536), (int, 0, 2**24)  # (type, lowest, highest)
SCORING = {  # what the loop needs, also of a changed architecture
    "vocab_size": SIZE, "train_seq_len": SIZE, "eval_stride": SIZE, "eval_doc_reset": FLAG, "ttt_batch_seqs": SIZE,
    "ttt_chunk_tokens": (int, 1, 2**31), "ttt_epochs": COUNT, "ttt_lr": (float, 0, 1000),
    "ttt_grad_clip": (float, 1e-9, 1e9), "tokenizer_sha256": (str, "", "~"),
    "ttt_protocol": (str, "", "~"), "ttt_optimizer": (str, "", "~"),
}  # fmt: skip
CONFIG = SCORING | {  # what the network needs
    "num_layers": (int, 1, 256), "model_dim": SIZE, "num_heads": SIZE, "num_kv_heads": SIZE, "mlp_hidden": SIZE,
    "rope_dims": COUNT, "rope_base": (float, 1, 1e9), "logit_softcap": (float, 1e-3, 1e6), "xsa_last_n": COUNT,
    "bigram_buckets": COUNT, "bigram_dim": COUNT, "mlp_negative_slope": (float, -10, 10), "ln_scale": FLAG,
    "smear_gate": FLAG, "value_residual": FLAG, "gated_attention": FLAG, "unet_skips": FLAG, "bos_reset": FLAG,
}  # fmt: skip


def config_problems(c: dict, weights: dict[str, np.ndarray], theirs: bool) -> list[str]:
    """Why a configuration is impossible or does not fit the tensors; of a changed architecture, what scoring needs."""
    found = []
    for name, (kind, low, high) in (SCORING if theirs else CONFIG).items():
        if (
            type(c.get(name)) not in (kind, int if kind is float else kind)
            or not low <= c[name] <= high
        ):
            found.append(
                f"{name} = {c.get(name, 'missing')!r} is no {kind.__name__} from {low} to {high}"
            )
    if found:
        return found
    rules = {
        "eval_stride is above train_seq_len": c["eval_stride"] <= c["train_seq_len"],
        "ttt_protocol is unknown": c["ttt_protocol"] in ("off", "score_first", "train_then_score"),
        "ttt_optimizer is unknown": c["ttt_optimizer"] in ("adamw", "sgd"),
    } | ({} if theirs else {
        "num_heads does not divide model_dim": c["model_dim"] % c["num_heads"] == 0,
        "num_kv_heads does not divide num_heads": c["num_heads"] % c["num_kv_heads"] == 0,
        "rope_dims is odd or above the head size": c["rope_dims"] in range(0, c["model_dim"] // c["num_heads"] + 1, 2),
        "bigram_buckets is 1": c["bigram_buckets"] != 1,
    })  # fmt: skip
    found = [text for text, holds in rules.items() if not holds]
    shapes = {name: array.shape for name, array in weights.items()}
    wanted = shapes if theirs or found else expected_shapes(c)
    found += [f"tensor {name} is not asked for" for name in shapes if name not in wanted]
    return found + [
        f"{n} is {shapes.get(n, 'absent')}, not {s}"
        for n, s in wanted.items()
        if shapes.get(n) != s
    ]


def expected_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a configuration asks for."""
    D, H, hidden, layers = c["model_dim"], c["num_heads"], c["mlp_hidden"], c["num_layers"]
    kv, buckets, wide = D // H * c["num_kv_heads"], c["bigram_buckets"], c["bigram_dim"]
    block = {
        "resid_mix": (2, D), "attn_scale": (D,), "mlp_scale": (D,), "mlp.up": (hidden, D), "mlp.down": (D, hidden),
        "attn.q": (D, D), "attn.k": (kv, D), "attn.v": (kv, D), "attn.out": (D, D), "attn.q_gain": (H,),
    }  # fmt: skip
    block |= {"attn.gate_weight": (H, D), "attn.gate_bias": (H,)} if c["gated_attention"] else {}
    block |= {"attn.value_mix": (2,)} if c["value_residual"] else {}
    shapes = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    shapes.pop("blocks.0.attn.value_mix", None)
    shapes |= (
        {"bigram.table": (buckets, wide), "bigram.proj": (D, wide), "bigram.scale": ()}
        if buckets
        else {}
    )
    shapes |= {"smear_gate": (D,)} if c["smear_gate"] else {}
    shapes |= {"skip_weights": (layers // 2, D)} if c["unet_skips"] and layers > 1 else {}
    return shapes | {"tok_emb": (c["vocab_size"], D)}


def find_data(config: dict, args: argparse.Namespace) -> tuple[Path | None, Path | None, bool]:
    """(folder of shards, tokenizer, whether that has the artifact's sha256): as named, or else a default that has."""
    folders = [Path(folder) for folder in (args.data, *DEFAULT_DATA) if folder]
    pairs = [
        (f, m)
        for f in folders
        for m in [*f.glob("*.model"), *f.parent.parent.glob("tokenizers/*.model")]
    ]
    pairs += [(None, Path(args.tokenizer))] if args.tokenizer else []
    fitting = [
        pair
        for pair in pairs
        if hashlib.sha256(pair[1].read_bytes()).hexdigest() == config["tokenizer_sha256"]
    ]
    folder, model = next(iter(fitting), (None, None))
    model = Path(args.tokenizer) if args.tokenizer else model
    return Path(args.data) if args.data else folder, model, model in [pair[1] for pair in fitting]


def check_artifact(path: Path, args: argparse.Namespace, submitted: list[float]) -> list[Finding]:
    """Every check of one artifact; `submitted` holds the bits per byte that a submission.json claims for it, if any."""
    beside = path.with_name("train_gpt.py")
    script = args.code or args.model or (beside if beside.is_file() else None)
    found = check_size(path, Path(script) if script else None)
    try:
        config, weights = read_pcll(path)
    except ArtifactError as error:
        return [*found, Finding(FAILED, "integrity", str(error))]
    count = sum(array.size for array in weights.values())
    found.append(
        Finding(
            PROVEN, "integrity", f"{len(weights)} tensors, by decode_artifact.py", count, "weights"
        )
    )
    if problems := config_problems(config, weights, args.model is not None):
        return [
            *found,
            Finding(FAILED, "config", "; ".join(problems[:5]), len(problems), "problems"),
        ]
    if args.model:
        model = TheirModel(Path(args.model), config, weights, args.device)
        found.append(
            Finding(
                CONSISTENT,
                "model",
                f"the logits come from their code in {args.model}, the loop is ours",
            )
        )
    else:
        model = Model(config, weights, args.device)
        unknown = (
            ", ".join(name for name in config if name not in CONFIG and name != "preset") or "none"
        )
        detail = f"every tensor has the shape it asks for; settings not used here: {unknown}"
        found.append(Finding(PROVEN, "config", detail, len(weights), "tensors"))
    data, tokenizer, same = find_data(config, args)
    detail = f"{tokenizer or 'none here'} {'has' if same else 'has not'} sha256 {config['tokenizer_sha256'][:16]}"
    verdict = PROVEN if same else FAILED if tokenizer else NOT_CHECKABLE
    found.append(Finding(verdict, "tokenizer", f"{detail}, the artifact's; see --tokenizer"))
    tokens = read_tokens(data, config["vocab_size"]) if data else None
    found += check_probes(model, tokens, config, args)
    if tokens is None or not same:
        return [
            *found,
            Finding(
                NOT_CHECKABLE, "val_bpb", "no validation shards for this tokenizer here; see --data"
            ),
        ]
    return found + check_score(model, tokens, tokenizer, config, args, submitted)


def check_score(model: Callable, tokens: np.ndarray, tokenizer: Path, config: dict, args: argparse.Namespace,
                submitted: list[float]) -> list[Finding]:  # fmt: skip
    """Bytes, bits per byte with frozen weights, with --ttt adapted ones, and the claim."""
    part, protocol = tokens[: args.max_tokens], config["ttt_protocol"]
    held = count_bytes(part, sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)))
    found = [
        Finding(
            PROVEN, "bytes", f"of decoded text, {held / (len(part) - 1):.4f} a token", held, "bytes"
        )
    ]
    verdict, whole = PROVEN if isinstance(model, Model) else CONSISTENT, len(part) == len(tokens)
    extent = (
        "" if whole else f"; PARTIAL: the first {len(part) / len(tokens):.1%} of the split here"
    )

    def measure(
        check: str, how: str, learn: Callable | None = None, dtype: torch.dtype = torch.float32
    ) -> float:
        bpb, loss = score(model, part, config, args, held, learn, dtype)
        detail = f"{how}, val_loss {loss:.6f}; {len(part) - 1:,} tokens, each scored once{extent}"
        found.append(Finding(verdict, check, detail, bpb, "bits/byte"))
        return bpb

    scores = [measure("val_bpb", "sliding window, float32")]
    if args.device == "cuda":
        measure("val_bpb bf16", "sliding window, bfloat16 autocast", dtype=torch.bfloat16)
    if protocol == "train_then_score":
        detail = f"the artifact's test-time training is {protocol}: any score made with it is {NOT_LEGAL}"
        found.append(Finding(FAILED if args.ttt else SUSPICION, "adaptation", detail))
    elif args.ttt and protocol == "score_first":
        learn = learner(model, part, config, args, len(tokens))
        scores.append(measure("val_bpb_ttt", "score-first adaptation replayed", learn))
    elif args.ttt or protocol == "score_first":
        detail = "the artifact stores none" if args.ttt else "score-first, not replayed: add --ttt"
        found.append(Finding(NOT_CHECKABLE, "adaptation", detail))
    official = config["tokenizer_sha256"].startswith(SP1024_SHA256)
    partial = "" if whole else "the claim is of the whole split"
    if args.claim is None and official and (len(part) - 1) // 1024 * 1024 != SP1024_VAL_TOKENS:
        partial = f"the claim is of the challenge's whole split of {SP1024_VAL_TOKENS:,} tokens"
    adapted = args.claim is None and protocol != "off" and len(scores) == 1
    doubt = "it may be the score after test-time training" if adapted else ""
    claims, scores = (submitted, scores) if args.claim is None else ([args.claim], scores[-1:])
    return found + check_claim(claims, scores, partial, doubt, verdict, args.tolerance)


def check_claim(claims: list[float], scores: list[float], partial: str, doubt: str, verdict: str,
                tolerance: float) -> list[Finding]:  # fmt: skip
    """The closest pair of claim and score; `partial` says why no verdict is possible, `doubt` why FAILED is not."""
    if not claims:
        return []
    claim, bpb = min(product(claims, scores), key=lambda pair: abs(pair[0] - pair[1]))
    same = abs(claim - bpb) <= tolerance
    unsure = partial or ("" if same else doubt)
    detail = (
        f"{claim - bpb:+.6f} from {bpb:.6f} here, tolerance {tolerance:g}"
        + f"; {unsure}" * bool(unsure)
    )
    return [
        Finding(
            NOT_CHECKABLE if unsure else verdict if same else FAILED,
            "claim",
            detail,
            claim,
            "bits/byte",
        )
    ]


# ---- Record folder: logs
# A log is read once, line by line. Many open with the script's whole source, which is set aside: it begins at a line
# that only a program has and ends at a rule of '=' or where log lines begin. Nothing of the folder is run or imported.

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 4_000_000  # of a longer log only the start and the end, of this size each, are read
LOG_SUFFIXES = (".log", ".txt", ".out", ".tsv", ".jsonl")
MAX_FILES, MAX_LOGS, MAX_LINES = (
    2_000,
    64,
    200,
)  # files of a folder, logs among them, lines kept of a log and a kind

NUM, BYTES = r"([0-9]{1,12}(?:\.[0-9]{1,15})?)", r"([0-9][0-9,]{0,14})"
SOURCE_BEGINS = re.compile(
    r'import [\w., ]+$|from [\w.]+ import |def \w+\(|class \w+[(:]|if __name__ ?==|"""|#!'
)
SOURCE_ENDS = re.compile(r"={20,}$|logs/|Running Python|Python \d|Hyperparameters|val_bpb:enabled|train_loader:|seed:\d"
                         r"|world_size:\d|model_params:\d|warmup_step:|step:\d|\d+/\d+ (train|val)_loss")  # fmt: skip
BPB = re.compile(
    r"(?:val_loss[\"']?[:=] ?" + NUM + r".{0,100}?)?bpb[\"']? ?[:=]\W{0,20}" + NUM, re.I
)
RUNNING = re.compile(r"step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
                     r"|pre[-_ ]?quant|post[-_ ]?ema", re.I)  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
FACTS = {  # what lines of a log state: a number, with a unit where it is a time
    "stop": re.compile(r"^stopping_early|^step:(\d+)/\1 "),
    "train": re.compile(r"train(?:ing)?_time[:=] ?" + NUM + r" ?(ms|s|min|m)\b"),
    "step": re.compile(r"step_avg[:=] ?" + NUM + r" ?(ms|s)\b"),
    "eval": re.compile(r"(?:eval_time|bpb.{0,100}\b(?:time|elapsed))[:=] ?" + NUM + r" ?(ms|s)\b"),
    "calibration": re.compile(r"(?:gptq|hessian|calib)(?:.{0,200}?\bin |\w{0,20}_time[:=] ?)" + NUM + r" ?(ms|s)\b"
                              r"|calibrat|hessian", re.I),
    "seed": re.compile(r"(?<![\w.])seed[:=] ?([0-9]{1,12})\b"),
    "world_size": re.compile(r"\bworld_size[:=] ?([0-9]{1,6})"),
    "val_tokens": re.compile(r"(?:\bval_tokens[:=] ?|Validation tokens: ?|val_loader:.{0,400}tokens:)" + BYTES),
    "vocab_size": re.compile(r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)([0-9]{3,6})(?![\dB])"),
    "model_bytes": re.compile(r"(?:Serialized model [^:]{1,60}|Artifact): ?" + BYTES + " bytes"),
    "code_bytes": re.compile(r"Code size[^:]{0,60}: ?" + BYTES + " bytes"),
    "total_bytes": re.compile(r"(?:Total submission size[^:]{0,60}: ?|budget: ?)" + BYTES + "(?: bytes|/)"),
    "epochs over the tokens that are scored": re.compile(r"ttt(?!.{0,200}chunk).{0,20}epoch[ :=]*\d+ ?/ ?\d+", re.I),
    "a second pass over scored tokens": re.compile(r"\bpass[ _:=]*[2-9]\b|two[-_ ]pass", re.I),
}  # fmt: skip
LOG_PATTERNS = list(FACTS)[-2:]  # what has invalidated entries before


class Line(NamedTuple):
    """One line of a log that states bits per byte."""

    log: str  # the log's name
    quote: str  # "train_seed1337.log:275: final_exact val_loss:1.9 val_bpb:1.12"
    kind: str  # final, running (of a step, chunk or epoch, or before quantisation), illegal (by its own label)
    loss: float | None  # nats per token
    bpb: float
    digits: int  # decimals of bpb, as printed


class Log:
    """What one log says."""

    def __init__(self, name: str):
        self.name, self.gpu, self.stepped = name, "", False
        self.lines, self.running = (
            deque(maxlen=MAX_LINES),
            deque(maxlen=MAX_LINES),
        )  # kind running apart
        self.facts = {fact: deque(maxlen=MAX_LINES) for fact in FACTS}  # (value, its line)
        self.settings = {}  # name -> value, as printed before the first step
        self.sources = []  # the scripts that it embeds, each a list of lines
        found = re.search(r"seed[-_]?([0-9]{1,12})", Path(name).name)
        self.named_seed = int(found[1]) if found else None

    def last(self, fact: str, default: int | None = None) -> int | None:
        return self.facts[fact][-1][0] if self.facts[fact] else default

    @property
    def seed(self) -> int | None:
        return self.last("seed", self.named_seed)

    @property
    def headline(self) -> Line | None:
        """The last final line; one with both loss and bpb goes before one that only mentions bpb."""
        finals = [line for line in self.lines if line.kind == "final"]
        return max(reversed(finals), key=lambda line: line.loss is not None, default=None)

    def read(self, text: str, number: int) -> None:
        """Takes in what one line says."""
        quote, legal = f"{self.name}:{number}: {text[:160]}", "NOT LEGAL" not in text
        for found in BPB.finditer(text):
            kind = "illegal" if not legal else "running" if RUNNING.search(text) else "final"
            loss, digits = float(found[1]) if found[1] else None, len(found[2].partition(".")[2])
            kept = self.running if kind == "running" else self.lines
            kept.append(Line(self.name, quote, kind, loss, float(found[2]), digits))
            self.stepped = True
        for fact, pattern in FACTS.items():
            if (found := pattern.search(text)) and (legal or fact not in LOG_PATTERNS):
                count, unit = (*found.groups(), None, None)[:2]
                value = (
                    round(float(count) * SECONDS[unit], 6)
                    if unit
                    else int((count or "0").replace(",", ""))
                )
                if (
                    fact != "calibration" or self.facts["stop"]
                ):  # before the stop it is part of the training
                    self.facts[fact].append((value, quote))
        if found := re.search(r"NVIDIA ([A-Z]+ ?\d\w*)", text):
            self.gpu = found[1]
        self.stepped = self.stepped or "train_loss" in text
        if (
            not self.stepped
            and re.match(r"[a-z_]\w*[:=](?!.*\d/\d)", text)
            and len(self.settings) < 1_000
        ):
            self.settings.update(re.findall(r"([a-z_]\w{0,60})[:=] ?([\w.+-]+)", text))


def bounded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, cut at LINE_CHARS; of a long file, its first and its last LOG_BYTES."""
    with path.open("rb") as file:
        size, count = path.stat().st_size, 0
        while block := file.read(LOG_BYTES):
            block += file.readline(LINE_CHARS)  # up to a line's end
            if file.tell() <= LOG_BYTES + LINE_CHARS or file.tell() > size - LOG_BYTES:
                for number, line in enumerate(block.split(b"\n"), count + 1):
                    text = line[:LINE_CHARS].replace(b"\0", b"")  # the zeros are UTF-16's
                    yield number, text.decode("utf-8", "replace").rstrip()
            count += block.count(b"\n")


def read_log(path: Path, name: str) -> Log:
    log, in_source = Log(name), False
    for number, text in bounded_lines(path):
        if in_source and SOURCE_ENDS.match(text):
            in_source = False
        elif not in_source and SOURCE_BEGINS.match(text):
            in_source, log.sources = True, log.sources[-9:] + [[]]
        if not in_source:
            log.read(text.strip(), number)
        elif len(log.sources[-1]) < 10_000:
            log.sources[-1].append(text)
    return log


# ---- Record folder: submission.json


def to_number(value) -> float | None:
    """A finite number, also of text such as "15,990,006"; of a list or map of numbers the mean; else None."""
    if isinstance(value, dict):
        value = value.get("mean", [item for key, item in value.items() if "std" not in key])
    try:
        if isinstance(value, list):
            return fmean(
                None if isinstance(item, list | dict) else to_number(item)
                for item in value[:MAX_LOGS]
            )
        number = float(value.replace(",", "").split()[0] if isinstance(value, str) else value)
        return number if math.isfinite(number) and not isinstance(value, bool) else None
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def claimed_bpb(table: dict) -> float | None:
    names = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")
    return next(
        (number for name in names if (number := to_number(table.get(name))) is not None), None
    )


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds that submission.json names, each with its claimed bits per byte where one is given."""
    claims = {}
    for name in ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed"):
        value = table.get(name)
        rows = value if isinstance(value, list) else [value]
        pairs = [(row.get("seed"), row) if isinstance(row, dict) else (row, None) for row in rows]
        for seed, row in list(value.items() if isinstance(value, dict) else pairs)[:MAX_LOGS]:
            if found := re.fullmatch(r"(?:seed)?[_ ]*([0-9]{1,12})", str(seed)):
                bpb = claimed_bpb(row) if isinstance(row, dict) else to_number(row)
                claims[int(found[1])] = bpb or claims.get(int(found[1]))
    return claims


def read_submission(files: list[Path]) -> tuple[dict, Finding]:
    """The fields of submission.json, or of the first file named alike."""
    named = [path for path in files if re.fullmatch(r"submission.*\.json", path.name)]
    path = min(named, key=lambda path: path.name != "submission.json", default=None)
    try:
        table = json.loads(read_text(path))
        if isinstance(table, dict):
            return table, Finding(
                PROVEN, "submission.json", f"{path.name} parses", len(table), "fields"
            )
        problem = f"it holds a {type(table).__name__}, not fields"
    except UNREADABLE as error:
        problem = error
    return {}, Finding(
        FAILED,
        "submission.json",
        f"{path.name} cannot be used: {problem}" if path else "is missing",
    )


def submitted_scores(folder: Path) -> list[float]:
    """What a folder's submission.json claims for an artifact: each seed's val_bpb, or the headline alone where there
    are no seeds or it is not their mean; [] where there is none."""
    table, _ = read_submission([path for path in folder.glob("submission*.json") if path.is_file()])
    headline, seeds = claimed_bpb(table), [bpb for bpb in claimed_seeds(table).values() if bpb]
    if headline and (not seeds or abs(headline - sum(seeds) / len(seeds)) > 1e-3):
        return [headline]
    return seeds


def agree(claim: float, measured: float, digits: int, units: float = 1.0) -> bool:
    """Equal in the decimals that both are stated to, give or take one unit there: people round, and people cut."""
    stated = max(2, len(f"{claim:.12f}".rstrip("0").partition(".")[2]))
    return abs(claim - measured) <= 1.01 * units * 10.0 ** -min(stated, digits)


def explanations(logs: list[Log], seeds: dict) -> Iterator[tuple[str, float, list[Line]]]:
    """The ways in which a val_bpb comes from logs, the usual ones first: (words, value, the lines that make it)."""
    groups = [logs, [log for log in logs if log.seed in seeds]]  # then those that are named alike
    groups += [list(group) for _, group in groupby(logs, lambda log: re.sub(r"\d+", "", log.name))]
    for group in groups:
        chosen = {"final": [log.headline for log in group if log.headline]}
        for log in group:
            finals = [line for line in log.lines if line.kind == "final"]
            for label, line in {
                re.split("val_loss|val_bpb", x.quote.partition(": ")[2])[0]: x for x in finals
            }.items():
                chosen.setdefault(f"'{label.strip()}'", []).append(line)
        for words, lines in chosen.items():
            if len(lines) > 1:
                yield (
                    f"the mean of the last {words} lines of {len(lines)} logs",
                    fmean(x.bpb for x in lines),
                    lines,
                )
    stated = [line for log in logs for line in log.lines]
    found = [
        next((x for x in stated if bpb and agree(bpb, x.bpb, x.digits)), None)
        for bpb in seeds.values()
    ]
    if len(found) > 1 and None not in found:
        yield "the mean of its seed results, each of them in a log", fmean(seeds.values()), found
    singles = [
        x for log in logs for x in [log.headline, *reversed(log.lines), *reversed(log.running)] if x
    ]
    for line in sorted(
        (x for x in singles if x.kind != "illegal"), key=lambda x: x.kind
    ):  # final ones first
        yield f"a {line.kind} line of one of {len(logs)} logs", line.bpb, [line]


def check_val_bpb(table: dict, logs: list[Log], files: list[Path]) -> tuple[Finding, list[Line]]:
    """submission.json's val_bpb against the logs; also the lines that it rests on, for the checks that follow."""
    claim, seeds, heads = (
        claimed_bpb(table),
        claimed_seeds(table),
        [log.headline for log in logs if log.headline],
    )
    lines = [line for log in logs for line in [*log.lines, *log.running]]
    bpbs = [line.bpb for line in lines if line.kind != "illegal"]
    if claim is None or not bpbs:
        detail = (
            "submission.json states no val_bpb"
            if claim is None
            else "no log states a legal val_bpb"
        )
        return Finding(
            NOT_CHECKABLE, "val_bpb", f"{detail}{taken(heads)}", claim, "bits/byte"
        ), heads
    for units, (words, value, used) in product((0.5, 1.0), explanations(logs, seeds)):
        if agree(claim, value, min(line.digits for line in used), units):
            verdict = CONSISTENT if used[0].kind == "final" else SUSPICION
            detail = f"submission.json's {claim:g} is {words}{taken(used)}"
            return Finding(verdict, "val_bpb", detail, value, "bits/byte", used[0].quote), used
    illegal = [x.quote for x in lines if x.kind == "illegal" and agree(claim, x.bpb, x.digits)]
    unlogged = sorted(set(seeds) - {log.seed for log in logs})
    reports = [
        path
        for path in files
        if path.suffix != ".py" and not re.match("readme|submission", path.name, re.I)
    ]
    elsewhere = any(
        path.stat().st_size > TEXT_BYTES or f"{claim:.4f}" in read_text(path) for path in reports
    )
    below = claim < min(bpbs) and heads and not unlogged and not elsewhere
    words = f"no line and no mean of the logs, whose lowest is {min(bpbs):g}"
    words = "of a line that its log labels NOT LEGAL" if illegal else words
    words += f"; seeds {unlogged[:5]} have no log" if unlogged else ""
    detail = f"submission.json's {claim:g} is {words}{taken(heads)}"
    verdict = FAILED if illegal or below else SUSPICION
    return Finding(verdict, "val_bpb", detail, claim, "bits/byte", "".join(illegal[:1])), heads


def taken(lines: list[Line]) -> str:
    return "".join(
        f"; {line.quote.split(': ')[0]} {line.bpb:g}" for line in lines[:6]
    ) + "; ..." * (len(lines) > 6)


# ---- Record folder: the checks

SPLIT_BYTES = 151_080_000  # UTF-8 text of the whole validation split, whatever the tokenizer
SPLIT_TOKENS = {
    1024: SP1024_VAL_TOKENS,
    4096: 45_508_608,
    8192: 40_540_160,
}  # by vocabulary, of the challenge
LIMIT_S = 600.0  # for training, and again for evaluation
RECORD_NATS, RECORD_P = 0.005, 0.01  # what a record must beat the best by, and how surely
PER_RUN = re.compile(r"seed|run_?id|path|dir$|file|^(local_)?rank|time$|port$|host|date|warmup_step$|bytes|shard"
                     r"|checkpoint|resume")  # fmt: skip


def check_folder(folder: Path, args: argparse.Namespace) -> list[Finding]:
    """Checks what a record folder holds, short of its artifact: files, submission.json, logs, seeds, significance."""
    files = list_files(folder)
    logs, code = (
        read_logs(folder, files),
        [path for path in files if path.suffix == ".py" and path.stat().st_size],
    )
    script = max(
        code,
        key=lambda p: (p.name == "train_gpt.py", p.name[:5] == "train", p.stat().st_size),
        default=None,
    )
    readme = next((path for path in files if path.name.lower().startswith("readme")), None)
    lacking = (
        ["README.md"] * (readme is None)
        + ["a train log"] * (not logs)
        + ["a script"] * (script is None)
    )
    detail = (
        f"lacks {', '.join(lacking)}" if lacking else f"README, {script.name}, {len(logs)} logs"
    )
    table, parsed = read_submission(files)
    score, lines = check_val_bpb(table, logs, files)
    used = [
        log for log in logs if log.name in {line.log for line in lines}
    ] or logs  # those that val_bpb rests on
    track = f"{folder.resolve().parent.name} {table.get('track', '')}".lower()
    record = "10min" in track and "non" not in track
    return [
        Finding(FAILED if lacking else PROVEN, "files", detail, len(files), "files"), parsed, score,
        check_readme(claimed_bpb(table), readme), check_log_size(used, script),
        *check_claimed_bytes(table, logs, files), *check_times(used, record),
        check_split(lines, used, record), check_seeds(claimed_seeds(table), logs, used, files), check_settings(used),
        check_embedded(used, code), *check_against(lines, args.against), *check_patterns(used, script, code),
    ]  # fmt: skip


def list_files(folder: Path) -> list[Path]:
    """At most MAX_FILES of the folder's regular files, hidden ones apart, those nearest the top first."""
    found = (path for path in folder.rglob("*") if path.is_file())
    found = (
        path
        for path in found
        if not re.search(r"(^|/)(\.|__\w+__/)", str(path.relative_to(folder)))
    )
    return sorted(islice(found, MAX_FILES), key=lambda path: (len(path.parts), str(path)))


def read_logs(folder: Path, files: list[Path]) -> list[Log]:
    """The files that read like logs, without copies of one another."""
    named = [
        path for path in files if path.suffix in LOG_SUFFIXES and path.name != "requirements.txt"
    ]
    logs = {}
    for path in sorted(named, key=lambda p: ("seed" not in p.name, str(p)))[:MAX_LOGS]:
        log = read_log(path, str(path.relative_to(folder)))
        stated = [*log.lines, *log.running]
        if stated or log.facts["train"] or log.facts["eval"]:
            logs.setdefault((log.seed, *(line.quote.partition(": ")[2] for line in stated)), log)
    return list(logs.values())


def check_readme(claim: float | None, readme: Path | None) -> Finding:
    text = read_text(readme)
    stated = list(re.finditer(r"(?<![\d.])\d\.\d{3,12}(?!\d)", text))
    if claim is None or not stated:
        return Finding(
            NOT_CHECKABLE,
            "README",
            "README or submission.json states no val_bpb",
            claim,
            "bits/byte",
        )
    found = next((x for x in stated if agree(claim, float(x[0]), len(x[0]) - 2)), None)
    line = f"{readme.name}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]}" if found else ""
    detail = (
        "states submission.json's val_bpb"
        if found
        else "none of its numbers is submission.json's val_bpb"
    )
    return Finding(CONSISTENT if found else SUSPICION, "README", detail, claim, "bits/byte", line)


def check_log_size(logs: list[Log], script: Path | None) -> Finding:
    """The logs' largest total against the cap and the files; FAILED only if compressing the code cannot save it."""
    sized = [log for log in logs if log.last("total_bytes") or log.last("model_bytes")]
    files, computed = read_code(script) if script else ([], [])
    if not sized or not files or max(path.stat().st_size for path in files) > TEXT_BYTES:
        return Finding(
            NOT_CHECKABLE,
            "size",
            "no log states a size, or no script of usual size is here",
            None,
            "bytes",
        )
    raw, packed = code_bytes(files)
    log = max(sized, key=lambda log: log.last("total_bytes") or log.last("model_bytes"))
    counted, model = (
        log.last("code_bytes"),
        min((size for size, _ in log.facts["model_bytes"]), default=0),
    )
    total = log.last("total_bytes") or model + raw
    left_out = (
        ", ".join(path.name for path in files[1:9]) if counted == script.stat().st_size else ""
    )
    detail = f"largest total of {len(sized)} logs, cap {CAP_BYTES:,}; model {model:,}; code {raw:,}, {packed:,} by lzma"
    detail += ", more by a computed name" * bool(computed) + f", {counted or 'none'} logged"
    detail += f"; not counted: {left_out}" * bool(left_out)
    least = model + min(
        packed * 9 // 10, packed if counted is None else counted
    )  # there are better compressors
    verdict = (
        FAILED
        if model and least > CAP_BYTES
        else SUSPICION
        if total > CAP_BYTES or left_out
        else CONSISTENT
    )
    return Finding(verdict, "size", detail, total, "bytes", log.name)


def check_claimed_bytes(table: dict, logs: list[Log], files: list[Path]) -> list[Finding]:
    """submission.json's total against the logs and the cap, and each artifact file against the logs."""
    models = [size for log in logs for size, _ in log.facts["model_bytes"]]
    totals = [log.last("total_bytes") for log in logs if log.last("total_bytes")]
    codes = [path.stat().st_size for path in files if path.suffix == ".py"]
    names = (
        "bytes_total",
        "total_bytes",
        "artifact_bytes_max",
        "artifact_bytes",
        "artifact_size_bytes",
    )
    claim = next(
        (int(number) for name in names if (number := to_number(table.get(name))) is not None), None
    )
    sizes = [
        *models,
        *(size for log in logs for size, _ in log.facts["total_bytes"]),
        round(fmean(totals or [0])),
    ]
    verdict = CONSISTENT
    if claim is None or claim <= CAP_BYTES and not totals:
        verdict = NOT_CHECKABLE
    elif claim > CAP_BYTES:  # by less than the code, compression may help
        verdict = FAILED if claim > CAP_BYTES + sum(codes) else SUSPICION
    elif claim < max(totals) and claim not in [size + own for size in sizes for own in (0, *codes)]:
        verdict = SUSPICION
    detail = f"submission.json's, cap {CAP_BYTES:,}; the logs' totals go up to {max(totals, default=0):,}"
    found = [Finding(verdict, "bytes_total", detail, claim, "bytes")]
    for path in [path for path in files if path.suffix == ".pcll"][:8]:
        size, detail = (
            path.stat().st_size,
            f"of {path.name}, against the model sizes that the logs state",
        )
        verdict = NOT_CHECKABLE if not models else PROVEN if size in models else FAILED
        found.append(Finding(verdict, "artifact bytes", detail, size, "bytes"))
    return found


def check_times(logs: list[Log], record: bool) -> list[Finding]:
    """Hardware, training, calibration after it and evaluation; a limit binds in the record track, on 8 H100."""
    worlds, gpus = (
        sorted({log.last("world_size") for log in logs} - {None}),
        sorted({log.gpu for log in logs} - {""}),
    )
    usual = worlds == [8] and gpus in ([], ["H100"])
    verdict = NOT_CHECKABLE if not worlds else CONSISTENT if usual or not record else SUSPICION
    detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
    found = [Finding(verdict, "hardware", detail, worlds[-1] if worlds else None, "processes")]
    binds = (
        f"limit {LIMIT_S:g} s" if record else f"the limit of {LIMIT_S:g} s is the record track's"
    )
    for name, check in (("train", "training time"), ("eval", "evaluation time")):
        timed = [(*max(log.facts[name]), log) for log in logs if log.facts[name]]
        seconds, line, log = max(timed, key=lambda entry: entry[0], default=(0.0, "", Log("")))
        slack = max(1.0, log.last("step") or 0.0) if name == "train" else 0.0
        counts = (
            name == "train" or log.headline and f"{log.headline.bpb:.3f}" in line
        )  # a diagnostic may take longer
        over = FAILED if log.last("world_size") == 8 and log.gpu in ("", "H100") else SUSPICION
        over = over if record and counts else NOT_CHECKABLE
        verdict = (
            CONSISTENT if 0 < seconds <= LIMIT_S + slack else over if seconds else NOT_CHECKABLE
        )
        detail = f"the slowest log's; {binds}{' and a step' * (slack > 0)}"
        found.append(Finding(verdict, check, detail, seconds or None, "s", line))
        if name == "train" and log.facts["calibration"]:
            extra, line = max(log.facts["calibration"])
            own = any(
                re.search("self|autoreg|generat", quote) for _, quote in log.facts["calibration"]
            )
            fits = own or seconds + extra <= LIMIT_S + slack * (extra > 0)
            verdict = CONSISTENT if fits else SUSPICION if record else NOT_CHECKABLE
            detail = f"calibration after {seconds:.1f} s of training{', on text of its own' * own}; {binds}"
            found.append(Finding(verdict, "calibration", detail, extra or None, "s", line))
    return found


def check_split(lines: list[Line], logs: list[Log], record: bool) -> Finding:
    """val_tokens x (val_loss / ln 2) / val_bpb is the size of the scored text: 151.08 MB under any tokenizer."""
    log = logs[0] if logs else Log("")
    tokens, vocab = log.last("val_tokens"), log.last("vocab_size")
    if vocab is None:
        vocab = next(
            (v for v, count in SPLIT_TOKENS.items() if tokens and abs(tokens / count - 1) < 0.002),
            None,
        )
    whole = SPLIT_TOKENS.get(vocab)
    ratios = [
        x.loss / math.log(2) / x.bpb for x in [*lines, *log.lines, *log.running] if x.loss and x.bpb
    ]
    if not lines or not lines[0].loss or not lines[0].bpb or not (tokens or whole):
        return Finding(
            NOT_CHECKABLE, "split", "needs val_loss, val_bpb, and val_tokens or a known vocabulary"
        )
    held, part_of = (
        round((tokens or whole) * ratios[0]),
        tokens / whole if tokens and whole else None,
    )
    off = abs(held / SPLIT_BYTES - 1)
    alike = len(ratios) > 2 and all(abs(ratio / ratios[0] - 1) < 0.005 for ratio in ratios)
    miscounted = part_of and abs(part_of - 1) < 0.002 and off > 0.01 and alike
    part = part_of and part_of < 0.99 and abs(ratios[0] * whole / SPLIT_BYTES - 1) < 0.03
    detail = f"{tokens or whole:,} tokens{'' if tokens else ' (not logged)'} of {ratios[0]:.4f} bytes, by val_loss / "
    detail += f"val_bpb; the whole split has {SPLIT_BYTES:,}"
    detail += (
        "; its tokens, miscounted or not all scored"
        if miscounted
        else "; a part of it"
        if part
        else ""
    )
    verdict = (
        CONSISTENT if off <= 0.005 else FAILED if record and (miscounted or part) else SUSPICION
    )
    return Finding(verdict, "split", detail, held, "bytes", lines[0].quote)


def check_seeds(claimed: dict, logs: list[Log], used: list[Log], files: list[Path]) -> Finding:
    seeds = sorted((log.seed for log in used), key=str)
    unlogged = sorted(set(claimed) - {log.seed for log in logs})
    misnamed = [log.name for log in logs if log.named_seed not in (None, log.seed)]
    elsewhere = any(
        re.search(rf"(?<!\d){seed}(?!\d)", path.name) for seed in unlogged for path in files
    )
    count, verdict, note = len(set(seeds) - {None}), CONSISTENT, ""
    if misnamed:
        verdict, note = SUSPICION, f"; {misnamed[0]} logs another seed than its name"
    elif not seeds or None in [log.seed for log in logs]:
        verdict, note = NOT_CHECKABLE, "; a log states none"
    elif unlogged:  # with as many logs as seeds one may be mistyped
        verdict = FAILED if len(claimed) > len(logs) and not elsewhere else SUSPICION
        note = f"; submission.json also names {unlogged[:8]}"
    elif count < len(seeds):
        verdict, note = SUSPICION, "; one of them twice"
    return Finding(
        verdict, "seeds", f"val_bpb rests on logs of seeds {seeds}{note}", count, "seeds"
    )


def check_settings(logs: list[Log]) -> Finding:
    shared = sorted(set.intersection(*[set(log.settings) for log in logs])) if logs else []
    values = {
        name: {log.settings[name]: 1 for log in logs} for name in shared if not PER_RUN.search(name)
    }
    if len(logs) < 2 or not values:
        return Finding(
            NOT_CHECKABLE, "settings", "fewer than two logs to compare, or no settings in them"
        )
    changed = [f"{name} {' / '.join(seen)}" for name, seen in values.items() if len(seen) > 1]
    detail = (
        f"differ: {'; '.join(changed[:8])}"
        if changed
        else f"{len(values)} are the same in {len(logs)} logs"
    )
    return Finding(
        SUSPICION if changed else CONSISTENT, "settings", detail, len(changed), "differences"
    )


def check_embedded(logs: list[Log], code: list[Path]) -> Finding:
    """The script that each log embeds against those in the folder, comments and layout aside."""
    texts, checked = [[line.rstrip() for line in read_text(path).split("\n")] for path in code], 0
    own = [(code_shape(text), set(text)) for text in texts]
    for log in logs:
        sources = [
            (shape, set(text))
            for text in log.sources
            if len(text) > 20 and (shape := code_shape(text))
        ]
        if own and sources and not {shape for shape, _ in own} & {shape for shape, _ in sources}:
            differ = min(len(mine ^ theirs) for _, mine in own for _, theirs in sources)
            detail = f"{log.name} embeds a script that is not in the folder; lines that differ from the closest"
            return Finding(SUSPICION, "script", detail, differ, "lines")
        checked += bool(own and sources)
    if not checked:
        return Finding(NOT_CHECKABLE, "script", "no log embeds the whole of its script")
    return Finding(
        PROVEN,
        "script",
        f"{checked} of {len(logs)} logs embed a script of the folder",
        checked,
        "logs",
    )


def code_shape(lines: list[str]) -> str | None:
    """A program without its comments and layout; None if it does not parse."""
    with suppress(*UNREADABLE):
        return ast.dump(ast.parse("\n".join(lines)))


def check_against(lines: list[Line], against: str | None) -> list[Finding]:
    """Whether our scores are lower than theirs by RECORD_NATS at p < RECORD_P, in nats per token of our tokenizer."""
    theirs = [to_number(text) for text in (against or "1").split(",")]
    if not all(bpb and 0 < bpb < 100 for bpb in theirs):
        raise UnusableInput(
            f"--against takes bits per byte, one or several with commas, not {clean(against, 40)}"
        )
    finals = [line for line in lines if line.kind == "final"]
    if not finals or not against:
        return (
            [Finding(NOT_CHECKABLE, "significance", "no final line with val_bpb", None, "nats")]
            if against
            else []
        )
    ratios = [line.loss / line.bpb for line in finals if line.loss and line.bpb]
    nats = fmean(
        ratios or [math.log(2) * SPLIT_BYTES / SP1024_VAL_TOKENS]
    )  # a token, per bit a byte
    ours, theirs = [line.bpb * nats for line in finals], [bpb * nats for bpb in theirs]
    gain, p = fmean(theirs) - fmean(ours), welch(theirs, ours, RECORD_NATS)
    stated = (
        "one score or equal scores show none" if p is None else f"p = {p:.3g} (Welch, one-sided)"
    )
    detail = f"nats a token {'better' if gain >= 0 else 'worse'}, mean of {len(ours)} against {len(theirs)}; a record "
    detail += f"needs {RECORD_NATS} at p < {RECORD_P}: {stated}; {nats:.4f} nats a bit per byte"
    verdict = (
        FAILED
        if gain < RECORD_NATS
        else NOT_CHECKABLE
        if p is None
        else CONSISTENT
        if p < RECORD_P
        else FAILED
    )
    return [Finding(verdict, "significance", detail, gain, "nats")]


def welch(a: list[float], b: list[float], margin: float) -> float | None:
    """One-sided p of mean(a) - mean(b) <= margin, by Welch's t-test; a list of one value counts as exact."""
    parts = [
        (variance(values) / len(values), len(values) - 1) for values in (a, b) if len(values) > 1
    ]
    total, squares = (
        sum(part for part, _ in parts),
        sum(part * part / freedom for part, freedom in parts),
    )
    if len(b) < 2 or squares == 0:
        return None
    t = (fmean(a) - fmean(b) - margin) / math.sqrt(total)
    tail = student_tail(abs(t), total**2 / squares)
    return tail if t > 0 else 1 - tail


def student_tail(t: float, freedom: float) -> float:
    """P(T > t >= 0) of Student's t: the integral of sin(x)^(freedom - 1) up to atan(sqrt(freedom) / t), in its form
    x = y^4 that is smooth at 0, by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    y, end = (nodes + 1) / 2, math.atan2(math.sqrt(freedom), t)
    area = end * (weights @ (np.sin(end * y**4) ** (freedom - 1) * 2 * y**3))
    return (
        area
        * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
        / math.sqrt(math.pi)
    )


# ---- Record folder: what has invalidated entries before

CODE_PATTERNS = {  # looked for in each statement, or in the condition of an if or while
    "picks by the validation score": re.compile(
        r"\b\w*(bpb|nll|val_loss)\b[^<>]{0,60}<=? \(?(best|selected|min)_?\w*"
    ),
    "scores in the last of several epochs": re.compile(r"epoch\w* == .{0,40}epochs - 1"),
    "scores tokens in a second pass": re.compile(
        r"\b(two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\("
    ),
    "hash keyed on the target": re.compile(
        r"^(full_(key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(tgt|target)\w*"
    ),
    "validation tokens in calibration": re.compile(
        r"(hessian|calib|gptq)\w*\([^)]*\bval_(tokens|data|loader)\b"
    ),
    "downloads": re.compile(
        r"\b(urlopen|urlretrieve|\w+_download|load_dataset|requests\.get)\(|\b(curl|wget) "
    ),
}
VAL_TOKENS = re.compile(r"\bval_(tokens|data|seqs)\b")
SCORED = re.compile("byte|bpb|scored")


def check_patterns(logs: list[Log], script: Path | None, code: list[Path]) -> list[Finding]:
    """Never FAILED: each names its line, for a person to judge."""
    hits = {what: log.facts[what][0][1] for log in logs for what in LOG_PATTERNS if log.facts[what]}
    unread = [] if script else ["no script is here"]
    for path in [path for path in code if path == script or re.match("train|eval", path.name)][:8]:
        try:
            for what, number, text in code_patterns(ast.parse(unpack(read_text(path)))):
                hits.setdefault(what, f"{path.name}:{number}: {text[:160]}")
        except UNREADABLE as error:
            unread.append(f"{path.name} cannot be read as Python ({type(error).__name__})")
    found = [Finding(SUSPICION, "pattern", what, None, "", line) for what, line in hits.items()]
    if unread:
        return [*found, Finding(NOT_CHECKABLE, "pattern", "; ".join(unread))]
    return found or [
        Finding(
            CONSISTENT, "pattern", "nothing like what has invalidated entries before", 0, "hits"
        )
    ]


def code_patterns(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(what, line number, text) for each place that looks like something that has invalidated entries."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    texts = {name: ast.unparse(node) for name, node in functions.items()}
    for name, node in functions.items():
        bodies = {loop.lineno: ast.unparse(loop) for loop in outer_loops(node)}
        learning = [
            line
            for line, body in bodies.items()
            if ".backward(" in body
            and ".step(" in body
            and VAL_TOKENS.search(body)
            and not SCORED.search(body)
        ]
        callers = (
            [other for other, text in texts.items() if other != name and f"{name}(" in text]
            if learning
            else []
        )
        if not any(
            "eval" in caller or "score" in caller for caller in callers
        ):  # those adapt on what they scored
            for line in learning:
                yield (
                    "trains on validation tokens without scoring them first",
                    line,
                    f"loop in {name}",
                )
    for node in ast.walk(tree):
        test, plain = (
            getattr(node, "test", None),
            isinstance(node, ast.stmt) and not hasattr(node, "body"),
        )
        if (
            test is not None or plain and not isinstance(getattr(node, "value", None), ast.Constant)
        ):  # no docstrings
            text = ast.unparse(test or node)[:LINE_CHARS]
            yield from (
                (what, node.lineno, text)
                for what, pattern in CODE_PATTERNS.items()
                if pattern.search(text)
            )


def outer_loops(node: ast.AST) -> list[ast.For | ast.While]:
    """The loops of a function that lie in no other loop."""
    inner = [
        child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef)
    ]
    return [
        loop
        for x in inner
        for loop in ([x] if isinstance(x, ast.For | ast.While) else outer_loops(x))
    ]


def unpack(text: str) -> str:
    """The program inside exec(lzma.decompress(b85decode("..."))), as late entries pack it; else the program itself."""
    raw = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}
    packed = re.findall(r"['\"]([^'\"\s\\]{1000,})['\"]", text)[:3]
    for blob, decode, form in product(
        packed, (base64.b85decode, base64.b64decode), ({"memlimit": 1 << 26}, raw)
    ):
        with suppress(ValueError, lzma.LZMAError):
            return lzma.LZMADecompressor(**form).decompress(decode(blob), TEXT_BYTES).decode()
    return text


# ---- Main


def parse(argv: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("verify.py", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("target", help="an artifact.pcll or a record folder")
    add("--code", help="the counted script (default: train_gpt.py beside the artifact, else here)")
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
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[Finding]:
    """All findings on args.target; UnusableInput where nothing can be checked."""
    target = Path(args.target)
    if args.model and not args.trust_code:
        raise UnusableInput(
            f"--model runs the code in {args.model}; add --trust-code if you have read it"
        )
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UnusableInput("--max-tokens must be at least 2")
    if target.is_dir():
        found = check_folder(target, args)
        for artifact in sorted(path for path in target.glob("*.pcll") if path.is_file()):
            several = check_artifact(artifact, args, submitted_scores(target))
            found += [f._replace(detail=f"{artifact.name}: {f.detail}") for f in several]
        return found
    with target.open("rb") as file:
        if file.read(4) != b"PCLL":
            raise UnusableInput(f"{target} is neither a folder nor a PCLL artifact")
    return check_artifact(target, args, [])


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    sys.stdout.reconfigure(errors="replace")
    warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in their strings
    say.last = time.monotonic()
    try:
        found = check(args)
        code = int(any(f.verdict == FAILED for f in found))
        if args.json:  # a number that JSON cannot hold (NaN, infinity) becomes null
            rows = [
                f._asdict() | {"number": f.number if math.isfinite(f.number or 0) else None}
                for f in found
            ]
            print(
                json.dumps(
                    {"schema": 1, "input": args.target, "exit_code": code, "findings": rows},
                    indent=1,
                )
            )
        else:
            print_report(found)
        return code
    except UnusableInput as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or args.target}: {error.strerror or error}"
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # no memory, their code, ...
        problem = f"stopped by {type(error).__name__} {error}" + (
            f", maybe in {args.model}" if args.model else ""
        )
    print(f"verify.py: {clean(problem)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
