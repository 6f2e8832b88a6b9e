"""Findings, and how they are printed: the answer first, then a table of runs, then each finding.

The first line is OK, FAILED or NOT PROVEN and one sentence: FAILED if any finding is, OK if none
is, none is a suspicion, and the score is proven or agrees with the logs. The score is what is
claimed of an artifact, or else what was recomputed of it; and what a folder's submission.json says.
"""

import json
import math
import os
import signal
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable
from statistics import fmean, stdev
from typing import NamedTuple

PROVEN = "PROVEN"
CONSISTENT = "CONSISTENT"
NOT_CHECKABLE = "NOT CHECKABLE"
SUSPICION = "SUSPICION"
FAILED = "FAILED"
COLOURS = {FAILED: 31, SUSPICION: 35, NOT_CHECKABLE: 33, CONSISTENT: 36, PROVEN: 32}  # in order
SCORES = ("val_bpb", "val_bpb_ttt", "claim")  # the findings on what an entry stands for
WIDTH = 110  # columns
STOPPED = "stopped by Ctrl-C"
DETAIL_CHARS = 1_500  # of a longer detail the rest is not printed


class RunRow(NamedTuple):
    """A run that a score rests on; None where its log does not say."""

    seed: int | None
    val_bpb: float | None
    bytes: int | None  # code plus model
    training: float | None  # seconds
    evaluation: float | None  # seconds


class Finding(NamedTuple):
    """One check's outcome."""

    verdict: str
    check: str  # a short name: "size", "val_bpb", "seeds"
    detail: str  # one sentence
    number: float | int | None = None  # what the verdict rests on
    unit: str = ""  # "bytes", "bits/byte", "s", ...
    line: str = ""  # evidence that is text: "train_seed1337.log:1203: final_..._exact val_loss:1.9"
    settle: str = ""  # what would settle it
    runs: tuple[RunRow, ...] = ()  # the table of a folder, with its val_bpb
    says: str = ""  # of an artifact's score, for the first line: which score of what it is


class UnusableInput(Exception):
    """The input cannot be checked at all; the message is the one sentence the user sees."""


def clean(text: str, limit: int = 500) -> str:
    """Text from a file, safe on a terminal: one line, printable, at most `limit` characters."""
    text = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---------------------------------------------------------------- for people


