"""Bits per byte against bytes: exports a checkpoint's averaged weights with each codec at several coarsenesses.

    python tests/bench_rate.py CHECKPOINT.pt --data DIR --tokenizer FILE [--coarseness C ...] [--csv rate.csv]

Coarseness multiplies the quantiser's step (trellis) or divides the levels of the codebooks (huffman); 1 is the default.
The score is of one window after the other, on all of DIR's fineweb_val_*.bin. records/plot.py draws the CSV file.
"""

import argparse
import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_gpt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="folder of fineweb_val_*.bin")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--coarseness", type=float, nargs="+", default=[0.5, 0.7, 1, 1.4, 2, 2.8, 4])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    s = train_gpt.Settings(**state["settings"] | dict(data_path=args.data, tokenizer_path=args.tokenizer))
    ranks, quiet = train_gpt.join_ranks(s), SimpleNamespace(progress=lambda *args: None)
    evaluator = train_gpt.Evaluator(train_gpt.ByteCounter(s.tokenizer_path, s.vocab_size), s, ranks, quiet)
    model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(ranks.device)
    weights = {name.removeprefix("module."): w for name, w in state["average"].items() if name.startswith("module.")}
    model.load_state_dict(weights)
    weights = {name: w.float().numpy() for name, w in weights.items()}
    quantised = sum(w.size for name, w in weights.items() if name.endswith(train_gpt.QUANTISED))
    exact = evaluator.score(model, "", s.train_seq_len).val_bpb
    print(f"{quantised} quantised weights; exact: {exact:.4f} bpb\n\n"
          f"{'codec':8} {'coarseness':>10} {'bytes':>10} {'bits/weight':>11} {'bpb':>8} {'cost':>8}")
    rows = []
    for codec in ("huffman", "trellis"):
        s = train_gpt.Settings(**state["settings"] | dict(codec=codec))
        for coarseness in args.coarseness:
            tensors = {name: train_gpt.code_tensor(name, w, s, coarseness, 0.5) for name, w in weights.items()}
            artifact = train_gpt.encode_pcll({}, tensors, s.trellis_states)
            floats = sum(len(t.side) for t in tensors.values() if t.codec in (train_gpt.FLOAT16, train_gpt.FLOAT32))
            decoded = train_gpt.decode_pcll(artifact)[1]
            model.load_state_dict({name: torch.from_numpy(w) for name, w in decoded.items()})
            bpb = evaluator.score(model, "", s.train_seq_len).val_bpb
            bits = 8 * (len(artifact) - floats) / quantised
            print(f"{codec:8} {coarseness:10.2f} {len(artifact):10d} {bits:11.3f} {bpb:8.4f} {bpb - exact:+8.4f}")
            rows.append([codec, "levels", "none", coarseness, len(artifact), f"{bits:.4f}", f"{bpb:.6f}"])
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow("codec allocation feedback multiplier bytes bits_per_weight val_bpb".split())
            writer.writerows(rows)


if __name__ == "__main__":
    main()
