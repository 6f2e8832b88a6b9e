"""verify.py on artifacts made here by hand: its network, data and passes, and changed files."""

import ast
import itertools
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from artifacts import CONFIG, TEXTS, make, pack, random_weights, run, settings_of
from conftest import write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

import verify


@pytest.fixture
def exact(monkeypatch) -> None:
    """Claims are of float32, as here."""
    monkeypatch.setattr(verify, "TOLERANCE", 1e-6)
    monkeypatch.setattr(verify, "DRIFT", 0.0)


# ---------------------------------------------------------------- the network


FRONTIER = dict(parallel_last_n=2, loop_first=1, loop_last=2, loop_passes=3, gate_dims=7)
FRONTIER |= dict(smear_dims=5, skip_gates=True)


@pytest.mark.parametrize("changes", [{}, FRONTIER], ids=["plain", "frontier"])
def test_a_prediction_is_a_distribution_that_rests_on_earlier_tokens_alone(changes):
    """Whatever stands after it, in other rows, or apart from attention before a BOS."""
    config = CONFIG | changes
    model = verify.Model(config, random_weights(config), "cpu")
    rows = torch.from_numpy(np.random.default_rng(2).integers(2, 320, (3, 32)))
    with torch.no_grad():
        found = model(rows).double().softmax(-1)
        assert (found.sum(-1) - 1).abs().max() < 1e-6 and (found > 0).all()
        for cut in (1, 16, 31):
            other = rows.clone()
            other[:, cut:] = (other[:, cut:] + 7) % 320
            change = (model(other).double().softmax(-1) - found).abs().amax((0, 2))
            assert change[:cut].max() < 1e-6 < 1e-3 < change[cut]
        alone = torch.cat([model(row[None]) for row in rows]).double().softmax(-1)
        assert (alone - found).abs().max() < 1e-5

        rows[:, 16] = verify.BOS
        before = model.embed(rows)
        rows[:, 15] += 1
        change = (model.embed(rows) - before).abs().amax((0, 2))
        assert change[16:].max() < 1e-6 < 1e-3 < change[15]


# ---------------------------------------------------------------- bytes and tokens


def pieces_of(home: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(home / "data/demo/bpe.model"))


def test_bytes_of_broken_utf8_and_of_many_documents(home):
    pieces = pieces_of(home)
    byte = [i for i in range(320) if pieces.is_byte(i)]
    ids = [1, *pieces.encode("abc"), byte[0xE6], byte[0xBC], 1, *pieces.encode("the dog")]
    assert verify.count_bytes(np.array([*ids, 1, byte[0xFF], 1]), pieces) == 3 + 2 + 7 + 1


def test_shards_are_read_as_train_gpt_reads_them(tmp_path):
    """By number, and without the byte sidecars of other tokenizers."""
    for number in ("8", "000009", "10", "bytes_000000", "7_copy"):
        write_shard(tmp_path / f"fineweb_val_{number}.bin", [1, 2, len(number)])
    (tmp_path / "fineweb_val_0.bin").mkdir()
    assert verify.read_tokens(tmp_path, 320).tolist() == [1, 2, 1, 1, 2, 6, 1, 2, 2]
    (tmp_path / "fineweb_val_000009.bin").rename(tmp_path / "fineweb_val_11.bin")
    with pytest.raises(verify.UnusableInput, match="lacks the validation shard number 9"):
        verify.read_tokens(tmp_path, 320)
    write_shard(tmp_path / "fineweb_val_08.bin", [1])
    with pytest.raises(verify.UnusableInput, match=r"_8\.bin and \S+_08\.bin have the same number"):
        verify.read_tokens(tmp_path, 320)


def test_bad_shards_are_named(tmp_path):
    good = tmp_path / "fineweb_val_000000.bin"
    write_shard(good, [1, 5, 319])
    whole = good.read_bytes()
    assert verify.read_tokens(tmp_path, 320).tolist() == [1, 5, 319]
    with pytest.raises(verify.UnusableInput, match="tokens up to 319, the artifact has 319 pieces"):
        verify.read_tokens(tmp_path, 319)
    cut = [whole[:size] for size in (0, 100, 1024, -1, -2)]
    for bad in (*cut, whole + b"\0", b"\0" * 1030):
        good.write_bytes(bad)
        with pytest.raises(verify.UnusableInput, match="000000.bin is not a whole token shard"):
            verify.read_tokens(tmp_path, 320)
    write_shard(good, [1])
    with pytest.raises(verify.UnusableInput, match="hold 1 tokens"):
        verify.read_tokens(tmp_path, 320)


