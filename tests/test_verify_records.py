"""records/check.py on record folders made here in the shapes that real entries use: each verdict
and its number."""

import base64
import hashlib
import json
import lzma
import math
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import verify
from records import check as records_check
from records import logs as records_logs
from records.check import CONSISTENT, FAILED, NOT_CHECKABLE, PROVEN, SUSPICION, Finding
from records.programs import LEARNS_UNSCORED

BYTES_PER_TOKEN = records_check.SPLIT_BYTES / 62_021_632
SCRIPT = '''"""A script whose own text looks like a log.

final_int8_zlib_roundtrip_exact val_loss:0.50000000 val_bpb:0.30000000
Total submission size int8+zlib: 99999999 bytes
"""
import os
import sys


def validate(model, val_tokens):
    loss_sum, byte_count = 0.0, 1.0
    for x in val_tokens:
        loss_sum += model(x)
    return loss_sum, loss_sum / byte_count


def main():
    seed = int(os.environ.get("SEED", 1337))
    log0(f"seed:{seed}")
    val_loss, val_bpb = validate(model, val_tokens)
    # final_int8_zlib_roundtrip_exact val_loss:0.4 val_bpb:0.2
    log0(f"final_int8_zlib_roundtrip_exact val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}")
    log0(f"train_time:{1000 * 700:.0f}ms")


if __name__ == "__main__":
    main()
    sys.exit(0)
'''


def nats(bpb: float) -> float:
    """val_loss that goes with bits per byte, for the challenge's tokenizer and the whole split."""
    return bpb * math.log(2) * BYTES_PER_TOKEN


def log_text(  # noqa: PLR0913 - each is what some test changes
    seed=1337,
    bpb=1.12,
    script=SCRIPT,
    rule=True,
    model=15_800_000,
    code=None,
    tokens=62_021_632,
    stop=600_055,
    loss=None,
    eval_ms=76_000,
    world=8,
    settings="",
    after_stop="",
    last="",
) -> str:
    """A log as the challenge's script writes it."""
    code = len(script.encode()) if code is None else code
    loss = nats(bpb) if loss is None else loss
    scale = loss / bpb
    last_step = f"val_bpb:{bpb + 0.02:.4f} train_time:{stop}ms step_avg:83.00ms"
    return f"""{script}{"=" * 100 if rule else ""}
Running Python 3.11.9
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:18:00.0 Off |                    0 |
val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model
val_loader:shards pattern=./data/datasets/fineweb10B_sp1024/fineweb_val_*.bin tokens:{tokens}
model_params:26928220
world_size:{world} grad_accum_steps:1
train_batch_tokens:786432 train_seq_len:2048 matrix_lr:0.025 max_wallclock_seconds:600.000
{settings}seed:{seed}
step:0/20000 val_loss:{4.1 * scale:.4f} val_bpb:4.1000 train_time:0ms step_avg:0.02ms
step:1000/20000 train_loss:2.1000 train_time:83000ms step_avg:83.00ms
step:7000/20000 val_loss:{(bpb + 0.02) * scale:.4f} {last_step}
stopping_early: wallclock_cap train_time:{stop}ms step:7000/20000
{after_stop}Serialized model: 106027446 bytes
Code size: {code} bytes
Total submission size: {106027446 + code} bytes
Serialized model int6+lzma: {model} bytes
Total submission size int6+lzma: {model + code} bytes
final_int6_roundtrip val_loss:{(bpb + 0.01) * scale:.4f} val_bpb:{bpb + 0.01:.4f} eval_time:6000ms
final_int6_roundtrip_exact val_loss:{(bpb + 0.01) * scale:.8f} val_bpb:{bpb + 0.01:.8f}
final_int6_sliding_window val_loss:{loss:.4f} val_bpb:{bpb:.4f} stride:64 eval_time:{eval_ms}ms
final_int6_sliding_window_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}
{last}"""


SCORES = {1337: 1.1211, 42: 1.1223, 2025: 1.1217}


def make(
    folder: Path,
    logs=None,
    submission=None,
    script=SCRIPT,
    readme="# Entry: val_bpb 1.1217\n",
    **files,
) -> Path:
    """A record folder, as it should be but for what the arguments change; files: name__suffix =
    content."""
    folder = folder / "track_10min_16mb" / "2026-03-23_Entry"
    folder.mkdir(parents=True, exist_ok=True)
    if logs is None:
        logs = {f"train_seed{seed}.log": log_text(seed, bpb) for seed, bpb in SCORES.items()}
    if submission is None:
        submission = {
            "val_bpb": 1.1217,
            "seeds": list(SCORES),
            "bytes_total": 15_800_000 + len(SCRIPT),
        }
    for name, text in {**logs, **{k.replace("__", "."): v for k, v in files.items()}}.items():
        (folder / name).write_text(text)
    if script is not None:
        (folder / "train_gpt.py").write_text(script)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    if submission is not False:
        (folder / "submission.json").write_text(
            submission if isinstance(submission, str) else json.dumps(submission)
        )
    return folder


def check(folder: Path, against: str | None = None) -> dict[str, Finding]:
    """Findings by the name of their check; a pattern by what it is."""
    found = records_check.check_folder(folder, against)
    return {f.detail if f.check == "pattern" else f.check: f for f in found}


def verdicts(folder: Path, *verdicts: str) -> set[str]:
    return {name for name, finding in check(folder).items() if finding.verdict in verdicts}


def test_a_good_folder(tmp_path):
    found = check(make(tmp_path))
    assert not {
        name for name, f in found.items() if f.verdict in (FAILED, SUSPICION, NOT_CHECKABLE)
    }
    score = found["val_bpb"]
    assert (
        score.number == pytest.approx(1.1217)
        and "the mean of the last final lines of 3 logs" in score.detail
    )
    assert "train_seed42.log:" in score.detail and "final_int6_sliding_window_exact" in score.line
    assert found["size"].number == 15_800_000 + len(SCRIPT)
    assert found["training time"].number == 600.055 and found["evaluation time"].number == 82
    assert found["split"].number == pytest.approx(151_080_000, abs=5_000)
    assert found["seeds"].number == 3 and found["hardware"].number == 8
    assert found["script"].verdict == PROVEN and found["script"].number == 3


