"""Checks what a record folder of any Parameter Golf entry states, short of its artifact.

    python records/check.py FOLDER [--against BPB[,BPB...]] [--json]

Reads submission.json, README, logs and scripts; runs nothing of the folder, and needs neither torch
nor a tokenizer. `python verify.py FOLDER` checks the folder's artifact as well.

Every check ends in a finding with the number behind it:
    PROVEN          recomputed here from the files, by code that does not come from the competitor
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

--json prints one object: schema (1), input (the path), exit_code, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or "")}.

Sections: findings and report, the folder, val_bpb, bytes, times, the split, seeds and settings,
scripts, significance, main.
"""

import argparse
import ast
import json
import math
import os
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

if __name__ == "__main__":  # imports start at the root, and records/code.py hides no other code
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from records.code import (
    TEXT_BYTES,
    UNREADABLE,
    code_bytes,
    code_patterns,
    code_shape,
    read_code,
    read_text,
    unpack,
)
from records.logs import (
    BPB_FIELDS,
    BYTES_FIELDS,
    LOG_PATTERNS,
    Line,
    Log,
    claimed,
    claimed_seeds,
    read_logs,
    to_number,
)

CAP_BYTES = 16_000_000  # code plus artifact, decimal
LIMIT_S = 600.0  # for training, and again for evaluation
MAX_FILES = 2_000  # of a folder
SP1024_VAL_TOKENS = 62_021_632  # scored by the challenge's tokenizer, in whole sequences of 1,024
SPLIT_TOKENS = {1024: SP1024_VAL_TOKENS, 4096: 45_508_608, 8192: 40_540_160}  # by vocabulary
SPLIT_BYTES = 151_080_000  # UTF-8 text of the whole validation split, whatever the tokenizer
RECORD_NATS = 0.005  # what a record must beat the best by
RECORD_P = 0.01  # and how surely
PER_RUN = re.compile(  # settings that may differ between the runs of one entry
    r"seed|run_?id|path|dir$|file|^(local_)?rank|time$|port$|host|date|warmup_step$|bytes|shard"
    r"|checkpoint|resume"
)


# ---------------------------------------------------------------- findings and report

PROVEN = "PROVEN"
CONSISTENT = "CONSISTENT"
NOT_CHECKABLE = "NOT CHECKABLE"
SUSPICION = "SUSPICION"
FAILED = "FAILED"
COLOURS = {PROVEN: 32, CONSISTENT: 36, NOT_CHECKABLE: 33, SUSPICION: 35, FAILED: 31}  # in order


class Finding(NamedTuple):
    """One check's outcome."""

    verdict: str
    check: str  # a short name: "size", "val_bpb", "seeds"
    detail: str  # one sentence
    number: float | int | None = None  # what the verdict rests on
    unit: str = ""  # "bytes", "bits/byte", "s", ...
    line: str = ""  # evidence that is text: "train_seed1337.log:1203: final_..._exact val_loss:1.9"


class UnusableInput(Exception):
    """The input cannot be checked at all; the message is the one sentence the user sees."""


