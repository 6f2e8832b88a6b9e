"""Checks what a record folder of any Parameter Golf entry states, short of its artifact.

    python records/check.py FOLDER [--against BPB[,BPB...]] [--json]

Reads submission.json, README, logs and scripts; runs nothing of the folder, and needs neither torch
nor a tokenizer. `python verify.py FOLDER` checks the folder's artifact as well.

The first line is the answer, OK, FAILED or NOT PROVEN, and one sentence; then a table of the runs
that the score rests on; then the findings, failures first, each with the number behind it:
    FAILED          the files contradict the claim or break a rule; only where the evidence is proof
    SUSPICION       a pattern that has invalidated entries before, with its line; never fails a run
    NOT CHECKABLE   cannot be decided from what lies here; the detail says what is missing
    CONSISTENT      agrees with what the competitor submitted, which could itself be wrong
    PROVEN          recomputed here from the files, by code that does not come from the competitor
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

A run takes at most 60 s of processor time and reads at most 64 MB: of a log the first and the last
2 MB, of other files those of at most 1 MB, and of each program at most 200,000 words and signs.
What is not read is named. Only regular files that lie in the folder are opened.

--json prints one object: schema (1), input (the path), exit_code, answer, findings: a list of
{verdict, check, detail, number (or null), unit, line (the evidence quoted, or ""), settle (what
would settle it), runs (the table, with the finding on val_bpb)}.

Sections: the folder, val_bpb, bytes, times, the split, seeds and settings, scripts, significance,
main.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

if __name__ == "__main__":  # imports start at the root, and records/code.py hides no other code
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from records.report import end_on_interrupt

    end_on_interrupt("check.py")

import numpy as np

from records.code import CodeSize, code_bytes, least_packed, measure_code
from records.code import read_code as read_code
from records.files import (
    BUDGET_BYTES,
    BUDGET_SECONDS,
    TEXT_BYTES,
    Budget,
    Folder,
    list_folder,
)
from records.logs import (
    BPB_FIELDS,
    BYTES_FIELDS,
    LOG_PATTERNS,
    Fact,
    Line,
    Log,
    Pass,
    Passes,
    claimed,
    claimed_bpb,
    claimed_seeds,
    read_logs,
    said_seeds,
    stated_value,
    states_mean,
    to_number,
)
from records.logs import FACTS as LOG_FACTS
from records.programs import (
    CODE_PATTERNS,
    LEARNS_UNSCORED,
    UNREADABLE,
    Program,
    Said,
    code_patterns,
    code_shape,
    is_off,
    read_programs,
)
from records.report import (
    CONSISTENT,
    FAILED,
    NOT_CHECKABLE,
    PROVEN,
    SUSPICION,
    Finding,
    RunRow,
    UnusableInput,
    clean,
    report_on,
    run_program,
)
from records.report import SCORES as SCORES
from records.report import print_report as print_report

CAP_BYTES = 16_000_000  # code plus artifact, decimal
LIMIT_S = 600.0  # for training, and again for evaluation
WORLD = 8  # processes that the limit is for
SP1024_VAL_TOKENS = 62_021_632  # scored by the challenge's tokenizer, in whole sequences of 1,024
SPLIT_TOKENS = {1024: SP1024_VAL_TOKENS, 4096: 45_508_608, 8192: 40_540_160}  # by vocabulary
SPLIT_BYTES = 151_080_000  # UTF-8 text of the whole validation split, whatever the tokenizer
SPLIT_SHARE = 0.07  # by which the scored text may differ; an older export has 155.8 MB
UNEXPLAINED_BYTES = 200_000  # of a total, beyond model and code, that need no explanation
RECORD_NATS = 0.005  # what a record must beat the best by
RECORD_P = 0.01  # and how surely
LATE_P = 0.25  # as late practice had it
PER_RUN = re.compile(  # settings that may differ between the runs of one entry
    r"seed|run_?id|path|dir$|file|^(local_)?rank|time|port$|host|date|warmup_step$|bytes|shard"
    r"|checkpoint|resume|elapsed|^start|^end|stamp|duration|_ms$|_s$|_sec|pid|name$|uuid|commit|log"
    r"|^s$|^norm$|^delta|^total$|^bpt$|hypothesis|run_kind|batch_stride|bpb|loss"
)
SETTLES = {  # what would settle a finding that is no more than consistent
    "files": "add what is lacking",
    "track": "move it to the other track, or keep the limits",
    "submission.json": "add one that parses, with val_bpb, bytes_total, seeds and track",
    "val_bpb": "the logs whose final lines give the claim, or a claim that they give",
    "README": "state submission.json's val_bpb in the README",
    "size": "a log of the export that is handed in, with its model, code and total bytes",
    "code size": "read the calls named, or take the files named out of the folder",
    "bytes_total": "the total that the claimed run's log states",
    "hardware": "a run on 8 H100 whose log names them",
    "training time": "a run that stops within the limit, or a log that states its train_time",
    "evaluation time": "a log that states the time of the claimed pass, within the limit",
    "adaptation time": "a log in which training, adaptation and scoring keep both limits",
    "calibration": "a run whose stop leaves time for it within the 600 s",
    "split": "a log with val_tokens, val_loss and val_bpb over the whole split of 151.08 MB",
    "prefix lines": "the log as the run wrote it",
    "seeds": "one log for each claimed seed, whose final line states that seed's claim",
    "settings": "the same settings in all runs",
    "script": "the script that made the logs",
    "pattern": "read the line",
    "significance": "more seeds, or a lower score",
    "budget": "check the folder without the files named",
}


# ---------------------------------------------------------------- the folder


@dataclass
class Entry:
    """What was read of a folder."""

    folder: Folder
    table: dict  # of submission.json
    logs: list[Log]
    scripts: list[Path]
    script: Path | None  # the one that is like train_gpt.py
    readme: Path | None
    record: bool  # whether it stands in the record track, where the limits bind

    @cached_property
    def size(self) -> CodeSize:
        return measure_code(self.script, self.folder) if self.script else CodeSize()

    @cached_property
    def programs(self) -> tuple[list[Program], list[str]]:
        """Those that are searched; what of them could not be read."""
        return programs_of(self)


def check_folder(folder: Path, against: str | None = None) -> list[Finding]:
    """Files, submission.json, logs, scripts, seeds, and the significance `against` scores, given
    with commas. Raises UnusableInput where those are no scores, and for what is no record
    folder."""
    listed = list_folder(folder)
    refuse_other_folders(listed)
    entry, parsed = read_entry(listed)
    score, lines = check_val_bpb(entry)
    used = used_runs(entry, lines)

    found = [
        check_files(entry),
        parsed,
        score._replace(runs=tuple(run_row(log, lines) for log in used[:16])),
        check_readme(claimed_bpb(entry.table), listed, entry.readme),
        *check_log_size(entry, used),
        check_claimed_bytes(entry.table, entry.logs, entry.scripts),
        *check_artifact_bytes(entry.logs, listed),
        check_hardware(used, entry.record),
        *check_training_time(used, entry.record),
        check_evaluation_time(used, lines, entry.record),
        *check_adaptation_time(used, lines, entry.record),
        check_split(lines, used, entry.record),
        *check_prefix_lines([log.prefixes for log in entry.logs]),
        check_seeds(entry, used),
        check_settings(used, entry),
        check_embedded(used, entry),
        *check_against(lines, against),
        *check_patterns(used, entry),
    ]
    found += check_track(entry, found)
    unread = listed.budget.unread
    if unread:
        detail = (
            f"not read, or not to the end, within {BUDGET_SECONDS:g} s and "
            f"{BUDGET_BYTES / 1e6:g} MB: {', '.join(unread[:8])}"
        )
        found.append(Finding(NOT_CHECKABLE, "budget", detail, len(unread), "files"))
    return [with_settle(finding) for finding in found]


def with_settle(finding: Finding) -> Finding:
    if finding.settle or finding.verdict in (PROVEN, CONSISTENT):
        return finding
    return finding._replace(settle=SETTLES.get(finding.check, ""))


def refuse_other_folders(folder: Folder) -> None:
    """UnusableInput for a whole repository and for a folder of record folders."""
    top = [path for path in folder.files if path.parent == folder.root]
    if any(path.name.startswith("submission") for path in top):
        return
    inner = {path.parent for path in folder.files if path.name == "submission.json"}
    tracks = [path for path in inner if path.parent.name.startswith("track_")]
    repository = (folder.root / ".git").exists() or any("records" in p.parts for p in tracks)
    if folder.root.name.startswith("track_") and inner or repository and tracks or len(tracks) > 1:
        example = folder.name(min(tracks or inner))
        raise UnusableInput(
            f"{folder.root.name} is no record folder but holds {len(inner)}: "
            f"give one of them, such as {example}"
        )
    if repository and (folder.root / ".git").exists():
        raise UnusableInput(f"{folder.root.name} is a whole repository and no record folder")


def read_entry(folder: Folder) -> tuple[Entry, Finding]:
    files = folder.files
    table, parsed = read_submission(folder)
    scripts = [path for path in files if path.suffix == ".py" and path.stat().st_size]
    script = max(scripts, key=likeness_to_train_gpt, default=None)
    readme = next((path for path in files if path.name.lower().startswith("readme")), None)
    logs = read_logs(folder)
    record = is_record(folder.root.parent.name, str(table.get("track", "")))
    return Entry(folder, table, logs, scripts, script, readme, record), parsed


def is_record(parent: str, track: str) -> bool:
    """Whether an entry stands in the record track, by the folder that it lies in and by its
    submission.json; of the latter only the words "non-record" or "unlimited" take it out."""
    text = f"{parent} {track}".lower()[:400]
    out = re.search(r"(?<![a-z0-9])(non[-_ ]?record|unlimited)", text)
    return "10min" in text and not out


def check_track(entry: Entry, found: list[Finding]) -> list[Finding]:
    """Whether an entry lies among the records, says that it is none, and breaks their limits."""
    parent = entry.folder.root.parent.name.lower()
    over = [f.check for f in found if f.unit == "s" and (f.number or 0) > LIMIT_S + 1]
    if entry.record or not is_record(parent, "") or not over:
        return []
    detail = (
        f"it lies in {parent}, its submission.json says {clean(str(entry.table['track']), 60)!r}: "
        f"as a record it would break the limit of {', '.join(over)}"
    )
    return [Finding(SUSPICION, "track", detail)]


def used_runs(entry: Entry, lines: list[Line]) -> list[Log]:
    """The runs that val_bpb rests on; without a claim those of the folder itself."""
    names = {line.log for line in lines}
    used = [log for log in entry.logs if log.name in names]
    if claimed_bpb(entry.table) is None:
        top = [log for log in used or entry.logs if "/" not in log.name]
        used = top or used
    return used or entry.logs


def run_row(log: Log, lines: list[Line]) -> RunRow:
    line = line_of(log, lines)
    training = training_of(log).longest("train").value
    evaluation = evaluated(log, line).seconds
    total = stated_total(log) or stated_total(training_of(log))
    bpb = line.bpb if line else None
    return RunRow(log.seed, bpb, total or None, training or None, evaluation or None)


def line_of(log: Log, lines: list[Line]) -> Line | None:
    """The line of a log that val_bpb rests on, or else its headline."""
    return next((line for line in lines if line.log == log.name), log.headline)


def training_of(log: Log) -> Log:
    """The log of a run's training."""
    return log.training or log


