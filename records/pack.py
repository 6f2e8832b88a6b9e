"""Turns the logs of finished runs into a record folder as the challenge wants it.

    python records/pack.py NAME logs/A.txt logs/B.txt --author NAME [--github-id ID]
                           [--track 10min_16mb] [--artifact artifact.pcll]
                           [--blurb TEXT] [--date DATE] [--out FOLDER]

One log a seed, all of the same source, settings, versions and hardware. Written is
records/track_TRACK/DATE_NAME/:
    train_gpt.py        the source text that the logs begin with
    train_seedN.log     a copy of each log
    submission.json     mean and standard deviation over the seeds, and each seed's results
    README.md           the same as a table, the method in words, and the command of each seed
    requirements.txt    the versions that the logs state
    artifact.pcll       with --artifact
The score is the logs' final_pcll_ttt_exact line if all have one, else final_pcll_sliding_exact;
what a log labels NOT LEGAL is never a score. The track 10min_16mb is for runs on 8 H100 GPUs within
10 minutes of training, calibration included, and 10 of evaluation. Nothing of a log is executed or
parsed as code, and an error leaves nothing behind.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev

TRACKS = ("non_record_16mb", "10min_16mb")
CAP_BYTES = 16_000_000  # code plus artifact, decimal
LIMIT_S = 600  # of the 10-minute track, for training and again for evaluation
LAST_STEP_S = 1  # training may be longer by this: the step that crosses the limit is finished
PROCESSES = 8  # of the 10-minute track, each on an H100
PROBABLE = 1e9  # no time in ms, no number of steps is larger
LOG_BYTES = 2**26  # a larger file is no log
RULE = "\n" + "=" * 80 + "\n"  # between the source and the lines of the run
PER_RUN = (
    "seed",
    "run_id",
    "artifact_path",
    "checkpoint_every",
    "resume",
)  # settings that may differ
FINAL = (
    r"^final_pcll_(ttt|sliding)_exact val_loss:(\d+\.\d+) val_bpb:(\d+\.\d+) "
    r"val_tokens:(\d+) bytes:(\d+) eval_time:(\d+)ms"
)
CHANGED = (
    r"^changed:(.*)$"  # NAME=value NAME=value; older logs lack it, and all logs of other scripts
)
STATED = ("preset", "seed", "train_seq_len", "eval_stride", "ttt_chunk_tokens", "ttt_epochs")
FINISHED = {  # lines that the log of a finished run has
    "versions and GPU": r"^(python .+) GPU (.+)$",
    "world_size": r"^preset:\S+ world_size:([1-9]\d{0,5}) ",
    "Code size": r"^Code size: (\d+) bytes",
    "Serialized model pcll": r"^Serialized model pcll: (\d+) bytes",
    "final_pcll_ttt_exact or final_pcll_sliding_exact": FINAL,
}


class UserError(Exception):
    """Something that the person who called can mend; its text is the one sentence that they see."""


# ---- Logs


@dataclass(frozen=True)
class Score:
    val_loss: float  # nats per token
    val_bpb: float
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """What one log says."""

    path: Path
    data: bytes  # the whole log
    source: str
    lines: str  # what follows the source
    settings: dict[str, str]  # name -> value, as printed last
    changed: dict[str, str] | None  # those that the preset has otherwise; None: not known
    versions: dict[str, str]
    gpu: str
    processes: int
    steps: int
    train_seconds: float
    calibration_seconds: float  # reads training data, and so counts as training, too
    evaluation_seconds: float | None  # its eval_total_time; None: not known
    scores: dict[str, Score]  # by the kind of their final line: ttt, sliding
    code_bytes: int
    artifact_bytes: int
    artifact_sha256: str | None  # None: not known

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes


def read_run(path: Path) -> Run:
    """Reads a log of train_gpt.py; UserError says what it lacks."""
    data = read_bytes(path, LOG_BYTES)
    source, lines = split_log(path, data.decode(errors="replace"))
    try:
        return read_lines(path, data, source, lines)
    except (ValueError, OverflowError):  # of too many digits
        raise UserError(f"{path} states a number that cannot be.") from None


def read_lines(path: Path, data: bytes, source: str, lines: str) -> Run:
    last = re.split(r"^(?=python .+ GPU )", lines, flags=re.M)[-1]  # as a resumed run begins again
    found = {what: re.search(pattern, last, re.M) for what, pattern in FINISHED.items()}
    check_finished(path, source, last, found)
    settings, changed = read_settings(path, last[: found["world_size"].start()])

    trained = r"^(?:step:|stopping_early: ).*?\btrain_time:(\d+)ms"
    evaluated = times(r"^eval_total_time:(\d+)ms", last)
    versions = found["versions and GPU"][1].split()
    sha256 = re.findall(r"^artifact_sha256:([0-9a-f]{64})\b", last, re.M)
    return Run(
        path,
        data,
        source,
        lines,
        settings,
        changed,
        versions=dict(zip(versions[::2], versions[1::2], strict=False)),
        gpu=found["versions and GPU"][2].replace("none", "CPU"),
        processes=int(found["world_size"][1]),
        steps=int(max(numbers(r"^(?:stopping_early: .*)?step:(\d+)/", lines), default=0)),
        train_seconds=max(times(trained, lines), default=0.0),
        calibration_seconds=sum(times(r"^calibration_time:(\d+)ms", last)),
        evaluation_seconds=max(evaluated, default=None),
        scores=read_scores(path, last),
        code_bytes=int(found["Code size"][1]),
        artifact_bytes=int(found["Serialized model pcll"][1]),
        artifact_sha256=sha256[-1] if sha256 else None,
    )


def numbers(pattern: str, lines: str) -> list[float]:
    """What the pattern's group matches; ValueError for what is beyond all measure."""
    found = [float(text) for text in re.findall(pattern, lines, re.M)]
    if max(found, default=0) > PROBABLE:
        raise ValueError
    return found