def clean(text: str, limit: int = 500) -> str:
    """Text from a file, safe on a terminal: one line, printable, at most `limit` characters."""
    text = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def print_report(findings: list[Finding]) -> None:
    """One screen: the findings grouped by verdict, failures last, then the count of each."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    counts = Counter(finding.verdict for finding in findings)
    for verdict, code in COLOURS.items():
        if counts[verdict]:
            print(f"\033[1;{code}m{verdict}\033[0m" if colour else verdict)
        for finding in findings:
            if finding.verdict == verdict:
                print_finding(finding)
    shown = [verdict for verdict in COLOURS if counts[verdict] or verdict == FAILED]
    print(" · ".join(f"{counts[verdict]} {verdict}" for verdict in shown))


def print_finding(finding: Finding) -> None:
    number = ""
    if finding.number is not None:
        form = ".1e" if 0 < abs(finding.number) < 1e-3 else ".6f"
        form = "," if isinstance(finding.number, int) else form
        number = f"{finding.number:{form}} {finding.unit}"
    text = f"  {finding.check:<15} {number:<22} {clean(finding.detail)}"
    print(textwrap.fill(text, 110, subsequent_indent=" " * 41))
    if finding.line:
        print(f"{'':18}> {clean(finding.line, 90)}")


def print_json(findings: list[Finding], target: str, code: int) -> None:
    rows = [finding._asdict() for finding in findings]
    for row in rows:
        if not math.isfinite(row["number"] or 0):
            row["number"] = None  # JSON has no NaN and no infinity
    report = {"schema": 1, "input": target, "exit_code": code, "findings": rows}
    print(json.dumps(report, indent=1))


def report_on(
    find: Callable[[], list[Finding]], target: str, as_json: bool, program: str, suspect: str = ""
) -> int:
    """Prints what `find` finds on a target, or one sentence on stderr; returns the exit code.

    `suspect` ends the sentence on what nobody expected.
    """
    sys.stdout.reconfigure(errors="replace")
    warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in their strings
    try:
        findings = find()
        code = int(any(finding.verdict == FAILED for finding in findings))
        if as_json:
            print_json(findings, target, code)
        else:
            print_report(findings)
        return code
    except UnusableInput as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or target}: {error.strerror or error}"
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # no memory, their code, ...
        problem = f"stopped by {type(error).__name__} {error}{suspect}"
    print(f"{program}: {clean(problem)}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------- the folder


def check_folder(folder: Path, against: str | None = None) -> list[Finding]:
    """Files, submission.json, logs, scripts, seeds, and the significance `against` scores, given
    with commas. Raises UnusableInput where those are no scores."""
    files = list_files(folder)
    logs = read_logs(folder, files)
    scripts = [path for path in files if path.suffix == ".py" and path.stat().st_size]
    script = max(scripts, key=likeness_to_train_gpt, default=None)
    readme = next((path for path in files if path.name.lower().startswith("readme")), None)

    table, parsed = read_submission(files)
    score, lines = check_val_bpb(table, logs, files)
    names = {line.log for line in lines}
    used = [log for log in logs if log.name in names] or logs  # those that val_bpb rests on
    track = f"{folder.resolve().parent.name} {table.get('track', '')}".lower()
    record = "10min" in track and "non" not in track

    return [
        check_files(files, readme, logs, script),
        parsed,
        score,
        check_readme(claimed(table, BPB_FIELDS), readme),
        check_log_size(used, script),
        check_claimed_bytes(table, logs, files),
        *check_artifact_bytes(logs, files),
        check_hardware(used, record),
        *check_training_time(used, record),
        check_evaluation_time(used, record),
        check_split(lines, used, record),
        check_seeds(claimed_seeds(table), logs, used, files),
        check_settings(used),
        check_embedded(used, scripts),
        *check_against(lines, against),
        *check_patterns(used, script, scripts),
    ]


def list_files(folder: Path) -> list[Path]:
    """At most MAX_FILES of the folder's regular files, hidden ones apart, those nearest the top
    first."""
    found = (path for path in folder.rglob("*") if path.is_file())
    hidden = re.compile(r"(^|/)(\.|__\w+__/)")
    found = (path for path in found if not hidden.search(str(path.relative_to(folder))))
    return sorted(islice(found, MAX_FILES), key=lambda path: (len(path.parts), str(path)))


def likeness_to_train_gpt(path: Path) -> tuple:
    return path.name == "train_gpt.py", path.name.startswith("train"), path.stat().st_size


def check_files(
    files: list[Path], readme: Path | None, logs: list[Log], script: Path | None
) -> Finding:
    needed = {"README.md": readme, "a train log": logs, "a script": script}
    lacking = [name for name, there in needed.items() if not there]
    detail = f"lacks {', '.join(lacking)}"
    if not lacking:
        detail = f"README, {script.name}, {len(logs)} logs"
    return Finding(FAILED if lacking else PROVEN, "files", detail, len(files), "files")


def read_submission(files: list[Path]) -> tuple[dict, Finding]:
    """The fields of submission.json, or of the first file named alike."""
    named = [path for path in files if re.fullmatch(r"submission.*\.json", path.name)]
    if not named:
        return {}, Finding(FAILED, "submission.json", "is missing")

    path = min(named, key=lambda path: path.name != "submission.json")
    try:
        table = json.loads(read_text(path))
        if isinstance(table, dict):
            detail = f"{path.name} parses"
            return table, Finding(PROVEN, "submission.json", detail, len(table), "fields")
        problem = f"it holds a {type(table).__name__}, not fields"
    except UNREADABLE as error:
        problem = error
    return {}, Finding(FAILED, "submission.json", f"{path.name} cannot be used: {problem}")


def submitted_scores(folder: Path) -> list[float]:
    """What a folder's submission.json claims for an artifact: each seed's val_bpb, or the headline
    alone where there are no seeds or it is not their mean; [] where there is none."""
    table, _ = read_submission([path for path in folder.glob("submission*.json") if path.is_file()])
    headline = claimed(table, BPB_FIELDS)
    seeds = [bpb for bpb in claimed_seeds(table).values() if bpb]
    if headline and (not seeds or abs(headline - sum(seeds) / len(seeds)) > 1e-3):
        return [headline]
    return seeds


def check_readme(claim: float | None, readme: Path | None) -> Finding:
    text = read_text(readme)
    stated = list(re.finditer(r"(?<![\d.])\d\.\d{3,12}(?!\d)", text))
    if claim is None or not stated:
        detail = "README or submission.json states no val_bpb"
        return Finding(NOT_CHECKABLE, "README", detail, claim, "bits/byte")

    for found in stated:
        if agree(claim, float(found[0]), len(found[0]) - 2):
            number = text.count("\n", 0, found.start()) + 1
            line = f"{readme.name}:{number}: {found[0]}"
            detail = "states submission.json's val_bpb"
            return Finding(CONSISTENT, "README", detail, claim, "bits/byte", line)
    detail = "none of its numbers is submission.json's val_bpb"
    return Finding(SUSPICION, "README", detail, claim, "bits/byte")


# ---------------------------------------------------------------- val_bpb


class Explanation(NamedTuple):
    """A way in which a val_bpb comes from logs."""

    words: str  # "the mean of the last final lines of 3 logs"
    bpb: float
    lines: list[Line]  # that make it


def check_val_bpb(table: dict, logs: list[Log], files: list[Path]) -> tuple[Finding, list[Line]]:
    """submission.json's val_bpb against the logs; also the lines that it rests on, for the checks
    that follow."""
    claim = claimed(table, BPB_FIELDS)
    seeds = claimed_seeds(table)
    headlines = [log.headline for log in logs if log.headline]
    lines = [line for log in logs for line in [*log.lines, *log.running]]

    if claim is None or all(line.kind == "illegal" for line in lines):
        detail = "no log states a legal val_bpb"
        if claim is None:
            detail = "submission.json states no val_bpb"
        detail += quoted(headlines)
        return Finding(NOT_CHECKABLE, "val_bpb", detail, claim, "bits/byte"), headlines

    found = explain(claim, list(explanations(logs, seeds)))
    if found:
        first = found.lines[0]
        verdict = CONSISTENT if first.kind == "final" else SUSPICION
        detail = f"submission.json's {claim:g} is {found.words}{quoted(found.lines)}"
        finding = Finding(verdict, "val_bpb", detail, found.bpb, "bits/byte", first.quote)
        return finding, found.lines

    unlogged = sorted(set(seeds) - {log.seed for log in logs})
    elsewhere = stated_elsewhere(claim, files)
    return unexplained(claim, lines, headlines, unlogged, elsewhere), headlines


def agree(claim: float, measured: float, digits: int, units: float = 1.0) -> bool:
    """Equal in the decimals that both are stated to, give or take one unit there: people round, and
    people cut."""
    decimals = f"{claim:.12f}".rstrip("0").partition(".")[2]
    stated = max(2, len(decimals))
    return abs(claim - measured) <= 1.01 * units * 10.0 ** -min(stated, digits)


def explain(claim: float, ways: list[Explanation]) -> Explanation | None:
    """The first way that gives the claim to the digit, else the first that is one unit away."""
    for units in (0.5, 1.0):
        for way in ways:
            digits = min(line.digits for line in way.lines)
            if agree(claim, way.bpb, digits, units):
                return way
    return None


def explanations(logs: list[Log], seeds: dict) -> Iterator[Explanation]:
    """The ways in which a val_bpb comes from logs, the usual ones first."""
    groups = [logs, [log for log in logs if log.seed in seeds]]  # then those that are named alike
    groups += [list(group) for _, group in groupby(logs, lambda log: re.sub(r"\d+", "", log.name))]
    for group in groups:
        for label, lines in final_lines(group).items():
            if len(lines) > 1:
                words = f"the mean of the last {label} lines of {len(lines)} logs"
                yield Explanation(words, fmean(line.bpb for line in lines), lines)

    found = [line_that_states(bpb, logs) for bpb in seeds.values()]
    if len(found) > 1 and None not in found:
        words = "the mean of its seed results, each of them in a log"
        yield Explanation(words, fmean(seeds.values()), found)

    singles = []
    for log in logs:
        singles += [log.headline, *reversed(log.lines), *reversed(log.running)]
    legal = [line for line in singles if line and line.kind != "illegal"]
    for line in sorted(legal, key=lambda line: line.kind):  # final ones first
        yield Explanation(f"a {line.kind} line of one of {len(logs)} logs", line.bpb, [line])


def final_lines(logs: list[Log]) -> dict[str, list[Line]]:
    """The logs' headlines as "final", and the last line of each label in each log."""
    chosen = {"final": [log.headline for log in logs if log.headline]}
    for log in logs:
        last = {}
        for line in log.lines:
            if line.kind == "final":
                label = re.split("val_loss|val_bpb", line.quote.partition(": ")[2])[0]
                last[label] = line
        for label, line in last.items():
            chosen.setdefault(f"'{label.strip()}'", []).append(line)
    return chosen


