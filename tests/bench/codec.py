"""Compares our codecs with the author's layout, written here once more: bytes at equal error.

    python tests/bench/codec.py                 on made-up weights, like Muon's: Gaussian, with
                                                log-normal scales of rows and of columns
    python tests/bench/codec.py WEIGHTS.npz     on an .npz of float arrays
    python tests/bench/codec.py ARTIFACT.pcll   what each stage leaves of an artifact's weights

Only matrices of more than 65,536 elements are coded, embeddings left aside. A tensor's name gives
its number of k-means levels: 48 for the MLP, 80 for q, k and v, 64 for others. Columns:

    bits/weight    8 x file size / weights
    rel. error     root of (squared error / squared weights), over all tensors
    vs author      file size against the author's at equal error in every tensor: where the errors
                   differ, half a log2 of their ratio per weight is added (6.02 dB a bit)
    encode, decode seconds on this machine, the author's loop over bits extrapolated
"""

import argparse
import heapq
import json
import re
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parents[2]))

import decode_artifact
import train_gpt

LEVELS = (
    (48, r"mlp|intermediate|ffn|fc[12]|(?<!attention)\.output\.dense"),
    (80, r"\b(q|k|v|query|key|value)\b"),
    (64, ""),
)
MIN_ELEMENTS = 65_537  # the author passes smaller tensors through
LOOP_WEIGHTS = 300_000  # on which the author's loop over bits is timed


@dataclass
class Matrix:
    """A tensor to code, (rows, columns) float32."""

    name: str
    w: np.ndarray

    @property
    def levels(self) -> int:
        return next(levels for levels, pattern in LEVELS if re.search(pattern, self.name))

    def mse(self, decoded: np.ndarray) -> float:
        return float(np.square(decoded - self.w, dtype=np.float64).mean())


@dataclass
class Result:
    method: str
    size: int  # bytes
    errors: dict[str, float]  # mean squared error of each tensor
    encode: float  # seconds
    decode: float


def timed(function: Callable, *arguments) -> tuple:
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


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
    """The codes one after another, most significant bit first, and the number of their bits."""
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


def author_encode(matrices: list[Matrix]) -> tuple[bytes, dict[str, np.ndarray]]:
    """The file, and the weights that it holds."""
    entries, parts, decoded, offset = {}, [], {}, 0
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
        decoded[m.name] = book.astype(np.float32)[indices].reshape(m.w.shape)
    header = json.dumps({"version": 1, "tensors": entries}, separators=(",", ":")).encode()
    content = b"PCLL" + struct.pack("<I", len(header)) + header + b"".join(parts)
    return zstandard.ZstdCompressor(level=22).compress(content), decoded


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
    (file, decoded), encoding = timed(author_encode, matrices)
    first = matrices[0]
    part = min(LOOP_WEIGHTS, first.w.size)
    looped, decoding = timed(author_decode_tensor, file, first.name, part)
    if not np.array_equal(looped, decoded[first.name].ravel()[:part]):
        raise ValueError(f"the author's loop decodes {first.name} to other weights")
    errors = {m.name: m.mse(decoded[m.name]) for m in matrices}
    decoding *= sum(m.w.size for m in matrices) / part
    return Result("author's PCLL", len(file), errors, encoding, decoding)


# ---------------------------------------------------------------- ours


def our_result(
    matrices: list[Matrix], method: str, encode: Callable[[Matrix], train_gpt.Coded]
) -> Result:
    file, encoding = timed(lambda: train_gpt.encode_pcll({}, {m.name: encode(m) for m in matrices}))
    (_, _, decoded), decoding = timed(decode_artifact.parse_pcll, file)
    errors = {m.name: m.mse(decoded[m.name]) for m in matrices}
    return Result(method, len(file), errors, encoding, decoding)


# ---------------------------------------------------------------- stages of an artifact


