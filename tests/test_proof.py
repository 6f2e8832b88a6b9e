"""verify.py on what it can prove in minutes: prefixes of logs and samples; its bounds; its data."""

import hashlib
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from artifacts import make, pack, random_weights, run, settings_of
from test_verify import adapted_nats, pieces_of

import verify

MARKS = (64, 128, 256, 512)
NATS = {}  # of each configuration, as they take long


def prefixes(capsys, *arguments) -> list[dict]:
    verify.main([*map(str, arguments), "--json"])
    rows = json.loads(capsys.readouterr().out)["findings"]
    return [row for row in rows if row["check"] == "prefix"]


# ---------------------------------------------------------------- prefixes


class Entry:
    """An artifact, and each position's nats by plain code, fixed and adapted."""

    def __init__(self, home: Path, **changes):
        self.home = home
        stated = dict(ttt_protocol="score_first", eval_stride=32, ttt_epochs=1)
        self.config = settings_of(home, **stated | changes)
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
        return verify.count_bytes(self.tokens[: count + 1], pieces_of(self.home))

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
def entry(home) -> Entry:
    return Entry(home)


def test_an_honest_log_is_proven_pass_by_pass(entry, capsys):
    rows = prefixes(capsys, entry.artifact, "--log", entry.log(entry.nats))
    assert [row["verdict"] for row in rows] == ["PROVEN", "PROVEN"]
    assert [row["number"] for row in rows] == [512, 512]
    for row in rows:
        assert f"first 512 of {len(entry.tokens) - 1:,}" in row["detail"]
        assert "the other 255 rest on the log's word" in row["detail"]


def test_a_folder_finds_the_log_of_its_artifact(entry, capsys):
    entry.log(entry.nats)
    rows = prefixes(capsys, entry.home)
    assert [row["verdict"] for row in rows] == ["PROVEN", "PROVEN"]
    (entry.home / "train_seed1.log").write_text("val_bpb:1.0\n")
    assert prefixes(capsys, entry.home) == []


def test_rounding_in_bfloat16_passes(entry, capsys):
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.021, len(entry.tokens) - 1)
        nats = {name: values + noise for name, values in entry.nats.items()}
        rows = prefixes(capsys, entry.artifact, "--log", entry.log(nats))
        assert {row["verdict"] for row in rows} == {"PROVEN"}


def test_a_log_may_be_off_by_as_much_as_bfloat16_is(entry, capsys, monkeypatch):
    """0.0005 + 0.1 / sqrt(256) = 0.00675 bits per byte, in nats and in val_bpb."""
    monkeypatch.setattr("test_proof.MARKS", (256,))
    fixed = entry.nats[verify.SLIDING]
    honest = entry.log({verify.SLIDING: fixed}).read_text()
    bpb = float(honest.rpartition("val_bpb:")[2])
    for off, verdict in ((0.0066, "PROVEN"), (-0.0066, "PROVEN"), (0.0069, "FAILED")):
        path = entry.log({verify.SLIDING: fixed * (1 + off / bpb)})
        (row,) = prefixes(capsys, entry.artifact, "--log", path)
        assert row["verdict"] == verdict, row
        path.write_text(honest.replace(f"val_bpb:{bpb:.8f}", f"val_bpb:{bpb + off:.8f}"))
        (row,) = prefixes(capsys, entry.artifact, "--log", path)
        assert row["verdict"] == verdict, row


def test_training_on_what_is_scored_fails_at_the_first_position(entry, capsys):
    """The adapted pass claims what it has after all epochs over all tokens."""
    known = {verify.ADAPTED: 0.9 * entry.nats[verify.ADAPTED]}
    (row,) = prefixes(capsys, entry.artifact, "--log", entry.log(known))
    assert row["verdict"] == "FAILED" and row["number"] == 64
    assert row["line"].startswith("train_seed1.log:3: after score-first adaptation")
    assert verify.main([str(entry.artifact), "--log", "train_seed1.log"]) == 1


