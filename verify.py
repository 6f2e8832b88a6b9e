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

In this order: findings and report, code size, data and byte count, model, scoring, adaptation replay, probes,
artifact, record folder, main.
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
import shutil
import sys
import textwrap
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache, partial
from itertools import groupby, islice, product
from pathlib import Path
from typing import NamedTuple, get_type_hints

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
DEFAULT_DATA = ("data/datasets/fineweb10B_sp1024", "data/demo")  # the challenge's folder of shards, the demo's


# ---------------------------------------------------------------------------------------------------------------------
# Findings and report

PROVEN, CONSISTENT, NOT_CHECKABLE, FAILED = "PROVEN", "CONSISTENT", "NOT CHECKABLE", "FAILED"
SUSPICION = "SUSPICION"  # never fails a run
COLOURS = {PROVEN: 32, CONSISTENT: 36, NOT_CHECKABLE: 33, SUSPICION: 35, FAILED: 31}  # in the report's order


@dataclass
class Finding:
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


def show_number(number: float | int | None, unit: str) -> str:
    if number is None:
        return ""
    if isinstance(number, int):
        return f"{number:,} {unit}"
    return f"{number:.6f} {unit}" if abs(number) >= 1e-3 else f"{number:.1e} {unit}" if number else f"0 {unit}"


