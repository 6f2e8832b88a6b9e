"""What the logs of an entry state.

    from records.logs import read_runs
    log = read_runs(Path("train_seed42.log"), "train_seed42.log")[-1]
    log.headline.bpb, log.last("total_bytes")

A log is read line by line, without colour codes and launcher prefixes. Many open with the script's
whole source, which is set aside: it begins at a line that only a program has and ends at a rule of
'=' or where log lines begin. A file may hold several runs, one after the other: each is a Log. A
run that is resumed before it scores is one Log, and all its segments count.

Sections: lines, what lines state, a run's log, files of logs, scores of prefixes.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from records.files import Budget, Folder, read_regular

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 16_000_000  # a longer log is not read
MAX_LOGS = 64  # of a folder
MAX_KEPT = 200  # statements of a log and a kind
MAX_RUNS = 16  # of a file
MAX_SOURCE = 20_000  # lines kept of the source that a log embeds

# ---------------------------------------------------------------- lines

COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
PREFIX = re.compile(  # "[rank0]: ", "[default0]:", "0: " of a launcher; a time and a level
    r"^(?:\s*(?:\[?(?:default|rank)_?\d{1,4}\]?:|\d{1,3}:(?=\s)"
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]{0,7}Z?\]?(?:\s*[-|]?\s*(?:INFO|DEBUG)\b)?[-|:]?"
    r"|\[?\d\d:\d\d:\d\d[.,\d]{0,7}\]|(?:INFO|DEBUG)\s*[-|:])\s?)+"
)


class Row(NamedTuple):
    """A line of a log that is not empty."""

    number: int  # from 1 on
    text: str  # at most LINE_CHARS, with its indentation


def read_lines(path: Path, budget: Budget | None = None) -> Iterator[Row]:
    """The lines of a log, none of one over LOG_BYTES or over what is left to read."""
    size = path.stat().st_size
    budget = budget or Budget()
    if not budget.allows(size if size <= LOG_BYTES else budget.bytes + 1, path.name):
        return
    for i, line in enumerate(read_regular(path, LOG_BYTES).split(b"\n"), 1):
        if i % 1024 == 0 and budget.is_late():
            budget.unread[path.name] = None
            return
        text = line[:LINE_CHARS].replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16's zeros
        for part in COLOUR.sub("", text).split("\r"):  # what a terminal writes over counts as well
            part = PREFIX.sub("", part).rstrip()
            if part:
                yield Row(i, part)


# ---------------------------------------------------------------- what lines state

NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,15})?)"
BYTES = r"([0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3}){1,4}(?![0-9])|[0-9][0-9,_'\u2019]{0,18})"
TIME = (  # and its unit
    r"([0-9]{1,15}(?:,[0-9]{3}){0,3}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?) ?"
    r"(us|ms|msecs?|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b"
)
SECONDS = {"us": 1e-6, "mill": 0.001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # by beginning


def compiled(text: str) -> re.Pattern:
    """A pattern with the words NUMBER, TIME and BYTES for what they stand for."""
    text = text.replace("NUMBER", NUMBER).replace("TIME", TIME)
    return re.compile(text.replace("BYTES", BYTES))


SUSPICIOUS = {  # what has invalidated entries before
    "epochs over the tokens that are scored": (
        r"(?i)ttt(?!.{0,200}chunk)(?!_train \[).{0,20}epoch[ :=]*\d+ ?/ ?\d+"
    ),
    "a second pass over scored tokens": (
        r"(?i)\bpass[ _:=]*[2-9]\b|two[-_ ]pass(?!\w*[:=] ?(?:False|0|no)\b)"
    ),
    "hints within words, of what is scored": r"(?i)\b(?:within|word)_gate[:=] ?[1-9]",
    "a score that is no number": (
        r"(?i)^(?!.*(?:train_|chunk|best|\d/\d))"
        r".*(?:bpb|val_loss)[\"']?[:= ]{1,2}[-+]?(?:nan|inf)\b"
    ),
    "a number of which another would be read, or none": (
        r"(?:\btrain(?:ing)?_time|(?<!\w)eval_time)[:=] ?(?!TIME)-?\d(?![\dx:~-]*x)"
        r"|(?:Serialized model [^:]{1,60}|Total submission size[^:]{0,60}|Code size[^:]{0,60}): ?"
        r"(?!BYTES(?![\w.'\u2019]| ?\d)|[\d.,]+ ?[KMG]i?B)[-+]?\d"
        r"|^(?!.*(?:delta|gap|diff)).*(?<!\w)val_bpb[:=] ?"
        r"(?![0-9]{1,9}(?:\.[0-9]{1,17})?(?!\w|\.\d|,\d))-?\d"
    ),
    "a training set that is named after the validation": (
        r"(?i)\btrain_(?:loader|files|data|shards|path|pattern)\w*[:=]\S{0,200}"
        r"(?:val_?only|fineweb_val)|\bvalonly|_valonly"
    ),
}
STATEMENTS = SUSPICIOUS | {  # a number, with a unit where it is a time
    "train": r"train(?:ing)?_time[:=] ?TIME",
    "step": r"step_avg[:=] ?TIME",
    "stop": r"^stopping_early|^step:(\d+)/\1 ",
    "eval": r"(?:(?<!total_)eval_time|bpb.{0,100}\b(?:time|elapsed))[:=] ?TIME",
    "eval_total": (
        r"(?i)\b(?:eval(?:uation)?[_ ]total[_ ]time|total[_ ]eval(?:uation)?[_ ]time)[:=] ?TIME"
    ),
    "adaptation": (
        r"(?i)^(?!.*bpb)\W{0,3}\w*(?:ttt|adapt)\w*.{0,100}?(?:time|elapsed|took|\bin)[:= ] ?TIME"
    ),
    "calibration": (
        r"(?i)^(?!.*(?:compress|sav|quantiz|val_loss|reserv))"
        r".*?(?:gptq|hessian|calib)(?:.{0,200}?\bin |\w{0,20}_time[:=] ?)TIME"
    ),
    "own text": r"(?i)(?:gptq|calib).*(?:self|autoreg|generat)|(?:self|autoreg|generat).*calib",
    "seed": r"(?<![\w.])seed[:=] ?([0-9]{1,12})\b",
    "world_size": r"\bworld_size[:=] ?([0-9]{1,6})",
    "val_tokens": r"(?:\bval_tokens[:=] ?|Validation tokens: ?|val_loader:.{0,400}tokens:)BYTES",
    "vocab_size": r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)([0-9]{3,6})(?![\dB])",
    "model_bytes": (
        r"(?:Serialized model [^:]{1,60}: ?|Artifact(?: size)?: {0,9}"
        r"|\b(?:quant|model|artifact|compressed_model)_bytes[:=] ?"
        r"|\w: ?(?=[\d,]{7,15} bytes \| code))BYTES(?![\d.]| ?[MK]B)"
    ),
    "code_bytes": r"(?:Code size[^:]{0,60}: ?|\bcode_bytes[:=] ?|\| code: ?)BYTES",
    "total_bytes": (
        r"(?:Total submission size[^:]{0,60}: ?|budget: ?(?=[\d,]{1,15}/)"
        r"|\b(?:estimated_total|total_bytes|total_artifact_bytes|total_submission_bytes)[:=] ?"
        r"|\| total: ?)BYTES(?![\d.]| ?[MK]B)"
    ),
    "gpu": r"NVIDIA ([A-Z]+ ?\d\w*)",
    "traceback": r"^Traceback \(most recent call last\)",
}
PATTERNS = {name: compiled(text) for name, text in STATEMENTS.items()}
WORTH_A_LOOK = re.compile(  # a line without any of these states nothing
    r"(?i)bpb|time|stop|loss|elapsed|seed|world_size|token|vocab|fineweb|_sp\d|bytes|size|artifact"
    r"|budget|calib|hessian|gptq|ttt|adapt|pass|gate|only|traceback|nvidia|step:|took"
)
BPB = compiled(
    r"(?i)(?:val_loss[\"']?[:=] ?NUMBER.{0,100}?)?bpb"
    r"(?:[\"']? ?[:=]\W{0,20}| (?=\d\.\d{3}))NUMBER"
)
RUNNING = re.compile(  # in a line whose score is that of a step, chunk, epoch or comparison
    r"(?i)step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
    r"|pre[-_ ]?quant|post[-_ ]?ema|scored:\d"
)
EXACT = re.compile(r"final_[\w+.-]{0,60}_exact ")  # a result, whatever words are in its name
TRAINING = re.compile(r"(?i)stopping_early|step\b|\d+/\d+ (?:train|val)_")  # how its lines begin
STEP = re.compile(r"(?i)\W{0,4}(?:step|iter|iteration|epoch)\b\W{0,4}\d.{0,80}\bloss\b")
TRIED = re.compile(r"probe|_try|attempt")  # an export that was not kept
NEW_RUN = re.compile(r"step:[01]/\d|world_size:\d|Running Python")  # after a run's scores
SOURCE_BEGINS = re.compile(
    r'import [\w., ]+$|from [\w.]+ import |def \w+\(|class \w+[(:]|if __name__ ?==|"""|#!'
)
SOURCE_ENDS = re.compile(
    r"={20,}$|logs/|Running Python|Python \d|Hyperparameters|val_bpb:enabled|train_loader:|seed:\d"
    r"|world_size:\d|model_params:\d|warmup_step:|step:\d|\d+/\d+ (train|val)_loss"
)


