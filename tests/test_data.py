"""Data: shards are checked, ranks share the same tokens, bytes are those of the text."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import ROOT, tiny_settings, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
import verify
from train_gpt import ByteCounter, TokenStream, UserError, find_shards, train_batches


def train_stream(folder) -> TokenStream:
    return TokenStream(tiny_settings(DATA_PATH=folder), "train")


def test_a_cut_shard_is_refused(tmp_path):
    """Or one with a wrong header; every header is read at the start, not with the tokens."""
    for number in range(3):
        write_shard(tmp_path / f"fineweb_train_{number}.bin", range(10))
    path = tmp_path / "fineweb_train_2.bin"
    whole = path.read_bytes()
    damaged = [whole[:size] for size in (0, 5, 11, 1023, 1024, 1025, 1043)]
    headers = (dict(magic=1), dict(version=2), *(dict(count=count) for count in (9, 11, 0, -1)))
    for header in headers:
        write_shard(path, range(10), **header)
        damaged.append(path.read_bytes())
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            train_stream(tmp_path)
        assert str(caught.value) == (
            f"{path} is not a whole token shard: it should start with 20240520, 1 and its number "
            f"of tokens, by its size {len(data) / 2 - 512:g}."
        )


def test_ids_above_the_vocabulary(tmp_path):
    write_shard(tmp_path / "fineweb_train_0.bin", [1, 2, 64])
    with pytest.raises(
        UserError, match=r"fineweb_train_0.bin holds token 64, but VOCAB_SIZE is 64\."
    ):
        train_stream(tmp_path).read(0, 3)


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
    got = train_stream(folder).read(start, count)
    assert (got == np.take(tokens, np.arange(start, start + count), mode="wrap")).all()


@pytest.mark.parametrize(
    "sizes", [[[3, 1]], [[2], [2]], [[2], [1], [1]], [[1]] * 4, [[1]] * 4 + [[]]]
)
def test_a_step_reads_on_where_the_one_before_ended(tmp_path, as_rank, sizes):
    """Rows of 16, each target the token after its input; all ranks together read every row."""
    tokens = np.random.default_rng(0).integers(0, 64, 300)
    write_shard(tmp_path / "fineweb_train_0.bin", tokens)
    stream = train_stream(tmp_path)
    s = tiny_settings(MICRO_BATCH_SEQS=3)
    for step in (0, 1, 3):
        parts = []
        for rank, own in enumerate(sizes):
            as_rank(rank, len(sizes))
            batches = list(train_batches(stream, step, s))
            assert [len(inputs) for inputs, _ in batches] == own
            parts += batches
        inputs, targets = map(torch.cat, zip(*parts, strict=True))
        first = 64 * step
        assert inputs.tolist() == tokens[first : first + 64].reshape(4, 16).tolist()
        assert targets.tolist() == tokens[first + 1 : first + 65].reshape(4, 16).tolist()


def test_one_process_communicates_nothing():
    alone = train_gpt.Distributed()
    tensor = torch.ones(3)
    assert alone.all_reduce_(tensor) is tensor and tensor.tolist() == [1, 1, 1]
    assert alone.broadcast_objects(0.1, 1e9, True) == [0.1, 1e9, True]
    assert alone.broadcast_objects() == []


# ---- Which files are shards


def test_other_files_are_left_aside(tmp_path):
    write_shard(tmp_path / "fineweb_val_000000.bin", range(10))
    names = """fineweb_val_bytes_000000.bin fineweb_val_000000_copy.bin fineweb_val_.bin
        fineweb_val.bin fineweb_val_-1.bin fineweb_val_1e3.bin fineweb_validation_000000.bin
        fineweb_val_000000.bin.tmp fineweb_val_000000.idx val_000001.bin"""
    for name in (*names.split(), "fineweb_val_000000 (1).bin"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_shards(str(tmp_path), "val")] == ["fineweb_val_000000.bin"]


def test_two_shards_of_one_number(tmp_path):
    for name in ("fineweb_val_000000.bin", "fineweb_val_0.bin"):
        write_shard(tmp_path / name, range(10))
    write_shard(tmp_path / "fineweb_train_000000.bin", range(10))
    with pytest.raises(UserError, match=r"_000000\.bin and \S+_0\.bin have the same number\.$"):
        find_shards(str(tmp_path), "val")
    assert len(find_shards(str(tmp_path), "train")) == 1


def test_shards_come_by_number_and_none_is_left_out(tmp_path):
    for number in ("8", "9", "10", "000011"):
        write_shard(tmp_path / f"fineweb_train_{number}.bin", [int(number)] * 3)
    stream = train_stream(tmp_path)
    assert stream.read(0, 12).tolist() == [8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11]
    (tmp_path / "fineweb_train_9.bin").unlink()
    with pytest.raises(UserError, match="lacks the train shard number 9"):
        train_stream(tmp_path)


@pytest.mark.parametrize("vocab_size", [1024, 8192])
def test_missing_data_come_with_the_command_that_gets_them(tmp_path, vocab_size):
    command = f"`python data/cached_challenge_fineweb.py --variant sp{vocab_size}` downloads it"
    s = tiny_settings(DATA_PATH=tmp_path, VOCAB_SIZE=vocab_size)
    for attempt in (
        lambda: TokenStream(s, "val"),
        lambda: ByteCounter(str(tmp_path / "none.model"), vocab_size),
        lambda: ByteCounter(str(tmp_path), vocab_size),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert command in str(caught.value) and "PRESET=demo" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


# ---- Bytes


def make_tokenizer(path, text: list[str], **changes) -> str:
    """A tokenizer like the challenge's, with byte fall-back for what this text lacks."""
    ids = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    options = dict(model_type="bpe", vocab_size=300, hard_vocab_limit=False, byte_fallback=True)
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text * 20),
            model_writer=model,
            minloglevel=2,
            **ids | options | changes,
        )
    return str(path)