def likeness_to_train_gpt(path: Path) -> tuple:
    return path.name == "train_gpt.py", path.name.startswith("train"), path.stat().st_size


def check_files(entry: Entry) -> Finding:
    needed = {"README.md": entry.readme, "a train log": entry.logs, "a script": entry.script}
    lacking = [name for name, there in needed.items() if not there]
    detail = f"lacks {', '.join(lacking)}"
    if not lacking:
        detail = f"README, {entry.script.name}, {counted(len(entry.logs), 'log')}"
    if entry.folder.skipped:
        detail += f"; not opened: {', '.join(entry.folder.skipped[:4])}"
    count = len(entry.folder.files)
    return Finding(FAILED if lacking else PROVEN, "files", detail, count, "files")


def counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def read_submission(folder: Folder) -> tuple[dict, Finding]:
    """The fields of submission.json, or of the first file named alike."""
    named = [path for path in folder.files if re.fullmatch(r"submission.*\.json", path.name)]
    named = [path for path in named if path.parent == folder.root] or named
    if not named:
        return {}, Finding(FAILED, "submission.json", "is missing")

    path = min(named, key=lambda path: path.name != "submission.json")
    try:
        table = json.loads(folder.text(path))
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
    listed = list_folder(folder)
    listed.files = [path for path in listed.files if path.parent == listed.root]
    table, _ = read_submission(listed)
    headline = claimed_bpb(table)
    seeds = [bpb for bpb in claimed_seeds(table).values() if bpb]
    if headline and (not seeds or abs(headline - sum(seeds) / len(seeds)) > 1e-3):
        return [headline]
    return seeds


