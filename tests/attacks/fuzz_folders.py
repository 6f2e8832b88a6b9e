"""Mutates record folders and looks for one that records/check.py cannot report on.

    python tests/attacks/fuzz_folders.py [--runs N] [--seed S]

Each run must end in a report or a sentence; anything else names the seed that makes it again.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from attacks.folders import CASES, LEARNS, entry_of, rows, write
from records.check import UnusableInput, check_folder
from records.report import answer_of, print_json, print_report

KINDS = [text.partition("->")[0] for _, text in rows(CASES)]
SECONDS = 10.0  # that a small folder may take
TOKENS = (
    *"val_bpb: val_loss: seed: : = nan inf -1 0 1e999 99999999999999999 1.12 1.1211 ms".split(),
    *"s bytes step:1/2 step:0/5 world_size:8 eval_time: total_eval_time: ttt: epoch".split(),
    *"1/3 hessian NOT LEGAL Traceback exec( open( lambda: import a.b.c ( [ { é # , }".split(),
    *("\\", "\x00", "\r", "\u2028", "\x1b[31m", '"""', "'", "def f(", "\n" * 500),
    *("(" * 300, "[" * 5_000, "9" * 5_000, "a;" * 2_000, "=" * 40, "a." * 2_000, LEARNS),
    *('{"val_bpb": [1.1, null]}', '"seeds": {"1": {"bpb": 1e400}}', "fineweb_val_*.bin"),
)


def mutate(rng: random.Random, text: str) -> str:
    """A random change: a piece cut, repeated or replaced by a token, a digit, the lines' order."""
    at = rng.randrange(len(text) + 1)
    end = at + min(1 << rng.randrange(10), len(text) - at)
    digits = [i for i, letter in enumerate(text) if letter.isdigit()] or [0]
    i = rng.choice(digits)
    return rng.choice(
        (
            text[:at] + text[end:],
            text[:end] + text[at:end] * rng.choice((1, 2, 50)) + text[end:],
            text[:at] + rng.choice(TOKENS) + text[at:],
            text[:at] + rng.choice(TOKENS) + text[end:],
            text[:at] + chr(rng.randrange(1, 0x2100)) + text[at + 1 :],
            text[:i] + rng.choice("0123456789-.e,") + text[i + 1 :],
            "\n".join(rng.sample(lines := text.split("\n"), len(lines))),
        )
    )


def write_folder(seed: int, home: Path) -> Path:
    rng = random.Random(seed)
    files = entry_of(rng.choice(KINDS))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        name = rng.choice([*files])
        files[name] = mutate(rng, files[name])
    if rng.random() < 0.1:
        del files[rng.choice([*files])]
    return write(home, {name: text.encode(errors="replace") for name, text in files.items()})


def check(folder: Path) -> str:
    """The answer; whatever else comes of it is raised."""
    began = time.process_time()
    try:
        report = check_folder(folder, "1.13")
    except UnusableInput:
        return "refused"
    seconds = time.process_time() - began
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_report(report)
        print_json(report, str(folder), 0)
    said = printed.getvalue()
    strange = {letter for letter in said if not letter.isprintable()} - {"\n"}
    if seconds > SECONDS or strange or not said.startswith(answer_of(report)):
        raise AssertionError(f"{seconds:.1f} s, unprintable: {strange}, {said[:40]!r}")
    return answer_of(report)


def fuzz(runs: int, seed: int) -> Counter:
    outcomes = Counter()
    for i in range(seed, seed + runs):
        with tempfile.TemporaryDirectory() as home:
            try:
                outcomes[check(write_folder(i, Path(home)))] += 1
            except Exception as failure:
                raise AssertionError(f"seed {i}: {failure!r}") from failure
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000, help="number of folders")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first folder")
    options = parser.parse_args()
    print(*(f"{count} {answer}" for answer, count in fuzz(options.runs, options.seed).items()))
