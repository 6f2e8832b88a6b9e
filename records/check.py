"""Checks what a record folder of any Parameter Golf entry states, except its artifact.

    python records/check.py FOLDER [--against BPB[,BPB...]] [--json]

Reads submission.json, logs and scripts, and runs nothing of the folder; `python verify.py FOLDER`
checks its artifact as well. OK needs the claim, the size, both times and the split to agree with
the logs, and no suspicion; FAILED is a contradiction between claim and files, or a rule that the
claimed run breaks. Exit codes: 0 nothing failed, 1 something did, 2 unusable input.
At most 60 s of processor time and 64 MB are spent on regular files of the folder; scripts of over
1 MB and logs of over 16 MB are not read, and are named.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

if __name__ == "__main__":  # imports start at the root
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]
    from records.report import end_on_interrupt

    end_on_interrupt("check.py")

import numpy as np

from records.code import CodeSize, measure_code, search, stays_packed
from records.files import Folder, list_folder
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
LEAST_LOSS = 1.5  # nats per token; a val_loss below it means bits per byte
LEAST_DIGITS = 4  # decimals of a log's score, below which it shows nothing
NEEDED = (("val_bpb", "claim"), ("size",), ("training time",), ("evaluation time",), ("split",))

BPB_FIELDS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")
MEAN_FIELD = re.compile(r"(?i)^(?=.*bpb)(?=.*(mean|avg|aver))(?!.*(std|dev|delta|base|pre|gain))")
RESULT_FIELDS = ("results", "result", "metrics", "summary", "final", "scores", "evaluation")
SEED_FIELDS = ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed")
SEED_KEY = re.compile(r"(?:val_bpb_)?(?:seed)?[_ ]*([0-9]{1,20})")
SAID_SEEDS = re.compile(r'(?i)\b(\d|two|three|four|five)[-_ ]?seeds?\b(?!ed|": (?:false|null))')
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5}
TRAINED_ON_VAL = re.compile(  # as a README says it, unless it says that it does not
    r"(?i)TRAIN_ON_VAL\w*[\"'` ]*[=:][\"'` ]*(?:1|true)\b|\b(?:train|fine-?tun)(?:e?[sd]|ing|e)? "
    r"(?:\w+ ){0,3}on (?:the )?(?:full )?val(?:idation)? (?:shards?|set|split|tokens|data)\b"
)
DENIED = re.compile(r"(?i)\b(?:no|not|never|without|illegal|forbid\w*|allowed|you|test-time)\b|n't")
BPB_LIST = re.compile(r"\d{1,2}\.\d{1,12}(,\d{1,2}\.\d{1,12})*")
OTHER_TRACK = re.compile(r"(?i)(?<![a-z0-9])(non[-_ ]?record|unlimited)")
ABOUT = re.compile(r"(?i)(?:readme|submission)[^/]*$")
OWN_TRACK = re.compile(r"(?im)^(?:\W{0,9}|#.{0,200}|.{0,60}\bis an? )(non[-_ ]?record|unlimited)\b")
TRACK_FIELDS = ("track", "name", "submission_type", "record_type", "status", "blurb")
SIZES = ("model_bytes", "total_bytes")  # of a log
SIZE = re.compile(r'(?:bytes|size)\w*": "?(\d{7,9})\b')  # of submission.json
TOTAL_FIELDS = ("bytes_total", "total_bytes", "artifact_bytes_max", "artifact_bytes", "size_bytes")


def read_submission(folder: Folder) -> tuple[dict, str]:
    """The fields of submission.json, or of the first file named alike; why there are none."""
    named = [path for path in folder.files if re.fullmatch(r"submission.*\.json", path.name)]
    if not named:
        return {}, "there is no submission.json"
    path = min(named, key=lambda path: (path.parent != folder.root, path.name != "submission.json"))
    try:
        table = json.loads(folder.text(path))
        problem = "it holds no fields"
    except (ValueError, RecursionError) as error:
        table = None
        problem = clean(str(error), 100)
    if isinstance(table, dict):
        return dict(list(table.items())[:1_000]), ""
    return {}, f"{path.name} cannot be used: {problem}"


def to_number(value: object) -> float:
    """Of a number, of a text such as "15,990,006 bytes", or the mean of a list or map; else 0."""
    if isinstance(value, dict):
        value = value.get("mean", list(value.values()))
    if isinstance(value, list):
        numbers = [to_number(one) for one in value[:MAX_LOGS] if not isinstance(one, list | dict)]
        return fmean(numbers) if numbers and all(numbers) else 0.0
    found = re.match(r"\s*(\d[\d,]{0,20}(?:\.\d{1,20})?)(?!\w)", str(value)[:100])
    return float(found[1].replace(",", "")) if found else 0.0


def first_number(table: dict, names: Iterable[str]) -> float | None:
    """The first number above zero among these fields."""
    return next(filter(None, (to_number(table.get(name)) for name in names)), None)


def claimed_bpb(table: dict) -> float | None:
    """Of the usual fields, else of another mean, a table of results, or a val_loss that is none."""
    means = [name for name in table if MEAN_FIELD.search(name)]
    inner = [table.get(name) for name in RESULT_FIELDS]
    found = [first_number(table, (*BPB_FIELDS, *means))]
    found += [claimed_bpb(part) for part in inner if isinstance(part, dict)]
    loss = to_number(table.get("val_loss"))
    return next(filter(None, found), loss if 0 < loss < LEAST_LOSS else None)


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds, each with its claimed bits per byte, of a map, a list of seeds or maps, or one."""
    listed = [(key, value) for key, value in table.items() if re.search(r"seed_?\d", key)]
    for value in (table.get(name) for name in SEED_FIELDS):
        rows = value if isinstance(value, list) else [value]
        pairs = [(row.get("seed"), row) if isinstance(row, dict) else (row, None) for row in rows]
        listed += (list(value.items()) if isinstance(value, dict) else pairs)[:MAX_LOGS]

    claims = {}
    for key, result in listed:
        if found := SEED_KEY.fullmatch(str(key)[:40]):
            table = result if isinstance(result, dict) else {"val_bpb": result}
            value = first_number(table, BPB_FIELDS)
            claims[int(found[1])] = value or claims.get(int(found[1]))
    return claims