def check_readme(claim: float | None, folder: Folder, readme: Path | None) -> Finding:
    text = folder.text(readme)
    stated = list(re.finditer(r"(?<![\d.])\d\.\d{3,12}(?!\d)", text))
    if claim is None or not stated:
        detail = "README states no val_bpb to three decimals"
        if claim is None:
            detail = "submission.json states no val_bpb"
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


def check_val_bpb(entry: Entry) -> tuple[Finding, list[Line]]:
    """submission.json's val_bpb against the logs; also the lines that it rests on, for the checks
    that follow."""
    logs = entry.logs
    claim = claimed_bpb(entry.table)
    seeds = claimed_seeds(entry.table)
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
        return explained(claim, found, logs), found.lines

    unlogged = sorted(set(seeds) - {log.seed for log in logs})
    elsewhere = stated_elsewhere(claim, entry.folder)
    usual = claimed(entry.table, BPB_FIELDS) is not None or states_mean(entry.table)
    finding = unexplained(claim, lines, headlines, unlogged, elsewhere or not usual)
    return finding, headlines


def explained(claim: float, found: Explanation, logs: list[Log]) -> Finding:
    """The finding on a val_bpb that lines give: a suspicion if it is the best of several seeds."""
    first = found.lines[0]
    verdict = CONSISTENT if first.kind == "final" else SUSPICION
    detail = f"submission.json's {claim:g} is {found.words}{quoted(found.lines)}"
    others = [] if len(found.lines) > 1 else runs_alike(first, logs)
    if others and all(first.bpb < line.bpb for line in others):
        verdict = SUSPICION
        detail += f"; the best of {len(others) + 1} seeds, no mean{quoted(others)}"
    again = scored_again(found.lines, logs)
    if again:
        verdict = SUSPICION
        detail += f"; the same pass came to another score{quoted(again)}"
    return Finding(verdict, "val_bpb", detail, found.bpb, "bits/byte", first.quote)


def scored_again(lines: list[Line], logs: list[Log]) -> list[Line]:
    """Higher scores that the same run states under the same label."""
    known = {log.name: log for log in logs}
    found = []
    for line in lines:
        log = known.get(line.log)
        if line.kind == "final" and log:
            alike = [other for other in log.lines if label_of(other) == label_of(line)]
            found += [other for other in alike if other.bpb > line.bpb + 2e-4]
    return found


def runs_alike(line: Line, logs: list[Log]) -> list[Line]:
    """The last lines of the same label in logs that are named alike and are of other seeds."""

    def shape(name: str) -> str:
        return re.sub(r"\d+", "", name)

    own = next((log for log in logs if log.name == line.log), None)
    found = {}
    for log in logs:
        if own is None or log.seed in (None, own.seed) or shape(log.name) != shape(own.name):
            continue
        for other in log.lines:
            if label_of(other) == label_of(line) and other.kind == "final":
                found[log.seed] = other
    return list(found.values())


def label_of(line: Line) -> str:
    """What stands before the score in a line."""
    return re.split("val_loss|val_bpb", line.quote.partition(": ")[2])[0].strip()


def decimals_of(claim: float, least: int = 2) -> int:
    """To how many a number is stated, which has lost its zeros at the end; at least two."""
    return max(least, len(f"{claim:.12f}".rstrip("0").partition(".")[2]))


def agree(claim: float, measured: float, digits: int, units: float = 1.0, least: int = 2) -> bool:
    """Equal in the decimals that both are stated to, give or take one unit there: people round, and
    people cut. The claim is stated to `least` decimals or more."""
    stated = max(least, decimals_of(claim))
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
        words = f"a {line.kind} line of one of {counted(len(logs), 'log')}"
        yield Explanation(words, line.bpb, [line])


def final_lines(logs: list[Log]) -> dict[str, list[Line]]:
    """The logs' headlines as "final", and the last line of each label in each log."""
    chosen = {"final": [log.headline for log in logs if log.headline]}
    for log in logs:
        last = {}
        for line in log.lines:
            if line.kind == "final":
                last[label_of(line)] = line
        for label, line in last.items():
            chosen.setdefault(f"'{label}'", []).append(line)
    return chosen


def line_that_states(bpb: float | None, logs: list[Log]) -> Line | None:
    for log in logs:
        for line in log.lines:
            if bpb and agree(bpb, line.bpb, line.digits):
                return line
    return None


def stated_elsewhere(claim: float, folder: Folder) -> bool:
    """Whether a file that is no script, README or submission may hold the claim."""
    for path in folder.files:
        if path.suffix == ".py" or re.match("readme|submission", path.name, re.I):
            continue
        if path.suffix in (".log", ".png", ".pcll", ".model", ".bin", ".ptz", ".pt"):
            continue  # logs were read as such
        if path.stat().st_size > TEXT_BYTES or f"{claim:.4f}" in folder.text(path):
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

    rounded = abs(claim - lowest) <= 0.51 * 10.0 ** -decimals_of(claim, 1)
    unfounded = claim < lowest and headlines and not unlogged and not elsewhere and not rounded
    verdict = FAILED if illegal or unfounded else SUSPICION
    return Finding(verdict, "val_bpb", detail, claim, "bits/byte", illegal[0] if illegal else "")


def quoted(lines: list[Line]) -> str:
    """Where lines stand and what they say: "; a.log:7 1.12; b.log:7 1.13"."""
    parts = [f"{line.quote.split(': ')[0]} {line.bpb:g}" for line in lines[:6]]
    if len(lines) > 6:
        parts.append("...")
    return "".join(f"; {part}" for part in parts)


# ---------------------------------------------------------------- bytes


class Export(NamedTuple):
    """The last export of a run, in bytes; 0 where its log does not say."""

    model: int
    code: int
    total: int


def last_export(log: Log) -> Export:
    """Of the model's size and the total the one that is stated later goes before."""
    empty = Fact(0, "")
    model = log.facts["model_bytes"][-1] if log.facts["model_bytes"] else empty
    total = log.facts["total_bytes"][-1] if log.facts["total_bytes"] else empty
    code = log.last("code_bytes") or 0
    if model.number > total.number and total.value < model.value:
        total = empty
    return Export(model.value, code, total.value or (model.value + code if model.value else 0))


