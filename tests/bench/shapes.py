"""Compares networks of different shapes after the same seconds of training, in the same bytes.

    python tests/bench/shapes.py [NAME=VALUE ...] --shape NAME=VALUE,... --shape ... --bytes N ...
                                 [--seeds 1337 42] [--jobs J]

This is the question under a size cap: fewer bits for more weights, or more for fewer? The first
shape trains for ITERATIONS steps (default: PRESET=demo). The others train for as many as fit into
the same time, with a warm-down in proportion; the cost of a step is measured beforehand in paired
steps on one thread, so that nothing else that the machine does counts. Each network is then
exported once for each number of bytes, by FIT=fill, from its checkpoint. The scores are bits per
byte of the artifacts, one window after the other, without adaptation, one for each seed.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from ablate import ROOT, base_settings, run, show, speed_up, value

sys.path.insert(0, str(ROOT))
import train_gpt  # noqa: E402


def count_weights(settings: dict[str, str]) -> int:
    model = train_gpt.GPT(train_gpt.load_settings(settings))
    return sum(p.numel() for p in model.parameters())


def train_and_export(settings: dict[str, str], sizes: list[int]) -> list[float]:
    """bpb before export, and at each size of the artifact, of one training."""
    code = len((ROOT / "train_gpt.py").read_bytes())
    settings = settings | dict(FIT="fill", CHECKPOINT_EVERY="1000000")  # at the end alone
    with tempfile.TemporaryDirectory() as folder:
        scores = []
        for size in sizes:
            outcome = run(settings | dict(SIZE_CAP_BYTES=str(code + size)), folder)
            scores = [*(scores or [outcome.before]), outcome.after]
            settings = settings | dict(RESUME="latest")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", required=True, metavar="NAME=VALUE,...")
    parser.add_argument("--bytes", type=int, nargs="+", required=True, help="without the code")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 42])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_args()
    base = base_settings(args.settings)
    shapes = {
        text: base | dict(item.split("=", 1) for item in text.split(",")) for text in args.shape
    }
    first = shapes[args.shape[0]]
    ratio = {
        text: speed_up(first, shape) if shape != first else 1.0 for text, shape in shapes.items()
    }
    for text, shape in shapes.items():
        for name in ("ITERATIONS", "WARMDOWN_ITERS"):
            shape[name] = str(round(ratio[text] * value(first, name)))
    jobs = [(text, seed) for seed in args.seeds for text in shapes]
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = pool.map(
            lambda job: train_and_export(shapes[job[0]] | {"SEED": str(job[1])}, args.bytes), jobs
        )
        results = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            results[job] = outcome
            print(f"{len(results)} of {len(jobs)}: {job}, {outcome}", file=sys.stderr, flush=True)
    rows = []
    for text, shape in shapes.items():
        columns = zip(*(results[text, seed] for seed in args.seeds), strict=True)
        names = ["before export", *(f"{size} bytes" for size in args.bytes)]
        row = {"shape": text, "weights": count_weights(shape), "steps": shape["ITERATIONS"]}
        row |= {
            name: " ".join(f"{bpb:.4f}" for bpb in column)
            for name, column in zip(names, columns, strict=True)
        }
        rows.append(row)
    show(rows)


if __name__ == "__main__":
    try:
        main()
    except train_gpt.UserError as error:
        sys.exit(str(error))
