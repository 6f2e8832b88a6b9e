"""What the logs of an entry state, and what its submission.json claims.

    from records.logs import read_log
    log = read_log(Path("train_seed42.log"), "train_seed42.log")
    log.headline.bpb, log.last("total_bytes")

A log is read once, line by line. Many open with the script's whole source, which is set aside: it
begins at a line that only a program has and ends at a rule of '=' or where log lines begin. Nothing
of the folder is run or imported.

Sections: what lines state, logs, files of logs, scores of prefixes, submission.json.
"""

import math
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 4_000_000  # of a longer log only the start and the end, of this size each, are read
LOG_SUFFIXES = (".log", ".txt", ".out", ".tsv", ".jsonl")
MAX_LOGS = 64  # of a folder
MAX_LINES = 200  # kept of a log and a kind


# ---------------------------------------------------------------- what lines state

NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,15})?)"
BYTES = r"([0-9][0-9,]{0,14})"


def compiled(text: str) -> re.Pattern:
    """A pattern with the words NUMBER and BYTES for what they stand for."""
    return re.compile(text.replace("NUMBER", NUMBER).replace("BYTES", BYTES))


SOURCE_BEGINS = compiled(
    r'import [\w., ]+$|from [\w.]+ import |def \w+\(|class \w+[(:]|if __name__ ?==|"""|#!'
)
SOURCE_ENDS = compiled(
    r"={20,}$|logs/|Running Python|Python \d|Hyperparameters|val_bpb:enabled|train_loader:|seed:\d"
    r"|world_size:\d|model_params:\d|warmup_step:|step:\d|\d+/\d+ (train|val)_loss"
)
BPB = compiled(r"(?i)(?:val_loss[\"']?[:=] ?NUMBER.{0,100}?)?bpb[\"']? ?[:=]\W{0,20}NUMBER")
RUNNING = compiled(
    r"(?i)step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
    r"|pre[-_ ]?quant|post[-_ ]?ema"
)
TRAINING = compiled(r"(?i)stopping_early|step\b|\d+/\d+ (?:train|val)_")  # how such a line begins
DIAGNOSTIC = compiled("(?i)diagnos")  # a pass by the side, no part of the evaluation
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
LOG_PATTERNS = {  # what has invalidated entries before
    "epochs over the tokens that are scored": (
        r"(?i)ttt(?!.{0,200}chunk).{0,20}epoch[ :=]*\d+ ?/ ?\d+"
    ),
    "a second pass over scored tokens": r"(?i)\bpass[ _:=]*[2-9]\b|two[-_ ]pass",
}
STATEMENTS = LOG_PATTERNS | {  # a number, with a unit where it is a time
    "stop": r"^stopping_early|^step:(\d+)/\1 ",
    "train": r"train(?:ing)?_time[:=] ?NUMBER ?(ms|s|min|m)\b",
    "step": r"step_avg[:=] ?NUMBER ?(ms|s)\b",
    "eval": r"(?:eval_time|bpb.{0,100}\b(?:time|elapsed))[:=] ?NUMBER ?(ms|s)\b",
    "eval_total": r"\beval_total_time[:=] ?NUMBER ?(ms|s)\b",
    "calibration": (
        r"(?i)(?:gptq|hessian|calib)(?:.{0,200}?\bin |\w{0,20}_time[:=] ?)NUMBER ?(ms|s)\b"
        r"|calibrat|hessian"
    ),
    "seed": r"(?<![\w.])seed[:=] ?([0-9]{1,12})\b",
    "world_size": r"\bworld_size[:=] ?([0-9]{1,6})",
    "val_tokens": r"(?:\bval_tokens[:=] ?|Validation tokens: ?|val_loader:.{0,400}tokens:)BYTES",
    "vocab_size": r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)([0-9]{3,6})(?![\dB])",
    "model_bytes": r"(?:Serialized model [^:]{1,60}|Artifact): ?BYTES bytes",
    "code_bytes": r"Code size[^:]{0,60}: ?BYTES bytes",
    "total_bytes": r"(?:Total submission size[^:]{0,60}: ?|budget: ?)BYTES(?: bytes|/)",
}
FACTS = {name: compiled(text) for name, text in STATEMENTS.items()}


class Line(NamedTuple):
    """One line of a log that states bits per byte."""

    log: str  # the log's name
    quote: str  # "train_seed1337.log:275: final_exact val_loss:1.9 val_bpb:1.12"
    kind: str  # final, running (a step, chunk or epoch, or before quantisation), illegal (by label)
    loss: float | None  # nats per token
    bpb: float
    digits: int  # decimals of bpb, as printed


