"""Codec: what goes in comes out, in both decoders alike, and the codes are as short as can be."""

import contextlib
import heapq
import io
import itertools
import math
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import zstandard
from bench.rate import even
from conftest import ROOT, random_model, tiny_settings
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import decode_artifact
import train_gpt
from train_gpt import (
    FloatTensor,
    UserError,
    decode_pcll,
    encode_huffman,
    encode_pcll,
    encode_tensor,
    encode_trellis,
    huffman_lengths,
    viterbi_search,
)

SHAPES = st.one_of(
    npst.array_shapes(max_dims=3, max_side=40), st.tuples(st.integers(16, 40), st.integers(1, 60))
)
SCALES = st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 3e4, 1e30])
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOAT32, FLOAT16, TRELLIS, HUFFMAN = 0, 1, 3, 4


@st.composite
def weights(draw) -> np.ndarray:
    """Gaussian, on very different scales, and with something else about it."""
    shape, rng = draw(SHAPES), np.random.default_rng(draw(st.integers(0, 2**32)))
    w = rng.standard_normal(shape)
    kinds = [
        w * np.exp(rng.standard_normal((shape[0],) + (1,) * (w.ndim - 1))),  # rows
        w * np.exp(rng.standard_normal(shape[1:])),  # columns
        np.full(shape, w.flat[0]),  # constant
        w * (rng.random(shape) < 0.1),  # sparse
        np.where(w == w.flat[0], 1000, w),  # an outlier
        np.where(w > 0, w, -0.0),
    ]
    return (kinds[draw(st.integers(0, 5))] * draw(SCALES)).astype(np.float32)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both_decoders(artifact: bytes) -> dict[str, np.ndarray]:
    """The weights, after holding the two decoders' against each other bit for bit."""
    ours = decode_pcll(artifact)
    theirs = decode_artifact.parse_pcll(artifact).weights
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        assert ours[name].shape == theirs[name].shape
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    return ours


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.square(error, dtype=np.float64).mean()))