def line_that_states(bpb: float | None, logs: list[Log]) -> Line | None:
    for log in logs:
        for line in log.lines:
            if bpb and agree(bpb, line.bpb, line.digits):
                return line
    return None


def stated_elsewhere(claim: float, files: list[Path]) -> bool:
    """Whether a file that is no script, README or submission may hold the claim."""
    for path in files:
        if path.suffix == ".py" or re.match("readme|submission", path.name, re.I):
            continue
        if path.stat().st_size > TEXT_BYTES or f"{claim:.4f}" in read_text(path):
            return True
    return False


def unexplained(
    claim: float, lines: list[Line], headlines: list[Line], unlogged: list[int], elsewhere: bool
) -> Finding:
    """The finding on a val_bpb that comes from no line and no mean of the logs."""
    illegal = [line for line in lines if line.kind == "illegal"]
    illegal = [line.quote for line in illegal if agree(claim, line.bpb, line.digits)]
    lowest = min(line.bpb for line in lines if line.kind != "illegal")

    words = f"no line and no mean of the logs, whose lowest is {lowest:g}"
    if illegal:
        words = "of a line that its log labels NOT LEGAL"
    if unlogged:
        words += f"; seeds {unlogged[:5]} have no log"
    detail = f"submission.json's {claim:g} is {words}{quoted(headlines)}"

    unfounded = claim < lowest and headlines and not unlogged and not elsewhere
    verdict = FAILED if illegal or unfounded else SUSPICION
    return Finding(verdict, "val_bpb", detail, claim, "bits/byte", illegal[0] if illegal else "")