def print_report(findings: list[Finding]) -> None:
    """The answer, the table of runs, the findings with failures first, then the count of each."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    answer = answer_of(findings)
    sentence = f"{answer} — {clean(sentence_of(findings, answer))}"
    print(textwrap.fill(sentence, WIDTH, subsequent_indent="    "))
    runs = next((finding.runs for finding in findings if finding.runs), ())
    if runs:
        print_runs(runs)

    counts = Counter(finding.verdict for finding in findings)
    for verdict, code in COLOURS.items():
        if counts[verdict]:
            print(f"\033[1;{code}m{verdict}\033[0m" if colour else verdict)
        for finding in findings:
            if finding.verdict == verdict:
                print_finding(finding)
    shown = [verdict for verdict in COLOURS if counts[verdict] or verdict == FAILED]
    print(" · ".join(f"{counts[verdict]} {verdict}" for verdict in shown))


def answer_of(findings: list[Finding]) -> str:
    verdicts = {finding.verdict for finding in findings}
    if FAILED in verdicts:
        return FAILED
    scores = [finding.verdict for finding in scores_of(findings)]
    good = scores and all(verdict in (PROVEN, CONSISTENT) for verdict in scores)
    return "OK" if good and SUSPICION not in verdicts else "NOT PROVEN"


def scores_of(findings: list[Finding]) -> list[Finding]:
    """The findings that the answer rests on: where a claim of an artifact was decided, not what was
    recomputed of it besides."""
    scores = [finding for finding in findings if finding.check in SCORES]
    decided = [f for f in scores if f.check == "claim" and f.verdict in (PROVEN, CONSISTENT)]
    return [f for f in scores if not (decided and f.says and f.check != "claim")]


def sentence_of(findings: list[Finding], answer: str) -> str:
    """What the answer rests on."""

    def names(verdict: str) -> str:
        found = dict.fromkeys(f.check for f in findings if f.verdict == verdict)
        return ", ".join(found)

    if answer == FAILED:
        first = next(finding for finding in findings if finding.verdict == FAILED)
        number = "" if first.number is None else f"{stated_number(first.number, first.unit)}, "
        return f"{names(FAILED)}: {number}{first.detail}"

    scores = scores_of(findings)
    if answer == "OK":
        said = [stated_score(finding) for finding in scores]
        said += [f.says for f in findings if f.says and f.check == "adaptation"]
        alone = all(finding.verdict == CONSISTENT and not finding.says for finding in scores)
        return f"{'; '.join(said)}, and nothing failed" + ("; none was recomputed" if alone else "")

    open_points = ["nothing failed"]
    if names(SUSPICION):
        open_points.append(f"to look at: {names(SUSPICION)}")
    said = [f for f in scores if f.says] + [f for f in findings if f.says and f not in scores]
    if any(f.verdict == NOT_CHECKABLE and not f.says for f in scores) or not (scores or said):
        open_points.append("the score cannot be checked")
    return "; ".join([*open_points, *(finding.says for finding in said)])


def stated_score(finding: Finding) -> str:
    """val_bpb 1.120000 agrees with the logs"""
    how = "was recomputed here" if finding.verdict == PROVEN else "agrees with the logs"
    return finding.says or f"{finding.check} {finding.number:.6f} {how}"


def print_runs(runs: tuple[RunRow, ...]) -> None:
    """One row a run, then mean and standard deviation."""
    columns = ("val_bpb", "bytes", "training s", "evaluation s")
    print(f"  {'seed':<10}" + "".join(f"{name:>14}" for name in columns))
    for run in runs:
        seed = "?" if run.seed is None else run.seed
        print(f"  {seed!s:<10}" + cells(run[1:]))
    if len(runs) > 1:
        columns = list(zip(*runs, strict=True))[1:]
        stated = [[value for value in column if value is not None] for column in columns]
        print(f"  {'mean':<10}" + cells([fmean(column) if column else None for column in stated]))
        spread = [stdev(column) if len(column) > 1 else None for column in stated]
        print(f"  {'deviation':<10}" + cells(spread))


def cells(values: list) -> str:
    texts = []
    for value, form in zip(values, (".6f", ",.0f", ".1f", ".1f"), strict=True):
        texts.append("-" if value is None else f"{value:{form}}")
    return "".join(f"{text:>14}" for text in texts)


def print_finding(finding: Finding) -> None:
    number = "" if finding.number is None else stated_number(finding.number, finding.unit)
    text = f"  {finding.check:<15} {number:<22} {clean(finding.detail, DETAIL_CHARS)}"
    print(textwrap.fill(text, WIDTH, subsequent_indent=" " * 41))
    if finding.line:
        print(f"{'':18}> {clean(finding.line, 90)}")
    if finding.settle:
        text = f"{'':18}to settle: {clean(finding.settle)}"
        print(textwrap.fill(text, WIDTH, subsequent_indent=" " * 29))


def stated_number(number: float | int, unit: str) -> str:
    """1 seed, 15,900,200 bytes, 600.1 s, 1.120000 bits/byte"""
    if isinstance(number, int):
        unit = unit.removesuffix("s") if number == 1 and len(unit) > 2 else unit
        return f"{number:,} {unit}"
    if unit == "s":
        return f"{number:,.1f} s"
    form = ".1e" if 0 < abs(number) < 1e-3 else ".6f"
    return f"{number:{form}} {unit}"


# ---------------------------------------------------------------- for machines


def print_json(findings: list[Finding], target: str, code: int) -> None:
    rows = [finding._asdict() for finding in findings]
    for row in rows:
        del row["says"]
        if not math.isfinite(row["number"] or 0):
            row["number"] = None  # JSON has no NaN and no infinity
        row["runs"] = [run._asdict() for run in row["runs"]]
    report = {"schema": 1, "input": target, "exit_code": code}
    report |= {"answer": answer_of(findings), "findings": rows}
    print(json.dumps(report, indent=1))


def end_on_interrupt(program: str) -> None:
    """Until run_program: Ctrl-C ends the program with one sentence, in its imports as well."""

    def end(*_: object) -> None:
        os.write(2, f"{program}: {STOPPED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def run_program(main: Callable[[], int], program: str) -> int:
    """The exit code of a program; no traceback where Ctrl-C or a closed pipe ends it."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that exit is silent
        return 2
    except KeyboardInterrupt:
        print(f"{program}: {STOPPED}", file=sys.stderr)
        return 130


def report_on(
    find: Callable[[], list[Finding]], target: str, as_json: bool, program: str, suspect: str = ""
) -> int:
    """Prints what `find` finds on a target, or one sentence on stderr; returns the exit code.

    `suspect` ends the sentence on what nobody expected.
    """
    if sys.stdout is None:
        print(f"{program}: stdout is closed", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="replace")
    warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in their strings
    try:
        findings = find()
        code = int(any(finding.verdict == FAILED for finding in findings))
        if as_json:
            print_json(findings, target, code)
        else:
            print_report(findings)
        sys.stdout.flush()
        return code
    except UnusableInput as error:
        problem = str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that exit is silent
        problem = "stdout was closed before the report was written"
    except OSError as error:
        problem = f"{error.filename or target}: {error.strerror or error}"
    except KeyboardInterrupt:
        problem = STOPPED
    except (Exception, SystemExit) as error:  # no memory, their code, ...
        problem = f"stopped by {type(error).__name__} {error}{suspect}"
    print(f"{program}: {clean(problem)}", file=sys.stderr)
    return 2
