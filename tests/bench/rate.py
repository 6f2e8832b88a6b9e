"""Measures what quantization costs, in bits per byte, against the bits that a weight takes.

    python tests/bench/rate.py CHECKPOINT.pt ... --train FOLDER --data FOLDER --tokenizer MODEL
                               [--bits B ...] [--only WORD ...]

FOLDER of --train holds fineweb_train_*.bin for the calibration; that of --data a fineweb_val_*.bin
of text that is not for the final score (held-out text of the training mix, say), scored whole by
the checkpoint's sliding window. Every way to quantize makes files of about --bits a weight, by its
step scale; the logarithm of the cost is then read between those nearest to each. The last table has
means over the checkpoints, and their ratios to what strong entries do and to the best of that for
each rate; a line below each way says what its files cost by the moments alone.

    int6, GPTQ      a step for each row, by its standard deviation (12.85 / 31 of it, embedding
                    20 / 127: entry 1394), GPTQ in order of importance over our moments, and the
                    ideal zero-order entropy of each matrix, as if no coder lost anything; also
                    with other dampings, and with other steps of the embedding beside the rest
    huffman         k-means with the numbers of levels of ROLES, as 532 exports
    levels          the same error, by the trellis codec
    one step        the same step for every weight
    relative        the same error in proportion to each matrix's variance
    tensor          a step for each matrix, by what an error in it costs
    row, column     and for each row and column
    default         and error feedback, as train_gpt.py exports; then with one thing changed

huffman, levels, one step and relative know no way to weigh the token embedding, which stays in
float16. Bytes are those of the real file but for its rANS states: 4 KB, which weigh more in a small
network than in a large one.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402
from train_gpt import Moments  # noqa: E402

PEER = "int6, GPTQ"


@dataclasses.dataclass(frozen=True)
class Peer:
    """How strong entries quantize; the default is what entry 1394 does."""

    damping: float = 0.01  # of the inputs' moments, as a part of their mean
    embedding: float = 1.0  # times the usual step of the token embedding


PEERS = {
    PEER: Peer(),
    f"{PEER}, damping 0.001": Peer(damping=0.001),
    f"{PEER}, damping 0.1": Peer(damping=0.1),
    f"{PEER}, embedding x 0.5": Peer(embedding=0.5),
    f"{PEER}, embedding x 2": Peer(embedding=2.0),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a run has trained, and what it is measured by."""

    name: str
    settings: train_gpt.Settings
    model: train_gpt.GPT  # takes the weights of each file
    weights: dict[str, np.ndarray]  # float32, the EMA
    moments: dict[str, Moments]
    scorer: train_gpt.Evaluator

    def bpb(self) -> float:
        return self.scorer.score(self.model, "", self.settings.eval_stride).val_bpb

    def size(self) -> int:
        return sum(w.size for w in self.weights.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to quantize: settings, moments, and the constants that it changes."""

    settings: train_gpt.Settings
    moments: dict[str, Moments]
    constants: dict[str, float] = dataclasses.field(default_factory=dict)
    exact_embedding: bool = False  # tok_emb stays in float16


def even(w: np.ndarray, error: float) -> Moments:
    """By which every weight of w costs the same, at a mean squared error of about `error`."""
    return Moments(np.full(len(w), 1 / error), np.eye(w[0].size))


def without_feedback(moments: Moments) -> Moments:
    return Moments(moments.output_fisher, np.diag(np.diagonal(moments.input_hessian)))


def mean_cost(moments: Moments) -> float:
    """Of a weight's squared error."""
    return moments.output_fisher.mean() * np.diagonal(moments.input_hessian).mean()


def levels_error(name: str, w: np.ndarray) -> float:
    """Mean squared error of the codebook that entry 532 would give the matrix."""
    decoded = train_gpt.encode_huffman(w, train_gpt.role_of(name).levels).weights()
    return float(np.square(decoded - w, dtype=np.float64).mean())


def scaled(moments: dict[str, Moments], name: str, factor: float) -> dict[str, Moments]:
    """Moments by which the errors of one tensor cost `factor` times as much."""
    own = moments[name]
    return moments | {name: Moments(factor * own.output_fisher, own.input_hessian)}


def cases(network: Network) -> dict[str, Case]:
    """Every way to quantize, but the peers', by its name."""
    moments = network.moments
    s = network.settings
    weights = {name: network.weights[name] for name in moments}
    sizes = [w.size for w in weights.values()]
    variance = float(np.average([w.var() for w in weights.values()], weights=sizes))

    def evenly(error: Callable[[str, np.ndarray], float]) -> Case:
        by_name = {name: even(w, error(name, w)) for name, w in weights.items()}
        return Case(s, by_name, exact_embedding=True)

    found = {
        "huffman": Case(dataclasses.replace(s, codec="huffman"), {}),
        "levels": evenly(levels_error),
        "one step": evenly(lambda name, w: variance / 1e3),
        "relative": evenly(lambda name, w: w.var() / 1e3),
        "tensor": Case(s, {n: even(w, 1 / mean_cost(moments[n])) for n, w in weights.items()}),
        "row, column": Case(s, {n: without_feedback(m) for n, m in moments.items()}),
        "default": Case(s, moments),
    }
    for damping in (0.001, 0.1):
        found[f"damping {damping}"] = Case(s, moments, dict(DAMPING=damping))
    found["blocks of 32"] = Case(s, moments, dict(FEEDBACK_BLOCK=32, LOOK_AHEAD=32))
    for factor in (0.5, 2.0):
        found[f"embedding's errors x {factor}"] = Case(s, scaled(moments, "tok_emb", factor))
    return found


def load(path: Path, args: argparse.Namespace) -> Network:
    """A checkpoint's EMA weights, with the data and tokenizer of the command line."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    saved = {name: v for name, v in state["settings"].items() if name in train_gpt.NAMES}
    s = train_gpt.Settings(**saved)
    s = dataclasses.replace(
        s,
        data_path=args.data,
        tokenizer_path=args.tokenizer,
        compile="0",
        codec="trellis",
        calibration_tokens=131_072,
    )
    model = train_gpt.GPT(s, getattr(torch, s.dtype))
    model.load_state_dict(state["ema"])

    stream = train_gpt.TokenStream(dataclasses.replace(s, data_path=args.train), "train")
    moments = train_gpt.calibrate(model, stream, s)
    counter = train_gpt.ByteCounter(s.tokenizer_path, s.vocab_size)
    scorer = train_gpt.Evaluator(*train_gpt.read_validation(counter, s), s)
    weights = {name: w.float().numpy() for name, w in state["ema"].items()}
    return Network(path.parent.name, s, model, weights, moments, scorer)


def recode(network: Network, case: Case, step_scale: float) -> float:
    """Gives the model the weights that a file of this step scale has; returns its bytes."""
    tensors = {}
    with patch.dict(vars(train_gpt), case.constants):
        for name, w in network.weights.items():
            if case.exact_embedding and name == "tok_emb":
                tensors[name] = train_gpt.FloatTensor(w.shape, w.astype(np.float16))
                continue
            tensors[name] = train_gpt.encode_tensor(
                name, w, case.settings, step_scale, case.moments
            )
        artifact = train_gpt.encode_pcll({}, tensors)
    decoded = train_gpt.decode_pcll(artifact)
    network.model.load_state_dict({name: torch.from_numpy(w) for name, w in decoded.items()})
    coded = sum(t.points.size for t in tensors.values() if t.codec == train_gpt.TRELLIS)
    return len(artifact) - 4 * train_gpt.lane_count(coded)


def gptq(
    w: np.ndarray, columns: np.ndarray, steps: np.ndarray, limit: int, damping: float
) -> np.ndarray:
    """Whole numbers [R,C] for w / steps, each column's error made good by those after it.

    columns [C,C] are the inputs' moments and steps [R,1]. GPTQ (arXiv 2210.17323), the most
    important columns first, as entry 1394 has it.
    """
    order = np.argsort(-np.diagonal(columns), kind="stable")
    damped = columns[order][:, order]
    damped = damped + damping * np.diagonal(damped).mean() * np.eye(len(damped))
    root = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular

    left = w[:, order].astype(np.float64)
    numbers = np.empty(w.shape, np.int64)
    for c in range(w.shape[1]):
        numbers[:, c] = np.clip(np.rint(left[:, c] / steps[:, 0]), -limit, limit)
        error = (left[:, c] - numbers[:, c] * steps[:, 0]) / root[c, c]
        left[:, c:] -= np.outer(error, root[c, c:])
    return numbers[:, np.argsort(order)]


def entropy_bytes(numbers: np.ndarray) -> float:
    """Of the ideal zero-order code."""
    counts = np.unique(numbers, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def recode_as_peer(network: Network, peer: Peer, multiplier: float) -> float:
    """Gives the model the weights that strong entries would export; returns their least bytes."""
    size = 0.0
    weights = {}
    for name, w in network.weights.items():
        if name not in network.moments:
            weights[name] = w.astype(np.float16)
            size += 2 * w.size
            continue
        clip, limit = (peer.embedding * 20.0, 127) if name == "tok_emb" else (12.85, 31)
        steps = multiplier * clip / limit * w.std(axis=1, keepdims=True)
        steps = steps.astype(np.float16).astype(np.float32)
        numbers = gptq(w, network.moments[name].input_hessian, steps, limit, peer.damping)
        weights[name] = numbers * steps
        size += entropy_bytes(numbers) + 2 * len(w)
    state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in weights.items()}
    network.model.load_state_dict(state)
    return size


def foretold(network: Network) -> float:
    """Nats a token that the model's present weights cost, by the moments: without the noise of a
    score, and blind to what they do not know."""
    total = 0.0
    for name, m in network.moments.items():
        w = network.model.get_parameter(name).detach().numpy()
        error = (w - network.weights[name]).reshape(len(w), -1).astype(np.float64)
        total += ((error @ m.input_hessian * error).sum(axis=1) * m.output_fisher).sum()
    coded = sum(network.weights[name].size for name in network.moments)
    return float(total) * network.settings.quantisation_nats / coded


def cost_at(bits: float, points: list[tuple[float, float]]) -> float:
    """The cost at a rate, by points of bits and cost whose logarithm is read in between."""
    rates, costs = np.array(sorted(points)).T
    return float(np.exp(np.interp(bits, rates, np.log(np.maximum(costs, 1e-6)))))


def make_file(network: Network, way: Case | Peer, multiplier: float) -> float:
    """Gives the model the weights of a file with so many times the steps; its bits per weight."""
    make = recode_as_peer if isinstance(way, Peer) else recode
    return 8 * make(network, way, multiplier) / network.size()


def sweep(network: Network, args: argparse.Namespace) -> dict:
    """For each way to quantize the bits per weight and the cost in bpb of each of its files."""
    exact = network.bpb()
    print(f"{network.name}: {network.size()} weights; exact: {exact:.4f} bpb", flush=True)
    targets = [max(args.bits) + 0.1, *sorted(args.bits, reverse=True), min(args.bits) - 0.1]
    points: dict[str, list[tuple[float, float]]] = {}
    for way, case in (PEERS | cases(network)).items():
        if args.only and not any(word in way for word in args.only):
            continue
        points[way] = []
        told = []
        multiplier = 1.0
        bits = make_file(network, case, multiplier)
        for wanted in targets:
            multiplier *= 2 ** (bits - wanted)  # twice the step is about a bit less
            bits = make_file(network, case, multiplier)
            told.append(f"{bits:.3f}:{foretold(network):.6f}")
            points[way].append((bits, network.bpb() - exact))
        print(f"  {way:24}", *(f"{b:.2f}:{c:+.4f}" for b, c in points[way]), flush=True)
        print(f"  {'  nats foretold':24}", *told, flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--train", required=True, help="folder of fineweb_train_*.bin")
    parser.add_argument("--data", required=True, help="folder of fineweb_val_*.bin")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3, 3.5, 4, 4.5, 5])
    parser.add_argument("--only", nargs="+", help="ways that have one of these words")
    args = parser.parse_args()

    swept = [sweep(load(path, args), args) for path in args.checkpoints]
    means = {
        way: [np.mean([cost_at(bits, points[way]) for points in swept]) for bits in args.bits]
        for way in swept[0]
    }
    peers = [costs for way, costs in means.items() if way in PEERS] or [[1.0] * len(args.bits)]
    best = np.min(peers, axis=0)
    print(f"\n{'bits per weight':26}", *(f"{bits:>22g}" for bits in args.bits))
    for way, costs in {**means, "the best of int6, GPTQ": best}.items():
        ratios = zip(costs, peers[0], best, strict=True)
        cells = [
            f"{cost:8.5f} x{cost / peer:5.3f} x{cost / least:5.3f}" for cost, peer, least in ratios
        ]
        print(f"{way:26}", *cells)


if __name__ == "__main__":
    main()
