"""records/check.py on record folders: each limit just inside and just outside, claims of every
form, times, and the statistics of a record."""

import json
import math
import random
import re

import pytest
from attacks.folders import SEEDS, Files, Run, changed, entry, rows, runs, write

from records.check import check_folder, student_tail, submitted_scores, welch
from records.report import Finding, UnusableInput

NOISE = "".join(random.Random(0).choices("abcdefgh", k=60_000))  # lzma makes 24,036 bytes of it


def check(home, files, against=None, track="track_10min_16mb") -> dict[str, Finding]:
    """Findings by their check; of two of one name the last."""
    report = check_folder(write(home, files, track), against)
    return {finding.check: finding for finding in report.findings}


# ---------------------------------------------------------------- limits and tolerances

# Entries in pairs, on both sides of a limit, with the verdict and the number that a check gives.
# Three runs, but where their scores are given; gptq, ttt and evaluation are seconds that a line
# states, ratio is 1 where a token has the bytes that it should have, lacks are words of lines that
# are left out, helper is the size of a file that the script imports, noise a script of 60,000.
LIMITS = """
evaluation time
    scored=600000 -> CONSISTENT 600
    scored=600100 -> FAILED 600.1
    evaluation=600.0 -> CONSISTENT 400
    evaluation=600.1 -> NOT CHECKABLE 400
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
    trained=596000 gptq=5.0 -> CONSISTENT 5
    trained=596000 gptq=5.1 -> SUSPICION 5.1
    trained=600000 gptq=11.0 -> SUSPICION 11
    trained=600000 gptq=11.1 -> FAILED 11.1
adaptation time
    scored=300000 ttt=300.0 -> CONSISTENT 300
    scored=300000 ttt=300.1 -> FAILED 300.1
    trained=400000 ttt=201.0 -> CONSISTENT 201
    trained=400000 ttt=201.1 -> FAILED 201.1
size
    noise=60000 model=15940000 -> CONSISTENT 16000000
    noise=60000 model=15940001 -> SUSPICION 16000001
    noise=60000 model=15980771 -> SUSPICION 16040771
    noise=60000 model=15980772 -> FAILED 16040772
    bytes_total=16000000 -> CONSISTENT 15900198
    bytes_total=16000001 -> SUSPICION 15900198
    noise=60000 model=15950000 code=19328 -> CONSISTENT 16010000
    noise=60000 model=15950000 code=19128 -> SUSPICION 16010000
    helper=59986 model=15940000 code=60000 -> CONSISTENT 16000000
    helper=59987 model=15940000 code=60001 -> SUSPICION 16000001
    model=15000000 total=15200200 -> CONSISTENT 15000198
    model=15000000 total=15200201 -> SUSPICION 15000198
    lacks="model|Code" total=16000000 -> CONSISTENT 16000198
    lacks="model|Code" total=16000001 -> SUSPICION 16000199
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
    losses="none" tokens=61401416 -> NOT CHECKABLE 61401416
    losses="none" tokens=61401415 -> SUSPICION 61401415
accepted scores
    scores=[1.0565] val_bpb=1.0565 -> none 0
    scores=[1.0564] val_bpb=1.0564 -> SUSPICION 1.0564
val_bpb
    scores=["1.1200"] -> CONSISTENT 1.12
    scores=["1.120"] -> NOT CHECKABLE 1.12
    scores=[1.120199] val_bpb=1.1201 -> CONSISTENT 1.120199
    scores=[1.120203] val_bpb=1.1201 -> FAILED 1.1201
    scores=[1.12012,1.12018] val_bpb=1.1201 -> CONSISTENT 1.12012
    scores=["1.12019","1.12000"] -> CONSISTENT 1.12
    scores=["1.12021","1.12000"] -> SUSPICION 1.12
seeds
    scores=[1.120199] seed_results={"1":1.1201} -> CONSISTENT 1
    scores=[1.120203] seed_results={"1":1.1201} -> FAILED 1.1201
"""
LINES = {
    "gptq": ("middle", "GPTQ:collected 67 Hessians in {}s\n"),
    "ttt": ("middle", "ttt:done total_time={}s\n"),
    "evaluation": ("tail", "total_eval_time:{}s\n"),
}
CLAIMS = ("val_bpb", "bytes_total", "track", "seed_results")


