"""One generator per attack; each yields whole files, and every one of them must be refused with one
sentence.

`ATTACKS` maps names to generators. `HEAVY` maps names to generators of small files which ask for as
much work as a file of their size may: those may be refused or accepted, but not slowly.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator

import zstandard

from attacks.build import (
    Codebook,
    Container,
    Floats,
    Huffman,
    Model,
    Trellis,
    build,
    sign,
    values,
    wrap,
)

Files = Iterator[bytes]
ATTACKS: dict[str, Callable[[], Files]] = {}
HEAVY: dict[str, Callable[[], Files]] = {}

# A frame that zstd decoders step over (RFC 8878, 3.1.2).
SKIPPABLE = struct.pack("<II", 0x184D2A50, 3) + b"abc"
EMPTY_CONFIG = struct.pack("<I", 2) + b"{}"
NAN, INFINITY = float("nan"), float("inf")


def attack(generator: Callable[[], Files]) -> Callable[[], Files]:
    ATTACKS[generator.__name__] = generator
    return generator


def heavy(generator: Callable[[], Files]) -> Callable[[], Files]:
    HEAVY[generator.__name__] = generator
    return generator


@functools.cache
def _sample() -> Container:
    pattern = [0, 1, 0, -1, 2, 0, -2, 0, 1, 0, 0, 7, -1, 0, 0, 1]
    tensors = {
        "a": Floats((2, 2), [1.0, -0.0, 1e-40, -3e38]),
        "b": Floats((3,), [1.0, 2.0, 6e-8], codec=1),
        "c": Codebook((4, 9), [0, 1, 2, 1, 1, 3] * 6, [-1.0, 0.0, 0.5, 2.0], [2, 1, 3, 3]),
        "d": Codebook((5,), [0] * 5, [0.25]),
    }
    scales = [2, 0] * 8, [4, -2, 0, 2, 0]
    steps = [2, -1] * 8, [3, -2, 0, 1, 0]
    tensors["e"] = Trellis((16, 5), [0, *pattern] * 4 + pattern[:12], 0.125, *scales, 0, *steps)
    return build({"name": "sample", "width": 8}, tensors, Model(contexts=3))


def sample() -> Container:
    """A valid container with every codec, a few hundred bytes; the caller may change it."""
    return copy.deepcopy(_sample())


def changed(change: Callable[[Container], object]) -> bytes:
    container = sample()
    change(container)
    return container.file()


def forged(part: int | str, **fields) -> bytes:
    """The sample with other fields in the tensor of this number, or in `huffman` or `model`."""
    container = sample()
    owner = container.tensors[part] if isinstance(part, int) else getattr(container, part)
    vars(owner).update(fields)
    return container.file()


def with_config(text: bytes) -> bytes:
    return changed(lambda container: setattr(container, "config", text))


def table_of(*records: bytes) -> bytes:
    return EMPTY_CONFIG + struct.pack("<H", len(records)) + b"".join(records)


def record(name: bytes, codec: int, *shape: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}I", *shape)
    return bytes([len(name)]) + name + bytes([codec, len(shape)]) + sizes


def raw_block(data: bytes) -> bytes:
    """A last block that holds its bytes as they are."""
    return struct.pack("<I", len(data) << 3 | 1)[:3] + data


def checksum(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)[-4:]


def frame_by_hand(
    blocks: bytes, content_size: int, window: int = 0, dictionary: int = 0, checksum=bytes(4)
) -> bytes:
    """A zstd frame with an 8-byte content size around ready blocks."""
    descriptor = 3 << 6 | (0 if window else 1 << 5) | 1 << 2 | (3 if dictionary else 0)
    head = struct.pack("<IB", 0xFD2FB528, descriptor)
    head += bytes([window]) if window else b""
    head += struct.pack("<I", dictionary) if dictionary else b""
    return head + struct.pack("<Q", content_size) + blocks + checksum


def raw_frame(content: bytes, size: int | None = None, **fields) -> bytes:
    """A frame of the content as it is, which may state another size, and its true checksum."""
    size = len(content) if size is None else size
    return frame_by_hand(raw_block(content), size, checksum=checksum(content), **fields)


# ---------------------------------------------------------------- the file and its frame


@attack
def truncated_file() -> Files:
    data = sample().file()
    for size in range(len(data)):
        yield data[:size]
        if size > 16:
            yield wrap(data[16:size], len(sample().content()))


@attack
def flipped_bits() -> Files:
    """Every bit of the file but the one in the frame's descriptor that decoders are told to
    ignore."""
    content = sample().content()
    data = wrap(raw_frame(content), len(content))
    for bit in range(8 * len(data)):
        if bit != 8 * 20 + 4:
            yield data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@attack
def wrong_header() -> Files:
    data, content = sample().file(), len(sample().content())
    for magic in (b"pcll", b"PCLM", b"PK\3\4", bytes(4), b"\x28\xb5\x2f\xfd"):
        yield magic + data[4:]
    for version in (0, 2, 256, 65535):
        yield data[:4] + struct.pack("<H", version) + data[6:]
    for zero in (1, 256, 65535):
        yield data[:6] + struct.pack("<H", zero) + data[8:]
    for size in (0, 1, content - 1, content + 1, 65536, 2**31 - 1, 2**31, 2**32 - 1):
        yield data[:8] + struct.pack("<I", size) + data[12:]
    for size in (0, 1, len(data) - 17, len(data) - 15, len(data), 2**31, 2**32 - 1):
        yield data[:12] + struct.pack("<I", size) + data[16:]


@attack
def bytes_after_the_frame() -> Files:
    content, data = sample().content(), sample().file()
    for tail in (b"\0", b"extra", bytes(1000), data, data[16:], SKIPPABLE):
        yield data + tail
        yield wrap(data[16:] + tail, len(content))
    halves = [sign(part)[16:] for part in (content[:100], content[100:])]
    yield wrap(b"".join(halves), len(content))
    yield wrap(data[16:] + sign(b"")[16:], len(content))


@attack
def bytes_before_the_frame() -> Files:
    content, data = sample().content(), sample().file()
    for head in (b"\0", SKIPPABLE, sign(b"")[16:]):
        yield wrap(head + data[16:], len(content))
    yield wrap(SKIPPABLE, 3)


@attack
def frame_without_checksum_or_size() -> Files:
    content = sample().content()
    for options in (
        dict(write_checksum=False),
        dict(write_checksum=True, write_content_size=False),
    ):
        yield wrap(zstandard.ZstdCompressor(**options).compress(content), len(content))


@attack
def frame_with_dictionary() -> Files:
    content = sample().content()
    raw = zstandard.ZstdCompressionDict(content[:200], dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    with_raw = zstandard.ZstdCompressor(dict_data=raw, write_checksum=True).compress(content)
    plain = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    names_7 = plain[:4] + bytes([plain[4] | 1]) + b"\7" + plain[5:]
    for frame in (with_raw, names_7, raw_frame(content, dictionary=7)):
        yield wrap(frame, len(content))


@attack
def frame_that_lies_about_its_size() -> Files:
    content = sample().content()
    true = len(content)
    for size in (0, 1, true - 1, true + 1, 2 * true, 10**5, 2**63, 2**64 - 1):
        yield wrap(raw_frame(content, size), min(size, 2**32 - 1))
        yield wrap(raw_frame(content, size), true)


@attack
def frame_with_a_huge_window() -> Files:
    content = sample().content()
    for exponent in (17, 20, 21, 31):  # 2^27 bytes to 2^41
        frame = raw_frame(content, window=exponent << 3)
        for part in (frame[:-1], frame[:-5], frame[:60]):
            yield wrap(part, len(content))


@attack
def frames_with_a_large_window() -> Files:
    """Valid otherwise: some readers take them, and others lack the memory."""
    content = sample().content()
    for descriptor in (17 << 3 | 1, 18 << 3, 20 << 3 | 7):  # 2^27 + 2^24 bytes, 2^28, almost 2^31
        yield wrap(raw_frame(content, window=descriptor), len(content))


@attack
def zip_bomb() -> Files:
    """Runs of 128 KiB at four bytes each: 1 KB that inflates to 32 MB, and says so or does not."""
    run = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", 2**17 << 3 | 1 << 1 | 1)[:3] + b"\0"
    for stated in (2**17 * 240, 2**16, 0):
        yield wrap(frame_by_hand(run * 239 + last, stated), stated)
    yield wrap(frame_by_hand(run * 239 + last, 2**17 * 240), 2**16)
    yield sign(bytes(2**22))


# ---------------------------------------------------------------- the content as a whole


@attack
def truncated_content() -> Files:
    content = sample().content()
    yield from (sign(content[:size]) for size in range(len(content)))


@attack
def holes_and_overlaps() -> Files:
    """A byte too many or too few between any two fields."""
    parts = sample().parts()
    for cut in range(1, len(parts)):
        head, tail = b"".join(parts[:cut]), b"".join(parts[cut:])
        yield sign(head + b"\0" + tail)
        yield sign(head + tail[1:])
    for tail in (b"\0", b"\xff", bytes(100), sample().content()):
        yield sign(sample().content() + tail)


# ---------------------------------------------------------------- config


@attack
def config_that_is_not_canonical() -> Files:
    texts = rb"""
        { } {}{} null [] 1 "a" true {"a":1,} {"b":1,"a":2} {"a":1,"a":1} {"a":1,"a":2} {'a':1}
        {a:1} {"a":1,"\u0061":2} {"\u0061":1} {"a":"\/"} {"a":01} {"a":1.50} {"a":1e5} {"a":1E400}
        {"a":-0} {"a":+1} {"a":"\u00E9"} {"a":"\ud800"} {"\udfff":1} {"a":1}//""".split()
    texts += [b"", b" ", b"{} ", b" {}", b'{"a": 1}', b'{"a":1}\n', b'{"a":"\x00"}', b"\0{}"]
    texts += [b"{}\0", b'{"a":"\xc3\xa9"}', b'{"a":"\xff"}', b"\xef\xbb\xbf{}"]
    texts.append('{"a":1}'.encode("utf-16"))
    yield from map(with_config, texts)