def quoted(lines: list[Line]) -> str:
    """Where lines stand and what they say: "; a.log:7 1.12; b.log:7 1.13"."""
    parts = [f"{line.quote.split(': ')[0]} {line.bpb:g}" for line in lines[:6]]
    if len(lines) > 6:
        parts.append("...")
    return "".join(f"; {part}" for part in parts)


# ---------------------------------------------------------------- bytes


def stated_total(log: Log) -> int | None:
    """Bytes of code plus artifact, or of the artifact alone where a log states no more."""
    return log.last("total_bytes") or log.last("model_bytes")


def check_log_size(logs: list[Log], script: Path | None) -> Finding:
    """The logs' largest total against the cap and the files; FAILED only if compressing the code
    cannot save it."""
    sized = [log for log in logs if stated_total(log)]
    files, computed = read_code(script) if script else ([], [])
    too_large = any(path.stat().st_size > TEXT_BYTES for path in files)
    if not sized or not files or too_large:
        detail = "no log states a size, or no script of usual size is here"
        return Finding(NOT_CHECKABLE, "size", detail, None, "bytes")

    raw, packed = code_bytes(files)
    log = max(sized, key=stated_total)
    counted = log.last("code_bytes")
    model = min((fact.value for fact in log.facts["model_bytes"]), default=0)
    total = log.last("total_bytes") or model + raw
    left_out = files[1:9] if counted == script.stat().st_size else []

    more = ", more by a computed name" if computed else ""
    detail = (
        f"largest total of {len(sized)} logs, cap {CAP_BYTES:,}; model {model:,}; "
        f"code {raw:,}, {packed:,} by lzma{more}, {counted or 'none'} logged"
    )
    if left_out:
        detail += f"; not counted: {', '.join(path.name for path in left_out)}"

    verdict = SUSPICION if total > CAP_BYTES or left_out else CONSISTENT
    least = packed * 9 // 10  # there are better compressors
    if counted is not None:
        least = min(least, counted)
    if model and model + least > CAP_BYTES:
        verdict = FAILED
    return Finding(verdict, "size", detail, total, "bytes", log.name)