def entry_of(words: list[str]) -> Files:
    given = {name: json.loads(value) for name, value in (word.split("=", 1) for word in words)}
    claims = {"bytes_total": None}
    claims |= {name: given.pop(name) for name in CLAIMS if name in given}
    noise, helper, scores = (given.pop(name, None) for name in ("noise", "helper", "scores"))
    lacks, losses = given.pop("lacks", None), given.pop("losses", None)
    for name, (place, line) in LINES.items():
        if name in given:
            given[place] = line.format(given.pop(name))
    if "ratio" in given:
        given["ratio"] *= 151_080_000 / 62_021_632

    logs = runs(**given)
    if scores:
        lines = "".join(f"final_mix val_bpb:{one}\n" for one in scores)
        logs = {"train.log": f"seed:1\nTotal submission size x: 15900200 bytes\n{lines}"}
        claims |= {"seeds": [1], "bytes_total": 15_900_200}
    if lacks:
        logs = {name: re.sub(rf"(?m)^.*(?:{lacks}).*\n", "", text) for name, text in logs.items()}
    if losses:
        logs = changed(logs, ("val_loss", "loss"))
    script = NOISE if noise else "x = 1\n" * 33
    if helper:
        return entry(logs, "import helper\n", {"helper.py": NOISE[:helper]}, **claims)
    return entry(logs, script, **claims)


@pytest.mark.parametrize(("name", "row"), rows(LIMITS))
def test_both_sides_of_a_limit(tmp_path, name, row):
    words, _, wanted = row.partition(" -> ")
    verdict, _, number = wanted.rpartition(" ")
    finding = check(tmp_path, entry_of(words.split())).get(name)
    if verdict == "none":
        assert finding is None
    else:
        number = pytest.approx(float(number), rel=2e-7)
        assert (finding.verdict, finding.number) == (verdict, number), finding


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    "claim",
    [
        "1.1200",
        "1.12 (3 seeds)",
        {"seed_2": 1.2, "mean": 1.12, "std": 0.0005},
    ],
)
def test_forms_of_a_claim(tmp_path, claim):
    files = entry(runs(), val_bpb=claim)
    files["submission.json"] = "\ufeff" + files["submission.json"]  # a byte order mark
    found = check(tmp_path, files)["val_bpb"]
    assert found.verdict == "CONSISTENT" and found.number == pytest.approx(1.12)
    assert "the mean of the last final lines of 3 logs" in found.detail
    assert found.line.startswith("train_seed1.log:11: final_int8_zlib_roundtrip_exact val_loss:1.8")


@pytest.mark.parametrize("claim", ["pending", [], {}, True, 0, -1.0, {"a": {}}, math.nan, [1.12]])
def test_what_is_no_claim(tmp_path, claim):
    assert check(tmp_path, entry(runs(), val_bpb=claim))["val_bpb"].verdict == "NOT CHECKABLE"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "nul", "1", '{"val_bpb": 1.12}}', "[" * 9_000, "9" * 5_000, '{"a":' * 9_000],
)
def test_a_submission_that_cannot_be_used(tmp_path, text):
    found = check(tmp_path, entry(runs()) | {"submission.json": text})
    assert found["val_bpb"].verdict == "NOT CHECKABLE"
    assert "submission.json cannot be used: " in found["files"].detail


@pytest.mark.parametrize(
    ("claim", "changes", "verdict", "says"),
    [
        (1.1197, {}, "CONSISTENT", "a final line of one log of 3"),
        (1.1222, {}, "CONSISTENT", "the mean of the last 'plain' lines of 3 logs"),
        (1.1501, {}, "SUSPICION", "a running line of one log"),
        (1.1281, {}, "SUSPICION", "no line and no mean of the logs, from 1.1185 on"),
        (1.1111, {}, "FAILED", "no line and no mean of the logs, from 1.1185 on"),
        (1.1111, {"bytes_total": 15_800_000}, "SUSPICION", "no line and no mean"),
        (1.1111, {"seeds": [1, 2, 3, 7]}, "NOT CHECKABLE", "seeds [7] have no log"),
        (1.1012, {}, "FAILED", "of a line that its log labels NOT LEGAL"),
    ],
)
def test_a_claim_against_the_logs(tmp_path, claim, changes, verdict, says):
    tail = "NOT LEGAL (trained on what it scores) val_loss:1.8 val_bpb:1.10120000\n"
    middle = "plain val_loss:1.89 val_bpb:1.1222\nchunk 3/9 val_bpb:1.1501\n"
    files = entry(runs({1: 1.1185, 2: 1.1197, 3: 1.1203}, middle=middle, tail=tail))
    table = json.loads(files["submission.json"]) | {"val_bpb": claim} | changes
    found = check(tmp_path, files | {"submission.json": json.dumps(table)})["val_bpb"]
    assert (found.verdict, found.number) == (verdict, pytest.approx(claim, abs=1e-6))
    assert says in found.detail