# ---------------------------------------------------------------- files and submission.json


@pytest.mark.parametrize(
    "changes, lacking",
    [
        (dict(readme=None), "README.md"),
        (dict(logs={}), "a train log"),
        (dict(script=None), "a script"),
        (dict(script=""), "a script"),
    ],
)
def test_missing_files(tmp_path, changes, lacking):
    finding = check(make(tmp_path, **changes))["files"]
    assert finding.verdict == FAILED and lacking in finding.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "nul",
        '{"val_bpb": 1.1217}}',
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000,
        "1" * 6_000,
    ],
)
def test_submission_that_cannot_be_used(tmp_path, text):
    assert check(make(tmp_path, submission=text))["submission.json"].verdict == FAILED


def test_submission_missing_or_under_another_name(tmp_path):
    assert check(make(tmp_path, submission=False))["submission.json"].verdict == FAILED
    (tmp_path / "track_10min_16mb/2026-03-23_Entry/submission_ternary.json").write_text(
        '{"val_bpb": 1.1217}'
    )
    assert check(make(tmp_path, submission=False))["val_bpb"].verdict == CONSISTENT


@pytest.mark.parametrize(
    "claim",
    [
        1.1217,
        "1.1217",
        "1.1217 (3 seeds)",
        [1.1211, 1.1223, 1.1217],
        {"1337": 1.1211, "42": 1.1223, "2025": 1.1217},
        {"seed_42": 1.2, "mean": 1.1217, "std": 0.0005},
        1.12,
        1.122,
    ],
)
def test_types_of_val_bpb(tmp_path, claim):
    text = "\ufeff" + json.dumps({"val_bpb": claim})  # with a byte order mark
    assert check(make(tmp_path, submission=text))["val_bpb"].verdict == CONSISTENT


@pytest.mark.parametrize(
    "claim", [None, "pending", [], {}, True, {"a": {}}, float("nan"), float("inf"), "1e999"]
)
def test_val_bpb_that_is_no_number(tmp_path, claim):
    assert check(make(tmp_path, submission={"val_bpb": claim}))["val_bpb"].verdict == NOT_CHECKABLE


# ---------------------------------------------------------------- val_bpb


@pytest.mark.parametrize(
    "claim, verdict",
    [
        (1.1223, CONSISTENT),  # one of the logs
        (1.1317, CONSISTENT),  # the mean of another final line, of the plain evaluation
        (1.1423, SUSPICION),  # a validation during training
        (1.125, SUSPICION),  # nothing, but not below the logs
        (1.0487, FAILED),  # below every line
    ],
)
def test_val_bpb_against_the_logs(tmp_path, claim, verdict):
    finding = check(make(tmp_path, submission={"val_bpb": claim, "seeds": list(SCORES)}))["val_bpb"]
    assert finding.verdict == verdict and finding.number == pytest.approx(claim, abs=1e-4)


def test_an_unmatched_claim_is_no_failure_where_its_number_may_be_elsewhere(tmp_path):
    below = {"val_bpb": 1.0487}
    assert (
        check(make(tmp_path, submission=below, results__csv="42,1.0487\n"))["val_bpb"].verdict
        == SUSPICION
    )
    unlogged = {"val_bpb": 1.0487, "seeds": [*SCORES, 7]}
    assert check(make(tmp_path / "b", submission=unlogged))["val_bpb"].verdict == SUSPICION


def test_each_seed_result_in_a_log(tmp_path):
    """A mean over logs of two experiments is only found through its seed results."""
    runs = {"a_seed1": 1.1003, "a_seed2": 1.1517, "b_seed1": 1.2041, "b_seed2": 1.2599}
    logs = {f"{name}.log": log_text(int(name[-1]), bpb) for name, bpb in runs.items()}
    claim = {
        "val_bpb": 1.1801,
        "seed_results": {"1": {"val_bpb": 1.1003}, "2": {"val_bpb": "1.2599"}},
    }
    finding = check(make(tmp_path, logs=logs, submission=claim))["val_bpb"]
    assert finding.verdict == CONSISTENT and "seed results" in finding.detail


def test_the_closest_explanation_is_taken(tmp_path):
    """1.1929 is one log's score to the digit; the mean of the four, 1.1928, is one unit away."""
    scores = (1.1935, 1.1927, 1.1921, 1.1929)
    logs = {f"{i}.log": f"final_ttt val_loss:2.0 val_bpb:{bpb}\n" for i, bpb in enumerate(scores)}
    finding = check(make(tmp_path, logs=logs, submission={"val_bpb": 1.1929}))["val_bpb"]
    assert finding.line.startswith("3.log:1") and "one of 4 logs" in finding.detail


def test_only_the_last_final_line_counts_in_other_formats(tmp_path):
    last = "legal_ttt val_loss:1.8800 val_bpb:1.1100 eval_time:408049ms\n"
    last += "  quantized bpb = 1.11003333\n"
    found = check(
        make(tmp_path, logs={"train.txt": log_text(last=last)}, submission={"val_bpb": 1.11})
    )
    assert found["val_bpb"].verdict == CONSISTENT
    assert found["evaluation time"].number == pytest.approx(6 + 76 + 408.049)


@pytest.mark.parametrize("claim, verdict", [(1.1217, CONSISTENT), (1.1223, SUSPICION)])
def test_readme(tmp_path, claim, verdict):
    readme = "# Entry\n\nval_bpb: **1.1217** (mean)\n"
    finding = check(make(tmp_path, submission={"val_bpb": claim}, readme=readme))["README"]
    assert finding.verdict == verdict and (
        verdict == SUSPICION or finding.line == "README.md:3: 1.1217"
    )