def check_claimed_bytes(table: dict, logs: list[Log], files: list[Path]) -> Finding:
    """submission.json's total against the logs and the cap."""
    claim = claimed(table, BYTES_FIELDS)
    totals = [log.last("total_bytes") for log in logs if log.last("total_bytes")]
    codes = [path.stat().st_size for path in files if path.suffix == ".py"]
    stated = [*stated_sizes(logs, "model_bytes"), *stated_sizes(logs, "total_bytes")]
    stated.append(round(fmean(totals or [0])))

    largest = max(totals, default=0)
    detail = f"submission.json's, cap {CAP_BYTES:,}; the logs' totals go up to {largest:,}"
    verdict = SUSPICION
    if claim is None:
        verdict = NOT_CHECKABLE
    elif claim > CAP_BYTES + sum(codes):  # by less than the code, compression may help
        verdict = FAILED
    elif claim <= CAP_BYTES and not totals:
        verdict = NOT_CHECKABLE
    elif claim <= CAP_BYTES:
        known = [size + code for size in stated for code in (0, *codes)]
        verdict = CONSISTENT if claim >= largest or claim in known else SUSPICION
    number = None if claim is None else int(claim)
    return Finding(verdict, "bytes_total", detail, number, "bytes")


def stated_sizes(logs: list[Log], fact: str) -> list[int]:
    return [stated.value for log in logs for stated in log.facts[fact]]


def check_artifact_bytes(logs: list[Log], files: list[Path]) -> list[Finding]:
    """Each artifact file's size against the logs."""
    models = stated_sizes(logs, "model_bytes")
    found = []
    for path in [path for path in files if path.suffix == ".pcll"][:8]:
        size = path.stat().st_size
        verdict = PROVEN if size in models else FAILED
        if not models:
            verdict = NOT_CHECKABLE
        detail = f"of {path.name}, against the model sizes that the logs state"
        found.append(Finding(verdict, "artifact bytes", detail, size, "bytes"))
    return found


# ---------------------------------------------------------------- times
# A limit binds in the record track, on 8 H100.


def check_hardware(logs: list[Log], record: bool) -> Finding:
    worlds = sorted({log.last("world_size") for log in logs} - {None})
    gpus = sorted({log.gpu for log in logs} - {""})
    detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
    if not worlds:
        return Finding(NOT_CHECKABLE, "hardware", detail, None, "processes")
    usual = worlds == [8] and gpus in ([], ["H100"])
    verdict = CONSISTENT if usual or not record else SUSPICION
    return Finding(verdict, "hardware", detail, worlds[-1], "processes")


def limit_in_words(record: bool) -> str:
    if record:
        return f"limit {LIMIT_S:g} s"
    return f"the limit of {LIMIT_S:g} s is the record track's"


def over_the_limit(log: Log, record: bool) -> str:
    """The verdict on a log whose time is over the limit."""
    if not record:
        return NOT_CHECKABLE
    usual = log.last("world_size") == 8 and log.gpu in ("", "H100")
    return FAILED if usual else SUSPICION


def check_training_time(logs: list[Log], record: bool) -> list[Finding]:
    """The training, which may finish its last step, and calibration after it."""
    log = max(logs, key=lambda log: log.longest("train").value, default=Log(""))
    seconds, line = log.longest("train")
    slack = max(1.0, log.last("step", 0.0))
    verdict = CONSISTENT if seconds else NOT_CHECKABLE
    if seconds > LIMIT_S + slack:
        verdict = over_the_limit(log, record)
    detail = f"the slowest log's; {limit_in_words(record)} and a step"
    found = [Finding(verdict, "training time", detail, seconds or None, "s", line)]
    if line and log.facts["calibration"]:
        found.append(check_calibration(log, seconds, slack, record))
    return found


def check_calibration(log: Log, trained: float, slack: float, record: bool) -> Finding:
    """What was calibrated after `trained` seconds, which may go over the limit by `slack`."""
    seconds, line = log.longest("calibration")
    quotes = [fact.quote for fact in log.facts["calibration"]]
    own = any(re.search("self|autoreg|generat", quote) for quote in quotes)
    allowed = LIMIT_S + slack if seconds > 0 else LIMIT_S

    verdict = SUSPICION if record else NOT_CHECKABLE
    if own or trained + seconds <= allowed:
        verdict = CONSISTENT
    text = ", on text of its own" if own else ""
    detail = f"calibration after {trained:.1f} s of training{text}; {limit_in_words(record)}"
    return Finding(verdict, "calibration", detail, seconds or None, "s", line)