def stated_value(found: re.Match) -> float | int | str:
    """Seconds where a pattern found a unit, else its count; 0 for none, and the name of a GPU."""
    count, unit = (*found.groups(), None, None)[:2]
    if unit:
        size = next(size for begin, size in SECONDS.items() if unit.startswith(begin))
        return round(float(count.replace(",", "")) * size, 6)
    if count and not count[0].isdigit():
        return count
    return int(re.sub("[^0-9]", "", count or "") or 0)


# ---------------------------------------------------------------- a run's log


@dataclass(frozen=True)
class Score:
    """A statement of bits per byte."""

    log: str  # the log's name
    quote: str  # "train_seed1337.log:275: final_exact val_loss:1.9 val_bpb:1.12"
    kind: str  # final, running (a step, chunk or epoch, or before quantization), illegal (by label)
    loss: float | None  # nats per token
    bpb: float
    digits: int  # decimals of bpb, as printed

    @property
    def label(self) -> str:
        """What stands before the score in its line."""
        return re.split("val_loss|val_bpb", self.quote.partition(": ")[2])[0].strip()

    def is_score(self, bpb: float, digits: int) -> bool:
        """Whether a number is this score, to the decimals that both have."""
        return abs(self.bpb - bpb) <= 0.501 * 10.0 ** -min(self.digits, digits)


