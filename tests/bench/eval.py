"""Times our evaluation against a direct re-implementation of the loops that entries use.

    python tests/bench/eval.py [--tokens N] [--repeats R]
    python tests/bench/eval.py --documents      what adaptation per document costs, counted

Both score the same tokens with the same weights on the same device, in turn; the table shows
medians and the median of the paired ratios. The entries' loop sends all positions of every window
through the output head and then walks over the windows in Python. What adapts is the network that
is scored, compiled on a GPU, as in train_gpt.py; all is compiled before the clock runs. Settings
are train_gpt.py's environment variables (default here: a network of 6 layers and width 256 in
bfloat16, with windows of 512 tokens and stride 32). The tokens are random: scores mean nothing,
times do.

With --documents nothing runs: the operations and bytes of a preset's whole evaluation are counted
on the documents of DATA_PATH's validation split, repeated to the length of the challenge's.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402

SHAPE = dict(
    NUM_LAYERS="6",
    MODEL_DIM="256",
    NUM_HEADS="4",
    NUM_KV_HEADS="2",
    MLP_HIDDEN="768",
    TRAIN_SEQ_LEN="512",
    TRAIN_BATCH_TOKENS="16384",
    EVAL_BATCH_SEQS="16",
    TTT_CHUNK_TOKENS="4096",
)
FULL_SPLIT = 62_021_632  # tokens of the challenge's validation split
SPLIT_BY_VOCABULARY = {1024: FULL_SPLIT, 8192: 40_540_160}
PEAK = 8 * 989e12  # operations a second of 8 H100, dense bfloat16


@torch.inference_mode()
def score_like_entries(
    model: train_gpt.GPT, tokens: Tensor, first: int, last: int, s: train_gpt.Settings
) -> float:
    """Summed nats of positions first..last-1: windows that end after every EVAL_STRIDE tokens."""
    length = s.train_seq_len
    stride = s.eval_stride
    ends = [end for end in range(min(length, last), last + stride, stride) if end - stride < last]
    windows = [
        (max(0, min(end, last) - length), min(end, last)) for end in ends if min(end, last) > first
    ]
    nats = 0.0
    rows = s.eval_batch_seqs
    for at in range(0, len(windows), rows):
        batch = windows[at : at + rows]
        inputs = [F.pad(tokens[a:b], (0, length - (b - a))) for a, b in batch]
        targets = [F.pad(tokens[a + 1 : b + 1], (0, length - (b - a))) for a, b in batch]
        logits = model(torch.stack(inputs)).flatten(0, 1)
        losses = F.cross_entropy(logits, torch.stack(targets).flatten(), reduction="none")
        losses = losses.view(len(batch), length)
        for i, (a, b) in enumerate(batch):
            begin = first if at + i == 0 else windows[at + i - 1][1]
            nats += losses[i, max(begin, a) - a : b - a].double().sum().item()
    return nats


def evaluate_like_entries(
    model: train_gpt.GPT,
    tokens: Tensor,
    s: train_gpt.Settings,
    trainer: train_gpt.TestTimeTrainer | None = None,
) -> float:
    """Mean nats per token; with a trainer, chunk by chunk as entry 549 does it."""
    total = 0.0
    count = len(tokens) - 1
    size = s.ttt_chunk_tokens if trainer else count
    for low in range(0, count, size):
        high = min(low + size, count)
        total += score_like_entries(model, tokens, low, high, s)
        if trainer and high < count:
            done = low // size / math.ceil(count / size)
            trainer.learn(tokens[low:high], tokens[low + 1 : high + 1], done, s.ttt_epochs)
    return total / count


@dataclass(frozen=True)
class Operations:
    """Floating-point operations for the challenge's split: 2 for each weight of a matrix and token,
    2 T D a layer for causal attention; learning costs 3 times a forward pass."""

    theirs: float  # to score it by the sliding window, as entries do
    ours: float  # the same, as we do
    learning: float  # to adapt to it by score_first


def count_operations(s: train_gpt.Settings) -> Operations:
    weights = sum(
        p.numel()
        for name, p in train_gpt.GPT(s).named_parameters()
        if train_gpt.role_of(name).group == "matrix"
    )
    everywhere = 2 * (weights + s.num_layers * s.train_seq_len * s.model_dim)
    head = 2 * s.vocab_size * s.model_dim  # of the scored positions alone
    windows = FULL_SPLIT / s.eval_stride
    return Operations(
        theirs=windows * s.train_seq_len * (everywhere + head),
        ours=windows * (s.train_seq_len * everywhere + s.eval_stride * head),
        learning=FULL_SPLIT * s.ttt_epochs * 3 * (everywhere + head),
    )


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
    for batch in train_gpt.document_batches(tokens, rows):
        longest = int(batch.diff().max())
        for low in range(0, longest, size):
            width = train_gpt.static_width(min(low + size, length), length)
            attention = len(model.order) * width * s.model_dim
            cost.turns += 1
            cost.forward += rows * (width * 2 * (weights + adapters + attention) + size * 2 * head)
            if low + size < longest:
                back = 2 * weights + 4 * adapters + 5 * attention
                cost.backward += rows * (width * back + size * 2 * head)
                cost.bytes += rows * held * 4 * 7  # weight, moments: read and written; gradient
    return cost


def show_documents(s: train_gpt.Settings) -> None:
    stream = train_gpt.TokenStream(s, "val")
    tokens = torch.from_numpy(stream.read(0, stream.total).astype(np.int64))
    documents = int((tokens == train_gpt.BOS_ID).sum())
    whole = SPLIT_BY_VOCABULARY[s.vocab_size]
    print(f"{documents} documents of {len(tokens)} tokens, repeated up to the split's {whole}")

    cost = count_documents(tokens.repeat(-(-whole // len(tokens)))[:whole], s)
    sliding = count_operations(s).ours * whole / FULL_SPLIT
    learned = cost.forward + cost.backward
    print(f"{'':14} {'turns':>8} {'PFLOP':>6} {'TB':>6}  seconds at 35 %, at 20 % of 8 H100")
    show_cost("sliding window", "", sliding, 0.0)
    show_cost("per document", str(cost.turns), learned, cost.bytes)


def show_cost(name: str, turns: str, operations: float, moved: float) -> None:
    """A row of the table; bytes are moved at 3 TB/s on each of 8."""
    seconds = [operations / (share * PEAK) + moved / (8 * 3e12) for share in (0.35, 0.2)]
    numbers = f"{operations / 1e15:6.0f} {moved / 1e12:6.0f}"
    print(f"{name:14} {turns:>8} {numbers}  {seconds[0]:.0f}, {seconds[1]:.0f}")


def timed(function: Callable) -> tuple[float, float]:
    """Seconds, and what the function returned."""
    began = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


class Bench:
    """Both evaluations of one network, and what it learns by."""

    def __init__(self, tokens: np.ndarray, s: train_gpt.Settings):
        self.s = s
        train_gpt.ranks.init()
        torch.manual_seed(s.seed)
        model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(train_gpt.ranks.device)
        self.model = model
        self.grads = train_gpt.flatten_grads(model)[:-1]
        self.before = {name: w.clone() for name, w in model.state_dict().items()}
        train_gpt.choose_attention()
        train_gpt.compile_model(model, s)
        a_byte_each = np.ones(len(tokens) - 1, dtype=np.int64)  # no time depends on it
        self.evaluator = train_gpt.Evaluator(tokens, a_byte_each, s)
        self.tokens = self.evaluator.tokens

    def trainer(self) -> train_gpt.TestTimeTrainer:
        """A new one, on the weights from before all learning."""
        self.model.load_state_dict(self.before)
        return train_gpt.TestTimeTrainer(self.model, self.grads, self.s)

    def theirs(self, adapt: bool) -> float:
        trainer = self.trainer() if adapt else None
        return evaluate_like_entries(self.model, self.tokens, self.s, trainer)

    def ours(self, adapt: bool) -> float:
        trainer = self.trainer() if adapt else None
        return self.evaluator.score(self.model, "", self.s.eval_stride, trainer).val_loss

    def training_passes(self) -> None:
        self.trainer().learn(self.tokens[:-1], self.tokens[1:], 0.5, self.s.ttt_epochs)


def compare(name: str, theirs: Callable, ours: Callable, repeats: int, tokens: int) -> float:
    """Prints a row of the table; our median seconds."""
    theirs(), ours()  # compile
    pairs = [(timed(theirs), timed(ours)) for _ in range(repeats)]
    a, b = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(pair[0][0] / pair[1][0] for pair in pairs)
    differ = abs(pairs[0][0][1] - pairs[0][1][1])
    hours = b / tokens * FULL_SPLIT / 3600
    print(f"{name:24} {a:10.2f} {b:10.2f} {ratio:7.2f} {differ:12.1e} {hours:22.2f} h")
    return b


def show_operations(s: train_gpt.Settings) -> None:
    here = count_operations(s)
    full = count_operations(train_gpt.load_settings({}))
    share = (full.ours + full.learning) / PEAK / 600
    print(f"operations of the sliding window, entries' over ours: {here.theirs / here.ours:.2f}")
    print(
        "PRESET=pcll on the whole split, by operations alone:"
        f" {full.ours / 1e15:.0f} PFLOP to score, {full.learning / 1e15:.0f} to learn from it;"
        f" within 600 s on 8 H100 from {share:.1%} of their peak on"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16385)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", action="store_true", help="only count a preset's operations")
    args = parser.parse_args()
    if args.documents:
        show_documents(train_gpt.load_settings({"PRESET": "frontier"} | dict(os.environ)))
        return
    s = train_gpt.load_settings(SHAPE | dict(os.environ))
    tokens = np.random.default_rng(0).integers(4, s.vocab_size, args.tokens)
    bench = Bench(tokens.astype(np.uint16), s)

    print(
        f"{args.tokens - 1} tokens, window {s.train_seq_len}, stride {s.eval_stride},"
        f" {train_gpt.ranks.device.type}, {s.dtype},"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}, {args.repeats} paired runs"
    )
    print(
        f"{'':24} {'entries s':>10} {'ours s':>10} {'ratio':>7} {'nats differ':>12}"
        f" {'62 M tokens, one device':>24}"
    )
    seconds = {}
    for name, adapt in (("sliding window", False), ("score-first adaptation", True)):
        theirs = partial(bench.theirs, adapt)
        ours = partial(bench.ours, adapt)
        seconds[name] = compare(name, theirs, ours, args.repeats, args.tokens - 1)
    show_operations(s)
    passes = statistics.median(timed(bench.training_passes)[0] for _ in range(args.repeats))
    extra = seconds["score-first adaptation"] - seconds["sliding window"]
    print(
        f"adaptation costs {extra:.2f} s beyond scoring;"
        f" {s.ttt_epochs} training passes alone {passes:.2f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except train_gpt.UserError as error:
        sys.exit(str(error))
