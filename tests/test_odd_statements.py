"""What logs state in whatever form: read as it is meant, or named as odd, and never OK for what was
written to be misread."""

import re

import pytest
from attacks.folders import SEEDS, TEXTS, Run, changed, entry, rows, runs, without, write

from records.check import check_folder
from records.logs import read_lines, read_log
from records.report import Finding, Report, answer_of

# A check; a text of each log, what stands in its place, the verdict and number that it gives. ¶ is
# the end of a line, ‹ that of one which a terminal writes over.
STATEMENTS = r"""
training time
    time:599000ms => time:7.2e5ms -> FAILED 720
    time:599000ms => time:720,000ms -> FAILED 720
    time:599000ms => time: 12.0min -> FAILED 720
    time:599000ms => time:0.2h -> FAILED 720
    time:599000ms => time=720000000us -> FAILED 720
    time:599000ms => time:720000 milliseconds -> FAILED 720
    time:599000ms => time:599000ms step:9/99‹stopping_early: cap train_time:720000ms -> FAILED 720
    time:599000ms => time:599.0s -> CONSISTENT 599
    step_avg:45.0ms => step_avg:90000ms step_avg:45.0ms -> CONSISTENT 599
evaluation time
    time:400000ms => time:7.2e5ms -> FAILED 720
    time:400000ms => time:0000000720000ms -> FAILED 720
    stopping => plain val_bpb:1.1200 eval_time:900000ms¶stopping -> CONSISTENT 400
    stopping => step:9/20000 val_loss:2.0 val_bpb:1.12 eval_time:900000ms¶stopping -> CONSISTENT 400
    Code => plain val_bpb:1.2 time:720s¶Code -> CONSISTENT 400
calibration
    Code => gptq:calibrated with 9 batches in 196.5s¶Code -> FAILED 196.5
    Code => gptq:generated 64 sequences in 196.5s¶Code -> none
    Code => gptq:collected in 4s of time_reserved:9s¶Code -> none
    Code => GPTQ:compressed+saved in 122.9s¶Code -> none
    Code => calibration_time:1234ms¶Code -> CONSISTENT 1.234
    stopping => calibration_time:90000ms¶stopping -> none
size
    15900200 bytes => 16_500_000 bytes -> SUSPICION 15900198
    15900200 bytes => 16 500 000 bytes -> SUSPICION 15900198
    15900200 bytes => 16'500'000 bytes -> SUSPICION 15900198
    Serialized model int8+zlib: => artifact:model_path=a.ptz model_bytes= -> CONSISTENT 15900198
    15900000 bytes => 15,900,000 bytes (raw:17000000) -> CONSISTENT 15900198
    Code size => Total submission size: 15.90 MB¶Code size -> CONSISTENT 15900198
    Serialized model int8+zlib: => Quantized model (zstd): -> CONSISTENT 15900198
    Total submission size int8+zlib: => Total submission: -> CONSISTENT 15900198
    Code => raw model:98434727 code:40698 total:98475425¶Code -> CONSISTENT 15900198
    Code size => probe Serialized model x: 17000000 bytes¶Code size -> CONSISTENT 15900198
pattern
    Code => prequant_ttt:epoch 1/10 loss:2.8775¶Code -> SUSPICION
    Code => ttt_epoch:5/30 avg_loss:1.8966¶Code -> SUSPICION
    Code => ttt_chunk 3 epoch 1/3 loss:1.9¶Code -> CONSISTENT
    Code => ngram: Pass 2 done val_bpb=0.098971¶Code -> SUSPICION
    Code => two_pass: False¶Code -> CONSISTENT
    Code => train_files:data/fineweb_val_*.bin¶Code -> SUSPICION
    Code => train_files:data/fineweb_train_*.bin¶Code -> CONSISTENT
    Code => roundtrip_delta val_loss:-0.0083 val_bpb:-0.00495356¶Code -> CONSISTENT
    Code => a‹b‹c 10%‹Code -> CONSISTENT
    Code => Traceback (most recent call last):¶Code -> CONSISTENT
val_bpb
    seed: => val_bpb:enabled tokenizer¶seed: -> CONSISTENT 1.12
    ¶ => ‹¶ -> CONSISTENT 1.12
    val_bpb: => quantized bpb = -> CONSISTENT 1.12
    val_bpb: => "val_bpb": -> CONSISTENT 1.12
    Code => step 9 val_bpb:1.3¶epoch 2 val_bpb:1.3¶baseline val_bpb:1.3¶Code -> CONSISTENT 1.12
"""


def check(home, files) -> tuple[Report, dict[str, Finding]]:
    report = check_folder(write(home, files))
    return report, {finding.check: finding for finding in report.findings}


@pytest.mark.parametrize(("name", "row"), rows(STATEMENTS))
def test_a_statement(tmp_path, name, row):
    texts, _, wanted = row.partition(" -> ")
    old, new = (text.replace("¶", "\n").replace("‹", "\r") for text in texts.split(" => "))
    report, found = check(tmp_path, entry(changed(runs(), (old, new)), bytes_total=None))
    if wanted == "none":
        assert name not in found and answer_of(report) == "OK"
        return
    verdict, _, number = wanted.partition(" ")
    assert found[name].verdict == verdict, found[name]
    assert not number or found[name].number == pytest.approx(float(number))
    answers = {"SUSPICION": "NOT PROVEN", "CONSISTENT": "OK"}
    assert answer_of(report) == answers.get(verdict, verdict)


