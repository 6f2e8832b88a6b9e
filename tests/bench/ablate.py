"""Trains the system with each of its parts off in turn, and prints what each part is worth.

    python tests/bench/ablate.py [NAME=VALUE ...] [--seeds 1337 42 7] [--only NAME ...]
                                 [--variant NAME=VALUE,... ...] [--jobs J]

Each run is train_gpt.py with the given environment variables (default: PRESET=demo), and scored one
window after the other, without adaptation. Every part is compared with the full system after the
same number of steps: a positive difference says that the part helps. --variant compares other
settings in the same way, where a negative difference says that they help.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import train_gpt  # noqa: E402

FULL = "full system"
PARTS = {
    FULL: {},
    "no value residual": dict(VALUE_RESIDUAL="0"),
    "no gated attention": dict(GATED_ATTENTION="0"),
    "no XSA": dict(XSA_LAST_N="0"),
    "no LN scale": dict(LN_SCALE="0"),
    "no smear gate": dict(SMEAR_GATE="0"),
    "no bigram hash": dict(BIGRAM_BUCKETS="0"),
    "bigram hash from zero (as 532)": dict(BIGRAM_INIT_STD="0"),
    "no U-Net skips": dict(SKIPS="off"),
    "no EMA": dict(EMA_DECAY="0"),
    "AdamW for NorMuon": dict(MATRIX_OPTIMIZER="adamw", MATRIX_LR="0.003"),
    "no late QAT": dict(LATE_QAT_THRESHOLD="0"),
    "ReLU squared": dict(MLP_NEGATIVE_SLOPE="0"),
    "query gain 1": dict(QK_GAIN_INIT="1"),
    "huffman for trellis": dict(CODEC="huffman"),
}


@dataclass(frozen=True)
class Outcome:
    """Of a run."""

    before: float  # bpb before export
    after: float  # and after
    bytes: int  # of the artifact


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def run(settings: dict[str, str]) -> Outcome:
    """A run in a folder of its own."""
    stride = train_gpt.load_settings(settings).train_seq_len
    fixed = dict(OMP_NUM_THREADS="1", TTT_PROTOCOL="off", EVAL_STRIDE=str(stride))
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    inherited = {name: value for name, value in os.environ.items() if name not in ranks}
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, ROOT / "train_gpt.py"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=inherited | settings | fixed,
        )
        printed = ""
        for line in child.stdout:
            printed += line
            if line.endswith(" s left\n"):
                tell(f"  {line.rstrip()}")
    if child.wait():
        sys.exit(f"{settings}: {printed[-2000:]}")
    before, after = (
        float(re.search(rf"{when} export, plain +([\d.]+) bpb", printed)[1])
        for when in ("before", "after")
    )
    return Outcome(before, after, int(re.search(r"Serialized model pcll: (\d+)", printed)[1]))


def base_settings(items: list[str]) -> dict[str, str]:
    """The demo's settings on the CPU with the given NAME=VALUE on top; paths stay true in other
    folders. The demo's data are made if they are to be used and not there."""
    given = dict(item.split("=", 1) for item in items)
    base = {"PRESET": "demo", "CUDA_VISIBLE_DEVICES": ""} | given
    train_gpt.load_settings(dict(os.environ))  # each run inherits all of it
    s = train_gpt.load_settings(base)
    if "DATA_PATH" not in base and not any(Path(s.data_path).glob("*.bin")):
        train_gpt.make_demo_data(s)
    paths = dict(DATA_PATH=s.data_path, TOKENIZER_PATH=s.tokenizer_path)
    return base | {name: str(Path(path).resolve()) for name, path in paths.items()}


def table_row(part: str, outcomes: list[Outcome], full: list[Outcome]) -> str:
    """Scores of a part's runs, one a seed, and their differences from the full system's."""
    before = ", ".join(f"{outcome.before:.4f}" for outcome in outcomes)
    after = ", ".join(f"{outcome.after:.4f}" for outcome in outcomes)
    pairs = zip(outcomes, full, strict=True)
    differences = " ".join(f"{outcome.after - whole.after:+.4f}" for outcome, whole in pairs)
    size = round(statistics.mean(outcome.bytes for outcome in outcomes))
    return f"| {part} | {before} | {after} | {differences} | {size:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 42, 7])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--variant", nargs="+", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_args()

    base = base_settings(args.settings)
    parts = {FULL: base} | {part: base | PARTS[part] for part in args.only}
    for text in args.variant:
        parts[text] = base | dict(item.split("=", 1) for item in text.split(","))
    for settings in parts.values():  # what is wrong is said before the first run
        train_gpt.load_settings(settings)

    print("| without, or instead | before export | after export | difference | bytes, mean |")
    print("| --- | --- | --- | --- | --- |")
    full = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for part, settings in parts.items():
            tell(part)
            runs = [settings | {"SEED": str(seed)} for seed in args.seeds]
            outcomes = [*pool.map(run, runs)]
            full = full or outcomes
            print(table_row(part, outcomes, full), flush=True)


if __name__ == "__main__":
    try:
        main()
    except train_gpt.UserError as error:
        sys.exit(str(error))
