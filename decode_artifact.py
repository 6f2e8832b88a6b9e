r"""Reads PCLL artifacts with numpy and zstandard alone, and specifies the format.

    python decode_artifact.py artifact.pcll               header and a table of tensors
    python decode_artifact.py artifact.pcll --json        the same for machines
    python decode_artifact.py artifact.pcll --npz W.npz   writes the weights

    from decode_artifact import read_pcll
    config, weights = read_pcll("artifact.pcll")          # dict, dict of float32 arrays

The PCLL format, version 1
==========================
A reader MUST reject a file that departs from any rule outside Notes. Integers are little-endian;
floats are IEEE 754, subnormals kept; floor and mod are of the real quotient: -3 mod 2 = 1.

File      offset  type   field
          0       4      the bytes "PCLL"
          4       u16    version, 1
          6       u16    0
          8       u32    C, bytes of the content
          12      u32    F, file length - 16
          16      F      one zstd frame (RFC 8878): content size stated and equal to C, window at
                         most 2^27, checksum present and right, Dictionary_ID absent or 0

Content   part       type
          config     u32 length, that many bytes of JSON
          table      u16 number of tensors, then a record for each, names in strict bytewise order:
                     u8 name length, name, u8 codec, u8 number of dimensions, u32 each dimension
          side data  of each tensor, in table order, in the form that its codec gives
          Huffman    if a tensor has codec 4: L x u32 number of bits, the fewest u16 words that hold
                     them (L: see Lanes)
          trellis    if a tensor has codec 3: model, L x u32 state, u32 number of words, u16 words

Config    One flat JSON object in its one canonical form, ASCII without white space:
          names      strictly ascending by code point
          values     strings, integers, floats, true and false only
          strings    \" \\ \b \f \n \r \t; other code points below 0x20 or above 0x7e as \uxxxx in
                     lower case, above 0xffff as a surrogate pair; no lone surrogates
          integers   -2^63 to 2^63 - 1; no "+", "-0" or leading zeros
          floats     finite; the fewest digits that read back as the same float64, of those the
                     nearest, of two the even one. 1e-4 <= |x| < 1e16 and zeros: digits on both
                     sides of a point (1.0, -0.0); others: d or d.ddd, "e", sign, two or more digits
          weights_crc32, if present: the CRC-32 (as in zlib) of all values, float32 in table order,
          as an integer from 0 to 2^32 - 1

Codec     side data; rows are the first dimension, columns the product of the others (1 if none)
0 float32 values as four byte planes: the lowest byte of each, then the second, ...
1 float16 values as two byte planes, the low bytes first
3 trellis f32 step, 2^-100 to 2^100; i16 offset; i8 row spread of each row; i8 column spread of each
          column; i8 row exponent a of each row; i8 column exponent b of each column. Two or more
          dimensions, 16 or more rows
4 Huffman u8 number of levels, 1 or more; a float16 centroid each as two byte planes, strictly
          ascending, no -0; a u8 code length each, 0..16 (0 only of a single level), the sum of
          2^-length being 1

Lanes     A stream holds all tensors of its codec, E elements in all, in L lanes: L is the largest
          power of two with 64 L^2 <= E, at least 1, at most 1024. A tensor's elements (row-major)
          are taken L at a time; in such a round element i belongs to lane i. The last round of a
          tensor may be short; the next tensor starts at lane 0.

Huffman   Words hold the bits of lane 0, then of lane 1, ..., without gaps, most significant bit
          first: the bytes 34 12 are the bits 0001 0010 0011 0100. Zeros fill up the last word.
          Canonical codes: by (length, level), the first is 0, each next one the previous plus 1,
          shifted left by the increase in length; sent most significant bit first. In a round each
          lane decodes one code; a level's value is its centroid. Each lane ends where its bits do.

Trellis   model: u8 v (2^v states), 2..8; u16 K, 0..2047; u8 N, 1..64; N x (2K + 1) x u16 frequency,
          of the indices -K..K in each context; those of a context add up to 2^14, or are all 0.
          Contexts that no element has may have frequencies; K and N may be larger than needed.
          Each lane has a state x, at least 2^16 at first and between rounds. In a round, each lane:
          1. context = offset + row spread - a + column spread - b, exactly, clamped to 0..N-1;
             no element has an all-zero context.
          2. slot = x mod 2^14; the index q is the one with cum <= slot < cum + frequency, where cum
             is the sum of the frequencies before it; x = frequency * floor(x / 2^14) + slot - cum.
          3. Then lanes with x < 2^16, the lowest first, take the next word w: x = 2^16 x + w.
          At the end every state is 2^16, also of lanes never used; no word is left or missing.
          Points: along each row from s = 0, u = s mod 2: point = (4q + 1)(1 - 2u);
          s = floor(s / 2) xor (h0 if u) xor (h1 if q mod 2):
              v     2   3   4   5   6   7   8
              h0    2   5   9  18  33  78 166
              h1    1   2   2   4  10  43 121
          v = 5: q = 1, -2, 3, -1, 2 pass s = 0, 4, 2, 5, 20 and give points 5, -7, 13, 3, 9.
          Values: (float32(point) * row factor) * column factor, each product rounded to float32;
          row factor = 2^(a/4), column factor = (step / 4) * 2^(b/4), in float64, rounded once to
          float32, with 2^(e/4) = sqrt(sqrt(2^(e mod 4))) * 2^floor(e/4), each root rounded.
          Point 4K + 1 times a tensor's largest factors is finite.
          step 3f333333, a = b = -9, point 13: factors 3e5744fd, 3d16b04a, value 3dcde8d5 (bits).

Limits    at most: file 2^28 bytes; C 2^20 + 64 * file length; 2^16 + 64 * file length elements in
          all; config 2^16 bytes; 512 tensors, at least 1; names 100 characters, at least 1, out of
          a-z, 0-9, "_" and "."; 4 dimensions, each at least 1; for each element of a stream 16
          Huffman bits and 1 trellis word

Reject    bytes after the frame or the last part, gaps, overlaps
          bits behind the last code that are not zeros
          two tensors of one name, or names out of order
          a name that is another one plus ".npy"
          centroids, steps, floats, values that are NaN or infinite
          column factors that are zero or subnormal
          codes that are over- or under-full, levels that are equal
          frequencies that do not add up, states that do not end at 2^16

Example   v = 5; tensors a (19, 3, 5) and b (16, 2) have codec 3, c (7) 4, d (2) 1, e () 0. The
          file, and the SHA-256 of each tensor's float32 values:
50434c4c0100000040010000e600000028b52ffd644000c50600924c2f2c4059630b62ed4224030ff6c82ac7b3dc3e98
312913ad927c698e134ca4b78dec07383aa0766989d865dd52a6395013a78091a81ae3079c708a8925ecd64b69b7c1a2
393c3337d9538116d9d741f09ec4ff87678f731b999f7f3d4a7681e86d8476b82af346bddebaff1f4431d3ebac2907fe
57afd1fc52e9f7de8766c1a7d34c3028fc493ae7d19a0171feafff17b42acafff77ff5bf415543f95b56994448ed857d
b110cadbc22f6ca9b8ee8575df78157f582d53e94472b1b1ff8f0a20502fc3034fde5210288f9148020ff3101822a819
3033cbadb9c7
          a  802da2c751e736ab200f658453b8ceeda804cb522b0ae0dceb98c8423a253ede
          b  925e2c978c9828113907f8b87ff4f0d0672d79bd96aaa812736e472277023c50
          c  c15321c85b53118466fcebc00b3783e29acdb928a7cfc03b3745c60e1c730a64
          d  34fd27653ece7269e60f26dad69cd6684807335fde49246aa5a43aea2a0632cb
          e  fb360f7241a770dc32cade9a1d1273c92b13bd4959b1c130931312b7fe95e63f

Notes     In quarter octaves exponents say how large an element's own step is relative to step,
          spreads its weight relative to step, and contexts its weight relative to its own step.
          End states prove the entropy coder alone, weights_crc32 the rest; older files lack it.
          rANS: arXiv 1311.2540, 1402.3392. h0, h1: Ungerboeck (IEEE Trans. IT 28, 1982), halved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

MAGIC = b"PCLL"
VERSION = 1
HEADER = struct.Struct("<4sHHII")  # magic, version, zero, content length, frame length
MAX_FILE = 2**28  # bytes
MAX_WINDOW = 2**27  # bytes
MAX_CONFIG = 2**16  # bytes
MAX_TENSORS = 512
MAX_DIMENSIONS = 4
NAME = re.compile(rb"[a-z0-9_.]{1,100}")

FLOAT32 = 0
FLOAT16 = 1
TRELLIS = 3
HUFFMAN = 4
CODECS = {FLOAT32: "float32", FLOAT16: "float16", TRELLIS: "trellis", HUFFMAN: "huffman"}
MAX_LANES = 1024
MIN_ROWS = 16  # of a trellis tensor
LONGEST_CODE = 16  # bits
SLOT_BITS = 14
RANS_M = 2**SLOT_BITS  # what the frequencies of a context add up to
RANS_L = 2**16  # rANS states are at least this, and end at it
MAX_INDEX = 2047  # magnitude of a trellis index
PARITY_CHECKS = {
    2: (0o5, 0o2),
    3: (0o13, 0o4),
    4: (0o23, 0o4),
    5: (0o45, 0o10),
    6: (0o103, 0o24),
    7: (0o235, 0o126),
    8: (0o515, 0o362),
}  # log2 states -> h0, h1
ROOTS = np.sqrt(np.sqrt([1.0, 2.0, 4.0, 8.0]))  # 2^(0/4) to 2^(3/4)
QUARTER_POWERS = np.ldexp(ROOTS, np.arange(-32, 32)[:, None]).ravel()  # from 2^-32 on
BLOCK = 2**16  # elements decoded between two look-ups of values: bounds the memory for indices


class ArtifactError(ValueError):
    """The data is not a PCLL artifact; the message is a sentence that says what is wrong, and
    where."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(message)


