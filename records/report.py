"""Findings, the answer that follows from them, and how both are printed.

--json: schema (2), input, exit_code, answer, sentence, runs (the table), findings (each: verdict,
check, detail, number or null, unit, line: the evidence, file: the artifact that it is about).
"""

import json
import math
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from statistics import fmean, stdev

FAILED = "FAILED"  # the files contradict the claim, or the claimed run breaks a rule: proof
SUSPICION = "SUSPICION"  # what has invalidated entries before, with its line; proves nothing
NOT_CHECKABLE = "NOT CHECKABLE"  # cannot be decided from what lies here
CONSISTENT = "CONSISTENT"  # agrees with what the competitor submitted, which could be wrong
PROVEN = "PROVEN"  # recomputed here, by code that is not the competitor's
COLOURS = {FAILED: 31, SUSPICION: 35, NOT_CHECKABLE: 33, CONSISTENT: 36, PROVEN: 32}  # in order
WIDTH = 110  # columns
STOPPED = "stopped by Ctrl-C"


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    verdict: str
    check: str  # a short name: "size", "val_bpb", "seeds"
    detail: str  # one sentence
    number: float | int | None = None  # what the verdict rests on
    unit: str = ""  # "bytes", "bits/byte", "s", ...
    line: str = ""  # the evidence, quoted: "train_seed1337.log:1203: final_..._exact val_loss:1.9"
    says: str = ""  # for the first line: which score of an artifact it is
    file: str = ""  # the artifact of a folder that it is about


@dataclass(frozen=True)
class RunRow:
    """A run that a score rests on; None where its log does not say."""

    seed: int | None
    val_bpb: float | None
    bytes: int | None  # code plus model
    training: float | None  # seconds
    evaluation: float | None  # seconds of the claimed pass


@dataclass(frozen=True)
class Report:
    findings: list[Finding]
    needed: tuple[tuple[str, ...], ...]  # of each group of checks one has to be shown for an OK
    runs: tuple[RunRow, ...] = ()


class UnusableInput(Exception):
    """The input cannot be checked at all; the message is the one sentence the user sees."""


def clean(text: str, limit: int = 500) -> str:
    """Text from a file, safe on a terminal: one line, printable, at most `limit` characters."""
    text = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def answer_of(report: Report) -> str:
    """NOT PROVEN where nothing failed, but there is a suspicion or something is not shown."""
    verdicts = {finding.verdict for finding in report.findings}
    if FAILED in verdicts:
        return FAILED
    return "NOT PROVEN" if SUSPICION in verdicts or missing(report) else "OK"


def missing(report: Report) -> list[str]:
    """What an OK needs and no finding shows; an artifact's own score is not its folder's."""
    shown = {
        finding.check
        for finding in report.findings
        if finding.verdict in (CONSISTENT, PROVEN)
        if not finding.file or finding.check in ("claim", "size")
    }
    return [group[0] for group in report.needed if not shown & {*group}]


def sentence_of(report: Report) -> str:
    """What the answer rests on."""
    findings = report.findings
    failed = [finding for finding in findings if finding.verdict == FAILED]
    if failed:
        names = ", ".join(dict.fromkeys(finding.check for finding in failed))
        number = stated_number(failed[0])
        return f"{names}: {number}{number and ', '}{failed[0].detail}"

    parts = ["nothing failed"]
    if missing(report):
        parts.append(f"not shown: {', '.join(missing(report))}")
    looks = dict.fromkeys(finding.check for finding in findings if finding.verdict == SUSPICION)
    if looks:
        parts.append(f"to look at: {', '.join(looks)}")
    parts += dict.fromkeys(finding.says for finding in findings if finding.says)
    return "; ".join(parts)