class Evaluated(NamedTuple):
    """How long a log's evaluation took, after its training."""

    seconds: float
    line: str  # evidence: the stated total, or the longest pass
    words: str  # how the seconds come about: "; 599.6 + 4.7 = 604.3 s"
    proof: bool  # whether it is the evaluation of the log's headline and no diagnostic
    within: str = CONSISTENT  # the verdict where it is within the limit


def check_evaluation_time(logs: list[Log], record: bool) -> Finding:
    """The slowest log's passes over the validation tokens, together."""
    log = max(logs, key=lambda log: evaluated(log).seconds, default=Log(""))
    found = evaluated(log)
    verdict = found.within
    if found.seconds > LIMIT_S:
        verdict = over_the_limit(log, record) if found.proof else NOT_CHECKABLE
    detail = f"the slowest log's{found.words}; {limit_in_words(record)}"
    return Finding(verdict, "evaluation time", detail, found.seconds or None, "s", found.line)


def evaluated(log: Log) -> Evaluated:
    """The total that a log states, unless it is less than a single time; else its passes together,
    or a single time that is longer."""
    total = log.longest("eval_total")
    single = log.longest("eval")
    if total.value and total.value >= single.value - 0.001:  # both are rounded to a millisecond
        return Evaluated(*total, " eval_total_time", True)

    terms = [fact.value for fact in log.passes.values()]
    seconds = round(sum(terms), 6)
    within = CONSISTENT if single.value else NOT_CHECKABLE
    words = ""
    if len(terms) > 1:
        words = f"; {' + '.join(f'{term:.1f}' for term in terms)} = {seconds:.1f} s"
    if total.value:
        words += f"; its eval_total_time says {total.value:.1f} s"
        within = SUSPICION

    headline = log.headline
    if single.value > seconds or not terms:  # of no pass in particular, or of an unfinished one
        proof = headline is not None and f"{headline.bpb:.3f}" in single.quote
        return Evaluated(*single, words, proof, within)
    longest = max(log.passes.values())
    own = [fact for bpb, fact in log.passes.items() if headline and agree(headline.bpb, bpb, 4)]
    if longest.value > LIMIT_S:
        own = [fact for fact in own if fact == longest]  # a diagnostic may take longer
    return Evaluated(seconds, longest.quote, words, len(own) > 0, within)


# ---------------------------------------------------------------- the split


def check_split(lines: list[Line], logs: list[Log], record: bool) -> Finding:
    """val_tokens x (val_loss / ln 2) / val_bpb is the size of the scored text: 151.08 MB under any
    tokenizer."""
    log = logs[0] if logs else Log("")
    tokens = log.last("val_tokens")
    whole = SPLIT_TOKENS.get(log.last("vocab_size", usual_vocabulary(tokens or 0)))
    scored = [line for line in [*lines, *log.lines, *log.running] if line.loss and line.bpb]
    ratios = [line.loss / math.log(2) / line.bpb for line in scored]  # bytes a token
    if not lines or lines[0] not in scored or not (tokens or whole):
        detail = "needs val_loss, val_bpb, and val_tokens or a known vocabulary"
        return Finding(NOT_CHECKABLE, "split", detail)

    count = tokens or whole
    held = round(count * ratios[0])
    fault = split_fault(tokens, whole, ratios)
    logged = "" if tokens else " (not logged)"
    detail = (
        f"{count:,} tokens{logged} of {ratios[0]:.4f} bytes, by val_loss / val_bpb; "
        f"the whole split has {SPLIT_BYTES:,}"
    )
    if fault:
        detail += f"; {fault}"

    verdict = FAILED if record and fault else SUSPICION
    if abs(held / SPLIT_BYTES - 1) <= 0.005:
        verdict = CONSISTENT
    return Finding(verdict, "split", detail, held, "bytes", lines[0].quote)


def usual_vocabulary(tokens: int) -> int | None:
    """The vocabulary of a split of so many tokens."""
    near = [size for size, count in SPLIT_TOKENS.items() if abs(tokens / count - 1) < 0.002]
    return near[0] if near else None