def stated_total(log: Log) -> int:
    """Bytes of code plus artifact, or of the artifact alone where a log states no more."""
    return last_export(log).total


def check_log_size(entry: Entry, used: list[Log]) -> list[Finding]:
    """The largest last export of the claimed runs against the cap and the files; and the code."""
    size = entry.size
    logs = [log if stated_total(log) else training_of(log) for log in used]
    sized = [log for log in logs if stated_total(log)]
    if not size.used:
        detail = "no script is here" if not entry.script else "its script cannot be read"
        return [Finding(NOT_CHECKABLE, "size", detail, None, "bytes")]
    code = check_code_size(size)
    if not sized:
        detail = "no log that the score rests on states the bytes of its model"
        return [Finding(NOT_CHECKABLE, "size", detail, None, "bytes"), code]

    raw, packed = code_bytes(size.used)
    log = max(sized, key=stated_total)
    export = last_export(log)
    if export.code == 0:
        export = export._replace(code=raw, total=max(export.total, export.model + raw))
    verdict, note = judge_size(entry, log, export, packed)
    logged = f"{log.last('code_bytes'):,}" if log.last("code_bytes") else "no code"
    sums = f"model {export.model:,} + code {export.code:,} = {export.model + export.code:,}"
    detail = (
        f"{sums if export.model else 'its total'}, the largest last export of "
        f"{counted(len(sized), 'log')}; cap {CAP_BYTES:,}; code here {raw:,}, {packed:,} by lzma, "
        f"{logged} logged{note}"
    )
    return [Finding(verdict, "size", detail, export.total, "bytes", log.name), code]


def judge_size(entry: Entry, log: Log, export: Export, packed: int) -> tuple[str, str]:
    """The verdict on a run's size, and what to add to its detail."""
    size = entry.size
    least = least_packed(packed)
    if log.last("code_bytes"):
        least = min(least, log.last("code_bytes"))
    claim = claimed(entry.table, BYTES_FIELDS)
    models = [fact.value for fact in log.facts["model_bytes"]]
    model = export.model if claim is not None else min(models, default=0)
    exported = max((fact.number for fact in log.facts["model_bytes"]), default=0)
    fits_elsewhere = claim is not None and claim <= CAP_BYTES
    fits_elsewhere = fits_elsewhere and log.sizes.get(int(claim), -1) >= exported
    if model and model + least > CAP_BYTES and not fits_elsewhere:
        return FAILED, ""

    left_out = size.used[1:9] if log.last("code_bytes") == entry.script.stat().st_size else []
    rest = export.total - export.model - export.code
    explained = not models or any(
        abs(export.total - model - export.code) <= UNEXPLAINED_BYTES for model in models
    )
    if left_out:
        return SUSPICION, f"; not counted: {', '.join(path.name for path in left_out)}"
    if not explained and abs(rest) > UNEXPLAINED_BYTES:
        return SUSPICION, f"; {rest:,} bytes of the total are neither model nor code"
    if export.total > CAP_BYTES:
        return SUSPICION, "; over the cap, unless its code is handed in compressed"
    if size.others and export.model + size.most > CAP_BYTES:
        return NOT_CHECKABLE, f"; over the cap if the code is as large as {size.most:,} bytes"
    return CONSISTENT, ""


def check_code_size(size: CodeSize) -> Finding:
    """A proof of the code's size, or both bounds."""
    raw, packed = code_bytes(size.used)
    names = " + ".join(path.name for path in size.used[:8])
    if size.proven:
        why = "no other file of the folder could be code"
        if not size.unresolved:
            why = "every name that could reach a file is resolved"
        detail = f"{names}, {packed:,} by lzma; {why}"
        return Finding(PROVEN, "code size", detail, raw, "bytes")

    detail = (
        f"at least {raw:,} bytes ({names}; {packed:,} by lzma), at most {size.most:,}, "
        f"{code_that_may_count(size)}"
    )
    return Finding(NOT_CHECKABLE, "code size", detail, raw, "bytes")


def code_that_may_count(size: CodeSize) -> str:
    """The files of an entry that its code may read besides, and the calls that may."""
    others = ", ".join(f"{path.name} {path.stat().st_size:,}" for path in size.others[:4])
    files = counted(len(size.others), "file")
    if size.unlisted:
        files += ", and those that were not listed,"
    more = f" and {len(size.unresolved) - 6} more" if len(size.unresolved) > 6 else ""
    calls = f"{', '.join(size.unresolved[:6])}{more}"
    return f"with {files} that may be read: {others}; what may read more: {calls}"


def check_claimed_bytes(table: dict, logs: list[Log], scripts: list[Path]) -> Finding:
    """submission.json's total against the logs and the cap."""
    claim = claimed(table, BYTES_FIELDS)
    totals = [log.last("total_bytes") for log in logs if log.last("total_bytes")]
    codes = [path.stat().st_size for path in scripts]
    stated = [*stated_sizes(logs, "model_bytes"), *stated_sizes(logs, "total_bytes")]
    stated.append(round(fmean(totals or [0])))
    printed = set().union(*(log.sizes for log in logs))

    largest = max(totals, default=0)
    detail = f"submission.json's, cap {CAP_BYTES:,}; the logs' totals go up to {largest:,}"
    verdict = SUSPICION
    if claim is None:
        verdict = NOT_CHECKABLE
        detail = "submission.json states no total"
    elif claim > CAP_BYTES + sum(codes):  # by less than the code, compression may help
        verdict = FAILED
    elif claim <= CAP_BYTES and not totals:
        verdict = NOT_CHECKABLE
    elif claim <= CAP_BYTES:
        logged = [log.last("code_bytes") for log in logs if log.last("code_bytes")]
        known = [size + code for size in stated for code in (0, *codes, *logged)]
        agrees = claim >= largest or claim in known or claim in printed
        verdict = CONSISTENT if agrees else SUSPICION
    number = None if claim is None else int(claim)
    return Finding(verdict, "bytes_total", detail, number, "bytes")


def stated_sizes(logs: list[Log], fact: str) -> list[int]:
    return [stated.value for log in logs for stated in log.facts[fact]]


