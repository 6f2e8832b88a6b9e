"""Folders whose logs or claims are written so that another number would be read, or none: they are
read, or named, and never OK. What honest people write stays OK."""

import json

import pytest
from attacks.folders import Files, entry, runs
from test_folder_bounds import write

from records.check import check_folder
from records.report import answer_of


def changed(logs: Files, *pairs: tuple[str, str]) -> Files:
    """The logs with texts in place of others, each of which is in them."""
    for old, new in pairs:
        assert all(old in text for text in logs.values())
        logs = {name: text.replace(old, new) for name, text in logs.items()}
    return logs


def sized(model: str, total: str = "15900200") -> Files:
    """Logs of a model that is too large, which say so in other words."""
    return changed(runs(model=16_500_000), ("16500000", model), ("16500200", total))


def trained(time: str) -> Files:
    return changed(runs(), ("train_time:599000ms", f"train_time:{time}"))


def scored(time: str) -> Files:
    return changed(runs(), ("eval_time:400000ms", f"eval_time:{time}"))


def claiming(value: object) -> Files:
    files = entry(runs())
    table = json.loads(files["submission.json"]) | {"val_bpb": value}
    return files | {"submission.json": json.dumps(table)}


OVER = ("FAILED",)
ODD = ("SUSPICION",)
SAME_LABEL = "val_bpb:1.20000000\rfinal_int8_zlib_roundtrip_exact val_loss:1.9 val_bpb:1.12000000"
THREE = {1: 1.2, 2: 1.2, 3: 1.2}
CASES = {  # name -> files, the check that notices, its verdicts
    "underscores in bytes": (entry(sized("16_500_000", "15_900_200")), "size", OVER),
    "thin spaces in bytes": (entry(sized("16\u2009500\u2009000")), "size", ODD),
    "spaces in bytes": (entry(sized("16 500 000", "15 900 200")), "size", OVER),
    "apostrophes in bytes": (entry(sized("16'500'000", "15'900'200")), "size", OVER),
    "zeros before bytes": (entry(sized("000016500000")), "size", ODD),
    "an exponent in bytes": (entry(sized("1.65e7")), "pattern", ODD),
    "wide digits in bytes": (entry(sized("１６５０００００")), "pattern", ODD),
    "an exponent in a time": (entry(trained("7.2e5ms")), "training time", OVER),
    "a comma in a time": (entry(trained("720,000ms")), "training time", OVER),
    "minutes": (entry(trained("12.0min")), "training time", OVER),
    "hours": (entry(trained("0.2h")), "training time", OVER),
    "microseconds": (entry(trained("720000000us")), "training time", OVER),
    "seconds as a word": (entry(trained("720 seconds")), "training time", OVER),
    "milliseconds as a word": (entry(trained("720000 milliseconds")), "training time", OVER),
    "a time of day": (entry(trained("12:00")), "pattern", ODD),
    "a time below zero": (entry(trained("-599000ms")), "pattern", ODD),
    "an exponent in an evaluation": (entry(scored("7.2e5ms")), "evaluation time", OVER),
    "zeros before an evaluation": (entry(scored("0000000720000ms")), "evaluation time", OVER),
    "a score below zero": (entry(changed(runs(), ("val_bpb:", "val_bpb:-"))), "pattern", ODD),
    "wide digits in a score": (entry(changed(runs(), ("bpb:1.", "bpb:１."))), "pattern", ODD),
    "an exponent in a score": (
        entry(changed(runs(), ("val_bpb:1.1", "val_bpb:0.11e1 1.1"))),
        "val_bpb",
        ("FAILED", "SUSPICION"),
    ),
    "a line that is written over": (
        entry(changed(runs(THREE), ("val_bpb:1.20000000", SAME_LABEL)), val_bpb=1.12),
        "val_bpb",
        ODD,
    ),
    "a time that is written over": (
        entry(trained("599000ms step:9/99\rstopping_early: cap train_time:720000ms")),
        "training time",
        OVER,
    ),
    "a score that is made again": (
        entry(
            changed(
                runs(THREE),
                ("final_int8_zlib_roundtrip_exact", "x"),
                ("val_bpb:1.2000 ", "val_bpb:1.2000\nfinal_int8_zlib_roundtrip val_bpb:1.1200 "),
            ),
            val_bpb=1.12,
        ),
        "val_bpb",
        ODD,
    ),
    "a claim below zero": (claiming(-1.0), "val_bpb", OVER),
    "a claim of zero": (claiming(0), "val_bpb", OVER),
    "a claim of text": (claiming("1.05 bpb"), "val_bpb", OVER),
    "a claim of a list": (claiming([1.05, 1.05]), "val_bpb", OVER),
    "a claim of a map": (claiming({"mean": 1.05, "val": 1.12}), "val_bpb", OVER),
    "a claim that is no number": (claiming(float("nan")), "val_bpb", ("NOT CHECKABLE",)),
    "a claim of true": (claiming(True), "val_bpb", ("NOT CHECKABLE",)),
    "a claim that is rounded to one digit": (claiming(1.1), "val_bpb", ODD),
    "records that say they are none": (
        entry(runs(trained=900_000), track="non-record"),
        "track",
        ODD,
    ),
    "records that are not unlimited": (
        entry(runs(scored=900_000), track="10min_16mb, not unlimited"),
        "track",
        ODD,
    ),
    "one log under three names": (
        entry({f"train_seed{seed}.log": runs({1: 1.12})["train_seed1.log"] for seed in (1, 2, 3)}),
        "seeds",
        ("FAILED", "SUSPICION"),
    ),
}
HONEST = {
    "as it should be": entry(runs()),
    "a time in seconds": entry(trained("599.0s")),
    "megabytes": entry(
        changed(runs(), ("Code size:", "Total submission size: 15.90 MB\nCode size:"))
    ),
    "a table of the switch": entry(changed(runs(), ("seed:", "val_bpb:enabled tokenizer\nseed:"))),
    "a difference of scores": entry(
        changed(runs(), ("seed:", "roundtrip_delta val_loss:-0.0083 val_bpb:-0.00495356\nseed:"))
    ),
    "a step of progress": entry(changed(runs(), ("Code size:", "a\rb\rc 10%\rCode size:"))),
    "lines that end as on Windows": entry(changed(runs(), ("\n", "\r\n"))),
    "bytes with commas": entry(
        changed(runs(), ("15900000", "15,900,000"), ("15900200", "15,900,200"))
    ),
    "a smaller number in brackets": entry(
        changed(runs(), ("15900000 bytes", "15900000 bytes (payload:16100000 raw_torch:17000000)"))
    ),
    "another track": entry(runs(), track="non-record"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_oddly(tmp_path, name):
    files, check, verdicts = CASES[name]
    found = check_folder(write(tmp_path, files))
    shown = [f"{f.verdict} {f.check}: {f.detail} {f.line}" for f in found]
    assert {f.verdict for f in found if f.check == check} & {*verdicts}, shown
    assert answer_of(found) != "OK"


@pytest.mark.parametrize("name", HONEST)
def test_what_honest_people_write(tmp_path, name):
    found = check_folder(write(tmp_path, HONEST[name]))
    assert answer_of(found) == "OK", [f for f in found if f.verdict in ("FAILED", "SUSPICION")]