def submitted_scores(folder: Path) -> list[float]:
    """Each seed's val_bpb by submission.json, or val_bpb alone if it is not their mean."""
    table, _ = read_submission(list_folder(folder))
    headline = claimed_bpb(table)
    seeds = [bpb for bpb in claimed_seeds(table).values() if bpb]
    alone = headline and (not seeds or abs(headline - fmean(seeds)) > 1e-3)
    return [headline] if alone else seeds


def check_folder(path: Path, against: str | None = None) -> Report:
    """All findings on a record folder but those on its artifact. `against`: scores to beat, with
    commas. Raises UnusableInput where those are no scores, and for what is no record folder."""
    if against and not BPB_LIST.fullmatch(against):
        words = "--against takes bits per byte, one or several with commas and no spaces, not"
        raise UnusableInput(f"{words} {clean(against, 40)!r}")
    rivals = [float(bpb) for bpb in (against or "").split(",") if bpb]
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
    if entry.claim is None:  # nothing that files could contradict
        open_point = {FAILED: NOT_CHECKABLE}
        findings = [replace(f, verdict=open_point.get(f.verdict, f.verdict)) for f in findings]
    return Report(findings, NEEDED, tuple(entry.row(log) for log in entry.used[:16]))


def refuse_other_folders(folder: Folder) -> None:
    """UnusableInput for an empty folder, a repository and a folder of record folders."""
    if not folder.root.is_dir():
        raise UnusableInput(f"{folder.root} is no folder")
    names = [folder.name(path) for path in folder.files if path.name.startswith("submission")]
    inside = names and all("/" in name for name in names)
    others = inside and "track_" in f"{folder.root.name}/{names[0]}"
    if others or not folder.files or ((folder.root / ".git").exists() and (inside or not names)):
        holds = f"it holds {len(names)} others" if inside else "it is empty or a repository"
        raise UnusableInput(f"{folder.root.name} is no record folder: {holds}")


@dataclass
class Way:
    """A way in which a val_bpb comes from logs."""

    words: str  # "the mean of the last final lines of 3 logs"
    scores: list[Score]  # that make it

    def __post_init__(self):
        self.bpb = fmean(score.bpb for score in self.scores)
        self.digits = min(score.digits for score in self.scores)