@dataclass
class Tensor:
    """A record of the table."""

    name: str
    codec: int
    shape: tuple[int, ...]
    bits: float = 0.0  # of side data and codes, by how far reading them moves on

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Codebook:
    """Side data of a huffman tensor."""

    centroids: np.ndarray  # (K,) float32
    lengths: np.ndarray  # (K,) uint8, of codes in bits


@dataclass
class Grid:
    """Side data of a trellis tensor."""

    row_spreads: np.ndarray  # (rows,) int32, with offset, less a
    column_spreads: np.ndarray  # (columns,) int32, less b
    row_factors: np.ndarray  # (rows,) float32
    column_factors: np.ndarray  # (columns,) float32


# ---------------------------------------------------------------- the file and its parts


class Cursor:
    """Walks through the content; every read is checked against what is left."""

    def __init__(self, content: bytes):
        self.content = memoryview(content)
        self.position = 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.content) - self.position
        require(
            size <= left,
            f"{what}: {size} bytes are due at content byte {self.position}, where {left} are left",
        )
        self.position += size
        return self.content[self.position - size : self.position]

    def unpack(self, fields: str, what: str) -> tuple:
        """Little-endian fields in the notation of the struct module."""
        return struct.unpack("<" + fields, self.take(struct.calcsize("<" + fields), what))

    def array(self, dtype: str, count: int, what: str) -> np.ndarray:
        """(count,) view of the content."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count, what), dtype)


def inflate(data: bytes) -> bytes:
    """The content of a file; raises ArtifactError if header or zstd frame are not as specified."""
    require(len(data) <= MAX_FILE, f"the file has {len(data)} bytes, above the limit of {MAX_FILE}")
    require(
        len(data) >= HEADER.size,
        f"the file has {len(data)} bytes, fewer than the header's {HEADER.size}",
    )

    magic, version, zero, content_size, frame_size = HEADER.unpack_from(data)
    require(magic == MAGIC, f"the file starts with {magic!r} and not with {MAGIC!r}")
    require(
        version == VERSION,
        f"the file has version {version} and this program reads version {VERSION}",
    )
    require(zero == 0, f"header bytes 6 and 7 hold {zero} and not zero")

    left = len(data) - HEADER.size
    require(
        frame_size == left,
        f"the header announces a frame of {frame_size} bytes and {left} follow it",
    )
    limit = 2**20 + 64 * len(data)
    require(
        content_size <= limit,
        f"the header announces {content_size} bytes of content, above the limit of {limit}",
    )

    frame = memoryview(data)[HEADER.size :]
    try:
        about = zstandard.get_frame_parameters(frame)
        require(
            about.content_size == content_size,
            f"the zstd frame does not state the header's content size of {content_size} bytes",
        )
        require(about.has_checksum, "the zstd frame has no content checksum")
        require(about.dict_id == 0, f"the zstd frame asks for dictionary {about.dict_id}")
        require(
            about.window_size <= MAX_WINDOW,
            f"the zstd frame needs a window of {about.window_size} bytes, above {MAX_WINDOW}",
        )
        return zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=content_size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ArtifactError(
            f"the zstd frame at file byte {HEADER.size} is not valid ({error})"
        ) from None


def read_config(cursor: Cursor) -> dict:
    (size,) = cursor.unpack("I", "the length of the config")
    require(size <= MAX_CONFIG, f"the config has {size} bytes, above the limit of {MAX_CONFIG}")
    text = bytes(cursor.take(size, "the config"))

    try:
        config = json.loads(text.decode("ascii"))
        require(type(config) is dict, "the config is not a JSON object")
        for name, value in config.items():
            require(
                type(value) in (str, int, float, bool),
                f"config entry {name!a:.60} is neither a string, a number nor a boolean",
            )
            require(
                type(value) is not int or -(2**63) <= value < 2**63,
                f"config entry {name!a:.60} is an integer of more than 64 bits",
            )
        json.dumps(config, ensure_ascii=False).encode()  # refuses lone surrogates
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ArtifactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the config is not JSON of the permitted kind ({error})") from None

    require(
        canonical.encode() == text,
        "the config is not in canonical form (sorted, compact, ASCII, no duplicates)",
    )
    return config


def read_table(cursor: Cursor, file_size: int) -> list[Tensor]:
    limit = 2**16 + 64 * file_size
    (count,) = cursor.unpack("H", "the number of tensors")
    require(1 <= count <= MAX_TENSORS, f"the table has {count} tensors and not 1 to {MAX_TENSORS}")

    tensors = []
    before = b""  # the name before
    elements = 0
    for index in range(count):
        (size,) = cursor.unpack("B", f"the name of tensor {index}")
        raw = bytes(cursor.take(size, f"the name of tensor {index}"))
        require(
            NAME.fullmatch(raw) is not None,
            f"the name of tensor {index}, {raw!r:.130}, "
            "is not 1 to 100 characters out of a-z 0-9 _ .",
        )
        name = raw.decode()
        require(raw > before, f"tensor {index}, {name}, comes out of order or twice")
        require(
            not name.endswith(".npy") or name[:-4] not in (tensor.name for tensor in tensors),
            f"tensor {index}, {name}, collides with {name[:-4]} in np.load",
        )

        codec, dimensions = cursor.unpack("BB", f"the record of tensor {name}")
        require(codec in CODECS, f"tensor {name} has the unknown codec {codec}")
        require(
            dimensions <= MAX_DIMENSIONS,
            f"tensor {name} has {dimensions} dimensions, above {MAX_DIMENSIONS}",
        )

        tensor = Tensor(name, codec, cursor.unpack(f"{dimensions}I", f"the shape of tensor {name}"))
        require(0 not in tensor.shape, f"tensor {name} has a dimension of 0")
        elements += tensor.size
        require(
            elements <= limit,
            f"the tensors up to {name} have {elements} elements, above the limit of {limit}",
        )
        require(
            codec != TRELLIS or (dimensions >= 2 and tensor.shape[0] >= MIN_ROWS),
            f"trellis tensor {name} has shape {tensor.shape}: "
            f"it needs two dimensions and {MIN_ROWS} rows or more",
        )

        tensors.append(tensor)
        before = raw
    return tensors


# ---------------------------------------------------------------- side data


def read_planes(cursor: Cursor, dtype: str, count: int, what: str) -> np.ndarray:
    """(count,) float32 from the byte planes of floats."""
    width = np.dtype(dtype).itemsize
    planes = cursor.array("u1", width * count, what).reshape(width, count)
    values = np.ascontiguousarray(planes.T).view(dtype).astype(np.float32, copy=False).ravel()
    require(bool(np.isfinite(values).all()), f"{what} has a value that is not finite")
    return values


def read_floats(cursor: Cursor, tensor: Tensor) -> np.ndarray:
    """Weights of a float32 or float16 tensor, in its shape."""
    dtype = "<f4" if tensor.codec == FLOAT32 else "<f2"
    return read_planes(cursor, dtype, tensor.size, f"tensor {tensor.name}").reshape(tensor.shape)


def read_codebook(cursor: Cursor, tensor: Tensor) -> Codebook:
    what = f"the codebook of tensor {tensor.name}"
    (levels,) = cursor.unpack("B", what)
    require(levels >= 1, f"{what} is empty")

    centroids = read_planes(cursor, "<f2", levels, what)
    require(
        bool((np.diff(centroids) > 0).all()), f"the centroids of {what} are not strictly increasing"
    )
    require(not np.signbit(centroids[centroids == 0]).any(), f"{what} has a negative zero")

    lengths = cursor.array("u1", levels, f"the code lengths of tensor {tensor.name}")
    require(
        bool((lengths <= LONGEST_CODE).all()),
        f"tensor {tensor.name} has a code of more than {LONGEST_CODE} bits",
    )
    kraft = int((1 << (LONGEST_CODE - lengths.astype(np.int64))).sum())
    require(kraft <= 1 << LONGEST_CODE, f"the code of tensor {tensor.name} is over-full")
    require(kraft >= 1 << LONGEST_CODE, f"the code of tensor {tensor.name} is under-full")
    return Codebook(centroids, lengths)


def read_grid(cursor: Cursor, tensor: Tensor) -> Grid:
    what = f"the spreads and exponents of tensor {tensor.name}"
    step, offset = cursor.unpack("fh", what)
    require(
        2.0**-100 <= step <= 2.0**100, f"tensor {tensor.name} has a step out of 2^-100 to 2^100"
    )

    counts = (tensor.shape[0], math.prod(tensor.shape[1:]))
    row_spreads, column_spreads, row_exponents, column_exponents = (
        cursor.array("i1", count, what) for count in 2 * counts
    )
    factors = step_factors(step / 4, column_exponents)
    require(
        bool((factors >= 2.0**-126).all() and np.isfinite(factors).all()),
        f"tensor {tensor.name} has a column factor that is zero, subnormal or infinite",
    )
    return Grid(
        row_spreads=np.subtract(row_spreads, row_exponents, dtype=np.int32) + offset,
        column_spreads=np.subtract(column_spreads, column_exponents, dtype=np.int32),
        row_factors=step_factors(1.0, row_exponents),
        column_factors=factors,
    )


def step_factors(unit: float, steps: np.ndarray) -> np.ndarray:
    """unit * 2^(steps / 4), (n,) float32, of int8 steps."""
    with np.errstate(over="ignore"):
        return (unit * QUARTER_POWERS).astype(np.float32)[steps.astype(np.int16) + 128]


READERS = {FLOAT32: read_floats, FLOAT16: read_floats, TRELLIS: read_grid, HUFFMAN: read_codebook}

# ---------------------------------------------------------------- streams


def lane_count(elements: int) -> int:
    return min(MAX_LANES, 1 << max(0, (elements // 64).bit_length() - 1) // 2)


def groups(flat: np.ndarray, lanes: int) -> Iterator[np.ndarray]:
    """Cuts a flat array into views (groups, lanes) of about BLOCK elements; a last, short group
    comes alone, (1, n)."""
    full = len(flat) - len(flat) % lanes
    step = max(BLOCK // lanes, 1) * lanes
    for start in range(0, full, step):
        yield flat[start : min(start + step, full)].reshape(-1, lanes)
    if full < len(flat):
        yield flat[full:].reshape(1, -1)


class HuffmanStream:
    """The codes of all huffman tensors."""

    def __init__(self, cursor: Cursor, elements: int):
        lane_bits = cursor.array(
            "<u4", lane_count(elements), "the bits per lane of the huffman stream"
        ).astype(np.int64)
        self.ends = np.cumsum(lane_bits)  # (lanes,) int64, in bits
        self.positions = self.ends - lane_bits  # (lanes,) int64: of each lane's next code
        total = int(self.ends[-1])
        require(
            total <= LONGEST_CODE * elements,
            f"the huffman stream has {total} bits for {elements} elements",
        )

        words = cursor.array("<u2", -(-total // 16), "the huffman stream")
        self.windows = np.zeros(len(words) + 1, np.uint32)  # 32 bits from each word on, then zeros
        self.windows[:-1] = words
        self.windows <<= 16
        self.windows[:-2] |= words[1:]

    def bits_left(self) -> float:
        return float((self.ends - self.positions).sum())

    def decode(self, tensor: Tensor, book: Codebook) -> np.ndarray:
        """Weights, float32 in the tensor's shape."""
        # In canonical order the codes tile the range of what the next `width` bits can be.
        order = np.argsort(book.lengths, kind="stable")
        lengths = book.lengths[order].astype(np.int64)
        width = int(lengths.max())
        spans = 1 << (width - lengths)
        value_at = np.repeat(book.centroids[order], spans)
        length_at = np.repeat(lengths, spans)

        weights = np.empty(tensor.size, np.float32)
        for block in groups(weights, len(self.positions)):
            positions = self.positions[: block.shape[1]]
            starts = np.empty(block.shape, np.intp)  # `width` bits from where each code starts
            for start in starts:
                window = self.windows.take(positions >> 4, mode="clip")
                start[:] = window >> (32 - width - (positions & 15)) & (1 << width) - 1
                positions += length_at[start]
            block[...] = value_at[starts]
        return weights.reshape(tensor.shape)

    def finish(self) -> None:
        require(
            np.array_equal(self.positions, self.ends),
            "a lane of the huffman stream does not end where its bits do",
        )
        require(
            not (self.windows[-2:-1] << (int(self.ends[-1]) % 16 or 16)).any(),
            "the huffman stream is not filled up with zeros",
        )