TEXT = ["the quick brown fox jumps over the lazy dog", "bits per byte"]


def counter_of(path: str) -> ByteCounter:
    return ByteCounter(path, sentencepiece.SentencePieceProcessor(model_file=path).vocab_size())


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.model"
    text = [f"{TEXT[0]} " * 3, "bits per byte, bytes per token, a number 1234567890"]
    return make_tokenizer(path, text, vocab_size=340)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0▁"), max_size=40), max_size=4
    )
)
def test_bytes_are_those_of_the_decoded_text(tokenizer_path, texts):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    counter = counter_of(tokenizer_path)
    tokens = np.array(
        [t for text in texts for t in (1, *tokenizer.encode(text))] + [1], dtype=np.uint16
    )
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert counter.count(tokens).sum() == sum(len(text.encode()) for text in decoded)


def test_bytes_as_numbers(tokenizer_path):
    """A piece's space counts after text, and not at a document's start; a byte piece is a byte."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    counter = counter_of(tokenizer_path)
    pieces = ["<s>", "▁the", "▁the", "<0xE6>", "<0xBC>", "▁the", "<s>", "▁the", "</s>"]
    tokens = np.array([tokenizer.piece_to_id(piece) for piece in pieces], dtype=np.uint16)
    assert counter.count(tokens).tolist() == [3, 4, 1, 1, 4, 0, 3, 0]


# Without a piece for a space the count would be wrong: a space is then three bytes, E2 96 81.
NO_SPACE = [line.replace(" ", "") for line in TEXT]


@pytest.mark.parametrize(
    ("text", "options", "bos", "more"),
    [
        (TEXT, dict(), 1, 1),
        (NO_SPACE, dict(add_dummy_prefix=False), 1, 0),
        (TEXT, dict(bos_id=2, eos_id=1), 2, 0),
        (TEXT, dict(bos_id=-1, eos_id=1), -1, 0),
        (TEXT, dict(bos_id=3, unk_id=1), 3, 0),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, text, options, bos, more):
    path = make_tokenizer(tmp_path / "a.model", text, **options)
    size = sentencepiece.SentencePieceProcessor(model_file=path).vocab_size()
    with pytest.raises(UserError) as caught:
        ByteCounter(path, size + more)
    assert str(caught.value) == (
        f"TOKENIZER_PATH={path} has {size} tokens and BOS id {bos}; it needs "
        f"VOCAB_SIZE={size + more} tokens, one of them a space, and BOS id 1."
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(add_dummy_prefix=False),
        dict(add_dummy_prefix=False, remove_extra_whitespaces=False),
        dict(remove_extra_whitespaces=False),
        dict(normalization_rule_name="identity"),
    ],
)
def test_spaces_at_the_start_of_a_document(tmp_path, options):
    """A valid split is not refused; the challenge's count leaves out the first space."""
    path = make_tokenizer(tmp_path / "a.model", TEXT, **options)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    counter = counter_of(path)
    for text in (" the fox", "  the  fox", "the fox", " ", "", " é ▁ x", "\ta"):
        ids = tokenizer.encode(text)
        tokens = np.array([1, *ids, 1, *tokenizer.encode("a dog"), 1], np.uint16)
        decoded = tokenizer.decode(ids)
        kept = "add_dummy_prefix" in options and decoded.startswith(" ")
        expected = len(decoded.encode()) - kept + len("a dog")
        assert counter.count(tokens).sum() == expected, text
        assert verify.count_bytes(tokens, tokenizer) == expected, text


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
    whole = Path(tokenizer_path).read_bytes()
    for number, data in enumerate((b"", whole[:1000], whole[1:], b"text")):
        path = tmp_path / f"{number}.model"
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^TOKENIZER_PATH=\S+ .*\.$"):
            ByteCounter(str(path), 340)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([1], r"DATA_PATH=\S+: the validation split holds no text\.$"),
        ([1, 1, 2, 0], r"DATA_PATH=\S+: the validation split holds no text\.$"),
        ([1, 2, 60_000], "holds token 60000, but VOCAB_SIZE is"),
    ],
)
def test_a_validation_split_that_cannot_be_scored(tmp_path, tokenizer_path, tokens, sentence):
    write_shard(tmp_path / "fineweb_val_000000.bin", tokens)
    counter = counter_of(tokenizer_path)
    s = tiny_settings(DATA_PATH=tmp_path, VOCAB_SIZE=len(counter.base_bytes))
    with pytest.raises(UserError, match=sentence):
        train_gpt.read_validation(counter, s)