class Entry:
    """What was read of a folder, and its checks."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.table, self.problem = read_submission(folder)
        self.claim = claimed_bpb(self.table)
        self.seeds = claimed_seeds(self.table)
        self.total = first_number(self.table, TOTAL_FIELDS)
        scripts = [path for path in folder.files if path.suffix == ".py" and path.stat().st_size]
        scripts.sort(key=lambda path: (path.name == "train_gpt.py", path.stat().st_size))
        self.code = measure_code(scripts[-1], folder) if scripts else CodeSize({}, [])
        place = folder.root.parent.name
        said = " ".join(str(self.table.get(name))[:200] for name in TRACK_FIELDS)
        self.over_limit = FAILED if "10min" in f"{place} {said}" else CONSISTENT  # verdict on it
        self.about = {p.name: folder.text(p) for p in folder.files if ABOUT.match(folder.name(p))}
        other = any(map(OWN_TRACK.search, self.about.values()))
        if other or OTHER_TRACK.search(f"{place} {folder.root.name} {said}"):
            self.over_limit = SUSPICION if place == "track_10min_16mb" else CONSISTENT
        self.logs = read_logs(folder)
        self.sizes = {fact.value for log in self.logs for name in SIZES for fact in log.facts[name]}
        self.numbers = {*map(int, SIZE.findall(json.dumps(self.table)))}  # claimed
        self.way = self.explain()
        headlines = [log.headline for log in self.logs if log.headline]
        top = [score for score in headlines if "/" not in score.log]
        self.scores = self.way.scores if self.way else (self.claim and headlines) or top  # claimed
        names = {score.log for score in self.scores}
        self.used = [log for log in self.logs if log.name in names] or self.logs  # claimed runs

    def row(self, log: Log) -> RunRow:
        score = self.score_of(log)
        size = last_export(log).total or None
        times = (log.longest("train").value or None, log.seconds_of(score) or None)
        return RunRow(log.seed, score.bpb if score else None, size, *times)

    def score_of(self, log: Log) -> Score | None:
        """The score of a log that val_bpb rests on, or else its headline."""
        return next((score for score in self.scores if score.log == log.name), log.headline)

    def explain(self) -> Way | None:
        """To the digit before cut, means before lines, results before others, then the closest."""
        claim = self.claim or 0.0
        ways = [way for way in self.ways() if agree(claim, way.bpb, way.digits)]
        close = [way for way in ways if agree(claim, way.bpb, way.digits, cut=False)] or ways
        means = [way for way in close if len(way.scores) > 1] or close
        return min(means, key=lambda way: (way.scores[0].kind, abs(way.bpb - claim)), default=None)

    def ways(self) -> Iterator[Way]:
        """The ways in which a val_bpb comes from logs, the usual ones first."""
        logs = self.logs
        shape = attrgetter("shape")
        alike = groupby(sorted(logs, key=shape), key=shape)
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
        for score in reversed(self.legal()):
            yield Way(f"a {score.kind} line of one log of {len(logs)}", [score])

    def legal(self) -> list[Score]:
        stated = (score for log in self.logs for score in (*log.scores, *log.running))
        return [score for score in stated if score.kind != "illegal"]

    def score_that_states(self, bpb: float | None) -> Score | None:
        stated = (score for log in self.logs for score in log.scores)
        return next((one for one in stated if bpb and agree(bpb, one.bpb, one.digits)), None)

    def check_claim(self) -> Iterator[Finding]:
        """submission.json's val_bpb against the logs, and against every accepted score."""
        claim = self.claim
        if claim and claim < BEST_ACCEPTED:
            detail = f"below every accepted score, of which {BEST_ACCEPTED} is the lowest"
            yield Finding(SUSPICION, "accepted scores", detail, claim, "bits/byte")
        if self.legal() and claim:
            yield self.explained(self.way) if self.way else self.unexplained()
        else:
            lacking = "no log states a legal" if claim else "submission.json states no"
            detail = f"{lacking} val_bpb{quoted(self.scores)}"
            yield Finding(NOT_CHECKABLE, "val_bpb", detail, claim)

    def explained(self, way: Way) -> Finding:
        """The finding on a val_bpb that logs state."""
        first = way.scores[0]
        parts = [f"submission.json's {self.claim:g} is {way.words}, to {way.digits} decimals"]
        parts += self.doubts(way)
        verdict = CONSISTENT if way.digits >= LEAST_DIGITS else NOT_CHECKABLE
        if first.kind != "final" or len(parts) > 1:
            verdict = SUSPICION
        says = f"val_bpb {way.bpb:.6f} is what the logs say"
        detail = "; ".join(parts)
        return Finding(verdict, "val_bpb", detail, way.bpb, "bits/byte", first.quote, says)

    def doubts(self, way: Way) -> Iterator[str]:
        """Signs that a val_bpb was chosen from several."""
        label = way.scores[0].label
        own = [log for log in self.logs if log.name in {score.log for score in way.scores}]
        kind = attrgetter("shape" if len(own) > 1 else "folder")
        seeds = {None, *(log.seed for log in own)}
        left = [log for log in self.logs if log.seed not in seeds and kind(log) == kind(own[0])]
        others = [log.last_scores()[label] for log in left if label in log.last_scores()]
        if others and max(one.bpb for one in way.scores) < min(one.bpb for one in others):
            yield f"the best of {len(others) + len(own)} seeds, no mean{quoted(others)}"
        means = [to_number(self.table[name]) for name in self.table if MEAN_FIELD.search(name)]
        means.append(to_number([bpb for bpb in self.seeds.values() if bpb]))
        below = [mean for mean in means if len(own) == 1 and 2e-4 < mean - self.claim < 0.1]
        below += [way.bpb] if way.digits >= LEAST_DIGITS and way.bpb - self.claim > 1e-3 else []
        if below:
            yield f"by its own numbers it is {below[0]:g}"
        passes = [one for log in own for one, _ in log.passes]
        pairs = [(one, score) for score in way.scores for one in passes if one.label == score.label]
        again = [one for one, score in pairs if one.log == score.log and one.bpb > score.bpb + 2e-4]
        if again:
            yield f"the same pass came to another score{quoted(again)}"

    def unexplained(self) -> Finding:
        """The finding on a val_bpb that is no line and no mean: proof if below all claimed logs."""
        claim = self.claim
        for score in (score for log in self.logs for score in log.scores):
            if score.kind == "illegal" and agree(claim, score.bpb, score.digits):
                detail = "submission.json's is of a line that its log labels NOT LEGAL"
                return Finding(FAILED, "val_bpb", detail, claim, "bits/byte", score.quote)

        detail = f"submission.json's is no line and no mean of the logs{quoted(self.scores)}"
        precise = any(score.digits >= LEAST_DIGITS for score in self.scores)
        logged = {*self.seeds} <= {log.seed for log in self.logs}
        verdict = SUSPICION if precise and logged else NOT_CHECKABLE
        if verdict == SUSPICION and is_lower(claim, self.legal()) and self.is_logged():
            verdict = FAILED
        return Finding(verdict, "val_bpb", detail, claim, "bits/byte")

    def is_logged(self) -> bool:
        """Whether logs of all seeds are here, and state a size that submission.json states."""
        return bool(self.sizes & self.numbers) and {*self.seeds} <= {log.seed for log in self.logs}

    def check_seeds(self) -> Iterator[Finding]:
        """The logs' seeds against the claimed ones, and each seed's claim against its own log."""
        seeds = sorted({log.seed for log in self.used if log.seed is not None})
        logged = {log.seed for log in self.logs} - {None}
        unlogged = sorted(set(self.seeds) - logged)
        said = SAID_SEEDS.findall(json.dumps(self.table)[:100_000])
        most = max((WORDS.get(word.lower()) or int(word) for word in said), default=0)

        verdict = CONSISTENT
        detail = f"val_bpb rests on logs of seeds {seeds[:12]}"
        if unlogged or not seeds:
            verdict = NOT_CHECKABLE
            detail += f"; submission.json also names {unlogged[:8]}" if unlogged else ""
        elif self.way and len(seeds) == 1 < len(self.used):
            verdict = SUSPICION
            detail += f", {len(self.used)} of them"
        elif most > max(len(logged), 1):
            verdict = SUSPICION
            detail += f"; submission.json speaks of {most} seeds, logs of {len(logged)} are here"
        yield Finding(verdict, "seeds", detail, len(seeds), "seeds")

        for seed, claim in self.seeds.items():
            logs = [log for log in self.logs if log.seed == seed]
            own = [one for log in logs for one in (*log.scores, *log.running)]
            finals = [one for one in own if one.kind == "final" and one.digits >= LEAST_DIGITS]
            if claim and finals and not any(agree(claim, one.bpb, one.digits) for one in own):
                proof = is_lower(claim, own) and not self.score_that_states(claim)
                verdict = FAILED if proof and self.is_logged() else SUSPICION
                detail = f"seed {seed} claims {claim:g}, its log ends at {finals[-1].bpb:g}"
                yield Finding(verdict, "seeds", detail, claim, "bits/byte", finals[-1].quote)

    def check_size(self) -> Finding:
        """The code as it lies here plus the largest last export of the claimed runs."""
        code = self.code
        exports = [export for export in map(last_export, self.used) if export.total]
        if not code.used or not exports:
            totals = filter(None, (to_number(self.table.get(name)) for name in TOTAL_FIELDS))
            over = min(totals, default=0) > CAP_BYTES  # by the claimant's own word
            detail = "no claimed log states bytes" if code.used else "no script is here"
            detail += f"; submission.json says {int(self.total):,}" if self.total else ""
            return Finding(FAILED if over else NOT_CHECKABLE, "size", detail)
        export = max(exports, key=lambda export: export.model or export.total)
        model = export.model or export.total - export.code
        claimed = int(self.total or 0)
        packed = [said for said in (export.code, claimed - model) if said < code.bytes]
        packed = [said for said in packed if said >= PACKED_SHARE * code.packed_bytes]
        counted = packed[0] if packed else code.bytes
        if not export.model and not export.code:  # a total without its parts
            counted = 0
        detail = (
            f"code here {code.bytes:,} + model {model:,}; the log has {export.total:,}, "
            f"{export.code:,} of it code; submission.json says {claimed:,}"
        )
        if len(code.used) > 1:
            detail += f"; the code is {', '.join(path.name for path in code.used[:6])}"
        if code.others:
            detail += f"; what else could be code or data: {code.other_names()}"

        script = min(counted, code.used[0].stat().st_size)
        others = [size for size in self.numbers - self.sizes if size < model]  # not logged exports
        rest = export.total - model - max(export.code, code.bytes)
        verdict = SUSPICION
        if model + script > CAP_BYTES:
            verdict = SUSPICION if others and claimed <= CAP_BYTES else FAILED
            detail += f"; {model + script - CAP_BYTES:,} above the cap"
        elif model + counted > CAP_BYTES:
            detail += f"; {model + counted - CAP_BYTES:,} above the cap with what the script runs"
        elif rest > UNEXPLAINED_BYTES:
            detail += f"; {rest:,} bytes of the logged total are neither model nor code"
        elif claimed > CAP_BYTES:
            detail += "; the stated total is above the cap"
        else:
            verdict = CONSISTENT
        return Finding(verdict, "size", detail, model + counted, "bytes")

    def judge(self, log: Log, seconds: float, slack: float = 0.0) -> str:
        """Of 8 GPUs; of others, whose seconds count together, or none logged it is a suspicion."""
        world = log.last("world_size")
        if seconds * (world or WORLD_SIZE) <= (LIMIT_S + slack) * WORLD_SIZE:
            return CONSISTENT
        return SUSPICION if self.over_limit == FAILED and world != WORLD_SIZE else self.over_limit

    def limit(self, log: Log) -> str:
        gpus = log.last("world_size") or "not logged"
        return f"the record track's limit is {LIMIT_S:g} s on {WORLD_SIZE} GPUs, here {gpus}"

    def check_training(self) -> Iterator[Finding]:
        """The slowest training, which may finish its last step, and calibration after it."""
        log = max(self.used, key=lambda log: log.longest("train").value, default=Log(""))
        trained, line, _ = log.longest("train")
        slack = max(STEP_S, log.last("step", 0.0))
        verdict = self.judge(log, trained, slack) if trained else NOT_CHECKABLE
        detail = f"the slowest run's; {self.limit(log)}" if trained else "no claimed log states one"
        yield Finding(verdict, "training time", detail, trained or None, "s", line)

        facts = {fact.quote.partition(": ")[2]: fact for fact in log.facts["calibration"]}
        spent = round(sum(fact.value for fact in facts.values()), 6)
        untimed = [fact for fact in log.facts["untimed calibration"] if trained + STEP_S > LIMIT_S]
        if spent and not log.facts["own text"]:
            verdict = self.judge(log, trained + spent, slack)
            if verdict == FAILED and trained + spent <= LIMIT_S + slack + CALIBRATION_S:
                verdict = SUSPICION
            sums = f"{trained:.1f} + {spent:.1f} = {trained + spent:.1f} s"
            detail = f"after the training: {sums}; {self.limit(log)}"
            yield Finding(verdict, "calibration", detail, spent, "s", max(facts.values()).quote)
        elif untimed and not log.facts["own text"]:
            detail = "after the training, of no stated length"
            yield Finding(SUSPICION, "calibration", detail, line=untimed[-1].quote)

    def check_evaluation(self) -> Finding:
        """The slowest claimed pass; passes together are stated, as no rule limits them."""
        own = {log: log.seconds_of(self.score_of(log)) for log in self.used}
        log = max(own, key=lambda log: (own[log], log.longest("eval").value), default=Log(""))
        total = log.longest("eval_total")
        seconds = own.get(log, 0.0)
        line = next((score.quote for score, time in log.passes if time == seconds), "")
        detail = f"the slowest claimed pass; {self.limit(log)}"
        if not seconds:
            seconds, line, _ = max(total, log.longest("eval"))
            detail = f"the longest that a log states, of no claimed pass; {self.limit(log)}"
        if not seconds:
            detail = "no claimed log states how long it took"
            return Finding(NOT_CHECKABLE, "evaluation time", detail)

        verdict = self.judge(log, max(seconds, total.value))
        claimed = self.way and own[log] and self.judge(log, seconds) == verdict
        if verdict != CONSISTENT and not claimed:
            verdict = NOT_CHECKABLE  # what of it the claimed score needs is not said
        together = {round(score.bpb, 3): time for score, time in log.passes}
        if len(together) > 1:
            detail += f"; all passes together {sum(together.values()):.1f} s"
        if total.value:
            detail += f"; its total {total.value:.1f} s"
        return Finding(verdict, "evaluation time", detail, seconds, "s", line)

    def check_adaptation(self) -> Iterator[Finding]:
        """Adaptation before the export: FAILED if as training and as evaluation a limit breaks."""
        log = max(self.used, key=lambda log: adaptation_before_export(log)[0], default=Log(""))
        seconds, line = adaptation_before_export(log)
        scored = log.seconds_of(self.score_of(log))
        trained = log.longest("train").value
        evaluation = self.judge(log, seconds + scored)
        training = self.judge(log, trained + seconds, max(STEP_S, log.last("step", 0.0)))
        verdict = CONSISTENT if CONSISTENT in (evaluation, training) else evaluation
        detail = (
            f"as training {trained:.1f} + {seconds:.1f} = {trained + seconds:.1f} s, as evaluation "
            f"{seconds:.1f} + {scored:.1f} = {seconds + scored:.1f} s; {self.limit(log)}"
        )
        if seconds:
            yield Finding(verdict, "adaptation time", detail, seconds, "s", line)

    def check_split(self) -> Finding:
        """val_tokens x (val_loss / ln 2) / val_bpb: 151.08 MB of text under any tokenizer."""
        log = self.used[0] if self.used else Log("")
        tokens = log.last("val_tokens", 0)
        if tokens * (log.last("world_size") or 1) in SPLIT_TOKENS.values():  # of one rank
            tokens *= log.last("world_size") or 1
        near = [size for size, count in SPLIT_TOKENS.items() if abs(tokens / count - 1) < 1e-4]
        whole = SPLIT_TOKENS.get(log.last("vocab_size", near[0] if near else 0), 0)
        known = [one for one in (*self.scores, *log.scores, *log.running) if one.loss and one.bpb]
        bpbs = [score.bpb for score in self.scores]
        claimed = [one for one in known if any(abs(one.bpb - bpb) < 6e-5 for bpb in bpbs)]
        count = tokens or whole
        if not claimed or not count:
            lacking = "val_loss beside the claimed val_bpb" if count else "the number of tokens"
            verdict = NOT_CHECKABLE
            if tokens and tokens < 0.99 * (whole or min(SPLIT_TOKENS.values())):
                verdict = SUSPICION
                lacking += f", and {tokens:,} tokens are no whole split"
            return Finding(verdict, "split", f"the log lacks {lacking}", tokens or None, "tokens")

        ratios = [one.loss / math.log(2) / one.bpb for one in (*claimed, *known)]  # bytes a token
        held = round(count * ratios[0])
        off = held / SPLIT_BYTES - 1
        alike = [other for other in ratios if abs(other / ratios[0] - 1) < 0.02]
        steady = len(ratios) > 2 and all(abs(other / ratios[0] - 1) < 0.005 for other in ratios)
        fault = ""  # what is surely wrong
        if tokens and whole and abs(tokens / whole - 1) < 0.002 and abs(off) > 0.01 and steady:
            fault = "; its tokens, miscounted or not all scored"
        elif tokens < 0.99 * whole and abs(ratios[0] * whole / SPLIT_BYTES - 1) < 0.03:
            fault = "; a part of it"
        elif abs(off) > OTHER_SPLIT and len(alike) > 1 and len(alike) >= 0.8 * len(ratios):
            fault = "; a part of it" if off < 0 else "; more than there is"
        detail = (
            f"{count:,} tokens{'' if tokens else ' (not logged)'} of {ratios[0]:.4f} bytes, by "
            f"val_loss / val_bpb; the whole split has {SPLIT_BYTES:,}{fault if tokens else ''}"
        )
        verdict = FAILED if fault and tokens and self.over_limit == FAILED else SUSPICION
        if abs(off) <= SAME_SPLIT:
            verdict = CONSISTENT
        return Finding(verdict, "split", detail, held, "bytes", claimed[0].quote)

    def check_hardware(self) -> Finding:
        """Of all segments of the claimed runs."""
        worlds = sorted({fact.value for log in self.used for fact in log.facts["world_size"]})
        gpus = sorted({fact.value for log in self.used for fact in log.facts["gpu"]})
        detail = f"world size {worlds or 'not logged'}, GPU {', '.join(gpus) or 'not logged'}"
        usual = worlds == [WORLD_SIZE] and gpus in ([], ["H100"])
        verdict = CONSISTENT if usual or self.over_limit == CONSISTENT else SUSPICION
        return Finding(verdict if worlds else NOT_CHECKABLE, "hardware", detail)

    def check_patterns(self) -> Iterator[Finding]:
        """What has invalidated entries before, each with its line, for a person to judge."""
        facts = [(what, log.facts[what]) for log in self.used for what in SUSPICIOUS]
        hits = {what: found[0].quote for what, found in facts if found}  # what -> its line
        for name, text in self.about.items():
            for found in TRAINED_ON_VAL.finditer(text):
                if not DENIED.search(text[max(0, found.start() - 60) : found.start()]):
                    hits["says that it trains on validation data"] = f"{name}: {found[0]}"
        unread = [path.name for path, texts in self.code.programs.items() if stays_packed(texts)]
        for path, programs in self.code.programs.items():
            for program in programs if self.folder.allows(0, path.name) else ():
                for hit in search(program):
                    hits.setdefault(hit.what, f"{path.name}:{hit.number}: {hit.text[:160]}")

        for what, line in hits.items():
            yield Finding(SUSPICION, "pattern", what, line=line)
        if unread or not self.code.used:
            script = ", ".join(unread) or "a script: none is here"
            yield Finding(NOT_CHECKABLE, "pattern", f"not searched: what is packed in {script}")
        elif not hits:
            yield Finding(CONSISTENT, "pattern", "nothing that has invalidated entries before")

    def check_files(self) -> Finding:
        """What the folder lacks, and what of it was not opened or not read to its end."""
        readme = any(path.name.lower().startswith("readme") for path in self.folder.files)
        there = {"README": readme, "train log": self.logs, "script": self.code.used}
        problems = [f"there is no {name}" for name, found in there.items() if not found]
        left_out = ", ".join(list(self.folder.unread)[:6])
        problems += [self.problem, left_out and f"not read: {left_out}"]
        detail = "; ".join(filter(None, problems)) or "README, submission.json, logs and script"
        verdict = NOT_CHECKABLE if any(problems) else PROVEN
        return Finding(verdict, "files", detail, len(self.folder.files), "files")