def check_artifact_bytes(logs: list[Log], folder: Folder) -> list[Finding]:
    """Each artifact file's size against the logs."""
    models = stated_sizes(logs, "model_bytes")
    found = []
    for path in [path for path in folder.files if path.suffix == ".pcll"][:8]:
        size = path.stat().st_size
        verdict = CONSISTENT if size in models else FAILED
        if not models:
            verdict = NOT_CHECKABLE
        detail = f"the size of {path.name} is one that the logs state"
        if verdict == FAILED:
            detail = f"the size of {path.name} is none that the logs state for a model"
        if not models:
            detail = f"of {path.name}; the logs state no size of a model"
        if verdict == CONSISTENT and states_hash(logs, folder, path):
            verdict = PROVEN
            detail = f"of {path.name}, whose sha256 a log states"
        found.append(Finding(verdict, "artifact bytes", detail, size, "bytes"))
    return found


def states_hash(logs: list[Log], folder: Folder, path: Path) -> bool:
    """Whether a log states the sha256 of a file."""
    stated = set().union(*(log.hashes for log in logs))
    content = folder.read(path, CAP_BYTES) if stated else None
    return content is not None and hashlib.sha256(content).hexdigest() in stated


# ---------------------------------------------------------------- times
# A limit binds in the record track, on 8 H100; elsewhere GPU-seconds are compared.


def check_hardware(logs: list[Log], record: bool) -> Finding:
    worlds = sorted({training_of(log).last("world_size") for log in logs} - {None})
    gpus = sorted({training_of(log).gpu for log in logs} - {""})
    detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
    if not worlds:
        return Finding(NOT_CHECKABLE, "hardware", detail, None, "processes")
    usual = worlds == [WORLD] and gpus in ([], ["H100"])
    verdict = CONSISTENT if usual or not record else SUSPICION
    return Finding(verdict, "hardware", detail, worlds[-1], "processes")


def limit_in_words(record: bool) -> str:
    if record:
        return f"limit {LIMIT_S:g} s"
    return f"the limit of {LIMIT_S:g} s is the record track's"


def judge_time(log: Log, seconds: float, record: bool, slack: float = 0.0) -> str:
    """The verdict on a time of a run: over the limit it is FAILED on 8 H100 alone, and with another
    number of GPUs their seconds together count."""
    world = log.last("world_size")
    limit = LIMIT_S + slack
    if world and world != WORLD:
        limit *= WORLD / world
    if seconds <= limit:
        return CONSISTENT
    if not record:
        return NOT_CHECKABLE
    usual = world == WORLD and log.gpu in ("", "H100")
    return FAILED if usual else SUSPICION


def gpu_seconds(log: Log, seconds: float) -> str:
    """ "; 4 x 1,410.0 = 5,640 of 4,800 GPU-seconds", where the world is not the usual one"""
    world = log.last("world_size")
    if not world or world == WORLD:
        return ""
    together = f"{world} x {seconds:,.1f} = {world * seconds:,.0f}"
    return f"; {together} of {WORLD * LIMIT_S:,.0f} GPU-seconds"


def slack_of(log: Log) -> float:
    """Seconds that the training may take longer: it may finish its last step."""
    return max(1.0, log.last("step", 0.0))


def check_training_time(logs: list[Log], record: bool) -> list[Finding]:
    """The training, which may finish its last step, and calibration after it."""
    trained = [training_of(log) for log in logs]
    log = max(trained, key=lambda log: log.longest("train").value, default=Log(""))
    seconds = log.longest("train").value
    line = log.longest("train").quote
    if not line:
        detail = "no log that the score rests on states its train_time"
        return [Finding(NOT_CHECKABLE, "training time", detail, None, "s")]

    verdict = judge_time(log, seconds, record, slack_of(log))
    words = gpu_seconds(log, seconds)
    detail = f"the slowest log's{words}; {limit_in_words(record)} and a step"
    found = [Finding(verdict, "training time", detail, seconds, "s", line)]
    if log.facts["calibration"]:
        found.append(check_calibration(log, seconds, record))
    return found


def check_calibration(log: Log, trained: float, record: bool) -> Finding:
    """What was calibrated after `trained` seconds of training."""
    facts = log.facts["calibration"]
    quotes = [fact.quote for fact in facts]
    own = any(re.search("self|autoreg|generat", quote) for quote in quotes)
    terms = list({fact.quote.partition(": ")[2]: fact.value for fact in facts}.values())
    seconds = round(sum(terms), 6)
    allowed = LIMIT_S + slack_of(log) if seconds > 0 else LIMIT_S

    verdict = SUSPICION if record else NOT_CHECKABLE
    if own or trained + seconds <= allowed:
        verdict = CONSISTENT
    text = ", on text of its own" if own else ""
    sums = f"{trained:.1f} + {seconds:.1f} = {trained + seconds:.1f} s" if seconds else "of no time"
    detail = f"calibration after the training{text}; {sums}; {limit_in_words(record)}"
    return Finding(verdict, "calibration", detail, seconds or None, "s", max(facts).quote)


class Evaluated(NamedTuple):
    """How long a log's evaluation took, after its training."""

    seconds: float
    line: str  # evidence: the stated total, or the longest pass
    words: str  # how the seconds come about: "; 599.6 + 4.7 = 604.3 s"
    proof: bool  # whether it is the evaluation of the claimed line and no diagnostic
    within: str = CONSISTENT  # the verdict where it is within the limit


def check_evaluation_time(logs: list[Log], lines: list[Line], record: bool) -> Finding:
    """The slowest log's passes over the validation tokens, together; what is proof goes before."""
    times = [(log, evaluated(log, line_of(log, lines))) for log in logs]
    log, found = max(times, key=rank_of_time, default=(Log(""), evaluated(Log(""), None)))
    if not found.seconds:
        detail = "no log that the score rests on states the time of its evaluation"
        return Finding(NOT_CHECKABLE, "evaluation time", detail, None, "s")

    verdict = judge_time(log, found.seconds, record)
    if verdict == CONSISTENT:
        verdict = found.within
    elif not found.proof:
        verdict = NOT_CHECKABLE
    words = found.words + gpu_seconds(log, found.seconds)
    if verdict == NOT_CHECKABLE and record:
        words += "; missing: which of it the claimed score needs"
    detail = f"the slowest log's{words}; {limit_in_words(record)}"
    return Finding(verdict, "evaluation time", detail, found.seconds, "s", found.line)


def rank_of_time(pair: tuple[Log, Evaluated]) -> tuple[bool, float]:
    found = pair[1]
    return found.proof and found.seconds > LIMIT_S, found.seconds