def entropy(counts: np.ndarray) -> float:
    """Bits of all that was counted, by the ideal code for each row of the counts."""
    totals = counts.sum(axis=-1, keepdims=True)
    return float(-(counts * np.log2(np.maximum(counts, 1) / np.maximum(totals, 1))).sum())


def stages(data: bytes) -> dict[str, float]:
    """Bits of all that the trellis codes, after each stage, and of the whole file."""
    cursor = decode_artifact.Cursor(decode_artifact.inflate(data))
    decode_artifact.read_config(cursor)
    tensors = decode_artifact.read_table(cursor, len(data))
    side = {t.name: decode_artifact.READERS[t.codec](cursor, t) for t in tensors}
    coded = [t for t in tensors if t.codec == decode_artifact.TRELLIS]
    stream = decode_artifact.TrellisStream(cursor, sum(t.size for t in coded))

    model = stream.model
    counts = np.zeros((len(coded), *model.frequencies.shape))
    for count, tensor in zip(counts, coded, strict=True):
        contexts = decode_artifact.element_contexts(side[tensor.name], model)
        np.add.at(count, (contexts, stream.decode_symbols(contexts)), 1)
    return {
        "float32": 32.0 * counts.sum(),
        "indices, the ideal code of each matrix": entropy(counts.sum(axis=1)),
        "indices, the ideal code of each context": entropy(counts.sum(axis=0)),
        "rANS: states and words": 32.0 * len(stream.states) + 16 * len(stream.words),
        "all else by zstd: the whole artifact": 8.0 * len(data),
    }


def show_stages(path: str) -> None:
    found = stages(decode_artifact.read_bytes(path))
    weights = found["float32"] / 32
    print(f"{path}: {weights:,.0f} weights in the trellis\n")
    for stage, bits in found.items():
        print(f"{stage:44}{bits / 8:>14,.0f} bytes{bits / weights:>10.4f} bits a weight")


# ---------------------------------------------------------------- weights, table, main


def made_up(layers: int = 3, width: int = 512) -> dict[str, np.ndarray]:
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
    return (
        f"{result.method:16}{result.size:>12,}{8 * result.size / weights:>13.4f}"
        f"{(error / power) ** 0.5:>12.5f}"
        f"{(8 * result.size + excess) / (8 * author.size) - 1:>+11.2%}"
        f"{result.encode:>9.1f}{result.decode:>9.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    help_text = "an .npz or .pcll; made-up weights if there is none"
    parser.add_argument("weights", nargs="?", help=help_text)
    source = parser.parse_args().weights or "made-up weights"
    try:
        if source.endswith(".pcll"):
            show_stages(source)
            return 0
        weights = made_up() if source == "made-up weights" else dict(np.load(source))
        matrices = matrices_of(weights)
        decode_artifact.require(bool(matrices), "there is no matrix of more than 65,536 elements")
        author = author_result(matrices)
        decode_artifact.require(
            min(author.errors.values()) > 0, "a matrix was quantized before and has no error"
        )
    except (OSError, ValueError) as error:
        print(f"{source}: {error}", file=sys.stderr)
        return 2
    print(f"{source}: {len(matrices)} matrices, {sum(m.w.size for m in matrices):,} weights\n")
    print(
        f"{'method':16}{'bytes':>12}{'bits/weight':>13}{'rel. error':>12}{'vs author':>11}"
        f"{'encode':>9}{'decode':>9}"
    )

    def encode(m: Matrix) -> train_gpt.Coded:
        even = train_gpt.Moments(np.ones(len(m.w)), np.eye(m.w[0].size))
        target = author.errors[m.name]
        first = train_gpt.encode_trellis(m.w, even, target**0.5)
        return train_gpt.encode_trellis(m.w, even, target / m.mse(first.weights()) ** 0.5)

    huffman = our_result(matrices, "huffman", lambda m: train_gpt.encode_huffman(m.w, m.levels))
    for result in (author, huffman, our_result(matrices, "trellis", encode)):
        print(line_of(result, author, matrices), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
