"""Measures bits per byte against bytes for a trained checkpoint: codec, allocation of the bits, and
error feedback.

    python tests/bench/rate.py CHECKPOINT.pt --train FOLDER --data FOLDER --tokenizer MODEL
                               [--csv rate.csv]

FOLDER of --train holds fineweb_train_*.bin for the calibration; that of --data a fineweb_val_*.bin
of text that is not for the final score (held-out text of the training mix, say), scored whole, one
window after the other. Allocations:

    levels        the error of k-means with MLP_LEVELS, QKV_LEVELS and OTHER_LEVELS levels (532)
    one step      the same step for every weight
    relative      the same error in proportion to each matrix's variance
    tensor        a step for each matrix, by what an error in it costs
    row, column   and for each row and column, as train_gpt.py exports

The first three know no way to weigh the token embedding and keep it in float16.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402
from train_gpt import Moments  # noqa: E402


def even(w: np.ndarray, error: float) -> Moments:
    """By which every weight of w costs the same, at a mean squared error of about `error`."""
    return Moments(np.full(len(w), 1 / error), np.eye(w[0].size))


def without_feedback(moments: Moments) -> Moments:
    return Moments(moments.rows, np.diag(np.diagonal(moments.columns)))


def mean_cost(moments: Moments) -> float:
    """Of a weight's squared error."""
    return moments.rows.mean() * np.diagonal(moments.columns).mean()


def levels_error(name: str, w: np.ndarray, s: train_gpt.Export) -> float:
    """Mean squared error of the codebook that entry 532 would give the matrix."""
    coded = train_gpt.code_tensor(
        name, w, dataclasses.replace(s, codec="huffman", embed_codec="huffman"), 1, 0, {}
    )
    decoded = train_gpt.decode_pcll(train_gpt.encode_pcll({}, {"w": coded}, 4))[1]["w"]
    return float(np.square(decoded - w, dtype=np.float64).mean())


def allocations(
    weights: dict[str, np.ndarray], moments: dict, s: train_gpt.Export
) -> dict[tuple[str, str], dict]:
    """For each allocation and kind of feedback the moments that make code_trellis allocate so."""
    matrices = {name: weights[name] for name in moments}
    sizes = np.array([w.size for w in matrices.values()])
    variance = float(np.average([w.var() for w in matrices.values()], weights=sizes))
    return {
        ("levels", "none"): {n: even(w, levels_error(n, w, s)) for n, w in matrices.items()},
        ("one step", "none"): {n: even(w, variance / 1e3) for n, w in matrices.items()},
        ("relative", "none"): {n: even(w, w.var() / 1e3) for n, w in matrices.items()},
        ("tensor", "none"): {n: even(w, 1 / mean_cost(moments[n])) for n, w in matrices.items()},
        ("row, column", "none"): {n: without_feedback(m) for n, m in moments.items()},
        ("row, column", "blocks"): moments,
    }


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run has trained."""

    settings: train_gpt.Settings
    model: train_gpt.GPT  # with the averaged weights
    weights: dict[str, np.ndarray]  # float32


def load(args: argparse.Namespace, ranks: train_gpt.Ranks) -> Checkpoint:
    """A checkpoint's averaged weights, with the data and tokenizer of the command line."""
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    values = {name: v for name, v in state["settings"].items() if name in train_gpt.FIELDS}
    values |= dict(
        data_path=args.data,
        tokenizer_path=args.tokenizer,
        embed_codec="trellis",
        calibration_tokens=args.calibration_tokens,
    )
    s = train_gpt.grouped(values)
    model = train_gpt.GPT(s.model, getattr(torch, s.training.dtype)).to(ranks.device)
    averaged = state["average"]
    model.load_state_dict(averaged)
    return Checkpoint(s, model, {name: w.float().numpy() for name, w in averaged.items()})


def recode(
    checkpoint: Checkpoint, export: train_gpt.Export, coarseness: float, moments: dict
) -> int:
    """Gives the model the weights that a file of this coarseness has; returns its bytes."""
    tensors = {
        name: train_gpt.code_tensor(name, w, export, coarseness, 0.5, moments)
        for name, w in checkpoint.weights.items()
    }
    artifact = train_gpt.encode_pcll({}, tensors, export.trellis_states)
    train_gpt.load_artifact(checkpoint.model, artifact)
    return len(artifact)


def evaluator(s: train_gpt.Settings, ranks: train_gpt.Ranks) -> train_gpt.Evaluator:
    """One that prints nothing."""
    quiet = Mock(progress_is_due=lambda: False)
    counter = train_gpt.ByteCounter(s.run.tokenizer_path, s.model.vocab_size)
    return train_gpt.Evaluator(*train_gpt.read_validation(counter, s), s, ranks, quiet)


def plain_bpb(checkpoint: Checkpoint, scorer: train_gpt.Evaluator) -> float:
    return scorer.score(checkpoint.model, "", checkpoint.settings.model.train_seq_len).val_bpb


def cases(checkpoint: Checkpoint, moments: dict) -> dict[tuple[str, str, str], dict]:
    """Codec, allocation and feedback of each row, and the moments that make it so."""
    found = {("huffman", "levels", "none"): {}}
    rest = allocations(checkpoint.weights, moments, checkpoint.settings.export)
    for case, costs in rest.items():
        found["trellis", *case] = costs
    return found


def export_by(case: tuple[str, str, str], export: train_gpt.Export) -> train_gpt.Export:
    """The settings of a row; allocations that cannot weigh the embedding keep it in float16."""
    codec, allocation, _ = case
    embed = codec if allocation in ("tensor", "row, column") else "float16"
    return dataclasses.replace(export, codec=codec, embed_codec=embed)


HEADER = "codec allocation feedback multiplier bytes bits_per_weight val_bpb".split()


def write_csv(path: Path, rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", required=True, help="folder of fineweb_train_*.bin")
    parser.add_argument("--data", required=True, help="folder of fineweb_val_*.bin")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("--coarseness", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()

    ranks = train_gpt.Ranks(0, 1, torch.device("cpu"))
    checkpoint = load(args, ranks)
    s = checkpoint.settings
    scorer = evaluator(s, ranks)
    stream = train_gpt.TokenStream(args.train, "train", s.model.vocab_size)
    moments = train_gpt.calibrate(checkpoint.model, stream, s, ranks)

    exact = plain_bpb(checkpoint, scorer)
    total = sum(w.size for w in checkpoint.weights.values())
    print(f"{total} weights; exact: {exact:.4f} bpb\n")
    print(
        f"{'codec':8} {'allocation':12} {'feedback':8} {'coarseness':>10} {'bytes':>10} "
        f"{'bits/weight':>11} {'bpb':>8} {'cost':>8}"
    )
    rows = []
    for case, costs in cases(checkpoint, moments).items():
        for coarseness in args.coarseness:
            size = recode(checkpoint, export_by(case, s.export), coarseness, costs)
            bpb = plain_bpb(checkpoint, scorer)
            bits = 8 * size / total
            print(
                "{:8} {:12} {:8}".format(*case),
                f"{coarseness:10.2f} {size:10d} {bits:11.3f} {bpb:8.4f} {bpb - exact:+8.4f}",
                flush=True,
            )
            rows.append([*case, coarseness, size, f"{bits:.4f}", f"{bpb:.6f}"])
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
