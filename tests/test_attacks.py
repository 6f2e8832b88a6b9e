"""Every attack is refused with one sentence, quickly and within bounded memory; a small budget of
mutated files."""

import time
import tracemalloc
from itertools import islice

import pytest
from attacks.forge import ATTACKS, HEAVY, sample
from attacks.fuzz import fuzz

import decode_artifact

SMALL_FILE = 1024  # bytes
TIME_LIMIT = 0.1  # seconds for a small file
MEMORY_LIMIT = 64 * 2**20  # bytes for a small file, which may hold 4 * 2^17 bytes of weights


def refusal(data: bytes) -> str | None:
    """What decode_artifact.py says against the file, or None if it reads it."""
    try:
        decode_artifact.parse_pcll(data)
    except decode_artifact.ArtifactError as refused:
        return str(refused)
    return None


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
    for number, data in enumerate(ATTACKS[attack]()):
        message = refusal(data)
        assert message is not None, f"file {number} is read"
        assert message.isascii() and message.isprintable() and 10 < len(message) < 300, message


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
        for number, data in enumerate(islice((ATTACKS | HEAVY)[attack](), 30)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refusal(data)
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY_LIMIT, f"file {number}"
    finally:
        tracemalloc.stop()


def test_mutated_files():
    outcomes = fuzz(runs=2000, seed=0)
    assert outcomes["refused"] > 1000 and outcomes["read"] > 100, outcomes