def times(pattern: str, lines: str) -> list[float]:
    """Seconds of what the pattern's group matches in milliseconds."""
    return [number / 1000 for number in numbers(pattern, lines)]


def read_scores(path: Path, lines: str) -> dict[str, Score]:
    """The final lines, by their kind; UserError if one is repeated, or its numbers do not agree."""
    scores = {}
    for kind, loss, bpb, tokens, size, ms in re.findall(FINAL, lines, re.M):
        if kind in scores:
            raise UserError(f"{path} has two lines with final_pcll_{kind}_exact.")
        score = Score(float(loss), float(bpb), int(tokens), int(size), int(ms) / 1000)
        check_score(path, kind, score)
        scores[kind] = score

    before, headline, after = lines.partition("\nheadline: ")
    quoted, _, rest = after.partition("\n")
    kind = "ttt" if "ttt" in scores else "sliding"
    if headline:
        finals = [found[0] for found in re.finditer(FINAL, before, re.M) if found[1] == kind]
        if [quoted] != finals or re.search(FINAL, rest, re.M) or headline in after:
            raise UserError(f"{path} does not end with a headline that repeats its final line.")
    return scores


def check_score(path: Path, kind: str, score: Score) -> None:
    """UserError unless it is of some text, and loss and bpb are those of one another."""
    said = f"{path}: final_pcll_{kind}_exact"
    if score.tokens < 1 or score.bytes < 1 or score.seconds > PROBABLE:
        raise UserError(f"{said} states no text that could be scored, or no time.")
    bpb = score.val_loss / math.log(2) * score.tokens / score.bytes
    if not abs(bpb - score.val_bpb) < 1e-6:
        raise UserError(
            f"{said} states val_bpb:{score.val_bpb:.8f}, but its loss, tokens and bytes make "
            f"{bpb:.8f}."
        )


def split_log(path: Path, text: str) -> tuple[str, str]:
    """The source that a log begins with, after a line or two of its own, and the run's lines."""
    head, rule, lines = text.partition(RULE)
    begin = re.search(r'^(?:"""|#|import |from )', head, re.M)
    if not rule or not begin or "\0" in text or "\ufffd" in text:
        raise UserError(
            f"{path} is not a log that begins with its run's source, closed by a line of 80 '='."
        )
    return head[begin.start() :], lines