@pytest.mark.parametrize("rule", [True, False])
def test_source_text_is_set_aside(tmp_path, rule):
    """Numbers in the source's docstring and comments are no results; without the rule of '=' log
    lines end it."""
    folder = make(tmp_path, logs={"train.log": log_text(rule=rule)}, submission={"val_bpb": 1.12})
    log = records_logs.read_log(folder / "train.log", "train.log")
    assert "\n".join(log.sources[0]).strip() == SCRIPT.strip()
    assert [line.bpb for line in log.lines] == [1.13, 1.13, 1.12, 1.12]
    assert (
        log.last("total_bytes") == 15_800_000 + len(SCRIPT)
        and max(log.facts["train"])[0] == 600.055
    )


def test_source_in_the_middle_and_twice(tmp_path):
    text = (
        "====================\nHyperparameters:\n  matrix_lr: 0.02\n  seed: 42\n" + log_text(42) * 2
    )
    folder = make(tmp_path, logs={"train.log": text}, submission={"val_bpb": 1.12})
    found = check(folder)
    assert found["val_bpb"].verdict == CONSISTENT and found["script"].verdict == PROVEN


def test_utf16_and_windows_line_ends(tmp_path):
    folder = make(tmp_path, submission={"val_bpb": 1.12}, logs={})
    (folder / "train.log").write_bytes(log_text().replace("\n", "\r\n").encode("utf-16"))
    assert check(folder)["val_bpb"].verdict == CONSISTENT


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "model, code, verdict, number",
    [
        (15_990_000, None, CONSISTENT, 15_990_000 + len(SCRIPT)),
        (
            15_990_000,
            80_000,
            SUSPICION,
            16_070_000,
        ),  # over as logged, but the folder's code would fit
        (
            15_999_400,
            None,
            SUSPICION,
            15_999_400 + len(SCRIPT),
        ),  # over, but not with the code compressed
        (15_999_900, None, FAILED, 15_999_900 + len(SCRIPT)),  # over however the code is compressed
        (16_500_000, None, FAILED, 16_500_000 + len(SCRIPT)),
    ],
)
def test_size(tmp_path, model, code, verdict, number):
    logs = {"train_seed1.log": log_text(1), "train_seed2.log": log_text(2, model=model, code=code)}
    finding = check(make(tmp_path, logs=logs, submission={"val_bpb": 1.12}))["size"]
    assert (finding.verdict, finding.number) == (
        verdict,
        number,
    ) and finding.line == "train_seed2.log"


def test_code_that_is_not_counted(tmp_path):
    script = SCRIPT.replace("import sys\n", "import sys\n\nimport helper\n")
    logs = {"train.log": log_text(script=script)}
    folder = make(
        tmp_path, logs=logs, script=script, helper__py="x = 1\n" * 999, submission={"val_bpb": 1.12}
    )
    finding = check(folder)["size"]
    assert finding.verdict == SUSPICION and "not counted: helper.py" in finding.detail


def test_logs_without_sizes(tmp_path):
    logs = {"train.log": "final_exact val_loss:1.89 val_bpb:1.12\n"}
    assert check(make(tmp_path, logs=logs))["size"].verdict == NOT_CHECKABLE


@pytest.mark.parametrize(
    "claim, verdict",
    [
        (15_800_000 + len(SCRIPT), CONSISTENT),
        ("15,800,000", CONSISTENT),
        (15_999_999, CONSISTENT),
        (15_100_000, SUSPICION),
        (16_000_001, SUSPICION),
        (16_001_000, FAILED),
        (None, NOT_CHECKABLE),
    ],
)
def test_claimed_bytes(tmp_path, claim, verdict):
    assert (
        check(make(tmp_path, submission={"val_bpb": 1.1217, "bytes_total": claim}))[
            "bytes_total"
        ].verdict
        == verdict
    )


def test_artifact_in_the_folder(tmp_path):
    """Its size against the logs here; its content is checked as an artifact, and its claim is
    submission.json's."""
    folder = make(tmp_path, artifact__pcll="x" * 100)
    assert check(folder)["artifact bytes"].verdict == FAILED
    (folder / "train_seed42.log").write_text(log_text(42, SCORES[42], model=100))
    assert check(folder)["artifact bytes"].verdict == CONSISTENT, "no log states its sha256"
    sha256 = hashlib.sha256(b"x" * 100).hexdigest()
    stated = log_text(42, SCORES[42], model=100, last=f"sha256: {sha256}\n")
    (folder / "train_seed42.log").write_text(stated)
    assert check(folder)["artifact bytes"].verdict == PROVEN
    assert records_check.submitted_scores(folder) == [1.1217]
    assert records_check.submitted_scores(tmp_path) == []


@pytest.mark.parametrize(
    "headline, claims", [(1.15, [1.1, 1.2]), (1.1502, [1.1, 1.2]), (1.05, [1.05])]
)
def test_an_artifact_answers_for_the_headline_unless_that_is_its_seeds_mean(
    tmp_path, headline, claims
):
    submission = {
        "val_bpb": headline,
        "seed_results": {"1": {"val_bpb": 1.1}, "2": {"val_bpb": 1.2}},
    }
    assert records_check.submitted_scores(make(tmp_path, submission=submission)) == claims


# ---------------------------------------------------------------- times and hardware


def one(tmp_path: Path, track="track_10min_16mb", **changes) -> dict[str, Finding]:
    return check(
        make(
            tmp_path,
            logs={"train.log": log_text(**changes)},
            submission={"val_bpb": 1.12, "track": track},
        )
    )


@pytest.mark.parametrize(
    "changes, verdict",
    [
        (dict(stop=599_900), CONSISTENT),
        (dict(stop=600_900), CONSISTENT),
        (dict(stop=615_000), FAILED),
        (dict(stop=615_000, world=1), CONSISTENT),  # 615 of 4,800 GPU-seconds
        (dict(stop=1_410_000, world=4), SUSPICION),
        (dict(stop=4_000_000, track="non-record-unlimited-compute-16mb"), NOT_CHECKABLE),
    ],
)
def test_training_time(tmp_path, changes, verdict):
    finding = one(tmp_path, **changes)["training time"]
    assert finding.verdict == verdict and finding.number == changes["stop"] / 1000