# ---------------------------------------------------------------- windows and score


def defined_windows(n: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Window ends are min(L + k stride, n); each scores what the one before did not, and has L
    inputs, or with a stride of L those alone."""
    ends = [min(length, n)]
    while ends[-1] < n:
        ends.append(min(length + len(ends) * stride, n))
    pairs = zip(ends, [0, *ends], strict=False)
    return [(lo if stride == length else max(0, hi - length), hi, lo) for hi, lo in pairs]


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_windows_follow_the_definition(n, length, data):
    stride = data.draw(st.integers(1, length))
    config = {"train_seq_len": length, "eval_stride": stride}
    found = list(verify.windows(np.full(n + 1, 5), config))
    assert found == defined_windows(n, length, stride)
    assert [i for _, end, first in found for i in range(first, end)] == list(range(n))


def test_all_proven_on_an_honest_artifact(home, capsys):
    """Every target by itself, its window by the definition; bytes from the texts themselves."""
    config = settings_of(home, eval_stride=16)
    weights = random_weights(config)
    tokens = verify.read_tokens(Path("data/demo"), 320)
    nats = adapted_nats(config | {"ttt_epochs": 0}, weights, tokens).sum()
    size = sum(len(text.encode()) for text in TEXTS)

    artifact = pack(home / "artifact.pcll", config, weights)
    code, found = run(capsys, artifact, "--claim", nats / math.log(2) / size)
    assert code == 0 and {f["verdict"] for f in found.values()} == {"PROVEN"}, found
    assert found["val_bpb"]["number"] == pytest.approx(nats / math.log(2) / size, abs=1e-6)
    assert found["bytes"]["number"] == size
    assert found["size"]["number"] == artifact.stat().st_size + len("print('train')\n")
    assert found["integrity"]["number"] == sum(array.size for array in weights.values())


# Each of these makes a claim with a fault in it; the fault must show as a FAILED claim.


def count_spaces_twice(patch):
    original = verify.count_bytes

    def count_bytes(tokens, pieces):
        spaces = (pieces.id_to_piece(int(i)).startswith("▁") for i in tokens)
        return original(tokens, pieces) + sum(spaces)

    patch.setattr(verify, "count_bytes", count_bytes)


def read_the_target(patch):
    original = F.scaled_dot_product_attention

    def attention(q, k, v, **words):
        return original(q.roll(-1, 2), k.roll(-1, 2), v.roll(-1, 2), **words)

    patch.setattr(F, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize("fault", [count_spaces_twice, read_the_target])
def test_claims_made_with_a_fault_fail(home, capsys, exact, fault):
    artifact = make(home)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        claim = run(capsys, artifact)[1]["val_bpb"]["number"]
    code, found = run(capsys, artifact, "--claim", claim)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"
    code, found = run(capsys, artifact, "--claim", found["val_bpb"]["number"])
    assert code == 0 and found["claim"]["verdict"] == "PROVEN"


def test_a_claim_may_be_off_by_as_much_as_bfloat16_is(home, capsys):
    """0.0005 + 0.1 / sqrt(767) = 0.00411 bits per byte here, 0.00051 on the whole split."""
    artifact = make(home)
    score = run(capsys, artifact)[1]["val_bpb"]["number"]
    for off, verdict in ((0.0040, "PROVEN"), (0.0042, "FAILED")):
        for claim in (score - off, score + off):
            assert run(capsys, artifact, "--claim", claim)[1]["claim"]["verdict"] == verdict
    assert verify.drift_allowed(62_021_632) == pytest.approx(0.000512698, abs=1e-9)


# ---------------------------------------------------------------- adaptation


def adaptation_optimizer(config: dict, model: verify.Model) -> torch.optim.Optimizer:
    factors = {"out": 3.0, "down": 3.0, "up": 0.5}
    groups = [
        {"params": [p.requires_grad_()], "factor": factors.get(n.split(".")[-1], 1.0)}
        for n, p in model.params.items()
    ]
    if config["ttt_optimizer"] == "sgd":
        return torch.optim.SGD(groups, 1.0, 0.9)
    return torch.optim.AdamW(groups, weight_decay=0.0)


def adapted_nats(config: dict, weights: dict, tokens: np.ndarray) -> np.ndarray:
    """Each position's nats under score-first adaptation step by step, with no batches of windows
    and no micro-batches; with fixed weights where there are no epochs."""
    model = verify.Model(config, weights, "cpu")
    optimizer = adaptation_optimizer(config, model)
    n, length, size = len(tokens), config["train_seq_len"], config["ttt_chunk_tokens"]
    chunks = -(-(n - 1) // size)
    by_chunk: dict[int, list] = {}
    for window in defined_windows(n - 1, length, config["eval_stride"]):
        by_chunk.setdefault((window[1] - 1) // size, []).append(window)
    ids, nats = torch.from_numpy(tokens.astype("i8")), []
    for chunk, group in by_chunk.items():
        for start, end, first in group:
            with torch.no_grad():
                logits = model(ids[None, start:end])[0, first - start :]
            nats += F.cross_entropy(logits, ids[first + 1 : end + 1], reduction="none").tolist()
        if chunk == max(by_chunk):
            return np.array(nats)
        rate = config["ttt_lr"] * (1 + math.cos(math.pi * chunk / chunks)) / 2
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate * parameters["factor"]
        lo, hi = group[0][2], group[-1][1]
        sequences = [ids[s : s + length + 1] for s in range(lo, hi, length) if s + length <= hi]
        for _ in range(config["ttt_epochs"]):
            for at in range(0, len(sequences), config["ttt_batch_seqs"]):
                batch = torch.stack(sequences[at : at + config["ttt_batch_seqs"]])
                optimizer.zero_grad()
                F.cross_entropy(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:]).backward()
                torch.nn.utils.clip_grad_norm_(model.params.values(), config["ttt_grad_clip"])
                optimizer.step()
    raise AssertionError("no last chunk")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adaptation_replay(home, capsys, monkeypatch, exact, optimizer):
    monkeypatch.setattr(verify, "TOLERANCE", 1e-5)
    monkeypatch.setitem(verify.BATCH_TOKENS, "cpu", 40)  # one sequence at a time
    stated = dict(ttt_protocol="score_first", ttt_optimizer=optimizer, ttt_lr=0.001)
    config = settings_of(home, **stated, eval_stride=32, ttt_epochs=1)
    weights = random_weights(config)
    artifact = pack(home / "artifact.pcll", config, weights)
    tokens = verify.read_tokens(Path("data/demo"), 320)
    expected = adapted_nats(config, weights, tokens).sum()
    claim = expected / math.log(2) / verify.count_bytes(tokens, pieces_of(home))
    code, found = run(capsys, artifact, "--ttt", "--claim", claim)
    assert code == 0 and found["claim"]["verdict"] == found["val_bpb_ttt"]["verdict"] == "PROVEN"
    fixed = found["val_bpb"]["number"]
    assert abs(found["val_bpb_ttt"]["number"] - fixed) > 1e-3  # it learned something
    code, found = run(capsys, artifact, "--ttt", "--claim", fixed)
    assert code == 1 and found["claim"]["verdict"] == "FAILED"


def test_train_then_score_is_labelled(home, capsys):
    artifact = make(home, ttt_protocol="train_then_score")
    code, found = run(capsys, artifact)
    assert code == 0 and found["adaptation"]["verdict"] == "SUSPICION"
    assert "NOT LEGAL" in found["adaptation"]["detail"]
    code, found = run(capsys, artifact, "--ttt", "--claim", 1.0487)
    assert code == 1 and found["adaptation"]["verdict"] == "FAILED"
    found = run(capsys, make(home), "--ttt")[1]["adaptation"]
    assert found["verdict"] == "NOT CHECKABLE" and "states none" in found["detail"]


# ---------------------------------------------------------------- changed files


def test_a_changed_byte_fails_the_integrity(home, capsys):
    artifact = make(home)
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    code, found = run(capsys, artifact)
    assert code == 1 and found["integrity"]["verdict"] == "FAILED" and "val_bpb" not in found


def test_a_changed_weight_or_setting_fails_the_claim(home, capsys, exact):
    stated = settings_of(home)
    claim = run(capsys, make(home))[1]["val_bpb"]["number"]
    weights = random_weights(stated)
    weights["blocks.2.attn.q_gain"][1] += 0.1
    changed = [pack(home / "weight.pcll", stated, weights)]
    changes = dict(rope_base=90.0, logit_softcap=20.0, xsa_last_n=1, ln_scale=False, eval_stride=16)
    for name, value in changes.items():
        config = stated | {name: value}
        changed.append(pack(home / f"{name}.pcll", config, random_weights(stated)))
    for artifact in changed:
        code, found = run(capsys, artifact, "--claim", claim)
        assert code == 1 and found["claim"]["verdict"] == "FAILED"


CONTRADICTIONS = {  # what is changed, and what the report says of it
    "num_layers=6": "blocks.5.",
    "num_heads=5": "num_heads does not divide model_dim",
    "num_heads=8": "blocks.0.attn.",
    "num_kv_heads=3": "num_kv_heads does not divide num_heads",
    "rope_dims=3": "rope_dims is odd or above",
    "rope_dims=10": "rope_dims is odd or above",
    "vocab_size=321": "tok_emb is (320, 32), not (321, 32)",
    "bigram_buckets=1": "bigram_buckets is 1",
    "eval_stride=33": "eval_stride is above train_seq_len",
    "loop_last=5": "loop_last is no layer",
    "loop_first=1": "loop_first is above loop_last",
    "smear_dims=33": "gate_dims or smear_dims is above",
}


@pytest.mark.parametrize("change", [*CONTRADICTIONS, "smear_gate"])
def test_a_configuration_that_no_network_has_fails(home, capsys, change):
    config = settings_of(home)
    weights = random_weights(config)
    name, _, value = change.partition("=")
    if value:
        config[name] = int(value)
    else:
        del weights[name]
    code, found = run(capsys, pack(home / "artifact.pcll", config, weights))
    assert code == 1 and found["config"]["verdict"] == "FAILED" and "val_bpb" not in found
    assert found["integrity"]["verdict"] == "PROVEN"
    words = CONTRADICTIONS.get(change, "smear_gate is absent, not (32,)")
    assert words in found["config"]["detail"]


UNKNOWN = """num_layers=4 smear_gate=False gated_attention=False eval_stride=0 train_seq_len=65537
    num_layers=1000000000 ttt_protocol='later' ttt_optimizer='adam' loop_passes=None ln_scale=1
    num_layers=True num_heads='4' logit_softcap=0.0 ttt_lr=-1.0 experts=4 rope_base=None"""


@pytest.mark.parametrize("change", [*UNKNOWN.split(), "payload"])
def test_a_network_that_is_not_known_has_no_score(home, capsys, change):
    """Size and integrity are shown, and where a part of the model would be added."""
    config = settings_of(home)
    weights = random_weights(config)
    name, _, value = change.partition("=")
    if value:
        config[name] = ast.literal_eval(value)
    else:
        weights[name] = np.zeros(9, "f4")
    stated = {name: value for name, value in config.items() if value is not None}
    code, found = run(capsys, pack(home / "artifact.pcll", stated, weights), "--claim", "1")
    assert code == 0 and found["integrity"]["verdict"] == found["size"]["verdict"] == "PROVEN"
    assert found["val_bpb"]["verdict"] == "NOT CHECKABLE" and "config" not in found
    assert "(see README.md, Contributing)" in found["val_bpb"]["detail"]


def test_the_ends_of_what_is_computed(monkeypatch):
    """A setting's range, and the work of one window."""
    shapes = verify.expected_shapes(CONFIG)
    weights = sum(map(math.prod, shapes.values()))
    monkeypatch.setattr(verify, "MAX_WORK", (weights + 2 * 5 * 32 * 32) * 32)
    assert verify.unknown_parts(CONFIG, shapes) == []
    for value, known in ((24, False), (16, True), (1, True), (0, False)):
        problems = verify.unknown_parts(CONFIG | {"loop_passes": value}, shapes)
        assert any("loop_passes" in problem for problem in problems) == (not known)
    assert verify.unknown_parts(CONFIG | {"loop_passes": 2}, shapes) != []
    assert verify.unknown_parts(CONFIG | {"train_seq_len": 33}, shapes) != []


def test_the_tokenizer_must_be_the_artifacts(home, capsys, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "other.model"
    other.write_bytes((home / "data/demo/bpe.model").read_bytes() + b"\0")
    cases = [(make(home), "--tokenizer", other), (make(home, tokenizer_sha256="0" * 64),)]
    cases += [(make(home, tokenizer_sha256=3),)]
    for words in cases:
        code, found = run(capsys, *words)
        assert code == 0
        assert found["tokenizer"]["verdict"] == found["val_bpb"]["verdict"] == "NOT CHECKABLE"
    assert run(capsys, make(home))[1]["tokenizer"]["verdict"] == "PROVEN"


# ---------------------------------------------------------------- size


def test_the_cap(home, capsys, monkeypatch):
    artifact = make(home)
    total = artifact.stat().st_size + len("print('train')\n")
    for cap, verdict in ((total, "PROVEN"), (total - 1, "FAILED")):
        monkeypatch.setattr(verify, "CAP_BYTES", cap)
        assert run(capsys, artifact)[1]["size"]["verdict"] == verdict
    (home / "elsewhere").mkdir()
    artifact = artifact.rename(home / "elsewhere" / artifact.name)
    assert run(capsys, artifact)[1]["size"]["verdict"] == "NOT CHECKABLE"
    for cap, verdict in ((artifact.stat().st_size, "NOT CHECKABLE"), (10, "FAILED")):
        monkeypatch.setattr(verify, "CAP_BYTES", cap)
        assert run(capsys, artifact)[1]["size"]["verdict"] == verdict
    assert verify.main([str(artifact), "--code", "train_gpt.py"]) == 1
    assert "FAILED — size" in capsys.readouterr().out


def test_a_size_with_other_files_beside_it_is_not_proven(home, capsys):
    artifact = make(home)
    total = artifact.stat().st_size + len("print('train')\n")
    (home / "weights.bin").write_bytes(bytes(2_304_000))
    size = run(capsys, artifact)[1]["size"]
    assert (size["verdict"], size["number"]) == ("CONSISTENT", total)
    assert f"{total + 2_304_000:,} with all" in size["detail"]
    assert "weights.bin 2,304,000" in size["detail"]


# ---------------------------------------------------------------- the command line


def test_the_report_for_people(home, capsys):
    artifact = make(home)
    assert verify.main([str(artifact), "--claim", "1.0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    words = "claim: 1.000000 bits/byte, -5.661849 (0.0041 allowed) from 6.661849 here with fixed"
    assert lines[0].startswith(f"FAILED — {words}")
    assert lines.index("FAILED") < lines.index("PROVEN") and lines[-1].startswith("1 FAILED")
    assert len(lines) < 40 and max(map(len, lines)) <= 120


def test_progress_on_stderr_at_least_every_ten_seconds(home, capsys, monkeypatch):
    clock = itertools.count(0, 5)
    monkeypatch.setattr(verify.time, "monotonic", lambda: next(clock))
    make(home, ttt_protocol="score_first")
    verify.main(["artifact.pcll", "--ttt", "--json"])
    lines = capsys.readouterr().err.splitlines()
    scored = re.compile(
        r"after .*: [\d,]+ positions, [\d.]+ nats each, of 767; stops within [\d,]+ s"
    )
    assert len([line for line in lines if scored.fullmatch(line)]) > 10
    learning = [line for line in lines if line.startswith("learning from chunk 2: epoch ")]
    assert len(learning) == len(set(learning)) > 1  # a step each


def test_as_a_program(home):
    """-I leaves the script's folder out of the path."""
    make(home)
    words = "artifact.pcll --claim 1 --this-split --data data/demo".split()
    command = [sys.executable, "-I", verify.__file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED" in done.stdout and done.stderr == ""
    closed = ["bash", "-c", f"{shlex.join(command)} >&-"]
    done = subprocess.run(closed, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "verify.py: stdout is closed\n"


UNUSABLE = """absent.pcll
noise
pipe
artifact.pcll --code pipe
artifact.pcll --log pipe
artifact.pcll --tokenizer pipe
artifact.pcll --data shards --tokenizer data/demo/bpe.model
artifact.pcll --seed -1 --sample
artifact.pcll --tokenizer absent.model
artifact.pcll --against 1.1
artifact.pcll --claim 1.2bpb
artifact.pcll --claim nan
artifact.pcll --claim -1.2
artifact.pcll --minutes 5min
artifact.pcll --minutes 0
artifact.pcll --data absent
artifact.pcll --seed 1.5
artifact.pcll --max-tokens 5
. --against 1.1x"""


@pytest.mark.parametrize("line", [*UNUSABLE.splitlines(), ". --against '1.1, 1.2'"])
def test_unusable_input_is_one_sentence(home, capsys, line):
    make(home)
    (home / "noise").write_bytes(b"\x89PNG")
    (home / "shards").mkdir()
    os.mkfifo(home / "pipe")
    try:
        code = verify.main(shlex.split(line))
    except SystemExit as stopped:  # argparse
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.startswith("verify.py: ")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_report_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any" / "any.pcll"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PCLL" + data)
    assert verify.main([str(path), "--json"]) == 1
