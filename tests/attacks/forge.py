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
from collections.abc import Callable, Iterator

import zstandard

from attacks.build import Codebook, Container, Floats, Huffman, Model, Trellis, build, sign, wrap

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
        "c": Codebook(
            (4, 9),
            [0, 1, 2, 1, 1, 3] * 6,
            [-1.0, 0.0, 0.5, 2.0],
            [2, 1, 3, 3],
        ),
        "d": Codebook((5,), [0] * 5, [0.25]),
        "e": Trellis(
            (16, 5),
            [0, *pattern] * 4 + pattern[:12],
            0.125,
            [2, 0] * 8,
            [4, -2, 0, 2, 0],
            0,
            [2, -1] * 8,
            [3, -2, 0, 1, 0],
        ),
    }
    return build({"name": "sample", "width": 8}, tensors, Model(contexts=3))


def sample() -> Container:
    """A valid container with every codec, a few hundred bytes; the caller may change it."""
    return copy.deepcopy(_sample())


def changed(change: Callable[[Container], object]) -> bytes:
    container = sample()
    change(container)
    return container.file()


def table_of(*records: bytes) -> bytes:
    return EMPTY_CONFIG + struct.pack("<H", len(records)) + b"".join(records)


def record(name: bytes, codec: int, *shape: int) -> bytes:
    return (
        bytes([len(name)])
        + name
        + bytes([codec, len(shape)])
        + struct.pack(f"<{len(shape)}I", *shape)
    )


def raw_block(data: bytes) -> bytes:
    """A last block that holds its bytes as they are."""
    return struct.pack("<I", len(data) << 3 | 1)[:3] + data


def checksum(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)[-4:]


def frame_by_hand(
    blocks: bytes,
    content_size: int,
    window: int | None = None,
    dictionary: int = 0,
    checksum: bytes = bytes(4),
) -> bytes:
    """A zstd frame with an 8-byte content size around ready blocks."""
    descriptor = 3 << 6 | (0 if window is not None else 1 << 5) | 1 << 2 | (3 if dictionary else 0)
    head = struct.pack("<IB", 0xFD2FB528, descriptor) + (
        bytes([window]) if window is not None else b""
    )
    head += (struct.pack("<I", dictionary) if dictionary else b"") + struct.pack("<Q", content_size)
    return head + blocks + checksum


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
    data = wrap(
        frame_by_hand(raw_block(content), len(content), checksum=checksum(content)), len(content)
    )
    for bit in range(8 * len(data)):
        if bit != 8 * 20 + 4:
            yield data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@attack
def wrong_header() -> Files:
    data, content = sample().file(), len(sample().content())
    yield from (
        magic + data[4:] for magic in (b"pcll", b"PCLM", b"PK\3\4", bytes(4), b"\x28\xb5\x2f\xfd")
    )
    yield from (data[:4] + struct.pack("<H", version) + data[6:] for version in (0, 2, 256, 65535))
    yield from (data[:6] + struct.pack("<H", zero) + data[8:] for zero in (1, 256, 65535))
    for size in (0, 1, content - 1, content + 1, 65536, 2**31 - 1, 2**31, 2**32 - 1):
        yield data[:8] + struct.pack("<I", size) + data[12:]
    for size in (0, 1, len(data) - 17, len(data) - 15, len(data), 2**31, 2**32 - 1):
        yield data[:12] + struct.pack("<I", size) + data[16:]


@attack
def bytes_after_the_frame() -> Files:
    content = sample().content()
    data = sample().file()
    for tail in (b"\0", b"extra", bytes(1000), data, data[16:], SKIPPABLE):
        yield data + tail
        yield wrap(data[16:] + tail, len(content))
    halves = [sign(part)[16:] for part in (content[:100], content[100:])]
    yield wrap(b"".join(halves), len(content))
    yield wrap(data[16:] + sign(b"")[16:], len(content))


