"""Codec: what goes in comes out, in both decoders alike, and the codes are as short as can be."""

import heapq
import itertools
import math
import struct
import subprocess
import sys

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
    UserError,
    code_floats,
    code_huffman,
    code_trellis,
    decode_pcll,
    encode_pcll,
    huffman_lengths,
)

SHAPES = st.one_of(
    npst.array_shapes(max_dims=3, max_side=40), st.tuples(st.integers(16, 40), st.integers(1, 60))
)
SCALES = st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 3e4, 1e30])
FLOAT32, FLOAT16, TRELLIS, HUFFMAN = 0, 1, 3, 4


@st.composite
def weights(draw) -> np.ndarray:
    """Gaussian with spread rows and columns, constant, sparse or with outliers, on very different
    scales."""
    shape, rng = draw(SHAPES), np.random.default_rng(draw(st.integers(0, 2**32)))
    w = rng.standard_normal(shape)
    kind = draw(
        st.sampled_from(["rows", "columns", "constant", "sparse", "outlier", "negative zero"])
    )
    if kind == "rows":
        w = w * np.exp(rng.standard_normal((shape[0],) + (1,) * (len(shape) - 1)))
    elif kind == "columns":
        w = w * np.exp(rng.standard_normal(shape[1:]))
    elif kind == "constant":
        w = np.full(shape, rng.standard_normal())
    elif kind == "sparse":
        w = w * (rng.random(shape) < 0.1)
    elif kind == "outlier":
        w.flat[0] = 1000
    else:
        w = np.where(w > 0, w, -0.0)
    return (w * draw(SCALES)).astype(np.float32)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both_decoders(artifact: bytes, tmp_path) -> dict[str, np.ndarray]:
    """The weights, after holding the two decoders' against each other bit for bit."""
    config, ours = decode_pcll(artifact)
    path = tmp_path / "a.pcll"
    path.write_bytes(artifact)
    other_config, theirs = decode_artifact.read_pcll(path)
    assert config == other_config and ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        assert ours[name].shape == theirs[name].shape
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    return ours


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.square(error, dtype=np.float64).mean()))