def test_training_time_in_minutes(tmp_path):
    log = "world_size: 8\n4500/20000 train_loss: 2.1 train_time: 19.8m tok/s: 297163\n"
    log += "final val_loss:1.9 val_bpb:1.12\n"
    finding = check(make(tmp_path, logs={"train.log": log}, submission={"val_bpb": 1.12}))[
        "training time"
    ]
    assert finding.verdict == FAILED and finding.number == pytest.approx(1188)


@pytest.mark.parametrize(
    "eval_ms, verdict", [(593_000, CONSISTENT), (599_000, FAILED), (687_404, FAILED)]
)
def test_evaluation_time(tmp_path, eval_ms, verdict):
    """The plain pass over the quantised model takes 6 s, and the log says so twice."""
    finding = one(tmp_path, eval_ms=eval_ms)["evaluation time"]
    assert finding.verdict == verdict and finding.number == pytest.approx(eval_ms / 1000 + 6)


def evaluation(tmp_path: Path, *lines: str, **changes) -> Finding:
    """The finding on a log that ends in these lines, after passes of 6 s and of 76 s."""
    return one(tmp_path, last="\n".join(lines) + "\n", **changes)["evaluation time"]


def test_passes_that_are_too_long_together(tmp_path):
    sliding = "final_sliding val_loss:1.8793 val_bpb:1.1118 eval_time:300000ms"
    adapted = "final_ttt_exact val_loss:1.88 val_bpb:1.1100 eval_time:299600ms"
    found = evaluation(tmp_path, sliding, adapted)
    assert found.verdict == FAILED and found.number == pytest.approx(681.6)
    assert "6.0 + 76.0 + 300.0 + 299.6 = 681.6 s" in found.detail
    assert found.line.endswith(sliding), "the longest one is quoted"
    assert evaluation(tmp_path / "b", sliding).verdict == CONSISTENT
    assert evaluation(tmp_path / "c", adapted).verdict == CONSISTENT
    alone = evaluation(tmp_path / "d", sliding, adapted, world=1)
    assert alone.verdict == CONSISTENT and "682 of 4,800 GPU-seconds" in alone.detail
    other = evaluation(tmp_path / "e", sliding, adapted, track="non_record_16mb")
    assert other.verdict == NOT_CHECKABLE and other.number == pytest.approx(681.6)


def test_a_pass_that_is_printed_twice_counts_once(tmp_path):
    once = "final_ttt val_loss:1.8800 val_bpb:1.1100 eval_time:400000ms"
    again = "final_ttt_exact val_loss:1.88000000 val_bpb:1.11003333 eval_time:400000ms"
    found = evaluation(tmp_path, once, again)
    assert found.verdict == CONSISTENT and found.number == pytest.approx(482)
    outside = again.replace("400000", "400400")  # the same, with what is around it
    assert evaluation(tmp_path / "c", once, outside).number == pytest.approx(482.4)
    assert evaluation(tmp_path / "d", outside, once).number == pytest.approx(482.4)
    other = again.replace("1.1100", "1.1098")  # another pass, which took as long
    assert evaluation(tmp_path / "b", once, other).number == pytest.approx(882)


def test_validations_during_training_are_no_evaluation(tmp_path):
    """Nor are the last one, at the stop, and the progress of a pass."""
    validation = "step:{}/20000 val_loss:2.0 val_bpb:1.2 train_time:9ms eval_time:590000ms\n"
    text = log_text(settings="".join(validation.format(step) for step in (1000, 2000)))
    text = text.replace("stopping_early", validation.format(7000) + "stopping_early")
    text += "ttt_chunk [10/1893] val_bpb:1.1300 eval_time:590000ms\n"
    folder = make(tmp_path, logs={"train.log": text}, submission={"val_bpb": 1.12})
    found = check(folder)["evaluation time"]
    assert found.verdict == CONSISTENT and found.number == pytest.approx(590)
    text = text.replace("ttt_chunk [10/1893] val_bpb:1.1300 eval_time:590000ms\n", "")
    folder = make(tmp_path / "b", logs={"train.log": text}, submission={"val_bpb": 1.12})
    found = check(folder)["evaluation time"]
    assert found.verdict == CONSISTENT and found.number == pytest.approx(82)


def test_a_validation_on_a_line_of_its_own_is_no_evaluation(tmp_path):
    """What is evaluated before a further step was a validation, however its line begins."""
    validation = "plain val_loss:2.0 val_bpb:1.2000 eval_time:590000ms\n"
    text = log_text().replace("step:7000", validation + "step:7000", 1)
    folder = make(tmp_path, logs={"train.log": text}, submission={"val_bpb": 1.12})
    found = check(folder)["evaluation time"]
    assert found.verdict == CONSISTENT and found.number == pytest.approx(82)


def test_a_total_of_the_evaluation_is_used_alone(tmp_path):
    found = evaluation(tmp_path, "eval_total_time:123456ms")
    assert found.verdict == CONSISTENT and found.number == pytest.approx(123.456)
    assert "eval_total_time" in found.detail and found.line.endswith("eval_total_time:123456ms")
    found = evaluation(tmp_path / "b", "eval_total_time:604300ms")
    assert found.verdict == FAILED and found.number == pytest.approx(604.3)
    found = evaluation(tmp_path / "c", "eval_total_time:600000ms", eval_ms=599_000)
    assert found.verdict == CONSISTENT, "it, and not the sum of 605 s"


def test_diagnostics_after_the_total_are_no_part_of_it(tmp_path):
    """The order of train_gpt.py's log: the headline's total, then other passes."""
    after = (
        "eval_total_time:90000ms\n"
        "NOT LEGAL (trained on the tokens it scores) train_then_score val_loss:1.77000000 "
        "val_bpb:1.04870000 val_tokens:9 bytes:9 eval_time:95000ms\n"
        "  after export, plain                            1.1300 bpb     99.0 s diagnostic"
    )
    found = evaluation(tmp_path, after)
    assert found.verdict == CONSISTENT and found.number == 90


