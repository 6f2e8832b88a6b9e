"""Mutates PCLL files and holds the decoders against each other.

    python tests/attacks/fuzz.py [--runs N] [--seed S]

Run number i makes one file from the random seed S + i, so that `--seed <S + i> --runs 1` repeats
it. decode_artifact.py must refuse the file with its own error or read it. What it reads,
train_gpt.py, which opens only its own files and checks nothing, must read as the same weights, bit
for bit; it knows trellis codes of 32 states only. Warnings count as crashes; a file that takes
longer than a minute ends the program with a traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import random
import struct
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import decode_artifact
import train_gpt
from attacks.build import Codebook, Floats, Model, Trellis, build, sign
from attacks.forge import sample

BOUNDARIES = [
    (width, value % 2 ** (8 * width))
    for width in (1, 2, 4)
    for power in (0, 1, 4, 7, 8, 14, 15, 16, 20, 24, 31, 32)
    for value in (2**power - 1, 2**power, 2**power + 1, -(2**power))
    if power <= 8 * width
]
FLOATS = [
    struct.pack("<f", value)
    for value in (float("nan"), float("inf"), -0.0, 1e-45, 2.0**-100, 2.0**100, 3e38)
]


@functools.cache
def seeds() -> list[bytes]:
    """Contents that are valid: small ones, of one codec each and of all; the last has several
    lanes."""
    rng = random.Random(0)

    def noise(elements: int, spread: float) -> list[int]:
        return [round(rng.gauss(0, spread)) for _ in range(elements)]

    def levels(elements: int, spread: float, most: int) -> list[int]:
        return [min(abs(x), most) for x in noise(elements, spread)]

    floats = [1.0, -2.0, 0.0, 3.5, -0.0]
    steps = dict(row_exponents=noise(16, 20), column_exponents=noise(3, 20))
    odd = [noise(17, 2), None, 3, noise(17, 1), noise(4, 1)]
    even = [None, noise(4, 2), -1, None, noise(4, 2)]
    far = {"a": Trellis((17, 2, 2), noise(68, 3), 2.0**-100, *odd)}
    far["b"] = Trellis((16, 4), noise(64, 3), 2.0**100, *even)
    lanes = {"h": Codebook((200, 3), levels(600, 1, 3), [-1, 0, 1, 2])}
    lanes["t"] = Trellis((17, 40), noise(680, 1.5), 1.0, noise(17, 1), None, 0, None, noise(40, 1))
    containers = [
        ({"w": Floats((3, 2), [*floats, 1e-40])}, None),
        ({"w": Floats((2, 3), [*floats, 6e-8], codec=1), "w.x": Floats((), [1.0])}, None),
        ({"w": Codebook((7, 5), levels(35, 2, 5), [-1, -0.5, 0, 0.25, 1, 3])}, None),
        ({"w": Codebook((8, 5), levels(40, 1, 3), [-1, 0, 1, 2])}, None),
        (
            {"a": Codebook((9,), [0, 1] * 4 + [1], [0, 1]), "b": Codebook((40,), [0] * 40, [2])},
            None,
        ),
        ({"w": Trellis((16, 3), noise(48, 1), 0.5, **steps)}, Model(2, 1)),
        (far, Model(5, 5)),
        (lanes, Model(5, 3)),
    ]
    built = [
        build({"seed": number, "rate": 0.5}, tensors, model)
        for number, (tensors, model) in enumerate(containers)
    ]
    return [container.content() for container in [sample(), *built]]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A random change: bits, a boundary value, a cut, a repetition, a piece from elsewhere in it or
    in another seed."""
    at = rng.randrange(len(data) + 1)
    size = min(1 << rng.randrange(8), len(data) - at)
    kind = rng.randrange(9)
    if kind <= 1:
        bit = rng.randrange(8)
        return data[:at] + bytes(byte ^ 1 << bit for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(size) + data[at + size :]
    if kind == 3:
        width, value = rng.choice(BOUNDARIES)
        return data[:at] + value.to_bytes(width, "little") + data[at + width :]
    if kind == 4:
        width = rng.choice((1, 2, 4))
        value = int.from_bytes(data[at : at + width], "little") + rng.randint(-3, 3)
        return data[:at] + (value % 2 ** (8 * width)).to_bytes(width, "little") + data[at + width :]
    if kind == 5:
        return data[:at] + rng.choice(FLOATS) + data[at + 4 :]
    if kind == 6:
        return data[:at] + data[at + size :] if rng.random() < 0.8 else data[:at]
    if kind == 7:
        return data[: at + size] + data[at : at + size] + data[at + size :]
    other = rng.choice((data, rng.choice(seeds())))
    start = rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + size] + data[at + rng.choice((0, size)) :]


def make_file(seed: int) -> bytes:
    """Mutated content in a frame that is signed anew, or one time in eight a mutated file."""
    rng = random.Random(seed)
    data = rng.choice(seeds()[:-1] * 4 + seeds()[-1:])
    signed = rng.random() < 0.125
    if signed:
        data = sign(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 8))):
        data = mutate(rng, data)
    return data if signed else sign(data)


def log2_states(data: bytes) -> int | None:
    """Of the trellis model of a file that decode_artifact.py reads; None if it has no paths."""
    cursor = decode_artifact.Cursor(decode_artifact.inflate(data))
    decode_artifact.read_config(cursor)
    sizes = Counter()
    for tensor in decode_artifact.read_table(cursor, len(data)):
        decode_artifact.READERS[tensor.codec](cursor, tensor)
        sizes[tensor.codec] += tensor.size
    if sizes[decode_artifact.HUFFMAN]:
        decode_artifact.HuffmanStream(cursor, sizes[decode_artifact.HUFFMAN])
    if not sizes[decode_artifact.TRELLIS]:
        return None
    return decode_artifact.read_model(cursor).log2_states


def check(data: bytes) -> str:
    """'refused', 'read' or, if train_gpt.py reads it, too, 'read by both'; AssertionError if a
    reader crashes or they disagree."""
    try:
        weights = decode_artifact.parse_pcll(data).weights
    except decode_artifact.ArtifactError as refusal:
        sentence = str(refusal)
        if not sentence or "\n" in sentence:  # no assert, which python -O leaves out
            raise AssertionError(f"refused with {sentence!r}: {data.hex()}") from refusal
        return "refused"
    except Exception as crash:
        raise AssertionError(f"decode_artifact.py crashes with {crash!r}: {data.hex()}") from crash
    if log2_states(data) not in (None, train_gpt.LOG2_STATES):
        return "read"
    try:
        other_weights = train_gpt.decode_pcll(data)
    except Exception as crash:
        raise AssertionError(f"train_gpt.py crashes with {crash!r}: {data.hex()}") from crash
    if exact(weights) != exact(other_weights):
        raise AssertionError(f"the two decoders disagree: {data.hex()}")
    return "read by both"


def exact(weights: dict) -> list:
    return [(name, w.shape, w.dtype.str, w.tobytes()) for name, w in sorted(weights.items())]


def fuzz(runs: int, seed: int) -> Counter:
    outcomes = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(seed, seed + runs):
            if i % 64 == 0:
                faulthandler.dump_traceback_later(60, exit=True)
            try:
                outcomes[check(make_file(i))] += 1
            except AssertionError as failure:
                raise AssertionError(f"seed {i}: {failure}") from failure
    faulthandler.cancel_dump_traceback_later()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="number of files")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first file")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        outcomes = fuzz(options.runs, options.seed)
    except AssertionError as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"{options.runs} files in {time.perf_counter() - start:.0f} s: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
