"""Makes PCLL containers by hand: a slow reference encoder, written from the specification and from
nothing else.

    container = build(config, tensors, model)     # encodes the streams
    container.tensors[0].step = float("nan")      # any field may then be set to anything
    container.file()                              # bytes of the file, its zstd frame signed anew

Everything is plain Python integers and lists, one element at a time, so that it can be checked by
reading. The values that a container stands for come from `values`, which walks through the trellis
state by state.
"""

from __future__ import annotations

import heapq
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zstandard

# Octal, by the logarithm of the number of states.
PARITY_CHECKS = {
    2: "5 2",
    3: "13 4",
    4: "23 4",
    5: "45 10",
    6: "103 24",
    7: "235 126",
    8: "515 362",
}


# ---------------------------------------------------------------- tensors and their side data


@dataclass
class Floats:
    shape: tuple[int, ...]
    weights: list[float]
    codec: int = 0  # or 1, float16

    def side(self) -> bytes:
        width = 4 if self.codec == 0 else 2
        data = np.array(self.weights, f"<f{width}").tobytes()
        return b"".join(data[plane::width] for plane in range(width))


@dataclass
class Codebook:
    shape: tuple[int, ...]
    levels: list[int]  # of each element
    centroids: list[float]
    lengths: list[int] | None = None  # of each level's code; optimal ones when None
    codec: int = 4

    def side(self) -> bytes:
        planes = Floats((), self.centroids, codec=1).side()
        return bytes([len(self.centroids)]) + planes + bytes(self.lengths)


@dataclass
class Trellis:
    shape: tuple[int, ...]
    indices: list[int]  # of each element
    step: float  # a float32
    row_spreads: list[int] | None = None  # zeros when None, like the other lists
    column_spreads: list[int] | None = None
    offset: int = 0
    row_exponents: list[int] | None = None
    column_exponents: list[int] | None = None
    codec: int = 3

    def __post_init__(self) -> None:
        columns = math.prod(self.shape[1:])
        self.row_spreads = self.row_spreads or [0] * self.shape[0]
        self.column_spreads = self.column_spreads or [0] * columns
        self.row_exponents = self.row_exponents or [0] * self.shape[0]
        self.column_exponents = self.column_exponents or [0] * columns

    def side(self) -> bytes:
        numbers = (
            self.row_spreads + self.column_spreads + self.row_exponents + self.column_exponents
        )
        return struct.pack(f"<fh{len(numbers)}b", self.step, self.offset, *numbers)

    def context(self, element: int, contexts: int) -> int:
        row, column = divmod(element, math.prod(self.shape[1:]))
        of_row = self.row_spreads[row] - self.row_exponents[row]
        of_column = self.column_spreads[column] - self.column_exponents[column]
        return min(max(self.offset + of_row + of_column, 0), contexts - 1)

    def row_factor(self, row: int) -> np.float32:
        return np.float32(quarter_power(self.row_exponents[row]))

    def column_factor(self, column: int) -> np.float32:
        return np.float32(self.step / 4 * quarter_power(self.column_exponents[column]))