def check_finished(path: Path, source: str, lines: str, found: dict) -> None:
    """UserError if a line is lacking that every finished run has, or the code is not the source."""
    if lacking := [what for what, line in found.items() if not line]:
        raise UserError(
            f"{path} has no line with {lacking[0]}: the run was interrupted, or it is another "
            "script's."
        )
    if re.search(CHANGED, lines, re.M) and not re.search("^headline: ", lines, re.M):
        raise UserError(f"{path} has no line with headline: the run was interrupted.")

    code_bytes = int(found["Code size"][1])
    own_bytes = len(source.encode())
    if code_bytes != own_bytes:
        raise UserError(
            f"{path} states a code of {code_bytes} bytes, but its source has {own_bytes}."
        )


def read_bytes(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit or not path.is_file():
        raise UserError(f"{path} is no file of at most {limit} bytes.")
    return path.read_bytes()


def read_settings(path: Path, lines: str) -> tuple[dict[str, str], dict[str, str] | None]:
    """The settings that a log prints, and those among them that the log says are changed.

    Without such a line the second is None.
    """
    settings = dict(re.findall(r"^(\w+):(.*)$", lines, re.M))
    names = None
    if "changed" in settings:
        words = re.findall(r"(?:^| )([A-Z][A-Z0-9_]*)=", settings.pop("changed"))
        names = [word.lower() for word in words]

    lacking = [name for name in (*STATED, *(names or ())) if name not in settings]
    if lacking or not re.fullmatch(r"\d{1,19}", settings["seed"]):
        what = (lacking or ["seed"])[0]
        raise UserError(f"{path} does not state the setting {what} in its lines name:value.")
    if names is None:
        return settings, None
    return settings, {name: settings[name] for name in names if name not in (*PER_RUN, "preset")}


def check_runs(runs: list[Run], kind: str, track: str) -> None:
    """UserError unless the runs differ in their seed alone, and keep the limits."""
    if lacking := [run.path for run in runs if kind not in run.scores]:
        raise UserError(f"{lacking[0]} has no line with final_pcll_{kind}_exact, but others do.")

    for number, run in enumerate(runs):
        if twin := next((other for other in runs[:number] if other.seed == run.seed), None):
            raise UserError(f"{twin.path} and {run.path} are both of seed {run.seed}.")
        first = shared(runs[0], kind)
        own = shared(run, kind)
        if differ := [what for what in first | own if first.get(what) != own.get(what)]:
            raise UserError(
                f"{runs[0].path} and {run.path} differ in more than the seed: "
                f"{', '.join(differ[:4])}."
            )
        if run.total_bytes > CAP_BYTES:
            raise UserError(
                f"{run.path} states {run.total_bytes} bytes in all, above the cap of {CAP_BYTES}."
            )
        if track == "10min_16mb":
            check_track(run, kind)


def shared(run: Run, kind: str) -> dict:
    """What runs have in common that differ in their seed alone."""
    score = run.scores[kind]
    settings = {name.upper(): value for name, value in run.settings.items() if name not in PER_RUN}
    return {
        "source": run.source,
        "versions": run.versions,
        "hardware": (run.gpu, run.processes),
        "validation text": (score.tokens, score.bytes),
        **settings,
    }


def check_track(run: Run, kind: str) -> None:
    """UserError unless the run could be of the 10-minute track."""
    said = f"{run.path}: the track 10min_16mb"
    if run.processes != PROCESSES or "H100" not in run.gpu:
        raise UserError(
            f"{said} is for runs on {PROCESSES} H100 GPUs, not on {hardware(run)}; "
            "--track non_record_16mb is for all others."
        )
    if run.evaluation_seconds is None or "calibration_time:" not in run.lines:
        raise UserError(f"{said} needs the lines calibration_time and eval_total_time.")

    spent = run.train_seconds + run.calibration_seconds
    evaluation = max(run.evaluation_seconds, run.scores[kind].seconds)
    if spent > LIMIT_S + LAST_STEP_S or evaluation > LIMIT_S or not run.train_seconds:
        raise UserError(
            f"{said} allows {LIMIT_S} s for training with calibration, and for evaluation, not "
            f"{run.train_seconds:.1f} s with {run.calibration_seconds:.1f} s, and "
            f"{evaluation:.1f} s."
        )


# ---- The folder's files


def hardware(run: Run) -> str:
    return f"{run.processes} x {run.gpu}"


def protocol(s: dict[str, str], kind: str) -> str:
    window = (
        f"sliding window of {s['train_seq_len']} tokens, stride {s['eval_stride']}, each token "
        "scored once"
    )
    if kind == "sliding":
        return f"fixed weights: {window}"
    if s.get("ttt_protocol") == "per_document":
        return (
            f"adaptation per document: each by itself, in windows of {s['train_seq_len']} tokens; "
            f"{s['document_tokens']} at a time are scored once, then learned from by matrices of "
            f"rank {s['document_rank']}"
        )
    return (
        f"score-first adaptation: {window}; chunks of {s['ttt_chunk_tokens']} tokens, learned from "
        f"({s['ttt_epochs']} epochs) only once scored"
    )


def command(run: Run) -> str:
    """What to type to repeat the run."""
    values = {"seed": run.settings["seed"]}
    if run.settings["preset"] != "pcll":
        values["preset"] = run.settings["preset"]
    values |= run.changed or {}
    launcher = "python"
    if run.processes > 1:
        launcher = f"torchrun --standalone --nproc_per_node={run.processes}"
    words = [f"{name.upper()}={shlex.quote(value)}" for name, value in values.items()]
    return " ".join([*words, launcher, "train_gpt.py"])


def summary(run: Run) -> str:
    """The preset and what differs from it, in a sentence's words."""
    preset = f"Preset {run.settings['preset']}"
    if run.changed is None:
        return f"{preset}; its log does not say which settings differ from it"
    changed = ", ".join(f"{name}={value}" for name, value in run.changed.items())
    return f"{preset} with {changed}" if changed else preset


CODECS = {
    "trellis": "trellis-coded quantisation with error feedback, steps by what an error costs "
    "(Fisher information from training tokens), interleaved rANS",
    "huffman": "k-means codebooks and one canonical Huffman code",
    "float16": "float16",
    "float32": "float32",
}
PARTS = {
    "bigram_buckets": "a bigram hash table",
    "smear_gate": "a smear gate",
    "value_residual": "value residual",
    "gated_attention": "gated attention",
    "skips": "U-Net skips",
    "unet_skips": "U-Net skips",  # of older logs
    "ln_scale": "inputs scaled by depth",
}  # by the setting that turns them on


def method(run: Run, kind: str) -> list[str]:
    """What was trained, packed and scored, and how, in items of a list."""
    s = defaultdict(lambda: "?", run.settings)
    off = ("?", "0", "False", "off")
    parts = [name for setting, name in PARTS.items() if s[setting] not in off]
    if s["xsa_last_n"] not in ("?", "0"):
        parts.append(f"exclusive self-attention in the last {s['xsa_last_n']} layers")
    network = (
        f"{s['num_layers']} layers of width {s['model_dim']}, {s['num_heads']} query and "
        f"{s['num_kv_heads']} key/value heads of which {s['rope_dims']} dimensions rotate, MLPs of "
        f"{s['mlp_hidden']}, a {s['vocab_size']}-token vocabulary, sequences of "
        f"{s['train_seq_len']} tokens"
    )
    training = (
        f"steps of {s['train_batch_tokens']} tokens, at most {s['iterations']} of them and "
        f"{s['max_wallclock_seconds']} s (0: no limit); {s['matrix_optimizer']} for matrices, "
        f"AdamW for the rest, exported is the average of the weights with decay {s['ema_decay']}"
    )
    codec = CODECS.get(s["codec"], s["codec"])
    embed_codec = "float16" if s["codec"] == "huffman" else s["codec"]
    embed_codec = s.get("embed_codec", embed_codec)  # older logs state it
    table = CODECS.get(embed_codec, embed_codec)
    if embed_codec == s["codec"]:
        table = "the same"
    return [
        f"- Settings: {summary(run)}.",
        f"- Network: {network}; with {', '.join(parts) or 'no further parts'}.",
        f"- Training: {training}.",
        f"- Export: matrices by {codec}; the token embedding by {table}; all else in float16; one "
        "zstd-22 frame. What is scored is read back from that file.",
        f"- Evaluation: {protocol(s, kind)}.",
    ]


def submission(runs: list[Run], kind: str, args: argparse.Namespace) -> dict:
    """The fields of submission.json."""
    run = runs[0]
    scores = [run.scores[kind] for run in runs]
    bpbs = [score.val_bpb for score in scores]
    results = {
        str(run.seed): dict(
            val_bpb=score.val_bpb,
            val_loss=score.val_loss,
            bytes_total=run.total_bytes,
            artifact_bytes=run.artifact_bytes,
            artifact_sha256=run.artifact_sha256,
            steps=run.steps,
            train_seconds=run.train_seconds,
            calibration_seconds=run.calibration_seconds,
            eval_seconds=score.seconds,
            eval_total_seconds=run.evaluation_seconds,
        )
        for run, score in zip(runs, scores, strict=True)
    }
    return dict(
        name=args.name,
        author=args.author,
        github_id=args.github_id,
        date=args.date,
        track=args.track,
        blurb=args.blurb or summary(run),
        val_bpb=round(mean(bpbs), 8),
        val_bpb_std=round(stdev(bpbs), 8) if len(runs) > 1 else None,
        val_loss=round(mean(score.val_loss for score in scores), 8),
        bytes_total=max(run.total_bytes for run in runs),
        bytes_code=run.code_bytes,
        artifact_bytes=max(run.artifact_bytes for run in runs),
        seeds=[run.seed for run in runs],
        seed_results=results,
        hardware=hardware(run),
        versions=run.versions,
        protocol=protocol(run.settings, kind),
        val_tokens=scores[0].tokens,
        val_bytes=scores[0].bytes,
    )


def readme(runs: list[Run], kind: str, table: dict) -> str:
    spread = f", standard deviation {table['val_bpb_std']:.5f}" if len(runs) > 1 else ""
    versions = ", ".join(" ".join(pair) for pair in table["versions"].items())
    rows = [
        "| {} | {val_bpb:.5f} | {val_loss:.5f} | {steps} | {train_seconds:.1f} | "
        "{calibration_seconds:.1f} | {eval_seconds:.1f} | {artifact_bytes:,} | "
        "{bytes_total:,} |".format(seed, **row)
        for seed, row in table["seed_results"].items()
    ]
    illegal = [
        f"    seed {run.seed}: {line}"
        for run in runs
        for line in re.findall(r"^NOT LEGAL.*", run.lines, re.M)
    ]
    lines = [
        f"# {table['name']}",
        "",
        table["blurb"],
        "",
        f"**val_bpb {table['val_bpb']:.5f}**, seeds: {len(runs)}{spread}; at most "
        f"{table['bytes_total']:,} bytes, {table['bytes_code']:,} of them code.",
        "",
        "| seed | val_bpb | val_loss | steps | training, s | calibration, s | evaluation, s "
        "| artifact bytes | with code |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"- Scored: {table['val_tokens']:,} tokens, {table['val_bytes']:,} bytes of text.",
        f"- Hardware: {table['hardware']}; {versions}.",
        "- Calibration reads training tokens and counts as training. The time of evaluation is "
        "that of the scored pass alone; submission.json has the logs' eval_total_time as well.",
        "",
        "## Method",
        "",
        *method(runs[0], kind),
        "",
        "## Run",
        "",
        *(f"    {command(run)}" for run in runs),
        "",
    ]
    if any(run.changed is None for run in runs):
        lines += ["What else was set, the logs do not say: it is in their lines name:value.", ""]
    if illegal:
        lines += [
            "## Not a score",
            "",
            "The runs also print what is not legal; it is no part of the above.",
            "",
            *illegal,
            "",
        ]
    return "\n".join(lines)


def requirements(versions: dict[str, str]) -> str:
    """What train_gpt.py imports, in the versions of the run where its log states them."""
    return "".join(
        f"{name}=={versions[name].partition('+')[0]}\n" if name in versions else f"{name}\n"
        for name in ("torch", "numpy", "zstandard", "sentencepiece")
    )


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes a folder so that it is complete or not there."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
        for name, data in files.items():
            (draft / name).write_bytes(data)
        draft.rename(folder)
    except BaseException:  # also a Ctrl-C
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def record_date(given: str, logs: list[Path]) -> str:
    """The date that was given, or that of the newest log; UserError if there is no such day."""
    try:
        newest = date.fromtimestamp(max(path.stat().st_mtime for path in logs)).isoformat()
        if date.fromisoformat(given or newest).isoformat() == (given or newest):
            return given or newest
    except (ValueError, OverflowError):
        pass
    raise UserError(f"--date must be a day as YYYY-MM-DD, not {given[:80]!r}.")


def read_artifact(path: Path, runs: list[Run]) -> bytes:
    """The artifact; UserError unless size and sha256 (older logs lack it) are those of one run."""
    data = read_bytes(path, CAP_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    for run in runs:
        same = run.artifact_sha256 in (None, sha256) and run.artifact_bytes == len(data)
        if same and data.startswith(b"PCLL"):
            return data
    stated = ", ".join(f"{run.artifact_bytes} ({run.artifact_sha256})" for run in runs)
    raise UserError(
        f"{path}, {len(data)} bytes with the sha256 {sha256}, is no artifact of the logs, which "
        f"state {stated}."
    )


def pack(args: argparse.Namespace) -> str:
    """Writes the record folder; returns what to say about it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", args.name):
        raise UserError(f"NAME must be letters, digits and _ . + -, at most 80, not {args.name!r}.")
    if not args.author.strip():
        raise UserError("--author is missing: submission.json has to say whose entry it is.")
    runs = sorted(map(read_run, args.logs), key=lambda run: run.seed)
    kind = "ttt" if all("ttt" in run.scores for run in runs) else "sliding"
    check_runs(runs, kind, args.track)
    args.date = record_date(args.date, args.logs)

    folder = args.out / f"track_{args.track}" / f"{args.date}_{args.name}"
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already; remove it, or choose another NAME.")
    table = submission(runs, kind, args)
    files = {
        "train_gpt.py": runs[0].source.encode(),
        "README.md": readme(runs, kind, table).encode(),
        "submission.json": (json.dumps(table, indent=2) + "\n").encode(),
        "requirements.txt": requirements(runs[0].versions).encode(),
    }
    files |= {f"train_seed{run.seed}.log": run.data for run in runs}
    if args.artifact:
        files["artifact.pcll"] = read_artifact(args.artifact, runs)
    write_folder(folder, files)

    verifier = Path(__file__).resolve().parents[1] / "verify.py"
    return (
        f"{folder}\nval_bpb {table['val_bpb']:.5f}, {table['bytes_total']} bytes. "
        f"Check it: {shlex.join(['python', str(verifier), str(folder.resolve())])}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "pack.py", description="Turns the logs of finished runs into a record folder."
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="of the folder, after its date")
    add("logs", metavar="LOG", nargs="+", type=Path, help="the log of a finished run, one a seed")
    add("--track", choices=TRACKS, default=TRACKS[0], help="default: %(default)s")
    add("--author", default="", help="your name, or your team's")
    add("--github-id", default="", help="your GitHub account")
    add("--blurb", default="", help="the entry in a sentence (default: its settings)")
    add(
        "--artifact",
        type=Path,
        metavar="FILE",
        help="put the artifact of one of the runs into the folder",
    )
    add("--date", default="", help="YYYY-MM-DD (default: that of the newest log file)")
    add(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        metavar="FOLDER",
        help="default: that of pack.py",
    )
    args = parser.parse_args(argv)
    try:
        print(pack(args))
        return 0
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}."
    print(f"pack.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