def test_a_total_that_is_less_than_one_pass_is_not_believed(tmp_path):
    found = evaluation(tmp_path, "eval_total_time:50000ms")
    assert found.verdict == SUSPICION and found.number == pytest.approx(82)
    assert "6.0 + 76.0 = 82.0 s; its eval_total_time says 50.0 s" in found.detail
    assert evaluation(tmp_path / "b", "eval_total_time:1ms", eval_ms=650_000).verdict == FAILED


def test_a_diagnostic_may_take_longer(tmp_path):
    """A pass of another score over the limit, one that its label sets apart, one of no score."""
    other = "final_mixed val_loss:1.9512 val_bpb:1.1600 eval_time:650000ms"
    last = "final_exact val_loss:1.8838 val_bpb:1.1200"
    assert evaluation(tmp_path, other, last).verdict == NOT_CHECKABLE
    label = "diagnostic quantized val_loss:1.9512 val_bpb:1.1600 eval_time:599000ms"
    assert evaluation(tmp_path / "b", label).verdict == CONSISTENT
    unnamed = evaluation(tmp_path / "c", "eval_time:650000ms")
    assert unnamed.verdict == NOT_CHECKABLE and unnamed.number == 650


def test_a_slow_pass_fails_whatever_its_last_decimal(tmp_path):
    log = log_text(bpb=1.0897, eval_ms=687_404)
    found = check(make(tmp_path, logs={"train.log": log}, submission={"val_bpb": 1.0897}))
    assert found["evaluation time"].verdict == FAILED


@pytest.mark.parametrize(
    "stop, line, verdict, number",
    [
        (588_000, "GPTQ:collected 67 Hessians in 11.3s", CONSISTENT, 11.3),
        (600_055, "GPTQ:collected 67 Hessians in 11.3s", SUSPICION, 11.3),
        (600_055, "gptq:calibrating with 256 batches...", SUSPICION, None),
        (600_055, "gptq:generated 64 calibration sequences in 196.5s", CONSISTENT, 196.5),
    ],
)
def test_calibration_after_the_stop(tmp_path, stop, line, verdict, number):
    finding = one(tmp_path, stop=stop, after_stop=line + "\n")["calibration"]
    assert (finding.verdict, finding.number) == (verdict, number) and line in finding.line


def test_calibration_after_the_last_step_of_all(tmp_path):
    log = log_text(stop=590_000, after_stop="calibration_time:60000ms\n").replace(
        "step:7000/20000", "step:20000/20000"
    )
    log = "".join(line for line in log.splitlines(True) if not line.startswith("stopping_early"))
    finding = check(
        make(
            tmp_path,
            logs={"train.log": log},
            submission={"val_bpb": 1.12, "track": "track_10min_16mb"},
        )
    )
    assert finding["calibration"].verdict == SUSPICION and finding["calibration"].number == 60


def test_a_slow_first_step_gives_no_more_time(tmp_path):
    log = log_text(stop=655_000).replace(
        "train_time:83000ms step_avg:83.00", "train_time:83000ms step_avg:60000.00"
    )
    found = check(
        make(
            tmp_path,
            logs={"train.log": log},
            submission={"val_bpb": 1.12, "track": "track_10min_16mb"},
        )
    )
    assert found["training time"].verdict == FAILED


def test_lines_of_resumed_and_of_measured_runs(tmp_path):
    """Checkpoints, a resumption, the speed of a step and a calibration time change no finding of a
    good folder."""
    begin = "resumed from checkpoint.pt at step 120\ncheckpoint: step 120 saved\n"
    logs = {}
    for seed, bpb in SCORES.items():
        settings = begin.replace("120", "240") if seed == 42 else begin
        text = log_text(
            seed, bpb, stop=590_000, settings=settings, after_stop="calibration_time:1234ms\n"
        )
        logs[f"train_seed{seed}.log"] = text.replace(
            "step_avg:83.00ms", "step_avg:83.00ms tok_s:9475180 mfu:0.413"
        )
    found, plain = check(make(tmp_path, logs=logs)), check(make(tmp_path / "b"))
    calibration = found.pop("calibration")
    assert calibration.verdict == CONSISTENT and calibration.number == 1.234
    assert {name: f.verdict for name, f in found.items()} == {
        name: f.verdict for name, f in plain.items()
    }
    assert found["settings"].number == 0 and found["val_bpb"].number == plain["val_bpb"].number
    before = log_text(stop=600_055).replace(
        "stopping_early", "calibration_time:9000ms\nstopping_early"
    )
    assert "calibration" not in check(make(tmp_path / "c", logs={"a.log": before}))


def test_hardware(tmp_path):
    assert one(tmp_path, world=4)["hardware"].verdict == SUSPICION
    assert one(tmp_path / "b", world=1, track="non_record_16mb")["hardware"].verdict == CONSISTENT


# ---------------------------------------------------------------- byte identity


@pytest.mark.parametrize(
    "changes, verdict, held",
    [
        ({}, CONSISTENT, 151_080_000),
        (
            dict(loss=nats(1.12) * 1.17),
            FAILED,
            176_763_600,
        ),  # leading spaces counted twice, in every line
        (dict(tokens=1_048_576), FAILED, 2_554_235),  # a part of the split
        (
            dict(tokens=63_779_840, loss=nats(1.12) * 1.0026),
            SUSPICION,
            155_766_593,
        ),  # another split
        (dict(tokens=0), CONSISTENT, 151_080_000),  # no count, the usual bytes a token
        (dict(tokens=0, loss=nats(1.12) * 1.06), SUSPICION, 160_144_800),
        (
            dict(last="final_mixed_exact val_loss:1.89123456 val_bpb:0.99000000\n"),
            SUSPICION,
            170_936_000,
        ),  # of a mixture
    ],
)
def test_split(tmp_path, changes, verdict, held):
    log = log_text(**changes).replace(" tokens:0\n", "\n")
    bpb = 0.99 if "last" in changes else 1.12
    finding = check(make(tmp_path, logs={"train.log": log}, submission={"val_bpb": bpb}))["split"]
    assert finding.verdict == verdict and finding.number == pytest.approx(held, rel=1e-3)


