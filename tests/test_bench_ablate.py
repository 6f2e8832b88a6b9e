"""The table of what each part is worth: which runs it needs, and what it says of them."""

from bench.ablate import FULL, PARTS, Job, Outcome, environment, plan, table_row

import train_gpt

BASE = {"PRESET": "demo", "ITERATIONS": "200", "WARMDOWN_ITERS": "100"}
WITHOUT = "no smear gate"


def test_every_part_changes_the_settings():
    settings = {part: train_gpt.load_settings(environment(BASE, part)) for part in PARTS}
    assert settings[FULL] == train_gpt.load_settings(BASE)
    assert len(set(settings.values())) == len(PARTS)


def test_the_same_seconds_are_more_steps_where_they_are_faster():
    jobs = plan(BASE, {FULL: 1.0, WITHOUT: 1.1}, [1, 2], ["steps", "seconds"])
    assert list(jobs) == [
        (FULL, "steps", 1),
        (WITHOUT, "steps", 1),
        (WITHOUT, "seconds", 1),
        (FULL, "steps", 2),
        (WITHOUT, "steps", 2),
        (WITHOUT, "seconds", 2),
    ]
    changed = jobs[Job(WITHOUT, "seconds", 2)]
    assert changed == {
        "PRESET": "demo",
        "SMEAR_GATE": "0",
        "ITERATIONS": "220",
        "WARMDOWN_ITERS": "110",
        "SEED": "2",
    }
    assert jobs[Job(WITHOUT, "steps", 2)]["ITERATIONS"] == "200"


def test_a_row_compares_each_seed_with_the_full_system():
    results = {
        Job(FULL, "steps", 1): Outcome(2.0, 2.1, 1000),
        Job(FULL, "steps", 2): Outcome(2.0, 2.2, 1002),
        Job(WITHOUT, "steps", 1): Outcome(2.0, 2.15, 900),
        Job(WITHOUT, "steps", 2): Outcome(2.0, 2.23, 904),
        Job(WITHOUT, "seconds", 1): Outcome(2.0, 2.08, 1),
        Job(WITHOUT, "seconds", 2): Outcome(2.0, 2.19, 1),
    }
    assert table_row(WITHOUT, 1.1, results, ["steps", "seconds"]) == {
        "part": "no smear gate",
        "steps per step of the full system": "1.100",
        "bpb, same steps": "2.1900",
        "difference, same steps": "+0.0500 +0.0300",
        "bpb, same seconds": "2.1350",
        "difference, same seconds": "-0.0200 -0.0100",
        "bytes": 902,
    }
    assert table_row(FULL, 1.0, results, ["steps"]) == {
        "part": "full system",
        "bpb, same steps": "2.1500",
        "difference, same steps": "+0.0000 +0.0000",
        "bytes": 1001,
    }


def test_what_is_as_fast_counts_once():
    results = {
        Job(FULL, "steps", 1): Outcome(2.0, 2.1, 1000),
        Job(WITHOUT, "steps", 1): Outcome(2.0, 2.15, 900),
    }
    row = table_row(WITHOUT, 1.004, results, ["steps", "seconds"])
    assert row["difference, same seconds"] == row["difference, same steps"] == "+0.0500"
    assert len(plan(BASE, {FULL: 1.0, WITHOUT: 1.004}, [1], ["steps", "seconds"])) == 2
