"""What the logs of an entry state, and what its submission.json claims.

    from records.logs import read_log
    log = read_log(Path("train_seed42.log"), "train_seed42.log")
    log.headline.bpb, log.last("total_bytes")

A log is read once, line by line. Many open with the script's whole source, which is set aside: it
begins at a line that only a program has and ends at a rule of '=' or where log lines begin. A file
may hold several runs, one after the other: each is a Log of its own. A log that only evaluates is
joined with the one of its seed that trained. Nothing of the folder is run or imported.

Sections: what lines state, logs, files of logs, scores of prefixes, submission.json.
"""

import math
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from records.files import Budget, Folder, open_regular

LINE_CHARS = 4_000  # of a longer line the rest is skipped
LOG_BYTES = 2_000_000  # of a longer log only the start and the end, of this size each, are read
LOG_SUFFIXES = (".log", ".txt", ".out", ".tsv", ".jsonl")
MAX_LOGS = 64  # of a folder
MAX_LINES = 200  # kept of a log and a kind
MAX_WORDS = 5_000  # of a log
MAX_RUNS = 16  # of a file
SOURCE_CHARS = 1_000_000  # kept of a source that a log embeds


# ---------------------------------------------------------------- what lines state

NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,15})?)"
BYTES = r"([0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3}){1,4}(?![0-9])|[0-9][0-9,_'\u2019]{0,18})"
TIME = (  # and its unit
    r"([0-9]{1,15}(?:,[0-9]{3}){0,3}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?) ?"
    r"(us|ms|msecs?|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b"
)


def compiled(text: str) -> re.Pattern:
    """A pattern with the words NUMBER, TIME and BYTES for what they stand for."""
    text = text.replace("NUMBER", NUMBER).replace("TIME", TIME)
    return re.compile(text.replace("BYTES", BYTES))