def test_logs_that_say_nothing_of_it(entry, capsys):
    (row,) = prefixes(capsys, entry.artifact, "--log", entry.log(entry.nats, "0" * 64))
    assert row["verdict"] == "NOT CHECKABLE" and entry.sha256 in row["detail"]

    path = entry.log({verify.SLIDING: 0.9 * entry.nats[verify.SLIDING]})
    path.write_text(path.read_text().partition("own.pcll\n")[2])
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "no artifact_sha256" in row["detail"]

    path = entry.log(entry.nats, "0" * 64)
    path.write_text(f"before export: scored:9 nats:1.0 bytes:9 val_bpb:1.0\n{path.read_text()}")
    line = first_line(capsys, entry.artifact, "--log", path)
    assert "not shown: prefix" in line and "no log is of this artifact" in line

    path.write_text("final_exact val_loss:1.9 val_bpb:1.1\n")
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "no line 'after export" in row["detail"]

    path = entry.log({"NOT LEGAL (trained on the tokens it scores)": entry.nats[verify.SLIDING]})
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "no artifact here repeats it" in row["detail"]


def test_a_log_of_another_split_is_no_contradiction(entry, capsys, monkeypatch):
    path = entry.log({verify.SLIDING: entry.nats[verify.SLIDING]})
    path.write_text(path.read_text().replace("bytes:", "bytes:1"))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "FAILED"  # the split here is the challenge's
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {})
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "NOT CHECKABLE" and "another split" in row["detail"]


def stop_after(monkeypatch, calls: int, stop) -> None:
    """Ctrl-C, or the end of the minutes, after so many batches."""
    original = verify.batch_losses
    counter = itertools.count()

    def batch_losses(*arguments):
        if next(counter) >= calls:
            raise stop
        return original(*arguments)

    monkeypatch.setattr(verify, "batch_losses", batch_losses)
    monkeypatch.setitem(verify.BATCH_TOKENS, "cpu", 64)


def test_what_was_reached_counts(entry, capsys, monkeypatch):
    path = entry.log({verify.SLIDING: entry.nats[verify.SLIDING]})
    stop_after(monkeypatch, 5, KeyboardInterrupt)
    found = run(capsys, entry.artifact, "--log", path)[1]
    assert found["prefix"]["verdict"] == "PROVEN" and found["prefix"]["number"] == 256
    assert found["val_bpb"]["verdict"] == "NOT CHECKABLE"
    assert "320 of 767 positions, each once" in found["val_bpb"]["detail"]
    assert "PARTIAL: stopped by Ctrl-C" in found["val_bpb"]["detail"]


def test_epochs_without_end_end(home, capsys):
    changes = dict(ttt_protocol="score_first", ttt_epochs=2**24, ttt_batch_seqs=65536)
    code, found = run(capsys, make(home, **changes), "--ttt", "--minutes", 0.05)
    assert code == 0 and "no time is left" in found["val_bpb_ttt"]["detail"]


# ---------------------------------------------------------------- the log by itself


def prefix_line(count: int, nats: float, size: int) -> str:
    bpb = nats / math.log(2) / size
    return f"{verify.SLIDING}: scored:{count} nats:{nats:.6f} bytes:{size} val_bpb:{bpb:.8f}\n"


def result_line(count: int, nats: float, size: int, label: str = "") -> str:
    bpb = nats / math.log(2) / size
    return (
        f"{label}final_pcll_sliding_exact val_loss:{nats / count:.8f} val_bpb:{bpb:.8f} "
        f"val_tokens:{count} bytes:{size} eval_time:1000ms\n"
    )


HONEST = f"artifact_sha256:{'0' * 64} logs/own.pcll\n"
HONEST += prefix_line(2048, 4000, 5000) + prefix_line(4096, 8000, 10000)
BENT = {  # logs that no run has written
    "the result is less than its part": HONEST + result_line(6000, 7_900, 14_600),
    "the rest has no bytes": HONEST + result_line(6000, 11_900, 9_999),
    "all positions, another sum": HONEST + result_line(4096, 7_990, 10_000),
    "nats that go back": prefix_line(2048, 4000, 5000) + prefix_line(4096, 3999, 10000),
}


@pytest.mark.parametrize("what", BENT)
def test_a_log_that_contradicts_itself(home, capsys, what):
    (home / "train.log").write_text(BENT[what])
    code, found = run(capsys, make(home), "--log", "train.log")
    assert code == 1 and found["prefix lines"]["verdict"] == "FAILED"
    assert found["prefix lines"]["line"].startswith("train.log:")


def test_a_log_that_fits_together(home, capsys):
    """Also where a run was resumed and its passes begin anew, and a result is rounded."""
    log = (
        HONEST + result_line(4096, 8000 - 4e-5, 10_000) + HONEST + result_line(6000, 11_900, 14_600)
    )
    (home / "train.log").write_text(log + result_line(6000, 11_900, 14_600, "headline: "))
    assert "prefix lines" not in run(capsys, make(home), "--log", "train.log")[1]


