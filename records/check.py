"""Checks what a record folder of any Parameter Golf entry states, short of its artifact.

    python records/check.py FOLDER [--against BPB[,BPB...]] [--json]

Reads submission.json, logs and scripts; runs nothing of the folder, and needs neither torch nor a
tokenizer. `python verify.py FOLDER` checks the folder's artifact as well. OK needs the claim, the
size, both times and the split to agree with the logs, and no suspicion; NOT PROVEN names what is
missing; FAILED is a contradiction between claim and files, or a rule that the claimed run breaks.
Exit codes: 0 nothing failed, 1 a check failed, 2 unusable input (one sentence on stderr).

At most 60 s of processor time and 64 MB are spent on a folder; scripts of over 1 MB and logs of
over 16 MB are not read. What is not read is named. Only regular files of the folder are opened.
"""

import argparse
import json
import lzma
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, variance

if __name__ == "__main__":  # imports start at the root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from records.report import end_on_interrupt

    end_on_interrupt("check.py")

import numpy as np

from records.code import CodeSize, measure_code, read_programs, search, stays_packed
from records.files import TEXT_BYTES, Folder, list_folder
from records.logs import MAX_LOGS, NOTHING, SUSPICIOUS, Log, Score, read_logs
from records.report import (
    CONSISTENT,
    FAILED,
    NOT_CHECKABLE,
    PROVEN,
    SUSPICION,
    Finding,
    Report,
    RunRow,
    UnusableInput,
    clean,
    report_on,
)

CAP_BYTES = 16_000_000  # code plus artifact, decimal
LIMIT_S = 600.0  # for training with calibration, and again for the claimed evaluation
WORLD_SIZE = 8  # GPUs that the limit is for
SPLIT_BYTES = 151_080_000  # UTF-8 text of the whole validation split, whatever the tokenizer
SPLIT_TOKENS = {1024: 62_021_632, 4096: 45_508_608, 8192: 40_540_160}  # by vocabulary
BEST_ACCEPTED = 1.0565  # bits per byte of entry 2135, the lowest accepted score by 2026-05-02
RECORD_NATS = 0.005  # what a record must beat the best by
RECORD_P = 0.01  # and how surely; in late practice 0.25

STEP_S = 1.0  # at least so much longer the training may take: it finishes its last step
CALIBRATION_S = 10.0  # by so much, and a rest, accepted entries calibrated past the limit
PACKED_SHARE = 0.8  # of lzma's bytes: what other compressors reach
UNEXPLAINED_BYTES = 200_000  # of a total, beyond model and code, that need no explanation
SAME_SPLIT = 0.005  # by which a text may differ from SPLIT_BYTES and be it
OTHER_SPLIT = 0.07  # by which it surely is not; an older export has 155.8 MB
LEAST_DIGITS = 4  # decimals of a log's score, below which it shows nothing
NEEDED = (("val_bpb", "claim"), ("size",), ("training time",), ("evaluation time",), ("split",))

# ---------------------------------------------------------------- submission.json

BPB_FIELDS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")
NO_CLAIM = re.compile(  # fields with bits per byte that are of something else
    r"(?i)std|dev|delta|base|prev|pre_|improve|target|sota|margin|gain|diff|thresh|best|min|max"
    r"|method|note|pr\d|report|unquant|ema|seeds$|per_seed|seed_?\d|spread|range|record|legal"
)
RESULT_FIELDS = ("results", "result", "metrics", "summary", "final", "scores", "evaluation")
SEED_FIELDS = ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed")
SEED_KEY = re.compile(r"(?:val_bpb_)?(?:seed)?[_ ]*([0-9]{1,12})")
SAID_SEEDS = re.compile(r'(?i)\b(\d|two|three|four|five)[-_ ]?seeds?\b(?!ed|": (?:false|null))')
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5}
TOTAL_FIELDS = ("bytes_total", "total_bytes", "artifact_bytes_max", "artifact_bytes")


def read_submission(folder: Folder) -> tuple[dict, str]:
    """The fields of submission.json, or of the first file named alike; why there are none."""
    named = [path for path in folder.files if re.fullmatch(r"submission.*\.json", path.name)]
    if not named:
        return {}, "there is no submission.json"
    path = min(named, key=lambda path: (path.parent != folder.root, path.name != "submission.json"))
    try:
        table = json.loads(folder.text(path))
    except (ValueError, RecursionError) as error:
        return {}, f"{path.name} cannot be used: {clean(str(error), 100)}"
    if isinstance(table, dict):
        return dict(list(table.items())[:1_000]), ""
    return {}, f"{path.name} cannot be used: it holds a {type(table).__name__}, no fields"


