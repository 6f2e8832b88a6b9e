"""records/check.py on record folders: each limit just inside and just outside, claims of every
form, times, and the statistics of a record."""

import re

import pytest
from attacks.folders import SEEDS, entry, entry_of, rows, runs, write

from records.check import check_folder, student_tail, submitted_scores, welch
from records.report import Finding, UnusableInput


def check(home, files, against=None, track="track_10min_16mb") -> dict[str, Finding]:
    """Findings by their check; of two of one name the last."""
    report = check_folder(write(home, files, track), against)
    return {finding.check: finding for finding in report.findings}


# ---------------------------------------------------------------- limits and tolerances

# Entries on both sides of a limit, with the verdict and the number that a check gives.
LIMITS = r"""
evaluation time
    scored=600000 -> CONSISTENT 600
    scored=600100 -> FAILED 600.1
    tail="total_eval_time:600.0s\n" -> CONSISTENT 400
    tail="total_eval_time:600.1s\n" -> NOT CHECKABLE 400
    tail=OUTSIDE val_bpb=1.11 -> FAILED 600.1
training time
    trained=601000 -> CONSISTENT 601
    trained=601100 -> FAILED 601.1
    trained=603000 step=3000 -> CONSISTENT 603
    trained=603100 step=3000 -> FAILED 603.1
    world=4 trained=1202000 -> CONSISTENT 1202
    world=4 trained=1202100 -> SUSPICION 1202.1
    lacks="world" trained=601000 -> CONSISTENT 601
    lacks="world" trained=601100 -> SUSPICION 601.1
    track="10min_nonstop" trained=900000 -> FAILED 900
    track="non-record" trained=900000 -> SUSPICION 900
calibration
    trained=596000 middle="GPTQ:collected 67 Hessians in 5.0s\n" -> CONSISTENT 5
    trained=596000 middle="GPTQ:collected 67 Hessians in 5.1s\n" -> SUSPICION 5.1
    trained=600000 middle="GPTQ:collected 67 Hessians in 11.0s\n" -> SUSPICION 11
    trained=600000 middle="GPTQ:collected 67 Hessians in 11.1s\n" -> FAILED 11.1
    trained=599000 middle="gptq:calibrating with 9 batches\n" -> none
    trained=599100 middle="gptq:calibrating with 9 batches\n" -> SUSPICION
adaptation time
    scored=300000 middle="ttt:done total_time=300.0s\n" -> CONSISTENT 300
    scored=300000 middle="ttt:done total_time=300.1s\n" -> FAILED 300.1
    trained=400000 middle="ttt:done total_time=201.0s\n" -> CONSISTENT 201
    trained=400000 middle="ttt:done total_time=201.1s\n" -> FAILED 201.1
size
    script=NOISE model=15940000 bytes_total=null -> CONSISTENT 16000000
    script=NOISE model=15940001 bytes_total=null -> FAILED 16000001
    bytes_total=16000000 -> CONSISTENT 15900198
    bytes_total=16000001 -> SUSPICION 15900198
    script=NOISE model=15950000 code=19328 bytes_total=null -> CONSISTENT 15969328
    script=NOISE model=15950000 code=19128 bytes_total=null -> FAILED 16010000
    helper=59986 model=15940000 code=60000 bytes_total=null -> CONSISTENT 16000000
    helper=59987 model=15940000 code=60001 bytes_total=null -> SUSPICION 16000001
    model=15000000 total=15200200 -> CONSISTENT 15000198
    model=15000000 total=15200201 -> SUSPICION 15000198
    lacks="model|Code" total=16000000 bytes_total=null -> CONSISTENT 16000000
    lacks="model|Code" total=16000001 bytes_total=null -> FAILED 16000001
split
    ratio=1.0049 -> CONSISTENT 151820292
    ratio=1.0051 -> SUSPICION 151850508
    ratio=1.0099 -> SUSPICION 152575692
    ratio=1.0101 -> FAILED 152605908
    ratio=1.02 tokens=62139473 -> FAILED 154394389
    ratio=1.02 tokens=62151877 -> SUSPICION 154425210
    ratio=1 tokens=61401416 -> SUSPICION 149569200
    ratio=1 tokens=61401415 -> FAILED 149569198
    ratio=1.029 tokens=58500000 -> FAILED 146634098
    ratio=1.031 tokens=58500000 -> SUSPICION 146919101
    ratio=1 tokens=66301124 -> SUSPICION 161504517
    ratio=1 tokens=66425168 -> FAILED 161806680
    vocab=8192 tokens=40540160 ratio=1.52988128 -> CONSISTENT 151080000
    vocab=8192 tokens=40000000 ratio=1.52988128 -> FAILED 149067000
    vocab=4096 tokens=45508608 ratio=1.36285495 -> CONSISTENT 151080000
    vocab=4096 tokens=40540160 ratio=1.36285495 -> FAILED 134585689
    lacks="_loss" tokens=61401416 -> NOT CHECKABLE 61401416
    lacks="_loss" tokens=61401415 -> SUSPICION 61401415
accepted scores
    lines=[1.0565] val_bpb=1.0565 -> none
    lines=[1.0564] val_bpb=1.0564 -> SUSPICION 1.0564
val_bpb
    lines=["1.1200"] -> CONSISTENT 1.12
    lines=["1.120"] -> NOT CHECKABLE 1.12
    lines=[1.120199] val_bpb=1.1201 -> CONSISTENT 1.120199
    lines=[1.120203] val_bpb=1.1201 -> FAILED 1.1201
    lines=[1.12012,1.12018] val_bpb=1.1201 -> CONSISTENT 1.12012
    lines=["1.12019","1.12000"] -> CONSISTENT 1.12
    lines=["1.12021","1.12000"] -> SUSPICION 1.12
seeds
    lines=[1.120199] seed_results={"1":1.1201} -> CONSISTENT 1
    lines=[1.120203] seed_results={"1":1.1201} -> FAILED 1.1201
"""


