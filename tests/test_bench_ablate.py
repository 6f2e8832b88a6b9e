"""The table of what each part is worth: what it changes, and what it says of the runs."""

from bench.ablate import FULL, PARTS, Outcome, table_row

import train_gpt


def test_every_part_changes_the_settings():
    settings = {part: train_gpt.load_settings(PARTS[part]) for part in PARTS}
    assert settings[FULL] == train_gpt.load_settings({})
    assert len(set(settings.values())) == len(PARTS)


def test_a_row_compares_each_seed_with_the_full_system():
    full = [Outcome(2.0, 2.1, 1000), Outcome(2.05, 2.2, 1002)]
    without = [Outcome(2.01, 2.15, 900), Outcome(2.06, 2.23, 1904)]
    row = "| no smear gate | 2.0100, 2.0600 | 2.1500, 2.2300 | +0.0500 +0.0300 | 1,402 |"
    assert table_row("no smear gate", without, full) == row
    assert "| +0.0000 +0.0000 |" in table_row(FULL, full, full)
