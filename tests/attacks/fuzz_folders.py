"""Mutates record folders and looks for one that records/check.py cannot report on.

    python tests/attacks/fuzz_folders.py [--runs N] [--seed S] [--keep DIR]

Run number i makes one folder from the random seed S + i, so that `--seed <S + i> --runs 1` repeats
it. Each must end in findings that print, within SECONDS of processor time; an exception, a finding
without its fields or a slow folder ends the program and names the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from records.check import UnusableInput, check_folder
from records.report import COLOURS, print_json, print_report

SECONDS = 10.0  # that a small folder may take
SCRIPT = """import os, lzma, base64
from pathlib import Path
import torch
NAME = "rest" + ".bin"
def eval_val(model, val_tokens):
    with torch.no_grad():
        return sum(model(x) for x in val_tokens)
def ttt(model, val_tokens, optimizer):
    for epoch in range(3):
        model(val_tokens).backward()
        optimizer.step()
if __name__ == "__main__":
    text = Path(__file__).read_text()
    exec(open(NAME).read())
    exec(lzma.decompress(base64.b85decode("abc" "def")))
    print(f"final_exact val_loss:{1.9:.8f} val_bpb:{1.12:.8f}")
"""
TOKENS = (
    *"val_bpb: val_loss: seed: : = nan inf -1 0 1e999 99999999999999999 1.12 1.1211 ms".split(),
    *"s bytes".split(),
    *"step:1/2 step:0/5 world_size:8 eval_time: total_eval_time: ttt: epoch 1/3 hessian".split(),
    *"NOT LEGAL Traceback exec( open( lambda: import a.b.c ( [ { é".split(" "),
    *("\\", "\x00", "\r", "\u2028", "\x1b[31m"),
    "(" * 300,
    "[" * 5_000,
    "9" * 5_000,
    "a;" * 2_000,
    "=" * 40,
    '"""',
    "\n" * 500,
    "def f(",
    "f'{x!r:>{y}}'",
    "a." * 2_000 + "a",
)


def log_of(seed: int, bpb: float) -> str:
    """A log in the shape of real ones."""
    loss = bpb * 2.4359 * math.log(2)
    return (
        f"{SCRIPT}{'=' * 80}\nworld_size:8 grad_accum_steps:1\nNVIDIA H100 80GB\n"
        "val_loader:shards pattern=fineweb10B_sp1024/fineweb_val_*.bin tokens:62021632\n"
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:80\nseed:{seed}\n"
        "Hyperparameters:\nmodel_dim: 512\nttt_lr: 0.002\n"
        "step:1000/20000 train_loss:2.3000 train_time:45000ms step_avg:45.00ms\n"
        "stopping_early: wallclock_cap train_time:599000ms step:13000/20000\n"
        "GPTQ:collected 67 Hessians in 4.1s\nttt:done total_time=50.0s\n"
        "Code size: 200 bytes\nSerialized model int6+lzma: 15900000 bytes\n"
        "Total submission size int6+lzma: 15900200 bytes\n"
        f"final_int6_roundtrip val_loss:{loss:.4f} val_bpb:{bpb:.4f} eval_time:400000ms\n"
        f"final_int6_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}\n"
    )


def sample(rng: random.Random) -> dict[str, str]:
    """The texts of a folder, each as it should be."""
    scores = {1: 1.119, 2: 1.120, 3: 1.121}
    table = {
        "val_bpb": 1.12,
        "track": "10min_16mb",
        "bytes_total": 15_900_200,
        "seeds": rng.choice([[1, 2, 3], {"1": {"val_bpb": 1.119}}, scores]),
        "results": {"mean_bpb": 1.12},
    }
    texts = {f"train_seed{seed}.log": log_of(seed, bpb) for seed, bpb in scores.items()}
    if rng.random() < 0.7:
        texts = dict(list(texts.items())[:1])
    texts["submission.json"] = json.dumps(table)
    return texts | {"train_gpt.py": SCRIPT, "README.md": "val_bpb 1.1200\n", "rest.bin": "x = 1\n"}


def mutate(rng: random.Random, text: str) -> str:
    """A random change: a piece cut, repeated, moved or replaced by a token of TOKENS, a digit."""
    at = rng.randrange(len(text) + 1)
    size = min(1 << rng.randrange(10), len(text) - at)
    kind = rng.randrange(7)
    if kind == 0:
        return text[:at] + text[at + size :]
    if kind == 1:
        return text[: at + size] + text[at : at + size] * rng.choice((1, 2, 50)) + text[at + size :]
    if kind == 2:
        return text[:at] + rng.choice(TOKENS) + text[at:]
    if kind == 3:
        return text[:at] + rng.choice(TOKENS) + text[at + size :]
    if kind == 4:
        return text[:at] + chr(rng.randrange(1, 0x2100)) + text[at + 1 :]
    if kind == 5:
        digits = [i for i, letter in enumerate(text) if letter.isdigit()] or [0]
        i = rng.choice(digits)
        return text[:i] + rng.choice("0123456789-.e,") + text[i + 1 :]
    lines = text.split("\n")
    rng.shuffle(lines)
    return "\n".join(lines)


def write_folder(seed: int, home: Path) -> Path:
    rng = random.Random(seed)
    folder = home / "track_10min_16mb" / f"entry{seed}"
    folder.mkdir(parents=True)
    texts = sample(rng)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        name = rng.choice(list(texts))
        texts[name] = mutate(rng, texts[name])
    if rng.random() < 0.1:
        del texts[rng.choice(list(texts))]
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder


def check(folder: Path) -> str:
    """The verdict of the worst finding; AssertionError where there is no report."""
    began = time.process_time()
    try:
        findings = check_folder(folder, "1.13")
    except UnusableInput:
        return "refused"
    except Exception as crash:
        raise AssertionError(f"check_folder crashes with {crash!r}") from crash
    seconds = time.process_time() - began
    assert seconds < SECONDS, f"{seconds:.1f} s"

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_report(findings)
        print_json(findings, str(folder), 0)
    report = printed.getvalue()
    assert report.startswith(("OK", "FAILED", "NOT PROVEN"))
    assert all(letter.isprintable() or letter == "\n" for letter in report)
    found = {finding.verdict for finding in findings}
    return next(verdict for verdict in COLOURS if verdict in found)


def fuzz(runs: int, seed: int) -> Counter:
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(seed, seed + runs):
            folder = write_folder(i, Path(home) / str(i))
            try:
                outcomes[check(folder)] += 1
            except AssertionError as failure:
                raise AssertionError(f"seed {i}: {failure}") from failure
            for path in folder.iterdir():
                path.unlink()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000, help="number of folders")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first folder")
    parser.add_argument("--keep", metavar="DIR", help="write one folder there and stop")
    options = parser.parse_args()
    if options.keep:
        print(write_folder(options.seed, Path(options.keep)))
        return 0
    start = time.perf_counter()
    try:
        outcomes = fuzz(options.runs, options.seed)
    except AssertionError as failure:
        print(failure, file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {verdict}" for verdict, count in outcomes.most_common())
    print(f"{options.runs} folders in {time.perf_counter() - start:.0f} s: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