@pytest.mark.parametrize(
    ("logs", "claims", "verdict", "says"),
    [
        (runs(), {}, "CONSISTENT", "seeds [1, 2, 3]"),
        (runs(), {"seeds": [1, 2, 4]}, "NOT CHECKABLE", "also names [4]"),
        (runs(), {"blurb": "mean of five seeds"}, "SUSPICION", "speaks of 5 seeds"),
        (runs(), {"blurb": "three-seed mean, seeded"}, "CONSISTENT", ""),
        (changed(runs(), ("seed:", "s:")), {}, "CONSISTENT", "seeds [1, 2, 3]"),
        ({"train_seed4.log": Run().text()}, {}, "SUSPICION", "logs another seed than its name"),
        (
            {"train.log": changed(runs(), ("seed:", "s:"))["train_seed1.log"]},
            {},
            "NOT CHECKABLE",
            "",
        ),
        (
            runs(),
            {"seeds": {"1": 1.121, "2": 1.12, "3": 1.121}},
            "SUSPICION",
            "seed 1 claims 1.121",
        ),
    ],
)
def test_seeds(tmp_path, logs, claims, verdict, says):
    found = check(tmp_path, entry(logs, **{"seeds": None} | claims))["seeds"]
    assert found.verdict == verdict and says in found.detail, found


def test_what_an_artifact_has_to_answer_for(tmp_path):
    """Its seed's claim, but for a headline that is not the seeds' mean."""
    seeds = {"1": {"val_bpb": 1.1}, "2": {"val_bpb": 1.2}}
    for headline, claims in ((1.15, [1.1, 1.2]), (1.1502, [1.1, 1.2]), (1.05, [1.05])):
        files = entry({}, val_bpb=headline, seeds=None, seed_results=seeds)
        assert submitted_scores(write(tmp_path, files)) == claims


# ---------------------------------------------------------------- times and hardware

LAST = "final_ttt val_loss:1.8800 val_bpb:1.1100 eval_time:{}ms\n"
EXACT = "final_ttt_exact val_loss:1.88000000 val_bpb:1.11003333 eval_time:{}ms\n"


@pytest.mark.parametrize(
    ("tail", "claim", "verdict", "seconds", "says"),
    [
        (LAST.format(590_000) + EXACT.format(590_000), 1.11, "CONSISTENT", 590, ""),
        (LAST.format(590_000) + EXACT.format(600_400), 1.11, "FAILED", 600.4, ""),
        (LAST.format(650_000), 1.12, "CONSISTENT", 400, "together 1050.0 s"),
        ("diagnostic val_loss:1.9 val_bpb:1.16 eval_time:900000ms\n", 1.12, "CONSISTENT", 400, ""),
        ("NOT LEGAL val_loss:1.7 val_bpb:1.04 eval_time:900000ms\n", 1.12, "CONSISTENT", 400, ""),
        ("chunk [1/9] val_bpb:1.13 eval_time:900000ms\n", 1.12, "CONSISTENT", 400, ""),
    ],
)
def test_only_the_claimed_pass_is_limited(tmp_path, tail, claim, verdict, seconds, says):
    found = check(tmp_path, entry({"train.log": Run(tail=tail).text()}, val_bpb=claim))
    finding = found["evaluation time"]
    assert (finding.verdict, finding.number) == (verdict, seconds) and says in finding.detail


def test_validations_of_the_training_are_no_evaluation(tmp_path):
    validation = "plain val_loss:2.0 val_bpb:1.2000 eval_time:900000ms\n"
    step = "step:9/20000 val_loss:2.0 val_bpb:1.2 train_time:9ms eval_time:900000ms\n"
    logs = changed(runs(), ("stopping_early", f"{step}{validation}stopping_early"))
    assert check(tmp_path, entry(logs))["evaluation time"].number == 400