SOURCE_BEGINS = compiled(
    r'import [\w., ]+$|from [\w.]+ import |def \w+\(|class \w+[(:]|if __name__ ?==|"""|#!'
)
SOURCE_ENDS = compiled(
    r"={20,}$|logs/|Running Python|Python \d|Hyperparameters|val_bpb:enabled|train_loader:|seed:\d"
    r"|world_size:\d|model_params:\d|warmup_step:|step:\d|\d+/\d+ (train|val)_loss"
)
BPB = compiled(
    r"(?i)(?:val_loss[\"']?[:=] ?NUMBER.{0,100}?)?bpb"
    r"(?:[\"']? ?[:=]\W{0,20}| (?=\d\.\d{3}))NUMBER"
)
RUNNING = compiled(
    r"(?i)step|epoch|chunk|batch|progress|running|train_|\d/\d|baseline|delta|target|best|improve"
    r"|pre[-_ ]?quant|post[-_ ]?ema|scored:\d"
)
EXACT = compiled(r"final_[\w+.-]{0,60}_exact ")  # a result, whatever words are in its name
TRAINING = compiled(r"(?i)stopping_early|step\b|\d+/\d+ (?:train|val)_")  # how such a line begins
DIAGNOSTIC = compiled("(?i)diagnos")  # a pass by the side, no part of the evaluation
NEW_RUN = compiled(r"step:[01]/\d|world_size:\d|Running Python")  # after a run's scores
STEPS = compiled(r"(?i)\W{0,4}(?:step|iter|iteration|epoch)\b\W{0,4}\d.{0,80}\bloss\b")
FAST_STEP = compiled(
    r"step:(?!(\d+)/\1 )\d+/\d+ train_loss:[\d.]+ train_time:NUMBER(ms|s) step_avg:NUMBER(ms|s)$"
)
WORTH_A_LOOK = compiled(  # a line without any of these states nothing
    r"(?i)bpb|time|step|stop|loss|elapsed|seed|world_size|token|vocab|fineweb|_sp\d|bytes|size"
    r"|artifact|budget|calib|hessian|gptq|ttt|adapt|pass|gate|valonly|val_only|traceback|NVIDIA|nan|inf|sha256"
)
SIZES = compiled(r"(?i)bytes|size|total|artifact|submission")
LARGE = compiled(r"(?<![\d.,])\d{1,3}(?:,\d{3}){2}(?!,?\d)|(?<![\d.,])\d{7,9}(?!\.?\d)")
SECONDS = {"us": 1e-6, "ms": 0.001, "mi": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0}  # as units begin
LOG_PATTERNS = {  # what has invalidated entries before
    "epochs over the tokens that are scored": (
        r"(?i)ttt(?!.{0,200}chunk).{0,20}epoch[ :=]*\d+ ?/ ?\d+"
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
STATEMENTS = LOG_PATTERNS | {  # a number, with a unit where it is a time
    "stop": r"^stopping_early|^step:(\d+)/\1 ",
    "train": r"train(?:ing)?_time[:=] ?TIME",
    "step": r"step_avg[:=] ?TIME",
    "eval": r"(?:(?<!total_)eval_time|bpb.{0,100}\b(?:time|elapsed))[:=] ?TIME",
    "eval_total": (
        r"(?i)\b(?:eval(?:uation)?[_ ]total[_ ]time|total[_ ]eval(?:uation)?[_ ]time)"
        r"[:=] ?TIME"
    ),
    "adaptation": (
        r"(?i)^(?!.*bpb)\W{0,3}\w*(?:ttt|adapt)\w*.{0,100}?"
        r"(?:time|elapsed|took|\bin)[:= ] ?TIME"
    ),
    "calibration": (
        r"(?i)^(?!.*(?:compress|sav|quantiz|val_loss|reserv))(?:"
        r".*?(?:gptq|hessian|calib)(?:.{0,200}?\bin |\w{0,20}_time[:=] ?)TIME"
        r"|.*(?:calibrat|hessian))"
    ),
    "dequantising": (
        r"(?i)^(?!.*bpb).{0,40}\b(?:dequanti|deseriali)\w*.{0,60}?"
        r"(?:time|took|elapsed|\bin)[:= ] ?TIME"
    ),
    "seed": r"(?<![\w.])seed[:=] ?([0-9]{1,12})\b",
    "world_size": r"\bworld_size[:=] ?([0-9]{1,6})",
    "val_tokens": r"(?:\bval_tokens[:=] ?|Validation tokens: ?|val_loader:.{0,400}tokens:)BYTES",
    "vocab_size": r"(?:(?<!\w)vocab_size[:=] ?|fineweb_|_sp)([0-9]{3,6})(?![\dB])",
    "model_bytes": (
        r"(?:Serialized model [^:]{1,60}: ?|Artifact(?: size)?: {0,9}"
        r"|\b(?:quant|model|artifact|compressed_model)_bytes[:=] ?"
        r"|\w: ?(?=[\d,]{7,15} bytes \| code))"
        r"BYTES(?![\d.]| ?[MK]B)"
    ),
    "code_bytes": r"(?:Code size[^:]{0,60}: ?|\bcode_bytes[:=] ?|\| code: ?)BYTES",
    "total_bytes": (
        r"(?:Total submission size[^:]{0,60}: ?|budget: ?(?=[\d,]{1,15}/)"
        r"|\b(?:estimated_total|total_bytes|total_artifact_bytes|total_submission_bytes)[:=] ?"
        r"|\| total: ?)BYTES(?![\d.]| ?[MK]B)"
    ),
    "traceback": r"^Traceback \(most recent call last\)",
}
FACTS = {name: compiled(text) for name, text in STATEMENTS.items()}
TRIGGERS = {  # one of these words is in each line that a pattern fits, in small letters
    "epochs over the tokens that are scored": ("ttt",),
    "a second pass over scored tokens": ("pass",),
    "hints within words, of what is scored": ("_gate",),
    "a training set that is named after the validation": ("only", "fineweb_val"),
    "a score that is no number": ("nan", "inf"),
    "a number of which another would be read, or none": ("_time", "size", "model", "val_bpb"),
    "stop": ("stopping_early", "step:"),
    "train": ("train",),
    "step": ("step_avg",),
    "eval": ("eval_time", "bpb"),
    "eval_total": ("total",),
    "adaptation": ("ttt", "adapt"),
    "calibration": ("gptq", "hessian", "calib"),
    "dequantising": ("dequanti", "deseriali"),
    "seed": ("seed",),
    "world_size": ("world_size",),
    "val_tokens": ("tokens",),
    "vocab_size": ("vocab_size", "fineweb_", "_sp"),
    "model_bytes": ("model", "artifact", "quant", "bytes"),
    "code_bytes": ("code",),
    "total_bytes": ("total", "budget"),
    "traceback": ("traceback",),
}


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
    number: int = 0  # of the line


class Pass(NamedTuple):
    """A pass over the validation tokens after the training; lines with one score speak of one."""

    seconds: float  # the longest that a line states: some time it inside, some outside
    quote: str
    bpb: float
    digits: int  # decimals of bpb, as printed

    def has(self, bpb: float, digits: int) -> bool:
        """Whether this is the pass of a score, to the decimals that both have."""
        return abs(self.bpb - bpb) <= 0.501 * 10.0 ** -min(self.digits, digits)


# ---------------------------------------------------------------- logs


class Log:
    """What one run's log says."""

    def __init__(self, name: str, before: "Log | None" = None):
        """`before` is the run before it in its file, whose settings may not be repeated."""
        self.name = name
        self.gpu = ""  # "H100"
        self.before = before
        self.stepped = False  # whether there was a line of a step, or with a score
        self.trained = False  # whether there was a line of the training
        self.training: Log | None = None  # the log of its training, if it is another one
        self.steps = 0  # lines that look like a step's, of any form
        self.lines = deque(maxlen=MAX_LINES)  # Lines of kind final and illegal
        self.running = deque(maxlen=MAX_LINES)
        self.facts = {fact: deque(maxlen=MAX_LINES) for fact in FACTS}  # Facts
        self.passes: list[Pass] = []
        self.prefixes = Passes(name)
        self.sizes: dict[int, int] = {}  # large numbers in lines on sizes -> their last line
        self.hashes: set[str] = set()  # what reads like a sha256
        self.words: set[str] = set()  # of its lines, in small letters
        self.settings = {}  # name -> value, as printed before the first step
        self.listed = {}  # of these, the ones in a list of hyperparameters
        self.in_list = False
        self.sources = []  # the scripts that it embeds, each a list of lines
        found = re.search(r"seed[-_]?([0-9]{1,12})", Path(name).name)
        self.named_seed = int(found[1]) if found and before is None else None

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

    @property
    def is_log(self) -> bool:
        """Whether it reads like a log at all."""
        stated = self.lines or self.running or self.facts["train"] or self.facts["eval"]
        return bool(stated) or self.steps > 1

    def read(self, text: str, number: int) -> None:
        """Takes in what line `number` says."""
        fast = FAST_STEP.match(text)
        if fast and self.stepped and not (self.passes or self.facts["eval"]):
            self.read_step(fast, text, number)
            return
        self.read_words(text)
        if not WORTH_A_LOOK.search(text):
            if not self.stepped:
                self.read_settings(text)
            return

        quote = f"{self.name}:{number}: {text[:160]}"
        legal = "NOT LEGAL" not in text
        scores = self.read_scores(text, quote, legal)
        self.read_facts(text, quote, number)
        if TRAINING.match(text):  # what was evaluated before it was a validation
            self.trained = True
            self.passes.clear()
            for fact in ("eval", "eval_total", "adaptation", "dequantising", "traceback"):
                self.facts[fact].clear()
        elif scores:
            self.facts["traceback"].clear()
            self.read_pass(text, quote, scores[-1])
        if SIZES.search(text) and len(self.sizes) < MAX_LINES:
            found = [int(found.replace(",", "")) for found in LARGE.findall(text)[:9]]
            self.sizes |= dict.fromkeys(found, number)

        if scores or "sha256" in text:
            self.prefixes.read(text, number)
        if "sha256" in text and len(self.hashes) < MAX_LINES:
            self.hashes |= set(re.findall(r"\b[0-9a-f]{64}\b", text))

        gpu = re.search(r"NVIDIA ([A-Z]+ ?\d\w*)", text)
        if gpu:
            self.gpu = gpu[1]
        self.steps += bool(STEPS.match(text))
        self.stepped = self.stepped or bool(scores) or "train_loss" in text
        if not self.stepped:
            self.read_settings(text)

    def read_words(self, text: str) -> None:
        if len(self.words) < MAX_WORDS:
            self.words.update(re.findall("[a-z]{2,20}", text[:200].lower()))

    def read_step(self, fast: re.Match, text: str, number: int) -> None:
        """A step's line in the usual form: of the times, only the last ones matter."""
        quote = f"{self.name}:{number}: {text[:160]}"
        self.trained = True
        self.steps += 1
        for fact, count, unit in (("train", fast[2], fast[3]), ("step", fast[4], fast[5])):
            self.facts[fact].append(Fact(round(float(count) * SECONDS[unit], 6), quote, number))

    def read_scores(self, text: str, quote: str, legal: bool) -> list[Line]:
        kind = "running" if RUNNING.search(text) and not EXACT.match(text) else "final"
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
        time = FACTS["eval"].search(text)
        if score.kind != "final" or not time or DIAGNOSTIC.search(text):
            return
        found = Pass(stated_value(time), quote, score.bpb, score.digits)
        for i, known in enumerate(self.passes):
            if known.has(score.bpb, score.digits):
                self.passes[i] = max(known, found, key=lambda one: one.seconds)
                return
        if len(self.passes) < MAX_LINES:
            self.passes.append(found)

    def read_facts(self, text: str, quote: str, number: int) -> None:
        legal = "NOT LEGAL" not in text
        small = text.lower()
        for name, words in TRIGGERS.items():
            found = None
            if any(word in small for word in words):
                found = FACTS[name].search(text)
            if not found:
                continue
            if (name in LOG_PATTERNS or name == "eval") and not legal:
                continue  # its label says what it is
            if name == "calibration" and not self.facts["stop"]:
                continue  # before the stop it is part of the training
            if name in ("model_bytes", "total_bytes") and re.search("probe|_try|attempt", text):
                continue  # not what was kept
            self.facts[name].append(Fact(stated_value(found), quote, number))

    def read_settings(self, text: str) -> None:
        plain = re.match(r"[a-z_]\w*[:=](?!.*\d/\d)", text)
        if plain and len(self.settings) < 1_000:
            self.settings.update(re.findall(r"([a-z_]\w{0,60})[:=] ?([\w.+-]+)", text[:LINE_CHARS]))
        if re.match("(?i)hyper_?parameters", text):
            self.in_list = True
        elif self.in_list and len(self.listed) < 1_000:
            pair = re.fullmatch(r"([a-z_]\w{0,60})\s*[:=]\s*(\S.{0,200})", text)
            self.in_list = pair is not None
            if pair:
                self.listed[pair[1]] = pair[2]


def stated_value(found: re.Match) -> float | int:
    """Seconds where a FACTS pattern found a unit; else the count, 0 where there is none."""
    count, unit = (*found.groups(), None, None)[:2]
    if unit:
        size = next(size for begin, size in SECONDS.items() if unit.startswith(begin))
        if unit.startswith("milli"):
            size = 0.001
        return round(float(count.replace(",", "")) * size, 6)
    return int(re.sub("[^0-9]", "", count or "0") or "0")


# ---------------------------------------------------------------- files of logs


def bounded_lines(path: Path, budget: Budget) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty, cut at LINE_CHARS; of a long file, its first
    and its last LOG_BYTES."""
    size = path.stat().st_size
    count = 0
    with open_regular(path) as file:
        if not budget.allows(min(size, LOG_BYTES), path.name):
            return
        block = file.read(LOG_BYTES) + file.readline(LINE_CHARS)  # up to a line's end
        yield from lines_of(block, count, budget, path.name)
        count += block.count(b"\n")
        place = file.tell()
        if place >= size or not budget.allows(min(size - place, LOG_BYTES), path.name):
            return
        if size - place > LOG_BYTES:
            count += newlines(file, size - LOG_BYTES - place, budget)
            file.seek(size - LOG_BYTES)
            count += bool(file.readline(LINE_CHARS))
        yield from lines_of(file.read(LOG_BYTES), count, budget, path.name)


def newlines(file, span: int, budget: Budget) -> int:
    """Lines that end in the next `span` bytes, of which at most a few hundred MB are looked at."""
    found = 0
    for _ in range(min(span // LOG_BYTES + 1, 200)):
        if budget.is_late():
            break
        block = file.read(min(LOG_BYTES, span))
        span -= len(block)
        found += block.count(b"\n")
    return found


def lines_of(block: bytes, count: int, budget: Budget, name: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(block.split(b"\n"), count + 1):
        if not line or line == b"\r":
            continue
        if number % 256 == 0 and budget.is_late():
            budget.allows(budget.bytes + 1, name)  # notes that its rest is not read
            return
        text = line[:LINE_CHARS].replace(b"\0", b"")  # the zeros are UTF-16's
        for part in text.rstrip(b"\r").split(b"\r"):  # what a terminal writes over counts as well
            yield number, part.decode("utf-8", "replace").rstrip()


def read_log(path: Path, name: str) -> Log:
    """The last run of a file."""
    return read_runs(path, name, Budget())[-1]


def read_runs(path: Path, name: str, budget: Budget) -> list[Log]:
    """The runs of a file, one after the other."""
    log = Log(name)
    runs = [log]
    in_source = False
    later = []  # sources that follow the scores of a run: of the next one, if there is one
    kept = 0  # characters of the source
    last = 0  # number of the line before, as empty lines are left out
    for number, text in bounded_lines(path, budget):
        if in_source and SOURCE_ENDS.match(text):
            in_source = False
        elif not in_source and SOURCE_BEGINS.match(text):
            in_source = True
            kept = 0
            sources = later if log.lines and log.trained else log.sources
            sources += [[]] if len(sources) < 10 else []

        if in_source:
            empty = min(number - last - 1, 1_000) if kept else 0
            kept += len(text) + 1 + empty
            if kept <= SOURCE_CHARS:
                sources[-1] += [""] * empty + [text]
            last = number
            continue
        text = text.strip()
        if NEW_RUN.match(text) and (log.lines and log.trained) and len(runs) < MAX_RUNS:
            log = next_run(log, name, len(runs) + 1)
            log.sources = later or log.sources
            later = []
            runs.append(log)
        log.read(text, number)
    log.sources = log.sources + later
    return runs


def next_run(before: Log, name: str, number: int) -> Log:
    """A run that goes on in the file of the one before, with what that said of seed, world and
    data until it says otherwise."""
    log = Log(f"{name} (run {number})", before)
    log.gpu = before.gpu
    log.settings = dict(before.settings)
    log.sources = before.sources
    for fact in ("seed", "world_size", "val_tokens", "vocab_size"):
        log.facts[fact].extend(before.facts[fact])
    return log


def read_logs(folder: Folder) -> list[Log]:
    """The runs of the files that read like logs, without copies of one another."""
    named = [path for path in folder.files if path.suffix in LOG_SUFFIXES]
    named = [path for path in named if path.name != "requirements.txt"]
    named.sort(key=lambda path: ("seed" not in path.name, str(path)))

    logs = {}
    for path in named[:MAX_LOGS]:
        for log in without_repetition(read_runs(path, folder.name(path), folder.budget)):
            if log.is_log:
                stated = [*log.lines, *log.running]
                texts = [line.quote.partition(": ")[2] for line in stated] or [log.name]
                logs.setdefault((log.seed, *texts), log)
    found = list(logs.values())
    join(found)
    return found


def without_repetition(runs: list[Log]) -> list[Log]:
    """The runs of a file but for those that a later one says again, with their seed and score."""
    last = {}
    for log in runs:
        score = log.headline.bpb if log.headline else log.name
        known = last.get((log.seed, score))
        if known is not None and not log.trained:
            log = known
        last[log.seed, score] = log
    return list(last.values())


def join(logs: list[Log]) -> None:
    """Gives each log that only evaluates the one log of its seed that trained, if there is one."""
    trained = [log for log in logs if log.trained and log.facts["train"]]
    for log in logs:
        if log.trained or log.facts["train"]:
            continue
        partners = [other for other in trained if other.seed == log.seed is not None]
        if log.before in trained:
            partners = [log.before]
        if len(partners) == 1:
            log.training = partners[0]


# ---------------------------------------------------------------- scores of prefixes

PREFIX = compiled(
    r"(.{1,80}): scored:([0-9]{1,12}) nats:NUMBER bytes:([0-9]{1,15}) val_bpb:NUMBER$"
)
FINAL = compiled(
    r"(headline: )?(final_pcll_\w{1,60}) val_loss:NUMBER val_bpb:NUMBER "
    r"val_tokens:([0-9]{1,12}) bytes:([0-9]{1,15})\b"
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
    final: bool = False  # whether it is the pass's own result, "final_pcll_sliding_exact ..."

    @property
    def rounding(self) -> float:
        """Nats by which they may be off, as printed: a result is a mean of eight decimals."""
        return 1e-6 + 1e-8 * self.count * self.final


class Passes:
    """The prefixes that a log states, pass by pass, and where they contradict one another."""

    def __init__(self, file: str):
        self.file = file
        self.artifact = ""
        self.lines: list[Prefix] = []
        self.contradictions: list[tuple[str, Prefix]] = []  # what is impossible, and its line
        self.before: Prefix | None = None  # of the same pass
        self.results: dict[str, Prefix] = {}  # the last one of each label

    def read(self, text: str, number: int) -> None:
        """Takes in a line of the log."""
        named = ARTIFACT.match(text)
        if named:
            self.artifact = named[1]
            self.before = None
        if len(self.lines) >= MAX_PREFIXES:
            return
        quote = f"{self.file}:{number}: {text[:160]}"
        stated = PREFIX.match(text)
        if stated:
            name, count, nats, size, bpb = stated.groups()
            numbers = (int(count), float(nats), int(size), float(bpb))
            self.enter(Prefix(name, *numbers, self.artifact, quote))
        result = FINAL.match(text)
        if result:
            self.read_result(result, quote)

    def read_result(self, found: re.Match, quote: str) -> None:
        repeats, label, loss, bpb, count, size = found.groups()
        name = self.before.name if self.before and not repeats else ""
        numbers = (int(count), float(loss) * int(count), int(size), float(bpb))
        line = Prefix(name, *numbers, self.artifact, quote, True)
        known = self.results.get(label)
        if repeats and known and line[1:5] != known[1:5]:
            self.contradict(f"the headline is not the result of {known.quote[:80]}", line)
        self.results[label] = known if repeats and known else line
        problem = impossible(None, line)
        if name:
            self.enter(line)
        elif problem:
            self.contradict(f"{label}: {problem}", line)
        self.before = None

    def enter(self, line: Prefix) -> None:
        before = self.before if self.before and self.before.name == line.name else None
        problem = impossible(before, line)
        if problem:
            self.contradict(f"{line.name}: {problem}", line)
        self.lines.append(line)
        self.before = line

    def contradict(self, what: str, line: Prefix) -> None:
        if len(self.contradictions) < MAX_LINES:
            self.contradictions.append((what, line))


def impossible(before: Prefix | None, line: Prefix) -> str:
    """Why no pass can have a line, after the one before it; empty if one can."""
    bits = math.log(2) * max(1, line.bytes)
    off = abs(line.bpb - line.nats / bits)
    if line.final and off > 1e-8 + line.rounding / bits:
        return f"its nats and bytes make {line.nats / bits:.8f} bits/byte, not {line.bpb:.8f}"
    if before is None:
        return ""

    rest = f"{line.count - before.count:,} positions after the first {before.count:,}"
    more = line.nats - before.nats
    size = line.bytes - before.bytes
    allowed = line.rounding + before.rounding
    if line.count == before.count and line.final:
        same = abs(more) <= allowed and size == 0
        return "" if same else "the result of all positions differs from their last line"
    if line.count <= before.count:
        return f"{line.count:,} positions after {before.count:,}"
    if more < -allowed or size < 0:
        return f"the {rest} would have {more:,.4f} nats and {size:,} bytes"
    return ""


def read_passes(path: Path) -> Passes:
    """The lines of a log that say what the first 2,048, 4,096, 8,192, ... positions came to, and
    all of them."""
    passes = Passes(path.name)
    for number, text in bounded_lines(path, Budget()):
        passes.read(text, number)
    return passes


# ---------------------------------------------------------------- submission.json

BPB_FIELDS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_exact", "mean_bpb", "bpb")
NO_CLAIM = re.compile(  # fields with bits per byte that are of something else
    r"(?i)std|dev|delta|base|prev|pre_|improve|target|sota|margin|gain|diff|thresh|best|min|max"
    r"|method|note|pr\d|report|unquant|ema|seeds$|per_seed|seed_?\d|spread|range|record|legal"
)
RESULT_FIELDS = ("results", "result", "metrics", "summary", "final", "scores", "evaluation")
SEED_FIELDS = ("seed", "seeds", "seed_results", "per_seed", "val_bpb_seeds", "val_bpb_per_seed")
SEED_KEY = re.compile(r"(?:val_bpb_)?(?:seed)?[_ ]*([0-9]{1,12})")
COUNTED_SEEDS = re.compile(r"(?i)(?:num|n)_seeds|seed_count|seeds_run")
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5}
SAID_SEEDS = re.compile(r"(?i)\b(\d|two|three|four|five)[-_ ]?seeds?\b(?!ed)")
BYTES_FIELDS = (
    "bytes_total",
    "total_bytes",
    "artifact_bytes_max",
    "artifact_bytes",
    "artifact_size_bytes",
)


def to_number(value: object) -> float | None:
    """A finite number below 1e15, also of text such as "15,990,006"; of a list or map of numbers
    the mean; else None."""
    if isinstance(value, dict):
        items = [item for key, item in value.items() if "std" not in key]
        value = value.get("mean", items)
    try:
        if isinstance(value, list):
            value = value[:MAX_LOGS]
            nested = any(isinstance(item, list | dict) for item in value)
            return None if nested else fmean(map(to_number, value))
        if isinstance(value, str):
            value = value[:100].replace(",", "").split()[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if abs(number) < 1e15 and not isinstance(value, bool) else None


def claimed(table: dict, names: tuple[str, ...]) -> float | None:
    """The first number among these fields."""
    numbers = (to_number(table.get(name)) for name in names)
    return next((number for number in numbers if number is not None), None)


def claimed_bpb(table: dict) -> float | None:
    """The bits per byte that submission.json stands for, under whatever name: the usual fields,
    others that are called so, means first, and those of a table of results."""
    found = claimed(table, BPB_FIELDS)
    if found is not None:
        return found
    names = [name for name in list(table)[:1_000] if re.search("(?i)bpb", name)]
    names = [name for name in names if not NO_CLAIM.search(name)]
    means = [name for name in names if re.search("(?i)mean|average|avg", name)]
    found = claimed(table, (*means, *names))
    if found is not None:
        return found
    inner = [table.get(name) for name in RESULT_FIELDS]
    numbers = (claimed_bpb(part) for part in inner if isinstance(part, dict))
    return next((number for number in numbers if number is not None), None)


def states_mean(table: dict) -> bool:
    """Whether a field of another name says that it is the mean of the runs' bits per byte."""
    names = [name for name in list(table)[:1_000] if re.search("(?i)bpb", name)]
    return any(re.search("(?i)mean|average|avg", name) for name in names)


def claimed_seeds(table: dict) -> dict[int, float | None]:
    """The seeds that submission.json names, each with its claimed bits per byte where one is
    given."""
    claims = {}
    listed = [pair for name in SEED_FIELDS for pair in seed_results(table.get(name))[:MAX_LOGS]]
    listed += [(key, table[key]) for key in list(table)[:1_000] if re.search(r"seed_?\d", key)]
    for key, result in listed:
        found = SEED_KEY.fullmatch(str(key)[:40])
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


def said_seeds(table: dict, depth: int = 0) -> int:
    """How many seeds submission.json says that there were, in a count, a flag or in words; 0 where
    it does not."""
    most = 0
    for key, value in list(table.items())[:1_000]:
        words = SAID_SEEDS.search(str(key)[:200]) if value is True else None
        if isinstance(value, str):
            words = SAID_SEEDS.search(value[:4_000])
        if words:
            most = max(most, WORDS.get(words[1].lower()) or int(words[1]))
        number = to_number(value) if COUNTED_SEEDS.fullmatch(str(key)) else None
        if number is not None and not isinstance(value, list | dict):
            most = max(most, int(number))
        if isinstance(value, dict) and depth < 3:
            most = max(most, said_seeds(value, depth + 1))
    return most
