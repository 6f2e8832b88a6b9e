"""verify.py on what it can prove in minutes: prefixes of logs, samples, its budget, and whose data
it takes."""

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from artifacts import make, pack, random_weights, run, settings_of, write_shard
from test_verify import adapted_nats

import verify
from records.check import check_folder, check_prefix_lines
from records.logs import read_passes

MARKS = (64, 128, 256, 512)
NATS = {}  # of each configuration, as they take long


def findings(capsys, *arguments) -> list[dict]:
    verify.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)["findings"]


def prefixes(capsys, *arguments) -> list[dict]:
    return [row for row in findings(capsys, *arguments) if row["check"] == "prefix"]


# ---------------------------------------------------------------- prefixes


class Entry:
    """An artifact, and each position's nats by plain code, fixed and adapted."""

    def __init__(self, home: Path, **changes):
        self.home = home
        self.config = settings_of(home, ttt_protocol="score_first", **changes)
        weights = random_weights(self.config)
        self.artifact = pack(home / "artifact.pcll", self.config, weights)
        self.tokens = verify.read_tokens(home / "data/demo", 320)
        self.sha256 = hashlib.sha256(self.artifact.read_bytes()).hexdigest()
        key = json.dumps(self.config)
        if key not in NATS:
            fixed = adapted_nats(self.config | {"ttt_epochs": 0}, weights, self.tokens)
            adapted = adapted_nats(self.config, weights, self.tokens)
            NATS[key] = {verify.SLIDING: fixed, verify.ADAPTED: adapted}
        self.nats = dict(NATS[key])

    def bytes_of(self, count: int) -> int:
        pieces = sentencepiece.SentencePieceProcessor(
            model_file=str(self.home / "data/demo/bpe.model")
        )
        return verify.count_bytes(self.tokens[: count + 1], pieces)

    def line(self, name: str, count: int, nats: np.ndarray) -> str:
        total = nats[:count].sum()
        size = self.bytes_of(count)
        bpb = total / math.log(2) / size
        return f"{name}: scored:{count} nats:{total:.6f} bytes:{size} val_bpb:{bpb:.8f}\n"

    def log(self, nats: dict[str, np.ndarray], sha256: str | None = None) -> Path:
        text = f"step:1/1 train_loss:2\nartifact_sha256:{sha256 or self.sha256} own.pcll\n"
        for name, values in nats.items():
            text += "".join(self.line(name, mark, values) for mark in MARKS)
        path = self.home / "train_seed1.log"
        path.write_text(text)
        return path


@pytest.fixture
def entry(home, monkeypatch) -> Entry:
    monkeypatch.setattr(verify, "DRIFT", 0.01)
    return Entry(home)


def test_an_honest_log_is_proven_pass_by_pass(entry, capsys):
    rows = prefixes(capsys, entry.artifact, "--log", entry.log(entry.nats))
    assert [row["verdict"] for row in rows] == ["PROVEN", "PROVEN"]
    assert [row["number"] for row in rows] == [512, 512]
    for row in rows:
        assert f"first 512 of {len(entry.tokens) - 1:,}" in row["detail"]
        assert "the rest rests on the log" in row["detail"]


def test_a_folder_finds_the_log_of_its_artifact(entry, capsys):
    entry.log(entry.nats)
    rows = prefixes(capsys, entry.home)
    assert [row["verdict"] for row in rows] == ["PROVEN", "PROVEN"]
    (entry.home / "train_seed1.log").write_text("val_bpb:1.0\n")
    assert prefixes(capsys, entry.home) == []


def test_rounding_in_bfloat16_passes(entry, capsys, monkeypatch):
    monkeypatch.setattr(verify, "DRIFT", 0.1)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.021, len(entry.tokens) - 1)
        nats = {name: values + noise for name, values in entry.nats.items()}
        rows = prefixes(capsys, entry.artifact, "--log", entry.log(nats))
        assert {row["verdict"] for row in rows} == {"PROVEN"}