@pytest.mark.parametrize(("name", "row"), rows(LIMITS))
def test_both_sides_of_a_limit(tmp_path, name, row):
    words, _, wanted = row.partition(" -> ")
    verdict, _, number = re.fullmatch(r"(\D+?)( ([\d.]+))?", wanted).groups()
    finding = check(tmp_path, entry_of(words)).get(name)
    if verdict == "none":
        assert finding is None
    else:
        number = number and pytest.approx(float(number), rel=2e-7)
        assert (finding.verdict, finding.number) == (verdict, number), finding


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "nul", "1", '{"val_bpb": 1.12}}', "[" * 9_000, "9" * 5_000, '{"a":' * 9_000],
)
def test_a_submission_that_cannot_be_used(tmp_path, text):
    found = check(tmp_path, entry(runs()) | {"submission.json": text})
    assert found["val_bpb"].verdict == "NOT CHECKABLE"
    assert "submission.json cannot be used: " in found["files"].detail


SAID = r"""
val_bpb
    logs=CLAIMED val_bpb=1.1197 -> CONSISTENT: a final line of one log of 3
    logs=CLAIMED val_bpb=1.1185 -> SUSPICION: the best of 3 seeds
    logs=RERUNS val_bpb=1.119 -> SUSPICION: the best of 3 seeds, no mean; b.log:
    logs=RERUNS val_bpb=1.121 -> CONSISTENT: a final line of one log of 3
    logs=FIVE -> SUSPICION: the best of 5 seeds, no mean
    logs=ALONE val_bpb=1.119 mean_val_bpb=1.1193 -> SUSPICION: by its own numbers it is 1.1193
    logs=ALONE val_bpb=1.119 mean_val_bpb=1.1191 -> CONSISTENT: a final line of one log of 1
    logs=ALONE val_bpb=1.119 seed_results={"1":1.119,"2":1.121} -> SUSPICION: numbers it is 1.12
    lines=[1.1048,1.1048] val_bpb=1.1 -> SUSPICION: by its own numbers it is 1.1048
    logs=CLAIMED val_bpb=1.1222 -> CONSISTENT: the mean of the last 'plain' lines of 3 logs
    logs=CLAIMED val_bpb=1.1501 -> SUSPICION: a running line of one log
    logs=CLAIMED val_bpb=1.1281 -> SUSPICION: no line and no mean of the logs
    logs=CLAIMED val_bpb=1.1111 -> FAILED: no line and no mean of the logs
    logs=CLAIMED val_bpb=1.1111 bytes_total=15800000 -> SUSPICION: no line and no mean of the logs
    logs=CLAIMED val_bpb=1.1111 seeds=[1,2,3,7] -> NOT CHECKABLE: no line and no mean of the logs
    logs=CLAIMED val_bpb=1.1012 -> FAILED: of a line that its log labels NOT LEGAL
    val_bpb="1.12 (3 seeds)" -> CONSISTENT: the mean of the last final lines of 3 logs
    val_bpb=[1.119,1.120,1.121] -> CONSISTENT: the mean of the last final lines of 3 logs
    val_bpb={"1":1.119,"2":1.12,"3":1.121} -> CONSISTENT: the mean of the last final lines
    val_bpb={"mean":1.12,"std":0.0005} -> CONSISTENT: the mean of the last final lines of 3 logs
    val_bpb="pending" -> NOT CHECKABLE: submission.json states no val_bpb
    val_bpb=null val_loss=1.12 -> CONSISTENT: the mean of the last final lines of 3 logs
    val_bpb=null val_loss=1.4999 -> SUSPICION: no line and no mean of the logs
    val_bpb=null val_loss=1.5 -> NOT CHECKABLE: submission.json states no val_bpb
    val_bpb=true -> NOT CHECKABLE: submission.json states no val_bpb
    val_bpb="1e999" -> NOT CHECKABLE: submission.json states no val_bpb
    tail="final_fp32 val_bpb:1.1050\n" val_bpb=1.105 -> SUSPICION: a running line of one log
seeds
    seeds=null -> CONSISTENT: seeds [1, 2, 3]
    seeds=[1,2,4] -> NOT CHECKABLE: submission.json also names [4]
    blurb="mean of five seeds" -> SUSPICION: submission.json speaks of 5 seeds, logs of 3
    blurb="three-seed mean, seeded" -> CONSISTENT: seeds [1, 2, 3]
    lacks="^seed:" -> CONSISTENT: seeds [1, 2, 3]
    lacks="^seed:" logs=BARE seeds=null -> NOT CHECKABLE: seeds []
    head="seed:4\n" seeds=null -> SUSPICION: seeds [4], 3 of them
    middle="rotation:baked seed:20260416\n" -> CONSISTENT: seeds [1, 2, 3]
    seeds={"1":1.121,"2":1.12,"3":1.121} -> SUSPICION: seed 1 claims 1.121
hardware
    head="NVIDIA H100 80GB HBM3\n" -> CONSISTENT: world size [8], GPU H100
    head="NVIDIA A100-SXM\n" -> SUSPICION: world size [8], GPU A100
    world=4 -> SUSPICION: world size [4], GPU not logged
    lacks="world" -> NOT CHECKABLE: world size not logged
evaluation time
    tail="ttt val_loss:1.9 val_bpb:1.16 eval_time:650000ms\n" -> CONSISTENT: together 1050.0 s
    tail="diagnostic val_bpb:1.16 eval_time:650000ms\n" -> CONSISTENT: the slowest claimed pass
    tail="NOT LEGAL val_bpb:1.04 eval_time:650000ms\n" -> CONSISTENT: the slowest claimed pass
    tail="chunk [1/9] val_bpb:1.13 eval_time:650000ms\n" -> CONSISTENT: the slowest claimed pass
    lacks="eval_time" -> NOT CHECKABLE: no claimed log states how long
    lacks="eval_time" tail=PLAIN -> NOT CHECKABLE: no claimed log states how long
training time
    trained=650000 more={"README.md":"This is a non-record run."} -> SUSPICION: the slowest run's
    trained=650000 more={"README.md":"It beats each non-record run."} -> FAILED: the slowest run's
size
    lacks="Serialized|Total" -> NOT CHECKABLE: no claimed log states bytes
    lacks="bytes" bytes_total=67224025 artifact_bytes=15900000 -> NOT CHECKABLE: no claimed log
split
    tokens=7752704 -> CONSISTENT: 62,021,632 tokens
    tail="mixed val_loss:1.891235 val_bpb:1.0600\n" val_bpb=1.06 -> SUSPICION: of 2.5740 bytes
pattern
    more={"README.md":"It trains on the full val set."} -> SUSPICION: says that it trains on val
    more={"README.md":"It is fine-tuned on the validation set."} -> SUSPICION: says that it trains
    script="train_files = glob('fineweb_*.bin')" -> SUSPICION: trains on the validation shards
    more={"README.md":"It never trains on the full val set."} -> CONSISTENT: nothing
    TRAIN_ON_VAL=1 -> SUSPICION: says that it trains on validation data
    TRAIN_ON_VAL=0 -> CONSISTENT: nothing
files
    script="" -> NOT CHECKABLE: there is no script
    logs={"notes.txt":"x"} -> NOT CHECKABLE: there is no train log
"""


