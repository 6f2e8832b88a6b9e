"""decode_artifact.py against a reference encoder and decoder that go one element at a time, and its
command line."""

import json
import math
import os
import random
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from attacks import build as by_hand
from attacks.build import Codebook, Container, Floats, Model, Trellis, build
from attacks.forge import ONE_SYMBOL, big_model, long_codes, record, sample, sign, table_of
from attacks.fuzz import check
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import decode_artifact
from decode_artifact import ArtifactError, main, parse_pcll, read_pcll, union_bits

SCRIPT = Path(decode_artifact.__file__)
few = settings(max_examples=100, deadline=None, derandomize=True)


def same(tensor, decoded: np.ndarray, log2_states: int = 5) -> bool:
    """Equal in shape, type and every bit (so that -0 is not 0)."""
    expected = by_hand.values(tensor, log2_states)
    kind = expected.shape, expected.dtype
    return kind == (decoded.shape, decoded.dtype) and expected.tobytes() == decoded.tobytes()


def assert_round_trip(container: Container) -> None:
    """By decode_artifact.py; train_gpt.py reads the same if the paths have its 32 states."""
    states = container.model.log2_states if container.model else 5
    assert check(container.file()) == ("read by both" if states == 5 else "read")
    config, tensors, weights = parse_pcll(container.file())
    assert config == json.loads(container.config)
    names = [name.decode() for name in container.names]
    assert [tensor.name for tensor in tensors] == names == list(weights)
    for tensor, decoded in zip(container.tensors, weights.values(), strict=True):
        assert same(tensor, decoded, states)


# ---------------------------------------------------------------- round trips

shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
configs = st.dictionaries(texts, texts | st.booleans() | numbers, max_size=5)
halves = st.floats(width=16, allow_nan=False, allow_infinity=False)


@st.composite
def floats(draw):
    codec, shape = draw(st.integers(0, 1)), draw(shapes)
    numbers = st.floats(width=32 - 16 * codec, allow_nan=False, allow_infinity=False)
    size = math.prod(shape)
    return Floats(shape, draw(st.lists(numbers, min_size=size, max_size=size)), codec)


@st.composite
def codebooks(draw, fewest=1):
    shape = draw(shapes)
    unsigned = halves.map(lambda x: x + 0.0)
    centroids = sorted(draw(st.lists(unsigned, min_size=fewest, max_size=255, unique=True)))
    rng = random.Random(draw(st.integers(0, 999)))
    skew = draw(st.sampled_from((1, 3, 50)))  # to nearly constant: codes of 1 and of 16 bits
    levels = [int(len(centroids) * rng.random() ** skew) for _ in range(math.prod(shape))]
    return Codebook(shape, levels, centroids)


@st.composite
def trellises(draw):
    rows, columns = draw(st.integers(16, 20)), draw(st.integers(1, 9))
    shape = draw(st.sampled_from([(rows, columns), (16, columns % 4 + 1, rows % 4 + 1)]))
    rng = random.Random(draw(st.integers(0, 999)))
    spread = draw(st.sampled_from((0, 0.3, 3, 60)))
    indices = [round(rng.gauss(0, spread)) for _ in range(math.prod(shape))]
    if draw(st.integers(0, 9)) == 9:
        indices[rng.randrange(len(indices))] = rng.choice((2047, -2047))
    reach = draw(st.sampled_from((0, 3, 20, 128)))  # of the steps of rows and columns, all finite
    half = reach // 2
    step = np.float32(draw(st.floats(2.0 ** (half - 100), 2.0 ** (100 - half), width=32))).item()

    def few_numbers(count: int, low: int, high: int) -> list[int] | None:
        return [rng.randint(low, high) for _ in range(count)] if draw(st.booleans()) else None

    counts = shape[0], math.prod(shape[1:])
    scales = [few_numbers(count, *rng.choice(((-2, 2), (-128, 127)))) for count in counts]
    steps = [few_numbers(count, -reach, min(reach, 127)) for count in counts]
    offset = draw(st.sampled_from((-32768, -3, 0, 2, 32767)))
    return Trellis(shape, indices, step, *scales, offset, *steps)


log2_states = st.just(5) | st.integers(2, 8)  # half of them as train_gpt.py's own
models = st.builds(Model, log2_states, st.integers(1, 64))
models |= st.builds(Model, log2_states, st.integers(1, 7), st.just(2047))
names = st.text("abcxyz019_.", min_size=1, max_size=100)
tensors = st.dictionaries(names, floats() | codebooks() | trellises(), min_size=1, max_size=5)