def own_pass(log: Log, line: Line | None) -> Pass | None:
    """The pass that gave a line's score."""
    if line is None:
        return None
    for one in log.passes:
        if one.has(line.bpb, line.digits):
            return one
    time = LOG_FACTS["eval"].search(line.quote)
    return Pass(stated_value(time), line.quote, line.bpb, line.digits) if time else None


def evaluated(log: Log, line: Line | None) -> Evaluated:
    """The total that a log states, unless it is less than a single time; else its passes together,
    or a single time that is longer. `line` is what was claimed of the log."""
    total = log.longest("eval_total")
    single = log.longest("eval")
    if total.value and total.value >= single.value - 0.1:  # totals are rounded
        return Evaluated(total.value, total.quote, ", its eval_total_time", True)

    own = own_pass(log, line)
    passes = list(log.passes)
    if own and own not in passes:
        passes.append(own)
    terms = [one.seconds for one in passes]
    terms += [fact.value for fact in log.facts["dequantising"]]
    seconds = round(sum(terms), 6)
    within = CONSISTENT if single.value or terms else NOT_CHECKABLE
    words = ""
    if len(terms) > 1:
        shown = " + ".join(f"{term:.1f}" for term in terms[:12])
        words = f"; {shown}{' + ...' if len(terms) > 12 else ''} = {seconds:.1f} s"
    if total.value:
        words += f"; its eval_total_time says {total.value:.1f} s"
        within = SUSPICION

    if single.value > seconds or not terms:  # of no pass in particular, or of an unfinished one
        proof = own is not None and own.quote == single.quote
        return Evaluated(single.value, single.quote, words, proof, within)
    longest = max(passes, default=own)
    proof = own is not None
    if longest and longest.seconds > LIMIT_S and longest != own:
        proof = False  # a diagnostic may take longer
    return Evaluated(seconds, longest.quote if longest else "", words, proof, within)


def check_adaptation_time(logs: list[Log], lines: list[Line], record: bool) -> list[Finding]:
    """Adaptation that a log times by itself: it is training or evaluation, and FAILED where either
    way a limit breaks."""
    found = []
    for log in logs:
        seconds, line, before_export = adaptation_of(log)
        if not seconds:
            continue
        own = own_pass(log, line_of(log, lines))
        scored = own.seconds if own else 0.0
        trained = training_of(log).longest("train").value
        longest = max((one.seconds for one in log.passes), default=0.0)
        if not before_export and longest >= 0.9 * seconds:
            continue  # a part of that pass
        evaluation = judge_time(log, seconds + scored, record)
        training = judge_time(log, trained + seconds, record, slack_of(log))
        verdict = evaluation
        if before_export and CONSISTENT in (evaluation, training):
            verdict = CONSISTENT
        detail = (
            f"as training {trained:.1f} + {seconds:.1f} = {trained + seconds:.1f} s, "
            f"as evaluation {seconds:.1f} + {scored:.1f} = {seconds + scored:.1f} s; "
            f"{limit_in_words(record)} for each"
        )
        found.append(Finding(verdict, "adaptation time", detail, seconds, "s", line))
    return [max(found, key=lambda one: (one.verdict == FAILED, one.number))] if found else []


class Adaptation(NamedTuple):
    seconds: float
    quote: str
    before_export: bool  # so that no pass after it has it in its time


def adaptation_of(log: Log) -> Adaptation:
    """The adaptation's total, or else its epochs together."""
    exports = [*log.facts["model_bytes"], *log.facts["total_bytes"]]
    exported = max((fact.number for fact in exports), default=0)
    facts = log.facts["adaptation"]
    totals = [fact for fact in facts if re.search("total_time|done", fact.quote)]
    if totals:
        longest = max(totals)
        return Adaptation(longest.value, longest.quote, longest.number < exported)

    epochs = [fact for fact in facts if re.search(r"epoch\W{0,3}\d+/\d+", fact.quote)]
    epochs = [fact for fact in epochs if fact.number < exported]
    values = [fact.value for fact in epochs]
    if not values:
        return Adaptation(0.0, "", False)
    grows = len(values) > 2 and values == sorted(set(values)) and values[-1] > 1.8 * values[0]
    seconds = values[-1] if grows else sum(values)  # some count from the first epoch on
    return Adaptation(round(seconds, 6), epochs[-1].quote, True)


# ---------------------------------------------------------------- the split


def check_split(lines: list[Line], logs: list[Log], record: bool) -> Finding:
    """val_tokens x (val_loss / ln 2) / val_bpb is the size of the scored text: 151.08 MB under any
    tokenizer."""
    log = logs[0] if logs else Log("")
    tokens = log.last("val_tokens") or training_of(log).last("val_tokens")
    whole = SPLIT_TOKENS.get(log.last("vocab_size", usual_vocabulary(tokens or 0)))
    scored = [line for line in [*lines, *log.lines, *log.running] if line.loss and line.bpb]
    ratios = [line.loss / math.log(2) / line.bpb for line in scored]  # bytes a token
    if not lines or lines[0] not in scored or not (tokens or whole):
        lacking = []
        if not lines or lines[0] not in scored:
            lacking.append("val_loss beside the claimed val_bpb")
        if not (tokens or whole):
            lacking.append("val_tokens or a known vocabulary")
        return Finding(NOT_CHECKABLE, "split", f"the log lacks {' and '.join(lacking)}")

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
    if not tokens:
        return ""
    near = [ratio for ratio in ratios if abs(ratio / ratios[0] - 1) < 0.02]
    alike = len(near) > 1 and len(near) >= 0.8 * len(ratios)
    same = len(ratios) > 2 and all(abs(ratio / ratios[0] - 1) < 0.005 for ratio in ratios)
    off = tokens * ratios[0] / SPLIT_BYTES - 1
    if whole:
        share = tokens / whole
        if abs(share - 1) < 0.002 and abs(off) > 0.01 and same:
            return "its tokens, miscounted or not all scored"
        if share < 0.99 and abs(ratios[0] * whole / SPLIT_BYTES - 1) < 0.03:
            return "a part of it"
    if abs(off) > SPLIT_SHARE and alike:
        return "a part of it" if off < 0 else "more than there is"
    return ""