def agree(claim: float, measured: float, digits: int, cut: bool = True) -> bool:
    """Equal in the decimals that both state, as people round; from four on, also as they cut."""
    rounded = 0.505 * 10.0 ** -min(decimals_of(claim, 2), digits)
    unit = 1.01 * 10.0 ** -min(decimals_of(claim, 4), digits)
    return abs(claim - measured) <= max(5e-6, rounded, unit * cut)


def is_lower(claim: float, scores: list[Score]) -> bool:
    """Whether a claim is below all scores, and not by rounding: what is higher flatters nobody."""
    return claim + 1.01 * 10.0 ** -decimals_of(claim, 1) < min(score.bpb for score in scores)


def decimals_of(claim: float, least: int) -> int:
    """To how many a number is stated, which has lost its zeros at the end."""
    return max(least, len(f"{claim:.12f}".rstrip("0").partition(".")[2]))


def quoted(scores: list[Score]) -> str:
    """Where scores stand and what they are: "; a.log:7 1.12; b.log:7 1.13"."""
    parts = [f"; {score.quote.split(': ')[0]} {score.bpb:g}" for score in scores[:6]]
    return "".join(parts) + ("; ..." if len(scores) > 6 else "")


class Export(NamedTuple):
    """The last export that a run's log states, in bytes; 0 where it does not."""

    model: int
    code: int
    total: int