def test_a_part_of_the_split_is_stated_of_what_claims_no_record(tmp_path):
    log = log_text(tokens=1_048_576)
    finding = check(
        make(
            tmp_path,
            logs={"train.log": log},
            submission={"val_bpb": 1.12, "track": "non_record_16mb"},
        )
    )
    assert finding["split"].verdict == SUSPICION and "a part of it" in finding["split"].detail


def test_split_of_another_tokenizer(tmp_path):
    log = "vocab_size: 8192\nval_tokens: 47851520\n"
    log += "quantized_ttt val_loss:2.32239991 val_bpb:1.06124613\n"
    finding = check(make(tmp_path, logs={"train.log": log}, submission={"val_bpb": 1.0612}))[
        "split"
    ]
    assert finding.verdict == CONSISTENT and finding.number == pytest.approx(151_080_000, rel=1e-3)


# ---------------------------------------------------------------- seeds, settings, script


def test_seeds(tmp_path):
    def seeds(name: str, logs: dict, **submission) -> Finding:
        return check(make(tmp_path / name, logs=logs, submission={"val_bpb": 1.12} | submission))[
            "seeds"
        ]

    two = {"train_seed1.log": log_text(1, 1.121), "train_seed2.log": log_text(2, 1.119)}
    assert seeds("distinct", two, seeds=[1, 2]).verdict == CONSISTENT
    missing = seeds("missing", two, seeds={"1": {}, "2": {}, "3": {}})
    assert missing.verdict == FAILED and "[3]" in missing.detail and missing.number == 2
    assert seeds("mistyped", two, seeds=[1, 3]).verdict == SUSPICION
    again = {"a.log": log_text(1, 1.121), "b.log": log_text(1, 1.119)}
    assert seeds("twice", again).verdict == SUSPICION and seeds("twice", again).number == 1
    misnamed = seeds(
        "misnamed", {"train_seed1.log": log_text(1), "train_seed_2.log": log_text(3, 1.1)}
    )
    assert misnamed.verdict == SUSPICION and "train_seed_2.log" in misnamed.detail
    assert seeds("none", {"a.log": log_text().replace("seed:1337", "")}).verdict == NOT_CHECKABLE


def test_a_copy_of_a_log_is_not_a_second_run(tmp_path):
    logs = {"train.log": log_text(), "train_seed1337.log": log_text()}
    found = check(make(tmp_path, logs=logs, submission={"val_bpb": 1.12}))
    assert found["seeds"].verdict == CONSISTENT and found["seeds"].number == 1


def test_settings_differ(tmp_path):
    logs = {
        f"seed{s}.log": log_text(s, 1.118 + s / 1000, settings=f"ttt_lr:{0.001 * s}\nrun_id:{s}\n")
        for s in (1, 2)
    }
    finding = check(make(tmp_path, logs=logs, submission={"val_bpb": 1.1195}))["settings"]
    assert (
        finding.verdict == SUSPICION
        and finding.number == 1
        and "ttt_lr 0.001 / 0.002" in finding.detail
    )


def test_embedded_script(tmp_path):
    comments = SCRIPT.replace("    main()", "    # a remark\n    main( )")
    assert check(make(tmp_path, script=comments))["script"].verdict == PROVEN
    changed = SCRIPT.replace('SEED", 1337', 'SEED", 42')
    finding = check(make(tmp_path, script=changed))["script"]
    assert finding.verdict == SUSPICION and finding.number == 2  # one line there, one here
    assert (
        check(make(tmp_path / "b", logs={"a.log": log_text(script="")}))["script"].verdict
        == NOT_CHECKABLE
    )


# ---------------------------------------------------------------- significance


@pytest.mark.parametrize(
    "against, verdict, number",
    [
        ("1.1304,1.1296,1.1300", CONSISTENT, 0.01401),
        ("1.1300", CONSISTENT, 0.01401),
        ("1.1250", FAILED, 0.00557),  # enough, but not surely
        ("1.1220", FAILED, 0.00051),
        ("1.1100", FAILED, -0.01976),
    ],
)
def test_significance(tmp_path, against, verdict, number):
    finding = check(make(tmp_path), against)["significance"]
    assert finding.verdict == verdict and finding.number == pytest.approx(number, abs=2e-5)


def test_significance_of_one_run_and_of_bad_scores(tmp_path):
    folder = make(tmp_path, logs={"train.log": log_text()}, submission={"val_bpb": 1.12})
    assert check(folder, "1.13,1.14")["significance"].verdict == NOT_CHECKABLE
    assert check(folder, "1.121")["significance"].verdict == FAILED
    for bad in ("1.13,x", "1.13,", "1e300,1.1", "nan", "-1"):
        with pytest.raises(records_check.UnusableInput, match="--against takes"):
            check(folder, bad)


