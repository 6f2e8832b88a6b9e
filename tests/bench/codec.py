"""Compares codecs for weights: bytes, error, speed, and how far they are from what is possible.

    python tests/bench/codec.py                 on made-up weights, like Muon's: Gaussian, with
                                                log-normal scales of rows and of columns (--layers
                                                and --width set their size)
    python tests/bench/codec.py WEIGHTS.npz     on an .npz of float arrays
    python tests/bench/codec.py artifact.pcll   on the weights of an artifact that holds its
                                                matrices as floats

Only matrices of more than 65,536 elements are coded, embeddings left aside. A tensor's name gives
its number of k-means levels: 48 for the MLP, 80 for q, k and v, 64 for others. Columns:

    bits/weight    8 x file size / weights
    rel. error     root of (squared error / squared weights), over all tensors
    vs author      file size against the author's at equal error in every tensor: where the errors
                   differ, half a log2 of their ratio per weight is added (6.02 dB a bit); far from
                   equality (int6) take it as a guide
    encode, decode seconds on this machine; of int codes and ours all, of the author's loop over
                   bits extrapolated
    over entropy   the coded stream against the entropy of its own symbols; of the trellis's given
                   their contexts
    over bound     bits against the rate-distortion bound of Gaussian weights with the tensor's row
                   and column scales (reverse water-filling) at the error that the method reaches in
                   each tensor
"""

from __future__ import annotations

import argparse
import heapq
import json
import lzma
import re
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parents[2]))

import decode_artifact
import train_gpt

try:
    import brotli
except ImportError:
    brotli = None

LEVELS = (
    (48, r"mlp|intermediate|ffn|fc[12]|(?<!attention)\.output\.dense"),
    (80, r"\b(q|k|v|query|key|value)\b"),
)
OTHER_LEVELS = 64
MIN_ELEMENTS = 65_537  # the author passes smaller tensors through
LOOP_WEIGHTS = 300_000  # on which the author's loop over bits is timed

Quantized = dict[str, np.ndarray]  # name -> decoded weights


@dataclass
class Matrix:
    """A tensor to code, (rows, columns) float32."""

    name: str
    w: np.ndarray

    @property
    def levels(self) -> int:
        return next(
            (levels for levels, pattern in LEVELS if re.search(pattern, self.name)), OTHER_LEVELS
        )

    def mse(self, decoded: np.ndarray) -> float:
        return float(np.square(decoded - self.w, dtype=np.float64).mean())

    @cached_property
    def variances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row scale x column scale of each element in ascending order, (n,), and (n + 1,) sums of
        those before it and of the log2 of those from it on."""
        power = np.square(self.w, dtype=np.float64) + 1e-30
        columns = np.ones(self.w.shape[1])
        for _ in range(4):
            rows = (power / columns).mean(axis=1)
            columns = (power / rows[:, None]).mean(axis=0)
        ordered = np.sort(np.outer(rows, columns), axis=None)
        return (
            ordered,
            np.append(0, np.cumsum(ordered)),
            np.append(np.cumsum(np.log2(ordered)[::-1])[::-1], 0),
        )

    def bound(self, mse: float) -> float:
        """Bits for all elements at a mean squared error: those of less variance than the water
        level cost nothing."""
        ordered, sums, logs = self.variances
        above = len(ordered) - np.arange(len(ordered))
        drowned = int(np.searchsorted(sums[:-1] + ordered * above, mse * len(ordered)))
        if drowned == len(ordered):
            return 0.0
        level = (mse * len(ordered) - sums[drowned]) / above[drowned]
        return float(logs[drowned] - above[drowned] * np.log2(level)) / 2


@dataclass
class Result:
    method: str
    size: int  # bytes
    errors: dict[str, float] = field(repr=False)  # mean squared error of each tensor
    encode: float  # seconds
    decode: float
    stream_bits: float
    entropy_bits: float


def entropy(symbols: np.ndarray) -> float:
    """Bits of small non-negative integers, by their shares."""
    counts = np.bincount(symbols.ravel())
    counts = counts[counts > 0]
    return float((counts * np.log2(symbols.size / counts)).sum())


def timed(function: Callable, *arguments) -> tuple:
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


# ---------------------------------------------------------------- integers and a compressor

COMPRESSORS = {
    "zstd-22": (
        zstandard.ZstdCompressor(level=22).compress,
        zstandard.ZstdDecompressor().decompress,
    ),
    "xz -9": (lambda data: lzma.compress(data, preset=9), lzma.decompress),
}
if brotli:
    COMPRESSORS["brotli-11"] = (lambda data: brotli.compress(data, quality=11), brotli.decompress)


def integers_per_row(w: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """int8 (rows, columns) and float16 scales (rows, 1), the greatest magnitude of a row being
    coded as `largest`."""
    scales = (np.abs(w).max(axis=1, keepdims=True) / largest).astype(np.float16)
    return np.rint(w / np.maximum(scales.astype(np.float32), 1e-7)).clip(-127, 127).astype(
        np.int8
    ), scales


def largest_for(matrix: Matrix, mse: float) -> float:
    """By bisection, the greatest magnitude at which integers per row have this error."""
    low, high = 1.0, 127.0
    for _ in range(18):
        middle = (low + high) / 2
        q, scales = integers_per_row(matrix.w, middle)
        low, high = (
            (middle, high) if matrix.mse(q * scales.astype(np.float32)) > mse else (low, middle)
        )
    return high


def int_results(matrices: list[Matrix], label: str, largest: dict[str, float]) -> list[Result]:
    def encode() -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {m.name: integers_per_row(m.w, largest[m.name]) for m in matrices}

    coded, quantizing = timed(encode)
    raw = b"".join(q.tobytes() + scales.tobytes() for q, scales in coded.values())
    errors = {
        m.name: m.mse(coded[m.name][0] * coded[m.name][1].astype(np.float32)) for m in matrices
    }
    bits = sum(entropy(q.astype(np.int64) + 128) for q, _ in coded.values())
    results = []
    for name, (compress, decompress) in COMPRESSORS.items():
        data, encoding = timed(compress, raw)
        _, inflating = timed(decompress, data)
        _, scaling = timed(lambda: [q * scales.astype(np.float32) for q, scales in coded.values()])
        results.append(
            Result(
                f"{label} + {name}",
                len(data),
                errors,
                quantizing + encoding,
                inflating + scaling,
                8 * len(data),
                bits,
            )
        )
    return results


# ---------------------------------------------------------------- the author's PCLL


def author_kmeans(w: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 centroids and index of each element: 20 iterations from evenly spaced centroids;
    empty ones stay."""
    flat = w.ravel()
    centroids = np.linspace(flat.min(), flat.max(), levels, dtype=np.float32)
    for _ in range(20):
        indices = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, flat)
        counts = np.bincount(indices, minlength=levels)
        means = np.bincount(indices, weights=flat, minlength=levels) / np.maximum(counts, 1)
        before, centroids = centroids, np.where(counts > 0, means, centroids).astype(np.float32)
        if np.abs(centroids - before).max() <= 1e-8:
            break
    return centroids, np.searchsorted((centroids[1:] + centroids[:-1]) / 2, flat)