@pytest.mark.parametrize(
    ("head", "world", "track", "verdict", "says"),
    [
        (
            "NVIDIA H100 80GB HBM3\n",
            8,
            "track_10min_16mb",
            "CONSISTENT",
            "world size [8], GPU H100",
        ),
        ("NVIDIA A100-SXM\n", 8, "track_10min_16mb", "SUSPICION", "GPU A100"),
        ("", 4, "track_10min_16mb", "SUSPICION", "world size [4], GPU not logged"),
        ("NVIDIA A100-SXM\n", 4, "track_non_record_16mb", "CONSISTENT", "[4], GPU A100"),
    ],
)
def test_hardware(tmp_path, head, world, track, verdict, says):
    files = entry(runs(head=head, world=world), track=None)
    found = check(tmp_path, files, track=track)["hardware"]
    assert found.verdict == verdict and says in found.detail


def test_no_limit_outside_of_the_record_track(tmp_path):
    files = entry(runs(trained=4_000_000, scored=900_000, tokens=9_662_464), track=None)
    found = check(tmp_path, files, track="track_non_record_16mb")
    assert found["training time"].verdict == found["evaluation time"].verdict == "CONSISTENT"
    assert found["split"].verdict == "SUSPICION" and "a part of it" in found["split"].detail


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "verdict"),
    [
        (8192, 40_540_160, "CONSISTENT"),
        (4096, 45_508_608, "CONSISTENT"),
        (4096, 40_540_160, "FAILED"),
    ],
)
def test_the_split_of_other_tokenizers(tmp_path, vocabulary, tokens, verdict):
    whole = {8192: 40_540_160, 4096: 45_508_608}[vocabulary]
    logs = runs(tokens=tokens, ratio=151_080_000 / whole)
    found = check(tmp_path, entry(changed(logs, ("sp1024", f"sp{vocabulary}"))))["split"]
    assert found.verdict == verdict and found.number == pytest.approx(151_080_000 * tokens / whole)


def test_a_mixture_has_its_own_bytes_a_token(tmp_path):
    """Scores of other lines show that the text is the whole one."""
    tail = "final_mixed_exact val_loss:1.89123456 val_bpb:1.06000000\n"
    found = check(tmp_path, entry(runs(tail=tail), val_bpb=1.06))["split"]
    assert found.verdict == "SUSPICION" and found.number == pytest.approx(159_648_000, rel=1e-3)


# ---------------------------------------------------------------- significance


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


@pytest.mark.parametrize("bad", ["1.13,x", "1.13,", "1e300,1.1", "nan", "-1", "1.13, 1.14", "0"])
def test_scores_to_beat_that_are_none(tmp_path, bad):
    with pytest.raises(UnusableInput, match="--against takes bits per byte"):
        check(tmp_path, entry(runs()), bad)


@pytest.mark.parametrize(
    ("theirs", "ours", "margin", "p"),
    [  # scipy.stats.ttest_ind(equal_var=False) and ttest_1samp, alternative="greater" and "less"
        ([1.13, 1.131, 1.129], [1.119, 1.12, 1.121], 0.005, 0.0018011163045515604),
        ([1.9, 1.91], [1.88, 1.8811, 1.8822, 1.8805], 0.0, 0.06390373614791652),
        ([1.12, 1.1207], [1.119, 1.12, 1.121], 0.005, 0.9966722024651232),
        ([1.13], [1.119, 1.12, 1.121], 0.005, 0.006536228780172976),
        ([2.5, 2.5], [2.1, 2.4, 2.0], 0.05, 0.07123171854047929),
        ([1.13, 1.14], [1.12], 0.0, None),
        ([1.13], [1.12, 1.12], 0.0, None),
    ],
)
def test_p_values(theirs, ours, margin, p):
    assert welch(theirs, ours, margin) == (p and pytest.approx(p, rel=1e-9))


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [  # scipy.stats.t.sf
        (0.0, 7.5, 0.5),
        (0.5, 1, 0.35241638234956674),
        (3.0, 3.7, 0.022062942805759336),
        (10.0, 2, 0.004926228511662845),
        (40.0, 1.5, 0.0014898121954656225),
        (5.0, 120, 9.8909529022698e-07),
    ],
)
def test_tails_of_students_t(t, freedom, p):
    assert student_tail(t, freedom) == pytest.approx(p, rel=1e-9)