class Fact(NamedTuple):
    """What one line states; of two facts the one with the larger value is the larger."""

    value: float | int | str  # seconds if it is a time; 0 where no number is stated
    quote: str  # "train_seed1337.log:275: eval_time:76000ms"
    number: int  # of the line


NOTHING = Fact(0, "", 0)


class Log:
    """What one run's log says."""

    def __init__(self, name: str):
        self.name = name
        self.facts = {fact: deque(maxlen=MAX_KEPT) for fact in PATTERNS}  # Facts
        self.scores = deque(maxlen=MAX_KEPT)  # of kind final and illegal
        self.running = deque(maxlen=MAX_KEPT)
        self.passes: list[tuple[Score, float]] = []  # with the seconds that its line states
        self.source: list[str] = []  # the first script that it embeds, as lines
        self.trained = False  # whether there was a line of the training
        self.steps = 0  # lines that look like a step's, of any form
        self.training: Log = self  # the log of its training, where that is another one
        found = re.search(r"seed[-_]?([0-9]{1,12})", Path(name).name)
        self.named_seed = int(found[1]) if found else None

    def last(self, fact: str, default: int | None = None) -> float | int | None:
        return self.facts[fact][-1].value if self.facts[fact] else default

    def longest(self, fact: str) -> Fact:
        return max(self.facts[fact], default=NOTHING)

    def values(self, fact: str) -> set:
        """All that the segments of a run, and its training, state."""
        return {stated.value for stated in (*self.facts[fact], *self.training.facts[fact])}

    def seconds_of(self, score: Score | None) -> float:
        """The longest time that is stated of a score's pass, as some time it from outside; 0 where
        none is."""
        passes = (
            seconds
            for one, seconds in self.passes
            if score and one.is_score(score.bpb, score.digits)
        )
        return max(passes, default=0.0)

    @property
    def seed(self) -> int | None:
        return self.last("seed", self.named_seed)

    @property
    def headline(self) -> Score | None:
        """The last final score; one with both loss and bpb goes before one with bpb alone."""
        finals = [score for score in self.scores if score.kind == "final"]
        return max(reversed(finals), key=lambda score: score.loss is not None, default=None)

    def last_scores(self) -> dict[str, Score]:
        """The last final score of each label."""
        return {score.label: score for score in self.scores if score.kind == "final"}

    @property
    def is_log(self) -> bool:
        stated = self.scores or self.running or self.facts["train"] or self.facts["eval"]
        return bool(stated) or self.steps > 1

    def read(self, row: Row) -> None:
        """Takes in what a line says."""
        text = row.text.strip()
        if not WORTH_A_LOOK.search(text):
            return
        quote = f"{self.name}:{row.number}: {text[:160]}"
        self.steps += bool(STEP.match(text))
        for name, pattern in PATTERNS.items():
            if (found := pattern.search(text)) and self.counts(name, text):
                self.facts[name].append(Fact(stated_value(found), quote, row.number))

        scores = self.read_scores(text, quote) if "bpb" in text.lower() else []
        if TRAINING.match(text):  # what was evaluated before it was a validation
            self.trained = True
            self.passes.clear()
            for fact in ("eval", "eval_total", "adaptation", "traceback"):
                self.facts[fact].clear()
        elif scores:
            self.facts["traceback"].clear()
            time = PATTERNS["eval"].search(text)
            if time and scores[-1].kind == "final" and "diagnos" not in text.lower():
                self.passes.append((scores[-1], stated_value(time)))

    def counts(self, name: str, text: str) -> bool:
        """Whether a statement is one of the run's, where it stands."""
        if name == "calibration":  # before the stop it is part of the training
            return bool(self.facts["stop"])
        if name in ("model_bytes", "total_bytes"):
            return not TRIED.search(text)
        return "NOT LEGAL" not in text or name not in (*SUSPICIOUS, "eval")

    def read_scores(self, text: str, quote: str) -> list[Score]:
        kind = "running" if RUNNING.search(text) and not EXACT.match(text) else "final"
        if "NOT LEGAL" in text:
            kind = "illegal"
        scores = []
        for found in BPB.finditer(text):
            loss = float(found[1]) if found[1] else None
            digits = len(found[2].partition(".")[2])
            scores.append(Score(self.name, quote, kind, loss, float(found[2]), digits))
        kept = self.running if kind == "running" else self.scores
        kept.extend(scores)
        return scores