class Fact(NamedTuple):
    """What one line states; of two facts the one with the larger value is the larger."""

    value: float | int  # seconds if it is a time; 0 where no number is stated
    quote: str  # "train_seed1337.log:275: eval_time:76000ms"


# ---------------------------------------------------------------- logs


class Log:
    """What one log says."""

    def __init__(self, name: str):
        self.name = name
        self.gpu = ""  # "H100"
        self.stepped = False  # whether there was a line of a step, or with a score
        self.trained = False  # whether there was a line of the training
        self.lines = deque(maxlen=MAX_LINES)  # Lines of kind final and illegal
        self.running = deque(maxlen=MAX_LINES)
        self.facts = {fact: deque(maxlen=MAX_LINES) for fact in FACTS}  # Facts
        self.passes = {}  # bpb to four digits -> the longest Fact of a pass after the training
        self.settings = {}  # name -> value, as printed before the first step
        self.sources = []  # the scripts that it embeds, each a list of lines
        found = re.search(r"seed[-_]?([0-9]{1,12})", Path(name).name)
        self.named_seed = int(found[1]) if found else None

    def longest(self, fact: str) -> Fact:
        return max(self.facts[fact], default=Fact(0.0, ""))

    def last(self, fact: str, default: int | None = None) -> float | int | None:
        return self.facts[fact][-1].value if self.facts[fact] else default

    @property
    def seed(self) -> int | None:
        return self.last("seed", self.named_seed)

    @property
    def headline(self) -> Line | None:
        """The last final line; one with both loss and bpb goes before one with bpb alone."""
        finals = [line for line in self.lines if line.kind == "final"]
        return max(reversed(finals), key=lambda line: line.loss is not None, default=None)

    def read(self, text: str, number: int) -> None:
        """Takes in what line `number` says."""
        quote = f"{self.name}:{number}: {text[:160]}"
        legal = "NOT LEGAL" not in text
        scores = self.read_scores(text, quote, legal)
        self.read_facts(text, quote, legal)
        if TRAINING.match(text):  # what was evaluated before it was a validation
            self.trained = True
            self.passes.clear()
            self.facts["eval"].clear()
            self.facts["eval_total"].clear()
        elif self.trained and scores:
            self.read_pass(text, quote, scores[-1])

        gpu = re.search(r"NVIDIA ([A-Z]+ ?\d\w*)", text)
        if gpu:
            self.gpu = gpu[1]
        self.stepped = self.stepped or bool(scores) or "train_loss" in text
        if not self.stepped:
            self.read_settings(text)

    def read_scores(self, text: str, quote: str, legal: bool) -> list[Line]:
        kind = "running" if RUNNING.search(text) else "final"
        if not legal:
            kind = "illegal"

        scores = []
        for found in BPB.finditer(text):
            loss = float(found[1]) if found[1] else None
            digits = len(found[2].partition(".")[2])
            scores.append(Line(self.name, quote, kind, loss, float(found[2]), digits))
        kept = self.running if kind == "running" else self.lines
        kept.extend(scores)

        return scores

    def read_pass(self, text: str, quote: str, score: Line) -> None:
        """Lines with the same score may speak of one pass, timed inside and outside: the longer
        time counts."""
        time = FACTS["eval"].search(text)
        if score.kind != "final" or not time or DIAGNOSTIC.search(text):
            return
        bpb = round(score.bpb, 4)
        if len(self.passes) < MAX_LINES:
            found = Fact(stated_value(time), quote)
            self.passes[bpb] = max(found, self.passes.get(bpb, found), key=lambda fact: fact.value)

    def read_facts(self, text: str, quote: str, legal: bool) -> None:
        for name, pattern in FACTS.items():
            found = pattern.search(text)
            if not found:
                continue
            if name in LOG_PATTERNS and not legal:
                continue  # its label says what it is
            if name == "calibration" and not self.facts["stop"]:
                continue  # before the stop it is part of the training
            self.facts[name].append(Fact(stated_value(found), quote))

    def read_settings(self, text: str) -> None:
        plain = re.match(r"[a-z_]\w*[:=](?!.*\d/\d)", text)
        if plain and len(self.settings) < 1_000:
            self.settings.update(re.findall(r"([a-z_]\w{0,60})[:=] ?([\w.+-]+)", text))


def stated_value(found: re.Match) -> float | int:
    """Seconds where a FACTS pattern found a unit; else the count, 0 where there is none."""
    count, unit = (*found.groups(), None, None)[:2]
    if unit:
        return round(float(count) * SECONDS[unit], 6)
    return int((count or "0").replace(",", ""))


# ---------------------------------------------------------------- files of logs