def last_export(log: Log) -> Export:
    names = ("model_bytes", "code_bytes", "total_bytes")
    model, code, total = ([NOTHING, *log.facts[name]][-1] for name in names)
    if model.value == total.value:  # of code and model together
        model = NOTHING
    elif model.number > total.number and model.value > total.value:  # of a later export
        total = NOTHING
    parts = model.value and model.value + code.value  # code alone is no export
    return Export(model.value, code.value, total.value or parts)


def adaptation_before_export(log: Log) -> tuple[float, str]:
    """Its seconds in all, and the line."""
    exports = [*log.facts["model_bytes"], *log.facts["total_bytes"]]
    exported = max((fact.number for fact in exports), default=0)
    facts = [fact for fact in log.facts["adaptation"] if fact.number < exported]
    return max((f for f in facts if re.search("total_time|done", f.quote)), default=NOTHING)[:2]


def check_significance(scores: list[Score], rivals: list[float]) -> list[Finding]:
    """Whether the scores are lower than the rivals' by RECORD_NATS a token at p < RECORD_P."""
    finals = [score for score in scores if score.kind == "final"]
    if not rivals or not finals:
        lacking = Finding(NOT_CHECKABLE, "significance", "no final line with val_bpb")
        return [lacking] if rivals else []
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
    """One-sided p of mean(a) - mean(b) <= margin by Welch's t-test; None without a deviation."""
    parts = [(variance(x) / len(x), len(x) - 1) for x in (a, b) if len(x) > 1]
    total = sum(part for part, _ in parts)  # variance of the difference of the means
    if len(b) < 2 or total == 0:
        return None
    freedom = total**2 / sum(part**2 / count for part, count in parts)
    return student_tail((fmean(a) - fmean(b) - margin) / math.sqrt(total), freedom)


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t: the integral of sin(x)^(freedom - 1) to atan2(sqrt(freedom), t)."""
    end = math.atan2(math.sqrt(freedom), t)
    y = (np.arange(100_000) + 0.5) / 100_000  # x = end y^4 is smooth at 0
    area = end * np.mean(np.sin(end * y**4) ** (freedom - 1) * 4 * y**3)
    gammas = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return area * math.exp(gammas) / math.sqrt(math.pi)


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("check.py", description=__doc__, formatter_class=form)
    parser.add_argument("folder", help="a record folder")
    parser.add_argument("--against", metavar="BPB[,BPB...]", help="scores to beat")
    parser.add_argument("--json", action="store_true", help="findings for machines")
    options = parser.parse_args(argv)
    find = partial(check_folder, Path(options.folder), options.against)
    return report_on(find, "check.py", options.folder, options.json)


if __name__ == "__main__":
    sys.exit(main())
