"""Data: shards are checked, ranks share the same tokens, bytes are those of the text."""

import io

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import tiny_settings, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from train_gpt import ByteCounter, Ranks, TokenStream, UserError, train_batches


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (dict(magic=1), "not a token shard"),
        (dict(version=2), "not a token shard"),
        (dict(count=9), "states 9 tokens"),
        (dict(count=0), "states 0 tokens"),
        (dict(count=-1), "states -1 tokens"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, damage, sentence):
    write_shard(tmp_path / "fineweb_train_0.bin", range(10), **damage)
    with pytest.raises(UserError, match=sentence):
        TokenStream(str(tmp_path), "train", 64)


def test_a_cut_shard_is_refused(tmp_path):
    path = tmp_path / "fineweb_train_0.bin"
    write_shard(path, range(10))
    for size in (0, 5, 1023, 1024, 1025, 1043):
        path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
        with pytest.raises(UserError, match="fineweb_train_0.bin"):
            TokenStream(str(tmp_path), "train", 64)


def test_missing_data_and_ids_above_the_vocabulary(tmp_path):
    with pytest.raises(UserError, match="DATA_PATH"):
        TokenStream(str(tmp_path), "train", 64)
    write_shard(tmp_path / "fineweb_train_0.bin", [1, 2, 64])
    with pytest.raises(UserError, match="token 64, but VOCAB_SIZE is 64"):
        TokenStream(str(tmp_path), "train", 64).read(0, 3)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    start=st.integers(0, 100),
    count=st.integers(1, 70),
)
def test_shards_read_as_one_endless_sequence(tmp_path_factory, sizes, start, count):
    folder = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(sizes)) % 64
    for i, part in enumerate(np.split(tokens, np.cumsum(sizes)[:-1])):
        write_shard(folder / f"fineweb_train_{i:06d}.bin", part)
    got = TokenStream(str(folder), "train", 64).read(start, count)
    assert (got == np.take(tokens, np.arange(start, start + count), mode="wrap")).all()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_all_ranks_together_see_the_same_batch(tmp_path, world):
    write_shard(tmp_path / "fineweb_train_0.bin", np.arange(1000) % 64)
    stream = TokenStream(str(tmp_path), "train", 64)
    s = tiny_settings(MICRO_BATCH_SEQS=2)
    ranks = [Ranks(rank, world, torch.device("cpu")) for rank in range(world)]
    parts = [batch for rank in ranks for batch in train_batches(stream, 3, s, rank)]
    inputs, targets = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    start = 3 * 64  # step 3 of 64 tokens each
    assert inputs.flatten().tolist() == [i % 64 for i in range(start, start + 64)]
    assert targets.flatten().tolist() == [i % 64 for i in range(start + 1, start + 65)]
    assert all(len(x) <= 2 for x, _ in parts)


def test_a_step_reads_on_where_the_one_before_ended(tmp_path):
    """Two steps of two micro-batches: rows of 16, each target the token after its input."""
    tokens = np.random.default_rng(0).integers(0, 64, 300)
    write_shard(tmp_path / "fineweb_train_0.bin", tokens)
    stream = TokenStream(str(tmp_path), "train", 64)
    s, rank = tiny_settings(MICRO_BATCH_SEQS=3), Ranks(0, 1, torch.device("cpu"))
    batches = [batch for step in (0, 1) for batch in train_batches(stream, step, s, rank)]
    assert [len(inputs) for inputs, _ in batches] == [3, 1, 3, 1]

    position = 0
    for inputs, targets in batches:
        for row, row_targets in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert row == tokens[position : position + 16].tolist()
            assert row_targets == tokens[position + 1 : position + 17].tolist()
            position += 16
    assert position == 128


def test_the_second_of_two_ranks_reads_the_second_half(tmp_path):
    write_shard(tmp_path / "fineweb_train_0.bin", np.arange(300) % 64)
    stream = TokenStream(str(tmp_path), "train", 64)
    (batch,) = train_batches(stream, 1, tiny_settings(), Ranks(1, 2, torch.device("cpu")))
    assert batch.inputs.flatten().tolist() == [i % 64 for i in range(64 + 32, 64 + 64)]


@given(count=st.integers(0, 100), world=st.integers(1, 16))
def test_ranks_share_everything_once_and_evenly(count, world):
    parts = [Ranks(rank, world, torch.device("cpu")).share(count) for rank in range(world)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_as_numbers():
    parts = [Ranks(rank, 4, torch.device("cpu")).share(10) for rank in range(4)]
    assert [list(part) for part in parts] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


def test_one_process_communicates_nothing(one_rank):
    tensor = torch.ones(3)
    assert one_rank.sum_(tensor) is tensor and tensor.tolist() == [1, 1, 1]
    assert one_rank.from_first(0.1, 1e9, True) == [0.1, 1e9, 1]
    assert one_rank.from_first() == []


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    """A tokenizer like the challenge's, with byte fall-back for what its training text lacks."""
    model = io.BytesIO()
    text = [
        "the quick brown fox jumps over the lazy dog " * 3,
        "bits per byte, bytes per token, a number 1234567890",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.model"
    path.write_bytes(model.getvalue())
    return str(path)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0▁"), max_size=40), max_size=4
    )
)
def test_bytes_are_those_of_the_decoded_text(tokenizer_path, texts):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    counter = ByteCounter(tokenizer_path, tokenizer.vocab_size())
    tokens = np.array(
        [t for text in texts for t in (1, *tokenizer.encode(text))] + [1], dtype=np.uint16
    )
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert counter.count(tokens).sum() == sum(len(text.encode()) for text in decoded)
    counter.check(tokens)


def test_bytes_as_numbers(tokenizer_path):
    """A piece's space counts after text, and not at a document's start; a byte piece is a byte."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    counter = ByteCounter(tokenizer_path, tokenizer.vocab_size())
    pieces = ["<s>", "▁the", "▁the", "<0xE6>", "<0xBC>", "▁the", "<s>", "▁the", "</s>"]
    tokens = np.array([tokenizer.piece_to_id(piece) for piece in pieces], dtype=np.uint16)
    assert counter.count(tokens).tolist() == [3, 4, 1, 1, 4, 0, 3, 0]


def test_a_wrong_byte_table_stops_the_run(tokenizer_path):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    counter = ByteCounter(tokenizer_path, tokenizer.vocab_size())
    counter.length += 1
    with pytest.raises(UserError, match="19 bytes, its pieces 23"):
        counter.check(np.array([1, *tokenizer.encode("the quick brown fox")], dtype=np.uint16))


def test_tokenizer_of_another_size_is_refused(tokenizer_path):
    with pytest.raises(UserError, match="VOCAB_SIZE=1024"):
        ByteCounter(tokenizer_path, 1024)
