"""Measures bits per byte against bytes for a trained checkpoint: codec, allocation of the bits, and
error feedback.

    python tests/bench_rate.py CHECKPOINT.pt --train FOLDER --data FOLDER --tokenizer MODEL
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
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
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


def levels_error(name: str, w: np.ndarray, s: train_gpt.Settings) -> float:
    """Mean squared error of the codebook that entry 532 would give the matrix."""
    coded = train_gpt.code_tensor(
        name, w, dataclasses.replace(s, codec="huffman", embed_codec="huffman"), 1, 0, {}
    )
    decoded = train_gpt.decode_pcll(train_gpt.encode_pcll({}, {"w": coded}, 4))[1]["w"]
    return float(np.square(decoded - w, dtype=np.float64).mean())


def allocations(
    weights: dict[str, np.ndarray], moments: dict, s: train_gpt.Settings
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
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    known = {name: value for name, value in state["settings"].items() if name in train_gpt.ALL}
    s = train_gpt.Settings(
        **known
        | dict(
            data_path=args.data,
            tokenizer_path=args.tokenizer,
            embed_codec="trellis",
            calibration_tokens=args.calibration_tokens,
        )
    )
    ranks, quiet = train_gpt.join_ranks(s), SimpleNamespace(progress=lambda *args: None)
    evaluator = train_gpt.Evaluator(
        train_gpt.ByteCounter(s.tokenizer_path, s.vocab_size), s, ranks, quiet
    )
    model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(ranks.device)
    weights = {
        name.removeprefix("module."): w
        for name, w in state["average"].items()
        if name.startswith("module.")
    }
    model.load_state_dict(weights)
    moments = train_gpt.calibrate(
        model, train_gpt.TokenStream(args.train, "train", s.vocab_size), s, ranks
    )
    weights = {name: w.float().numpy() for name, w in weights.items()}
    total = sum(w.size for w in weights.values())
    exact = evaluator.score(model, "", s.train_seq_len).val_bpb
    print(
        f"{total} weights; exact: {exact:.4f} bpb\n\n{'codec':8} {'allocation':12} {'feedback':8} "
        f"{'coarseness':>10} {'bytes':>10} {'bits/weight':>11} {'bpb':>8} {'cost':>8}"
    )
    cases = {("huffman", "levels", "none"): {}}
    cases |= {("trellis", *case): costs for case, costs in allocations(weights, moments, s).items()}
    rows = []
    for (codec, allocation, feedback), costs in cases.items():
        embed = codec if allocation in ("tensor", "row, column") else "float16"
        s = dataclasses.replace(s, codec=codec, embed_codec=embed)
        for coarseness in args.coarseness:
            tensors = {
                name: train_gpt.code_tensor(name, w, s, coarseness, 0.5, costs)
                for name, w in weights.items()
            }
            artifact = train_gpt.encode_pcll({}, tensors, s.trellis_states)
            decoded = train_gpt.decode_pcll(artifact)[1]
            model.load_state_dict({name: torch.from_numpy(w) for name, w in decoded.items()})
            bpb = evaluator.score(model, "", s.train_seq_len).val_bpb
            bits = 8 * len(artifact) / total
            print(
                f"{codec:8} {allocation:12} {feedback:8} {coarseness:10.2f} {len(artifact):10d} "
                f"{bits:11.3f} {bpb:8.4f} {bpb - exact:+8.4f}",
                flush=True,
            )
            rows.append(
                [
                    codec,
                    allocation,
                    feedback,
                    coarseness,
                    len(artifact),
                    f"{bits:.4f}",
                    f"{bpb:.6f}",
                ]
            )
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                "codec allocation feedback multiplier bytes bits_per_weight val_bpb".split()
            )
            writer.writerows(rows)


if __name__ == "__main__":
    main()