def split_fault(tokens: int | None, whole: int | None, ratios: list[float]) -> str:
    """What is certainly wrong with a split of `tokens`, of which there should be `whole`, and with
    the bytes a token of its lines; empty if nothing is."""
    if not tokens or not whole:
        return ""
    share = tokens / whole
    alike = len(ratios) > 2 and all(abs(ratio / ratios[0] - 1) < 0.005 for ratio in ratios)
    off = abs(round(tokens * ratios[0]) / SPLIT_BYTES - 1)
    if abs(share - 1) < 0.002 and off > 0.01 and alike:
        return "its tokens, miscounted or not all scored"
    if share < 0.99 and abs(ratios[0] * whole / SPLIT_BYTES - 1) < 0.03:
        return "a part of it"
    return ""


# ---------------------------------------------------------------- seeds and settings


def check_seeds(claimed: dict, logs: list[Log], used: list[Log], files: list[Path]) -> Finding:
    seeds = sorted((log.seed for log in used), key=str)
    count = len(set(seeds) - {None})
    logged = {log.seed for log in logs}
    misnamed = [log.name for log in logs if log.named_seed not in (None, log.seed)]
    unlogged = sorted(set(claimed) - logged)

    verdict = SUSPICION
    if misnamed:
        note = f"; {misnamed[0]} logs another seed than its name"
    elif not seeds or None in logged:
        verdict = NOT_CHECKABLE
        note = "; a log states none"
    elif unlogged:
        note = f"; submission.json also names {unlogged[:8]}"
        named = "|".join(map(str, unlogged))
        elsewhere = any(re.search(rf"(?<!\d)({named})(?!\d)", path.name) for path in files)
        if len(claimed) > len(logs) and not elsewhere:  # with as many logs one may be mistyped
            verdict = FAILED
    elif count < len(seeds):
        note = "; one of them twice"
    else:
        verdict = CONSISTENT
        note = ""
    detail = f"val_bpb rests on logs of seeds {seeds}{note}"
    return Finding(verdict, "seeds", detail, count, "seeds")


def check_settings(logs: list[Log]) -> Finding:
    shared = set.intersection(*[set(log.settings) for log in logs]) if logs else set()
    names = [name for name in sorted(shared) if not PER_RUN.search(name)]
    if len(logs) < 2 or not names:
        detail = "fewer than two logs to compare, or no settings in them"
        return Finding(NOT_CHECKABLE, "settings", detail)

    changed = []
    for name in names:
        values = dict.fromkeys(log.settings[name] for log in logs)
        if len(values) > 1:
            changed.append(f"{name} {' / '.join(values)}")
    verdict = CONSISTENT
    detail = f"{len(names)} are the same in {len(logs)} logs"
    if changed:
        verdict = SUSPICION
        detail = f"differ: {'; '.join(changed[:8])}"
    return Finding(verdict, "settings", detail, len(changed), "differences")


# ---------------------------------------------------------------- scripts


def check_embedded(logs: list[Log], scripts: list[Path]) -> Finding:
    """The script that each log embeds against those in the folder, comments and layout aside."""
    own = [read_text(path).split("\n") for path in scripts]
    own = [[line.rstrip() for line in lines] for lines in own]
    shapes = {code_shape(lines) for lines in own}
    checked = 0
    for log in logs:
        embedded = {code_shape(lines): {*lines} for lines in log.sources if len(lines) > 20}
        embedded.pop(None, None)  # what does not parse is not the whole of a script
        if not own or not embedded:
            continue
        if shapes.isdisjoint(embedded):
            differ = min(len({*mine} ^ theirs) for mine in own for theirs in embedded.values())
            detail = (
                f"{log.name} embeds a script that is not in the folder; "
                "lines that differ from the closest"
            )
            return Finding(SUSPICION, "script", detail, differ, "lines")
        checked += 1

    if not checked:
        return Finding(NOT_CHECKABLE, "script", "no log embeds the whole of its script")
    detail = f"{checked} of {len(logs)} logs embed a script of the folder"
    return Finding(PROVEN, "script", detail, checked, "logs")


def check_patterns(logs: list[Log], script: Path | None, scripts: list[Path]) -> list[Finding]:
    """What has invalidated entries before, in logs and scripts. Never FAILED: each names its line,
    for a person to judge."""
    hits = {}  # what -> its line
    for log in logs:
        for what in LOG_PATTERNS:
            if log.facts[what]:
                hits[what] = log.facts[what][0].quote

    unread = [] if script else ["no script is here"]
    searched = [path for path in scripts if path == script or re.match("train|eval", path.name)]
    for path in searched[:8]:
        try:
            for hit in code_patterns(ast.parse(unpack(read_text(path)))):
                hits.setdefault(hit.what, f"{path.name}:{hit.line}: {hit.text[:160]}")
        except UNREADABLE as error:
            unread.append(f"{path.name} cannot be read as Python ({type(error).__name__})")

    found = [Finding(SUSPICION, "pattern", what, None, "", line) for what, line in hits.items()]
    if unread:
        found.append(Finding(NOT_CHECKABLE, "pattern", "; ".join(unread)))
    if not found:
        detail = "nothing like what has invalidated entries before"
        found.append(Finding(CONSISTENT, "pattern", detail, 0, "hits"))
    return found