SAMPLES = st.lists(st.floats(1.0, 1.3).map(lambda x: round(x, 4)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(SAMPLES, SAMPLES.filter(lambda b: len(set(b)) > 1), st.sampled_from([0.0, 0.005]))
def test_p_values_against_scipy(a, b, margin):
    stats = pytest.importorskip("scipy.stats")
    shifted = [x - margin for x in a]
    if len(a) == 1:
        expected = stats.ttest_1samp(b, shifted[0], alternative="less").pvalue
    elif len(set(a)) == 1:  # scipy's p is the same, with a warning
        expected = stats.ttest_1samp(b, shifted[0], alternative="less").pvalue
    else:
        expected = stats.ttest_ind(shifted, b, equal_var=False, alternative="greater").pvalue
    assert records_check.welch(a, b, margin) == pytest.approx(expected, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize(
    "t, freedom, expected",
    [  # tails of Student's t, in closed form for 1 and 2 degrees
        (math.sqrt(3), 1, 1 / 6),
        (1e-3, 1, 0.5 - math.atan(1e-3) / math.pi),
        (10.0, 2, 0.5 - 5 / math.sqrt(102)),
        (0.0, 7.5, 0.5),
    ],
)
def test_student_tail(t, freedom, expected):
    assert records_check.student_tail(t, freedom) == pytest.approx(expected, rel=1e-11)


# ---------------------------------------------------------------- patterns

SCORE_FIRST = """
def eval_ttt(model, val_tokens, optimizer):
    loss_sum = byte_count = 0.0
    for chunk in val_tokens.chunks():
        with torch.inference_mode():
            loss_sum += model(chunk)
        train_on(model, chunk, optimizer, val_tokens)
    return loss_sum / byte_count


def train_on(model, chunk, optimizer, val_tokens):
    model(chunk).backward()
    optimizer.step()
"""
ILLEGAL = {
    "trains on validation tokens without scoring them first": (
        "def ttt_adapt(model, val_tokens, optimizer):\n    for x in val_tokens:\n"
        "        model(x).backward()\n"
        "        optimizer.step()",
        1,
    ),
    "picks by the validation score": (
        "def f():\n    if ema_val_bpb < best_bpb:\n        best_bpb = ema_val_bpb",
        1,
    ),
    "scores in the last of several epochs": (
        "def f():\n    if epoch == args.ttt_epochs - 1:\n        score()",
        1,
    ),
    "scores tokens in a second pass": ("def f():\n    return ngram_rescore(tokens)", 1),
    "hash keyed on the target": (
        "def f():\n    key = (ctx_hash ^\n        tgt_np * primes[0]) & mask",
        1,
    ),
    "validation tokens in calibration": (
        "def f():\n    h = collect_hessians(model,\n        val_tokens, 256)",
        1,
    ),
    "downloads": ("def f():\n    hf_hub_download('x', 'y')", 1),
}


@pytest.mark.parametrize("what", ILLEGAL)
@pytest.mark.parametrize("packed", [False, True])
def test_patterns_of_code(tmp_path, what, packed):
    code, offset = ILLEGAL[what]
    script = SCRIPT + "\n\n" + code + "\n"
    number = script[: script.index(code)].count("\n") + 1 + offset
    if packed:
        filler = "".join(
            f"# {i * 7919 % 1009}\n" for i in range(800)
        )  # a short text is not taken for a packed program
        text = base64.b85encode(lzma.compress((script + filler).encode())).decode()
        assert len(text) > 1_000
        script = f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({text!r})))\n"
    found = check(make(tmp_path, script=script, logs={"train.log": log_text(script="")}))
    assert found[what].verdict == SUSPICION and found[what].line.startswith(
        f"train_gpt.py:{number}: "
    )
    assert {name for name, f in found.items() if f.check == "pattern"} == {what}


SWITCHED = """
import os
class Hyperparameters:
    ttt_enabled = bool(int(os.environ.get("TTT_ENABLED", "0")))
    rescores = os.environ.get("RESCORES", "no").lower() in ("yes", "1")
    debug = False
def ttt_adapt(model, val_tokens, optimizer):
    for x in val_tokens:
        model(x).backward()
        optimizer.step()
def main(args):
    if args.ttt_enabled and args.steps > 3:
        ttt_adapt(args.model, args.val_tokens, args.optimizer)
    if not args.rescores:
        print("best of all", "two_pass(x)")
    else:
        ngram_rescore(tokens)
    if args.debug or os.environ.get("DOWNLOADS"):
        hf_hub_download("x", "y")
"""


def patterns_of(home, script: str, settings: str = "", after: str = "") -> set[str]:
    logs = {"train.log": f"{settings}{log_text(script='')}{after}"}
    found = check(make(home, script=script, logs=logs)).values()
    return {f.detail for f in found if f.check == "pattern" and f.verdict == SUSPICION}


def test_what_is_switched_off_is_no_suspicion(tmp_path):
    assert patterns_of(tmp_path / "a", SWITCHED) == set()
    assert patterns_of(tmp_path / "b", SWITCHED, "ttt_enabled:False rescores:no\n") == set()


@pytest.mark.parametrize(
    ("old", "new", "settings"),
    [
        ("", "", "ttt_enabled:True\n"),
        ("", "", "TTT_ENABLED=1\n".lower()),
        ("", "", "Hyperparameters:\nttt_enabled: 1\n"),
        ('"TTT_ENABLED", "0"', '"TTT_ENABLED", "1"', ""),
        ("def main(args):", "def main(args):\n    args.ttt_enabled = 1", ""),
        ("def main(args):", "def main(args, f=ttt_adapt):", ""),
        ("and args.steps", "or args.steps", ""),
        ('"TTT_ENABLED", "0"', '"TTT_ENABLED", OTHER', ""),
    ],
)
def test_what_may_be_switched_on_stays_one(tmp_path, old, new, settings):
    assert patterns_of(tmp_path, SWITCHED.replace(old, new, 1), settings) == {LEARNS_UNSCORED}


def test_a_log_that_times_an_adaptation_outweighs_settings(tmp_path):
    assert LEARNS_UNSCORED in patterns_of(tmp_path, SWITCHED, after="ttt: adapted in 3.2s\n")


def test_each_switch_counts(tmp_path):
    words = SWITCHED.replace("debug = False", "debug = True").replace('"no"', '"yes"')
    assert patterns_of(tmp_path, words) == {"downloads", "scores tokens in a second pass"}


@pytest.mark.parametrize(
    "line, what",
    [
        ("ttt_epoch:5/30 avg_loss:1.8966", "epochs over the tokens that are scored"),
        (
            "prequant_ttt:epoch 1/10 loss:2.8775 time:17.4s",
            "epochs over the tokens that are scored",
        ),
        ("ngram_two_pass: Pass 2 done val_bpb=0.098971", "a second pass over scored tokens"),
    ],
)
def test_patterns_of_logs(tmp_path, line, what):
    found = one(tmp_path, last=line + "\n")
    assert found[what].verdict == SUSPICION and line in found[what].line


@pytest.mark.parametrize(
    "text",
    [
        SCORE_FIRST,
        "# if val_bpb < best_bpb: rescore(tokens)\n",
        "def f():\n    if err < best_err:\n        best_err = err\n",
        "def f():\n    for x in val_tokens:\n        byte_count += 1\n        nll(x).backward()\n"
        "        sgd.step()\n",
        "def f(prev, tokens):\n    key = 36313 * tokens ^ 27191 * prev\n",
        "def f():\n    collect_hessians(model, train_loader)\n",
    ],
)
def test_no_pattern(tmp_path, text):
    folder = make(tmp_path, script=SCRIPT + "\n\n" + text, logs={"train.log": log_text(script="")})
    found = next(f for f in check(folder).values() if f.check == "pattern")
    assert found.verdict == CONSISTENT and "looked for in train_gpt.py, train.log" in found.detail


OURS = """ttt_protocol:{protocol}
vocab_size:1024
preset:full world_size:8 device:cuda dtype:torch.bfloat16 seed:1337 model_params:26000000
step:7000/20000 train_loss:2.0000 train_time:600050ms step_avg:85.72ms
Code size: 1000 bytes
Serialized model pcll: 14000000 bytes
Total submission size pcll: 14001000 bytes
final_pcll_sliding_exact val_loss:1.95860000 val_bpb:1.16000000
eval_time:90000ms
{last}"""


def test_our_own_legal_path_and_our_labelled_illegal_one(tmp_path):
    source = (Path(verify.__file__).parent / "train_gpt.py").read_text()
    legal = OURS.format(
        protocol="score_first", last="final_pcll_ttt_exact val_loss:1.95350000 val_bpb:1.15700000\n"
    )
    log = f"{source}{'=' * 80}\n{legal}"
    found = check(
        make(tmp_path, script=source, logs={"train.log": log}, submission={"val_bpb": 1.157})
    )
    assert not [f for f in found.values() if f.check == "pattern" and f.verdict == SUSPICION]
    assert found["val_bpb"].verdict == CONSISTENT and found["script"].verdict == PROVEN
    label = "NOT LEGAL (trained on the tokens it scores) train_then_score "
    label += "val_loss:1.77060000 val_bpb:1.04870000\n"
    logs = {"train.log": OURS.format(protocol="train_then_score", last=label)}
    assert (
        check(make(tmp_path / "b", logs=logs, submission={"val_bpb": 1.16}))["val_bpb"].verdict
        == CONSISTENT
    )
    finding = check(make(tmp_path / "c", logs=logs, submission={"val_bpb": 1.0487}))["val_bpb"]
    assert finding.verdict == FAILED and "NOT LEGAL" in finding.detail and finding.number == 1.0487


# ---------------------------------------------------------------- any content, the command line

TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["val_bpb", "seeds", "seed", "seed_results", "bytes_total", "track", "val_bpb_seeds"]
LINES = [
    "val_loss:1.9 val_bpb:1.12",
    "final_exact val_loss:0.0 val_bpb:0.0",
    "val_bpb:0.0",
    "NOT LEGAL val_bpb:1.0",
    "seed:",
    "import os",
    "def f(",
    "=" * 20,
    "9" * 30,
    "\x00",
    "\r",
    "tokens:0",
    "vocab_size:1024",
    "train_time:0ms",
    "step:1/2 train_loss:1",
    "Artifact: , bytes",
    "ttt epoch 1/2",
    "stopping_early",
    "hessian in 1s",
]


def report(folder: Path) -> int:
    return verify.main([str(folder), "--json", "--against", "1.1"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["submission.json", "train.log", "train_gpt.py", "README.md", "new.txt"]),
    content=st.binary() | st.lists(st.sampled_from(LINES)).map(lambda x: "\n".join(x).encode()),
)
def test_any_bytes_end_in_a_report(tmp_path, capsys, name, content):
    folder = make(tmp_path, logs={"train.log": log_text()}, submission={"val_bpb": 1.12})
    (folder / name).write_bytes(content)
    assert report(folder) in (0, 1)
    rows = json.loads(capsys.readouterr().out)["findings"]
    assert {row["check"] for row in rows} >= {
        "files",
        "val_bpb",
        "seeds",
        "settings",
        "script",
        "pattern",
    }
    (folder / "new.txt").unlink(missing_ok=True)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(NAMES), TREE | st.sampled_from([1.12, "1.12", [1337], {"1": {"bpb": 1.12}}])
    )
)
def test_any_submission_ends_in_a_report(tmp_path, capsys, table):
    assert report(make(tmp_path, logs={"train.log": log_text()}, submission=table)) in (0, 1)
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_an_empty_folder_and_odd_files(tmp_path):
    assert report(tmp_path) == 1
    (tmp_path / "train_gpt.py").mkdir()
    (tmp_path / "train.log").symlink_to("/dev/zero")
    (tmp_path / "submission.json").symlink_to("submission.json")
    assert report(tmp_path) == 1


