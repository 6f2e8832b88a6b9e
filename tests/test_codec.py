"""Codec: what goes into an artifact comes out, in both decoders alike; the codes are as short as they can be."""

import heapq
import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest
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


@st.composite
def weights(draw) -> np.ndarray:
    """Gaussian with spread rows and columns, constant, sparse or with outliers, on very different scales."""
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


def both_decoders(artifact: bytes, tmp_path) -> dict[str, np.ndarray]:
    """The weights, after holding the two decoders' against each other bit for bit."""
    config, ours = decode_pcll(artifact)
    path = tmp_path / "a.pcll"
    path.write_bytes(artifact)
    other_config, theirs = decode_artifact.read_pcll(path)
    assert config == other_config and ours.keys() == theirs.keys()
    for name in ours:
        assert (
            ours[name].dtype == theirs[name].dtype == np.float32
            and ours[name].shape == theirs[name].shape
        )
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    return ours


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.lists(weights(), min_size=1, max_size=3),
    codec=st.sampled_from(["huffman", "trellis"]),
    states=st.sampled_from([4, 8, 16, 32, 64, 128, 256]),
    coarseness=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_round_trip_and_both_decoders(tmp_path_factory, tensors, codec, states, coarseness):
    assume(
        sum(w.size for w in tensors) <= 1 << 16
    )  # more may be too constant for a file that a reader takes
    s = tiny_settings(CODEC=codec, TRELLIS_STATES=states)
    named = {f"blocks.{i}.mlp.up": w for i, w in enumerate(tensors)}
    coded = {
        name: train_gpt.code_tensor(
            name, w, s, coarseness, 0.5, {name: even(w, 0.001 * w.var() + 1e-9)}
        )
        for name, w in named.items()
    }
    decoded = both_decoders(
        encode_pcll({"codec": codec}, coded, states), tmp_path_factory.mktemp("artifact")
    )
    for name, w in named.items():
        assert decoded[name].shape == w.shape
        if (
            coded[name].codec == train_gpt.TRELLIS
        ):  # a path takes the nearest of points that are two steps apart
            own = np.exp2(np.add.outer(*coded[name].scales[3:]) / 4).reshape(w.shape)
            tolerance = (
                1.001 * struct.unpack("<f", coded[name].side[:4])[0] * own
                + 2.0**-20 * np.abs(w).max()
            )
        else:
            tolerance = (
                2.0**-10 * np.abs(w).max() + 2.0**-24 + 0.6 * (float(w.max()) - float(w.min()))
            )
        assert (np.abs(decoded[name] - w) <= tolerance).all()


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
    assert (
        both_decoders(half, tmp_path_factory.mktemp("artifact"))["w"].tobytes() == rounded.tobytes()
    )


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
    assert sum(
        length * count for length, count in zip(lengths, counts, strict=True)
    ) == optimal_total(counts)


def test_huffman_lengths_stay_within_the_limit_and_are_the_best_within_it():
    fibonacci = [1, 1]
    while len(fibonacci) < 25:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman_lengths(np.array(fibonacci)).astype(int)
    assert lengths.max() == 16 and sum(2.0**-length for length in lengths) == 1
    assert optimal_total(fibonacci) < (lengths * fibonacci).sum() < 1.001 * optimal_total(fibonacci)


def test_columns_get_codes_of_their_own_where_that_pays(tmp_path):
    w = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    even, spread = code_huffman(w, 48), code_huffman(w * np.repeat(np.float32([1, 0.1]), 200), 48)
    assert len(even.lengths) == 1 and len(spread.lengths) == 2
    artifact = encode_pcll({}, {"w": spread}, 8)
    both_decoders(artifact, tmp_path)
    one_code = (
        huffman_lengths(np.bincount(spread.symbols % 48)).astype(int)[spread.symbols % 48].sum()
    )
    assert 8 * len(artifact) < 0.9 * one_code


@given(
    npst.arrays(
        np.float32, st.tuples(st.integers(1, 12), st.integers(1, 30)), elements=st.integers(-9, 9)
    ),
    st.integers(2, 12),
)
def test_the_codes_of_a_tensor_are_different_complete_and_in_order(w, levels):
    lengths = code_huffman(w * np.geomspace(1, 50, w.shape[1], dtype=np.float32), levels).lengths
    rows = [row.tobytes() for row in lengths]
    assert rows == sorted(set(rows)) and (np.exp2(-lengths.astype(float)).sum(axis=1) == 1).all()


def test_more_weights_than_a_reader_takes_from_so_few_bytes():
    constant = code_huffman(np.ones((1000, 1000), dtype=np.float32), 48)
    with pytest.raises(
        UserError,
        match="1000000 weights are all but constant: no reader takes so many from [0-9]+ b",
    ):
        encode_pcll({}, {"w": constant}, 8)


def test_kmeans_reaches_the_centroids_of_lloyds_iteration():
    w = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    centroids = np.linspace(w.min(), w.max(), 12)
    for _ in range(20):
        nearest = np.abs(w[:, None] - centroids).argmin(axis=1)
        centroids = np.array(
            [w[nearest == k].mean() if (nearest == k).any() else c for k, c in enumerate(centroids)]
        )
    ours, indices = train_gpt.kmeans(w, 12)
    np.testing.assert_allclose(ours.astype(np.float64), centroids, atol=2e-3)
    assert (indices == np.abs(w[:, None] - ours.astype(np.float32)).argmin(axis=1)).all()