@pytest.mark.parametrize(("name", "row"), rows(SAID))
def test_what_is_said_of(tmp_path, name, row):
    words, _, wanted = row.partition(" -> ")
    verdict, _, says = wanted.partition(": ")
    report = check_folder(write(tmp_path, entry_of(words)))
    found = [(one.verdict, one.detail) for one in report.findings if one.check == name]
    assert [detail for one, detail in found if one == verdict and says in detail], found


def test_what_an_artifact_has_to_answer_for(tmp_path):
    """Its seed's claim, but for a headline that is not the seeds' mean."""
    seeds = {"1": {"val_bpb": 1.1}, "2": {"val_bpb": 1.2}}
    for headline, claims in ((1.15, [1.1, 1.2]), (1.1502, [1.1, 1.2]), (1.05, [1.05])):
        files = entry({}, val_bpb=headline, seeds=None, seed_results=seeds)
        assert submitted_scores(write(tmp_path, files)) == claims


def test_no_limit_outside_of_the_record_track(tmp_path):
    words = 'trained=4000000 scored=900000 tokens=9662464 head="NVIDIA A100\\n" track=null'
    found = check(tmp_path, entry_of(words), track="track_non_record_16mb")
    verdicts = [found[name].verdict for name in ("training time", "evaluation time", "hardware")]
    assert verdicts == ["CONSISTENT"] * 3
    assert found["split"].verdict == "SUSPICION" and "a part of it" in found["split"].detail


