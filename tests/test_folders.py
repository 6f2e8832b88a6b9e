"""Each kind of record folder gets its verdict, and nothing else of it is accused."""

import pytest
from attacks.folders import CASES, write

from records.check import check_folder
from records.report import answer_of


@pytest.mark.parametrize("name", CASES)
def test_a_kind_of_folder(tmp_path, name):
    case = CASES[name]
    report = check_folder(write(tmp_path, case.files))
    shown = [f"{f.verdict} {f.check} {f.number}: {f.detail} {f.line}" for f in report.findings]
    assert answer_of(report) == case.answer, shown

    found = [(f.check, f.verdict, f.number) for f in report.findings]
    for check, (verdict, number) in case.found.items():
        assert (check, verdict, number and pytest.approx(number, abs=1e-8)) in found, shown
    alarms = {row[:2] for row in found if row[1] in ("FAILED", "SUSPICION")}
    wanted = {(check, verdict) for check, (verdict, _) in case.found.items()}
    assert alarms <= wanted, shown
    assert any(case.says in line for line in shown), shown
