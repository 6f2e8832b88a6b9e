"""Each kind of record folder gets its verdict, and nothing else of it is accused."""

import re

import pytest
from attacks.folders import CASES, entry_of, rows, write

from records.check import check_folder
from records.report import answer_of

TEXTS = {}  # of each kind, in one line
for name, text in rows(CASES):
    TEXTS[name] = f"{TEXTS.get(name, '')} {text}"
FINDING = re.compile(r"(FAILED|SUSPICION|NOT CHECKABLE|CONSISTENT|PROVEN) (\D+?)(?: ([\d.]+))?")


@pytest.mark.parametrize("name", TEXTS)
def test_a_kind_of_folder(tmp_path, name):
    words, _, wanted = TEXTS[name].partition("-> ")
    answer, *wanted = re.split("; *", wanted)
    report = check_folder(write(tmp_path, entry_of(words)))
    shown = [f"{f.verdict} {f.check} {f.number}: {f.detail} {f.line}" for f in report.findings]
    assert answer_of(report) == answer, shown

    found = [(f.verdict, f.check, f.number) for f in report.findings]
    wanted = [FINDING.fullmatch(one).groups() for one in wanted]
    for verdict, check, number in wanted:
        numbers = [one[2] for one in found if one[:2] == (verdict, check)]
        assert numbers and (not number or pytest.approx(float(number), abs=1e-8) in numbers), shown
    alarms = {one[:2] for one in found if one[0] in ("FAILED", "SUSPICION")}
    assert alarms <= {one[:2] for one in wanted}, shown