def test_training_on_what_is_scored_fails_at_the_first_position(entry, capsys):
    """The adapted pass claims what it has after all epochs over all tokens."""
    known = {verify.ADAPTED: 0.9 * entry.nats[verify.ADAPTED]}
    (row,) = prefixes(capsys, entry.artifact, "--log", entry.log(known))
    assert row["verdict"] == "FAILED" and row["number"] == 64
    assert row["line"].startswith("train_seed1.log:3: after score-first adaptation")
    assert verify.main([str(entry.artifact), "--log", "train_seed1.log"]) == 1


def test_the_first_difference_is_named(entry, capsys):
    late = entry.nats[verify.SLIDING].copy()
    late[200:] -= 0.2
    (row,) = prefixes(capsys, entry.artifact, "--log", entry.log({verify.SLIDING: late}))
    assert row["verdict"] == "FAILED" and row["number"] == 256


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("bytes:", "bytes:1", "bytes of text"),
        ("val_bpb:", "val_bpb:1", "val_bpb"),
        ("nats:", "nats:1", "nats"),
    ],
)
def test_each_number_of_a_line_counts(entry, capsys, old, new, words):
    path = entry.log({verify.SLIDING: entry.nats[verify.SLIDING]})
    path.write_text(path.read_text().replace(old, new))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "FAILED" and words in row["detail"]


def test_logs_that_say_nothing_of_it(entry, capsys):
    (row,) = prefixes(capsys, entry.artifact, "--log", entry.log(entry.nats, "0" * 64))
    assert row["verdict"] == "NOT CHECKABLE" and "another artifact" in row["detail"]

    path = entry.log({verify.SLIDING: 0.9 * entry.nats[verify.SLIDING]})
    path.write_text(path.read_text().partition("own.pcll\n")[2])
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "no artifact_sha256" in row["detail"]

    path.write_text("final_exact val_loss:1.9 val_bpb:1.1\n")
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "no line such as" in row["detail"]

    name = verify.NOT_LEGAL
    (row,) = prefixes(
        capsys, entry.artifact, "--log", entry.log({name: entry.nats[verify.SLIDING]})
    )
    assert row["verdict"] == "NOT CHECKABLE" and "no pass of this artifact" in row["detail"]


def test_a_log_of_another_split_is_no_contradiction(entry, capsys, monkeypatch):
    path = entry.log({verify.SLIDING: 0.9 * entry.nats[verify.SLIDING]})
    path.write_text(path.read_text().replace("bytes:", "bytes:1"))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "FAILED"  # the split here is the challenge's
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {})
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "another split" in row["detail"]


def stop_after(monkeypatch, calls: int, stop: type) -> None:
    """Ctrl-C, or the end of the minutes, after so many batches."""
    original = verify.batch_losses
    counter = itertools.count()

    def batch_losses(*arguments):
        if next(counter) >= calls:
            raise stop
        return original(*arguments)

    monkeypatch.setattr(verify, "batch_losses", batch_losses)
    monkeypatch.setitem(verify.BATCH_TOKENS, "cpu", 64)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, verify.OutOfTime])
def test_what_was_reached_counts(entry, capsys, monkeypatch, stop):
    path = entry.log({verify.SLIDING: entry.nats[verify.SLIDING]})
    stop_after(monkeypatch, 20, stop)
    rows = findings(capsys, entry.artifact, "--log", path)
    (row,) = [row for row in rows if row["check"] == "prefix"]
    assert row["verdict"] == "PROVEN" and row["number"] == 256
    (row,) = [row for row in rows if row["check"] == "val_bpb"]
    assert row["verdict"] == "NOT CHECKABLE" and "PARTIAL" in row["detail"]
    assert ("Ctrl-C" in row["detail"]) == (stop is KeyboardInterrupt)


def test_minutes_that_are_over(entry, capsys):
    path = entry.log(entry.nats)
    began = time.monotonic()
    rows = findings(capsys, entry.artifact, "--log", path, "--minutes", 1e-6, "--claim", 1.2)
    assert time.monotonic() - began < 5
    assert not any(row["verdict"] == "FAILED" for row in rows)
    assert {row["verdict"] for row in rows if row["check"] == "val_bpb"} == {"NOT CHECKABLE"}