def test_the_result_of_a_pass_is_compared_as_well(entry, capsys, monkeypatch):
    """And how many positions rest on the log's word, where the minutes do not reach it."""
    fixed = entry.nats[verify.SLIDING]
    path = entry.log({verify.SLIDING: fixed})
    count = len(fixed)
    size = entry.bytes_of(count)
    honest = path.read_text()
    path.write_text(honest + result_line(count, fixed.sum(), size))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "PROVEN" and row["number"] == count and "other 0 rest" in row["detail"]
    path.write_text(honest + result_line(count, 0.95 * fixed.sum(), size))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["verdict"] == "FAILED" and row["number"] == count
    stop_after(monkeypatch, 5, verify.Ended("no time is left"))
    (row,) = prefixes(capsys, entry.artifact, "--log", path)
    assert row["number"] == 256 and f"the other {count - 256} rest" in row["detail"]


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


def test_the_first_line_says_which_score_it_is_of(entry, scores, capsys):
    fixed, adapted = scores
    line = first_line(capsys, entry.artifact)
    assert line.startswith("OK — nothing failed; the text is the challenge's whole split; ")
    assert f"; val_bpb {fixed:.6f}"[:-3] in line and " recomputed with fixed weights" in line
    assert "after score-first adaptation was not recomputed" in line
    line = first_line(capsys, entry.artifact, "--ttt")
    assert f"val_bpb {adapted:.6f}"[:-3] in line and "not recomputed" not in line
    assert "recomputed after score-first adaptation" in line
    line = first_line(capsys, entry.artifact, "--claim", fixed)
    assert "agrees with the score with fixed weights" in line
    line = first_line(capsys, entry.artifact, "--claim", adapted, "--log", entry.log(entry.nats))
    assert "agrees with the score after score-first adaptation" in line


def test_the_first_line_of_what_is_not_decided(entry, scores, capsys, monkeypatch):
    line = first_line(capsys, entry.artifact, "--claim", scores[1])
    assert line.startswith("NOT PROVEN — nothing failed") and "is not decided: it may be" in line
    line = first_line(capsys, entry.artifact, "--sample", "--claim", scores[0])
    assert line.startswith("NOT PROVEN") and "is within a sample's estimate, fixed weights" in line
    with monkeypatch.context() as patch:
        stop_after(patch, 5, verify.Ended("no time is left"))
        line = first_line(capsys, entry.artifact)
    assert "the first 320 of 767 positions scored with fixed weights" in line
    stop_after(monkeypatch, 5, verify.Ended("no time is left"))
    line = first_line(capsys, entry.artifact, "--log", entry.log(entry.nats), "--claim", scores[1])
    assert line.startswith("NOT PROVEN — nothing failed; not shown: claim")
    assert "320 of 767" not in line
    assert "the log's first 256 of 767 positions are right after score-first adaptation" in line
    assert "nothing was scored with fixed weights: no time is left" in line


def test_the_first_line_of_another_split(entry, scores, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {})
    for words in ([], ["--claim", scores[0]], ["--claim", scores[0], "--this-split"]):
        line = first_line(capsys, entry.artifact, *words)
        assert line.startswith("OK") and "not the challenge's whole one" in line


def test_a_claim_is_not_judged_by_a_pass_that_was_not_finished(entry, scores, capsys, monkeypatch):
    """A claim after adaptation, whose pass the minutes ended, is not held against fixed weights."""
    score = verify.score_windows

    def slow(subject, run):
        part = subject.tokens[:200] if run.name == verify.ADAPTED else subject.tokens
        score(replace(subject, tokens=part), run)

    monkeypatch.setattr(verify, "score_windows", slow)
    monkeypatch.setattr(verify, "submitted_scores", lambda folder: [scores[1]])
    entry.log(entry.nats)
    found = run(capsys, entry.home)[1]
    assert found["val_bpb"]["verdict"] == "PROVEN"
    assert found["val_bpb"]["file"] == "artifact.pcll"
    assert found["claim"]["verdict"] == "NOT CHECKABLE"
    assert "whose pass came to 199 of 767 positions" in found["claim"]["detail"]