@pytest.mark.parametrize(
    ("scores", "against", "verdict", "gain"),
    [
        (SEEDS, "1.1271", "CONSISTENT", 0.01199),
        (SEEDS, "1.1269", "NOT CHECKABLE", 0.01165),
        (SEEDS, "1.1201", "NOT CHECKABLE", 0.00017),
        (SEEDS, "1.1199", "FAILED", -0.00017),
        (SEEDS, "1.1304,1.1296,1.1300", "CONSISTENT", 0.01688),
        ({1: 1.11999, 2: 1.12, 3: 1.12001}, "1.1231", "CONSISTENT", 0.00523),
        ({1: 1.11999, 2: 1.12, 3: 1.12001}, "1.1229", "NOT CHECKABLE", 0.00490),
        ({1: 1.12}, "1.13,1.14", "NOT CHECKABLE", 0.02533),
    ],
)
def test_significance(tmp_path, scores, against, verdict, gain):
    found = check(tmp_path, entry(runs(scores)), against)["significance"]
    assert (found.verdict, found.number) == (verdict, pytest.approx(gain, abs=1e-5))
    assert "a record needs 0.005 at p < 0.01; " in found.detail


def test_scores_to_beat_that_are_none(tmp_path):
    for bad in ("1.13,x", "1.13,", "1e300,1.1", "nan", "-1", "1.13, 1.14"):
        with pytest.raises(UnusableInput, match="--against takes bits per byte"):
            check(tmp_path, entry(runs()), bad)


@pytest.mark.parametrize(
    ("theirs", "ours", "margin", "p"),
    [  # scipy.stats.ttest_ind(equal_var=False) and ttest_1samp, alternative="greater" and "less"
        ([1.13, 1.131, 1.129], [1.119, 1.12, 1.121], 0.005, 0.0018011163045515604),
        ([1.9, 1.91], [1.88, 1.8811, 1.8822, 1.8805], 0.0, 0.06390373614791652),
        ([1.12, 1.1207], [1.119, 1.12, 1.121], 0.005, 0.9966722024651232),
        ([1.13], [1.119, 1.12, 1.121], 0.005, 0.006536228780172976),
        ([1.13, 1.14], [1.12], 0.0, None),
        ([1.13], [1.12, 1.12], 0.0, None),
    ],
)
def test_p_values(theirs, ours, margin, p):
    assert welch(theirs, ours, margin) == (p and pytest.approx(p, rel=1e-9))
    assert student_tail(0.0, 7.5) == pytest.approx(0.5, rel=1e-9)
    assert student_tail(40.0, 1.5) == pytest.approx(0.0014898121954656225, rel=1e-9)
    assert student_tail(5.0, 120) == pytest.approx(9.8909529022698e-07, rel=1e-9)