def bounded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, cut at LINE_CHARS; of a long file, its first and its last
    LOG_BYTES."""
    size = path.stat().st_size
    count = 0
    with path.open("rb") as file:
        while block := file.read(LOG_BYTES):
            block += file.readline(LINE_CHARS)  # up to a line's end
            if file.tell() <= LOG_BYTES + LINE_CHARS or file.tell() > size - LOG_BYTES:
                for number, line in enumerate(block.split(b"\n"), count + 1):
                    text = line[:LINE_CHARS].replace(b"\0", b"")  # the zeros are UTF-16's
                    yield number, text.decode("utf-8", "replace").rstrip()
            count += block.count(b"\n")


def read_log(path: Path, name: str) -> Log:
    log = Log(name)
    in_source = False
    for number, text in bounded_lines(path):
        if in_source and SOURCE_ENDS.match(text):
            in_source = False
        elif not in_source and SOURCE_BEGINS.match(text):
            in_source = True
            log.sources = log.sources[-9:] + [[]]

        if not in_source:
            log.read(text.strip(), number)
        elif len(log.sources[-1]) < 10_000:
            log.sources[-1].append(text)
    return log


def read_logs(folder: Path, files: list[Path]) -> list[Log]:
    """The files that read like logs, without copies of one another."""
    named = [path for path in files if path.suffix in LOG_SUFFIXES]
    named = [path for path in named if path.name != "requirements.txt"]
    named.sort(key=lambda path: ("seed" not in path.name, str(path)))

    logs = {}
    for path in named[:MAX_LOGS]:
        log = read_log(path, str(path.relative_to(folder)))
        stated = [*log.lines, *log.running]
        if stated or log.facts["train"] or log.facts["eval"]:
            texts = [line.quote.partition(": ")[2] for line in stated]
            logs.setdefault((log.seed, *texts), log)
    return list(logs.values())


# ---------------------------------------------------------------- scores of prefixes

PREFIX = compiled(
    r"(.{1,80}): scored:([0-9]{1,12}) nats:NUMBER bytes:([0-9]{1,15}) val_bpb:NUMBER$"
)
ARTIFACT = compiled(r"artifact_sha256:([0-9a-f]{64})\b")
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


def read_prefixes(path: Path) -> list[Prefix]:
    """The lines of a log that say what the first 2,048, 4,096, 8,192, ... positions came to."""
    found = []
    artifact = ""
    for number, text in bounded_lines(path):
        named = ARTIFACT.match(text)
        if named:
            artifact = named[1]
        stated = PREFIX.match(text)
        if stated and len(found) < MAX_PREFIXES:
            name, count, nats, size, bpb = stated.groups()
            quote = f"{path.name}:{number}: {text[:160]}"
            numbers = (int(count), float(nats), int(size), float(bpb))
            found.append(Prefix(name, *numbers, artifact, quote))
    return found


# ---------------------------------------------------------------- submission.json

BPB_FIELDS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")
SEED_FIELDS = ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed")
BYTES_FIELDS = (
    "bytes_total",
    "total_bytes",
    "artifact_bytes_max",
    "artifact_bytes",
    "artifact_size_bytes",
)


def to_number(value: object) -> float | None:
    """A finite number, also of text such as "15,990,006"; of a list or map of numbers the mean;
    else None."""
    if isinstance(value, dict):
        items = [item for key, item in value.items() if "std" not in key]
        value = value.get("mean", items)
    try:
        if isinstance(value, list):
            value = value[:MAX_LOGS]
            nested = any(isinstance(item, list | dict) for item in value)
            return None if nested else fmean(map(to_number, value))
        if isinstance(value, str):
            value = value.replace(",", "").split()[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def claimed(table: dict, names: tuple[str, ...]) -> float | None:
    """The first number among these fields."""
    numbers = (to_number(table.get(name)) for name in names)
    return next((number for number in numbers if number is not None), None)


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds that submission.json names, each with its claimed bits per byte where one is
    given."""
    claims = {}
    for name in SEED_FIELDS:
        for key, result in seed_results(table.get(name))[:MAX_LOGS]:
            found = re.fullmatch(r"(?:seed)?[_ ]*([0-9]{1,12})", str(key))
            if not found:
                continue
            seed = int(found[1])
            value = claimed(result, BPB_FIELDS) if isinstance(result, dict) else to_number(result)
            claims[seed] = value or claims.get(seed)
    return claims


def seed_results(value: object) -> list[tuple[object, object]]:
    """Seed and what is said of it, from a map of seeds, a list of seeds or maps, or one of them."""
    if isinstance(value, dict):
        return list(value.items())
    rows = value if isinstance(value, list) else [value]
    return [(row.get("seed"), row) if isinstance(row, dict) else (row, None) for row in rows]