# ---------------------------------------------------------------- files of logs


def read_runs(path: Path, name: str, budget: Budget | None = None) -> list[Log]:
    """The runs of a file, one after the other."""
    runs = [Log(name)]
    source = None  # lines of the script that is being read
    for row in read_lines(path, budget):
        log = runs[-1]
        if source is None and SOURCE_BEGINS.match(row.text):
            source = [] if log.source else log.source
        elif source is not None and SOURCE_ENDS.match(row.text):
            source = None
        if source is not None:
            source += [row.text] if len(source) < MAX_SOURCE else []
            continue

        done = log.scores and log.trained and len(runs) < MAX_RUNS
        if done and NEW_RUN.match(row.text.strip()):
            runs.append(next_run(log, f"{name} (run {len(runs) + 1})"))
        runs[-1].read(row)
    return runs


def next_run(before: Log, name: str) -> Log:
    """A run that goes on in the file of the one before, with what that said of seed, world and
    data until it says otherwise."""
    log = Log(name)
    log.source = before.source
    for fact in ("seed", "world_size", "val_tokens", "vocab_size", "gpu"):
        log.facts[fact].extend(before.facts[fact])
    return log


def is_log_name(name: str) -> bool:
    """train.log, train.LOG, train_log, log.txt, results.tsv, ..."""
    name = name.lower()
    if name.endswith((".log", ".txt", ".out", ".tsv", ".jsonl")):
        return not name.startswith("requirements")
    return "." not in name and bool(re.search(r"(^|[-_])logs?([-_]|$)", name))