def nearest_of(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values[np.abs(w.reshape(-1, 1) - values).argmin(axis=1)].reshape(w.shape)


@settings(max_examples=80, deadline=None)
@given(
    tensors=st.lists(weights(), min_size=1, max_size=3),
    codec=st.sampled_from(["huffman", "trellis"]),
    step_scale=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_round_trip_and_both_decoders(tensors, codec, step_scale):
    # more may be too constant for a file that decode_artifact.py takes
    assume(sum(w.size for w in tensors) <= 1 << 16)
    s = tiny_settings(CODEC=codec)
    coded = {}
    for i, w in enumerate(tensors):
        # a trellis tensor has rows and columns
        name = f"blocks.{i}.mlp.up" if codec == "huffman" or w.ndim > 1 else f"blocks.{i}.mlp_scale"
        moments = {name: even(w, 0.001 * w.var() + 1e-9)}
        coded[name] = encode_tensor(name, w, s, step_scale, moments)

    decoded = both_decoders(encode_pcll({"codec": codec}, coded))
    for w, (name, tensor) in zip(tensors, coded.items(), strict=True):
        assert decoded[name].shape == w.shape
        assert decoded[name].tobytes() == tensor.weights().tobytes()
        largest = np.abs(w).max()
        if tensor.codec == TRELLIS:  # a path takes the nearest of points that are two steps apart
            steps = tensor.steps
            own = np.exp2(np.add.outer(steps.rows, steps.columns) / 4).reshape(w.shape)
            tolerance = 1.001 * steps.step * own + 2.0**-20 * largest
            assert (np.abs(decoded[name] - w) <= tolerance).all()
        elif tensor.codec == FLOAT32:
            assert largest >= 65504
        elif (
            tensor.codec == HUFFMAN
        ):  # Lloyd's iteration only ever lowers the error of evenly spaced levels
            levels = np.linspace(float(w.min()), float(w.max()), int(48 / step_scale))
            evenly = rms(nearest_of(w, levels) - w)
            assert rms(decoded[name] - w) <= evenly + 2.0**-11 * largest + 2.0**-24


@settings(max_examples=30, deadline=None)
@given(npst.arrays(np.float32, SHAPES, elements=FINITE))
def test_floats_are_exact(w):
    exact = encode_pcll({}, {"w": FloatTensor(w.shape, w)})
    assert both_decoders(exact)["w"].tobytes() == w.tobytes()
    half = encode_pcll({}, {"w": encode_tensor("smear_gate", w, tiny_settings(), 1.0, {})})
    rounded = w.astype(np.float16).astype(np.float32) if np.abs(w).max() < 65504 else w
    assert both_decoders(half)["w"].tobytes() == rounded.tobytes()


def test_the_frame_is_what_zstd_22_makes_of_the_content():
    w = np.tile(gaussian(40, 50), (3, 4)) + np.float32(0)
    artifact = encode_pcll({"x": 1, "name": "a"}, {"w": FloatTensor(w.shape, w)})
    content = zstandard.ZstdDecompressor().decompress(artifact[16:])
    best = zstandard.ZstdCompressor(level=22, write_checksum=True).compress(content)
    assert artifact[16:] == best and len(best) < len(zstandard.compress(content, 3))
    assert artifact[:16] == struct.pack("<4sHHII", b"PCLL", 1, 0, len(content), len(best))
    config = decode_artifact.parse_pcll(artifact).config
    assert config == {"x": 1, "name": "a", "weights_crc32": zlib.crc32(w.tobytes())}


# ---------------------------------------------------------------- which tensor gets which codec


@pytest.mark.parametrize(
    "name, levels", [("blocks.0.mlp.up", 48), ("blocks.3.attn.v", 80), ("tok_emb", 64)]
)
def test_numbers_of_levels(name, levels):
    """Of Huffman tensors, which matrices of few rows are with either codec."""
    s = tiny_settings(CODEC="trellis" if name == "tok_emb" else "huffman")
    w = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(8, 512)  # uses every level
    for step_scale, expected in [(1, levels), (1.5, levels // 1.5), (1000, 2), (0.01, 255)]:
        coded = encode_tensor(name, w, s, step_scale, {})
        assert coded.codec == HUFFMAN and len(coded.centroids) == expected


@pytest.mark.parametrize(
    "codec, matrix, embedding", [("huffman", HUFFMAN, FLOAT16), ("trellis", TRELLIS, TRELLIS)]
)
def test_codec_of_each_tensor(codec, matrix, embedding):
    s = tiny_settings(CODEC=codec)
    w = gaussian(32, 32)
    moments = dict.fromkeys(("tok_emb", "bigram.table", "blocks.0.attn.q"), even(w, 0.01))

    def codec_of(name: str, w: np.ndarray) -> int:
        return encode_tensor(name, w, s, 1.0, moments).codec

    assert codec_of("tok_emb", w) == embedding
    assert codec_of("tok_emb", 65504 * np.sign(w)) == FLOAT32
    assert codec_of("bigram.table", w) == codec_of("blocks.0.attn.q", w) == matrix
    for name in ("smear_gate", "blocks.1.attn.q_gain", "blocks.1.resid_mix", "bigram.scale"):
        assert codec_of(name, w[0]) == FLOAT16
        assert codec_of(name, 65504 * np.sign(w[0])) == FLOAT32
    assert codec_of("blocks.0.attn.q", w * 1e6) == FLOAT32
    assert codec_of("blocks.0.attn.q", w[:15]) == HUFFMAN  # too few rows for a trellis tensor
    assert codec_of("blocks.0.attn.q", w * 1e-12) == HUFFMAN


# ---------------------------------------------------------------- huffman


def optimal_total(counts: list[int]) -> int:
    """Bits of an optimal prefix code, by Huffman's algorithm."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=80))
def test_huffman_lengths_are_optimal_and_complete(counts):
    lengths = huffman_lengths(np.array(counts)).astype(int)
    assert sum(2.0**-length for length in lengths) == 1
    assert (lengths * counts).sum() == optimal_total(counts)


def test_huffman_lengths_stay_within_the_limit_and_are_the_best_within_it():
    """What never occurs has a code all the same."""
    fibonacci = [1, 1]
    while len(fibonacci) < 25:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman_lengths(np.array(fibonacci)).astype(int)
    assert lengths.max() == 16 and sum(2.0**-length for length in lengths) == 1
    assert optimal_total(fibonacci) < (lengths * fibonacci).sum() < 1.001 * optimal_total(fibonacci)
    assert huffman_lengths(np.array([50, 0, 20, 0])).tolist() == [1, 3, 2, 3]


def test_one_code_serves_a_tensor_and_is_all_there_is_in_the_stream():
    w = gaussian(300, 400) * np.repeat(np.float32([1, 0.1]), 200)
    coded = encode_huffman(w, 48)
    counts = np.bincount(coded.levels)
    assert coded.lengths.shape == coded.centroids.shape == counts.shape and counts.min() > 0
    bits = optimal_total(counts.tolist())
    assert (coded.lengths * counts).sum() == bits
    assert len(coded.side_data()) == 1 + 3 * len(counts)
    assert len(train_gpt.write_huffman([coded])) == 4 * 32 + 2 * math.ceil(bits / 16)


def lloyd(w: np.ndarray, levels: int, iterations: int) -> np.ndarray:
    """Centroids by Lloyd's iteration from evenly spaced ones, those without elements left alone."""
    centroids = np.linspace(w.min(), w.max(), levels)
    for _ in range(iterations):
        nearest = np.abs(w.reshape(-1, 1) - centroids).argmin(axis=1)
        for k in set(nearest.tolist()):
            centroids[k] = w.ravel()[nearest == k].mean(dtype=np.float64)
    return centroids


@pytest.mark.parametrize("levels", [12, 48])
def test_kmeans_is_twenty_iterations_of_lloyds(levels):
    w = gaussian(4000)
    coded = encode_huffman(w, levels)
    centroids, nearest = coded.centroids, coded.levels
    occurring = np.unique(nearest_of(w, lloyd(w, levels, 20)))
    np.testing.assert_allclose(centroids, occurring, atol=2e-3)
    exact = centroids.astype(np.float32)
    assert (nearest == np.abs(w[:, None] - exact).argmin(axis=1)).all()

    error = rms(exact[nearest] - w)
    expected = [rms(nearest_of(w, lloyd(w, levels, n)) - w) for n in (0, 10, 20, 40)]
    assert expected[0] > expected[1] > 1.002 * error  # fewer iterations are worse
    assert error == pytest.approx(expected[2], rel=1e-3) and error > expected[3]


# ---------------------------------------------------------------- trellis


def follow(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of paths from state 0 by their indices [R,C], and the states in which they end:
    Ungerboeck's code with the parity checks 45 and 10."""
    points = np.empty(indices.shape, int)
    state = np.zeros(len(indices), int)
    for c in range(indices.shape[1]):
        union = state % 2
        points[:, c] = (4 * indices[:, c] + 1) * (1 - 2 * union)
        state = state // 2 ^ (0o45 // 2 * union) ^ (0o10 // 2 * (indices[:, c] % 2))
    return points, state


def indices_of(points: np.ndarray) -> np.ndarray:
    return (np.where(points % 4 == 1, points, -points) - 1) // 4


def from_zero(y: np.ndarray) -> np.ndarray:
    """The nearest path of each row that starts in state 0."""
    return viterbi_search(y, np.zeros(len(y), int), y.shape[1])[0]


def test_viterbi_search_finds_the_best_path():
    """Brute force over all short index sequences near the weights. A search that keeps a part of
    its path returns the state from which another goes on."""
    y = gaussian(6, 5) * np.float32(1.5)
    points = from_zero(y)
    assert (points == follow(indices_of(points))[0]).all()
    candidates = np.array(list(itertools.product(range(-4, 5), repeat=5)), dtype=np.int32)
    values = follow(candidates)[0] / 4
    for row, path in zip(y, points / 4, strict=True):
        best = np.square(values - row, dtype=np.float64).sum(axis=1).min()
        assert np.square(path - row, dtype=np.float64).sum() <= best + 1e-5
    for keep in (1, 3, 5):
        part, state = viterbi_search(y, np.zeros(6, int), keep)
        assert (part == points[:, :keep]).all()
        assert (state == follow(indices_of(part))[1]).all()


def test_a_trellis_beats_a_uniform_quantizer():
    """By more than 1.15 dB of the 1.53 that are possible; 4 states have 0.99."""
    y = gaussian(64, 400) * 5
    assert np.square(from_zero(y) / 4 - y).mean() < 10**-0.115 / 12


def test_trellis_hits_the_error_it_is_asked_for():
    w = gaussian(256, 300) * np.float32(0.05)
    for target in (1e-4, 1e-5, 1e-6):
        decoded = encode_trellis(w, even(w, target), 1.0).weights()
        assert np.square(decoded - w).mean() == pytest.approx(target, rel=0.05)


def test_contexts_say_how_large_weights_are():
    """In quarter octaves: rows 16 times as large are 16 apart, columns of half the size 4."""
    w = gaussian(64, 96)
    w[32:] *= 16
    w[:, 48:] /= 2
    contexts = encode_trellis(w, even(w, 0.01), 1.0).contexts()
    means = contexts.reshape(2, 32, 2, 48).mean(axis=(1, 3))
    assert means[1] - means[0] == pytest.approx([16, 16], abs=0.5)
    assert means[:, 0] - means[:, 1] == pytest.approx([4, 4], abs=0.5)


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_trellis_stream_is_as_long_as_the_entropy_of_its_symbols(spread):
    """Within 0.3 % (and the lanes' states) of the ideal code length given the contexts."""
    rows = np.exp(spread * gaussian(600, 1, seed=1))
    coded = encode_trellis(gaussian(600, 500) * rows, even(gaussian(600, 500), 0.01), 1.0)
    context = coded.contexts()
    indices = indices_of(coded.points).ravel()
    ideal = 0.0
    for c in np.unique(context):
        _, counts = np.unique(indices[context == c], return_counts=True)
        ideal -= (counts * np.log2(counts / counts.sum())).sum()

    stream = train_gpt.write_trellis([coded])
    lanes = 64  # of 300,000 elements
    frequencies = (2 * int(np.abs(indices).max()) + 1) * (int(np.ptp(context)) + 1)
    words = 8 * (len(stream) - 4 - 2 * frequencies - 4 * lanes - 4)
    assert ideal - 16 * lanes < words < 1.003 * ideal + 16 * lanes
    assert len(encode_pcll({}, {"w": coded})) < len(stream) + 2000


@pytest.mark.parametrize("span", [20, 64, 100])
def test_the_greatest_contexts_end_with_the_last_one_allowed(span):
    """Of two tensors with one model; smaller ones count as the first."""
    rows = np.arange(span)
    points = follow(np.random.default_rng(0).integers(-9, 10, (span, 30)))[0].astype(np.int32)
    steps = train_gpt.Steps(np.float32(0.5), 0 * rows, np.zeros(30, int))
    tensors = {
        name: train_gpt.TrellisTensor((span, 30), steps, offset, rows, steps.columns, points)
        for name, offset in (("a", -40), ("b", -30))
    }
    artifact = encode_pcll({}, tensors)
    contexts = [tensor.contexts() for tensor in tensors.values()]
    last = min(63, span + 9)
    assert contexts[1].max() == last and (contexts[1] - contexts[0] == 10).all()
    assert contexts[0].min() == last - (span + 9)
    stream = train_gpt.write_trellis([*tensors.values()])
    assert struct.unpack_from("<BHB", stream) == (5, 9, last + 1)
    assert all((w == points / 8).all() for w in both_decoders(artifact).values())


def test_the_same_bytes_again_in_another_process_and_by_another_thread_count():
    """Trellis tensors have other offsets after the first time."""
    script = """if True:
        import hashlib, numpy as np, train_gpt

        w = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
        moments = train_gpt.Moments(np.ones(200) * 1e3, np.eye(300))
        coded = {"a": train_gpt.encode_huffman(w, 48)}
        coded["b"] = train_gpt.encode_trellis(w, moments, 1.0)
        coded["c"] = train_gpt.encode_trellis(50 * w, moments, 1.0)
        coded["d"] = train_gpt.FloatTensor(w.shape, w)
        for _ in range(2):
            print(hashlib.sha256(train_gpt.encode_pcll({"x": 1}, coded)).hexdigest())
    """
    environment = {"OMP_NUM_THREADS": "2", "PATH": ""}
    other = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment)
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(script, {})
    digests = other.decode().split() + here.getvalue().split()
    assert len(digests) == 4 and len(set(digests)) == 1


# ---------------------------------------------------------------- FIT


class Exporter:
    """Exports a small model, and keeps the step scales and sizes of all tries."""

    def __init__(self, codec: str):
        model = random_model(tiny_settings(MODEL_DIM=64, MLP_HIDDEN=200))
        self.codec = codec
        self.weights = {name: w.numpy() for name, w in model.state_dict().items()}
        self.moments = {name: even(w, 1e-5) for name, w in self.weights.items() if w.ndim > 1}

    def __call__(self, **changes) -> int:
        """Bytes of the artifact with 1,000 bytes of code."""
        s = tiny_settings(CODEC=self.codec, **changes)
        lines = []
        with patch.object(train_gpt, "log", lines.append):
            artifact = train_gpt.export(self.weights, self.moments, {}, s, 1000)
        tries = [re.findall(r"[0-9.]+", line) for line in lines]
        self.scales = [float(scale) for scale, _, _ in tries]
        self.tries = [int(size) + 1000 for _, size, _ in tries]
        assert both_decoders(artifact).keys() == self.weights.keys()
        return len(artifact) + 1000


@pytest.fixture(scope="module", params=["huffman", "trellis"])
def exporter(request) -> Exporter:
    return Exporter(request.param)


def test_fit_shrink_coarsens_only_what_is_too_large(exporter):
    free = exporter()
    assert exporter.tries == [free] and exporter.scales == [1.0]
    for cap in (free, 10**6):
        assert exporter(SIZE_CAP_BYTES=cap) == free and exporter.scales == [1.0]
    for part in (1, 0.8, 0.65):
        cap = int(part * (free - 1))
        assert exporter(SIZE_CAP_BYTES=cap) == exporter.tries[-1] <= cap
        assert all(size > cap for size in exporter.tries[:-1])  # it stops at the first that fits
    with pytest.raises(UserError, match="SIZE_CAP_BYTES=2000 is less than 1000 bytes of code and"):
        exporter(SIZE_CAP_BYTES=2000)


def test_a_matrix_that_a_weight_keeps_in_float32_is_named():
    """Before the tries, as it costs four bytes a weight."""
    exporter = Exporter("trellis")
    exporter.weights["blocks.1.attn.q"][3, 5] = -70_000
    exporter.weights["smear_gate"][0] = 70_000  # is never quantized
    s = tiny_settings()
    lines = []
    with patch.object(train_gpt, "log", lines.append):
        artifact = train_gpt.export(exporter.weights, exporter.moments, {}, s, 1000)
    name, *tries = lines
    assert name == (
        "warning: blocks.1.attn.q stays float32 at 32 bits a weight: it has one of 70000."
    )
    assert len(tries) == 1
    tensors = {tensor.name: tensor for tensor in decode_artifact.parse_pcll(artifact).tensors}
    assert tensors["blocks.1.attn.q"].codec == 0 and tensors["blocks.0.attn.q"].codec == 3


@pytest.mark.parametrize("part", [0.8, 1.2])
def test_fit_fill_goes_on_until_the_cap_is_used(exporter, part):
    cap = int(part * exporter())
    filled = exporter(SIZE_CAP_BYTES=cap, FIT="fill")
    assert filled == max(size for size in exporter.tries if size <= cap)
    used = [size for size in exporter.tries if 0.999 * cap <= size <= cap]
    assert used or exporter.codec == "huffman"
    assert used == exporter.tries[-1:] if used else len(exporter.tries) == 10
    assert filled >= 0.985 * cap  # at this size a whole level is a large step


def tries(sizes: Callable[[float], int], fit: str) -> tuple[list[float], int | None]:
    """The octaves that export() tries when a file has so many bytes by them, and the size of its
    artifact, None for a UserError. The cap is 1,000,000 bytes, 100,000 of which are code; a bit a
    weight is 50,000 bytes."""
    octaves = []

    def encode(name, w, s, step_scale, moments) -> None:
        octaves.append(math.log2(step_scale))

    def file(config, tensors) -> bytes:
        return bytes(sizes(octaves[-1]))

    weights = {"blocks.0.mlp.up": np.broadcast_to(np.float32(0), 400_000)}
    s = tiny_settings(FIT=fit, SIZE_CAP_BYTES=1_000_000)
    with patch.multiple(train_gpt, encode_tensor=encode, encode_pcll=file):
        try:
            return octaves, len(train_gpt.export(weights, {}, {}, s, 100_000))
        except UserError:
            return octaves, None


@pytest.mark.parametrize("fit", ["shrink", "fill"])
def test_a_file_that_loses_a_bit_a_weight_an_octave_takes_two_tries(fit):
    """The second one aims 0.04 % of the cap below the budget."""
    octaves, size = tries(lambda octaves: round(1_000_000 - 50_000 * octaves), fit)
    assert octaves == pytest.approx([0, 2.008]) and size == 899_600


def test_export_by_hand():
    """While nothing fits, the margin of 0.04 % doubles with each try. A step that leads out of the
    bracket gives way to its middle; 99.9 % of the cap are full. The largest of ten is what fits
    best, and no try is as coarse as 10 octaves."""
    files = iter([1_000_000, 950_000, 800_000, 899_000])
    octaves, size = tries(lambda _: next(files), "fill")
    assert octaves == pytest.approx([0, 2.008, 3.024, (2.008 + 3.024) / 2]) and size == 899_000
    files = iter([898_999, *[890_000] * 9])
    octaves, size = tries(lambda _: next(files), "fill")
    assert size == 898_999 and len(octaves) == 10
    octaves, size = tries(lambda _: 2_000_000, "shrink")
    assert size is None and octaves == pytest.approx([10 - 10 / 2**i for i in range(10)])


def test_the_finest_steps():
    """Not the 14 octaves that the rule asks for; if they are too fine, the best lies between."""
    assert tries(lambda _: 200_000, "fill") == ([0, -4], 200_000)
    octaves, size = tries(lambda octaves: 1_200_000 if octaves < -3.5 else 200_000, "fill")
    assert octaves[:4] == [0, -4, -2, -3] and -4 < min(octaves[4:]) and size == 200_000