@dataclass
class TrellisModel:
    """What the trellis tensors share."""

    log2_states: int
    largest: int  # magnitude K of an index: symbols 0..2K are the indices -K..K
    frequencies: np.ndarray  # (contexts, 2K+1) int64, a context's sum being 2^14, or 0 if unused


def read_model(cursor: Cursor) -> TrellisModel:
    log2_states, largest, contexts = cursor.unpack("BHB", "the trellis model")
    require(
        log2_states in PARITY_CHECKS,
        f"the trellis model has 2^{log2_states} states and not 2^2 to 2^8",
    )
    require(
        largest <= MAX_INDEX, f"the trellis model has indices up to {largest}, above {MAX_INDEX}"
    )
    require(1 <= contexts <= 64, f"the trellis model has {contexts} contexts and not 1 to 64")

    frequencies = cursor.array("<u2", contexts * (2 * largest + 1), "the table of frequencies")
    frequencies = frequencies.astype(np.int64).reshape(contexts, -1)
    for context, total in enumerate(frequencies.sum(axis=1).tolist()):
        require(
            total in (0, RANS_M),
            f"the frequencies of context {context} add up to {total} and not to {RANS_M} or 0",
        )
    return TrellisModel(log2_states, largest, frequencies)


@dataclass
class SlotTables:
    """For every context and slot, (contexts * 2^14,)."""

    symbol_at: np.ndarray  # uint16; 2K+1, which is none, in unused contexts
    frequency_at: np.ndarray  # uint32: the symbol's
    place_at: np.ndarray  # uint32: the slot's among those of its symbol


