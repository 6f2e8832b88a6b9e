"""What the logs of an entry state.

Many logs open with the script's whole source, which is set aside. The segments of a resumed run
and several runs in a file are one Log: all that they state is kept, and the last counts.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from records.files import BUDGET_BYTES, Folder, open_regular

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 16_000_000  # a longer log is not read
MAX_LOGS = 64  # of a folder
MAX_KEPT = 200  # statements of a log and a kind

COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
PREFIX = re.compile(  # "[rank0]: ", "[default0]:", "0: " of a launcher; a time and a level
    r"^(?:\s*(?:\[?(?:default|rank)_?\d{1,4}\]?:|\d{1,3}:(?=\s)|\[?\d\d:\d\d:\d\d[.,\d]{0,7}\]"
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]{0,7}Z?\]?\s*[-|:]?|(?:INFO|DEBUG)\s*[-|:])\s?)+"
)


class Row(NamedTuple):
    number: int  # of the line, from 1 on
    text: str  # of what is not empty; at most LINE_CHARS, with its indentation


def read_lines(path: Path, folder: Folder | None = None) -> Iterator[Row]:
    """The lines of a log, none of one over LOG_BYTES or over what is left to read of its folder."""
    size = path.stat().st_size
    if folder and not folder.allows(size if size <= LOG_BYTES else BUDGET_BYTES + 1, path.name):
        return
    for i, line in enumerate(open_regular(path).read(LOG_BYTES).split(b"\n"), 1):
        if folder and i % 64 == 0 and not folder.allows(0, path.name):
            return
        text = line[:LINE_CHARS].replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16's zeros
        for part in COLOUR.sub("", text).split("\r"):  # what a terminal writes over counts as well
            part = PREFIX.sub("", part).rstrip()
            if part:
                yield Row(i, part)


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
        r"(?i)\bpass[ _:=]*[2-9]\b|two[-_ ]pass(?!\w*[\"']?[:=] ?(?:False|0|no)\b)"
    ),
    "hints within words, of what is scored": r"(?i)\b(?:within|word)_gate[:=] ?[1-9]",
    "a log that ends in an error": r"^Traceback \(most recent call last\)",
    "a training set that is named after the validation": (
        r"(?i)\btrain_(?:loader|files|data|shards|path|pattern)\w*[:=]\S{0,200}"
        r"(?:val_?only|fineweb_val)|\bvalonly|_valonly|\btrain_on_val\w*[:=] ?(?:1|true)\b"
    ),
}
STATEMENTS = SUSPICIOUS | {  # a number, with a unit where it is a time
    "train": r"(?:[Tt]rain(?:ing)?[_ ]time[:=]|Training (?:complete|done)\b.{0,20} in) ?TIME",
    "step": r"step_avg[:=] ?TIME",
    "stop": r"^stopping_early|^step:(\d+)/\1 ",
    "eval": r"(?:(?<!total_)eval_time|Evaluation time|bpb.{0,100}\b(?:time|elapsed))[:=] ?TIME",
    "eval_total": r"(?i)\b(?:eval\w*[_ ]total|total[_ ]eval\w*)[_ ]time[:=] ?TIME",
    "adaptation": (
        r"(?i)^(?!.*bpb)\W{0,3}\w{0,40}?(?:ttt|adapt).{0,140}?(?:time|elapsed|took|\bin)[:= ] ?TIME"
    ),
    "calibration": (
        r"(?i)^(?!.*(?:compress|sav|quantiz|val_loss|reserv))"
        r".*?(?:gptq|hessian|calib)(?:.{0,200}?\bin |\w{0,20}_time[:=] ?)TIME"
    ),
    "untimed calibration": r"(?i)\bcollected hessians\b|\bcalibrating with\b",
    "own text": r"(?i)(?:gptq|calib).*(?:self|autoreg|generat)|(?:self|autoreg|generat).*calib",
    "seed": r"(?<![\w.])seed[:=] ?([0-9]{1,20})\b",
    "world_size": r"\bworld_size[:=] ?([0-9]{1,6})",
    "val_tokens": r"(?:\bval_tokens[:=]|Val(?:idation)? tokens:|val_loader:.{0,400}tokens:) ?BYTES",
    "vocab_size": r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)([0-9]{3,6})(?![\dB])",
    "model_bytes": (
        r"(?:(?:Serialized|Quantized) model [^:]{1,60}:|Artifact(?: size)?: {0,8}"
        r"|\bserialized_model_\w+[:=]|\bartifact:.{0,200}\bmodel_bytes="
        r"|\b(?:quant|artifact|compressed_model)_bytes[:=]|\bmodel: ?(?=\d{1,15} code:)"
        r"|\w: ?(?=[\d,]{7,15} bytes \| code)) ?BYTES(?![\d.]| ?[MK]B)"
    ),
    "code_bytes": r"(?:Code size[^:]{0,60}:|\bcode_bytes[:=]|(?:\||model:\d{1,15}) code:) ?BYTES",
    "total_bytes": (
        r"(?:Total submission(?: size[^:]{0,60})?:|budget: ?(?=[\d,]{1,15}/)|\bestimated_total[:=]"
        r"|\btotal(?:_artifact|_submission)?_bytes[:=]|(?:\||code:\d{1,15}) total:) ?BYTES"
        r"(?![\d.]| ?[MK]B)"
    ),
    "gpu": r"NVIDIA ([A-Z]+ ?\d\w*)",
}
PATTERNS = {name: compiled(text) for name, text in STATEMENTS.items()}
BPB = compiled(
    r"(?i)(?:val_loss[\"']?[:=] ?NUMBER.{0,100}?)?(?<!delta_)(?<!gain_)(?<!std_)bpb"
    r"(?:[\"']? ?[:=]\W{0,20}| (?=\d\.\d{3}))NUMBER"
)
RUNNING = re.compile(  # before the score of a step, chunk, epoch or comparison
    r"(?i)step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
    r"|pre[-_ ]?quant|post[-_ ]?ema|scored:\d|fp32|unquant"
)
EXACT = re.compile(r"final_[\w+.-]{0,60}_exact ")  # a result, whatever words are in its name
TRAINING = re.compile(r"(?i)stopping_early|step\b|\d+/\d+ (?:train|val)_")  # how its lines begin
STEP = re.compile(r"(?i)\W{0,4}(?:step|iter|iteration|epoch)\b\W{0,4}\d.{0,80}\bloss\b")
TRIED = re.compile(r"^raw |probe|_try|attempt")  # an export that was not kept
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


class Fact(NamedTuple):
    """What one line states; of two facts the one with the larger value is the larger."""

    value: float | int | str  # seconds if it is a time; 0 where no number is stated
    quote: str  # "train_seed1337.log:275: eval_time:76000ms"
    number: int  # of the line


NOTHING = Fact(0, "", 0)


class Log:
    """What a log says."""

    def __init__(self, name: str):
        self.name = name
        self.shape = re.sub(r"\d+", "", name)  # is that of other seeds' logs
        self.folder = self.shape.rpartition("/")[0]
        self.facts = {fact: deque(maxlen=MAX_KEPT) for fact in PATTERNS}  # Facts
        self.scores = deque(maxlen=MAX_KEPT)  # of kind final and illegal
        self.running = deque(maxlen=MAX_KEPT)
        self.passes: list[tuple[Score, float]] = []  # with the seconds that its line states
        self.steps = 0  # lines that look like a step's, of any form
        found = re.search(r"seed[-_]?([0-9]{1,20})(?![0-9])", Path(name).name)
        self.named_seed = int(found[1]) if found else None

    def last(self, fact: str, default: int | None = None) -> float | int | None:
        return self.facts[fact][-1].value if self.facts[fact] else default

    def longest(self, fact: str) -> Fact:
        return max(self.facts[fact], default=NOTHING)

    def seconds_of(self, score: Score | None) -> float:
        """The longest time that is stated of a score's pass, as some time it from outside."""
        passes = self.passes if score else []
        return max((time for one, time in passes if abs(one.bpb - score.bpb) < 6e-5), default=0.0)

    @property
    def seed(self) -> int | None:
        return self.facts["seed"][0].value if self.facts["seed"] else self.named_seed

    @property
    def headline(self) -> Score | None:
        """The last final score; one with both loss and bpb goes before one with bpb alone."""
        finals = [score for score in self.scores if score.kind == "final"]
        return max(reversed(finals), key=lambda score: score.loss is not None, default=None)

    def last_scores(self) -> dict[str, Score]:
        """The last final score of each label."""
        return {score.label: score for score in self.scores if score.kind == "final"}

    def read(self, row: Row) -> None:
        """Takes in what a line says."""
        text = row.text.strip()
        quote = f"{self.name}:{row.number}: {text[:160]}"
        self.steps += bool(STEP.match(text))
        for name, pattern in PATTERNS.items():
            if (found := pattern.search(text)) and self.counts(name, text):
                self.facts[name].append(Fact(stated_value(found), quote, row.number))

        scores = self.read_scores(text, quote) if "bpb" in text.lower() else []
        if TRAINING.match(text):  # what was evaluated before it was a validation
            self.passes.clear()
            for fact in ("eval", "eval_total", "adaptation", "a log that ends in an error"):
                self.facts[fact].clear()
        elif scores:
            self.facts["a log that ends in an error"].clear()
            timed = self.facts["eval"] and self.facts["eval"][-1].quote == quote
            if timed and scores[-1].kind == "final" and "diagnos" not in text.lower():
                self.passes.append((scores[-1], self.facts["eval"].pop().value))

    def counts(self, name: str, text: str) -> bool:
        """Whether a statement is one of the run's, where it stands."""
        if "calibration" in name:  # before the stop it is part of the training
            return bool(self.facts["stop"])
        if name in ("model_bytes", "total_bytes"):
            return not TRIED.search(text)
        return "NOT LEGAL" not in text or name not in (*SUSPICIOUS, "eval")

    def read_scores(self, text: str, quote: str) -> list[Score]:
        said = text[: text.lower().find("bpb")]
        kind = "running" if RUNNING.search(said) and not EXACT.match(text) else "final"
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