def test_large_files_take_bounded_time(tmp_path):
    folder = make(tmp_path, logs={}, submission={"val_bpb": 1.12})
    steps = b"step:1000/20000 train_loss:2.2529 train_time:199709ms step_avg:199.71ms\n" * 10_000
    with (folder / "train.log").open("wb") as file:
        for _ in range(280):  # 200 MB
            file.write(steps)
        file.write(b"seed:7\nfinal_exact val_loss:1.89123456 val_bpb:1.12000000\n")
    with (folder / "one_line.log").open("wb") as file:
        file.truncate(200_000_000)
    began = time.monotonic()
    found = check(folder)
    assert time.monotonic() - began < 30
    assert found["val_bpb"].verdict == CONSISTENT and found["val_bpb"].line.startswith(
        "train.log:2800002: "
    )
    with (folder / "submission.json").open("wb") as file:
        file.truncate(200_000_000)
    with (folder / "train_gpt.py").open("wb") as file:
        file.truncate(200_000_000)
    began = time.monotonic()
    assert check(folder)["submission.json"].verdict == FAILED and time.monotonic() - began < 30


def test_exit_codes_and_one_screen(tmp_path, capsys):
    folder = make(tmp_path)
    assert verify.main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("OK — val_bpb 1.121700 agrees") and len(text.splitlines()) < 60
    (folder / "submission.json").write_text('{"val_bpb": 1.0}')
    assert verify.main([str(folder)]) == 1
    assert (
        verify.main([str(folder), "--against", "x"]) == 2
        and "--against takes" in capsys.readouterr().err
    )