# ---------------------------------------------------------------- the log by itself

BITS = math.log(2)


def prefix_line(count: int, nats: float, size: int) -> str:
    bpb = nats / BITS / size
    return f"{verify.SLIDING}: scored:{count} nats:{nats:.6f} bytes:{size} val_bpb:{bpb:.8f}\n"


def result_line(count: int, nats: float, size: int, label: str = "") -> str:
    bpb = nats / BITS / size
    return (
        f"{label}final_pcll_sliding_exact val_loss:{nats / count:.8f} val_bpb:{bpb:.8f} "
        f"val_tokens:{count} bytes:{size} eval_time:1000ms\n"
    )


NAMED = f"artifact_sha256:{'0' * 64} logs/own.pcll\n"
HONEST = NAMED + prefix_line(2048, 4000, 5000) + prefix_line(4096, 8000, 10000)
HONEST += result_line(6000, 11_900, 14_600)
BENT = {  # logs that no run has written
    "the result is less than its part": HONEST
    + result_line(6000, 11_900, 14_600, "headline: ")
    + NAMED
    + prefix_line(2048, 4000, 5000)
    + result_line(6000, 3_900, 14_600),
    "the rest has no bytes": prefix_line(4096, 8000, 10000) + result_line(6000, 11_900, 9_999),
    "fewer positions": prefix_line(4096, 8000, 10000) + result_line(4095, 11_900, 14_600),
    "all positions, another sum": prefix_line(4096, 8000, 10000) + result_line(4096, 7990, 10000),
    "positions that go back": prefix_line(4096, 8000, 10000) + prefix_line(2048, 4000, 5000),
    "the same positions twice": prefix_line(4096, 8000, 10000) * 2,
    "nats that go back": prefix_line(2048, 4000, 5000) + prefix_line(4096, 3999, 10000),
    "bytes that go back": prefix_line(2048, 4000, 5000) + prefix_line(4096, 8000, 4999),
    "a sum that is wrong": result_line(6000, 11_900, 14_600).replace("bytes:14600", "bytes:14000"),
    "another headline": HONEST + result_line(6000, 11_000, 14_600, "headline: "),
}


@pytest.mark.parametrize("what", BENT)
def test_a_log_that_contradicts_itself(tmp_path, what):
    (tmp_path / "train.log").write_text(BENT[what])
    passes = read_passes(tmp_path / "train.log")
    (found,) = check_prefix_lines([passes])
    assert found.verdict == "FAILED" and found.line.startswith("train.log:")
    folder = {f.check: f for f in check_folder(tmp_path)}
    assert folder["prefix lines"].verdict == "FAILED"


def test_a_log_that_fits_together(tmp_path):
    """Also where a run was resumed and its passes begin anew, and where a source is set aside."""
    log = HONEST + result_line(6000, 11_900, 14_600, "headline: ")
    log += NAMED + prefix_line(2048, 4000, 5000) + HONEST
    (tmp_path / "train.log").write_text(log)
    passes = read_passes(tmp_path / "train.log")
    (found,) = check_prefix_lines([passes])
    assert found.verdict == "CONSISTENT" and found.number == 7 and "2 results" in found.detail
    assert check_prefix_lines([read_passes(Path(verify.__file__))]) == []


def test_the_result_of_a_pass_is_compared_as_well(entry, capsys):
    """And how many positions rest on the log's word, where the result says how many there are."""
    fixed = entry.nats[verify.SLIDING]
    path = entry.log({verify.SLIDING: fixed})
    count = len(fixed)
    size = entry.bytes_of(count)
    honest = path.read_text()
    path.write_text(honest + result_line(count, fixed.sum(), size))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "PROVEN" and row["number"] == count and "are all" in row["detail"]
    (row,) = prefixes(capsys, entry.artifact, "--log", path, "--max-tokens", 300)
    assert row["number"] == 256 and f"{count - 256} positions on its word" in row["detail"]

    path.write_text(honest + result_line(count, 0.95 * fixed.sum(), size))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "FAILED" and row["number"] == count
    path.write_text(honest + result_line(count, 0.5 * fixed.sum(), size))
    found = run(capsys, entry.artifact, "--log", path, "--max-tokens", 300)[1]
    assert found["prefix"]["verdict"] == "PROVEN"
    assert found["prefix lines"]["verdict"] == "FAILED"