def check_prefix_lines(logs: list[Passes]) -> list[Finding]:
    """What logs say of the first positions of a pass, and of all of them: whether it can be."""
    for passes in logs:
        if passes.contradictions:
            problem, line = passes.contradictions[0]
            count = len(passes.contradictions)
            return [Finding(FAILED, "prefix lines", problem, count, "contradictions", line.quote)]

    stated = sum(len(passes.lines) for passes in logs)
    if not stated:
        return []
    tied = sum(line.final for passes in logs for line in passes.lines)
    detail = (
        f"on the first positions of a pass, {counted(tied, 'result')} of all among them, fit "
        "together; that is the logs' word alone, which an artifact proves: see verify.py --log"
    )
    return [Finding(CONSISTENT, "prefix lines", detail, stated, "lines")]


# ---------------------------------------------------------------- seeds and settings


def check_seeds(entry: Entry, used: list[Log]) -> Finding:
    """The seeds of the logs against those that are claimed, and each one's score."""
    seeds = sorted((log.seed for log in used), key=str)
    count = len(set(seeds) - {None})
    verdict, note = judge_seeds(entry, used, seeds)
    wrong = wrong_seeds(entry)
    if wrong and verdict != FAILED:
        verdict = FAILED if wrong[0].proof else SUSPICION
        note = "; " + "; ".join(one.words for one in wrong[:4])
    said = said_seeds(entry.table)
    distinct = len({log.seed for log in entry.logs} - {None})
    if said > max(distinct, 1) and verdict == CONSISTENT and distinct:
        verdict = SUSPICION
        note = f"; submission.json speaks of {said} seeds, logs of {distinct} are here"
    detail = f"val_bpb rests on logs of seeds {seeds[:12]}{note}"
    return Finding(verdict, "seeds", detail, count, "seeds")


def judge_seeds(entry: Entry, used: list[Log], seeds: list) -> tuple[str, str]:
    """The verdict on which seeds have logs, and why."""
    files = len({log.name.split(" (run ")[0] for log in used})
    logs = entry.logs
    claims = claimed_seeds(entry.table)
    logged = {log.seed for log in logs}
    misnamed = [log.name for log in logs if log.named_seed not in (None, log.seed)]
    unlogged = sorted(set(claims) - logged)
    if misnamed:
        return SUSPICION, f"; {misnamed[0]} logs another seed than its name"
    if not seeds or None in seeds:
        return NOT_CHECKABLE, "; a log states none"
    if unlogged:
        note = f"; submission.json also names {unlogged[:8]}"
        named = "|".join(map(str, unlogged[:64]))
        names = [path.name for path in entry.folder.files]
        elsewhere = any(re.search(rf"(?<!\d)({named})(?!\d)", name) for name in names)
        some_unread = None in logged or elsewhere or entry.folder.budget.unread
        if len(claims) > len(logs) and not some_unread:  # with as many one may be mistyped
            return FAILED, note
        return SUSPICION, note
    if len(set(seeds)) < len(seeds) and files > len(set(seeds)):
        return SUSPICION, "; one of them twice"
    return CONSISTENT, ""


class WrongSeed(NamedTuple):
    """A seed whose claim is in none of its logs."""

    words: str
    proof: bool  # whether it is in no other file either


def wrong_seeds(entry: Entry) -> list[WrongSeed]:
    found = []
    lines = {log: [*log.lines, *log.running] for log in entry.logs}
    everywhere = [line for stated in lines.values() for line in stated]
    claims = claimed_seeds(entry.table)
    least = max((decimals_of(claim) for claim in claims.values() if claim), default=2)
    least = min(least, 5)
    for seed, claim in claims.items():
        own = [line for log, stated in lines.items() if log.seed == seed for line in stated]
        finals = [line for line in own if line.kind == "final"]
        if not claim or not finals or not 0 < claim < 10:
            continue
        if any(agree(claim, line.bpb, line.digits, 1.0, least) for line in own):
            continue
        words = f"seed {seed} claims {claim:g}, its log ends at {finals[-1].bpb:g}"
        elsewhere = any(agree(claim, line.bpb, line.digits, 1.0, least) for line in everywhere)
        if not elsewhere:
            elsewhere = stated_elsewhere(claim, entry.folder) or entry.folder.budget.unread
        lower = claim < min(line.bpb for line in own)  # what is higher flatters nobody
        found.append(WrongSeed(words, lower and not elsewhere))
    return sorted(found, key=lambda one: not one.proof)


def same_value(a: str, b: str) -> bool:
    """4 and 4.0, 1e-3 and 0.001, True and true"""
    if a.lower() == b.lower():
        return True
    first = to_number(a)
    return first is not None and first == to_number(b)


def is_setting(name: str, value: str) -> bool:
    """Whether a pair can be a setting: no time, date, path or what else each run has its own of."""
    timed = re.fullmatch(r"[\d.:]+(s|ms|min|h)|\d{4}-\d\d-\d\d.*|[\d.]+[KMG]i?B?", value)
    return not timed and not PER_RUN.search(name) and "/" not in value


def check_settings(logs: list[Log], entry: Entry) -> Finding:
    trained = [training_of(log) for log in logs]
    shared = set.intersection(*[set(log.settings) for log in trained]) if logs else set()
    names = [
        name
        for name in sorted(shared)
        if all(is_setting(name, log.settings[name]) for log in trained)
    ]
    if len(logs) < 2 or not names:
        detail = "fewer than two logs to compare" if len(logs) < 2 else "no settings in the logs"
        return Finding(NOT_CHECKABLE, "settings", detail)

    changed = []
    for name in names:
        values = dict.fromkeys(log.settings[name] for log in trained)
        if not all(same_value(value, next(iter(values))) for value in values):
            changed.append(f"{name} {' / '.join(list(values)[:6])}")
    alone = settings_of_one(trained, entry)
    verdict = CONSISTENT
    detail = f"{len(names)} are the same in {len(logs)} logs"
    if changed or alone:
        verdict = SUSPICION
        detail = f"differ: {'; '.join([*changed, *alone][:8])}"
    return Finding(verdict, "settings", detail, len(changed) + len(alone), "differences")


def settings_of_one(logs: list[Log], entry: Entry) -> list[str]:
    """Hyperparameters of some logs that neither the others nor the scripts know."""
    if not all(log.listed for log in logs):
        return []
    everywhere = set.intersection(*[set(log.listed) for log in logs])
    found = []
    known = None
    for log in logs:
        for name in sorted(set(log.listed) - everywhere):
            value = log.listed[name]
            off = value.lower() in ("0", "false", "none", "0.0", "''", "no")
            if off or not is_setting(name, value):
                continue
            if known is None:
                known = "\n".join(program.text for program in entry.programs[0])
            if not re.search(rf"(?i)\b{re.escape(name)}\b", known):
                found.append(f"{name} {value[:40]} in {log.name} alone")
    return found