def claimed_in_its_folder(home, capsys, monkeypatch, claims: list[float], *words) -> dict:
    """The finding on a submission.json with these scores."""
    monkeypatch.setattr(verify, "submitted_scores", lambda folder: claims)
    return run(capsys, home, *words)[1]["claim"]


def test_a_submitted_score_is_of_the_challenges_split(home, capsys, monkeypatch):
    bpb = run(capsys, make(home))[1]["val_bpb"]["number"]
    claimed = partial(claimed_in_its_folder, home, capsys, monkeypatch)
    assert claimed([bpb + 0.1, bpb])["verdict"] == "PROVEN"
    assert claimed([bpb + 0.1])["verdict"] == "FAILED"

    make(home, ttt_protocol="score_first")
    found = claimed([bpb + 0.1])
    assert found["verdict"] == "NOT CHECKABLE" and "add --ttt" in found["detail"]
    assert claimed([bpb + 0.1], "--ttt")["verdict"] == "FAILED"

    make(home)
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {320: 10**6})
    for claim in (bpb, bpb + 0.1):
        found = claimed([claim])
        assert found["verdict"] == "NOT CHECKABLE" and "not the challenge's" in found["detail"]
    assert claimed([bpb + 0.1], "--this-split")["verdict"] == "FAILED"
    assert claimed([bpb], "--this-split")["verdict"] == "CONSISTENT"


# ---------------------------------------------------------------- samples


