"""Each kind of record folder gets its verdict, and nothing of an honest one is accused."""

import pytest
from attacks.folders import ALARMS, CASES

from records.check import check_folder


@pytest.mark.parametrize("name", CASES)
def test_a_kind_of_folder(tmp_path, name):
    case = CASES[name]()
    found = check_folder(case.write(tmp_path))
    shown = [f"{f.verdict} {f.check}: {f.detail} {f.line}" for f in found]

    for check, verdicts in case.wanted.items():
        assert {f.verdict for f in found if f.check == check} & {*verdicts}, shown
    alarms = {f.check for f in found if f.verdict in ALARMS}
    assert not alarms & {*case.calm}, shown
    if "all" in case.calm:
        assert not alarms, shown

    failed = {f.check for f in found if f.verdict == "FAILED"}
    wanted = {check for check, verdicts in case.wanted.items() if "FAILED" in verdicts}
    assert not case.sound or failed <= wanted, shown
    assert not case.says or any(case.says in line for line in shown), shown