def read_logs(folder: Folder) -> list[Log]:
    """The runs of the files that read like logs, without copies of one another; one that only
    evaluates gets the one log of its seed that trained, if there is one."""
    named = [path for path in folder.files if is_log_name(path.name)]
    named.sort(key=lambda path: ("seed" not in path.name, str(path)))
    logs = {}
    for path in named[:MAX_LOGS]:
        for log in read_runs(path, folder.name(path), folder.budget):
            if log.is_log:
                stated = [score.quote.partition(": ")[2] for score in (*log.scores, *log.running)]
                logs.setdefault((log.seed, *(stated or [log.name])), log)

    trained = [log for log in logs.values() if log.trained and log.facts["train"]]
    for log in logs.values():
        partners = [other for other in trained if other.seed == log.seed is not None]
        if not (log.trained or log.facts["train"]) and len(partners) == 1:
            log.training = partners[0]
    return list(logs.values())


# ---------------------------------------------------------------- scores of prefixes
# "PASS: scored:2048 nats:... bytes:... val_bpb:..." and "final_pcll_..._exact ...", as train_gpt.py
# prints them: an artifact proves them, and they have to fit together.

PREFIX_LINE = compiled(
    r"(.{1,80}): scored:([0-9]{1,12}) nats:NUMBER bytes:([0-9]{1,15}) val_bpb:NUMBER$"
)
FINAL_LINE = compiled(
    r"final_pcll_\w{1,60} val_loss:NUMBER val_bpb:NUMBER val_tokens:([0-9]{1,12}) "
    r"bytes:([0-9]{1,15})\b"
)
ARTIFACT = re.compile(r"artifact_sha256:([0-9a-f]{64})\b")
MAX_PREFIXES = 1_000  # kept of a log


class Prefix(NamedTuple):
    """What the first positions of a scored pass came to, by one line of a log."""

    name: str  # of the pass: "after export, sliding window"
    count: int  # positions
    nats: float
    bytes: int
    bpb: float
    artifact: str  # sha256 of the artifact that the log named last; empty where it named none
    quote: str  # "train_seed42.log:1203: after export, sliding window: scored:2048 nats:..."
    final: bool = False  # whether it is the pass's own result, "final_pcll_sliding_exact ..."


def read_prefixes(path: Path, budget: Budget | None = None) -> list[Prefix]:
    """The lines of a log that say what the first 2,048, 4,096, 8,192, ... positions came to, and
    all of them."""
    found = []
    artifact = name = ""
    for row in read_lines(path, budget):
        text = row.text.strip()
        quote = f"{path.name}:{row.number}: {text[:160]}"
        named = ARTIFACT.match(text)
        artifact = named[1] if named else artifact
        if stated := PREFIX_LINE.match(text):
            name, count, nats, size, bpb = stated.groups()
            numbers = (int(count), float(nats), int(size), float(bpb))
            found.append(Prefix(name, *numbers, artifact, quote))
        elif (stated := FINAL_LINE.match(text)) and name:
            loss, bpb, count, size = stated.groups()
            numbers = (int(count), float(loss) * int(count), int(size), float(bpb))
            found.append(Prefix(name, *numbers, artifact, quote, final=True))
            name = ""  # a line that repeats a result is of no pass
    return found[:MAX_PREFIXES]