class Text:
    """Losses like those of a text: documents differ, and tokens more."""

    def __init__(self, monkeypatch, targets: int = 400_007):
        draw = np.random.default_rng(0)
        documents = np.repeat(draw.normal(1.9, 0.25, targets // 1000 + 1), 1000)[:targets]
        self.nats = np.maximum(0.05, documents) * draw.exponential(1.0, targets)
        config = {"train_seq_len": 2048, "eval_stride": 32}
        tokens = np.zeros(targets + 1, "<u2")
        options = verify.parse(["artifact.pcll"])
        self.subject = verify.Subject(config, {}, tokens, len, options)
        monkeypatch.setattr(verify.Subject, "network", lambda _: None)
        monkeypatch.setattr(verify, "batch_rows", lambda _: 50)
        monkeypatch.setattr(verify, "batch_losses", self.losses)

    def losses(self, _model, _subject, batch: list) -> np.ndarray:
        assert {window.end - window.start for window in batch} == {2048}
        return np.concatenate([self.nats[window.first : window.end] for window in batch])


def test_a_claim_ten_percent_too_low_is_refuted_by_150_windows(monkeypatch):
    """And of 300 honest claims not more than the interval leaves outside: 1 in 100."""
    text = Text(monkeypatch)
    true = text.nats.sum()
    estimates = []
    for seed in range(300):
        estimates.append(next(itertools.islice(verify.draw_windows(text.subject, seed), 2, None)))
    assert {(found.drawn, found.windows) for found in estimates} == {(150, 12_436)}
    assert sum(found.nats - found.half > 0.9 * true for found in estimates) >= 290
    assert sum(abs(found.nats - true) > found.half for found in estimates) <= 10


@pytest.mark.parametrize("windows", [15, 16])
def test_fewer_than_16_windows_state_no_interval(home, capsys, monkeypatch, windows):
    stop_after(monkeypatch, 2 + windows, KeyboardInterrupt)  # after the first and the last one
    monkeypatch.setitem(verify.BATCH_TOKENS, "cpu", 32)
    found = run(capsys, make(home), "--sample")[1]["sample"]
    assert found["verdict"] == "NOT CHECKABLE"
    assert found["unit"] == ("windows" if windows == 15 else "bits/byte")
    assert f"{windows} windows" in found["detail"]


def test_sampling_an_artifact(home, capsys):
    artifact = make(home)
    bpb = run(capsys, artifact)[1]["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--sample", "--seed", 3, "--claim", bpb)
    assert code == 0 and found["sample"]["verdict"] == "CONSISTENT" and "val_bpb" not in found
    assert found["sample"]["number"] == pytest.approx(bpb, abs=1e-6)  # of all windows
    assert "seed 3" in found["sample"]["detail"]
    assert run(capsys, artifact, "--sample")[1]["sample"]["verdict"] == "NOT CHECKABLE"

    code, found = run(capsys, artifact, "--sample", "--claim", 0.9 * bpb)
    assert code == 1 and found["sample"]["verdict"] == "FAILED"
    make(home, ttt_protocol="score_first")
    code, found = run(capsys, artifact, "--sample", "--claim", 0.9 * bpb)
    assert code == 0 and "add --ttt" in found["sample"]["detail"]


def test_the_data_of_the_folder_that_is_checked_is_not_taken(home, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "HERE", tmp_path / "tools")
    artifact = make(home)
    for target in (".", artifact, "artifact.pcll"):
        found = run(capsys, target)[1]
        assert found["val_bpb"]["verdict"] == "NOT CHECKABLE" and "bytes" not in found
    assert verify.main([".", "--data", "data/demo"]) in (0, 1, 2)
    inside = home / "mine"
    inside.mkdir()
    assert verify.main([str(home), "--data", str(inside)]) == 2
    assert "lies in the folder that is checked" in capsys.readouterr().err


@pytest.mark.parametrize(
    "vocab, targets", [(1024, 62_021_845), (4096, 45_508_608), (8192, 40_540_160)]
)
def test_the_official_split_is_known_by_tokens_and_bytes(vocab, targets):
    def is_official(targets: int, size: int, vocab: int = vocab) -> bool:
        tokens = np.broadcast_to(np.uint16(0), targets + 1)
        return verify.Subject({"vocab_size": vocab}, {}, tokens, lambda _: size, None).official

    assert is_official(targets, 151_080_000) and is_official(targets, 151_073_604)
    for off in (30_000, -30_000):  # 2e-4 of them are 30,216
        assert is_official(targets, 151_080_000 + off)
        assert not is_official(targets, 151_080_000 + off // 30 * 31)
    assert not is_official(targets - 2048, 151_080_000)
    assert not is_official(targets, 151_080_000, 320)


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
    assert code == 1 and found["val_bpb"]["verdict"] == "FAILED" and "claim" not in found
    assert "has no score" in found["val_bpb"]["detail"]
    assert run(capsys, "artifact.pcll", "--sample")[1]["sample"]["verdict"] == "FAILED"


TINY = dict.fromkeys(["num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden"], 1)
TINY |= dict(rope_dims=0, xsa_last_n=0, bigram_buckets=0, smear_gate=False, gated_attention=False)
TINY |= dict(unet_skips=False, value_residual=False, vocab_size=65536)


def test_the_end_of_memory_is_a_finding(home):
    """A small file's documents would learn matrices of 17 GB."""
    big = dict(ttt_protocol="per_document", document_rank=65536, document_tokens=8)
    artifact = make(home, **TINY, **big)
    words = [verify.__file__, artifact, "--json", "--data", home / "data/demo", "--ttt"]
    done = subprocess.run([sys.executable, *words], capture_output=True)
    found = {row["check"]: row for row in json.loads(done.stdout)["findings"]}
    assert found["integrity"]["verdict"] == "PROVEN"
    assert found["val_bpb"]["verdict"] == "NOT CHECKABLE"
    assert "8.6 GB of memory are too few" in found["val_bpb"]["detail"]


def test_weights_are_counted_before_they_are_decoded(home, capsys, monkeypatch):
    artifact = make(home)
    monkeypatch.setattr(verify, "MAX_WEIGHTS", 35_473)
    assert run(capsys, artifact)[1]["integrity"]["verdict"] == "PROVEN"
    monkeypatch.setattr(verify, "MAX_WEIGHTS", 35_472)
    monkeypatch.setattr(verify, "parse_pcll", None)
    code, found = run(capsys, artifact)
    assert code == 0 and found["integrity"]["verdict"] == "NOT CHECKABLE"
    assert "35,473 weights" in found["integrity"]["detail"] and "val_bpb" not in found


def test_what_is_over_the_cap_is_not_decoded(home, capsys, monkeypatch):
    artifact = make(home)
    monkeypatch.setattr(verify, "CAP_BYTES", artifact.stat().st_size - 1)
    monkeypatch.setattr(verify, "inflate", None)
    found = run(capsys, artifact)[1]
    assert found["size"]["verdict"] == "FAILED" and "not decoded" in found["integrity"]["detail"]


def test_ctrl_c_leaves_what_was_found(home, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "count_bytes", interrupt)
    found = run(capsys, make(home))[1]
    assert found["tokenizer"]["verdict"] == "PROVEN"
    assert found["val_bpb"]["detail"] == "stopped by Ctrl-C"