# ---------------------------------------------------------------- scripts

MAX_SCRIPTS = 12  # whose statements are searched


def programs_of(entry: Entry) -> tuple[list[Program], list[str]]:
    """The script and what is named like training or evaluation, with what is packed in them, and
    the files that the script runs; what of it could not be read."""
    used = entry.size.used
    searched = [entry.script] if entry.script else []
    searched += [path for path in entry.scripts if re.match("train|eval", path.name)]
    searched += [path for path in used if path.suffix not in (".json", ".so")]
    programs = []
    unread = [] if entry.script else ["no script is here"]
    for path in list(dict.fromkeys(searched))[:MAX_SCRIPTS]:
        name = entry.folder.name(path.resolve())
        content = None if entry.folder.budget.is_late() else entry.folder.bytes(path)
        if content is None:
            unread.append(f"{name}: it is too large, or the time is used up")
            continue
        text = content.decode("utf-8-sig", "replace")
        found, problems = read_programs(name, text)
        programs += found
        unread += problems
    return programs, unread


def check_embedded(logs: list[Log], entry: Entry) -> Finding:
    """The first script that each log embeds against those in the folder, comments and layout
    aside."""
    own = [entry.folder.text(path) for path in entry.scripts[:40]]
    own += [program.text for program in entry.programs[0]]
    own = [lines_of_code(text) for text in dict.fromkeys(own) if text]
    checked = 0
    for log in logs:
        source = next((lines for lines in training_of(log).sources if len(lines) > 20), None)
        embedded = lines_of_code("\n".join(source)) if source else None
        if not own or embedded is None or entry.folder.budget.is_late():
            continue
        if embedded not in own and not any_same(embedded, own, entry.folder.budget):
            if entry.folder.budget.is_late():
                continue
            if code_shape("\n".join(embedded)) is None:
                continue  # what does not parse is not the whole of a script
            differ = min(len({*mine} ^ {*embedded}) for mine in own)
            detail = (
                f"{log.name} embeds first a script that is not in the folder; "
                "lines that differ from the closest"
            )
            return Finding(SUSPICION, "script", detail, differ, "lines")
        checked += 1

    if not checked:
        return Finding(NOT_CHECKABLE, "script", "no log embeds the whole of its script")
    detail = f"{checked} of {counted(len(logs), 'log')} embed first a script of the folder"
    return Finding(PROVEN, "script", detail, checked, "logs")


def lines_of_code(text: str) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in text.strip().split("\n"))


def any_same(embedded: tuple[str, ...], own: list[tuple[str, ...]], budget: Budget) -> bool:
    """Whether it is one of these programs, as far as the time allows."""
    return any(not budget.is_late() and same_program(embedded, mine) for mine in own)


def same_program(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether two programs differ in comments, docstrings and layout alone."""
    if len({*a} ^ {*b}) > 0.5 * len({*a}):
        return False  # without parsing both
    shape = code_shape("\n".join(a))
    return shape is not None and shape == code_shape("\n".join(b))


def check_patterns(logs: list[Log], entry: Entry) -> list[Finding]:
    """What has invalidated entries before, in logs and scripts. Never FAILED: each names its line,
    for a person to judge."""
    hits = {}  # what -> its line
    for log in logs:
        for what in LOG_PATTERNS:
            if log.facts[what]:
                hits[what] = log.facts[what][0].quote
        if log.facts["traceback"]:
            hits["a log that ends in an error"] = log.facts["traceback"][-1].quote

    programs, problems = entry.programs
    unread = list(problems)
    searched = []
    said = said_of_settings(logs)
    for program in programs:
        if entry.folder.budget.is_late():
            unread.append(f"{program.name}: the time is used up")
            continue
        try:
            for hit in code_patterns(program, said):
                hits.setdefault(hit.what, f"{program.name}:{hit.line}: {hit.text[:160]}")
            searched.append(program.name)
        except UNREADABLE as error:
            unread.append(f"{program.name}: {type(error).__name__} in it")

    found = [Finding(SUSPICION, "pattern", what, None, "", line) for what, line in hits.items()]
    if unread:
        detail = f"not read as a program: {'; '.join(unread[:6])}"
        settle = "unpack it by hand, or read it with a newer Python"
        found.append(Finding(NOT_CHECKABLE, "pattern", detail, settle=settle))
    if not found:
        names = ", ".join([*dict.fromkeys(searched), *(log.name for log in logs[:3])])
        kinds = "; ".join([*CODE_PATTERNS, LEARNS_UNSCORED, *LOG_PATTERNS])
        detail = f"looked for in {names}, and not found: {kinds}"
        found.append(Finding(CONSISTENT, "pattern", detail, 0, "hits"))
    return found


def said_of_settings(logs: list[Log]) -> Said | None:
    """What runs say of their settings; what one of them has switched on is on. None where a log
    shows that something adapted, whatever its settings say."""
    found = {}
    words = set()
    for log in (log for one in logs for log in (training_of(one), one)):
        if log.facts["adaptation"] or log.facts["epochs over the tokens that are scored"]:
            return None
        words |= log.words
        for name, value in (log.settings | log.listed).items():
            if is_off(found.get(name.lower(), "0")):
                found[name.lower()] = value
    return Said(found, words)


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

    better = "better" if gain >= 0 else "worse"
    detail = (
        f"nats a token {better}, mean of {len(ours)} against {len(theirs)}; a record needs "
        f"{RECORD_NATS} at {bars(p)}; {nats:.4f} nats a bit per byte"
    )

    verdict = FAILED
    if gain >= RECORD_NATS and p is None:
        verdict = NOT_CHECKABLE
    elif gain >= RECORD_NATS and p < RECORD_P:
        verdict = CONSISTENT
    return Finding(verdict, "significance", detail, gain, "nats")


def bars(p: float | None) -> str:
    """Both bars in use, and whether p is under them."""
    if p is None:
        return f"p < {RECORD_P}, in late practice p < {LATE_P}: one score or equal scores show no p"
    rule = "met" if p < RECORD_P else "not met"
    late = "met" if p < LATE_P else "not met"
    stated = f"p = {p:.3g} (Welch, one-sided)"
    return f"p < {RECORD_P} ({rule}), in late practice p < {LATE_P} ({late}): {stated}"


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
    sys.exit(run_program(main, "check.py"))