def slot_tables(model: TrellisModel) -> SlotTables:
    unused = RANS_M - model.frequencies.sum(axis=1, keepdims=True)
    filled = np.hstack([model.frequencies, unused])
    contexts, symbols = filled.shape
    starts = np.cumsum(filled, axis=1) - filled

    spans = filled.ravel()
    symbol_at = np.repeat(np.tile(np.arange(symbols, dtype=np.uint16), contexts), spans)
    frequency_at = np.repeat(spans.astype(np.uint32), spans)
    place_at = np.tile(np.arange(RANS_M, dtype=np.uint32), contexts)
    place_at -= np.repeat(starts.ravel().astype(np.uint32), spans)
    return SlotTables(symbol_at, frequency_at, place_at)


class TrellisStream:
    """The model that the trellis tensors share, and the codes of all their indices."""

    def __init__(self, cursor: Cursor, elements: int):
        self.model = read_model(cursor)
        states = cursor.array("<u4", lane_count(elements), "the list of trellis states")
        require(bool((states >= RANS_L).all()), "a trellis state starts below 2^16")
        (count,) = cursor.unpack("I", "the word count of the trellis stream")
        require(
            count <= elements,
            f"the trellis stream has {count} words for {elements} elements, which is too many",
        )
        words = cursor.array("<u2", count, "the trellis stream")

        self.states = states.astype(np.uint32)  # (lanes,)
        self.words = words.astype(np.uint32)  # (words,)
        self.position = 0  # of the next word
        self.tables = slot_tables(self.model)

    def bits_left(self) -> float:
        """Those of the words, and what the states hold above 2^16."""
        left = len(self.words) - self.position
        return 16 * left + float(np.log2(self.states / RANS_L).sum())

    def decode(self, tensor: Tensor, grid: Grid) -> np.ndarray:
        """Weights, float32 in the tensor's shape."""
        largest = self.model.largest
        with np.errstate(over="ignore"):
            top = np.float32(4 * largest + 1) * grid.row_factors.max() * grid.column_factors.max()
        require(
            bool(np.isfinite(top)),
            f"tensor {tensor.name} has steps so large that a weight may be infinite",
        )

        symbols = self.decode_symbols(element_contexts(grid, self.model))
        require(
            int(symbols.max()) <= 2 * largest,
            f"tensor {tensor.name} uses a context that has no frequencies",
        )

        indices = symbols.astype(np.int32).reshape(tensor.shape[0], -1)
        indices -= largest
        weights = trellis_weights(indices, grid, self.model.log2_states)
        return weights.reshape(tensor.shape)

    def decode_symbols(self, contexts: np.ndarray) -> np.ndarray:
        """(elements,) uint16 from the elements' contexts, (elements,) uint8."""
        tables = self.tables
        lanes = len(self.states)
        symbols = np.empty(len(contexts), np.uint16)
        for block, context in zip(groups(symbols, lanes), groups(contexts, lanes), strict=True):
            states = self.states[: block.shape[1]]
            cells = context.astype(np.intp) * RANS_M  # the contexts' first; slots are added
            for cell in cells:
                cell += states & (RANS_M - 1)
                states >>= SLOT_BITS
                states *= tables.frequency_at[cell]
                states += tables.place_at[cell]
                low = (states < RANS_L).nonzero()[0]
                if len(low):
                    states[low] = states[low] << 16 | self.next_words(len(low))
            block[...] = tables.symbol_at[cells]
        return symbols

    def next_words(self, count: int) -> np.ndarray:
        """(count,) uint32."""
        start = self.position
        self.position += count
        if self.position > len(self.words):
            raise ArtifactError(
                f"the trellis stream ends after {len(self.words)} words, before its last element"
            )
        return self.words[start : self.position]

    def finish(self) -> None:
        left = len(self.words) - self.position
        require(not left, f"the trellis stream has {left} words left over after its last element")
        require(bool((self.states == RANS_L).all()), "a trellis state does not end at 2^16")


