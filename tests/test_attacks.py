"""Every attack is refused with one sentence, quickly and within bounded memory; a small budget of mutated files."""

import time
import tracemalloc
from itertools import islice

import pytest
from attacks.forge import ATTACKS, HEAVY, sample
from attacks.fuzz import DECODERS, fuzz

SMALL_FILE = 1024  # bytes
TIME_LIMIT = 0.1  # seconds for a small file
MEMORY_LIMIT = 64 * 2**20  # bytes for a small file, which may hold 4 * 2^17 bytes of weights

decoders = pytest.mark.parametrize("decoder", DECODERS)


def refusal(decoder: str, data: bytes) -> str | None:
    """What the decoder says against the file, or None if it reads it."""
    decode, error = DECODERS[decoder]
    try:
        decode(data)
    except error as refused:
        return str(refused)
    return None


def seconds(decoder: str, data: bytes) -> float:
    """Processor time of the quickest of five attempts, so that a busy machine counts less."""
    attempts = []
    for _ in range(5):
        start = time.process_time()
        refusal(decoder, data)
        attempts.append(time.process_time() - start)
        if attempts[-1] < TIME_LIMIT:
            break
    return min(attempts)


@decoders
def test_the_sample_itself_is_read(decoder):
    assert refusal(decoder, sample().file()) is None


@decoders
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_in_a_sentence(decoder, attack):
    for number, data in enumerate(ATTACKS[attack]()):
        message = refusal(decoder, data)
        assert message is not None, f"file {number} is read"
        assert message.isascii() and message.isprintable() and 10 < len(message) < 300, message


@pytest.mark.parametrize("attack", [*ATTACKS, *HEAVY])
def test_small_file_costs_little_time(attack):
    """Of the reader that is for others' files; train_gpt.py opens only what it has just written."""
    for number, data in enumerate((ATTACKS | HEAVY)[attack]()):
        if len(data) <= SMALL_FILE:
            assert seconds("decode_artifact", data) < TIME_LIMIT, f"file {number}"


@decoders
@pytest.mark.parametrize("attack", [*ATTACKS, *HEAVY])
def test_file_costs_little_memory(decoder, attack):
    """The first files of each attack: tracing is slow, and they differ little in what they cost."""
    tracemalloc.start()
    try:
        for number, data in enumerate(islice((ATTACKS | HEAVY)[attack](), 30)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refusal(decoder, data)
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY_LIMIT, f"file {number}"
    finally:
        tracemalloc.stop()


def test_mutated_files():
    outcomes = fuzz(runs=2000, seed=0)
    assert outcomes["refused"] > 1000 and outcomes["read"] > 100, outcomes