# ---- The demo's data


def test_demo_data_that_are_not_whole_are_made_anew(tmp_path, monkeypatch):
    """A run that was ended while it made them leaves no train shard, which comes last."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "train_gpt.py").read_text()
    monkeypatch.setattr(train_gpt, "demo_documents", lambda: text.split("\n\n") * 2)
    s = train_gpt.load_settings({"PRESET": "demo", "VOCAB_SIZE": "512"})
    train_gpt.make_demo_data(s)
    folder = tmp_path / "data/demo"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = ("bpe_1024.model", "fineweb_train_000000.bin", "fineweb_val_000000.bin")
    assert tuple(sorted(files)) == names

    for lost in names[:2]:
        (folder / lost).unlink()
        train_gpt.make_demo_data(s)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        (dict(PRESET="demo"), True),
        (dict(PRESET="demo", DATA_PATH="other"), False),
        (dict(PRESET="demo", TOKENIZER_PATH="other.model"), False),
        (dict(PRESET="pcll"), False),
    ],
)
def test_only_the_demo_without_a_path_makes_its_data(tmp_path, monkeypatch, changes, made):
    made_with = []  # settings
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_gpt, "make_demo_data", made_with.append)
    with pytest.raises(UserError, match="does not exist"):  # the tokenizer, made or not
        train_gpt.run(train_gpt.load_settings(changes))
    assert len(made_with) == made


def test_the_demo_without_the_manual(monkeypatch):
    """Some systems' Python lacks pydoc_data: docstrings, here of one package, are then the text."""
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    monkeypatch.setattr(os, "__file__", json.__file__)
    documents = train_gpt.demo_documents()
    assert any(text.startswith("JSON (JavaScript Object Notation)") for text in documents)


def test_a_size_that_the_demo_cannot_have(tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "demo_documents", lambda: TEXT)
    monkeypatch.chdir(tmp_path)
    for size in (100, 60_000):
        s = train_gpt.load_settings({"PRESET": "demo", "VOCAB_SIZE": str(size)})
        with pytest.raises(UserError, match=f"^VOCAB_SIZE={size}: the demo's text makes no"):
            train_gpt.make_demo_data(s)