def print_report(report: Report) -> None:
    """The answer, the table of runs, failures and suspicions in full, a line for the others."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sentence = f"{answer_of(report)} — {clean(sentence_of(report), 600)}"
    print(textwrap.fill(sentence, WIDTH, subsequent_indent="    "))
    print_runs(report.runs)
    counts = Counter(finding.verdict for finding in report.findings)
    for verdict, code in COLOURS.items():
        if counts[verdict]:
            print(f"\033[1;{code}m{verdict}\033[0m" if colour else verdict)
        for finding in report.findings:
            if finding.verdict == verdict:
                print_finding(finding)
    print(" · ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS if counts[verdict]))


def print_runs(runs: tuple[RunRow, ...]) -> None:
    """One row a run, then mean and standard deviation."""
    rows = [("?" if run.seed is None else str(run.seed), *astuple(run)[1:]) for run in runs]
    columns = list(zip(*rows, strict=True))[1:]
    stated = [[value for value in column if value is not None] for column in columns]
    if len(runs) > 1:
        rows.append(("mean", *(fmean(column) if column else None for column in stated)))
        rows.append(("deviation", *(stdev(c) if len(c) > 1 else None for c in stated)))
    if rows:
        print(f"  seed{'val_bpb':>30}{'bytes':>14}{'training s':>14}{'evaluation s':>14}")
    for name, *values in rows:
        pairs = zip(values, (".6f", ",.0f", ".1f", ".1f"), strict=True)
        cells = ["-" if value is None else f"{value:{form}}" for value, form in pairs]
        print(f"  {name:<20}" + "".join(f"{cell:>14}" for cell in cells))


def print_finding(finding: Finding) -> None:
    detail = f"{finding.file}: {finding.detail}" if finding.file else finding.detail
    number = stated_number(finding)
    text = f"  {finding.check:<16} {number}{number and ', '}{clean(detail, 1_500)}"
    if finding.verdict not in (FAILED, SUSPICION):
        print(clean(text, WIDTH))
        return
    print(textwrap.fill(text, WIDTH, subsequent_indent=" " * 19))
    if finding.line:
        print(f"{'':19}> {clean(finding.line, WIDTH - 20)}")


def stated_number(finding: Finding) -> str:
    """3 seeds, 15,900,200 bytes, 600.1 s, 1.120000 bits/byte"""
    number = finding.number
    if number is None:
        return ""
    form = ".1f" if finding.unit == "s" else ".6f"
    return f"{number:{',' if isinstance(number, int) else form}} {finding.unit}"


def print_json(report: Report, target: str, code: int) -> None:
    rows = [asdict(finding) for finding in report.findings]
    for row in rows:
        del row["says"]
        if not math.isfinite(row["number"] or 0):
            row["number"] = None  # JSON has no NaN and no infinity
    table = {"schema": 2, "input": target, "exit_code": code, "answer": answer_of(report)}
    table |= {"sentence": sentence_of(report), "runs": [asdict(run) for run in report.runs]}
    print(json.dumps(table | {"findings": rows}, indent=1))


def end_on_interrupt(program: str) -> None:
    """Until a report is made: Ctrl-C ends the program with one sentence, in its imports as well."""

    def end(*_: object) -> None:
        os.write(2, f"{program}: {STOPPED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def report_on(find: Callable[[], Report], program: str, target: str, as_json: bool) -> int:
    """Prints what `find` finds on a target, or a sentence on stderr; returns 0, 1, 2 or 130."""
    if sys.stdout is None:
        print(f"{program}: stdout is closed", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="replace")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        report = find()
        failed = int(answer_of(report) == FAILED)
        if as_json:
            print_json(report, target, failed)
        else:
            print_report(report)
        sys.stdout.flush()
        return failed
    except UnusableInput as error:
        problem = str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that exit is silent
        problem = "stdout was closed before the report was written"
    except OSError as error:
        problem = f"{error.filename or target}: {error.strerror or error}"
    except KeyboardInterrupt:
        print(f"{program}: {STOPPED}", file=sys.stderr)
        return 130
    except Exception as error:  # of a file that nobody foresaw: a sentence, no traceback
        problem = f"stopped by {type(error).__name__} {error}"
    print(f"{program}: {clean(problem)}", file=sys.stderr)
    return 2
