"""Trains the system with each of its parts off in turn, and prints what each part is worth.

    python tests/bench/ablate.py [NAME=VALUE ...] [--seeds 1337 42] [--only NAME ...]
                                 [--variant NAME=VALUE,... ...] [--steps-only] [--jobs J]

Each run is train_gpt.py with the given environment variables (default: PRESET=demo). Every part is
compared with the full system twice: after the same number of steps, and (unless --steps-only) after
the same number of seconds. For the second, the steps and the warm-down are multiplied by how much
faster a step is without the part, which is measured beforehand in paired runs on one thread, so
that nothing else that the machine does counts. The score is bits per byte of the exported artifact,
one window after the other, without adaptation. A positive difference says that the part helps.
--variant compares other settings in the same way, where a negative difference says that they help.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import train_gpt  # noqa: E402

FULL = "full system"
PARTS = {
    FULL: {},
    "no value residual": dict(VALUE_RESIDUAL="0"),
    "no gated attention": dict(GATED_ATTENTION="0"),
    "no XSA": dict(XSA_LAST_N="0"),
    "rotary on all dimensions": dict(ROPE_DIMS="head"),
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


def value(settings: dict[str, str], name: str) -> int | float | str:
    """What a setting is under these environment variables."""
    return getattr(train_gpt.load_settings(settings), name.lower())


def environment(base: dict[str, str], part: str) -> dict[str, str]:
    changes = dict(PARTS[part])
    if changes.get("ROPE_DIMS") == "head":
        s = train_gpt.load_settings(base)
        changes["ROPE_DIMS"] = str(s.model_dim // s.num_heads)
    return base | changes


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def speed_up(base: dict[str, str], other: dict[str, str], rounds: int = 24) -> float:
    """How many steps with the other settings fit into the time of one: the median over paired
    steps, on one thread."""
    torch.set_num_threads(1)
    trainings = []
    for settings in (base, other):
        s = train_gpt.load_settings(settings)
        state = train_gpt.TrainState(train_gpt.GPT(s), s)
        train_gpt.set_lr_scale(state.optimizers, 1.0)
        trainings.append((s, state, train_gpt.TokenStream(s, "train")))
    ratios = []
    changes = " ".join(f"{name}={text}" for name, text in other.items() if base.get(name) != text)
    for number in range(rounds):
        tell(f"pace of {changes}: pair {number + 1} of {rounds}")
        seconds = []
        for s, state, stream in trainings:
            began = time.process_time()
            batches = train_gpt.train_batches(stream, state.step, s)
            train_gpt.train_step(state, batches, [], s)
            seconds.append(time.process_time() - began)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


class Outcome(NamedTuple):
    before: float  # bpb before export
    after: float  # and after
    bytes: int  # of the artifact


def run(settings: dict[str, str], folder: str) -> Outcome:
    """What a run in the folder gives."""
    fixed = dict(TTT_PROTOCOL="off", EVAL_STRIDE=str(value(settings, "TRAIN_SEQ_LEN")))
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    inherited = {name: value for name, value in os.environ.items() if name not in ranks}
    child = subprocess.Popen(
        [sys.executable, ROOT / "train_gpt.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=inherited | {"OMP_NUM_THREADS": "1"} | settings | fixed,
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
    size = int(re.search(r"Serialized model pcll: (\d+)", printed)[1])
    return Outcome(before, after, size)


def run_alone(settings: dict[str, str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return run(settings, folder)


def base_settings(items: list[str]) -> dict[str, str]:
    """The demo's settings on the CPU with the given NAME=VALUE on top; paths stay true in other
    folders. The demo's data are made if they are to be used and not there."""
    base = {"PRESET": "demo", "CUDA_VISIBLE_DEVICES": ""} | dict(
        item.split("=", 1) for item in items
    )
    train_gpt.load_settings(dict(os.environ))  # each run inherits all of it
    s = train_gpt.load_settings(base)
    if "DATA_PATH" not in base and not any(Path(s.data_path).glob("*.bin")):
        train_gpt.make_demo_data(s)
    paths = {name: Path(value(base, name)) for name in ("DATA_PATH", "TOKENIZER_PATH")}
    return base | {name: str(path.resolve()) for name, path in paths.items()}


def show(rows: list[dict]) -> None:
    """Prints a table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


class Job(NamedTuple):
    part: str
    same: str  # as in the full system: "steps" or "seconds"
    seed: int


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 42])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--variant", nargs="+", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--steps-only", action="store_true", help="no comparison of seconds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    return parser.parse_args()


def plan(
    base: dict[str, str], pace: dict[str, float], seeds: list[int], sames: list[str]
) -> dict[Job, dict[str, str]]:
    """The settings of each run; what is as fast as the full system needs no second one."""
    jobs = {}
    for seed in seeds:
        for part, ratio in pace.items():
            for same in sames:
                if same == "seconds" and abs(ratio - 1) < 0.01:
                    continue
                factor = ratio if same == "seconds" else 1.0
                steps = {
                    name: str(round(factor * value(base, name)))
                    for name in ("ITERATIONS", "WARMDOWN_ITERS")
                }
                settings = environment(base, part) | steps | {"SEED": str(seed)}
                jobs[Job(part, same, seed)] = settings
    return jobs


def run_all(jobs: dict[Job, dict[str, str]], at_a_time: int) -> dict[Job, Outcome]:
    results = {}
    with ThreadPoolExecutor(at_a_time) as pool:
        for job, result in zip(jobs, pool.map(run_alone, jobs.values()), strict=True):
            results[job] = result
            tell(f"{len(results)} of {len(jobs)}: {tuple(job)}, {result.after} bpb")
    return results


def table_row(part: str, ratio: float, results: dict[Job, Outcome], sames: list[str]) -> dict:
    """What the table says of a part: mean score, and the difference of each seed."""
    seeds = [job.seed for job in results if job.part == part and job.same == "steps"]
    row = {"part": part}
    if "seconds" in sames:
        row["steps per step of the full system"] = f"{ratio:.3f}"
    for same in sames:
        at_equal_pace = results.get(Job(part, same, seeds[0])) is None
        kept = "steps" if at_equal_pace else same
        scores = [results[Job(part, kept, seed)].after for seed in seeds]
        full = [results[Job(FULL, "steps", seed)].after for seed in seeds]
        differences = [score - whole for score, whole in zip(scores, full, strict=True)]
        row[f"bpb, same {same}"] = f"{statistics.mean(scores):.4f}"
        row[f"difference, same {same}"] = " ".join(f"{d:+.4f}" for d in differences)
    row["bytes"] = round(statistics.mean(results[Job(part, "steps", seed)].bytes for seed in seeds))
    return row


def main() -> None:
    args = parse_arguments()
    PARTS.update(
        (text, dict(item.split("=", 1) for item in text.split(","))) for text in args.variant
    )
    parts = [FULL, *(part for part in args.only if part != FULL), *args.variant]
    base = base_settings(args.settings)
    for part in parts:  # what is wrong is said before the first run
        train_gpt.load_settings(environment(base, part))

    sames = ["steps"] if args.steps_only else ["steps", "seconds"]
    pace = dict.fromkeys(parts, 1.0)
    if not args.steps_only:
        pace |= {part: speed_up(base, environment(base, part)) for part in parts[1:]}

    results = run_all(plan(base, pace, args.seeds, sames), args.jobs)
    show([table_row(part, pace[part], results, sames) for part in parts])


if __name__ == "__main__":
    try:
        main()
    except train_gpt.UserError as error:
        sys.exit(str(error))
