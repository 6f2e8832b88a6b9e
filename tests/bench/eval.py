"""Counts what evaluation costs: operations and bytes of a preset's protocols, and the seconds that
follow from them.

    python tests/bench/eval.py

Settings are train_gpt.py's environment variables (default: PRESET=frontier). Nothing runs: counted
are the documents of DATA_PATH's validation split, repeated to the length of the challenge's. Rows:
the sliding window; learning from it all once it is scored, by TTT_PROTOCOL=score_first; scoring
and learning by per_document.
"""

import bisect
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402

SPLIT_TOKENS = {1024: 62_021_632, 8192: 40_540_160}  # of the challenge's, by vocabulary
PEAK = 8 * 989e12  # operations a second of 8 H100, dense bfloat16


def per_token(s: train_gpt.Settings) -> tuple[float, float]:
    """Operations of a forward pass for each token without the head, and the head's: 2 for each
    weight of a matrix, 2 T D a layer for causal attention."""
    weights = sum(
        p.numel()
        for name, p in train_gpt.GPT(s).named_parameters()
        if train_gpt.role_of(name).group == "matrix"
    )
    body = 2 * (weights + s.num_layers * s.train_seq_len * s.model_dim)
    return body, 2 * s.vocab_size * s.model_dim


def count_sliding(s: train_gpt.Settings) -> float:
    """To score the split: every window sees all its tokens, and its head the scored ones."""
    body, head = per_token(s)
    windows = SPLIT_TOKENS[s.vocab_size] / s.eval_stride
    return windows * (s.train_seq_len * body + s.eval_stride * head)


def count_learning(s: train_gpt.Settings) -> float:
    """To learn from the split once it is scored: three forward passes' worth, TTT_EPOCHS times."""
    return SPLIT_TOKENS[s.vocab_size] * s.ttt_epochs * 3 * sum(per_token(s))


@dataclass
class DocumentCost:
    """Of adaptation per document, over all ranks."""

    turns: int = 0  # of a batch
    forward: float = 0.0  # operations of scoring
    backward: float = 0.0  # operations of learning: activations and adapters, no weights
    bytes: float = 0.0  # that AdamW moves


def count_documents(tokens: Tensor, s: train_gpt.Settings) -> DocumentCost:
    """Of these tokens, with every batch full and every turn as wide as its graph: 2 operations for
    each weight and token forward and 2 back, 2 and 4 for those of adapters, 2 T D a layer for
    causal attention and 5 T D back."""
    model = train_gpt.GPT(s)
    weights = adapters = head = 0
    passes = [model.order.count(index) for index in range(s.num_layers)]
    for name, p in model.named_parameters():
        if train_gpt.role_of(name).levels and name != "bigram.table":
            times = passes[int(name.split(".")[1])] if name.startswith("blocks.") else 1
            if name == "tok_emb":
                head = p.numel()
                continue
            weights += times * p.numel()
            adapters += times * s.document_rank * sum(p.shape)
    held = sum(
        s.document_rank * sum(p.shape)
        for name, p in model.named_parameters()
        if train_gpt.role_of(name).levels and name != "bigram.table"
    )

    cost = DocumentCost()
    rows, size, length = s.eval_batch_seqs, s.document_tokens, s.train_seq_len
    widths = [length // 8, length // 4, length // 2, length]
    for batch in train_gpt.document_batches(tokens, rows):
        longest = int(batch.diff().max())
        for low in range(0, longest, size):
            width = widths[bisect.bisect_left(widths, min(low + size, length))]
            attention = len(model.order) * width * s.model_dim
            cost.turns += 1
            cost.forward += rows * (width * 2 * (weights + adapters + attention) + size * 2 * head)
            if low + size < longest:
                back = 2 * weights + 4 * adapters + 5 * attention
                cost.backward += rows * (width * back + size * 2 * head)
                cost.bytes += rows * held * 4 * 7  # weight, moments: read and written; gradient
    return cost


def show_costs(s: train_gpt.Settings) -> None:
    stream = train_gpt.TokenStream(s, "val")
    tokens = torch.from_numpy(stream.read(0, stream.total).astype(np.int64))
    documents = int((tokens == train_gpt.BOS_ID).sum())
    whole = SPLIT_TOKENS[s.vocab_size]
    print(f"{documents} documents of {len(tokens)} tokens, repeated up to the split's {whole}")

    cost = count_documents(tokens.repeat(-(-whole // len(tokens)))[:whole], s)
    sliding = count_sliding(s)
    print(f"{'':14} {'turns':>8} {'PFLOP':>6} {'TB':>6}  seconds at 35 %, at 20 % of 8 H100")
    show_cost("sliding window", "", sliding, 0.0)
    show_cost("learned from", "", count_learning(s), 0.0)
    show_cost("per document", str(cost.turns), cost.forward + cost.backward, cost.bytes)


def show_cost(name: str, turns: str, operations: float, moved: float) -> None:
    """A row of the table; bytes are moved at 3 TB/s on each of 8."""
    seconds = [operations / (share * PEAK) + moved / (8 * 3e12) for share in (0.35, 0.2)]
    numbers = f"{operations / 1e15:6.0f} {moved / 1e12:6.0f}"
    print(f"{name:14} {turns:>8} {numbers}  {seconds[0]:.0f}, {seconds[1]:.0f}")


if __name__ == "__main__":
    try:
        show_costs(train_gpt.load_settings({"PRESET": "frontier"} | dict(os.environ)))
    except train_gpt.UserError as error:
        sys.exit(str(error))
