"""Every attack is refused with one sentence, quickly and within bounded memory; a small budget of
mutated files."""

import functools
import itertools
import re
import time
import tracemalloc

import pytest
from attacks.forge import ATTACKS, HEAVY, sample
from attacks.fuzz import fuzz

import decode_artifact

SMALL_FILE = 1024  # bytes
TIME_LIMIT = 0.5  # seconds for a small file; the costliest takes 0.04 to 0.13, by the machine
MEMORY_LIMIT = 64 * 2**20  # bytes for a small file, which may hold 4 * 2^17 bytes of weights


def refusal(data: bytes) -> str | None:
    """What decode_artifact.py says against the file, or None if it reads it."""
    try:
        decode_artifact.parse_pcll(data)
    except decode_artifact.ArtifactError as refused:
        return str(refused)
    return None


@functools.cache
def refusals(attack: str) -> list[str | None]:
    """What is said against each file of an attack."""
    return [refusal(data) for data in ATTACKS[attack]()]


def seconds(data: bytes) -> float:
    """Processor time of the quickest of five attempts, so that a busy machine counts less."""
    attempts = []
    for _ in range(5):
        start = time.process_time()
        refusal(data)
        attempts.append(time.process_time() - start)
        if attempts[-1] < TIME_LIMIT:
            break
    return min(attempts)


def test_the_sample_itself_is_read():
    assert refusal(sample().file()) is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_in_a_sentence(attack):
    for number, message in enumerate(refusals(attack)):
        assert message is not None, f"file {number} is read"
        assert message.isascii() and message.isprintable() and 10 < len(message) < 300, message


# Each row of the format's list of what is rejected: attacks on it, and what they are told.
REJECTED = {
    "bytes after the frame or the last part, gaps, overlaps": [
        ("bytes_after_the_frame", "announces a frame of"),
        ("holes_and_overlaps", "bytes follow the last part"),
        ("trellis_words_too_many_or_too_few", "words left over after its last element"),
    ],
    "bits behind the last code that are not zeros": [
        ("huffman_bits_left_over", "not filled up with zeros"),
    ],
    "two tensors of one name, or names out of order": [
        ("names_twice_or_out_of_order", "comes out of order or twice"),
    ],
    'a name that is another one plus ".npy"': [
        ("names_that_collide_in_np_load", "collides with a(.npy)? in np.load"),
    ],
    "centroids, steps, floats, values that are NaN or infinite": [
        (
            "centroids_that_are_not_a_codebook",
            "codebook of tensor . has a value that is not finite",
        ),
        ("steps_that_are_no_scale", "has a step out of 2.-100 to 2.100"),
        ("floats_that_are_not_finite", "tensor . has a value that is not finite"),
        ("steps_that_overflow_or_vanish", "so large that a weight may be infinite"),
    ],
    "column factors that are zero or subnormal": [
        ("steps_that_overflow_or_vanish", "column factor that is zero, subnormal or infinite"),
    ],
    "codes that are over- or under-full, levels that are equal": [
        ("codes_that_are_over_or_under_full", "is over-full"),
        ("codes_that_are_over_or_under_full", "is under-full"),
        ("codes_that_are_over_or_under_full", "has a code of more than 16 bits"),
        ("centroids_that_are_not_a_codebook", "are not strictly increasing"),
        ("centroids_that_are_not_a_codebook", "has a negative zero"),
        ("centroids_that_are_not_a_codebook", "codebook of tensor . is empty"),
    ],
    "frequencies that do not add up, states that do not end at 2^16": [
        ("frequencies_that_do_not_add_up", "add up to [0-9]+ and not to 16384 or 0"),
        ("frequencies_that_are_zero", "uses a context that has no frequencies"),
        ("states_that_are_wrong", "starts below 2.16"),
        ("states_that_never_end", "does not end at 2.16"),
        ("huffman_lanes_that_end_elsewhere", "does not end where its bits do"),
    ],
}

RULES = [
    ("config_of_wrong_types", "neither a string, a number nor a boolean"),
    ("unknown_codecs", "has the unknown codec 2$"),
    ("frame_with_dictionary", "asks for dictionary"),
    ("frames_with_a_large_window", "needs a window of [0-9]+ bytes, above 134217728"),
    ("weights_of_another_crc32", "the weights have the CRC-32 [0-9]+, and the config states "),
]

LIMITS = [
    ("truncated_file", "fewer than the header's 16"),
    ("zip_bomb", "bytes of content, above the limit of"),
    ("config_that_is_long", "above the limit of 65536"),
    ("wrong_number_of_tensors", "the table has 513 tensors and not 1 to 512"),
    ("huge_shapes", "5 dimensions, above 4"),
    ("huge_shapes", "has a dimension of 0"),
    ("huge_shapes", "elements, above the limit of"),
    ("trellis_tensors_without_rows", "two dimensions and 16 rows or more"),
    ("huffman_lanes_that_end_elsewhere", "bits for 700 elements"),
    ("trellis_words_too_many_or_too_few", "words for 80 elements, which is too many"),
    ("wrong_model_sizes", "states and not 2.2 to 2.8"),
    ("wrong_model_sizes", "indices up to 2048, above 2047"),
    ("wrong_model_sizes", "contexts and not 1 to 64"),
]


def test_every_row_of_what_is_rejected_has_attacks():
    text = decode_artifact.__doc__.split("\nReject")[1].split("\n\n")[0]
    assert [line.strip() for line in text.splitlines()] == list(REJECTED)


@pytest.mark.parametrize("attack, message", [*itertools.chain(*REJECTED.values()), *RULES, *LIMITS])
def test_refused_for_its_own_reason(attack, message):
    assert any(re.search(message, text) for text in refusals(attack)), refusals(attack)[:5]


@pytest.mark.parametrize("attack", [*ATTACKS, *HEAVY])
def test_small_file_costs_little_time(attack):
    for number, data in enumerate((ATTACKS | HEAVY)[attack]()):
        if len(data) <= SMALL_FILE:
            assert seconds(data) < TIME_LIMIT, f"file {number}"


@pytest.mark.parametrize("attack", [*ATTACKS, *HEAVY])
def test_file_costs_little_memory(attack):
    """The first files of each attack: tracing is slow, and they differ little in what they cost."""
    tracemalloc.start()
    try:
        for number, data in enumerate(itertools.islice((ATTACKS | HEAVY)[attack](), 30)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refusal(data)
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY_LIMIT, f"file {number}"
    finally:
        tracemalloc.stop()


def test_mutated_files():
    outcomes = fuzz(runs=2000, seed=0)
    assert outcomes["refused"] > 1000 and outcomes["read by both"] > 100, outcomes
    assert outcomes["read"] > 10, outcomes