def element_contexts(grid: Grid, model: TrellisModel) -> np.ndarray:
    """(elements,) uint8."""
    sums = np.add.outer(grid.row_spreads, grid.column_spreads)
    return np.clip(sums, 0, len(model.frequencies) - 1, out=sums).astype(np.uint8).ravel()


def trellis_weights(indices: np.ndarray, grid: Grid, log2_states: int) -> np.ndarray:
    """(rows, columns) float32 from int32 indices, which it overwrites."""
    union = union_bits(indices & 1, log2_states)
    indices *= 4
    indices += 1
    np.negative(indices, out=indices, where=union)
    weights = indices.astype(np.float32)
    weights *= grid.row_factors[:, None]
    weights *= grid.column_factors
    return weights


def union_bits(odd: np.ndarray, log2_states: int) -> np.ndarray:
    """Union bit of each element, (rows, columns) bool, from the parity of the indices.

    Step by step the state shifts and takes in h0 where u is 1 and h1 where the index is odd. Seen
    along a whole row this is a linear filter over GF(2), h0(D) u = h1(D) odd with D the delay by
    one column. As h0(D)^2 = h0(D^2), the inverse of h0(D) is h0(D) h0(D^2) h0(D^4) ..., up to the
    delay at which nothing but the 1 falls within the row. So a row needs log2(columns) passes and
    no loop over its columns. Eight rows share a byte.
    """
    h0, h1 = PARITY_CHECKS[log2_states]
    bits = delayed_sum(np.packbits(odd.astype(bool), axis=0), h1, 1)
    delay = 1
    while delay < odd.shape[1]:
        bits = delayed_sum(bits, h0, delay)
        delay *= 2
    return np.unpackbits(bits, axis=0, count=odd.shape[0]).view(bool)