PREFIXES = "[rank0]: |[default0]:|0: |2026-03-26 10:00:00,123 INFO: |[2026-03-26T10:00:00Z] |"
PREFIXES += "2026-03-26 10:00:00,123 - INFO - |[10:00:00] |INFO: |\x1b[32m|\x1b[2m[rank0]:\x1b[0m "


@pytest.mark.parametrize("prefix", PREFIXES.split("|"))
def test_what_launchers_and_terminals_add(tmp_path, prefix):
    logs = runs(trained=590_000, middle=TEXTS["HESSIANS"])
    logs = {name: re.sub("(?m)^(?=.)", prefix, text) for name, text in logs.items()}
    report, found = check(tmp_path, entry(logs))
    assert answer_of(report) == "OK" and found["val_bpb"].number == 1.12
    times = [found[name].number for name in ("training time", "calibration", "evaluation time")]
    assert times == [590, 4.1, 400]


def test_names_of_logs(tmp_path):
    for name in ("train.log", "train.LOG", "train_log", "log_seed1", "a/b.txt", "out.tsv"):
        _, found = check(tmp_path / name[:5], entry({name: Run().text()}))
        assert found["val_bpb"].verdict == "CONSISTENT"
    for name in ("requirements.txt", "train.md", "logistics", "train.json"):
        _, found = check(tmp_path / name[-4:], entry({name: Run().text()}))
        assert found["val_bpb"].verdict == "NOT CHECKABLE"


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_codings_and_windows_line_ends(tmp_path, coding):
    text = Run(head="café\n").text().replace("\n", "\r\n")
    _, found = check(tmp_path, entry({"train.log": text.encode(coding)}))
    assert found["val_bpb"].verdict == found["training time"].verdict == "CONSISTENT"


SOURCE = '''"""Its own text looks like a log.

final_exact val_loss:0.50000000 val_bpb:0.30000000
Total submission size: 99999999 bytes
"""
import os
def main():
    log0(f"train_time:{1000 * 700:.0f}ms")
    # final_exact val_loss:0.4 val_bpb:0.2, world_size:4
'''


@pytest.mark.parametrize("ends", ["=" * 60 + "\n", "Running Python 3.11\n", ""])
@pytest.mark.parametrize("times", [1, 2])
def test_the_source_in_a_log_states_nothing(tmp_path, ends, times):
    report, found = check(tmp_path, entry(runs(head=(SOURCE + ends) * times)))
    assert answer_of(report) == "OK"
    assert (found["size"].number, found["hardware"].detail[:14]) == (15_900_198, "world size [8]")


def test_several_runs_in_a_file_and_a_run_in_several(tmp_path):
    for bpb in SEEDS.values():
        logs = {"train.log": "".join(runs().values())}
        report, found = check(tmp_path, entry(logs, val_bpb=bpb, seeds=None))
        assert found["val_bpb"].verdict == "CONSISTENT" and found["val_bpb"].number == bpb
    assert answer_of(report) == "OK"  # of the last run, whose evaluation has its time there
    logs = {name: text * 2 for name, text in runs().items()}
    report = check_folder(write(tmp_path, entry(logs | {"train.log": runs()["train_seed1.log"]})))
    assert answer_of(report) == "OK" and [run.seed for run in report.runs] == [1, 2, 3]


def test_an_evaluation_has_a_log_of_its_own(tmp_path):
    logs = without(runs(), "^final")
    for name, text in runs().items():
        logs[name.replace("train", "eval")] = "".join(re.findall("(?m)^(?:seed|final).*\n", text))
    report, found = check(tmp_path, entry(logs))
    assert answer_of(report) == "OK" and found["training time"].number == 599


def test_all_segments_of_a_resumed_run_count(tmp_path):
    """The second one runs on eight GPUs of the right kind."""
    first = "NVIDIA A100\nworld_size:4\nseed:1\nstep:9/20000 train_loss:2 train_time:9ms\n"
    logs = {"train.log": first + Run(head="resumed\nNVIDIA H100\n").text()}
    _, found = check(tmp_path, entry(logs))
    assert found["hardware"].verdict == "SUSPICION"
    assert found["hardware"].detail == "world size [4, 8], GPU A100, H100"


def test_a_line_is_read_to_4000_characters(tmp_path):
    path = tmp_path / "train.log"
    for spaces, there in ((3_986, [1.12]), (3_987, [1.1])):
        path.write_text(" " * spaces + "x val_bpb:1.12\n")
        assert [score.bpb for score in read_log(path, "x").scores] == there
    path.write_bytes(b"a\0b\n\n\x1b[31mc\rd  \n")
    assert [tuple(row) for row in read_lines(path)] == [(1, "ab"), (3, "c"), (3, "d")]