def read_log(path: Path, name: str, folder: Folder | None = None) -> Log:
    """A file's log: all runs, or segments of a run, that it holds."""
    log = Log(name)
    in_source = False
    for row in read_lines(path, folder):
        edge = SOURCE_ENDS if in_source else SOURCE_BEGINS
        in_source = bool(edge.match(row.text)) != in_source
        if not in_source:
            log.read(row)
    return log


def is_log_name(name: str) -> bool:
    """train.log, train.LOG, train_log, log.txt, results.tsv, ..."""
    name = name.lower()
    if name.endswith((".log", ".txt", ".out", ".tsv", ".jsonl")):
        return not name.startswith("requirements")
    return "." not in name and bool(re.search(r"(^|[-_])logs?([-_]|$)", name))


def read_logs(folder: Folder) -> list[Log]:
    """The files that read like logs, without copies of one another."""
    named = [path for path in folder.files if is_log_name(path.name)]
    named.sort(key=lambda path: ("seed" not in path.name, str(path)))
    logs = {}
    for path in named[:MAX_LOGS]:
        log = read_log(path, folder.name(path), folder)
        scores = [score.quote.partition(": ")[2] for score in (*log.scores, *log.running)]
        if scores or log.facts["train"] or log.facts["eval"] or log.steps > 1:
            logs.setdefault((log.seed, *(scores or [log.name])), log)

    trained = [log for log in logs.values() if log.facts["train"]]
    for log in logs.values():
        own = [other for other in trained if other.seed == log.seed is not None]
        if not log.facts["train"] and len(own) == 1:  # an evaluation of what that one trained
            log.facts = {name: facts or own[0].facts[name] for name, facts in log.facts.items()}
    return list(logs.values())


PREFIX_LINE = compiled(  # "PASS: scored:2048 nats:... bytes:... val_bpb:..." of train_gpt.py
    r"(.{1,80}): scored:([0-9]{1,12}) nats:NUMBER bytes:([0-9]{1,15}) val_bpb:NUMBER$"
)
FINAL_LINE = compiled(
    r"final_pcll_\w{1,60} val_loss:NUMBER val_bpb:NUMBER val_tokens:([0-9]{1,12}) "
    r"bytes:([0-9]{1,15})\b"
)
ARTIFACT = re.compile(r"artifact_sha256:([0-9a-f]{64})\b")


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


def read_prefixes(path: Path) -> list[Prefix]:
    """What a log says of the first 2,048, 4,096, 8,192, ... positions, and of all."""
    found = []
    artifact = name = ""
    for row in read_lines(path):
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
    return found[:1_000]