def author_codes(counts: np.ndarray) -> dict[str, str]:
    """Huffman code of each level that is used."""
    heap = [(int(count), level, [str(level)]) for level, count in enumerate(counts) if count]
    codes = {names[0]: "" if len(heap) > 1 else "0" for _, _, names in heap}
    heapq.heapify(heap)
    while len(heap) > 1:
        (count_0, tie, names_0), (count_1, _, names_1) = heapq.heappop(heap), heapq.heappop(heap)
        codes |= {name: "0" + codes[name] for name in names_0} | {
            name: "1" + codes[name] for name in names_1
        }
        heapq.heappush(heap, (count_0 + count_1, tie, names_0 + names_1))
    return dict(sorted(codes.items(), key=lambda item: int(item[0])))


def pack_codes(indices: np.ndarray, codes: dict[str, str]) -> tuple[bytes, int]:
    """The codes one after another, most significant bit first, zeros up to the next byte; and the
    number of bits."""
    longest = max(map(len, codes.values()))
    bits = np.zeros((max(map(int, codes)) + 1, longest), np.uint8)
    lengths = np.zeros(len(bits), np.int64)
    for level, code in codes.items():
        bits[int(level), : len(code)] = [int(bit) for bit in code]
        lengths[int(level)] = len(code)
    kept = np.arange(longest) < lengths[:, None]
    stream = np.concatenate(
        [bits[part][kept[part]] for part in np.array_split(indices, len(indices) // 2**16 + 1)]
    )
    return np.packbits(stream).tobytes(), len(stream)


def author_encode(matrices: list[Matrix]) -> tuple[bytes, Quantized, float, float]:
    """File, decoded weights, bits of the codes and entropy of the symbols."""
    entries, parts, decoded, offset, code_bits, symbol_bits = {}, [], {}, 0, 0, 0.0
    for m in matrices:
        centroids, indices = author_kmeans(m.w, m.levels)
        codes = author_codes(np.bincount(indices))
        data, n_bits = pack_codes(indices, codes)
        book, table = centroids.astype("<f2"), json.dumps(codes, separators=(",", ":")).encode()
        entries[m.name] = {
            "method": "codebook_huffman",
            "offset": offset,
            "data_len": len(data),
            "cb_len": book.nbytes,
            "ht_len": len(table),
            "n_bits": n_bits,
            "n_levels": m.levels,
            "shape": list(m.w.shape),
            "dtype": "float32",
            "numel": m.w.size,
            "total_len": len(data) + book.nbytes + len(table),
        }
        parts += [data, book.tobytes(), table]
        offset += entries[m.name]["total_len"]
        code_bits += n_bits
        symbol_bits += entropy(indices)
        decoded[m.name] = book.astype(np.float32)[indices].reshape(m.w.shape)
    header = json.dumps({"version": 1, "tensors": entries}, separators=(",", ":")).encode()
    content = b"PCLL" + struct.pack("<I", len(header)) + header + b"".join(parts)
    return zstandard.ZstdCompressor(level=22).compress(content), decoded, code_bits, symbol_bits


def author_decode_tensor(file: bytes, name: str, weights: int) -> np.ndarray:
    """The first weights of a tensor, by a loop over bits."""
    content = zstandard.ZstdDecompressor().decompress(file)
    start = 8 + struct.unpack_from("<I", content, 4)[0]
    entry = json.loads(content[8:start])["tensors"][name]
    data_end = start + entry["offset"] + entry["data_len"]
    book_end = data_end + entry["cb_len"]
    book = np.frombuffer(content[data_end:book_end], "<f2").astype(np.float32)
    levels = {
        code: int(level)
        for level, code in json.loads(content[book_end : book_end + entry["ht_len"]]).items()
    }
    bits = np.unpackbits(
        np.frombuffer(content[start + entry["offset"] : data_end], np.uint8)
    ).tolist()
    indices, code = [], ""
    for bit in bits[: entry["n_bits"]]:
        code += "1" if bit else "0"
        if code in levels:
            indices.append(levels[code])
            code = ""
            if len(indices) == weights:
                break
    return book[indices]


def author_result(matrices: list[Matrix]) -> Result:
    (file, decoded, code_bits, symbol_bits), encoding = timed(author_encode, matrices)
    first = matrices[0]
    part = min(LOOP_WEIGHTS, first.w.size)
    looped, decoding = timed(author_decode_tensor, file, first.name, part)
    assert np.array_equal(looped, decoded[first.name].ravel()[:part])
    errors = {m.name: m.mse(decoded[m.name]) for m in matrices}
    decoding *= sum(m.w.size for m in matrices) / part
    return Result("author's PCLL", len(file), errors, encoding, decoding, code_bits, symbol_bits)


# ---------------------------------------------------------------- ours


def stream_bits(file: bytes, decoded: Quantized) -> tuple[int, float]:
    """Bits of an artifact's one stream (words and what the lanes begin with), and the entropy of
    its symbols."""
    cursor = decode_artifact.Cursor(decode_artifact.inflate(file))
    decode_artifact.read_config(cursor)
    tensors = decode_artifact.read_table(cursor, len(file))
    if tensors[0].codec == decode_artifact.HUFFMAN:
        books = [decode_artifact.read_codebook(cursor, tensor) for tensor in tensors]
        symbols = [
            np.searchsorted(book.centroids, decoded[tensor.name])
            for tensor, book in zip(tensors, books, strict=True)
        ]
        return 8 * (len(cursor.content) - cursor.position), sum(map(entropy, symbols))

    side = [decode_artifact.read_scales(cursor, tensor) for tensor in tensors]
    model = decode_artifact.read_model(cursor)
    contexts, cells = [], []
    for tensor, scales in zip(tensors, side, strict=True):
        points = (
            decoded[tensor.name].reshape(tensor.shape[0], -1)
            / scales.row_factors[:, None]
            / scales.column_factors
        )
        points = np.rint(points.ravel()).astype(np.int64)  # +-(4q + 1)
        symbols = (np.where(points % 4 == 1, points, -points) - 1) // 4 + model.largest
        contexts.append(decode_artifact.element_contexts(scales, model))
        cells.append(contexts[-1] * np.int64(2 * model.largest + 1) + symbols)
    given = entropy(np.concatenate(cells)) - entropy(np.concatenate(contexts))
    return 8 * (len(cursor.content) - cursor.position - 4), given


def our_result(
    matrices: list[Matrix], method: str, encode: Callable[[Matrix], train_gpt.Coded]
) -> Result:
    file, encoding = timed(lambda: train_gpt.encode_pcll({}, {m.name: encode(m) for m in matrices}))
    (_, _, decoded), decoding = timed(decode_artifact.parse_pcll, file)
    errors = {m.name: m.mse(decoded[m.name]) for m in matrices}
    return Result(method, len(file), errors, encoding, decoding, *stream_bits(file, decoded))


# ---------------------------------------------------------------- weights, table, main


def made_up(layers: int, width: int) -> dict[str, np.ndarray]:
    """Shapes of the system's network; scales of rows and columns spread by 0.15 in natural
    logarithm."""
    rng = np.random.default_rng(0)
    hidden = 1500 * width // 512
    shapes = {
        "attn.q": (width, width),
        "attn.k": (width // 2, width),
        "attn.v": (width // 2, width),
        "attn.out": (width, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
    }
    weights = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            scales = np.exp(
                0.15 * rng.standard_normal((rows, 1)) + 0.15 * rng.standard_normal(columns)
            )
            w = 0.02 * scales * rng.standard_normal((rows, columns))
            weights[f"blocks.{layer}.{name}"] = w.astype(np.float32)
    return weights


def load(path: str) -> dict[str, np.ndarray]:
    if path.endswith(".pcll"):
        return decode_artifact.read_pcll(path)[1]
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def matrices_of(weights: dict[str, np.ndarray]) -> list[Matrix]:
    return [
        Matrix(name, np.ascontiguousarray(w, np.float32))
        for name, w in sorted(weights.items())
        if w.ndim == 2 and w.size >= MIN_ELEMENTS and "emb" not in name
    ]


def line_of(result: Result, author: Result, matrices: list[Matrix]) -> str:
    weights = sum(m.w.size for m in matrices)
    power = sum(np.square(m.w, dtype=np.float64).sum() for m in matrices)
    error = sum(result.errors[m.name] * m.w.size for m in matrices)
    excess = sum(
        m.w.size / 2 * np.log2(result.errors[m.name] / author.errors[m.name]) for m in matrices
    )
    bound = sum(m.bound(result.errors[m.name]) for m in matrices)
    return (
        f"{result.method:32}{result.size:>12,}{8 * result.size / weights:>13.4f}"
        f"{(error / power) ** 0.5:>12.5f}"
        f"{(8 * result.size + excess) / (8 * author.size) - 1:>+11.2%}"
        f"{result.encode:>9.1f}{result.decode:>9.2f}"
        f"{result.stream_bits / result.entropy_bits - 1:>+14.2%}"
        f"{8 * result.size / bound - 1:>+12.2%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares codecs for weights.")
    parser.add_argument(
        "weights", nargs="?", help="an .npz or a .pcll; made-up weights if there is none"
    )
    parser.add_argument("--layers", type=int, default=3, help="of the made-up weights")
    parser.add_argument("--width", type=int, default=512, help="of the made-up weights")
    options = parser.parse_args()
    try:
        weights = (
            load(options.weights) if options.weights else made_up(options.layers, options.width)
        )
        matrices = matrices_of(weights)
        decode_artifact.require(bool(matrices), "there is no matrix of more than 65,536 elements")
        author = author_result(matrices)
        decode_artifact.require(
            min(author.errors.values()) > 0, "a matrix was quantized before and has no error"
        )
    except (OSError, ValueError) as error:
        print(f"{options.weights or 'made-up weights'}: {error}", file=sys.stderr)
        return 2
    source = options.weights or "made-up weights (Gaussian, log-normal scales of rows and columns)"
    print(f"{source}: {len(matrices)} matrices, {sum(m.w.size for m in matrices):,} weights\n")
    print(
        f"{'method':32}{'bytes':>12}{'bits/weight':>13}{'rel. error':>12}{'vs author':>11}"
        f"{'encode':>9}{'decode':>9}{'over entropy':>14}{'over bound':>12}"
    )

    print(line_of(author, author, matrices), flush=True)
    for result in int_results(
        matrices, "int6 per row", dict.fromkeys((m.name for m in matrices), 31.0)
    ):
        print(line_of(result, author, matrices), flush=True)
    equal = {m.name: largest_for(m, author.errors[m.name]) for m in matrices}
    for result in int_results(matrices, "equal error per row", equal):
        print(line_of(result, author, matrices), flush=True)

    def encode(m: Matrix) -> train_gpt.Coded:
        even = train_gpt.Moments(np.ones(len(m.w)), np.eye(m.w[0].size))
        target = author.errors[m.name]
        first = train_gpt.encode_trellis(m.w, even, target**0.5)
        return train_gpt.encode_trellis(m.w, even, target / m.mse(first.weights()) ** 0.5)

    ours = our_result(matrices, "huffman", lambda m: train_gpt.encode_huffman(m.w, m.levels))
    print(line_of(ours, author, matrices), flush=True)
    print(line_of(our_result(matrices, "trellis", encode), author, matrices), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