# ---------------------------------------------------------------- significance


def check_against(lines: list[Line], against: str | None) -> list[Finding]:
    """Whether our scores are lower than theirs by RECORD_NATS at p < RECORD_P, in nats per token of
    our tokenizer."""
    if not against:
        return []
    theirs = [to_number(text) for text in against.split(",")]
    if not all(bpb and 0 < bpb < 100 for bpb in theirs):
        problem = "--against takes bits per byte, one or several with commas, not "
        raise UnusableInput(problem + clean(against, 40))

    finals = [line for line in lines if line.kind == "final"]
    if not finals:
        detail = "no final line with val_bpb"
        return [Finding(NOT_CHECKABLE, "significance", detail, None, "nats")]
    ours = [line.bpb for line in finals]
    ratios = [line.loss / line.bpb for line in finals if line.loss and line.bpb]
    usual = math.log(2) * SPLIT_BYTES / SP1024_VAL_TOKENS
    return [significance(ours, theirs, fmean(ratios or [usual]))]


def significance(ours: list[float], theirs: list[float], nats: float) -> Finding:
    """Of scores in bits per byte, at `nats` a token per bit a byte."""
    ours = [bpb * nats for bpb in ours]
    theirs = [bpb * nats for bpb in theirs]
    gain = fmean(theirs) - fmean(ours)
    p = welch(theirs, ours, RECORD_NATS)

    stated = "one score or equal scores show none"
    if p is not None:
        stated = f"p = {p:.3g} (Welch, one-sided)"
    better = "better" if gain >= 0 else "worse"
    detail = (
        f"nats a token {better}, mean of {len(ours)} against {len(theirs)}; a record needs "
        f"{RECORD_NATS} at p < {RECORD_P}: {stated}; {nats:.4f} nats a bit per byte"
    )

    verdict = FAILED
    if gain >= RECORD_NATS and p is None:
        verdict = NOT_CHECKABLE
    elif gain >= RECORD_NATS and p < RECORD_P:
        verdict = CONSISTENT
    return Finding(verdict, "significance", detail, gain, "nats")


def welch(a: list[float], b: list[float], margin: float) -> float | None:
    """One-sided p of mean(a) - mean(b) <= margin, by Welch's t-test; a list of one value counts as
    exact. None where the values show no deviation."""
    total = 0.0  # variance of the difference of the means
    squares = 0.0
    for values in (a, b):
        if len(values) > 1:
            part = variance(values) / len(values)
            total += part
            squares += part * part / (len(values) - 1)
    if len(b) < 2 or squares == 0:
        return None

    t = (fmean(a) - fmean(b) - margin) / math.sqrt(total)
    tail = student_tail(abs(t), total**2 / squares)
    return tail if t > 0 else 1 - tail


def student_tail(t: float, freedom: float) -> float:
    """P(T > t >= 0) of Student's t: the integral of sin(x)^(freedom - 1) up to
    atan(sqrt(freedom) / t), in its form x = y^4 that is smooth at 0, by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    y = (nodes + 1) / 2
    end = math.atan2(math.sqrt(freedom), t)
    area = end * (weights @ (np.sin(end * y**4) ** (freedom - 1) * 2 * y**3))
    gammas = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return area * math.exp(gammas) / math.sqrt(math.pi)


# ---------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("check.py", description=__doc__, formatter_class=form)
    parser.add_argument("folder", help="a record folder")
    parser.add_argument(
        "--against", metavar="BPB[,BPB...]", help="scores to beat, one or a seed each"
    )
    parser.add_argument("--json", action="store_true", help="findings for machines")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    against = arguments.against

    def find() -> list[Finding]:
        if not folder.is_dir():
            raise UnusableInput(f"{folder} is no folder")
        return check_folder(folder, against)

    return report_on(find, arguments.folder, arguments.json, "check.py")


if __name__ == "__main__":
    sys.exit(main())