def to_number(value: object) -> float | None:
    """A finite number below 1e15, also of text such as "15,990,006 bytes"; of a list or map of
    numbers the mean; else None."""
    if isinstance(value, dict):
        value = value.get("mean", [item for key, item in value.items() if "std" not in key])
    try:
        if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
            return fmean(map(to_number, value[:MAX_LOGS]))
        if isinstance(value, str):
            value = value[:100].replace(",", "").split()[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if abs(number) < 1e15 and not isinstance(value, bool) else None


def first_number(table: dict, names: Iterable[str]) -> float | None:
    """The first number above zero among these fields."""
    numbers = (to_number(table.get(name)) for name in names)
    return next((number for number in numbers if number and number > 0), None)


def claimed_bpb(table: dict) -> float | None:
    """The bits per byte that submission.json stands for: of the usual fields, else of others that
    are called so, means first, else of a table of results."""
    names = [name for name in table if re.search("(?i)bpb", name) and not NO_CLAIM.search(name)]
    names.sort(key=lambda name: not re.search("(?i)mean|average|avg", name))
    inner = [table.get(name) for name in RESULT_FIELDS]
    found = [first_number(table, (*BPB_FIELDS, *names))]
    found += [claimed_bpb(part) for part in inner if isinstance(part, dict)]
    return next((number for number in found if number), None)


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds that submission.json names, each with its claimed bits per byte, if given: a map of
    seeds, a list of seeds or of maps, or one of them."""
    listed = [(key, value) for key, value in table.items() if re.search(r"seed_?\d", key)]
    for value in (table.get(name) for name in SEED_FIELDS):
        rows = value if isinstance(value, list) else [value]
        pairs = [(row.get("seed"), row) if isinstance(row, dict) else (row, None) for row in rows]
        listed += (list(value.items()) if isinstance(value, dict) else pairs)[:MAX_LOGS]

    claims = {}
    for key, result in listed:
        if found := SEED_KEY.fullmatch(str(key)[:40]):
            inner = isinstance(result, dict)
            value = first_number(result, BPB_FIELDS) if inner else to_number(result)
            claims[int(found[1])] = value or claims.get(int(found[1]))
    return claims


def submitted_scores(folder: Path) -> list[float]:
    """What a folder's submission.json claims for an artifact: each seed's val_bpb, or the headline
    alone where there are no seeds or it is not their mean; [] where there is none."""
    table, _ = read_submission(list_folder(folder))
    headline = claimed_bpb(table)
    seeds = [bpb for bpb in claimed_seeds(table).values() if bpb]
    if headline and (not seeds or abs(headline - fmean(seeds)) > 1e-3):
        return [headline]
    return seeds


# ---------------------------------------------------------------- the folder


def check_folder(path: Path, against: str | None = None) -> Report:
    """All findings on a record folder but those on its artifact. `against`: scores to beat, with
    commas. Raises UnusableInput where those are no scores, and for what is no record folder."""
    rivals = parse_scores(against) if against else []
    folder = list_folder(path)
    refuse_other_folders(folder)
    entry = Entry(folder)
    findings = [
        *entry.check_claim(),
        *entry.check_seeds(),
        entry.check_size(),
        *entry.check_training(),
        entry.check_evaluation(),
        *entry.check_adaptation(),
        entry.check_split(),
        entry.check_hardware(),
        *entry.check_patterns(),
        entry.check_files(),
        *check_significance(entry.scores, rivals),
    ]
    return Report(findings, NEEDED, tuple(entry.row(log) for log in entry.used[:16]))


def refuse_other_folders(folder: Folder) -> None:
    """UnusableInput for an empty folder, a repository and a folder of record folders."""
    submissions = [path for path in folder.files if path.name.startswith("submission")]
    inner = [path.parent for path in submissions if path.parent != folder.root]
    holds = [path for path in inner if "track_" in f"{path.parent.name} {folder.root.name}"[:200]]
    problem = "" if folder.files else "no file lies in it"
    if len(submissions) == len(inner) and holds:
        problem = f"it holds {len(inner)}, as {folder.name(inner[0])}"
    elif len(submissions) == len(inner) and (folder.root / ".git").exists():
        problem = "it is a repository"
    if problem:
        raise UnusableInput(f"{folder.root.name} is no record folder: {problem}")


@dataclass(frozen=True)
class Way:
    """A way in which a val_bpb comes from logs."""

    words: str  # "the mean of the last final lines of 3 logs"
    scores: list[Score]  # that make it

    @property
    def bpb(self) -> float:
        return fmean(score.bpb for score in self.scores)

    @property
    def digits(self) -> int:
        return min(score.digits for score in self.scores)


class Entry:
    """What was read of a folder, and its checks."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.table, self.problem = read_submission(folder)
        self.claim = claimed_bpb(self.table)
        self.seeds = claimed_seeds(self.table)
        self.total = first_number(self.table, TOTAL_FIELDS)
        scripts = [path for path in folder.files if path.suffix == ".py" and path.stat().st_size]
        script = max(scripts, key=likeness_to_train_gpt, default=None)
        self.code = measure_code(script, folder) if script else CodeSize([], [])
        self.over_limit = verdict_over_limit(folder.root.parent.name, str(self.table.get("track")))
        self.logs = read_logs(folder)
        self.way = self.explain()
        headlines = [log.headline for log in self.logs if log.headline]
        top = [score for score in headlines if "/" not in score.log]
        self.scores = self.way.scores if self.way else (self.claim and headlines) or top  # claimed
        names = {score.log for score in self.scores}
        self.used = [log for log in self.logs if log.name in names] or self.logs  # claimed runs

    def row(self, log: Log) -> RunRow:
        score = self.score_of(log)
        return RunRow(
            seed=log.seed,
            val_bpb=score.bpb if score else None,
            bytes=last_export(log).total or None,
            training=log.training.longest("train").value or None,
            evaluation=log.seconds_of(score) or None,
        )

    def score_of(self, log: Log) -> Score | None:
        """The score of a log that val_bpb rests on, or else its headline."""
        return next((score for score in self.scores if score.log == log.name), log.headline)

    # ------------------------------------------------------------ the claim

    def explain(self) -> Way | None:
        """The first way that gives the claim to the digit, else the first that is one unit away, as
        people round and people cut."""
        ways = list(self.ways()) if self.claim else []
        for units in (0.5, 1.0):
            for way in ways:
                if agree(self.claim, way.bpb, way.digits, units):
                    return way
        return None

    def ways(self) -> Iterator[Way]:
        """The ways in which a val_bpb comes from logs, the usual ones first."""
        logs = self.logs
        alike = groupby(logs, lambda log: shape(log.name))
        claimed = [log for log in logs if log.seed in self.seeds]
        for group in (logs, claimed, *(list(group) for _, group in alike)):
            chosen = {"final": [log.headline for log in group if log.headline]}
            for log in group:
                for label, score in log.last_scores().items():
                    chosen.setdefault(f"'{label}'", []).append(score)
            for label, scores in chosen.items():
                if len(scores) > 1:
                    yield Way(f"the mean of the last {label} lines of {len(scores)} logs", scores)

        found = [self.score_that_states(bpb) for bpb in self.seeds.values()]
        if len(found) > 1 and None not in found:
            yield Way("the mean of its seed results, each of them in a log", found)
        headlines = [log.headline for log in logs if log.headline]
        for score in sorted([*headlines, *reversed(self.legal())], key=lambda score: score.kind):
            yield Way(f"a {score.kind} line of one log of {len(logs)}", [score])

    def legal(self) -> list[Score]:
        stated = (score for log in self.logs for score in (*log.scores, *log.running))
        return [score for score in stated if score.kind != "illegal"]

    def score_that_states(self, bpb: float | None) -> Score | None:
        stated = (score for log in self.logs for score in log.scores)
        return next((one for one in stated if bpb and agree(bpb, one.bpb, one.digits)), None)

    def check_claim(self) -> list[Finding]:
        """submission.json's val_bpb against the logs, and against every accepted score."""
        claim = self.claim
        if claim is None or not self.legal():
            detail = "submission.json states no val_bpb" if claim is None else "no log states one"
            return [Finding(NOT_CHECKABLE, "val_bpb", detail + quoted(self.scores), claim)]
        found = [self.explained(self.way) if self.way else self.unexplained()]
        if claim < BEST_ACCEPTED:
            detail = f"below every accepted score, of which {BEST_ACCEPTED} is the lowest"
            found.append(Finding(SUSPICION, "accepted scores", detail, claim, "bits/byte"))
        return found

    def explained(self, way: Way) -> Finding:
        """The finding on a val_bpb that logs state: a suspicion if it was chosen from several."""
        first = way.scores[0]
        same = [score for score in way.scores if score.kind == "final"]
        again = [
            other
            for log in self.logs
            for other in log.scores
            for score in same
            if (other.log, other.label, other.kind) == (score.log, score.label, "final")
            if other.bpb > score.bpb + 2e-4
        ]
        alike = [log for log in self.logs if shape(log.name) == shape(first.log)]
        seeds = {log.seed: log.last_scores().get(first.label) for log in alike}
        others = [score for score in seeds.values() if score and score.log != first.log]
        chosen = len(way.scores) == 1 and others and all(first.bpb < one.bpb for one in others)

        verdict = CONSISTENT if way.digits >= LEAST_DIGITS else NOT_CHECKABLE
        detail = f"submission.json's {self.claim:g} is {way.words}, to {way.digits} decimals"
        if first.kind != "final" or chosen or again:
            verdict = SUSPICION
        if chosen:
            detail += f"; the best of {len(others) + 1} seeds, no mean{quoted(others)}"
        if again:
            detail += f"; the same pass came to another score{quoted(again)}"
        return Finding(verdict, "val_bpb", detail, way.bpb, "bits/byte", first.quote)

    def unexplained(self) -> Finding:
        """The finding on a val_bpb that is no line and no mean of the logs: proof where it is lower
        than all of them, each named seed has its log, and no other file states it."""
        claim = self.claim
        for score in (score for log in self.logs for score in log.scores):
            if score.kind == "illegal" and agree(claim, score.bpb, score.digits):
                detail = "submission.json's is of a line that its log labels NOT LEGAL"
                return Finding(FAILED, "val_bpb", detail, claim, "bits/byte", score.quote)

        lowest = min(score.bpb for score in self.legal())
        unlogged = sorted(set(self.seeds) - {log.seed for log in self.logs})
        detail = f"submission.json's is no line and no mean of the logs, from {lowest:g} on"
        if unlogged:
            detail += f"; seeds {unlogged[:5]} have no log"
        precise = any(score.digits >= LEAST_DIGITS for score in self.scores)
        rounded = abs(claim - lowest) <= 0.51 * 10.0 ** -decimals_of(claim, least=1)
        verdict = SUSPICION if precise and not unlogged else NOT_CHECKABLE
        if verdict == SUSPICION and claim < lowest and not rounded and not self.states(claim):
            verdict = FAILED
        return Finding(verdict, "val_bpb", detail + quoted(self.scores), claim, "bits/byte")

    def states(self, claim: float) -> bool:
        """Whether a file that is no script, README, submission or log may state a claim, or
        something was not read."""
        if self.folder.budget.unread or "val_bpb" not in self.table:
            return True
        other = re.compile(r"(?i)^(readme|submission)|\.(py|log|png|pcll|model|bin|ptz|pt)$")
        files = [path for path in self.folder.files if not other.search(path.name)]
        large = any(path.stat().st_size > TEXT_BYTES for path in files)
        return large or any(f"{claim:.4f}" in self.folder.text(path) for path in files)

    def check_seeds(self) -> list[Finding]:
        """The seeds of the logs against those that are claimed, and each one's score."""
        seeds = sorted({log.seed for log in self.used if log.seed is not None})
        logged = {log.seed for log in self.logs} - {None}
        unlogged = sorted(set(self.seeds) - logged)
        misnamed = [log.name for log in self.used if log.named_seed not in (None, log.seed)]
        said = SAID_SEEDS.findall(json.dumps(self.table)[:100_000])
        most = max((WORDS.get(word.lower()) or int(word) for word in said), default=0)

        verdict = CONSISTENT
        detail = f"val_bpb rests on logs of seeds {seeds[:12]}"
        if unlogged or not seeds:
            verdict = NOT_CHECKABLE
            detail += f"; submission.json also names {unlogged[:8]}" if unlogged else ""
        elif misnamed:
            verdict = SUSPICION
            detail += f"; {misnamed[0]} logs another seed than its name"
        elif most > max(len(logged), 1):
            verdict = SUSPICION
            detail += f"; submission.json speaks of {most} seeds, logs of {len(logged)} are here"
        found = Finding(verdict, "seeds", detail, len(seeds), "seeds")
        return [found, *self.wrong_seeds()]

    def wrong_seeds(self) -> list[Finding]:
        """A seed whose claim is in none of its logs: proof if it is lower than all that they state,
        and in no other file."""
        for seed, claim in self.seeds.items():
            logs = [log for log in self.logs if log.seed == seed]
            own = [score for log in logs for score in (*log.scores, *log.running)]
            finals = [one for one in own if one.kind == "final" and one.digits >= LEAST_DIGITS]
            if not claim or not finals or any(agree(claim, one.bpb, one.digits) for one in own):
                continue
            elsewhere = self.score_that_states(claim) or self.states(claim)
            lower = claim < min(score.bpb for score in own)  # what is higher flatters nobody
            verdict = FAILED if lower and not elsewhere else SUSPICION
            detail = f"seed {seed} claims {claim:g}, its log ends at {finals[-1].bpb:g}"
            return [Finding(verdict, "seeds", detail, claim, "bits/byte", finals[-1].quote)]
        return []

    # ------------------------------------------------------------ size

    def check_size(self) -> Finding:
        """The code as it lies here plus the largest last export of the claimed runs, the cap, and
        submission.json's total."""
        code = self.code
        exports = [export for export in map(last_export, self.used) if export.total]
        if not code.used or not exports:
            detail = "no claimed log states bytes" if code.used else "no script is here"
            return Finding(NOT_CHECKABLE, "size", detail)
        export = max(exports, key=lambda export: export.model or export.total)
        model = export.model or export.total - export.code
        stated = f"submission.json says {int(self.total or 0):,}"
        if not export.model and not export.code:
            verdict = CONSISTENT if export.total <= CAP_BYTES else SUSPICION
            detail = f"the logged total, of which none is said to be code; code here {code.bytes:,}"
            return Finding(verdict, "size", f"{detail}; {stated}", export.total, "bytes")

        packed = len(lzma.compress(self.folder.bytes(code.used[0]) or b""))
        said = export.code or int(self.total or 0) - model
        counted = said if PACKED_SHARE * packed <= said < code.bytes else code.bytes
        detail = (
            f"code here {code.bytes:,} + model {model:,}; the log has {export.total:,}, "
            f"{export.code:,} of it code; {stated}"
        )
        if len(code.used) > 1:
            detail += f"; the code is {', '.join(path.name for path in code.used[:6])}"
        if code.others:
            detail += f"; what else could be code or data: {code.other_names()}"

        rest = export.total - model - max(export.code, code.bytes)
        script = min(counted, code.used[0].stat().st_size)
        repacked = self.total and self.total < model  # an export in a form that is not known
        verdict = SUSPICION
        if model + script > CAP_BYTES and not repacked:
            verdict = FAILED
            detail += f"; {model + script - CAP_BYTES:,} above the cap of {CAP_BYTES:,}"
        elif model + counted > CAP_BYTES:
            detail += f"; above the cap of {CAP_BYTES:,} with the files that the script runs"
        elif rest > UNEXPLAINED_BYTES:
            detail += f"; {rest:,} bytes of the logged total are neither model nor code"
        elif (self.total or 0) > CAP_BYTES:
            detail += f"; the stated total is above the cap of {CAP_BYTES:,}"
        else:
            verdict = CONSISTENT
        return Finding(verdict, "size", detail, model + code.bytes, "bytes")

    # ------------------------------------------------------------ times

    def judge(self, log: Log, seconds: float, slack: float = 0.0) -> str:
        """The limit is that of 8 GPUs; of another number, whose seconds count together, or of a
        number that is not logged it is a suspicion."""
        world = log.training.last("world_size")
        if seconds * (world or WORLD_SIZE) <= (LIMIT_S + slack) * WORLD_SIZE:
            return CONSISTENT
        return SUSPICION if self.over_limit == FAILED and world != WORLD_SIZE else self.over_limit

    def limit(self, log: Log) -> str:
        world = log.training.last("world_size") or WORLD_SIZE
        if self.over_limit == CONSISTENT:
            return f"the limit of {LIMIT_S:g} s is the record track's"
        return f"limit {LIMIT_S:g} s" + ("" if world == WORLD_SIZE else f" on 8 GPUs, here {world}")

    def check_training(self) -> list[Finding]:
        """The slowest training, which may finish its last step, and calibration after it."""
        logs = [log.training for log in self.used]
        log = max(logs, key=lambda log: log.longest("train").value, default=Log(""))
        trained, line, _ = log.longest("train")
        if not trained:
            return [Finding(NOT_CHECKABLE, "training time", "no claimed log states a train_time")]
        slack = max(STEP_S, log.last("step", 0.0))
        detail = f"the slowest run's; {self.limit(log)}"
        verdict = self.judge(log, trained, slack)
        found = [Finding(verdict, "training time", detail, trained, "s", line)]

        terms = {fact.quote.partition(": ")[2]: fact for fact in log.facts["calibration"]}
        spent = round(sum(fact.value for fact in terms.values()), 6)
        if spent and not log.facts["own text"]:
            total = trained + spent
            verdict = self.judge(log, total, slack)
            if verdict == FAILED and total <= LIMIT_S + slack + CALIBRATION_S:
                verdict = SUSPICION
            line = max(terms.values()).quote
            sums = f"{trained:.1f} + {spent:.1f} = {total:.1f} s"
            detail = f"after the training: {sums}; {self.limit(log)}"
            found.append(Finding(verdict, "calibration", detail, spent, "s", line))
        return found

    def check_evaluation(self) -> Finding:
        """The slowest claimed pass; passes together are stated, as no rule limits them."""
        timed = [(log.seconds_of(self.score_of(log)), log) for log in self.used]
        seconds, log = max(timed, key=lambda pair: pair[0], default=(0.0, Log("")))
        line = next((score.quote for score, time in log.passes if time == seconds), "")
        detail = "the slowest claimed pass"
        if not seconds:  # of no pass in particular
            facts = [
                (log.longest(name), log) for name in ("eval_total", "eval") for log in self.used
            ]
            (seconds, line, _), log = max(
                facts, key=lambda pair: pair[0].value, default=(NOTHING, log)
            )
            detail = "the longest that a log states, not said to be the claimed score's"
        if not seconds:
            detail = "no claimed log states the time of its evaluation"
            return Finding(NOT_CHECKABLE, "evaluation time", detail)

        total = log.longest("eval_total").value
        together = sum(time for _, time in log.passes)
        verdict = self.judge(log, seconds)
        if self.judge(log, max(seconds, total)) != CONSISTENT and (
            verdict == CONSISTENT or not together
        ):
            verdict = NOT_CHECKABLE  # what of it the claimed score needs is not said
        if together > seconds:
            detail += f"; all passes of the run together {together:.1f} s"
        if total:
            detail += f"; its total {total:.1f} s"
        return Finding(
            verdict, "evaluation time", f"{detail}; {self.limit(log)}", seconds, "s", line
        )

    def check_adaptation(self) -> list[Finding]:
        """Adaptation before the export is training or evaluation: FAILED where either way a limit
        breaks."""
        found = []
        for log in self.used:
            seconds, line = adaptation_before_export(log)
            scored = log.seconds_of(self.score_of(log))
            trained = log.training.longest("train").value
            evaluation = self.judge(log, seconds + scored)
            training = self.judge(
                log, trained + seconds, max(STEP_S, log.training.last("step", 0.0))
            )
            verdict = CONSISTENT if CONSISTENT in (evaluation, training) else evaluation
            detail = (
                f"as training {trained:.1f} + {seconds:.1f} = {trained + seconds:.1f} s, as "
                f"evaluation {seconds:.1f} + {scored:.1f} = {seconds + scored:.1f} s; "
                f"{self.limit(log)} for each"
            )
            if seconds:
                found.append(Finding(verdict, "adaptation time", detail, seconds, "s", line))
        return sorted(found, key=lambda one: (one.verdict == FAILED, one.number))[-1:]

    # ------------------------------------------------------------ other findings

    def check_split(self) -> Finding:
        """val_tokens x (val_loss / ln 2) / val_bpb is the size of the scored text: 151.08 MB under
        any tokenizer."""
        log = self.used[0] if self.used else Log("")
        tokens = log.last("val_tokens") or log.training.last("val_tokens") or 0
        near = [size for size, count in SPLIT_TOKENS.items() if abs(tokens / count - 1) < 0.002]
        whole = SPLIT_TOKENS.get(log.training.last("vocab_size", near[0] if near else 0), 0)
        claimed = [score for score in self.scores if score.loss and score.bpb]
        count = tokens or whole
        if not claimed or not count:
            lacking = "val_loss beside the claimed val_bpb" if count else "the number of tokens"
            verdict = NOT_CHECKABLE
            if tokens and tokens < 0.99 * (whole or min(SPLIT_TOKENS.values())):
                verdict = SUSPICION
                lacking += f", and {tokens:,} tokens are no whole split"
            return Finding(verdict, "split", f"the log lacks {lacking}", tokens or None, "tokens")

        stated = [one for one in (*claimed, *log.scores, *log.running) if one.loss and one.bpb]
        ratios = [one.loss / math.log(2) / one.bpb for one in stated]  # bytes a token
        held = round(count * ratios[0])
        fault = split_fault(tokens, whole, ratios)
        detail = (
            f"{count:,} tokens{'' if tokens else ' (not logged)'} of {ratios[0]:.4f} bytes, by "
            f"val_loss / val_bpb; the whole split has {SPLIT_BYTES:,}{fault and '; '}{fault}"
        )
        verdict = FAILED if fault and self.over_limit == FAILED and self.claim else SUSPICION
        if abs(held / SPLIT_BYTES - 1) <= SAME_SPLIT:
            verdict = CONSISTENT
        elif self.claim is None:
            verdict = NOT_CHECKABLE
        return Finding(verdict, "split", detail, held, "bytes", claimed[0].quote)

    def check_hardware(self) -> Finding:
        """Of all segments of the claimed runs."""
        worlds = sorted(set().union(*(log.values("world_size") for log in self.used)))
        gpus = sorted(set().union(*(log.values("gpu") for log in self.used)))
        detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
        usual = worlds == [WORLD_SIZE] and gpus in ([], ["H100"])
        verdict = CONSISTENT if usual or self.over_limit == CONSISTENT else SUSPICION
        return Finding(verdict if worlds else NOT_CHECKABLE, "hardware", detail)

    def check_patterns(self) -> list[Finding]:
        """What has invalidated entries before, in logs and scripts; each names its line, for a
        person to judge."""
        hits = {}  # what -> its line
        for log in dict.fromkeys(log for one in self.used for log in (one, one.training)):
            hits |= {what: log.facts[what][0].quote for what in SUSPICIOUS if log.facts[what]}
            if log.facts["traceback"]:
                hits["a log that ends in an error"] = log.facts["traceback"][-1].quote
        unread = [] if self.code.used else ["no script is here"]
        for path in self.code.used[:12]:
            programs = read_programs(path, self.folder)
            if not programs or stays_packed(programs):
                unread.append(f"{path.name}, or what it unpacks")
            for hit in (hit for program in programs for hit in search(program)):
                line = f"{path.name}:{hit.statement.number}: {hit.statement.text[:160]}"
                hits.setdefault(hit.what, line)

        found = [Finding(SUSPICION, "pattern", what, line=line) for what, line in hits.items()]
        if unread:
            found.append(Finding(NOT_CHECKABLE, "pattern", f"not searched: {', '.join(unread)}"))
        nothing = "nothing that has invalidated entries before"
        return found or [Finding(CONSISTENT, "pattern", nothing)]

    def check_files(self) -> Finding:
        """What the folder lacks, and what of it was not opened or not read to its end."""
        readme = any(path.name.lower().startswith("readme") for path in self.folder.files)
        there = {"a README": readme, "a train log": self.logs, "a script": self.code.used}
        problems = [f"there is not {name}" for name, found in there.items() if not found]
        problems += [self.problem] if self.problem else []
        left_out = [*self.folder.skipped, *self.folder.budget.unread]
        problems += [f"not read: {', '.join(left_out[:6])}"] if left_out else []
        detail = "; ".join(problems) or "README, submission.json, logs and script"
        verdict = NOT_CHECKABLE if problems else PROVEN
        return Finding(verdict, "files", detail, len(self.folder.files), "files")


def likeness_to_train_gpt(path: Path) -> tuple:
    return path.name == "train_gpt.py", path.name.startswith("train"), path.stat().st_size


def verdict_over_limit(place: str, track: str) -> str:
    """FAILED in the record track, by the folder that an entry lies in or by its submission.json; a
    suspicion where it lies there and says that it is no record."""
    other = re.compile(r"(?i)(?<![a-z0-9])(non[-_ ]?record|unlimited)")
    if other.search(place) or "10min" not in f"{place} {track}".lower():
        return CONSISTENT
    if other.search(track):
        return SUSPICION if "10min" in place.lower() else CONSISTENT
    return FAILED


def agree(claim: float, measured: float, digits: int, units: float = 1.0) -> bool:
    """Equal in the decimals that both are stated to, give or take some units of the last one."""
    return abs(claim - measured) <= 1.01 * units * 10.0 ** -min(decimals_of(claim), digits)


def decimals_of(claim: float, least: int = 2) -> int:
    """To how many a number is stated, which has lost its zeros at the end."""
    return max(least, len(f"{claim:.12f}".rstrip("0").partition(".")[2]))


def shape(name: str) -> str:
    """A log's name without its numbers."""
    return re.sub(r"\d+", "", name)


def quoted(scores: list[Score]) -> str:
    """Where scores stand and what they are: "; a.log:7 1.12; b.log:7 1.13"."""
    parts = [f"; {score.quote.split(': ')[0]} {score.bpb:g}" for score in scores[:6]]
    return "".join(parts) + ("; ..." if len(scores) > 6 else "")


@dataclass(frozen=True)
class Export:
    """The last export that a run's log states, in bytes; 0 where it does not."""

    model: int
    code: int
    total: int


def last_export(log: Log) -> Export:
    """Of the model's size and the total the one that is stated later goes before."""
    stated = log if log.facts["model_bytes"] or log.facts["total_bytes"] else log.training
    names = ("model_bytes", "code_bytes", "total_bytes")
    model, code, total = ([NOTHING, *stated.facts[name]][-1] for name in names)
    if model.number > total.number and total.value < model.value:
        total = NOTHING
    return Export(model.value, code.value, total.value or model.value + code.value)


def adaptation_before_export(log: Log) -> tuple[float, str]:
    """Seconds of its total, or else of its epochs together; and the line."""
    exports = [*log.facts["model_bytes"], *log.facts["total_bytes"]]
    exported = max((fact.number for fact in exports), default=0)
    facts = [fact for fact in log.facts["adaptation"] if fact.number < exported]
    totals = [fact for fact in facts if re.search("total_time|done", fact.quote)]
    epochs = [fact for fact in facts if re.search(r"epoch\W{0,3}\d+/\d+", fact.quote)]
    if totals:
        return max(totals)[:2]
    values = [fact.value for fact in epochs]
    grows = len(values) > 2 and values == sorted(set(values)) and values[-1] > 1.8 * values[0]
    seconds = values[-1] if grows else sum(values)  # some count from the first epoch on
    return round(seconds, 6), epochs[-1].quote if epochs else ""


def split_fault(tokens: int, whole: int, ratios: list[float]) -> str:
    """What is certainly wrong with a split of `tokens`, of which there should be `whole`, and with
    the bytes a token of its lines; empty if nothing is, and where a number is zero."""
    ratio = ratios[0]
    near = [other for other in ratios if abs(other / ratio - 1) < 0.02]
    alike = len(near) > 1 and len(near) >= 0.8 * len(ratios)
    same = len(ratios) > 2 and all(abs(other / ratio - 1) < 0.005 for other in ratios)
    off = tokens * ratio / SPLIT_BYTES - 1
    if tokens and whole and abs(tokens / whole - 1) < 0.002 and abs(off) > 0.01 and same:
        return "its tokens, miscounted or not all scored"
    if tokens and tokens < 0.99 * whole and abs(ratio * whole / SPLIT_BYTES - 1) < 0.03:
        return "a part of it"
    if tokens and abs(off) > OTHER_SPLIT and alike:
        return "a part of it" if off < 0 else "more than there is"
    return ""


# ---------------------------------------------------------------- significance


def parse_scores(text: str) -> list[float]:
    """Bits per byte, with commas; UnusableInput for anything else."""
    try:
        scores = [float(part) for part in text.split(",")]
    except ValueError:
        scores = [math.nan]
    if not all(0 < score < 100 for score in scores) or " " in text:
        problem = "--against takes bits per byte, one or several with commas and no spaces, not "
        raise UnusableInput(problem + repr(clean(text, 40)))
    return scores


def check_significance(scores: list[Score], rivals: list[float]) -> list[Finding]:
    """Whether the scores are lower than the rivals' by RECORD_NATS at p < RECORD_P, in nats per
    token of the entry's tokenizer."""
    finals = [score for score in scores if score.kind == "final"]
    if not rivals or not finals:
        detail = "no final line with val_bpb"
        return [Finding(NOT_CHECKABLE, "significance", detail)] if rivals else []
    ratios = [score.loss / score.bpb for score in finals if score.loss and score.bpb]
    nats = fmean(ratios or [math.log(2) * SPLIT_BYTES / SPLIT_TOKENS[1024]])  # a token, per bit
    ours = [score.bpb * nats for score in finals]
    theirs = [bpb * nats for bpb in rivals]
    gain = fmean(theirs) - fmean(ours)
    p = welch(theirs, ours, RECORD_NATS)

    verdict = CONSISTENT if p is not None and p < RECORD_P else NOT_CHECKABLE
    shown = "one score or equal scores show no p" if p is None else f"p = {p:.3g}"
    detail = (
        f"nats a token {'better' if gain >= 0 else 'worse'}, mean of {len(ours)} against "
        f"{len(theirs)}; a record needs {RECORD_NATS} at p < {RECORD_P}; {shown} (Welch, one-sided)"
    )
    return [Finding(FAILED if gain < 0 else verdict, "significance", detail, gain, "nats")]


def welch(a: list[float], b: list[float], margin: float) -> float | None:
    """One-sided p of mean(a) - mean(b) <= margin, by Welch's t-test; a list of one value counts as
    exact. None where the values show no deviation."""
    lists = [values for values in (a, b) if len(values) > 1]
    parts = [variance(values) / len(values) for values in lists]
    total = sum(parts)  # variance of the difference of the means
    if len(b) < 2 or total == 0:
        return None
    squares = (part**2 / (len(values) - 1) for part, values in zip(parts, lists, strict=True))
    t = (fmean(a) - fmean(b) - margin) / math.sqrt(total)
    tail = student_tail(abs(t), total**2 / sum(squares))
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


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("check.py", description=__doc__, formatter_class=form)
    parser.add_argument("folder", help="a record folder")
    parser.add_argument("--against", metavar="BPB[,BPB...]", help="scores to beat")
    parser.add_argument("--json", action="store_true", help="findings for machines")
    options = parser.parse_args(argv)
    folder = Path(options.folder)

    def find() -> Report:
        if not folder.is_dir():
            raise UnusableInput(f"{folder} is no folder")
        return check_folder(folder, options.against)

    return report_on(find, "check.py", options.folder, options.json)


if __name__ == "__main__":
    sys.exit(main())