def quarter_power(exponent: int) -> float:
    """2^(exponent / 4)."""
    return math.ldexp(math.sqrt(math.sqrt(2 ** (exponent % 4))), exponent // 4)


@dataclass
class Model:
    """The shared part of the trellis stream; `build` fills in what is empty."""

    log2_states: int = 5  # as in train_gpt.py's files
    contexts: int = 1
    largest: int | None = None  # that of the indices when None
    frequencies: list[list[int]] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def section(self) -> bytes:
        flat = [frequency for row in self.frequencies for frequency in row]
        return (
            struct.pack("<BHB", self.log2_states, self.largest, self.contexts)
            + np.array(flat, "<u2").tobytes()
            + np.array(self.states, "<u4").tobytes()
            + struct.pack("<I", len(self.words))
            + np.array(self.words, "<u2").tobytes()
        )


@dataclass
class Huffman:
    """The stream of the huffman tensors."""

    lane_bits: list[int]
    words: list[int]

    def section(self) -> bytes:
        return np.array(self.lane_bits, "<u4").tobytes() + np.array(self.words, "<u2").tobytes()


# ---------------------------------------------------------------- the container


@dataclass
class Container:
    config: bytes
    names: list[bytes]
    tensors: list[Floats | Codebook | Trellis]
    huffman: Huffman | None
    model: Model | None

    def parts(self) -> list[bytes]:
        """The content in pieces, cut wherever one field ends and the next begins."""
        pieces = [struct.pack("<I", len(self.config)), self.config]
        pieces.append(struct.pack("<H", len(self.tensors)))
        for name, tensor in zip(self.names, self.tensors, strict=True):
            pieces += [bytes([len(name)]), name, bytes([tensor.codec, len(tensor.shape)])]
            pieces.append(struct.pack(f"<{len(tensor.shape)}I", *tensor.shape))
        pieces += [tensor.side() for tensor in self.tensors]
        pieces += [self.huffman.section()] if self.huffman is not None else []
        pieces += [self.model.section()] if self.model is not None else []
        return pieces

    def content(self) -> bytes:
        return b"".join(self.parts())

    def file(self) -> bytes:
        return sign(self.content())


def sign(content: bytes, level: int = 1) -> bytes:
    """A file with a correct header and frame around any content."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return wrap(compressor.compress(content), len(content))


def wrap(frame: bytes, content_size: int) -> bytes:
    """A file with a correct header around any frame."""
    return struct.pack("<4sHHII", b"PCLL", 1, 0, content_size, len(frame)) + frame


def build(
    config: dict, tensors: dict[str, Floats | Codebook | Trellis], model: Model | None = None
) -> Container:
    """Encodes the streams of the tensors, which come out in the order of their names."""
    names = sorted(tensors)
    ordered = [tensors[name] for name in names]
    for tensor in ordered:
        if tensor.codec == 4 and tensor.lengths is None:
            tensor.lengths = code_lengths(Counter(tensor.levels), len(tensor.centroids))
    coded = [tensor for tensor in ordered if tensor.codec == 4]
    trellises = [tensor for tensor in ordered if tensor.codec == 3]
    model = encode_trellis(trellises, model or Model()) if trellises else None
    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    huffman = encode_huffman(coded) if coded else None
    return Container(text, [name.encode() for name in names], ordered, huffman, model)


def lane_count(elements: int) -> int:
    lanes = 1
    while lanes < 1024 and 64 * (2 * lanes) ** 2 <= elements:
        lanes *= 2
    return lanes


def rounds(tensors: list, lanes: int) -> Iterator[list[tuple[Codebook | Trellis, int]]]:
    """For each round, the tensor and the element that lane 0, lane 1, ... works on."""
    for tensor in tensors:
        elements = math.prod(tensor.shape)
        for start in range(0, elements, lanes):
            yield [(tensor, element) for element in range(start, min(start + lanes, elements))]


# ---------------------------------------------------------------- Huffman


def code_lengths(counts: Counter, levels: int) -> list[int]:
    """Optimal lengths; levels that never occur count as one, and counts are flattened until no code
    exceeds 16 bits."""
    heap = [(max(counts[level], 1), level, [level]) for level in range(levels)]
    lengths = [0] * levels
    heapq.heapify(heap)
    while len(heap) > 1:
        (count_a, tie, a), (count_b, _, b) = heapq.heappop(heap), heapq.heappop(heap)
        for level in a + b:
            lengths[level] += 1
        heapq.heappush(heap, (count_a + count_b, tie, a + b))
    if max(lengths) > 16:
        return code_lengths(Counter({level: counts[level] // 2 for level in range(levels)}), levels)
    return lengths


def canonical_codes(lengths: list[int]) -> list[str]:
    """Each level's code as a string of 0s and 1s."""
    codes, code, before = [""] * len(lengths), -1, 0
    for level in sorted(range(len(lengths)), key=lambda level: (lengths[level], level)):
        code = (code + 1) << (lengths[level] - before) if before else 0
        before = lengths[level]
        codes[level] = format(code, f"0{before}b") if before else ""
    return codes


def encode_huffman(tensors: list[Codebook]) -> Huffman:
    codes = {id(tensor): canonical_codes(tensor.lengths) for tensor in tensors}
    lanes = [""] * lane_count(sum(math.prod(tensor.shape) for tensor in tensors))
    for lap in rounds(tensors, len(lanes)):
        for lane, (tensor, element) in enumerate(lap):
            lanes[lane] += codes[id(tensor)][tensor.levels[element]]
    bits = "".join(lanes)
    words = [int(bits[start : start + 16].ljust(16, "0"), 2) for start in range(0, len(bits), 16)]
    return Huffman([len(lane) for lane in lanes], words)


# ---------------------------------------------------------------- trellis


def encode_trellis(tensors: list[Trellis], model: Model) -> Model:
    """Fills in the largest index and the frequencies (unless given), the states and the words."""
    elements = sum(math.prod(tensor.shape) for tensor in tensors)
    if model.largest is None:
        model.largest = max(abs(index) for tensor in tensors for index in tensor.indices)
    if not model.frequencies:
        counts = [Counter() for _ in range(model.contexts)]
        for tensor in tensors:
            for element, index in enumerate(tensor.indices):
                counts[tensor.context(element, model.contexts)][index + model.largest] += 1
        model.frequencies = [frequencies(count, 2 * model.largest + 1) for count in counts]
    model.states = [2**16] * lane_count(elements)
    model.words = []
    for lap in reversed(list(rounds(tensors, len(model.states)))):  # the encoder walks backwards
        for lane, (tensor, element) in reversed(list(enumerate(lap))):
            row = model.frequencies[tensor.context(element, model.contexts)]
            symbol = tensor.indices[element] + model.largest
            frequency, start = row[symbol], sum(row[:symbol])
            if model.states[lane] >= frequency << 18:
                model.words.append(model.states[lane] & 0xFFFF)
                model.states[lane] >>= 16
            times, rest = divmod(model.states[lane], frequency)
            model.states[lane] = times * 2**14 + start + rest
    model.words.reverse()
    return model


def frequencies(counts: Counter, symbols: int) -> list[int]:
    """Shares of 2^14, at least 1 for what occurs; the most frequent symbol takes up the
    rounding."""
    total = counts.total()
    if not total:
        return [0] * symbols
    shares = [0] * symbols
    for symbol, count in counts.items():
        shares[symbol] = max(1, count * 2**14 // total)
    shares[counts.most_common(1)[0][0]] += 2**14 - sum(shares)
    return shares


# ---------------------------------------------------------------- what a tensor's codes stand for


def values(tensor: Floats | Codebook | Trellis, log2_states: int) -> np.ndarray:
    """float32 weights in the tensor's shape."""
    if tensor.codec == 0:
        return np.array(tensor.weights, np.float32).reshape(tensor.shape)
    if tensor.codec == 1:
        return np.array(tensor.weights, np.float16).astype(np.float32).reshape(tensor.shape)
    if tensor.codec == 4:
        centroids = np.array(tensor.centroids, np.float16).astype(np.float32)
        return centroids[tensor.levels].reshape(tensor.shape)
    h0, h1 = (int(check, 8) for check in PARITY_CHECKS[log2_states].split())
    columns = math.prod(tensor.shape[1:])
    weights, state = [], 0
    for element, index in enumerate(tensor.indices):
        row, column = divmod(element, columns)
        if column == 0:
            state = 0
        union = state % 2
        point = np.float32((4 * index + 1) * (1 - 2 * union))
        weights.append(point * tensor.row_factor(row) * tensor.column_factor(column))
        state = state // 2 ^ (h0 // 2 if union else 0) ^ (h1 // 2 if index % 2 else 0)
    return np.array(weights, np.float32).reshape(tensor.shape)