# ---------------------------------------------------------------- the first line


def first_line(capsys, *arguments) -> str:
    """Without the breaks of its lines."""
    verify.main([*map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    rest = itertools.takewhile(lambda line: line.startswith("    "), lines[1:])
    return " ".join([lines[0], *(line.strip() for line in rest)])


@pytest.fixture
def scores(entry) -> list[float]:
    """With fixed weights, and after adaptation."""
    bits = math.log(2) * entry.bytes_of(len(entry.tokens) - 1)
    return [entry.nats[name].sum() / bits for name in (verify.SLIDING, verify.ADAPTED)]


WHOLE = "on the challenge's whole split"


def test_the_first_line_says_which_score_it_is_of(entry, scores, capsys):
    fixed, adapted = scores
    line = first_line(capsys, entry.artifact)
    assert line.startswith(f"OK — val_bpb {fixed:.6f}"[:-3])
    assert f" with fixed weights was recomputed here {WHOLE}" in line
    assert "after score-first adaptation was not recomputed" in line
    line = first_line(capsys, entry.artifact, "--ttt")
    assert f"val_bpb {adapted:.6f}"[:-3] in line and "not recomputed" not in line
    assert "after score-first adaptation was recomputed here" in line
    words = "is the score with fixed weights, recomputed here"
    assert words in first_line(capsys, entry.artifact, "--claim", fixed)
    words = "is the score after score-first adaptation, recomputed here"
    assert words in first_line(
        capsys, entry.artifact, "--claim", adapted, "--log", entry.log(entry.nats)
    )


def test_the_first_line_of_what_is_not_decided(entry, scores, capsys):
    _, adapted = scores
    line = first_line(capsys, entry.artifact, "--claim", adapted)
    assert line.startswith("NOT PROVEN — nothing failed") and "is not decided: it may be" in line
    line = first_line(capsys, entry.artifact, "--max-tokens", 300)
    assert "with fixed weights the first 299 of 767 positions were scored here" in line
    line = first_line(capsys, entry.artifact, "--log", entry.log(entry.nats), "--max-tokens", 300)
    assert "after score-first adaptation the log's first 256 of 767 positions are right" in line
    line = first_line(capsys, entry.artifact, "--sample", "--claim", scores[0])
    assert line.startswith("NOT PROVEN") and "is within a sample's estimate, fixed weights" in line
    line = first_line(capsys, entry.artifact, "--memory", 1e-4)
    assert "the artifact cannot be scored: " in line


def test_the_first_line_of_another_split(entry, scores, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {})
    for words in ([], ["--claim", scores[0]], ["--claim", scores[0], "--this-split"]):
        line = first_line(capsys, entry.artifact, *words)
        assert line.startswith("OK") and "which is not the challenge's whole" in line


def test_a_claim_is_not_judged_by_a_pass_that_was_not_finished(entry, scores, capsys, monkeypatch):
    """A claim after adaptation, whose pass the minutes ended, is not held against fixed weights."""
    score = verify.score

    def slow(model, split, config, options, run):
        if run.name == verify.ADAPTED:
            split = split._replace(tokens=split.tokens[:200])
        score(model, split, config, options, run)

    monkeypatch.setattr(verify, "score", slow)
    monkeypatch.setattr(verify, "submitted_scores", lambda folder: [scores[1]])
    entry.log(entry.nats)
    found = run(capsys, entry.home)[1]
    assert found["val_bpb"]["verdict"] == "PROVEN"
    assert found["claim"]["verdict"] == "NOT CHECKABLE"
    assert "whose pass came to 199 of 767 positions" in found["claim"]["detail"]


# ---------------------------------------------------------------- samples


class Text:
    """Losses like those of a text: documents differ, tokens more, and less context costs a bit."""

    length = 2048
    stride = 32

    def __init__(self, seed: int, targets: int = 400_000):
        draw = np.random.default_rng(seed)
        documents = np.repeat(draw.normal(1.9, 0.25, targets // 1000 + 1), 1000)[:targets]
        self.nats = np.maximum(0.05, documents) * draw.exponential(1.0, targets)
        self.split = verify.Split(np.zeros(targets + 1, "<u2"), len, "text", targets + 1)
        config = {"train_seq_len": self.length, "eval_stride": self.stride, "vocab_size": 2}
        options = verify.Options("artifact.pcll")
        self.subject = verify.Subject(None, {}, config, options, b"", verify.PROVEN, self.split)

    def losses(self, batch: list) -> np.ndarray:
        rows = []
        for window in batch:
            seen = np.arange(window.first, window.end) - window.start + 1
            rows.append(self.nats[window.first : window.end] + 0.02 * (self.length / seen - 1))
        return np.stack(rows)

    def true_nats(self) -> float:
        """By the protocol: all but the first window's positions see a whole window, or nearly."""
        seen = np.minimum(np.arange(1, len(self.nats) + 1), self.length)
        late = (np.arange(len(self.nats)) - self.length) % self.stride
        seen[self.length :] -= self.stride - 1 - late[self.length :]
        return float(self.nats.sum() + 0.02 * (self.length / seen - 1).sum())


def test_a_claim_ten_percent_too_low_is_refuted_by_100_windows(monkeypatch):
    """And of 300 honest claims not more than the interval leaves outside: 1 in 100."""
    text = Text(0)
    monkeypatch.setattr(verify, "batch_rows", lambda *_: 1)
    monkeypatch.setattr(verify.Sampler, "losses", lambda _, batch: text.losses(batch))
    true = text.true_nats()
    outside = 0
    for seed in range(300):
        sampler = verify.Sampler(text.subject, seed)
        sampler.run(100)
        nats, half = sampler.estimate.nats()
        assert nats - half > 0.9 * true
        outside += abs(nats - true) > half
    assert outside <= 10  # more by chance: once in 3,000


def test_the_bias_is_measured_and_taken_off(monkeypatch):
    text = Text(1)
    monkeypatch.setattr(verify, "batch_rows", lambda *_: 8)
    monkeypatch.setattr(verify.Sampler, "losses", lambda _, batch: text.losses(batch))
    sampler = verify.Sampler(text.subject, 0)
    sampler.run()
    nats, half = sampler.estimate.nats()
    assert len(sampler.estimate.sums) == sampler.estimate.cells
    assert abs(nats - text.true_nats()) < 2e-3 * nats and half < 2e-3 * nats
    bias, error = sampler.estimate.bias()
    assert 0.003 < bias < 0.02 and error < bias / 5


@pytest.mark.parametrize("freedom, quantile", [(15, 2.9467), (30, 2.75), (100, 2.6259)])
def test_students_quantile(freedom, quantile):
    assert verify.student_99(freedom) == pytest.approx(quantile, abs=2e-3)


def test_sampling_an_artifact(home, capsys):
    artifact = make(home)
    bpb = run(capsys, artifact)[1]["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--sample", "--seed", 3, "--claim", bpb)
    assert code == 0 and found["sample"]["verdict"] == "CONSISTENT"
    assert found["sample"]["number"] == pytest.approx(bpb, rel=0.02)
    assert "seed 3" in found["sample"]["detail"] and "val_bpb" not in found
    again = run(capsys, artifact, "--sample", "--seed", 3)[1]["sample"]
    assert again["number"] == found["sample"]["number"] and again["verdict"] == "NOT CHECKABLE"

    code, found = run(capsys, artifact, "--sample", "--claim", 0.9 * bpb)
    assert code == 1 and found["sample"]["verdict"] == "FAILED"
    make(home, ttt_protocol="score_first")
    code, found = run(capsys, artifact, "--sample", "--claim", 0.9 * bpb)
    assert code == 0 and "add --ttt" in found["sample"]["detail"]


# ---------------------------------------------------------------- whose data


def test_the_data_of_the_folder_that_is_checked_is_not_taken(home, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "HERE", tmp_path / "tools")
    artifact = make(home)
    for target in (".", artifact, "artifact.pcll"):
        found = {row["check"]: row for row in findings(capsys, target)}
        assert found["val_bpb"]["verdict"] == "NOT CHECKABLE" and "bytes" not in found
    assert verify.main([".", "--data", "data/demo"]) in (0, 1, 2)
    inside = home / "mine"
    inside.mkdir()
    assert verify.main([str(home), "--data", str(inside)]) == 2
    assert "lies in the folder that is checked" in capsys.readouterr().err


def test_one_repeated_token_proves_nothing(home, capsys, monkeypatch):
    shards = home / "shards"
    shards.mkdir()
    write_shard(shards / "fineweb_val_000000.bin", [1] + [70] * 999)
    words = [make(home), "--data", shards, "--tokenizer", "data/demo/bpe.model"]
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {320: 62_021_632})
    bpb = run(capsys, *words)[1]["val_bpb"]["number"]
    found = run(capsys, *words, "--claim", bpb)[1]
    assert found["claim"]["verdict"] == "CONSISTENT"
    assert "not the challenge's" in found["claim"]["detail"]


def test_the_official_split_is_known_by_tokens_and_bytes():
    for vocab, targets in ((1024, 62_021_845), (4096, 45_508_608), (8192, 40_540_160)):
        assert verify.is_official(vocab, targets, 151_080_000)
        assert verify.is_official(vocab, targets, 151_073_604)
        assert not verify.is_official(vocab, targets, 150_000_000)
        assert not verify.is_official(vocab, targets - 2048, 151_080_000)
    assert not verify.is_official(320, 62_021_632, 151_080_000)


# ---------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("claim", [-1.0, 0.0, 1e9, math.nan, math.inf])
def test_absurd_claims_fail(home, capsys, claim):
    code, found = run(capsys, make(home), "--claim", claim, "--max-tokens", 50)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"


def test_a_claim_after_adaptation_is_no_contradiction(home, capsys):
    code, found = run(capsys, make(home, ttt_protocol="score_first"), "--claim", 1.0)
    assert code == 0 and found["claim"]["verdict"] == "NOT CHECKABLE"
    assert "add --ttt" in found["claim"]["detail"]


def test_scores_that_are_no_number_fail(home, capsys):
    """Weights are finite; a bucket of the bigram that only a late pair of tokens has overflows."""
    config = settings_of(home)
    weights = random_weights(config)
    tokens = verify.read_tokens(home / "data/demo", 320).astype(np.int64)
    buckets = ((36313 * tokens[1:]) ^ (27191 * tokens[:-1])) % 63
    late = next(bucket for bucket in range(63) if bucket not in buckets[:45])
    weights["bigram.table"][late] = 3e38
    weights["bigram.proj"][:] = 1e3
    code, found = run(capsys, pack(home / "artifact.pcll", config, weights), "--claim", 2.0)
    assert code == 1 and found["val_bpb"]["verdict"] == "FAILED"
    assert "one has no score" in found["val_bpb"]["detail"]
    assert run(capsys, "artifact.pcll", "--sample")[1]["sample"]["verdict"] == "FAILED"


# ---------------------------------------------------------------- bounds


def bounded(home: Path, config: dict, *words: str) -> tuple[dict, float, float]:
    """Findings of a process of its own, its seconds, and its memory in GB."""
    artifact = pack(home / "artifact.pcll", config, quiet_weights(config))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, verify.__file__, artifact, "--json", "--data", home / "data/demo", *words],
        stdout=subprocess.PIPE,
    )
    out = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    rows = json.loads(out)["findings"]
    return {row["check"]: row for row in rows}, time.monotonic() - began, usage.ru_maxrss / 1e6


def quiet_weights(config: dict) -> dict[str, np.ndarray]:
    return {n: np.full(s, 0.01, "f4") for n, s in verify.expected_shapes(config).items()}


SMALL = dict(
    num_layers=1, model_dim=1, num_heads=1, num_kv_heads=1, mlp_hidden=1, rope_dims=0, xsa_last_n=0
)
SMALL |= dict(bigram_buckets=0, smear_gate=False, gated_attention=False, unet_skips=False)
SMALL |= dict(value_residual=False)


def test_a_small_file_takes_little_memory(home):
    """Its windows of 65,536 tokens and 65,536 pieces would make 17 GB of logits."""
    big = dict(vocab_size=65536, train_seq_len=65536, eval_stride=65536)
    config = settings_of(home, **SMALL, **big, ttt_protocol="score_first")
    found, _, memory = bounded(home, config, "--minutes", "0.2", "--ttt")
    assert (home / "artifact.pcll").stat().st_size < 2000 and memory < 1.5
    assert found["val_bpb"]["verdict"] in ("PROVEN", "NOT CHECKABLE")


def test_epochs_without_end_end(home, capsys):
    changes = dict(ttt_protocol="score_first", ttt_epochs=2**24, ttt_batch_seqs=65536)
    began = time.monotonic()
    code, found = run(capsys, make(home, **changes), "--ttt", "--minutes", 0.05)
    assert time.monotonic() - began < 10
    assert code == 0 and "the minutes are over" in found["val_bpb_ttt"]["detail"]


def test_memory_is_judged_before_it_is_used(home, capsys):
    config = settings_of(home)
    artifact = make(home)
    assert run(capsys, artifact, "--memory", 0.1)[1]["val_bpb"]["verdict"] == "NOT CHECKABLE"
    found = run(capsys, artifact, "--memory", 1e-4)[1]
    assert "--memory allows 0.0001" in found["val_bpb"]["detail"] and "integrity" not in found
    wide = config | {"model_dim": 65536, "mlp_hidden": 65536, "train_seq_len": 65536}
    assert verify.scoring_bytes(wide, 0, "cpu") > 4e9


def test_what_is_over_the_cap_is_not_decoded(home, capsys, monkeypatch):
    artifact = make(home)
    monkeypatch.setattr(verify, "CAP_BYTES", artifact.stat().st_size - 1)
    monkeypatch.setattr(verify, "inflate", None)
    code, found = run(capsys, artifact)
    assert code == 1 and found["size"]["verdict"] == "FAILED"
    assert "not decoded" in found["integrity"]["detail"]


def test_shapes_are_judged_before_weights_are_decoded(home, capsys, monkeypatch):
    config = settings_of(home)
    weights = random_weights(config) | {"constants": np.zeros((4096, 64), "f4")}
    monkeypatch.setattr(verify, "parse_pcll", None)
    found = run(capsys, pack(home / "artifact.pcll", config, weights))[1]
    assert found["config"]["verdict"] == "FAILED" and "constants" in found["config"]["detail"]


# ---------------------------------------------------------------- odd surroundings


def program(*words, flags=(), **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *flags, verify.__file__, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_odd_surroundings_get_a_sentence(home):
    os.mkfifo(home / "pipe")
    done = program(home / "pipe")
    assert done.returncode == 2 and "neither a folder nor a regular file" in done.stderr
    done = program(make(home), "--max-tokens", 50, flags=["-I"])
    assert done.returncode == 0 and "PROVEN" in done.stdout

    command = f"{sys.executable} {verify.__file__} artifact.pcll >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "stdout is closed" in done.stderr


@pytest.mark.parametrize("option", ["--code", "--log", "--tokenizer"])
def test_pipes_are_not_opened(home, capsys, option):
    os.mkfifo(home / "pipe")
    assert verify.main([str(make(home)), option, str(home / "pipe")]) == 2
    assert "is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--minutes 0", "--minutes nan", "--memory -1", "--tolerance 0"])
def test_options_that_are_no_number(home, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        verify.main([str(make(home)), *words.split()])
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err