@few
@given(configs, tensors, models)
def test_any_container(config, tensors, model):
    assert_round_trip(build(config, tensors, model))


def test_constants_and_single_values():
    tensors = {
        "a": Floats((), [-0.0]),
        "b": Floats((1, 1, 1, 1), [2.0**-24], 1),
        "c": Codebook((3, 4), [0] * 12, [-3.5]),
        "d": Codebook((1,), [1], [0.0, 1.0]),
        "e": Trellis((16, 1), [0] * 16, 2.0**-99),
        "f": Codebook((), [0], [6e4]),
    }
    assert_round_trip(build({}, tensors))
    constants = {"a": Codebook((70, 70), [0] * 4900, [1.0]), "b": Floats((2,), [1, 2])}
    assert_round_trip(build({}, constants))


@pytest.mark.parametrize("elements", [1, 255, 256, 257, 1023, 1024, 1025, 4096, 16385])
def test_lanes(elements):
    """Both streams around the sizes at which the lanes double, cut into tensors that do not fill
    their last group."""
    rng = random.Random(elements)
    cuts = [elements] if elements < 7 else [elements // 2 + 1, 3, elements - elements // 2 - 4]
    tensors = {}
    for i, cut in enumerate(cuts):
        levels = [min(int(rng.expovariate(0.7)), 9) for _ in range(cut)]
        tensors[f"h{i}"] = Codebook((cut,), levels, [*range(10)])
    for i, shape in enumerate([(16, 3), (max(elements // 16 - 3, 16), 16)]):
        indices = [round(rng.gauss(0, 1.5)) for _ in range(math.prod(shape))]
        tensors[f"t{i}"] = Trellis(shape, indices, 1.0)
    assert_round_trip(build({}, tensors))


# ---------------------------------------------------------------- entropy decoders and trellis


@few
@given(codebooks(fewest=2))
def test_huffman_against_a_loop_over_bits(tensor):
    """In a single lane the words are the codes one after another, then zeros."""
    assume(math.prod(tensor.shape) < 256)
    container = build({}, {"w": tensor})
    bits = "".join(format(word, "016b") for word in container.huffman.words)
    codes = {code: level for level, code in enumerate(by_hand.canonical_codes(tensor.lengths))}
    decoded = []
    start = 0
    while len(decoded) < math.prod(tensor.shape):
        stop = next(stop for stop in range(start + 1, len(bits) + 1) if bits[start:stop] in codes)
        decoded.append(codes[bits[start:stop]])
        start = stop
    assert decoded == tensor.levels and "1" not in bits[start:]
    assert same(tensor, parse_pcll(container.file())[2]["w"])


@pytest.mark.parametrize("log2_states", range(2, 9))
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 65, 300])
def test_union_bits_against_the_state_machine(log2_states, columns):
    odd = np.random.default_rng(columns).integers(0, 2, (19, columns))
    tensor = Trellis(odd.shape, odd.ravel().tolist(), 4.0)
    assert np.array_equal(union_bits(odd, log2_states), by_hand.values(tensor, log2_states) < 0)


def test_trellis_by_hand():
    """Four states, checks 5 and 2, all indices odd: states 0, 1, 3, 2, 0 and so on, worked out on
    paper."""
    tensor = Trellis((16, 6), [1, 1, -1, 1, 3, -3] * 16, 4.0)
    row = parse_pcll(build({}, {"w": tensor}, Model(log2_states=2)).file())[2]["w"][0]
    # s: 0 -> 0^1=1 -> 0^2^1=3 -> 1^2^1=2 -> 1^1=0 -> 0^1=1
    assert row.tolist() == [5.0, -5.0, 3.0, 5.0, 13.0, 11.0]


def test_values_are_rounded_at_each_product():
    step, steps = np.float32(0.1).item(), list(range(-128, 128))
    indices = [6, 2046, -8, 0] * 64 * 29  # all even, so that no path leaves state 0
    tensor = Trellis((256, 29), indices, step, row_exponents=steps, column_exponents=steps[::9])
    decoded = parse_pcll(build({}, {"w": tensor}).file())[2]["w"]
    powers = np.array([float(Decimal(2) ** (Decimal(e) / 4)) for e in steps])
    rows = powers.astype(np.float32).astype(float)
    columns = (step / 4 * powers[::9]).astype(np.float32).astype(float)
    points = 4.0 * np.reshape(indices, (256, 29)) + 1
    products = (points * rows[:, None]).astype(np.float32) * columns
    assert np.array_equal(decoded, products.astype(np.float32))


@pytest.mark.parametrize(
    "step, index, row, column, further",
    [
        (2.0**100, 0, 0, 119, 1),
        (2.0**100, 7, 0, 100, 1),
        (2.0**100, 7, 100, 0, 1),
        (2.0**100, 2047, -128, 119, 1),
        (2.0**-100, 7, 0, -96, -1),
        (2.0**-100, -1, -128, -96, -1),
        (2.0**-94, 2047, 127, -120, -1),
    ],
)
def test_steps_at_their_limits(step, index, row, column, further):
    """A quarter octave further a value may be infinite, or a column's factor is subnormal or
    infinite."""

    def container(column: int) -> Container:
        steps = dict(row_exponents=[row] * 16, column_exponents=[column])
        return build({}, {"w": Trellis((16, 1), [index] * 16, step, **steps)})

    assert_round_trip(container(column))
    with pytest.raises(ArtifactError, match="tensor w has .* infinite"):
        parse_pcll(container(column + further).file())


# ---------------------------------------------------------------- what is reported about tensors


def test_coded_size():
    """Of a trellis tensor all but that of an ideal code."""
    container = sample()
    codebook, path = container.tensors[2], container.tensors[4]
    bits = {tensor.name: tensor.bits for tensor in parse_pcll(container.file())[1]}
    assert bits["a"] == 8 * 16 and bits["b"] == 8 * 6
    code_bits = sum(codebook.lengths[level] for level in codebook.levels)
    assert bits["c"] == 8 * (1 + 4 * 2 + 4) + code_bits
    assert bits["d"] == 32
    ideal = 0.0
    for element, index in enumerate(path.indices):
        frequencies = container.model.frequencies[path.context(element, 3)]
        ideal += 14 - math.log2(frequencies[index + 7])
    assert bits["e"] - 8 * (6 + 2 * (16 + 5)) == pytest.approx(ideal, rel=0.001)


# ---------------------------------------------------------------- memory


def big_file(codec: int) -> tuple[bytes, int]:
    """A file with one tensor of 16 very long rows, all the same weight, and the bytes of its
    weights. A second tensor holds random float16: a long file may have so many elements."""
    shape, noise, rng = (16, 90_000), 60_000, np.random.default_rng(0)
    elements = math.prod(shape)
    side, stream = bytes(4 * elements), b""
    if codec == 4:
        side, stream = long_codes(shape)
    elif codec == 3:
        side, stream = Trellis(shape, [], 1.0).side(), big_model(elements, ONE_SYMBOL)
    table = table_of(record(b"a", 1, noise), record(b"w", codec, *shape))
    planes = rng.bytes(noise) + rng.integers(0, 0x3C, noise, np.uint8).tobytes()
    return sign(table + planes + side + stream), 4 * (elements + noise)


@pytest.mark.parametrize("codec", [0, 3, 4])
def test_memory_is_below_four_times_the_weights(codec):
    data, decoded = big_file(codec)
    tracemalloc.start()
    try:
        parse_pcll(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * decoded + 64 * 2**20, peak / decoded


# ---------------------------------------------------------------- files and the command line


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "artifact.pcll"
    path.write_bytes(sample().file())
    return path


def test_read_pcll(artifact):
    config, weights = read_pcll(artifact)
    assert config == {"name": "sample", "width": 8} and list(weights) == ["a", "b", "c", "d", "e"]
    assert all(weights[name].dtype == np.float32 for name in weights)


def test_too_large_a_file_is_not_read(artifact):
    os.truncate(artifact, 2**28 + 1)
    with pytest.raises(ArtifactError, match="268435457 bytes, above the limit"):
        read_pcll(artifact)


def test_table(artifact, capsys):
    assert main([str(artifact)]) == 0
    out, err = capsys.readouterr()
    title, config, _, *rows, file = (line.split() for line in out.splitlines())
    assert " ".join(title) == "PCLL version 1, 5 tensors, 128 weights" and not err
    assert " ".join(config).endswith('"width": 8}')
    assert rows[0] == ["name", "shape", "codec", "bytes", "bits/weight"]
    assert rows[1] == ["a", "2x2", "float32", "16", "32.0000"]
    assert rows[3][:3] == ["c", "4x9", "huffman"] and rows[5][:3] == ["e", "16x5", "trellis"]
    assert file[:2] == ["file", str(artifact.stat().st_size)]


def test_json(artifact, capsys):
    assert main([str(artifact), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == 1 and report["config"] == {"name": "sample", "width": 8}
    for row in report["tensors"]:
        assert set(row) == {"name", "shape", "codec", "weights", "bytes", "bits_per_weight"}
        assert row["weights"] == math.prod(row["shape"])
        assert row["bits_per_weight"] == 8 * row["bytes"] / row["weights"]
    totals = report["totals"]
    assert totals["file_bytes"] == artifact.stat().st_size and totals["weights"] == 128
    assert totals["content_bytes"] == len(sample().content())
    assert totals["content_bytes"] == totals["tensor_bytes"] + totals["shared_bytes"]
    assert totals["tensor_bytes"] == pytest.approx(sum(row["bytes"] for row in report["tensors"]))


def test_npz_holds_every_name(tmp_path, capsys):
    names = ["blocks.0.attn.q", "file", "arr_0", "allow_pickle", "a.npy", "..", "x" * 100]
    tensors = {name: Floats((2,), [i, -0.0]) for i, name in enumerate(names)}
    (tmp_path / "in.pcll").write_bytes(build({}, tensors).file())
    assert main([str(tmp_path / "in.pcll"), "--npz", str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as loaded:
        assert sorted(loaded.files) == sorted(names)
        assert all(same(tensors[name], loaded[name]) for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pcll", "out.npz"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_npz_is_written_whole_or_not_at_all(artifact, tmp_path, monkeypatch, capsys, failure):
    out = tmp_path / "out.npz"
    out.write_bytes(b"earlier")

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    if isinstance(failure, OSError):
        assert main([str(artifact), "--npz", str(out)]) == 2
        assert "No space left" in capsys.readouterr().err
    else:
        assert main([str(artifact), "--npz", str(out)]) == 130
    assert out.read_bytes() == b"earlier" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_npz_takes_the_place_of_regular_files_alone(artifact, tmp_path, capsys, kind):
    out = tmp_path / "out.npz"
    (tmp_path / "other").write_bytes(b"other")
    make = {"pipe": os.mkfifo, "link": lambda path: path.symlink_to("other"), "folder": os.mkdir}
    make[kind](out)
    assert main([str(artifact), "--npz", str(out)]) == 2
    assert "is no regular file" in capsys.readouterr().err
    assert (tmp_path / "other").read_bytes() == b"other"


def test_bad_input_ends_in_one_sentence_and_writes_nothing(artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.pcll").write_bytes(b"PK\3\4" + sample().file()[4:])
    Path("cut.pcll").write_bytes(sample().file()[:-1])
    Path("empty.pcll").write_bytes(b"")
    os.mkfifo("pipe")
    before = {*tmp_path.iterdir()}
    for words, message in (
        ("bad.pcll", "the file starts with b'PK\\x03\\x04' and not with b'PCLL'"),
        ("cut.pcll --npz out.npz", "the header announces a frame of"),
        ("empty.pcll", "the file has 0 bytes, fewer than the header's 16"),
        ("missing.pcll", "No such file or directory"),
        (".", "Is a directory"),
        ("pipe", "it is no regular file"),
        ("artifact.pcll --npz missing/out.npz", "missing is no folder"),
        ("artifact.pcll --npz artifact.pcll", "--npz names the artifact itself"),
    ):
        assert main(words.split()) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"{words.split()[0]}: {message}") and not said.out
        assert said.err.count("\n") == 1 and {*tmp_path.iterdir()} == before
    for words in ("", "a b", "a --xml"):
        with pytest.raises(SystemExit) as caught:
            main(words.split())
        assert caught.value.code == 2


def test_closed_output_is_no_error(artifact):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, SCRIPT, artifact]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=300)
    assert result.returncode == 0 and not result.stderr


def test_reader_needs_only_numpy_and_zstandard(artifact):
    code = (
        "import sys, decode_artifact; decode_artifact.read_pcll(sys.argv[1]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-c", code, artifact]
    loaded = subprocess.check_output(command, cwd=SCRIPT.parent, text=True).split()
    outside = {name for name in loaded if not name.startswith(("_", "cython"))}
    assert outside == {"decode_artifact", "numpy", "zstandard"}