@attack
def bytes_before_the_frame() -> Files:
    data = sample().file()
    yield from (
        wrap(head + data[16:], len(sample().content()))
        for head in (b"\0", SKIPPABLE, sign(b"")[16:])
    )
    yield wrap(SKIPPABLE, 3)


@attack
def frame_without_checksum_or_size() -> Files:
    content = sample().content()
    for options in (
        {"write_checksum": False},
        {"write_checksum": True, "write_content_size": False},
    ):
        yield wrap(zstandard.ZstdCompressor(**options).compress(content), len(content))


@attack
def frame_with_dictionary() -> Files:
    content = sample().content()
    raw = zstandard.ZstdCompressionDict(content[:200], dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    yield wrap(
        zstandard.ZstdCompressor(dict_data=raw, write_checksum=True).compress(content), len(content)
    )
    plain = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    yield wrap(
        plain[:4] + bytes([plain[4] | 1]) + b"\7" + plain[5:], len(content)
    )  # names dictionary 7
    yield wrap(
        frame_by_hand(raw_block(content), len(content), dictionary=7, checksum=checksum(content)),
        len(content),
    )


@attack
def frame_that_lies_about_its_size() -> Files:
    content = sample().content()
    for size in (
        0,
        1,
        len(content) - 1,
        len(content) + 1,
        2 * len(content),
        10**5,
        2**63,
        2**64 - 1,
    ):
        frame = frame_by_hand(raw_block(content), size, checksum=checksum(content))
        yield wrap(frame, min(size, 2**32 - 1))
        yield wrap(frame, len(content))


@attack
def frame_with_a_huge_window() -> Files:
    content = sample().content()
    for exponent in (17, 20, 21, 31):  # 2^27 bytes to 2^41
        frame = frame_by_hand(
            raw_block(content), len(content), window=exponent << 3, checksum=checksum(content)
        )
        yield wrap(frame[:-1], len(content))
        yield wrap(frame[:-5], len(content))
        yield wrap(frame[:60], len(content))


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
    texts = [
        b"",
        b" ",
        b"{",
        b"}",
        b"{}{}",
        b"null",
        b"[]",
        b"1",
        b'"a"',
        b"true",
        b"{} ",
        b" {}",
        b'{"a": 1}',
        b'{"a":1,}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"\\u0061":1}',
        b'{"a":"\\/"}',
        b"{'a':1}",
        b"{a:1}",
        b'{"a":01}',
        b'{"a":1.50}',
        b'{"a":1e5}',
        b'{"a":1E400}',
        b'{"a":-0}',
        b'{"a":+1}',
        b'{"a":"\xc3\xa9"}',
        b'{"a":"\xff"}',
        b'{"a":"\\u00E9"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\x00"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"\0{}",
        b"{}\0",
        b'{"a":1}//',
        b'{"a":1}\n',
    ]
    yield from (changed(lambda c, text=text: setattr(c, "config", text)) for text in texts)


@attack
def config_of_wrong_types() -> Files:
    texts = [
        b'{"a":null}',
        b'{"a":[]}',
        b'{"a":[1]}',
        b'{"a":{}}',
        b'{"a":{"b":1}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":9223372036854775808}',
        b'{"a":-9223372036854775809}',
        b'{"a":1' + b"0" * 5000 + b"}",
    ]
    yield from (changed(lambda c, text=text: setattr(c, "config", text)) for text in texts)


@attack
def config_that_is_deep() -> Files:
    for depth in (100, 1000, 30000):
        yield changed(lambda c, depth=depth: setattr(c, "config", b"[" * depth + b"]" * depth))
        yield changed(
            lambda c, depth=depth: setattr(
                c, "config", b'{"a":' * (depth // 3) + b"1" + b"}" * (depth // 3)
            )
        )
        yield changed(lambda c, depth=depth: setattr(c, "config", b"[" * depth))


@attack
def config_that_is_long() -> Files:
    yield changed(lambda c: setattr(c, "config", b'{"a":"' + b"x" * 65536 + b'"}'))
    content = sample().content()
    yield from (
        sign(struct.pack("<I", size) + content[4:]) for size in (0, 1, 65537, 2**31, 2**32 - 1)
    )


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
    yield sign(table_of(record(b"x", 1), record(b"x", 1)) + bytes(4))
    yield sign(table_of(record(b"b", 1), record(b"a", 1)) + bytes(4))
    yield sign(table_of(record(b"a.b", 1), record(b"a", 1)) + bytes(4))


@attack
def names_that_collide_in_np_load() -> Files:
    yield sign(table_of(record(b"a", 1), record(b"a.npy", 1)) + bytes(8))
    yield sign(table_of(record(b"a.npy", 1), record(b"a.npy.npy", 1)) + bytes(8))


@attack
def names_that_are_not_plain() -> Files:
    names = [
        b"",
        b"A",
        b"a b",
        b"a-b",
        b"a/b",
        b"..\\b",
        b"a\0",
        b"a\n",
        b"\xc3\xa9",
        b"\xff",
        b"a" * 101,
        b"a" * 255,
    ]
    for name in names:
        yield sign(table_of(record(name, 1)) + bytes(2))


@attack
def unknown_codecs() -> Files:
    for codec in (2, 5, 6, 127, 128, 255):
        yield sign(table_of(record(b"a", codec, 2)) + bytes(100))


@attack
def huge_shapes() -> Files:
    most = 2**32 - 1
    shapes = [
        (most,),
        (most,) * 4,
        (65536,) * 4,
        (65536, 65536),
        (2**31, 2, 2**31, 2),
        (most, 1),
        (16, most),
        (70000,),
        (1, 1, 1, 2**20),
        (0,),
        (0, 0),
        (5, 0),
        (0, most),
        (16, 0),
        (1,) * 5,
        (2,) * 255,
    ]
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
        for shape in shapes:
            yield changed(lambda c, t=tensor, s=shape: setattr(c.tensors[t], "shape", s))


@attack
def trellis_tensors_without_rows() -> Files:
    for shape in ((), (80,), (1, 80), (15, 5), (5, 16), (8, 10), (1, 16, 5)):

        def reshape(c: Container, shape: tuple[int, ...] = shape) -> None:
            c.tensors[4].shape = shape

        yield changed(reshape)


# ---------------------------------------------------------------- floats and codebooks


@attack
def floats_that_are_not_finite() -> Files:
    for value in (NAN, INFINITY, -INFINITY):
        for tensor in (0, 1):
            yield changed(lambda c, t=tensor, v=value: c.tensors[t].weights.__setitem__(1, v))


@attack
def centroids_that_are_not_a_codebook() -> Files:
    for centroids in (
        [NAN, 0, 1, 2],
        [-1, 0, 1, NAN],
        [-1, NAN, 1, 2],
        [-INFINITY, 0, 1, 2],
        [-1, 0, 1, INFINITY],
        [-1, 0, 0, 2],
        [2, 1, 0, -1],
        [-1, 1, 0, 2],
        [0, 0, 0, 0],
        [-1, -0.0, 1, 2],
        [-1, -0.0, 0.0, 1],
    ):
        yield changed(lambda c, x=centroids: setattr(c.tensors[2], "centroids", x))
    for centroid in (NAN, INFINITY, -0.0):
        yield changed(lambda c, x=centroid: setattr(c.tensors[3], "centroids", [x]))
    yield sign(table_of(record(b"a", 4, 5)) + b"\0")  # no levels at all
    yield sign(table_of(record(b"a", 4, 5)) + b"\0" + bytes(100))


@attack
def codes_that_are_over_or_under_full() -> Files:
    for lengths in (
        [1, 1, 1, 1],
        [2, 2, 2, 1],
        [1, 2, 2, 3],
        [2, 2, 2, 3],
        [3, 3, 3, 3],
        [1, 2, 4, 4],
        [16] * 4,
        [0, 2, 2, 2],
        [0, 16, 16, 16],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
        [1, 2, 3, 17],
        [17] * 4,
        [255] * 4,
        [1, 2, 3, 19],
        [1, 2, 3, 35],
        [1, 2, 3, 255],
    ):
        yield changed(lambda c, x=lengths: setattr(c.tensors[2], "lengths", x))
    for lengths in ([], [1], [16], [17], [255], [0, 0]):
        yield changed(lambda c, x=lengths: setattr(c.tensors[3], "lengths", x))


@functools.cache
def _two_lanes() -> Container:
    levels = [0, 1, 2, 1, 0, 2, 3] * 100
    return build({}, {"c": Codebook((700,), levels, [-1.0, 0.0, 0.5, 2.0], [2, 1, 3, 3])})


@attack
def huffman_lanes_that_end_elsewhere() -> Files:
    first, second = _two_lanes().huffman.lane_bits
    most = 2**32 - 1
    for lane_bits in (
        [first + 1, second - 1],
        [first - 1, second + 1],
        [first + 16, second - 16],
        [0, first + second],
        [first + second, 0],
        [first, second + 1],
        [first, second - 1],
        [first, second + 16],
        [first, 16 * 700],
        [first, 16 * 700 + 1],
        [first, most],
        [most, most],
        [most, 1],
        [0, 0],
        [first],
        [first, second, 0],
        [],
    ):
        container = copy.deepcopy(_two_lanes())
        container.huffman.lane_bits = lane_bits
        yield container.file()


@attack
def huffman_words_too_many_or_too_few() -> Files:
    words = sample().huffman.words
    for other in ([], words[:1], words[:-1], words + [0], words + [0] * 33, [0] * 37, [0] * 1000):
        yield changed(lambda c, x=other: setattr(c.huffman, "words", x))
        container = copy.deepcopy(_two_lanes())
        container.huffman.words = other
        yield container.file()


@attack
def huffman_bits_left_over() -> Files:
    """Anything but zeros behind the last code, which is where a payload could hide."""
    huffman = sample().huffman
    for bit in range(16 * len(huffman.words) - sum(huffman.lane_bits)):
        yield changed(
            lambda c, bit=bit: c.huffman.words.__setitem__(-1, c.huffman.words[-1] | 1 << bit)
        )


# ---------------------------------------------------------------- trellis


@attack
def steps_that_are_no_scale() -> Files:
    for step in (
        NAN,
        INFINITY,
        -INFINITY,
        0.0,
        -0.0,
        -0.125,
        1e-45,
        2.0**-101,
        2.0**-126,
        2.0**101,
        3e38,
    ):
        yield changed(lambda c, x=step: setattr(c.tensors[4], "step", x))


@attack
def wrong_scales_and_steps() -> Files:
    """Too many or too few of them; offsets, scales and steps that lead to other contexts."""
    for field, count, at in (
        ("row_scales", 16, 5),
        ("column_scales", 5, 4),
        ("row_steps", 16, 5),
        ("column_steps", 5, 4),
    ):
        for numbers in ([], [0] * (count - 1), [0] * (count + 1)):
            yield changed(lambda c, f=field, x=numbers: setattr(c.tensors[4], f, x))
        for number in (-128, -3, 2, 127):
            yield changed(
                lambda c, f=field, at=at, x=number: getattr(c.tensors[4], f).__setitem__(at, x)
            )
    for offset in (-32768, -1000, -1, 1, 2, 1000, 32767):
        yield changed(lambda c, x=offset: setattr(c.tensors[4], "offset", x))


@attack
def steps_that_overflow_or_vanish() -> Files:
    """In one row or column, and in a single context, so that nothing else is wrong."""
    indices = [0, 7] * 40
    for step, row, column in (
        (2.0**100, 0, 127),
        (2.0**100, 0, 120),
        (2.0**100, 0, 101),
        (2.0**100, 127, 0),
        (2.0**100, 101, 0),
        (2.0**80, 127, 60),
        (2.0**70, 127, 127),
        (2.0**-100, 0, -97),
        (2.0**-100, 0, -128),
        (2.0**-100, 127, -128),
        (2.0**-95, 0, -128),
    ):
        rows, columns = [0] * 15 + [row], [column] + [0] * 4
        yield build(
            {}, {"t": Trellis((16, 5), indices, step, row_steps=rows, column_steps=columns)}
        ).file()


@attack
def wrong_model_sizes() -> Files:
    for log2_states in (0, 1, 9, 10, 32, 255):
        yield changed(lambda c, x=log2_states: setattr(c.model, "log2_states", x))
    for largest in (0, 1, 6, 8, 255, 256, 2047, 2048, 65535):
        yield changed(lambda c, x=largest: setattr(c.model, "largest", x))
    for contexts in (0, 1, 2, 4, 64, 65, 255):
        yield changed(lambda c, x=contexts: setattr(c.model, "contexts", x))


@attack
def frequencies_that_do_not_add_up() -> Files:
    for context in range(3):
        for symbol in (0, 7, 14):
            for change in (1, -1, 2**14, -(2**14), 2**15, 65535):

                def add(
                    c: Container, at: tuple[int, int] = (context, symbol), change: int = change
                ) -> None:
                    c.model.frequencies[at[0]][at[1]] = (
                        c.model.frequencies[at[0]][at[1]] + change
                    ) % 65536

                yield changed(add)
        yield changed(lambda c, x=context: c.model.frequencies.__setitem__(x, [65535] * 15))
        yield changed(lambda c, x=context: c.model.frequencies.__setitem__(x, [1] * 15))


@attack
def frequencies_that_are_zero() -> Files:
    """Contexts or symbols that occur and yet have no frequency."""
    for context in range(3):
        yield changed(lambda c, x=context: c.model.frequencies.__setitem__(x, [0] * 15))
        yield changed(lambda c, x=context: c.model.frequencies.__setitem__(x, [2**14] + [0] * 14))
        yield changed(lambda c, x=context: c.model.frequencies.__setitem__(x, [0] * 14 + [2**14]))
    yield changed(lambda c: setattr(c.model, "frequencies", [[0] * 15] * 3))


@attack
def states_that_are_wrong() -> Files:
    state = sample().model.states[0]
    for other in (
        0,
        1,
        2**16 - 1,
        2**16,
        state + 1,
        state - 1,
        state ^ 1 << 31,
        state ^ 1 << 20,
        2**32 - 1,
    ):
        yield changed(lambda c, x=other: setattr(c.model, "states", [x]))
    yield changed(lambda c: setattr(c.model, "states", []))
    yield changed(lambda c: setattr(c.model, "states", c.model.states * 2))


@attack
def states_that_never_end() -> Files:
    """With all the frequency on one symbol a state stays as it is, so that no number of elements
    uses it up."""
    indices = [0] * 80
    for state in (2**16 + 1, 2**20, 2**32 - 1):
        container = build({}, {"t": Trellis((16, 5), indices, 1.0)})
        container.model.states = [state]
        yield container.file()


@attack
def trellis_words_too_many_or_too_few() -> Files:
    words = sample().model.words
    for other in ([], words[:1], words[:-1], words + [0], words + [0] * 100, words[::-1]):
        yield changed(lambda c, x=other: setattr(c.model, "words", x))
    for place in range(len(words)):
        for bit in range(16):
            yield changed(
                lambda c, p=place, b=bit: c.model.words.__setitem__(p, c.model.words[p] ^ 1 << b)
            )
    parts = sample().parts()
    at = len(parts[-1]) - 4 - 2 * len(words)
    for count in (0, 1, 81, 2**16, 2**31, 2**32 - 1):
        yield sign(
            b"".join(parts[:-1]) + parts[-1][:at] + struct.pack("<I", count) + parts[-1][at + 4 :]
        )


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
    the
    shortest code comes over and over."""
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
            side = Trellis(shape, [], 1.0).side()
            yield padded(
                table_of(record(b"t", 3, *shape))[6:] + side + big_model(math.prod(shape), row)
            )


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
    yield sign(
        struct.pack("<I", len(config)) + config + table_of(record(b"a", 1))[6:] + bytes(2), level=19
    )
