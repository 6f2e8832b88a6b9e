"""Data: shards are checked, ranks share the same tokens, bytes are those of the text."""

import contextlib
import io

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import ROOT, tiny_settings, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import (
    ByteCounter,
    Ranks,
    TokenStream,
    UserError,
    find_shards,
    read_validation,
    train_batches,
)


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


# ---- Which files are shards


@pytest.mark.parametrize(
    "name",
    [
        "fineweb_val_bytes_000000.bin",
        "fineweb_val_000000_copy.bin",
        "fineweb_val_000000 (1).bin",
        "fineweb_val_.bin",
        "fineweb_val.bin",
        "fineweb_val_-1.bin",
        "fineweb_val_1e3.bin",
        "fineweb_validation_000000.bin",
        "fineweb_val_0.bin",  # a second one of the number 0
    ],
)
def test_what_looks_like_a_shard_and_is_none(tmp_path, name):
    write_shard(tmp_path / "fineweb_val_000000.bin", range(10))
    write_shard(tmp_path / "fineweb_train_000000.bin", range(10))
    write_shard(tmp_path / name, range(10))
    with pytest.raises(UserError, match=r"looks like a shard but is not named fineweb_val_NUMBER"):
        find_shards(str(tmp_path), "val")
    assert len(find_shards(str(tmp_path), "train")) == 1


def test_other_files_beside_the_shards_do_not_matter(tmp_path):
    for name in ("fineweb_val_000000.bin.tmp", "fineweb_val_000000.idx", "val_000001.bin"):
        (tmp_path / name).write_bytes(b"")
    write_shard(tmp_path / "fineweb_val_000000.bin", range(10))
    assert [path.name for path in find_shards(str(tmp_path), "val")] == ["fineweb_val_000000.bin"]


def test_shards_come_by_number_and_none_is_left_out(tmp_path):
    for number in ("8", "9", "10", "000011"):
        write_shard(tmp_path / f"fineweb_train_{number}.bin", [int(number)] * 3)
    stream = TokenStream(str(tmp_path), "train", 64)
    assert stream.read(0, 12).tolist() == [8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11]
    (tmp_path / "fineweb_train_9.bin").unlink()
    with pytest.raises(UserError, match="lacks the train shard number 9"):
        TokenStream(str(tmp_path), "train", 64)


def test_every_header_is_read_at_the_start(tmp_path):
    for number in range(4):
        write_shard(tmp_path / f"fineweb_train_{number}.bin", range(10))
    (tmp_path / "fineweb_train_3.bin").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match="fineweb_train_3.bin is not a token shard"):
        TokenStream(str(tmp_path), "train", 64)


@pytest.mark.parametrize("vocab_size", [1024, 8192])
def test_missing_data_come_with_the_command_that_gets_them(tmp_path, vocab_size):
    command = f"`python data/cached_challenge_fineweb.py --variant sp{vocab_size}` downloads it"
    for attempt in (
        lambda: TokenStream(str(tmp_path / "none"), "val", vocab_size),
        lambda: ByteCounter(str(tmp_path / "none.model"), vocab_size),
        lambda: ByteCounter(str(tmp_path), vocab_size),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert command in str(caught.value) and "PRESET=demo" in str(caught.value)


# ---- Bytes


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


def make_tokenizer(path, text: list[str], **changes) -> str:
    """A tokenizer of 300 pieces at most, made of this text."""
    model = io.BytesIO()
    options = dict(
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20), model_writer=model, **options | changes
    )
    path.write_bytes(model.getvalue())
    return str(path)


TEXT = ["the quick brown fox jumps over the lazy dog", "bits per byte"]


def counter_of(path: str) -> ByteCounter:
    return ByteCounter(path, sentencepiece.SentencePieceProcessor(model_file=path).vocab_size())


def test_without_a_piece_for_a_space_the_count_would_be_wrong(tmp_path):
    """A space is then three bytes, E2 96 81, and the decoder gives them back as one letter."""
    options = dict(add_dummy_prefix=False)
    path = make_tokenizer(tmp_path / "a.model", [line.replace(" ", "") for line in TEXT], **options)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a▁b"
    with pytest.raises(UserError, match="has no piece for a space, which then counts three bytes"):
        counter_of(path)


@pytest.mark.parametrize(
    "ids", [dict(bos_id=2, eos_id=1), dict(bos_id=-1, eos_id=1), dict(bos_id=3, unk_id=1)]
)
def test_documents_begin_with_the_id_1(tmp_path, ids):
    path = make_tokenizer(tmp_path / "a.model", TEXT, **ids)
    with pytest.raises(UserError, match=f"begins documents with the id {ids['bos_id']}, not 1"):
        counter_of(path)


