"""The format's specification, decode_artifact.py's docstring: its example and its vectors are what
the decoders do."""

import hashlib
import math
import re
import zlib

import numpy as np
import pytest
from attacks.build import PARITY_CHECKS, Floats, Trellis, build, sign, values, wrap
from attacks.forge import raw_frame, sample

import decode_artifact
import train_gpt
from decode_artifact import ArtifactError, parse_pcll

TEXT = decode_artifact.__doc__
EXAMPLE = TEXT.split("\nExample ")[1].split("\n\n")[0]


def example() -> tuple[bytes, dict[str, str]]:
    """The file, and each tensor's SHA-256."""
    data = bytes.fromhex("".join(re.findall(r"^[0-9a-f]+$", EXAMPLE, re.M)))
    return data, dict(re.findall(r"^ +(\w)  ([0-9a-f]{64})$", EXAMPLE, re.M))


@pytest.mark.parametrize("decode", [lambda data: parse_pcll(data).weights, train_gpt.decode_pcll])
def test_the_example_has_the_values_that_the_text_states(decode):
    data, hashes = example()
    weights = decode(data)
    found = {name: hashlib.sha256(w.tobytes()).hexdigest() for name, w in weights.items()}
    assert found == hashes and list(found) == list("abcde")
    shapes = [w.shape for w in weights.values()]
    assert shapes == [(19, 3, 5), (16, 2), (7,), (2,), ()]


def test_the_example_has_what_is_easily_misread():
    """Two lanes and a short last round, contexts clamped at both ends, one that never occurs, and
    symbols that never do."""
    content = decode_artifact.inflate(example()[0])
    cursor = decode_artifact.Cursor(content)
    decode_artifact.read_config(cursor)
    tensors = decode_artifact.read_table(cursor, 246)
    a, b, *_ = tensors
    assert a.codec == b.codec == 3 and decode_artifact.lane_count(a.size + b.size) == 2
    assert a.size % 2 == 1
    grid = decode_artifact.read_grid(cursor, a)
    sums = set(np.add.outer(grid.row_spreads, grid.column_spreads).ravel().tolist())
    assert min(sums) == -10 and max(sums) == 12
    for tensor in tensors[1:]:
        decode_artifact.READERS[tensor.codec](cursor, tensor)
    decode_artifact.HuffmanStream(cursor, 7)
    model = decode_artifact.read_model(cursor)
    assert model.log2_states == 5 and model.largest == 2 and len(model.frequencies) == 3
    assert model.frequencies.sum(axis=1).tolist() == [2**14, 0, 2**14]
    assert model.frequencies[0].tolist()[4] == 0


def test_the_vector_of_the_trellis():
    line = re.search(r"q = (.*) pass s = (.*) and give points (.*)\.\n", TEXT)
    q, states, points = ([int(x) for x in group.split(", ")] for group in line.groups())
    tensor = Trellis((16, 5), q + [0] * 75, 4.0)
    assert values(tensor, 5)[0].tolist() == points == [5, -7, 13, 3, 9]
    state = np.zeros(1, int)
    for index, expected in zip(q, states, strict=True):
        assert state[0] == expected
        state = train_gpt.NEXT_STATE[state, index & 1]
    weights = parse_pcll(build({}, {"w": tensor}).file()).weights["w"]
    assert weights[0].tolist() == points