@attack
def weights_of_another_crc32() -> Files:
    """Any other number, or the right one as something else than an integer."""
    container = sample()
    crc = zlib.crc32(b"".join(values(tensor, 5).tobytes() for tensor in container.tensors))
    for wrong in (crc ^ 1, crc - 2**32, 0, float(crc), str(crc), True):
        container.config = json.dumps({"weights_crc32": wrong}, separators=(",", ":")).encode()
        yield container.file()


@attack
def config_of_wrong_types() -> Files:
    texts = rb"""
        {"a":null} {"a":[]} {"a":[1]} {"a":{}} {"a":{"b":1}} {"a":NaN} {"a":Infinity}
        {"a":-Infinity} {"a":9223372036854775808} {"a":-9223372036854775809}""".split()
    yield from map(with_config, [*texts, b'{"a":1' + b"0" * 5000 + b"}"])


@attack
def config_that_is_deep() -> Files:
    for depth in (100, 1000, 30000):
        yield with_config(b"[" * depth + b"]" * depth)
        yield with_config(b'{"a":' * (depth // 3) + b"1" + b"}" * (depth // 3))
        yield with_config(b"[" * depth)


@attack
def config_that_is_long() -> Files:
    yield with_config(b'{"a":"' + b"x" * 65536 + b'"}')
    content = sample().content()
    for size in (0, 1, 65537, 2**31, 2**32 - 1):
        yield sign(struct.pack("<I", size) + content[4:])


# ---------------------------------------------------------------- table


@attack
def wrong_number_of_tensors() -> Files:
    parts = sample().parts()
    for count in (0, 1, 4, 6, 512, 513, 65535):
        yield sign(b"".join(parts[:2]) + struct.pack("<H", count) + b"".join(parts[3:]))
    names = sorted(f"t{i}".encode() for i in range(513))
    yield sign(table_of(*(record(name, 0) for name in names)) + bytes(4 * 513))


@attack
def names_twice_or_out_of_order() -> Files:
    for names in ([b"a", b"b"], [b"b", b"a"], [b"c", b"c"], [b"c", b"b"], [b"d", b"c"]):
        yield changed(lambda c, n=names: c.names.__setitem__(slice(1, 3), n))
    for first, second in ((b"x", b"x"), (b"b", b"a"), (b"a.b", b"a")):
        yield sign(table_of(record(first, 1), record(second, 1)) + bytes(4))


@attack
def names_that_collide_in_np_load() -> Files:
    yield sign(table_of(record(b"a", 1), record(b"a.npy", 1)) + bytes(8))
    yield sign(table_of(record(b"a.npy", 1), record(b"a.npy.npy", 1)) + bytes(8))


@attack
def names_that_are_not_plain() -> Files:
    names = [b"", b"A", b"a b", b"a-b", b"a/b", b"..\\b", b"a\0", b"a\n", b"\xc3\xa9", b"\xff"]
    names += [b"a" * 101, b"a" * 255]
    for name in names:
        yield sign(table_of(record(name, 1)) + bytes(2))


@attack
def unknown_codecs() -> Files:
    for codec in (2, 5, 6, 127, 128, 255):
        yield sign(table_of(record(b"a", codec, 2)) + bytes(100))


@attack
def huge_shapes() -> Files:
    most = 2**32 - 1
    shapes = [(most,), (most,) * 4, (65536,) * 4, (65536, 65536), (2**31, 2, 2**31, 2), (most, 1)]
    shapes += [(16, most), (70000,), (1, 1, 1, 2**20), (0,), (0, 0), (5, 0), (0, most), (16, 0)]
    shapes += [(1,) * 5, (2,) * 255]
    for shape in shapes:
        for codec in (0, 1, 3, 4):
            yield sign(table_of(record(b"a", codec, *shape)) + bytes(100))
    yield sign(table_of(*(record(b"a%02d" % i, 4, 16, 1000) for i in range(60))) + bytes(200))


@attack
def shapes_that_do_not_fit_the_data() -> Files:
    for tensor, shapes in (
        (0, [(2, 3), (5,), (), (1, 3)]),
        (1, [(4,), (2,), ()]),
        (2, [(4, 90), (1,), (37,)]),
        (4, [(16, 6), (17, 5), (16, 500), (80, 1), (16, 1)]),
    ):
        yield from (forged(tensor, shape=shape) for shape in shapes)


@attack
def trellis_tensors_without_rows() -> Files:
    for shape in ((), (80,), (1, 80), (15, 5), (5, 16), (8, 10), (1, 16, 5)):
        yield forged(4, shape=shape)


# ---------------------------------------------------------------- floats and codebooks


@attack
def floats_that_are_not_finite() -> Files:
    for value in (NAN, INFINITY, -INFINITY):
        yield forged(0, weights=[1.0, value, 1e-40, -3e38])
        yield forged(1, weights=[1.0, value, 6e-8])


@attack
def centroids_that_are_not_a_codebook() -> Files:
    books = [[NAN, 0, 1, 2], [-1, 0, 1, NAN], [-1, NAN, 1, 2], [-INFINITY, 0, 1, 2]]
    books += [[-1, 0, 1, INFINITY], [-1, 0, 0, 2], [2, 1, 0, -1], [-1, 1, 0, 2], [0, 0, 0, 0]]
    books += [[-1, -0.0, 1, 2], [-1, -0.0, 0.0, 1]]
    yield from (forged(2, centroids=book) for book in books)
    yield from (forged(3, centroids=[centroid]) for centroid in (NAN, INFINITY, -0.0))
    for tail in (b"\0", bytes(101)):  # no levels at all
        yield sign(table_of(record(b"a", 4, 5)) + tail)


@attack
def codes_that_are_over_or_under_full() -> Files:
    codes = [[1, 1, 1, 1], [2, 2, 2, 1], [1, 2, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3], [1, 2, 4, 4]]
    codes += [[16] * 4, [0, 2, 2, 2], [0, 16, 16, 16], [0, 0, 1, 1], [0, 0, 0, 0], [1, 2, 3, 17]]
    codes += [[17] * 4, [255] * 4, [1, 2, 3, 19], [1, 2, 3, 35], [1, 2, 3, 255]]
    yield from (forged(2, lengths=lengths) for lengths in codes)
    yield from (forged(3, lengths=lengths) for lengths in ([], [1], [16], [17], [255], [0, 0]))


@functools.cache
def _two_lanes() -> Container:
    levels = [0, 1, 2, 1, 0, 2, 3] * 100
    return build({}, {"c": Codebook((700,), levels, [-1.0, 0.0, 0.5, 2.0], [2, 1, 3, 3])})


@attack
def huffman_lanes_that_end_elsewhere() -> Files:
    first, second = _two_lanes().huffman.lane_bits
    most = 2**32 - 1
    lanes = [[first + 1, second - 1], [first - 1, second + 1], [first + 16, second - 16]]
    lanes += [[0, first + second], [first + second, 0], [first, second + 1], [first, second - 1]]
    lanes += [[first, second + 16], [first, 16 * 700], [first, 16 * 700 + 1], [first, most]]
    lanes += [[most, most], [most, 1], [0, 0], [first], [first, second, 0], []]
    for lane_bits in lanes:
        container = copy.deepcopy(_two_lanes())
        container.huffman.lane_bits = lane_bits
        yield container.file()


@attack
def huffman_words_too_many_or_too_few() -> Files:
    words = sample().huffman.words
    for other in ([], words[:1], words[:-1], words + [0], words + [0] * 33, [0] * 37, [0] * 1000):
        yield forged("huffman", words=other)
        container = copy.deepcopy(_two_lanes())
        container.huffman.words = other
        yield container.file()


@attack
def huffman_bits_left_over() -> Files:
    """Anything but zeros behind the last code, which is where a payload could hide."""
    huffman = sample().huffman
    *words, last = huffman.words
    for bit in range(16 * len(huffman.words) - sum(huffman.lane_bits)):
        yield forged("huffman", words=[*words, last | 1 << bit])


# ---------------------------------------------------------------- trellis


@attack
def steps_that_are_no_scale() -> Files:
    steps = [NAN, INFINITY, -INFINITY, 0.0, -0.0, -0.125, 1e-45, 2.0**-101, 2.0**-126, 2.0**101]
    yield from (forged(4, step=step) for step in [*steps, 3e38])


@attack
def wrong_scales_and_steps() -> Files:
    """Too many or too few of them; offsets, scales and steps that lead to other contexts."""
    for field, at in (
        ("row_spreads", 5),
        ("column_spreads", 4),
        ("row_exponents", 5),
        ("column_exponents", 4),
    ):
        own = getattr(sample().tensors[4], field)
        for numbers in ([], [0] * (len(own) - 1), [0] * (len(own) + 1)):
            yield forged(4, **{field: numbers})
        for number in (-128, -3, 2, 127):
            yield forged(4, **{field: [*own[:at], number, *own[at + 1 :]]})
    yield from (forged(4, offset=x) for x in (-32768, -1000, -1, 1, 2, 1000, 32767))


@attack
def steps_that_overflow_or_vanish() -> Files:
    """In one row or column, and in a single context, so that nothing else is wrong."""
    cases = [(2.0**100, 0, 127), (2.0**100, 0, 120), (2.0**100, 0, 101), (2.0**100, 127, 0)]
    cases += [(2.0**100, 101, 0), (2.0**80, 127, 60), (2.0**70, 127, 127), (2.0**-100, 0, -97)]
    cases += [(2.0**-100, 0, -128), (2.0**-100, 127, -128), (2.0**-95, 0, -128)]
    for step, row, column in cases:
        steps = dict(row_exponents=[0] * 15 + [row], column_exponents=[column] + [0] * 4)
        yield build({}, {"t": Trellis((16, 5), [0, 7] * 40, step, **steps)}).file()


@attack
def wrong_model_sizes() -> Files:
    yield from (forged("model", log2_states=x) for x in (0, 1, 9, 10, 32, 255))
    yield from (forged("model", largest=x) for x in (0, 1, 6, 8, 255, 256, 2047, 2048, 65535))
    yield from (forged("model", contexts=x) for x in (0, 1, 2, 4, 64, 65, 255))


def with_frequencies(context: int, row: list[int]) -> bytes:
    return changed(lambda c: c.model.frequencies.__setitem__(context, row))


@attack
def frequencies_that_do_not_add_up() -> Files:
    for context in range(3):
        row = sample().model.frequencies[context]
        for symbol in (0, 7, 14):
            for change in (1, -1, 2**14, -(2**14), 2**15, 65535):
                other = (row[symbol] + change) % 65536
                yield with_frequencies(context, [*row[:symbol], other, *row[symbol + 1 :]])
        yield with_frequencies(context, [65535] * 15)
        yield with_frequencies(context, [1] * 15)


@attack
def frequencies_that_are_zero() -> Files:
    """Contexts or symbols that occur and yet have no frequency."""
    for context in range(3):
        for row in ([0] * 15, [2**14] + [0] * 14, [0] * 14 + [2**14]):
            yield with_frequencies(context, row)
    yield forged("model", frequencies=[[0] * 15] * 3)


@attack
def states_that_are_wrong() -> Files:
    (state,) = sample().model.states
    others = [0, 1, 2**16 - 1, 2**16, state + 1, state - 1, state ^ 1 << 31, state ^ 1 << 20]
    for states in (*([other] for other in [*others, 2**32 - 1]), [], [state] * 2):
        yield forged("model", states=states)


@attack
def states_that_never_end() -> Files:
    """With all the frequency on one symbol a state stays as it is, so that no number of elements
    uses it up."""
    for state in (2**16 + 1, 2**20, 2**32 - 1):
        container = build({}, {"t": Trellis((16, 5), [0] * 80, 1.0)})
        container.model.states = [state]
        yield container.file()


@attack
def trellis_words_too_many_or_too_few() -> Files:
    words = sample().model.words
    for other in ([], words[:1], words[:-1], words + [0], words + [0] * 100, words[::-1]):
        yield forged("model", words=other)
    for place, word in enumerate(words):
        for bit in range(16):
            yield forged("model", words=[*words[:place], word ^ 1 << bit, *words[place + 1 :]])
    content = sample().content()
    at = len(content) - 4 - 2 * len(words)
    for count in (0, 1, 81, 2**16, 2**31, 2**32 - 1):
        yield sign(content[:at] + struct.pack("<I", count) + content[at + 4 :])


# ---------------------------------------------------------------- as much work as 1 KB may ask for

MOST = 2**16 + 64 * 1000  # elements that a file of 1,000 bytes may have


def padded(body: bytes) -> bytes:
    """A file of 1,000 to 1,024 bytes around a table and what follows it, by way of a config that
    does not compress."""
    noise = "".join(format(i * 2654435761 % 2**32, "08x") for i in range(240))
    for size in range(0, len(noise), 8):
        config = json.dumps({"noise": noise[:size]}, separators=(",", ":")).encode()
        file = sign(struct.pack("<I", len(config)) + config + body, level=19)
        if 1000 <= len(file) <= 1024:
            return file
    raise AssertionError("the body does not compress to less than 1,000 bytes")


def lanes(elements: int) -> int:
    return 1 << max(0, (elements // 64).bit_length() - 1) // 2


def long_codes(*shapes: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Side data with codes of 1 to 16 bits for each tensor, and a stream in which the level with
    the shortest code comes over and over."""
    side = Codebook((), [], list(range(17)), [*range(1, 17), 16]).side() * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    used = lanes(sum(sizes))
    lane_bits = [sum(math.ceil((size - lane) / used) for size in sizes) for lane in range(used)]
    return side, Huffman(lane_bits, [0] * math.ceil(sum(sizes) / 16)).section()


def big_model(elements: int, row: list[int]) -> bytes:
    return Model(8, 64, len(row) // 2, [row] * 64, [2**16] * lanes(elements), []).section()


ONE_SYMBOL = [2**14] + [0] * 254
MANY_RARE = [0] * 400 + [2**14 - 400] + [1] * 400


@heavy
def slow_huffman() -> Files:
    """As many steps as can be: the elements lie just below a doubling of the lanes."""
    for elements in (MOST, 2**17 - 2**13, 2**16 - 2, 2**15 - 2):
        for shape in ((elements,), (elements // 2, 2), (1, elements)):
            side, words = long_codes(shape)
            yield padded(table_of(record(b"t", 4, *shape))[6:] + side + words)


@heavy
def slow_huffman_tables() -> Files:
    """A look-up table of 2^16 entries for each of many tensors."""
    for tensors in (64, 128, 192):
        shape = (MOST // tensors // 2, 2)
        side, words = long_codes(*[shape] * tensors)
        records = (record(b"%03d" % i, 4, *shape) for i in range(tensors))
        yield padded(table_of(*records)[6:] + side + words)


@heavy
def slow_trellis() -> Files:
    """64 contexts to build, rows as long or as many as can be, and states that no step changes."""
    for shape in ((16, MOST // 16), (MOST, 1), (16, 4095), (4095, 16)):
        for row in (ONE_SYMBOL, MANY_RARE):
            body = table_of(record(b"t", 3, *shape))[6:] + Trellis(shape, [], 1.0).side()
            yield padded(body + big_model(math.prod(shape), row))


@heavy
def slow_trellis_statistics() -> Files:
    """Many tensors under a model of many symbols, of which each tensor uses one."""
    for tensors, largest in ((64, 2047), (128, 1000), (192, 1000)):
        shape = (16, MOST // 16 // tensors)
        records = (record(b"%03d" % i, 3, *shape) for i in range(tensors))
        model = big_model(math.prod(shape) * tensors, [2**14] + [0] * (2 * largest))
        yield padded(table_of(*records)[6:] + Trellis(shape, [], 1.0).side() * tensors + model)


@heavy
def slow_everything() -> Files:
    """Both streams, each as long as can be beside the other, and a config of many entries."""
    shape = (2**15 - 1, 2)
    side, words = long_codes(shape)
    trellis = big_model(16 * 3900, ONE_SYMBOL)
    table = table_of(record(b"h", 4, *shape), record(b"t", 3, 16, 3900))[6:]
    yield padded(table + side + Trellis((16, 3900), [], 1.0).side() + words + trellis)


@heavy
def slow_config() -> Files:
    config = json.dumps({f"{i:05}": 0 for i in range(6000)}, separators=(",", ":")).encode()
    content = struct.pack("<I", len(config)) + config + table_of(record(b"a", 1))[6:] + bytes(2)
    yield sign(content, level=19)