@pytest.mark.parametrize("text", [" the fox", "  the  fox", "the fox", " ", "", " é ▁ x", "\ta"])
@pytest.mark.parametrize(
    "options",
    [
        dict(add_dummy_prefix=False),
        dict(add_dummy_prefix=False, remove_extra_whitespaces=False),
        dict(remove_extra_whitespaces=False),
        dict(normalization_rule_name="identity"),
    ],
)
def test_spaces_at_the_start_of_a_document(tmp_path, options, text):
    """A valid split is not refused; the challenge's count leaves out the first space."""
    path = make_tokenizer(tmp_path / "a.model", TEXT, **options)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    ids = tokenizer.encode(text)
    tokens = np.array([1, *ids, 1, *tokenizer.encode("a dog"), 1], np.uint16)
    counter = counter_of(path)
    counter.check(tokens)
    decoded = tokenizer.decode(ids)
    kept = "add_dummy_prefix" in options and decoded.startswith(" ")
    expected = len(decoded.encode()) - kept + len("a dog")
    assert counter.count(tokens).sum() == expected
    assert verify.count_bytes(tokens, tokenizer) == expected


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("extra", [True, False])
def test_verify_counts_the_same_bytes_from_decoded_text(tmp_path, prefix, extra):
    """Of any ids in any order: controls and unknown ids within a text, broken UTF-8, nothing."""
    options = dict(add_dummy_prefix=prefix, remove_extra_whitespaces=extra)
    path = make_tokenizer(tmp_path / "a.model", TEXT, **options)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    counter = counter_of(path)
    draw = np.random.default_rng(0)
    texts = [i for i in range(tokenizer.vocab_size()) if not tokenizer.is_byte(i)]
    for length in (1, 2, 3, 5, 40, 400):
        tokens = draw.integers(0, tokenizer.vocab_size(), length).astype(np.uint16)
        tokens = np.where(draw.random(length) < 0.7, draw.choice(texts, length), tokens)
        tokens[draw.random(length) < 0.1] = 1
        assert verify.count_bytes(tokens, tokenizer) == counter.count(tokens).sum()


def test_a_broken_tokenizer_is_one_sentence(tmp_path, tokenizer_path, capfd):
    whole = (tmp_path / tokenizer_path).read_bytes()
    for number, data in enumerate((b"", whole[:1000], whole[1:], b"text")):
        path = tmp_path / f"{number}.model"
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^TOKENIZER_PATH=\S+ .*\.$"):
            ByteCounter(str(path), 340)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([1], "has but one token"),
        ([1, 1, 2, 0], "stands for no text"),
        ([1, 2, 60_000], "holds token 60000"),
    ],
)
def test_a_validation_split_that_cannot_be_scored(tmp_path, tokenizer_path, tokens, sentence):
    write_shard(tmp_path / "fineweb_val_000000.bin", tokens)
    counter = counter_of(tokenizer_path)
    s = tiny_settings(DATA_PATH=tmp_path, VOCAB_SIZE=counter.tokenizer.vocab_size())
    with pytest.raises(UserError, match=sentence):
        read_validation(counter, s)


# ---- The demo's data


def test_demo_data_that_are_not_whole_are_made_anew(tmp_path, monkeypatch, one_rank):
    """A run that was ended while it made them leaves no train shard, which comes last."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "train_gpt.py").read_text()
    monkeypatch.setattr(train_gpt, "demo_documents", lambda: text.split("\n\n") * 2)
    s = train_gpt.load_settings({"PRESET": "demo", "VOCAB_SIZE": "512"})
    train_gpt.open_data(s, one_rank)
    folder = tmp_path / "data/demo"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 3

    for lost in ("fineweb_train_000000.bin", "bpe_1024.model"):
        (folder / lost).unlink()
        train_gpt.open_data(s, one_rank)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    for own in (dict(DATA_PATH="other"), dict(TOKENIZER_PATH="other.model")):
        other = train_gpt.load_settings({"PRESET": "demo", "VOCAB_SIZE": "512"} | own)
        with contextlib.suppress(UserError):
            train_gpt.open_data(other, one_rank)
        assert not (tmp_path / "other").exists() and not (tmp_path / "other.model").exists()


def test_a_size_that_the_demo_cannot_have(tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "demo_documents", lambda: TEXT)
    s = train_gpt.load_settings({"PRESET": "demo"})
    for size in (100, 60_000):
        with pytest.raises(UserError, match=f"^VOCAB_SIZE={size}: the demo's text makes no"):
            train_gpt.make_demo_data(s.run, size)