def test_the_table_of_parity_checks():
    """Halved: the text's are those of the papers without their lowest bit, which is 1 and 0."""
    rows = {name: TEXT.split(f"\n              {name} ")[1].split("\n")[0] for name in ("h0", "h1")}
    h0, h1 = ([int(number) for number in row.split()] for row in rows.values())
    expected = [[int(x, 8) // 2 for x in check.split()] for check in PARITY_CHECKS.values()]
    assert [list(pair) for pair in zip(h0, h1, strict=True)] == expected
    assert train_gpt.H0 // 2 == h0[3] and train_gpt.H1 // 2 == h1[3]


def test_the_vector_of_the_values():
    """In another order, or rounded once, the product is another number."""
    vector = "step 3f333333, a = b = -9, point 13: factors 3e5744fd, 3d16b04a, value 3dcde8d5"
    assert vector in TEXT
    step = np.array([0x3F333333], np.uint32).view(np.float32)[0]
    tensor = Trellis((16, 1), [3] * 16, float(step), row_exponents=[-9] * 16, column_exponents=[-9])
    value = parse_pcll(build({}, {"w": tensor}).file()).weights["w"][0, 0]
    assert value.view(np.uint32) == 0x3DCDE8D5

    exact = 13.0, 2.0**-2.25, float(step) / 4 * 2.0**-2.25
    point, row, column = (np.float32(x) for x in exact)
    assert row.view(np.uint32) == 0x3E5744FD and column.view(np.uint32) == 0x3D16B04A
    assert point * row * column == value
    once = np.float32(float(point) * float(row) * float(column))
    for other in (point * column * row, point * (row * column), once, np.float32(math.prod(exact))):
        assert other.view(np.uint32) == 0x3DCDE8D4


def with_config(text: str) -> bytes:
    """A file with this config and one weight."""
    container = build({}, {"w": Floats((1,), [1.0])})
    container.config = text.encode()
    return container.file()


@pytest.mark.parametrize("text", ["0.0", "-0.0", "1.5", "0.0001", "1e-05", "2.5e+16", "1e+160"])
def test_floats_in_their_one_form(text):
    value = parse_pcll(with_config(f'{{"x":{text}}}')).config["x"]
    assert type(value) is float and str(value) == text


@pytest.mark.parametrize(
    "text",
    """1.50 +1.5 01.5 1.5e0 15e-1 1. .5 0.00001 1e-5 1E-05 1.0e-05 2.5e16 100000000000000000.0
    0.1000000000000000055 1e400 1e-400 -0 --1""".split(),
)
def test_numbers_in_other_forms(text):
    with pytest.raises(ArtifactError, match="config"):
        parse_pcll(with_config(f'{{"x":{text}}}'))


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"b":1,"a":2}', "canonical"),
        ('{"a":1,"a":1}', "canonical"),
        ('{"a":-0}', "canonical"),
        ('{"a":01}', "JSON of the permitted kind"),
        ('{"a":"\\u00E9"}', "canonical"),
        ('{"a":"\\/"}', "canonical"),
        ('{"a":"\\u0041"}', "canonical"),
        ('{"a":"\\ud800"}', "JSON of the permitted kind"),
        ('{"a": 1}', "canonical"),
        ('{"a":null}', "neither a string, a number nor a boolean"),
        ('{"a":9223372036854775808}', "more than 64 bits"),
        ('{"a":NaN}', "JSON of the permitted kind"),
    ],
)
def test_configs_that_are_not_canonical(text, why):
    with pytest.raises(ArtifactError, match=why):
        parse_pcll(with_config(text))


def test_escapes_of_the_canonical_form():
    text = r'{"a":"\"\\\b\f\n\r\t\u0001\u007f\u00e9\ud83d\ude00~/"}'
    assert parse_pcll(with_config(text)).config == {"a": '"\\\b\f\n\r\t\x01\x7fé😀~/'}


def test_a_window_of_128_mib_is_read():
    content = sample().content()
    file = wrap(raw_frame(content, window=17 << 3), len(content))
    assert parse_pcll(file).config == {"name": "sample", "width": 8}


def test_the_text_is_no_longer_than_it_was():
    assert len(TEXT.splitlines()) <= 119


# ---- weights_crc32


def test_train_gpt_states_the_checksum_and_both_decoders_check_it():
    w = np.linspace(-1, 1, 640, dtype=np.float32).reshape(20, 32)
    s = train_gpt.Settings()
    moments = {"blocks.0.attn.q": train_gpt.Moments(np.ones(20), np.eye(32))}
    coded = train_gpt.encode_tensor("blocks.0.attn.q", w, s, 0.1, moments)
    artifact = train_gpt.encode_pcll({"a": 1}, {"q": coded, "b": train_gpt.FloatTensor((640,), w)})
    config, _, weights = parse_pcll(artifact)
    stated = zlib.crc32(weights["b"].tobytes() + weights["q"].tobytes())
    assert config == {"a": 1, "weights_crc32": stated}

    content = decode_artifact.inflate(artifact)
    number = str(stated).encode()
    wrong = number[:-1] + (b"0" if number[-1:] != b"0" else b"1")
    forged = sign(content.replace(number, wrong))
    sentence = f"the weights have the CRC-32 {stated}, and the config states {int(wrong)}"
    with pytest.raises(ArtifactError, match=sentence):
        parse_pcll(forged)
    with pytest.raises(train_gpt.UserError, match="are not those that it was made of"):
        train_gpt.decode_pcll(forged)


def test_a_file_without_the_checksum_is_read():
    file = build({"a": 1}, {"w": Floats((1,), [1.5])}).file()
    assert parse_pcll(file).weights["w"] == 1.5 == train_gpt.decode_pcll(file)["w"]