def nearest_of(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values[np.abs(w.reshape(-1, 1) - values).argmin(axis=1)].reshape(w.shape)


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.lists(weights(), min_size=1, max_size=3),
    codec=st.sampled_from(["huffman", "trellis"]),
    states=st.sampled_from([4, 8, 16, 32, 64, 128, 256]),
    coarseness=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_round_trip_and_both_decoders(tmp_path_factory, tensors, codec, states, coarseness):
    # more may be too constant for a file that a reader takes
    assume(sum(w.size for w in tensors) <= 1 << 16)
    s = tiny_settings(CODEC=codec, TRELLIS_STATES=states).export
    coded = {}
    for i, w in enumerate(tensors):
        name = f"blocks.{i}.mlp.up"
        moments = {name: even(w, 0.001 * w.var() + 1e-9)}
        coded[name] = train_gpt.code_tensor(name, w, s, coarseness, 0.5, moments)

    artifact = encode_pcll({"codec": codec}, coded, states)
    decoded = both_decoders(artifact, tmp_path_factory.mktemp("artifact"))
    for w, (name, tensor) in zip(tensors, coded.items(), strict=True):
        assert decoded[name].shape == w.shape
        largest = np.abs(w).max()
        if tensor.codec == TRELLIS:  # a path takes the nearest of points that are two steps apart
            steps = tensor.steps
            own = np.exp2(np.add.outer(steps.rows, steps.columns) / 4).reshape(w.shape)
            tolerance = 1.001 * steps.size * own + 2.0**-20 * largest
            assert (np.abs(decoded[name] - w) <= tolerance).all()
        else:  # Lloyd's iteration only ever lowers the error of evenly spaced levels
            levels = np.linspace(float(w.min()), float(w.max()), int(48 / coarseness + 0.5))
            evenly = rms(nearest_of(w, levels) - w)
            assert rms(decoded[name] - w) <= evenly + 2.0**-11 * largest + 2.0**-24


def test_encoding_leaves_the_tensors_as_they_are():
    coded = {
        "a": code_huffman(gaussian(30, 40), 20),
        "b": code_trellis(gaussian(30, 40), even(gaussian(30, 40), 0.1), 1.0, 8),
        "c": code_trellis(gaussian(20, 9) * 50, even(gaussian(20, 9), 0.1), 1.0, 8),
    }
    assert encode_pcll({}, coded, 8) == encode_pcll({}, coded, 8)


@settings(max_examples=60, deadline=None)
@given(
    w=npst.arrays(
        np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_floats_are_exact(tmp_path_factory, w):
    exact = encode_pcll({}, {"w": code_floats(w, "float32")}, 32)
    assert both_decoders(exact, tmp_path_factory.mktemp("artifact"))["w"].tobytes() == w.tobytes()
    half = encode_pcll({}, {"w": code_floats(w, "float16")}, 32)
    rounded = w.astype(np.float16).astype(np.float32) if np.abs(w).max() < 65504 else w
    decoded = both_decoders(half, tmp_path_factory.mktemp("artifact"))["w"]
    assert decoded.tobytes() == rounded.tobytes()


def test_the_frame_is_what_zstd_22_makes_of_the_content():
    w = np.tile(gaussian(40, 50), (3, 4)) + np.float32(0)
    artifact = encode_pcll({"x": 1}, {"w": code_floats(w, "float32")}, 8)
    content = zstandard.ZstdDecompressor().decompress(artifact[16:])
    best, quick = (
        zstandard.ZstdCompressor(level=level, write_checksum=True).compress(content)
        for level in (22, 3)
    )
    assert artifact[16:] == best and len(best) < len(quick)
    assert artifact[:16] == struct.pack("<4sHHII", b"PCLL", 1, 0, len(content), len(best))


# ---------------------------------------------------------------- which tensor gets which codec


@pytest.mark.parametrize(
    "name, levels",
    [
        ("blocks.0.mlp.up", 48),
        ("blocks.10.mlp.down", 48),
        ("blocks.0.attn.q", 80),
        ("blocks.3.attn.k", 80),
        ("blocks.3.attn.v", 80),
        ("blocks.0.attn.out", 64),
        ("bigram.table", 64),
        ("bigram.proj", 64),
        ("tok_emb", 64),
    ],
)
def test_numbers_of_levels(name, levels):
    s = train_gpt.load_settings({"CODEC": "huffman", "EMBED_CODEC": "huffman"}).export
    w = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)  # uses every level
    for coarseness, dither, expected in (
        (1.0, 0.0, levels),
        (1.0, 0.99, levels),
        (1.5, 0.5, int(levels / 1.5 + 0.5)),
        (1000.0, 0.0, 2),
        (0.01, 0.0, 255),
    ):
        coded = train_gpt.code_tensor(name, w, s, coarseness, dither, {})
        assert coded.codec == HUFFMAN and len(coded.centroids) == expected


@pytest.mark.parametrize("codec", ["huffman", "trellis"])
@pytest.mark.parametrize(
    "embed, number",
    [("float16", FLOAT16), ("float32", FLOAT32), ("huffman", HUFFMAN), ("trellis", TRELLIS)],
)
def test_codec_of_each_tensor(codec, embed, number):
    s = tiny_settings(CODEC=codec, EMBED_CODEC=embed).export
    w = gaussian(32, 32)
    moments = dict.fromkeys(("tok_emb", "bigram.table", "blocks.0.attn.q"), even(w, 0.01))

    def codec_of(name: str, w: np.ndarray) -> int:
        return train_gpt.code_tensor(name, w, s, 1.0, 0.0, moments).codec

    assert codec_of("tok_emb", w) == number
    matrix = HUFFMAN if codec == "huffman" else TRELLIS
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
    fibonacci = [1, 1]
    while len(fibonacci) < 25:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman_lengths(np.array(fibonacci)).astype(int)
    assert lengths.max() == 16 and sum(2.0**-length for length in lengths) == 1
    assert optimal_total(fibonacci) < (lengths * fibonacci).sum() < 1.001 * optimal_total(fibonacci)


def test_what_never_occurs_has_a_code_all_the_same():
    assert huffman_lengths(np.array([50, 0, 20, 0])).tolist() == [1, 3, 2, 3]


def test_one_code_serves_a_tensor():
    w = gaussian(300, 400) * np.repeat(np.float32([1, 0.1]), 200)
    coded = code_huffman(w, 48)
    counts = np.bincount(coded.levels)
    assert coded.lengths.shape == coded.centroids.shape == counts.shape and counts.min() > 0
    assert (coded.lengths * counts).sum() == optimal_total(counts.tolist())
    assert len(coded.side_data()) == 1 + 3 * len(counts)


def test_more_weights_than_a_reader_takes_from_so_few_bytes():
    constant = code_huffman(np.ones((1000, 1000), dtype=np.float32), 48)
    with pytest.raises(
        UserError,
        match="1000000 weights are all but constant: no reader takes so many from [0-9]+ b",
    ):
        encode_pcll({}, {"w": constant}, 8)


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
    centroids, nearest = train_gpt.kmeans(w, levels)
    occurring = np.unique(nearest_of(w, lloyd(w, levels, 20)))
    np.testing.assert_allclose(centroids, occurring, atol=2e-3)
    exact = centroids.astype(np.float32)
    assert (nearest == np.abs(w[:, None] - exact).argmin(axis=1)).all()

    error = rms(exact[nearest] - w)
    expected = [rms(nearest_of(w, lloyd(w, levels, n)) - w) for n in (0, 10, 20, 40)]
    assert expected[0] > expected[1] > 1.002 * error  # fewer iterations are worse
    assert error == pytest.approx(expected[2], rel=1e-3) and error > expected[3]


# ---------------------------------------------------------------- trellis


def starting_at_zero(y: np.ndarray) -> np.ndarray:
    return np.zeros(len(y), dtype=int)


@pytest.mark.parametrize("states", [4, 8, 32])
def test_trellis_search_finds_the_best_path(states):
    """Brute force over all short index sequences near the weights."""
    y = gaussian(3, 5, seed=states) * np.float32(1.5)
    points, _ = train_gpt.trellis_search(y, starting_at_zero(y), states, 5)
    indices = train_gpt.point_indices(points)
    assert (points == train_gpt.trellis_points(indices, states)).all()
    candidates = np.array(list(itertools.product(range(-4, 5), repeat=5)), dtype=np.int32)
    values = train_gpt.trellis_points(candidates, states) / 4
    for row, path in zip(y, points / 4, strict=True):
        best = np.square(values - row, dtype=np.float64).sum(axis=1).min()
        assert np.square(path - row, dtype=np.float64).sum() <= best + 1e-5


@pytest.mark.parametrize("keep", [1, 7, 12])
def test_a_search_goes_on_from_where_another_ended(keep):
    """The state after the columns that are kept, by a walk along them."""
    y = gaussian(20, 12) * 3
    whole, _ = train_gpt.trellis_search(y, starting_at_zero(y), 8, 12)
    points, state = train_gpt.trellis_search(y, starting_at_zero(y), 8, keep)
    assert (points == whole[:, :keep]).all()
    for row, end in zip(points.tolist(), state.tolist(), strict=True):
        walked = 0
        for point in row:
            union = walked % 2
            index = ((-point if union else point) - 1) // 4
            walked = walked // 2 ^ (0o13 // 2 * union) ^ (0o4 // 2 * (index % 2))
        assert walked == end


def test_more_trellis_states_mean_less_error_and_all_beat_a_uniform_quantiser():
    y = gaussian(64, 400) * 5
    errors = []
    for states in (4, 8, 16, 32, 64, 128, 256):
        points, _ = train_gpt.trellis_search(y, starting_at_zero(y), states, 400)
        errors.append(np.square(points / 4 - y).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.8 / 12  # 0.99 dB with 4 states, 1.33 dB with 256 are possible
    assert errors[-1] < 0.75 / 12


def test_trellis_hits_the_error_it_is_asked_for():
    w = gaussian(256, 300) * np.float32(0.05)
    for target in (1e-4, 1e-5, 1e-6):
        coded = code_trellis(w, even(w, target), 1.0, 8)
        decoded = decode_pcll(encode_pcll({}, {"w": coded}, 8))[1]["w"]
        assert np.square(decoded - w).mean() == pytest.approx(target, rel=0.05)


def test_contexts_say_how_large_weights_are():
    """In quarter octaves: rows 16 times as large are 16 apart, columns of half the size 4."""
    w = gaussian(64, 96)
    w[32:] *= 16
    w[:, 48:] /= 2
    contexts = code_trellis(w, even(w, 0.01), 1.0, 8).contexts()
    means = contexts.reshape(2, 32, 2, 48).mean(axis=(1, 3))
    assert means[1] - means[0] == pytest.approx([16, 16], abs=0.5)
    assert means[:, 0] - means[:, 1] == pytest.approx([4, 4], abs=0.5)


def ideal_bits(symbols: np.ndarray) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_trellis_stream_is_as_long_as_the_entropy_of_its_symbols(spread):
    """Within 0.3 % (and the lanes' states) of the ideal code length given the contexts."""
    rows = np.exp(spread * gaussian(600, 1, seed=1))
    coded = code_trellis(gaussian(600, 500) * rows, even(gaussian(600, 500), 0.01), 1.0, 8)
    context = coded.contexts()
    indices = train_gpt.point_indices(coded.points).ravel()
    ideal = sum(ideal_bits(indices[context == c]) for c in np.unique(context))

    (at_zero,) = train_gpt.start_contexts_at_zero([coded])
    assert at_zero.contexts().min() == 0
    stream = train_gpt.encode_trellis([at_zero], 8)
    lanes = 64  # of 300,000 elements
    symbols = 2 * int(np.abs(indices).max()) + 1
    words = 8 * (len(stream) - 4 - 2 * symbols * len(np.unique(context)) - 4 * lanes - 4)
    assert ideal - 16 * lanes < words < 1.003 * ideal + 16 * lanes
    assert len(encode_pcll({}, {"w": coded}, 8)) < len(stream) + 2000


def test_huffman_stream_is_as_long_as_its_codes():
    coded = code_huffman(gaussian(600, 500), 48)
    bits = int(coded.lengths.astype(int)[coded.levels].sum())
    assert len(train_gpt.encode_huffman([coded])) == 4 * 64 + 2 * math.ceil(bits / 16)


@pytest.mark.parametrize("elements, lanes", [(1, 1), (255, 1), (256, 2), (4095, 4), (10**9, 1024)])
def test_number_of_lanes(elements, lanes):
    assert train_gpt.lane_count(elements) == lanes


def test_same_bytes_from_another_process_and_thread_count(tmp_path):
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "import numpy as np, train_gpt, hashlib\n"
        "w = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)\n"
        "moments = train_gpt.Moments(np.ones(200) * 1e3, np.eye(300))\n"
        "coded = {'a': train_gpt.code_huffman(w, 48), \n"
        "         'b': train_gpt.code_trellis(w, moments, 1.0, 32),\n"
        "         'c': train_gpt.code_floats(w, 'float16')}\n"
        "print(hashlib.sha256(train_gpt.encode_pcll({'x': 1}, coded, 32)).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, str(ROOT)],
            env={"OMP_NUM_THREADS": n, "PATH": ""},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    }
    assert len(digests) == 1


# ---------------------------------------------------------------- FIT


class Exporter:
    """Exports a small model, and keeps the sizes of all tries."""

    def __init__(self, codec: str):
        model = random_model(tiny_settings(MODEL_DIM=64, MLP_HIDDEN=200))
        self.codec = codec
        self.weights = {name: w.numpy() for name, w in model.state_dict().items()}
        self.moments = {name: even(w, 1e-5) for name, w in self.weights.items() if w.ndim > 1}

    def __call__(self, **changes) -> int:
        """Bytes of the artifact with 1,000 bytes of code."""
        self.tries = []
        s = tiny_settings(CODEC=self.codec, **changes).export
        artifact = train_gpt.export(self.weights, self.moments, {}, s, 1000, self.log)
        return len(artifact) + 1000

    def log(self, line: str) -> None:
        self.tries.append(int(line.split(" bytes,")[0].split()[-1]) + 1000)


@pytest.fixture(scope="module", params=["huffman", "trellis"])
def exporter(request) -> Exporter:
    return Exporter(request.param)


def test_fit_shrink_coarsens_only_what_is_too_large(exporter):
    free = exporter()
    assert exporter.tries == [free]
    for cap in (free, 10**6):
        assert exporter(SIZE_CAP_BYTES=cap) == free and len(exporter.tries) == 1
    for cap in (free - 1, int(0.8 * free), int(0.65 * free)):
        assert exporter(SIZE_CAP_BYTES=cap) <= cap
        assert all(size > cap for size in exporter.tries[:-1])  # it stops at the first that fits
    with pytest.raises(UserError, match="SIZE_CAP_BYTES"):
        exporter(SIZE_CAP_BYTES=2000)


def test_fit_off_tries_once(exporter):
    free = exporter()
    assert exporter(SIZE_CAP_BYTES=10**6, FIT="off") == free and len(exporter.tries) == 1
    with pytest.raises(UserError, match="SIZE_CAP_BYTES"):
        exporter(SIZE_CAP_BYTES=free - 1, FIT="off")
    assert len(exporter.tries) == 1


@pytest.mark.parametrize("part", [0.8, 1.2])
def test_fit_fill_goes_on_until_the_cap_is_used(exporter, part):
    cap = int(part * exporter())
    filled = exporter(SIZE_CAP_BYTES=cap, FIT="fill")
    assert filled == max(size for size in exporter.tries if size <= cap)
    used = [size for size in exporter.tries if 0.999 * cap <= size <= cap]
    if exporter.codec == "trellis":
        assert used
    assert used == exporter.tries[-1:] if used else len(exporter.tries) == 10
    assert filled >= 0.985 * cap  # at this size a whole level is a large step


def test_fit_fill_of_a_small_network_ends_at_the_finest(exporter):
    filled = exporter(SIZE_CAP_BYTES=10**6, FIT="fill")
    assert filled == exporter.tries[-1] < 999_000 and len(exporter.tries) <= 4


def test_the_search_ends_at_the_finest():
    search = train_gpt.Search("fill", cap=1_000_000, budget=900_000, bit=50_000)
    search.learn(200_000)
    assert search.octaves == -4.0  # not 14 octaves finer
    assert search.settled(bytes(400_000), bytes(400_000))
    assert not search.settled(bytes(1_200_000), bytes(200_000))  # too large: it lies between
    search.learn(1_200_000)
    assert -4.0 < search.octaves < 0
    assert not search.settled(bytes(400_000), bytes(400_000))


def test_the_search_by_hand():
    """It aims 0.04 % of the cap below the budget; an octave saves a quarter of a bit to two."""
    search = train_gpt.Search("fill", cap=1_000_000, budget=900_000, bit=50_000)
    search.learn(1_000_000)
    assert search.octaves == pytest.approx(100_400 / 50_000)
    search.learn(950_000)  # an octave has saved 24,900
    assert search.octaves == pytest.approx(2.008 * (1 + 50_400 / 50_000))
    search.learn(800_000)  # an octave has saved 74,108
    assert search.octaves == pytest.approx(2.688085504)

    assert not search.settled(bytes(901_000), b"")
    assert not search.settled(bytes(898_999), bytes(898_999))
    assert search.settled(bytes(899_000), bytes(899_000))  # with the code 99.9 % of the cap


def test_the_search_stays_between_what_fits_and_what_does_not():
    search = train_gpt.Search("fill", cap=1_000_000, budget=900_000, bit=1000)
    search.learn(2_000_000)  # the step would lead beyond the coarsest
    assert search.octaves == 5.0  # half way from 0 to 10
    search.learn(800_000)
    assert 0 < search.octaves < 5