def delayed_sum(bits: np.ndarray, taps: int, delay: int) -> np.ndarray:
    """Exclusive or of the rows' copies that are delayed by i * delay columns, for each bit i that
    is set in taps."""
    total = np.zeros_like(bits)
    columns = bits.shape[1]
    for i in range(taps.bit_length()):
        if taps >> i & 1 and i * delay < columns:
            total[:, i * delay :] ^= bits[:, : columns - i * delay]
    return total


STREAMS = {HUFFMAN: HuffmanStream, TRELLIS: TrellisStream}  # in their order in the file

# ---------------------------------------------------------------- reading


class Parsed(NamedTuple):
    """What an artifact holds."""

    config: dict
    tensors: list[Tensor]  # the table
    weights: dict[str, np.ndarray]  # float32, in the shapes of the table


def parse_pcll(data: bytes) -> Parsed:
    """Raises ArtifactError with the sentence that says what is wrong with the file."""
    content = inflate(data)
    cursor = Cursor(content)
    config = read_config(cursor)
    tensors = read_table(cursor, len(data))

    side = {}  # by name: Codebook, Grid, or the weights themselves
    for tensor in tensors:
        start = cursor.position
        side[tensor.name] = READERS[tensor.codec](cursor, tensor)
        tensor.bits = 8.0 * (cursor.position - start)

    weights = dict(side)  # in the table's order; what is decoded takes the side data's place
    for codec, open_stream in STREAMS.items():
        coded = [tensor for tensor in tensors if tensor.codec == codec]
        if not coded:
            continue
        stream = open_stream(cursor, sum(tensor.size for tensor in coded))
        for tensor in coded:
            before = stream.bits_left()
            weights[tensor.name] = stream.decode(tensor, side[tensor.name])
            tensor.bits += before - stream.bits_left()
        stream.finish()

    left = len(content) - cursor.position
    require(not left, f"{left} bytes follow the last part at content byte {cursor.position}")
    require_crc32(config, weights)
    return Parsed(config, tensors, weights)