def points_of(indices: np.ndarray, states: int) -> np.ndarray:
    return train_gpt.trellis_weights(indices, (np.float32(1), np.float32(1)), states)


@pytest.mark.parametrize("states", [4, 8, 32])
def test_trellis_search_finds_the_best_path(states):
    """Brute force over all short index sequences near the weights."""
    rng = np.random.default_rng(states)
    y = (rng.standard_normal((3, 5)) * 1.5).astype(np.float32)
    indices, points, _ = train_gpt.trellis_search(y, 0, states, 5)
    assert (points == points_of(indices, states)).all()
    found = points / 4
    for row, path in zip(y, found, strict=True):
        candidates = np.array(list(itertools.product(range(-4, 5), repeat=5)), dtype=np.int32)
        values = points_of(candidates, states) / 4
        best = np.square(values - row, dtype=np.float64).sum(axis=1).min()
        assert np.square(path - row, dtype=np.float64).sum() <= best + 1e-5


def test_more_trellis_states_mean_less_error_and_all_beat_a_uniform_quantiser():
    y = np.random.default_rng(0).standard_normal((64, 400)).astype(np.float32) * 5
    errors = []
    for states in (4, 8, 16, 32, 64, 128, 256):
        values = train_gpt.trellis_search(y, 0, states, 400)[1] / 4
        errors.append(np.square(values - y).mean())
    assert errors == sorted(errors, reverse=True)
    assert (
        errors[0] < 0.84 / 12 and errors[-1] < 0.75 / 12
    )  # 0.99 dB with 4 states, 1.33 dB with 256 are possible


def test_trellis_hits_the_error_it_is_asked_for():
    w = np.random.default_rng(0).standard_normal((256, 300)).astype(np.float32) * 0.05
    for target in (1e-4, 1e-5, 1e-6):
        coded = code_trellis(w, even(w, target), 1.0, 8)
        decoded = decode_pcll(encode_pcll({}, {"w": coded}, 8))[1]["w"]
        assert np.square(decoded - w).mean() == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_coded_streams_are_as_long_as_the_entropy_of_their_symbols(spread):
    """trellis: within 0.3 % (and the lanes' states) of the ideal code length; huffman: exactly its code lengths."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((600, 500)) * np.exp(spread * rng.standard_normal((600, 1)))
    coded = code_trellis(w.astype(np.float32), even(w, 0.01), 1.0, 8)
    base = encode_pcll({}, {"w": coded}, 8)
    _, rows, columns, row_steps, column_steps = coded.scales
    context = np.add.outer(rows - row_steps, columns - column_steps).ravel()
    ideal = 0.0
    for c in np.unique(context):
        counts = np.bincount(coded.symbols[context == c] - coded.symbols.min())
        counts = counts[counts > 0]
        ideal -= (counts * np.log2(counts / counts.sum())).sum()
    stream = train_gpt.trellis_encode(
        [code_trellis(w.astype(np.float32), even(w, 0.01), 1.0, 8)], 8
    )
    words = np.frombuffer(stream[-4:], dtype="<u2")  # the stream ends with its words
    lanes = train_gpt.lane_count(w.size)
    model_bytes = 4 + 2 * (2 * int(np.abs(coded.symbols).max()) + 1) * len(np.unique(context))
    assert len(words) and 8 * (len(stream) - model_bytes - 4 * lanes) < 1.003 * ideal + 32 * lanes
    assert len(base) < len(stream) + 2000

    coded = code_huffman(w.astype(np.float32), 48)
    stream = train_gpt.huffman_encode([coded])
    bits = int(coded.lengths.astype(int).ravel()[coded.symbols].sum())
    assert len(stream) == 4 * lanes + 2 * -(-bits // 16)


def test_same_bytes_from_another_process_and_thread_count(tmp_path):
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "import numpy as np, train_gpt, hashlib\n"
        "w = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)\n"
        "coded = {'a': train_gpt.code_huffman(w, 48), \n"
        "         'b': train_gpt.code_trellis(w, (np.ones(200) * 1e3, np.eye(300)), 1.0, 32),\n"
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


class Silent:
    def __call__(self, line, console=True):
        pass


@pytest.mark.parametrize("codec", ["huffman", "trellis"])
def test_fit_to_the_cap(codec):
    model = random_model(tiny_settings(MODEL_DIM=64, MLP_HIDDEN=200))
    weights = {name: w.numpy() for name, w in model.state_dict().items()}

    def export(**changes):
        moments = {name: even(w, 1e-5) for name, w in weights.items() if w.ndim > 1}
        return train_gpt.export(
            weights, moments, {}, tiny_settings(CODEC=codec, **changes), 1000, Silent()
        )

    free = len(export())
    for cap in (free + 1001, free + 999, 1000 + int(0.8 * free), 1000 + int(0.65 * free)):
        assert len(export(SIZE_CAP_BYTES=cap)) + 1000 <= cap
    assert len(export(SIZE_CAP_BYTES=10**6)) == free  # shrink never refines
    for cap in (1000 + int(0.8 * free), 1000 + int(1.2 * free)):
        filled = len(export(SIZE_CAP_BYTES=cap, FIT="fill")) + 1000
        assert 0.985 * cap <= filled <= cap  # at this size a whole level is a large step
    with pytest.raises(UserError, match="SIZE_CAP_BYTES"):
        export(SIZE_CAP_BYTES=free + 999, FIT="off")
    with pytest.raises(UserError, match="SIZE_CAP_BYTES"):
        export(SIZE_CAP_BYTES=2000)