def print_report(findings: list[Finding]) -> None:
    """One screen: the findings grouped by verdict, failures last, then the count of each."""
    width = min(120, max(60, shutil.get_terminal_size((110, 24)).columns))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for verdict, code in COLOURS.items():
        group = [f for f in findings if f.verdict == verdict]
        if group:
            print(f"\033[1;{code}m{verdict}\033[0m" if colour else verdict)
        for f in group:
            text = f"  {f.check:<15} {show_number(f.number, f.unit):<22} {clean(f.detail)}"
            print(textwrap.fill(text, width, subsequent_indent=" " * 41))
            if f.line:
                print(f"{'':18}> {clean(f.line, width - 20)}")
    counts = Counter(f.verdict for f in findings)
    print(" · ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS if counts[verdict] or verdict == FAILED))


def print_json(target: str, findings: list[Finding]) -> None:
    """The schema that --help states; a number that JSON cannot hold (NaN, infinity) becomes null."""
    rows = [asdict(f) for f in findings]
    for row in rows:
        if row["number"] is not None and not math.isfinite(row["number"]):
            row["number"] = None
    print(json.dumps({"schema": 1, "input": target, "exit_code": exit_code(findings), "findings": rows}, indent=1))


def say(text: str) -> None:
    """A line of progress on stderr, unless there was one in the last 4 s."""
    if time.monotonic() - say.last >= 4:
        print(text, file=sys.stderr, flush=True)
        say.last = time.monotonic()


say.last = 0.0


def exit_code(findings: list[Finding]) -> int:
    return int(any(f.verdict == FAILED for f in findings))


# ---------------------------------------------------------------------------------------------------------------------
# Code size
# What a script pulls in from its own folder counts as code. It is found in the syntax tree, so nothing is run; a call
# whose target is only computed at run time is listed as not checkable.

NOT_CODE = {".bin", ".model", ".vocab", ".pcll"}  # shards, tokenizer, artifact
FILE_CALLS = {"open", "exec", "eval", "run_path", "CDLL", "load_library", "spec_from_file_location"}
MODULE_CALLS = {"import_module", "__import__", "run_module"}
PATH_WORDS = {  # names and attributes that a path may contain and still be constant
    "__file__", "Path", "pathlib", "os", "path", "str", "open", "compile", "read", "read_text", "read_bytes", "parent",
    "join", "joinpath", "dirname", "abspath", "resolve", "with_name",
}  # fmt: skip


def read_code(script: Path) -> tuple[list[Path], list[str]]:
    """(a script and the files it pulls in from beside it, its calls that may read or run more: "x.py:12 open")."""
    folder, files, computed, queue = script.resolve().parent, [], [], [script.resolve()]
    while queue:
        file = queue.pop()
        if file not in files:
            files.append(file)
            used, unknown = references(file, folder) if file.suffix == ".py" else ([], [])
            queue += used
            computed += unknown
    return files, computed


def code_bytes(files: list[Path]) -> tuple[int, int]:
    """(bytes as they lie there, bytes with each file compressed by lzma)."""
    texts = [file.read_bytes() for file in files]
    return sum(map(len, texts)), sum(len(lzma.compress(text)) for text in texts)


def references(file: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """(the files below `folder` that a Python file imports, opens or runs; its calls whose target is computed)."""
    found, unknown, names = [], [], dict.fromkeys(PATH_WORDS, "")
    try:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                level, module = getattr(node, "level", 0), getattr(node, "module", None) or ""
                base = file.parents[level - 1] if level else folder
                found += [path for name in node.names for path in module_files(f"{module}.{name.name}", base)]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, text = node.targets[0].id, constant_path(node.value, names)
                names[name] = text if name not in names else None  # a name that changes is computed
            elif isinstance(node, ast.Call) and (target := call_target(node)):
                text, call = constant_path(target, names), ast.unparse(node.func).split(".")[-1]
                if text is None:
                    unknown.append(f"{file.name}:{node.lineno} {call}")
                elif call in MODULE_CALLS:
                    found += module_files(text, folder)
                else:
                    found.append((file.parent if "__file__" in ast.unparse(target) else folder) / text)
        found = [path.resolve() for path in found if path.is_file()]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError, OSError) as error:
        found = []
        unknown.append(f"{file.name} as a whole ({type(error).__name__})")
    return [path for path in found if path.is_relative_to(folder) and path.suffix not in NOT_CODE], unknown


def call_target(call: ast.Call) -> ast.expr | None:
    """The expression that names what a call reads, runs or imports; None for a call that does nothing of the kind."""
    func, args, dotted = call.func, call.args, isinstance(call.func, ast.Attribute)
    name = func.attr if dotted else getattr(func, "id", "")
    texts = [a.value for a in [*args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    modes = [text for text in texts if isinstance(text, str) and set(text) <= set("rwaxbt+")]
    if name == "open" and modes and not set(modes[0]) & set("r+"):
        return None  # only written
    if dotted and (name in ("read_text", "read_bytes") or name == "open" and len(modes) == len(args)):
        return func.value
    if not args or name in ("exec", "eval") and (dotted or texts):
        return None
    return args[-1 if name == "spec_from_file_location" else 0] if name in FILE_CALLS | MODULE_CALLS else None


def constant_path(node: ast.AST, names: dict[str, str | None]) -> str | None:
    """The path lib/x.py for Path(__file__).parent / "lib" / NAME and the like; None for what is computed."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and "\0" not in node.value else None
    if isinstance(node, ast.Name):
        return names.get(node.id)
    division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    if not (division or isinstance(node, ast.Call) or isinstance(node, ast.Attribute) and node.attr in PATH_WORDS):
        return None
    parts = [constant_path(child, names) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return None if None in parts else os.path.join("", *parts)


def module_files(name: str, base: Path) -> list[Path]:
    """Where an imported module could lie: a.b as a/__init__.py, a/b.py, a/b/__init__.py, a/b.*.so, ..."""
    files, path = [], base
    for part in filter(str.isidentifier, name.split(".")):
        files += [path / part / "__init__.py", path / f"{part}.py", path / f"{part}.pyc", *path.glob(f"{part}.*so")]
        path = path / part
    return files


def check_size(artifact: Path, script: Path | None) -> list[Finding]:
    """Code plus artifact against the cap, and the calls whose target is computed."""
    held = artifact.stat().st_size
    if script is None:
        verdict = FAILED if held > CAP_BYTES else NOT_CHECKABLE
        return [Finding(verdict, "size", "the artifact alone: no train_gpt.py here (--code)", held, "bytes")]
    files, computed = read_code(script)
    raw, compressed = code_bytes(files)
    detail = (
        f"code {raw:,} ({' + '.join(file.name for file in files)}; {compressed:,} by lzma) + artifact {held:,}: "
        f"{CAP_BYTES - raw - held:,} below the cap of {CAP_BYTES:,}"
    )
    found = [Finding(FAILED if raw + held > CAP_BYTES else PROVEN, "size", detail, raw + held, "bytes")]
    if computed:
        detail = f"what these read or run is known only when they run: {', '.join(computed[:12])}"
        found.append(Finding(NOT_CHECKABLE, "code", detail + ", ..." * (len(computed) > 12), len(computed), "call(s)"))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Data and byte count

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER = 20240520, 1, 256  # header: int32 words


def read_shard(path: Path) -> np.ndarray:
    """The tokens of a shard, uint16 [n], mapped from the file; UnusableInput if it is not a whole shard."""
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", SHARD_HEADER)
    if len(header) < SHARD_HEADER or header[0] != SHARD_MAGIC or header[1] != SHARD_VERSION:
        raise UnusableInput(f"{path} is not a token shard (magic {SHARD_MAGIC}, version {SHARD_VERSION})")
    if header[2] <= 0 or size != 4 * SHARD_HEADER + 2 * int(header[2]):
        raise UnusableInput(f"{path} states {header[2]} tokens and has {size} bytes")
    return np.memmap(path, "<u2", "r", 4 * SHARD_HEADER)


def read_tokens(folder: Path, vocab_size: int) -> np.ndarray:
    """The validation split, uint16 [n >= 2]: all shards fineweb_val_*.bin of a folder in the order of their names."""
    shards = sorted(folder.glob("fineweb_val_*.bin"))
    if not shards:
        raise UnusableInput(f"no fineweb_val_*.bin in {folder}")
    tokens = np.concatenate([read_shard(shard) for shard in shards])
    if len(tokens) < 2:
        raise UnusableInput(f"{folder} holds a single token")
    if int(tokens.max()) >= vocab_size:
        raise UnusableInput(f"{folder} holds ids up to {tokens.max()}, the artifact's vocabulary is {vocab_size}")
    return tokens


def documents(tokens: np.ndarray) -> list[tuple[int, int]]:
    """[a, b) of each document: from one BOS to the next."""
    starts = np.flatnonzero(tokens == BOS)
    edges = sorted({0, *starts.tolist(), len(tokens)})
    return list(zip(edges, edges[1:], strict=False))


def count_bytes(tokens: np.ndarray, tokenizer: sentencepiece.SentencePieceProcessor) -> int:
    """UTF-8 bytes of the text that the tokens decode to, one document at a time.

    A byte piece is one byte even where the bytes are no valid UTF-8: before decoding it is replaced by a letter. The
    space at a document's start belongs to SentencePiece, not to the text, and its decoder leaves it out.
    """
    ids = range(tokenizer.vocab_size())
    letter = next((i for i in ids if tokenizer.id_to_piece(i) in set("etaoinsrhldu0123456789")), None)
    if letter is None:
        raise UnusableInput("the tokenizer has no one-letter piece, so its byte pieces cannot be counted")
    stand_in = np.array([letter if tokenizer.is_byte(i) else i for i in ids])
    return sum(len(tokenizer.decode(stand_in[tokens[a:b]].tolist()).encode()) for a, b in documents(tokens))


def count_bytes_by_table(tokens: np.ndarray, tokenizer: sentencepiece.SentencePieceProcessor) -> int:
    """The challenge's rule: a piece's bytes and its leading space, unless a control, unknown or unused id precedes."""
    ids = range(tokenizer.vocab_size())
    outside = np.array([tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i) for i in ids])
    pieces = ["" if outside[i] else "x" if tokenizer.is_byte(i) else tokenizer.id_to_piece(i) for i in ids]
    sizes = np.array([len(piece.removeprefix("▁").encode()) for piece in pieces])
    spaces, after = np.array([piece.startswith("▁") for piece in pieces]), tokens[1:]
    inside = after[~outside[tokens[:-1]]]
    return int(np.bincount(after, minlength=len(ids)) @ sizes + np.bincount(inside, minlength=len(ids)) @ spaces)


# ---------------------------------------------------------------------------------------------------------------------
# Model
# The network written a second time: functions of named tensors in float32, attention spelled out.

EPSILON = torch.finfo(torch.float32).eps
QUERY_BLOCK = 256  # queries that attend at a time; bounds the memory of the scores


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def rotate(x: Tensor, dims: int, base: float) -> Tensor:
    """Rotary position embedding on the first `dims` of the last axis of x [B, heads, T, head size]."""
    half, T = dims // 2, x.shape[2]
    frequency = base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = torch.arange(T, dtype=torch.float32, device=x.device)[:, None] * frequency
    a, b, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    return torch.cat([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin(), rest], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention; q [B, H, T, d], k and v [B, KV, T, d], query head h uses key head h // (H / KV)."""
    B, H, T, d = q.shape
    q = q.view(B, k.shape[1], -1, T, d) / math.sqrt(d)
    outputs = []
    for lo in range(0, T, QUERY_BLOCK):
        hi = min(lo + QUERY_BLOCK, T)
        scores = q[..., lo:hi, :] @ k[:, :, None, :hi].mT
        later = torch.arange(hi, device=q.device) > torch.arange(lo, hi, device=q.device)[:, None]
        outputs.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, :, None, :hi])
    return torch.cat(outputs, -2).view(B, H, T, d)


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
        p = {name.removeprefix(prefix): value for name, value in self.params.items() if name.startswith(prefix)}
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


# ---------------------------------------------------------------------------------------------------------------------
# Scoring
# verify.py keeps the loop: a model maps token ids to logits and never holds the target of the position it is asked for.

BATCH_TOKENS = {"cpu": 4096, "cuda": 131_072}  # tokens that go through the network at a time; an eighth to learn


class Score(NamedTuple):
    bpb: float  # bits a byte
    loss: float  # nats a token


def windows(tokens: np.ndarray, config: dict) -> Iterator[tuple[int, int, int]]:
    """(start, end, first): inputs [start, end) go in, the predictions of inputs [first, end) count; each input once."""
    length, stride, n = config["train_seq_len"], config["eval_stride"], len(tokens) - 1
    for a, b in documents(tokens) if config["eval_doc_reset"] else [(0, n)]:
        first, end, b = a, min(a + length, b, n), min(b, n)
        while first < b:
            yield max(a, end - length), end, first
            first, end = end, min(end + stride, b)


def batches(tokens: np.ndarray, config: dict, device: str) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """(chunk, neighbouring windows of one shape that lie in this chunk)."""
    chunk = config["ttt_chunk_tokens"]
    alike = groupby(windows(tokens, config), lambda w: ((w[1] - 1) // chunk, w[1] - w[0], w[1] - w[2]))
    for (number, length, _), group in alike:
        while batch := list(islice(group, max(1, BATCH_TOKENS[device] // length))):
            yield number, batch


def score(model: Callable, tokens: np.ndarray, config: dict, args: argparse.Namespace, held: int,
          learn: Callable | None = None, dtype: torch.dtype = torch.float32) -> Score:  # fmt: skip
    """Scores tokens[1:], `held` bytes of text; learn(chunk, lo, hi) comes after a chunk's scores are final."""
    n, began, nats, done, chunk, learned = len(tokens) - 1, time.monotonic(), 0.0, 0, None, 0
    for number, batch in batches(tokens, config, args.device):
        start, end, first = batch[0]
        if learn and chunk not in (None, number):
            learn(chunk, learned, first)
            learned = first
        chunk = number
        inputs = np.stack([tokens[a:b] for a, b, _ in batch]).astype(np.int64)
        targets = np.concatenate([tokens[c + 1 : b + 1] for _, b, c in batch]).astype(np.int64)
        with torch.no_grad(), torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            logits = model(torch.from_numpy(inputs).to(args.device), first - start).float().cpu()
        nats += F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets), reduction="none").double().sum().item()
        done += len(targets)
        left = (time.monotonic() - began) * (n / done - 1)
        say(f"{done / n:6.1%} scored, bpb {nats / done / math.log(2) * n / held:.4f}, {left:,.0f} s left")
    return Score(nats / math.log(2) / held, nats / done)


# ---------------------------------------------------------------------------------------------------------------------
# Adaptation replay
# Score-first test-time training: a chunk's weights are frozen while it is scored, then learn from it.


def learner(model: Callable, tokens: np.ndarray, config: dict, args: argparse.Namespace, total: int) -> Callable:
    """learn(chunk, lo, hi): trains model.params on inputs [lo, hi); `total` tokens are in the whole split."""
    length, chunks = config["train_seq_len"], math.ceil((total - 1) / config["ttt_chunk_tokens"])
    groups = [{"params": [p.requires_grad_()], "factor": lr_factor(name)} for name, p in model.params.items()]
    params = list(model.params.values())
    rows = max(1, BATCH_TOKENS[args.device] // (8 * length))
    adamw = config["ttt_optimizer"] == "adamw"
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0) if adamw else torch.optim.SGD(groups, 1e-3, momentum=0.9)

    def step(starts: list[int], where: str) -> None:
        optimizer.zero_grad()
        for i in range(0, len(starts), rows):
            say(f"learning from {where}")
            block = np.stack([tokens[s : s + length + 1] for s in starts[i : i + rows]]).astype(np.int64)
            block = torch.from_numpy(block).to(args.device)
            logits = model(block[:, :-1].contiguous())
            loss = F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten(), reduction="sum")
            (loss / (len(starts) * length)).backward()
        torch.nn.utils.clip_grad_norm_(params, config["ttt_grad_clip"])
        optimizer.step()

    def learn(chunk: int, lo: int, hi: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = config["ttt_lr"] * group["factor"] * 0.5 * (1 + math.cos(math.pi * chunk / chunks))
        starts = list(range(lo, hi - length + 1, length))
        for epoch in range(config["ttt_epochs"]):
            for i in range(0, len(starts), config["ttt_batch_seqs"]):
                step(starts[i : i + config["ttt_batch_seqs"]], f"chunk {chunk + 1} of {chunks}, epoch {epoch + 1}")

    return learn


def lr_factor(name: str) -> float:
    return 3.0 if name.endswith(("attn.out", "mlp.down")) else 0.5 if name.endswith("mlp.up") else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Probes
# Of whatever computes the logits, ours or theirs, on a window of the data.

PROBE_TOKENS = 1024  # length of the probed window, at most
PROBE_SUFFIXES = 8
PROBE_LIMIT = 1e-6  # of a probability, or of a value that enters the first layer


def probe(model: Callable, window: Tensor, vocab: int) -> list[Finding]:
    """Causality, normalisation and determinism on a window of token ids [T >= 2]."""
    T, draw = len(window), torch.Generator().manual_seed(0)
    other = (window + torch.randint(1, vocab, (T,), generator=draw).to(window.device)) % vocab  # differs everywhere

    def probabilities(*rows: Tensor) -> Tensor:
        say("probing the network")
        with torch.no_grad():
            return model(torch.stack(rows)).double().softmax(-1)[0]

    base, seen = probabilities(window), 0.0
    for p in [1, T // 2, T - 1, *torch.randint(1, T, (PROBE_SUFFIXES - 3,), generator=draw).tolist()]:
        seen = max(seen, change(base[:p], probabilities(torch.cat([window[:p], other[p:]]))[:p]))
    again = change(base, probabilities(window))
    beside = change(probabilities(window, other), probabilities(window, other.flip(0)))
    off = (base.sum(-1) - 1).abs().max().item() if base.shape[-1] == vocab else math.inf
    return [
        within(seen, "causality", f"change before {PROBE_SUFFIXES} changed suffixes of {T} tokens"),
        within(off, "normalised", f"largest |sum - 1| of {base.shape[-1]} probabilities"),
        within(max(again, beside), "determinism", "change in a second run and beside other rows"),
    ]


def probe_isolation(model: Callable, window: Tensor, vocab: int) -> Finding:
    """Does anything but attention look across a BOS? Changes the token before the one at T // 2, of token ids [T].

    In our network that shows in what enters the first layer. In theirs F.scaled_dot_product_attention is replaced by
    one that returns each position's own value, so that only other paths between positions are left.
    """
    changed, begin = window.clone(), len(window) // 2
    window[begin] = changed[begin] = BOS
    changed[begin - 1] = (window[begin - 1] + 1) % vocab
    ours, attention_calls, original = isinstance(model, Model), [], F.scaled_dot_product_attention

    def own_value(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        attention_calls.append(query.shape)
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1)

    try:
        F.scaled_dot_product_attention = own_value
        with torch.no_grad():
            before, after = ((model.embed if ours else model)(row[None])[0, begin:] for row in (window, changed))
    finally:
        F.scaled_dot_product_attention = original
    leak, detail = change(before, after), "change after a BOS by the token before it, attention apart"
    if leak <= PROBE_LIMIT or ours:
        return within(leak, "isolation", detail)
    verdict = SUSPICION if attention_calls else NOT_CHECKABLE
    return Finding(verdict, "isolation", f"{detail}, unless they attend without F.scaled_dot_product_attention", leak)


def change(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|; infinity where one is NaN."""
    return (a - b).abs().nan_to_num(math.inf).max().item()


def within(number: float, check: str, detail: str) -> Finding:
    return Finding(PROVEN if number <= PROBE_LIMIT else FAILED, check, f"{detail}, limit {PROBE_LIMIT}", number)


# ---------------------------------------------------------------------------------------------------------------------
# Artifact

CONFIG = {  # name: (type, lowest, highest)
    "vocab_size": (int, 2, 65536), "num_layers": (int, 1, 256), "model_dim": (int, 2, 16384),
    "num_heads": (int, 1, 1024), "num_kv_heads": (int, 1, 1024), "mlp_hidden": (int, 1, 65536),
    "rope_dims": (int, 0, 16384), "rope_base": (float, 1, 1e9), "logit_softcap": (float, 1e-3, 1e6),
    "xsa_last_n": (int, 0, 256), "bigram_buckets": (int, 0, 2**24), "bigram_dim": (int, 0, 16384),
    "mlp_negative_slope": (float, -10, 10), "ln_scale": (bool, 0, 1), "smear_gate": (bool, 0, 1),
    "value_residual": (bool, 0, 1), "gated_attention": (bool, 0, 1), "unet_skips": (bool, 0, 1),
    "bos_reset": (bool, 0, 1),
}  # fmt: skip
SCORING = {
    "vocab_size": (int, 2, 65536), "train_seq_len": (int, 1, 65536), "eval_stride": (int, 1, 65536),
    "eval_doc_reset": (bool, 0, 1), "ttt_protocol": (str, "", "~"), "ttt_optimizer": (str, "", "~"),
    "ttt_chunk_tokens": (int, 1, 2**31), "ttt_epochs": (int, 0, 1000), "ttt_lr": (float, 0, 1000),
    "ttt_batch_seqs": (int, 1, 65536), "ttt_grad_clip": (float, 1e-9, 1e9), "tokenizer_sha256": (str, "", "~"),
}  # fmt: skip
NOT_LEGAL = "NOT LEGAL (trained on the tokens it scores)"


def config_problems(c: dict, weights: dict[str, np.ndarray], theirs: bool) -> list[str]:
    """Why a configuration is impossible or does not fit the tensors; of a changed architecture, what scoring needs."""
    found = []
    for name, (kind, low, high) in (SCORING if theirs else CONFIG | SCORING).items():
        kinds = (int, float) if kind is float else (kind,)
        if name not in c:
            found.append(f"{name} is missing")
        elif type(c[name]) not in kinds or not low <= c[name] <= high:
            found.append(f"{name} = {c[name]!r} is no {kind.__name__} from {low} to {high}")
    if found:
        return found
    rules = {
        "eval_stride is above train_seq_len": c["eval_stride"] <= c["train_seq_len"],
        "ttt_protocol is unknown": c["ttt_protocol"] in ("off", "score_first", "train_then_score"),
        "ttt_optimizer is unknown": c["ttt_optimizer"] in ("adamw", "sgd"),
    }
    if not theirs:
        head = c["model_dim"] // c["num_heads"]
        rules |= {
            "num_heads does not divide model_dim": c["model_dim"] % c["num_heads"] == 0,
            "num_kv_heads does not divide num_heads": c["num_heads"] % c["num_kv_heads"] == 0,
            "rope_dims is odd or above the head size": c["rope_dims"] in range(0, head + 1, 2),
            "bigram_buckets is 1": c["bigram_buckets"] != 1,
        }
    found = [text for text, holds in rules.items() if not holds]
    if theirs or found:
        return found
    shapes, wanted = {name: array.shape for name, array in weights.items()}, expected_shapes(c)
    found = [f"tensor {name} is not asked for" for name in shapes if name not in wanted]
    return found + [f"{n} is {shapes.get(n, 'absent')}, not {s}" for n, s in wanted.items() if shapes.get(n) != s]


def expected_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a configuration asks for."""
    D, H, hidden = c["model_dim"], c["num_heads"], c["mlp_hidden"]
    kv = D // H * c["num_kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {"tok_emb": (c["vocab_size"], D)}
    if c["bigram_buckets"]:
        wide = c["bigram_dim"]
        shapes |= {"bigram.table": (c["bigram_buckets"], wide), "bigram.proj": (D, wide), "bigram.scale": ()}
    if c["smear_gate"]:
        shapes["smear_gate"] = (D,)
    if c["unet_skips"] and c["num_layers"] > 1:
        shapes["skip_weights"] = (c["num_layers"] // 2, D)
    for i in range(c["num_layers"]):
        block = {"resid_mix": (2, D), "attn_scale": (D,), "mlp_scale": (D,)}
        block |= {"attn.q": (D, D), "attn.k": (kv, D), "attn.v": (kv, D), "attn.out": (D, D), "attn.q_gain": (H,)}
        block |= {"mlp.up": (hidden, D), "mlp.down": (D, hidden)}
        if c["gated_attention"]:
            block |= {"attn.gate_weight": (H, D), "attn.gate_bias": (H,)}
        if c["value_residual"] and i:
            block["attn.value_mix"] = (2,)
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


class TheirModel:
    """GPT of a competitor's file, filled with the artifact's tensors. Making and calling it runs their code.

    GPT takes a dataclass of settings first or plain arguments; either is filled by name from the artifact's
    configuration. Its forward_logits or forward maps token ids [B, T] to logits [B, T, vocabulary].
    """

    def __init__(self, file: Path, config: dict, weights: dict[str, np.ndarray], device: str):
        spec = importlib.util.spec_from_file_location("their_model", file)
        module = sys.modules["their_model"] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(file.parent))
        spec.loader.exec_module(module)
        names = list(inspect.signature(module.GPT).parameters)
        settings = get_type_hints(module.GPT.__init__).get(names[0])
        if is_dataclass(settings):
            net = module.GPT(settings(**{f.name: config[f.name] for f in fields(settings) if f.name in config}))
        else:
            net = module.GPT(**{name: config[name] for name in names if name in config})
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.net = net.float().eval().to(device)
        self.params = dict(net.named_parameters())

    def __call__(self, tokens: Tensor, first: int = 0) -> Tensor:
        logits = getattr(self.net, "forward_logits", self.net)(tokens)
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(f"logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}")
        return logits[:, first:]


def find_data(config: dict, args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """(folder of shards, tokenizer): as named, or else a default with the right sha256; None where there is none."""

    def near(folder: Path) -> Path | None:
        models = [*folder.glob("*.model"), *folder.parent.parent.glob("tokenizers/*.model")]
        return next((model for model in models if sha256(model) == config["tokenizer_sha256"]), None)

    defaults = [Path(folder) for folder in DEFAULT_DATA]
    data = Path(args.data) if args.data else next(filter(near, defaults), None)
    found = filter(None, map(near, [data, *defaults] if data else defaults))
    return data, Path(args.tokenizer) if args.tokenizer else next(found, None)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_tokenizer(tokenizer: Path | None, config: dict) -> Finding:
    wanted = config["tokenizer_sha256"]
    if tokenizer is None:
        return Finding(NOT_CHECKABLE, "tokenizer", f"none here has sha256 {wanted[:16]}; see --tokenizer")
    same = sha256(tokenizer) == wanted
    detail = f"{tokenizer} {'has' if same else 'does not have'} the artifact's sha256 {wanted[:16]}"
    return Finding(PROVEN if same else FAILED, "tokenizer", detail)


def check_artifact(path: Path, args: argparse.Namespace, submitted: list[float]) -> list[Finding]:
    """Every check of one artifact; `submitted` holds the bits per byte that a submission.json claims for it, if any."""
    beside = [p for p in (path.with_name("train_gpt.py"), Path("train_gpt.py")) if p.is_file()]
    found = check_size(path, Path(args.code or args.model or beside[0]) if args.code or args.model or beside else None)
    try:
        config, weights = read_pcll(path)
    except ArtifactError as error:
        return [*found, Finding(FAILED, "integrity", str(error))]
    count = sum(array.size for array in weights.values())
    found.append(Finding(PROVEN, "integrity", f"{len(weights)} tensors, by decode_artifact.py", count, "weights"))
    if problems := config_problems(config, weights, args.model is not None):
        return [*found, Finding(FAILED, "config", "; ".join(problems[:5]), len(problems), "problems")]
    if args.model:
        model = TheirModel(Path(args.model), config, weights, args.device)
        found.append(Finding(CONSISTENT, "model", f"the logits come from their code in {args.model}, the loop is ours"))
    else:
        model = Model(config, weights, args.device)
        unknown = [name for name in config if name not in {"preset": ()} | CONFIG | SCORING]
        detail = f"every tensor has the shape it asks for; settings not used here: {', '.join(unknown) or 'none'}"
        found.append(Finding(PROVEN, "config", detail, len(weights), "tensors"))
    data, tokenizer = find_data(config, args)
    found.append(check_tokenizer(tokenizer, config))
    tokens = read_tokens(data, config["vocab_size"]) if data else None
    usable = tokens is not None and found[-1].verdict == PROVEN
    found += check_probes(model, tokens, config, args)
    if not usable:
        return [*found, Finding(NOT_CHECKABLE, "val_bpb", "no validation shards for this tokenizer here; see --data")]
    return found + check_score(model, tokens, tokenizer, config, args, submitted)


def check_probes(model: Callable, tokens: np.ndarray | None, config: dict, args: argparse.Namespace) -> list[Finding]:
    """The probes, on the data's first window, or on random tokens where there is no data."""
    length, vocab = min(PROBE_TOKENS, config["train_seq_len"]), config["vocab_size"]
    if length < 2:
        return [Finding(NOT_CHECKABLE, "causality", "windows of one token cannot be probed")]
    random = np.random.default_rng(0).integers(0, vocab, length)
    window = random if tokens is None or len(tokens) < length else tokens[:length].astype(np.int64)
    window = torch.from_numpy(window).to(args.device)
    found = probe(model, window, vocab)
    if config["eval_doc_reset"]:
        return [*found, Finding(PROVEN, "isolation", "no window reaches across a document's start")]
    return [*found, probe_isolation(model, window, vocab)]


def check_score(model: Callable, tokens: np.ndarray, tokenizer: Path, config: dict, args: argparse.Namespace,
                submitted: list[float]) -> list[Finding]:  # fmt: skip
    """Bytes, bits per byte with frozen weights, with --ttt adapted ones, and the claim."""
    part = tokens[: args.max_tokens]
    found, held = check_bytes(part, tokenizer)
    doubt = "the challenge's table rule counts other bytes" if len(found) > 1 else ""
    whole = len(part) == len(tokens)
    official = config["tokenizer_sha256"].startswith(SP1024_SHA256)
    full = whole and (not official or (len(part) - 1) // 1024 * 1024 == SP1024_VAL_TOKENS)
    extent = f"{len(part) - 1:,} tokens, each scored once"
    if not whole:
        extent += f"; PARTIAL: the first {len(part) / len(tokens):.1%} of the split here"
    elif not full:
        extent += f"; the challenge's whole split has {SP1024_VAL_TOKENS:,}"
    verdict, protocol = PROVEN if isinstance(model, Model) else CONSISTENT, config["ttt_protocol"]

    def measure(check: str, how: str, learn: Callable | None = None, dtype: torch.dtype = torch.float32) -> Score:
        result = score(model, part, config, args, held, learn, dtype)
        found.append(Finding(verdict, check, f"{how}, val_loss {result.loss:.6f}; {extent}", result.bpb, "bits/byte"))
        return result

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
    if args.claim is not None:
        partial = "" if whole else "the claim is of the whole split"
        found.append(check_claim([args.claim], scores[-1:], partial, doubt, verdict, args.tolerance))
    elif submitted:
        partial = "" if full else "the claim is of the challenge's whole split"
        if protocol != "off" and len(scores) == 1:
            doubt = "it may be the score after test-time training, " + ("--ttt" if "first" in protocol else NOT_LEGAL)
        found.append(check_claim(submitted, scores, partial, doubt, verdict, args.tolerance))
    return found


def check_bytes(tokens: np.ndarray, tokenizer: Path) -> tuple[list[Finding], int]:
    """(findings, bytes of the text); a second finding where the challenge's table rule counts differently."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    except (RuntimeError, OSError) as error:
        raise UnusableInput(f"{tokenizer} is no SentencePiece model") from error
    if pieces.vocab_size() <= int(tokens.max()):
        raise UnusableInput(f"{tokenizer} has {pieces.vocab_size()} pieces, the shards hold id {tokens.max()}")
    held, table = count_bytes(tokens, pieces), count_bytes_by_table(tokens, pieces)
    if held == 0:
        raise UnusableInput("the validation tokens decode to no text")
    found = [Finding(PROVEN, "bytes", f"of decoded text, {held / (len(tokens) - 1):.4f} a token", held, "bytes")]
    if table != held:
        detail = f"more by the challenge's table rule: a bits/byte made with it is {held / table - 1:+.1e} off"
        found.append(Finding(NOT_CHECKABLE, "bytes by table", detail, table - held, "bytes"))
    return found, held


def check_claim(claims: list[float], scores: list[Score], partial: str, doubt: str, verdict: str,
                tolerance: float) -> Finding:  # fmt: skip
    """The closest pair of claim and score; `partial` says why no verdict is possible, `doubt` why FAILED is not."""
    claim, bpb = min(((claim, s.bpb) for claim in claims for s in scores), key=lambda pair: abs(pair[0] - pair[1]))
    detail = f"{claim - bpb:+.6f} from {bpb:.6f} here, tolerance {tolerance:g}"
    if abs(claim - bpb) <= tolerance and not partial:
        return Finding(verdict, "claim", detail, claim, "bits/byte")
    if partial or doubt:
        return Finding(NOT_CHECKABLE, "claim", f"{detail}; {partial or doubt}", claim, "bits/byte")
    return Finding(FAILED, "claim", detail, claim, "bits/byte")


# ---------------------------------------------------------------------------------------------------------------------
# Record folder: logs
# A log is read once, line by line. Many open with the script's whole source, which is set aside: it begins at a line
# that only a program has and ends at a rule of '=' or where log lines begin. Nothing of the folder is run or imported.

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 4_000_000  # of a longer log only the start and the end, of this size each, are read
TEXT_BYTES = 1_000_000  # a larger submission.json, README or script is not read
LOG_SUFFIXES = (".log", ".txt", ".out", ".tsv", ".jsonl")
MAX_FILES, MAX_LOGS, MAX_LINES = 2_000, 64, 200  # files of a folder, logs among them, lines kept of a log

NUM, COUNT = r"([0-9]{1,12}(?:\.[0-9]{1,15})?)", r"([\d,]{1,15})"
SOURCE_BEGINS = re.compile(r'import [\w., ]+$|from [\w.]+ import |def \w+\(|class \w+[(:]|if __name__ ?==|"""|#!')
SOURCE_ENDS = re.compile(r"={20,}$|logs/|Running Python|Python \d|Hyperparameters|val_bpb:enabled|train_loader:|seed:\d"
                         r"|world_size:\d|model_params:\d|warmup_step:|step:\d|\d+/\d+ (train|val)_loss")  # fmt: skip
WORTH_READING = re.compile(r"bpb|seed|tokens|vocab|fineweb|bytes|budget:|time|elapsed|NVIDIA|hessian|calib|ttt|pass"
                           r"|stop|={20}|^[ \w]{1,40}[:=]|^(?:" + SOURCE_BEGINS.pattern + ")", re.I)  # fmt: skip
BPB = re.compile(r"(?:val_loss[\"']?[:=] ?" + NUM + r".{0,100}?)?bpb[\"']? ?[:=]\W{0,20}" + NUM, re.I)
RUNNING = re.compile(r"step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
                     r"|pre[-_ ]?quant|post[-_ ]?ema", re.I)  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
TIMES = {
    "train": re.compile(r"train(?:ing)?_time[:=] ?" + NUM + r" ?(ms|s|min|m)\b"),
    "step": re.compile(r"step_avg[:=] ?" + NUM + r" ?(ms|s)\b"),
    "eval": re.compile(r"(?:eval_time|bpb.{0,100}\b(?:time|elapsed))[:=] ?" + NUM + r" ?(ms|s)\b"),
    "calibration": re.compile(r"(?:gptq|hessian|calib).{0,200}?\bin " + NUM + r" ?(s)\b", re.I),
}
FIELDS = {  # what a log states as a whole number
    "seed": re.compile(r"(?<![\w.])seed[:=] ?(\d{1,12})\b"),
    "world_size": re.compile(r"\bworld_size[:=] ?(\d{1,6})"),
    "val_tokens": re.compile(r"(?:\bval_tokens[:=] ?|Validation tokens: ?|val_loader:.{0,400}tokens:)" + COUNT),
    "vocab_size": re.compile(r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)(\d{3,6})(?![\dB])"),
    "model_bytes": re.compile(r"(?:Serialized model [^:]{1,60}|Artifact): ?" + COUNT + " bytes"),
    "code_bytes": re.compile(r"Code size[^:]{0,60}: ?" + COUNT + " bytes"),
    "total_bytes": re.compile(r"(?:Total submission size[^:]{0,60}: ?|budget: ?)" + COUNT + "(?: bytes|/)"),
}
LOG_PATTERNS = {
    "epochs over the tokens that are scored": re.compile(r"ttt(?!.{0,200}chunk).{0,20}epoch[ :=]*\d+ ?/ ?\d+", re.I),
    "a second pass over scored tokens": re.compile(r"\bpass[ _:=]*[2-9]\b|two[-_ ]pass", re.I),
}


class Line(NamedTuple):
    """One line of a log that states bits per byte."""

    where: str  # "train_seed1337.log:275"
    text: str
    kind: str  # final, running (of a step, chunk or epoch, or before quantisation), illegal (by its own label)
    loss: float | None  # nats per token
    bpb: float
    digits: int  # decimals of bpb, as printed


class Log:
    """What one log says."""

    def __init__(self, name: str):
        self.name, self.gpu = name, ""
        self.lines, self.running = deque(maxlen=MAX_LINES), deque(maxlen=MAX_LINES)  # kind running apart
        self.numbers = {}  # name of FIELDS -> its values, in order
        self.times = {}  # name of TIMES -> (the longest in seconds, its line)
        self.settings = {}  # name -> value, as printed before the first step
        self.sources = []  # the scripts that it embeds, each a list of lines
        self.patterns = {}  # name of LOG_PATTERNS -> its first line
        self.stepped = self.stopped = self.self_calibrated = False

    def last(self, name: str) -> int | None:
        return self.numbers[name][-1] if name in self.numbers else None

    @property
    def named_seed(self) -> int | None:
        found = re.search(r"seed[-_]?(\d{1,12})", Path(self.name).name)
        return int(found[1]) if found else None

    @property
    def seed(self) -> int | None:
        return self.last("seed") if "seed" in self.numbers else self.named_seed

    @property
    def headline(self) -> Line | None:
        """The last final line; one with both loss and bpb goes before one that only mentions bpb."""
        finals = [line for line in self.lines if line.kind == "final"]
        return next((line for line in reversed(finals) if line.loss is not None), finals[-1] if finals else None)


def bounded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, cut at LINE_CHARS, of the first and the last LOG_BYTES: bounded for any content."""
    with path.open("rb") as file:
        count, whole, last = 0, True, path.stat().st_size - LOG_BYTES
        while raw := file.readline(LINE_CHARS):
            if whole:
                yield count + 1, raw.replace(b"\0", b"").decode("utf-8", "replace").rstrip()  # the zeros are UTF-16's
            whole = raw.endswith(b"\n")
            count += whole
            while LOG_BYTES <= file.tell() < last:
                skipped = file.read(min(1 << 20, last - file.tell()))
                count, whole = count + skipped.count(b"\n"), skipped.endswith(b"\n")


def read_log(path: Path, name: str) -> Log:
    log, in_source = Log(name), False
    for count, text in bounded_lines(path):
        if in_source and SOURCE_ENDS.match(text):
            in_source = False
        elif not in_source and not WORTH_READING.search(text):
            continue
        elif not in_source and SOURCE_BEGINS.match(text):
            in_source, log.sources = True, log.sources[-9:] + [[]]
        if not in_source:
            read_log_line(log, text.strip(), f"{name}:{count}")
        elif len(log.sources[-1]) < 10_000:
            log.sources[-1].append(text)
    return log


def read_log_line(log: Log, text: str, where: str) -> None:
    """Adds to `log` what one line says."""
    kind = "illegal" if "NOT LEGAL" in text else "running" if RUNNING.search(text) else "final"
    quote = f"{where}: {text[:160]}"
    for found in BPB.finditer(text):
        loss, digits = float(found[1]) if found[1] else None, len(found[2].partition(".")[2])
        kept = log.running if kind == "running" else log.lines
        kept.append(Line(where, text[:160], kind, loss, float(found[2]), digits))
        log.stepped = True
    for name, pattern in FIELDS.items():
        if (found := pattern.search(text)) and (digits := found[1].replace(",", "")):
            log.numbers.setdefault(name, deque(maxlen=MAX_LINES)).append(int(digits))
    for name, pattern in TIMES.items():
        if found := pattern.search(text):
            seconds = round(float(found[1]) * SECONDS[found[2]], 6)
            log.times[name] = max(log.times.get(name, (0.0, "")), (seconds, quote))
    for what, pattern in LOG_PATTERNS.items():
        if kind != "illegal" and pattern.search(text):
            log.patterns.setdefault(what, quote)
    log.stepped, log.stopped = log.stepped or "train_loss" in text, log.stopped or text.startswith("stopping_early")
    if log.stopped and re.search("calibrat|hessian", text, re.I):
        log.times.setdefault("calibration", (0.0, quote))
        log.self_calibrated |= bool(re.search("self|autoreg|generat", text))
    if found := re.search(r"NVIDIA ([A-Z]+ ?\d\w*)", text):
        log.gpu = found[1]
    if not log.stepped and re.match(r"[a-z_]\w*[:=](?!.*\d/\d)", text) and len(log.settings) < 1_000:
        log.settings.update(re.findall(r"([a-z_]\w*)[:=] ?([\w.+-]+)", text))


# ---------------------------------------------------------------------------------------------------------------------
# Record folder: submission.json


def read_text(path: Path | None) -> str:
    """A text file; empty where there is none or it is over TEXT_BYTES."""
    return path.read_bytes().decode("utf-8-sig", "replace") if path and path.stat().st_size <= TEXT_BYTES else ""


def read_submission(path: Path | None) -> tuple[dict, Finding]:
    try:
        if path and path.stat().st_size > TEXT_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, {TEXT_BYTES:,} are read")
        table = json.loads(read_text(path))
        if not isinstance(table, dict):
            raise ValueError(f"it holds a {type(table).__name__}, not fields")
        return table, Finding(PROVEN, "submission.json", f"{path.name} parses", len(table), "fields")
    except (ValueError, RecursionError) as error:
        return {}, Finding(FAILED, "submission.json", f"cannot be used: {error}" if path else "is missing")


def to_number(value) -> float | None:
    """A finite number, also of text such as "15,990,006"; else None."""
    try:
        number = float(value.replace(",", "").split()[0] if isinstance(value, str) else value)
        return number if math.isfinite(number) and not isinstance(value, bool) else None
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def first_number(table: dict, *names: str) -> float | None:
    """The first of the named fields that holds a number; of a list or map of numbers the mean."""
    for name in names:
        value = table.get(name)
        if isinstance(value, dict):
            value = value.get("mean", [item for key, item in value.items() if "std" not in key])
        values = value if isinstance(value, list) else [value]
        numbers = [to_number(item) for item in values[:MAX_LOGS]]
        if numbers and None not in numbers:
            return sum(numbers) / len(numbers)
    return None


def claimed_bpb(table: dict) -> float | None:
    return first_number(table, "val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds that submission.json names, each with its claimed bits per byte where one is given."""
    claims = {}
    for name in ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed"):
        value = table.get(name)
        if isinstance(value, dict):
            pairs = [(key.removeprefix("seed").strip("_ "), row) for key, row in value.items()]
        else:
            rows = value if isinstance(value, list) else [value] if name.startswith("seed") else []
            pairs = [(row.get("seed"), row) if isinstance(row, dict) else (row, None) for row in rows]
        for seed, row in pairs[:MAX_LOGS]:
            if (seed := to_number(seed)) is not None and seed == int(seed) >= 0:
                bpb = first_number(row, "val_bpb", "bpb") if isinstance(row, dict) else to_number(row)
                claims[int(seed)] = bpb or claims.get(int(seed))
    return claims


def submitted_scores(folder: Path) -> list[float]:
    """Every val_bpb in a folder's submission.json, of the whole and of each seed; [] where there is none."""
    path = folder / "submission.json"
    table = read_submission(path)[0] if path.is_file() else {}
    return [bpb for bpb in [claimed_bpb(table), *claimed_seeds(table).values()] if bpb]


def agree(claim: float, measured: float, digits: int, units: float = 1.0) -> bool:
    """Equal in the decimals that both are stated to, give or take one unit there: people round, and people cut."""
    stated = max(2, len(f"{claim:.12f}".rstrip("0").partition(".")[2]))
    return abs(claim - measured) <= 1.01 * units * 10.0 ** -min(stated, digits)


def explanations(logs: list[Log], seeds: dict) -> Iterator[tuple[str, float, list[Line]]]:
    """The ways in which a val_bpb comes from logs, the usual ones first: (words, value, the lines it is made of)."""
    groups = [logs, [log for log in logs if log.seed in seeds]]
    families = dict.fromkeys(re.sub(r"\d+", "", log.name) for log in logs)
    groups += [[log for log in logs if re.sub(r"\d+", "", log.name) == family] for family in families]
    for group in groups:
        chosen = {"last final": [log.headline for log in group if log.headline]}
        for log in group:
            labels = {re.split("val_loss|val_bpb", line.text)[0]: line for line in log.lines if line.kind == "final"}
            for label, line in labels.items():
                chosen.setdefault(f"last '{label.strip()}'", []).append(line)
        for words, lines in chosen.items():
            if len(lines) > 1:
                mean = sum(line.bpb for line in lines) / len(lines)
                yield f"the mean of the {words} lines of {len(lines)} logs", mean, lines
    stated = [line for log in logs for line in log.lines]
    found = [next((x for x in stated if bpb and agree(bpb, x.bpb, x.digits)), None) for bpb in seeds.values()]
    if len(found) > 1 and None not in found:
        yield "the mean of its seed results, each of them in a log", sum(seeds.values()) / len(seeds), found
    for kind in ("final", "running"):
        for line in [x for log in logs for x in [log.headline, *reversed(log.lines), *reversed(log.running)]]:
            if line and line.kind == kind:
                yield f"a {kind} line of one of {len(logs)} logs", line.bpb, [line]


def check_val_bpb(table: dict, logs: list[Log], files: list[Path]) -> tuple[Finding, list[Line]]:
    """submission.json's val_bpb against the logs; also the lines that it rests on, for the checks that follow."""
    claim, seeds, heads = claimed_bpb(table), claimed_seeds(table), [log.headline for log in logs if log.headline]
    bpbs = [line.bpb for log in logs for line in [*log.lines, *log.running] if line.kind != "illegal"]
    if claim is None or not bpbs:
        lacking = "submission.json states no val_bpb" if claim is None else "no log states a legal val_bpb"
        return Finding(NOT_CHECKABLE, "val_bpb", f"{lacking}{taken(heads)}", claim, "bits/byte"), heads
    for units, (words, value, lines) in product((0.5, 1.0), explanations(logs, seeds)):
        if agree(claim, value, min(line.digits for line in lines), units):
            detail = f"submission.json's {claim:g} is {words}{taken(lines)}"
            verdict = CONSISTENT if lines[0].kind == "final" else SUSPICION
            return Finding(verdict, "val_bpb", detail, value, "bits/byte", f"{lines[0].where}: {lines[0].text}"), lines
    labelled = [line for log in logs for line in log.lines if line.kind == "illegal"]
    if illegal := next((line for line in labelled if agree(claim, line.bpb, line.digits)), None):
        detail = f"submission.json's {claim:g} is from a line that its log labels NOT LEGAL{taken(heads)}"
        return Finding(FAILED, "val_bpb", detail, claim, "bits/byte", f"{illegal.where}: {illegal.text}"), heads
    unlogged = sorted(set(seeds) - {log.seed for log in logs})
    detail = f"submission.json's {claim:g} is no line and no mean of the logs, whose lowest is {min(bpbs):g}"
    detail += (f"; seeds {unlogged[:5]} have no log" if unlogged else "") + taken(heads)
    reports = [path for path in files if path.suffix != ".py" and not re.match("readme|submission", path.name, re.I)]
    elsewhere = any(path.stat().st_size > TEXT_BYTES or f"{claim:.4f}" in read_text(path) for path in reports)
    verdict = FAILED if claim < min(bpbs) and heads and not unlogged and not elsewhere else SUSPICION
    return Finding(verdict, "val_bpb", detail, claim, "bits/byte"), heads


def taken(lines: list[Line]) -> str:
    return "".join(f"; {line.where} {line.bpb:g}" for line in lines[:6]) + "; ..." * (len(lines) > 6)


# ---------------------------------------------------------------------------------------------------------------------
# Record folder: the checks

SPLIT_BYTES = 151_080_000  # UTF-8 text of the whole validation split, whatever the tokenizer
SPLIT_TOKENS = {1024: SP1024_VAL_TOKENS, 4096: 45_508_608, 8192: 40_540_160}  # by vocabulary, of the challenge
LIMIT_S = 600.0  # for training, and again for evaluation
RECORD_NATS, RECORD_P = 0.005, 0.01  # what a record must beat the best by, and how surely
PER_RUN = re.compile(r"seed|run_?id|path|dir$|file|^(local_)?rank|time$|port$|host|date|warmup_step$|bytes|shard")


def check_folder(folder: Path, args: argparse.Namespace) -> list[Finding]:
    """Checks what a record folder holds, short of its artifact: files, submission.json, logs, seeds, significance."""
    files = list_files(folder)
    logs, code = read_logs(folder, files), [path for path in files if path.suffix == ".py" and path.stat().st_size]
    script = max(code, key=lambda p: (p.name == "train_gpt.py", p.name[:5] == "train", p.stat().st_size), default=None)
    readme = next((path for path in files if path.name.lower().startswith("readme")), None)
    jsons = [path for path in files if re.fullmatch(r"submission.*\.json", path.name)]
    table, parsed = read_submission(min(jsons, key=lambda path: path.name != "submission.json", default=None))
    score, lines = check_val_bpb(table, logs, files)
    behind = {line.where.rpartition(":")[0] for line in lines}
    used = [log for log in logs if log.name in behind] or logs  # the logs that val_bpb rests on
    track = f"{folder.resolve().parent.name} {table.get('track', '')}".lower()
    found = [check_files(files, readme, logs, script), parsed, score, check_readme(claimed_bpb(table), readme)]
    found += [check_log_size(used, script, code), check_claimed_bytes(table, logs, code)]
    found += check_artifact_bytes(logs, files) + check_times(used, "10min" in track and "non" not in track)
    found += [check_split(line, log) for line in lines[:1] for log in used[:1]]
    found += [check_seeds(table, logs, used, files), check_settings(used), check_embedded(used, code)]
    found += check_against(lines, args.against) if args.against else []
    return found + check_patterns(used, script, code)


def list_files(folder: Path) -> list[Path]:
    """The folder's regular files, those nearest the top first, at most MAX_FILES."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [path for name in names if (path := Path(parent) / name).is_file()]
        if len(found) > MAX_FILES:
            break
    return sorted(found, key=lambda path: (len(path.parts), str(path)))[:MAX_FILES]


def read_logs(folder: Path, files: list[Path]) -> list[Log]:
    """The files that read like logs, without copies of one another."""
    named = [path for path in files if path.suffix in LOG_SUFFIXES and path.name != "requirements.txt"]
    logs = {}
    for path in sorted(named, key=lambda p: ("seed" not in p.name, str(p)))[:MAX_LOGS]:
        log = read_log(path, str(path.relative_to(folder)))
        if log.lines or log.running or log.times:
            logs.setdefault((log.seed, *(line.text for line in [*log.lines, *log.running])), log)
    return list(logs.values())


def check_files(files: list[Path], readme: Path | None, logs: list[Log], script: Path | None) -> Finding:
    lacking = ["README.md"] * (readme is None) + ["a train log"] * (not logs) + ["a script"] * (script is None)
    detail = f"lacks {', '.join(lacking)}" if lacking else f"README, {script.name}, {len(logs)} logs"
    return Finding(FAILED if lacking else PROVEN, "files", detail, len(files), "files")


def check_readme(claim: float | None, readme: Path | None) -> Finding:
    stated = [(number, found[0]) for number, text in enumerate(read_text(readme).split("\n"), 1)
              for found in re.finditer(r"(?<![\d.])\d\.\d{3,12}(?!\d)", text[:LINE_CHARS])]  # fmt: skip
    if claim is None or not stated:
        return Finding(NOT_CHECKABLE, "README", "README or submission.json states no val_bpb", claim, "bits/byte")
    for number, text in stated:
        if agree(claim, float(text), len(text) - 2):
            where = f"{readme.name}:{number}: {text}"
            return Finding(CONSISTENT, "README", "states submission.json's val_bpb", claim, "bits/byte", where)
    return Finding(SUSPICION, "README", "none of its numbers is submission.json's val_bpb", claim, "bits/byte")


def check_log_size(logs: list[Log], script: Path | None, code: list[Path]) -> Finding:
    """The logs' largest total against the cap and the files; FAILED only if compressing the code cannot save it."""
    sized = [log for log in logs if "total_bytes" in log.numbers or "model_bytes" in log.numbers]
    if not sized or script is None or max(path.stat().st_size for path in code) > TEXT_BYTES:
        return Finding(NOT_CHECKABLE, "size", "no log states a size, or no script of usual size is here", None, "bytes")
    files, computed = read_code(script)
    files = [path for path in files if os.path.isfile(path)]
    (raw, packed), own = code_bytes(files), script.stat().st_size
    log = max(sized, key=lambda log: log.last("total_bytes") or log.last("model_bytes"))
    total, counted, model = log.last("total_bytes"), log.last("code_bytes"), min(log.numbers.get("model_bytes", [0]))
    total = model + raw if total is None else total
    detail = f"largest total of {len(sized)} logs, cap {CAP_BYTES:,}; code here {raw:,} ({packed:,} by lzma)"
    detail += " and what it runs by a computed name" * bool(computed)
    detail += f", counted {counted:,}" if counted is not None else ", its count is not logged"
    uncounted = len(files) > 1 and counted == own
    detail += f"; not counted: {', '.join(path.name for path in files[1:9])}" if uncounted else ""
    if model:
        detail += f"; model {model:,}, {model + raw:,} with that code, {model + packed:,} compressed"
    least = model + min(packed * 9 // 10, packed if counted is None else counted)  # there are better compressors
    verdict = FAILED if model and least > CAP_BYTES else SUSPICION if total > CAP_BYTES or uncounted else CONSISTENT
    return Finding(verdict, "size", detail, total, "bytes", log.name)


def check_artifact_bytes(logs: list[Log], files: list[Path]) -> list[Finding]:
    """Each artifact file against the sizes of models that the logs state."""
    stated, found = {size for log in logs for size in log.numbers.get("model_bytes", [])}, []
    for path in [path for path in files if path.suffix in (".pcll", ".ptz")][:8]:
        size = path.stat().st_size
        other = FAILED if path.suffix == ".pcll" else SUSPICION
        verdict = NOT_CHECKABLE if not stated else PROVEN if size in stated else other
        detail = f"{path.name}, {'a' if size in stated else 'no'} model size that the logs state"
        found.append(Finding(verdict, "artifact bytes", detail, size, "bytes"))
    return found


def check_claimed_bytes(table: dict, logs: list[Log], code: list[Path]) -> Finding:
    """submission.json's total against the logs and the cap; over it by less than the code, compression may help."""
    names = ("bytes_total", "total_bytes", "artifact_bytes_max", "artifact_bytes", "artifact_size_bytes")
    claim, codes = first_number(table, *names), [path.stat().st_size for path in code]
    if claim is None:
        return Finding(NOT_CHECKABLE, "bytes_total", "submission.json states no size", None, "bytes")
    totals = [log.last("total_bytes") for log in logs if "total_bytes" in log.numbers]
    sizes = [size for log in logs for name in ("model_bytes", "total_bytes") for size in log.numbers.get(name, [])]
    sizes += [size + own for size in sizes for own in codes] + [round(sum(totals) / max(1, len(totals)))]
    if claim > CAP_BYTES:
        verdict = FAILED if claim > CAP_BYTES + sum(codes) else SUSPICION
    else:
        verdict = NOT_CHECKABLE if not totals else CONSISTENT if claim >= max(totals) or claim in sizes else SUSPICION
    detail = f"submission.json's, cap {CAP_BYTES:,}; the logs' totals go up to {max(totals, default=0):,}"
    return Finding(verdict, "bytes_total", detail, int(claim), "bytes")


def check_times(logs: list[Log], record: bool) -> list[Finding]:
    """Hardware, training, calibration after it and evaluation; a limit binds in the record track, on 8 GPUs."""
    worlds, gpus = sorted({log.last("world_size") for log in logs} - {None}), sorted({log.gpu for log in logs} - {""})
    usual = worlds == [8] and gpus in ([], ["H100"])
    verdict = NOT_CHECKABLE if not worlds else CONSISTENT if usual or not record else SUSPICION
    detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
    found = [Finding(verdict, "hardware", detail, worlds[-1] if worlds else None, "processes")]
    binds = f"limit {LIMIT_S:g} s" if record else f"the limit of {LIMIT_S:g} s is the record track's"
    train, line, log = slowest(logs, "train")
    slack = max(1.0, log.times.get("step", (0.0, ""))[0]) if log else 1.0  # the step that crosses the limit is finished
    verdict = limited(train, LIMIT_S + slack, log, record)
    found.append(Finding(verdict, "training time", f"slowest log, its last step included; {binds}", train, "s", line))
    if log and "calibration" in log.times:
        extra, line = log.times["calibration"]
        inside = train + extra <= LIMIT_S + slack * (extra > 0) or log.self_calibrated
        verdict = CONSISTENT if inside else SUSPICION if record else NOT_CHECKABLE
        detail = f"calibration after {train:.1f} s of training{', on text of its own' * log.self_calibrated}; {binds}"
        found.append(Finding(verdict, "calibration", detail, extra or None, "s", line))
    seconds, line, log = slowest(logs, "eval")
    counts = log and log.headline and f"{log.headline.bpb:.3f}" in line  # a diagnostic evaluation may take longer
    verdict = limited(seconds, LIMIT_S, log, record and counts)
    return [*found, Finding(verdict, "evaluation time", f"slowest single evaluation; {binds}", seconds, "s", line)]


def limited(seconds: float | None, limit: float, log: Log | None, binds: bool) -> str:
    """The verdict on a time; over the limit is only proof on the hardware that the limit is for."""
    if not seconds or seconds > limit and not binds:
        return NOT_CHECKABLE
    usual = log.last("world_size") == 8 and log.gpu in ("", "H100")
    return CONSISTENT if seconds <= limit else FAILED if usual else SUSPICION


def slowest(logs: list[Log], name: str) -> tuple[float | None, str, Log | None]:
    timed = [(*log.times[name], log) for log in logs if name in log.times]
    return max(timed, key=lambda entry: entry[0], default=(None, "", None))


def check_split(line: Line, log: Log) -> Finding:
    """val_tokens x (val_loss / ln 2) / val_bpb is the size of the scored text: 151.08 MB under any tokenizer."""
    tokens, vocab = log.last("val_tokens"), log.last("vocab_size")
    if vocab is None:
        vocab = next((v for v, count in SPLIT_TOKENS.items() if tokens and abs(tokens / count - 1) < 0.002), None)
    whole = SPLIT_TOKENS.get(vocab)
    if not line.loss or not line.bpb or not (tokens or whole):
        return Finding(NOT_CHECKABLE, "split", "needs val_loss, val_bpb, and val_tokens or a known vocabulary")
    ratio = line.loss / math.log(2) / line.bpb
    held = round((tokens or whole) * ratio)
    off, many = held / SPLIT_BYTES - 1, tokens / whole if tokens and whole else None
    detail = f"{tokens or whole:,} tokens{' (not logged)' * (not tokens)} of {ratio:.4f} bytes, by val_loss / val_bpb"
    detail += f"; the whole split has {SPLIT_BYTES:,}"
    if abs(off) <= 0.005:
        return Finding(CONSISTENT, "split", detail, held, "bytes")
    others = [x.loss / math.log(2) / x.bpb for x in [*log.lines, *log.running] if x.loss and x.bpb]
    alike = len(others) > 1 and all(abs(other / ratio - 1) < 0.005 for other in others)
    miscounted = many and abs(many - 1) < 0.002 and abs(off) > 0.01 and alike
    part = many and many < 0.99 and abs(ratio * whole / SPLIT_BYTES - 1) < 0.03
    detail += "; its tokens, miscounted or not all scored" if miscounted else "; a part of it" if part else ""
    quote = f"{line.where}: {line.text}"
    return Finding(FAILED if miscounted or part else SUSPICION, "split", detail, held, "bytes", quote)


def check_seeds(table: dict, logs: list[Log], used: list[Log], files: list[Path]) -> Finding:
    claimed, seeds = claimed_seeds(table), sorted((log.seed for log in used), key=str)
    unlogged = [seed for seed in sorted(claimed) if seed not in [log.seed for log in logs]]
    misnamed = [log.name for log in logs if log.named_seed not in (None, log.seed)]
    count = len(set(seeds) - {None})
    detail = f"val_bpb rests on logs of seeds {seeds}"
    detail += f"; submission.json also names {unlogged[:8]}" if unlogged else ""
    if misnamed:
        return Finding(SUSPICION, "seeds", f"{detail}; {misnamed[0]} logs another seed than its name", count, "seeds")
    if not seeds or None in [log.seed for log in logs]:
        return Finding(NOT_CHECKABLE, "seeds", f"{detail}; a log states none", count, "seeds")
    elsewhere = any(re.search(rf"(?<!\d){seed}(?!\d)", path.name) for seed in unlogged for path in files)
    missing = len(claimed) > len(logs) and not elsewhere  # with as many logs as seeds one may be mistyped
    verdict = FAILED if unlogged and missing else SUSPICION if unlogged or count < len(seeds) else CONSISTENT
    return Finding(verdict, "seeds", detail + "; one of them twice" * (count < len(seeds)), count, "seeds")


def check_settings(logs: list[Log]) -> Finding:
    shared = set.intersection(*[set(log.settings) for log in logs]) if logs else set()
    shared = {name for name in shared if not PER_RUN.search(name)}
    if len(logs) < 2 or not shared:
        return Finding(NOT_CHECKABLE, "settings", "fewer than two logs to compare, or no settings in them")
    values = {name: list(dict.fromkeys(log.settings[name] for log in logs)) for name in sorted(shared)}
    changed = [f"{name} {' / '.join(seen)}" for name, seen in values.items() if len(seen) > 1]
    detail = f"differ: {'; '.join(changed[:8])}" if changed else f"{len(shared)} are the same in {len(logs)} logs"
    return Finding(SUSPICION if changed else CONSISTENT, "settings", detail, len(changed), "differences")


def check_embedded(logs: list[Log], code: list[Path]) -> Finding:
    """The script that each log embeds against those in the folder, comments and layout aside."""
    own, checked = {code_shape(read_text(path)) for path in code} if any(log.sources for log in logs) else set(), 0
    for log in logs:
        sources = [source for source in log.sources if len(source) > 20 and code_shape("\n".join(source))]
        if own and sources and not own & {code_shape("\n".join(source)) for source in sources}:
            theirs = [{text.rstrip() for text in read_text(path).split("\n")} for path in code]
            differ = min(len(set(source) ^ text) for source in sources for text in theirs)
            detail = f"{log.name} embeds a script that is not in the folder; lines that differ from the closest"
            return Finding(SUSPICION, "script", detail, differ, "lines")
        checked += bool(own and sources)
    if not checked:
        return Finding(NOT_CHECKABLE, "script", "no log embeds the whole of its script")
    return Finding(PROVEN, "script", f"{checked} of {len(logs)} logs embed a script of the folder", checked, "logs")


@cache
def code_shape(source: str) -> str | None:
    """A hash of a program without its comments and layout; None if it does not parse."""
    try:
        return hashlib.sha256(ast.dump(parse_code(source)).encode()).hexdigest()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def check_against(lines: list[Line], against: str) -> list[Finding]:
    """Whether our scores are lower than theirs by RECORD_NATS at p < RECORD_P, in nats per token of our tokenizer."""
    theirs = [to_number(text) for text in against.split(",")]
    if not all(bpb and 0 < bpb < 100 for bpb in theirs):
        raise UnusableInput(f"--against takes bits per byte, one or several with commas, not {clean(against, 40)}")
    finals = [line for line in lines if line.kind == "final"]
    if not finals:
        return [Finding(NOT_CHECKABLE, "significance", "no final line with val_bpb", None, "nats")]
    losses = [line.loss / line.bpb for line in finals if line.loss and line.bpb]  # nats a token per bit a byte
    nats = sum(losses) / len(losses) if losses else math.log(2) * SPLIT_BYTES / SP1024_VAL_TOKENS
    ours = [line.bpb for line in finals]
    gain = (sum(theirs) / len(theirs) - sum(ours) / len(ours)) * nats
    p = welch([bpb * nats for bpb in theirs], [bpb * nats for bpb in ours], RECORD_NATS)
    enough = "better" if gain >= 0 else "worse"
    detail = f"nats a token {enough}, mean of {len(ours)} against {len(theirs)} ({nats:.4f} nats a bit per byte); "
    if p is None:
        detail += f"a record needs {RECORD_NATS} at p < {RECORD_P}, which one score or equal scores cannot show"
        return [Finding(FAILED if gain < RECORD_NATS else NOT_CHECKABLE, "significance", detail, gain, "nats")]
    detail += f"one-sided p = {p:.3g} for {RECORD_NATS} nats or more, a record needs < {RECORD_P}"
    verdict = CONSISTENT if gain >= RECORD_NATS and p < RECORD_P else FAILED
    return [Finding(verdict, "significance", detail, gain, "nats")]


def welch(a: list[float], b: list[float], margin: float) -> float | None:
    """One-sided p of mean(a) - mean(b) <= margin, by Welch's t-test; a list of one value counts as exact."""
    variance, squares = 0.0, 0.0
    for values in (a, b):
        if len(values) > 1:
            mean = sum(values) / len(values)
            part = sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
            variance, squares = variance + part, squares + part * part / (len(values) - 1)
    if len(b) < 2 or squares == 0:
        return None
    gain, freedom = sum(a) / len(a) - sum(b) / len(b) - margin, variance**2 / squares
    tail = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + gain * gain / variance)) / 2
    return tail if gain > 0 else 1 - tail


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its power series (DLMF 8.17.8), all of positive terms."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    term = total = 1 / a
    count = 0
    while term > 1e-17 * total:
        term *= x * (a + b + count) / (a + 1 + count)
        total, count = total + term, count + 1
    return total * math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


# ---------------------------------------------------------------------------------------------------------------------
# Record folder: what has invalidated entries before

CODE_PATTERNS = {  # looked for in each statement, or in the condition of an if or while
    "picks by the validation score": re.compile(r"\b\w*(bpb|nll|val_loss)\b[^<>]{0,60}<=? \(?(best|selected|min)_?\w*"),
    "scores in the last of several epochs": re.compile(r"epoch\w* == .{0,40}epochs - 1"),
    "scores tokens in a second pass": re.compile(r"\b(two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\("),
    "hash keyed on the target": re.compile(r"^(full_(key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(tgt|target)\w*"),
    "validation tokens in calibration": re.compile(r"(hessian|calib|gptq)\w*\([^)]*\bval_(tokens|data|loader)\b"),
    "downloads": re.compile(r"\b(urlopen|urlretrieve|\w+_download|load_dataset|requests\.get)\(|\b(curl|wget) "),
}
VAL_TOKENS = re.compile(r"\bval_(tokens|data|seqs)\b")
SCORED = re.compile("byte|bpb|scored")


def check_patterns(logs: list[Log], script: Path | None, code: list[Path]) -> list[Finding]:
    """Never FAILED: each names its line, for a person to judge."""
    hits = {what: line for log in logs for what, line in log.patterns.items()}
    unread = [] if script else ["no script is here"]
    for path in [path for path in code if path == script or re.match("train|eval", path.name)][:8]:
        try:
            for what, number, text in code_patterns(unpack(parse_code(read_text(path)))):
                hits.setdefault(what, f"{path.name}:{number}: {text[:160]}")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            unread.append(f"{path.name} cannot be read as Python ({type(error).__name__})")
    found = [Finding(SUSPICION, "pattern", what, None, "", line) for what, line in hits.items()]
    if unread:
        return [*found, Finding(NOT_CHECKABLE, "pattern", "; ".join(unread))]
    return found or [Finding(CONSISTENT, "pattern", "nothing like what has invalidated entries before", 0, "hits")]


def code_patterns(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(what, line number, text) for each place that looks like something that has invalidated entries."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    functions = {node.name: ast.unparse(node) for node in nodes}
    for node in nodes:
        for loop in outer_loops(node):
            body = ast.unparse(loop)
            if ".backward(" in body and ".step(" in body and VAL_TOKENS.search(body) and not SCORED.search(body):
                callers = [name for name, text in functions.items() if name != node.name and f"{node.name}(" in text]
                if not any("eval" in name or "score" in name for name in callers):  # those adapt on what they scored
                    yield "trains on validation tokens without scoring them first", loop.lineno, f"loop in {node.name}"
    for node in ast.walk(tree):
        test, plain = getattr(node, "test", None), isinstance(node, ast.stmt) and not hasattr(node, "body")
        if test is not None or plain and not isinstance(getattr(node, "value", None), ast.Constant):  # no docstrings
            text = ast.unparse(test or node)[:LINE_CHARS]
            yield from ((what, node.lineno, text) for what, pattern in CODE_PATTERNS.items() if pattern.search(text))


def outer_loops(node: ast.AST) -> Iterator[ast.For | ast.While]:
    """The loops of a function that lie in no other loop."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.For | ast.While):
            yield child
        elif not isinstance(child, ast.FunctionDef):
            yield from outer_loops(child)


def parse_code(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in their strings
        return ast.parse(source)


def unpack(tree: ast.Module) -> ast.Module:
    """The program inside exec(lzma.decompress(b85decode("..."))), as late entries pack it; else the program itself."""
    raw_lzma = partial(lzma.LZMADecompressor, lzma.FORMAT_RAW, None, [{"id": lzma.FILTER_LZMA2}])
    formats = (partial(lzma.LZMADecompressor, lzma.FORMAT_AUTO, 1 << 26), raw_lzma, zlib.decompressobj)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str | bytes) and len(text) > 1_000]
    for text, decode, opened in product(texts[:3], (base64.b85decode, base64.b64decode), formats):
        with suppress(ValueError, lzma.LZMAError, zlib.error):
            return parse_code(opened().decompress(decode(text), TEXT_BYTES).decode())
    return tree


# ---------------------------------------------------------------------------------------------------------------------
# Main

SCHEMA = """
--json prints one object: schema (1), input (the path), exit_code, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or "")}."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    about, _, rest = __doc__.partition("\n\n")
    epilog = rest.partition("\n\nIn this order")[0] + "\n" + SCHEMA
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("verify.py", description=about, epilog=epilog, formatter_class=form)
    add = parser.add_argument
    add("target", help="an artifact.pcll or a record folder")
    add("--code", help="the counted script (default: train_gpt.py beside the artifact, else here)")
    add("--data", help=f"folder with fineweb_val_*.bin (default: {' or '.join(DEFAULT_DATA)})")
    add("--tokenizer", help="SentencePiece model (default: the one near the data with the artifact's sha256)")
    add("--claim", type=positive, metavar="BPB", help="claimed val_bpb, after adaptation with --ttt")
    add("--tolerance", type=positive, default=TOLERANCE, metavar="BPB", help="between claim and result (%(default)s)")
    add("--max-tokens", type=int, metavar="N", help="score the first N tokens only")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--ttt", action="store_true", help="replay the artifact's score-first adaptation")
    add("--model", metavar="FILE", help="take GPT from this file (a changed architecture); runs their code")
    add("--trust-code", action="store_true", help="allow --model to run their code")
    add("--against", metavar="BPB[,BPB...]", help="scores to beat, one or a seed each (record folders)")
    add("--json", action="store_true", help="findings for machines")
    return parser.parse_args(argv)


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def check(args: argparse.Namespace) -> list[Finding]:
    """All findings on args.target; UnusableInput where nothing can be checked."""
    target = Path(args.target)
    if args.model and not args.trust_code:
        raise UnusableInput(f"--model runs the code in {args.model}; add --trust-code if you have read it")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UnusableInput("--device cuda, but torch finds no GPU here")
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UnusableInput("--max-tokens must be at least 2")
    if target.is_dir():
        found, artifacts = check_folder(target, args), sorted(target.glob("*.pcll"))
        for artifact in artifacts:
            prefix = f"{artifact.stem}: " if len(artifacts) > 1 else ""
            several = check_artifact(artifact, args, submitted_scores(target))
            found += [replace(f, detail=prefix + f.detail) for f in several]
        return found
    with target.open("rb") as file:
        if file.read(4) != b"PCLL":
            raise UnusableInput(f"{target} is neither a folder nor a PCLL artifact")
    return check_artifact(target, args, [])


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    sys.stdout.reconfigure(errors="replace")
    say.last = time.monotonic()
    try:
        found = check(args)
        print_json(args.target, found) if args.json else print_report(found)
        return exit_code(found)
    except UnusableInput as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or args.target}: {error.strerror or error}"
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # no memory, their code, ...
        problem = f"stopped by {type(error).__name__} {error}" + (f", maybe in {args.model}" if args.model else "")
    print(f"verify.py: {clean(problem)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