def require_crc32(config: dict, weights: dict[str, np.ndarray]) -> None:
    """Of all weights, in the table's order, if the config states it."""
    if "weights_crc32" in config:
        stated = config["weights_crc32"]
        crc = 0
        for array in weights.values():
            crc = zlib.crc32(np.ascontiguousarray(array, "<f4"), crc)
        require(
            type(stated) is int and stated == crc,
            f"the weights have the CRC-32 {crc}, and the config states {stated!a:.60}",
        )


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of a file; raises ArtifactError before reading one that is too large or no regular
    file, OSError if it cannot be read."""
    mode = os.stat(path).st_mode
    require(stat.S_ISREG(mode) or stat.S_ISDIR(mode), "it is no regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= MAX_FILE, f"the file has {size} bytes, above the limit of {MAX_FILE}")
        return file.read(size)


def read_pcll(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Config and weights (float32 by name) of an artifact file; raises ArtifactError or OSError."""
    config, _, weights = parse_pcll(read_bytes(path))
    return config, weights


# ---------------------------------------------------------------- the command line


def describe(data: bytes, config: dict, tensors: list[Tensor]) -> dict:
    """What the command line prints, as JSON types: sizes in bytes, of codes without padding."""
    content_bytes = HEADER.unpack_from(data)[3]
    rows = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "codec": CODECS[tensor.codec],
            "weights": tensor.size,
            "bytes": tensor.bits / 8,
            "bits_per_weight": tensor.bits / tensor.size,
        }
        for tensor in tensors
    ]

    weights = sum(row["weights"] for row in rows)
    tensor_bytes = sum(row["bytes"] for row in rows)
    totals = {
        "weights": weights,
        "tensor_bytes": tensor_bytes,
        "shared_bytes": content_bytes - tensor_bytes,
        "content_bytes": content_bytes,
        "file_bytes": len(data),
        "bits_per_weight": 8 * len(data) / weights,
    }
    return {"version": VERSION, "config": config, "tensors": rows, "totals": totals}


def as_table(report: dict) -> str:
    totals = report["totals"]
    width = max(len("name"), *(len(row["name"]) for row in report["tensors"]))
    line = f"{{:{width}}}  {{:>16}}  {{:8}}{{:>16}}{{:>13}}".format
    lines = [
        f"PCLL version {report['version']}, {len(report['tensors'])} tensors, "
        f"{totals['weights']:,} weights",
        "config " + json.dumps(report["config"], sort_keys=True),
        "",
        line("name", "shape", "codec", "bytes", "bits/weight"),
    ]

    for row in report["tensors"]:
        lines.append(
            line(
                row["name"],
                "x".join(map(str, row["shape"])) or "scalar",
                row["codec"],
                f"{row['bytes']:,.0f}",
                f"{row['bits_per_weight']:.4f}",
            )
        )

    for label, key in (
        ("tensors", "tensor_bytes"),
        ("config, table, models, padding", "shared_bytes"),
        ("content before zstd", "content_bytes"),
        ("file", "file_bytes"),
    ):
        lines.append(
            f"{label:{width + 28}}{totals[key]:>16,.0f}{8 * totals[key] / totals['weights']:>13.4f}"
        )
    return "\n".join(lines)


def write_npz(path: str, weights: dict[str, np.ndarray]) -> None:
    """Writes an uncompressed .npz, whole or not at all; raises OSError, also where something lies
    there that is no regular file."""
    final = Path(path)
    if os.path.lexists(final) and (final.is_symlink() or not final.is_file()):
        raise OSError(f"{final} is there and is no regular file")
    if not final.parent.is_dir():
        raise OSError(f"{final.parent} is no folder")

    draft = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in weights.items():
                    with archive.open(
                        zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True
                    ) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 2 after one sentence on stderr, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Reads PCLL artifacts: prints a table of tensors, writes the weights."
    )
    parser.add_argument("artifact", help="the .pcll file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--npz", metavar="FILE", help="write the weights as float32 arrays")
    options = parser.parse_args(arguments)

    try:
        data = read_bytes(options.artifact)
        config, tensors, weights = parse_pcll(data)
        if options.npz is not None:
            if os.path.exists(options.npz) and os.path.samefile(options.npz, options.artifact):
                raise ArtifactError("--npz names the artifact itself")
            write_npz(options.npz, weights)
        report = describe(data, config, tensors)
        print(json.dumps(report, indent=1) if options.json else as_table(report), flush=True)
    except BrokenPipeError:  # the reader of our output has gone, which is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("decode_artifact.py: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except (ArtifactError, OSError, MemoryError) as error:
        problem = getattr(error, "strerror", None) or error or "there is not enough memory"
        print(f"{options.artifact}: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
