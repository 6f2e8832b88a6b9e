"""Turns the logs of finished runs into a record folder as the challenge wants it.

    python records/pack.py NAME logs/A.txt logs/B.txt [--track 10min_16mb]
                           [--author NAME --github-id ID] [--artifact artifact.pcll]
                           [--blurb TEXT] [--date DATE] [--out FOLDER]

One log a seed, all of the same source, settings, versions and hardware. Written is
records/track_TRACK/DATE_NAME/:
    train_gpt.py        the source text that the logs begin with
    train_seedN.log     a copy of each log
    submission.json     mean and standard deviation over the seeds, and each seed's results
    README.md           the same as a table, the protocol, and the command of each seed
    requirements.txt    the versions that the logs state
    artifact.pcll       with --artifact
The score is the logs' final_pcll_ttt_exact line if all have one, else final_pcll_sliding_exact;
what a log labels NOT LEGAL is never a score. Nothing of a log is executed or parsed as code, and an
error leaves nothing behind.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev

TRACKS = ("non_record_16mb", "10min_16mb")
CAP_BYTES = 16_000_000  # code plus artifact, decimal
LIMIT_S = 600  # of the 10-minute track, for training and again for evaluation
LAST_STEP_S = 1  # training may be longer by this: the step that crosses the limit is finished
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
    "world_size": r"^preset:\S+ world_size:(\d+) ",
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
    train_seconds: float  # with calibration, which reads training data
    scores: dict[str, Score]  # by the kind of their final line: ttt, sliding
    code_bytes: int
    artifact_bytes: int

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
    last = re.split(r"^(?=python .+ GPU )", lines, flags=re.M)[-1]  # as a resumed run begins again
    found = {what: re.search(pattern, last, re.M) for what, pattern in FINISHED.items()}
    check_finished(path, source, last, found)
    settings, changed = read_settings(path, last[: found["world_size"].start()])

    steps = re.findall(r"^(?:stopping_early: .*)?step:(\d+)/", lines, re.M)
    times = re.findall(r"^(?:step:|stopping_early: ).*?\btrain_time:(\d+)ms", lines, re.M)
    calibration = re.findall(r"^calibration_time:(\d+)ms", last, re.M)
    versions = found["versions and GPU"][1].split()
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
        steps=max(map(int, steps), default=0),
        train_seconds=(max(map(int, times), default=0) + sum(map(int, calibration))) / 1000,
        scores={
            kind: Score(float(loss), float(bpb), int(tokens), int(size), int(ms) / 1000)
            for kind, loss, bpb, tokens, size, ms in re.findall(FINAL, last, re.M)
        },
        code_bytes=int(found["Code size"][1]),
        artifact_bytes=int(found["Serialized model pcll"][1]),
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

    def shared(run: Run) -> dict:
        settings = {
            name.upper(): value for name, value in run.settings.items() if name not in PER_RUN
        }
        score = run.scores[kind]
        return {
            "source": run.source,
            "versions": run.versions,
            "hardware": (run.gpu, run.processes),
            "validation text": (score.tokens, score.bytes),
            **settings,
        }

    for number, run in enumerate(runs):
        if twin := next((other for other in runs[:number] if other.seed == run.seed), None):
            raise UserError(f"{twin.path} and {run.path} are both of seed {run.seed}.")
        first = shared(runs[0])
        own = shared(run)
        if differ := [what for what in first | own if first.get(what) != own.get(what)]:
            raise UserError(
                f"{runs[0].path} and {run.path} differ in more than the seed: "
                f"{', '.join(differ[:4])}."
            )
        if run.total_bytes > CAP_BYTES:
            raise UserError(
                f"{run.path} states {run.total_bytes} bytes in all, above the cap of {CAP_BYTES}."
            )
        train = run.train_seconds
        evaluation = run.scores[kind].seconds
        if track == "10min_16mb" and (train > LIMIT_S + LAST_STEP_S or evaluation > LIMIT_S):
            raise UserError(
                f"{run.path}: the track {track} allows {LIMIT_S} s for training and for "
                f"evaluation, not {train:.1f} s and {evaluation:.1f} s."
            )


# ---- The folder's files


def protocol(s: dict[str, str], kind: str) -> str:
    window = (
        f"sliding window of {s['train_seq_len']} tokens, stride {s['eval_stride']}, each token "
        "scored once"
    )
    if kind == "sliding":
        return f"fixed weights: {window}"
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
            steps=run.steps,
            train_seconds=run.train_seconds,
            eval_seconds=score.seconds,
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
        hardware=f"{run.processes} x {run.gpu}",
        versions=run.versions,
        protocol=protocol(run.settings, kind),
        val_tokens=scores[0].tokens,
        val_bytes=scores[0].bytes,
    )


def readme(runs: list[Run], table: dict) -> str:
    spread = f", standard deviation {table['val_bpb_std']:.5f}" if len(runs) > 1 else ""
    versions = ", ".join(" ".join(pair) for pair in table["versions"].items())
    rows = [
        "| {} | {val_bpb:.5f} | {val_loss:.5f} | {steps} | {train_seconds:.1f} | "
        "{eval_seconds:.1f} | {artifact_bytes:,} | {bytes_total:,} |".format(seed, **row)
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
        "| seed | val_bpb | val_loss | steps | training, s | evaluation, s | artifact bytes "
        "| with code |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"- Protocol: {table['protocol']}; {table['val_tokens']:,} tokens, "
        f"{table['val_bytes']:,} bytes of text.",
        f"- Hardware: {table['hardware']}; {versions}.",
        "- The time of evaluation is that of the scored pass alone.",
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
    try:
        draft.mkdir(parents=True)
        for name, data in files.items():
            (draft / name).write_bytes(data)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def pack(args: argparse.Namespace) -> str:
    """Writes the record folder; returns what to say about it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", args.name):
        raise UserError(f"NAME must be letters, digits and _ . + -, at most 80, not {args.name!r}.")
    runs = sorted(map(read_run, args.logs), key=lambda run: run.seed)
    kind = "ttt" if all("ttt" in run.scores for run in runs) else "sliding"
    check_runs(runs, kind, args.track)
    args.date = (
        args.date or date.fromtimestamp(max(path.stat().st_mtime for path in args.logs)).isoformat()
    )
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", args.date):
        raise UserError(f"--date must be YYYY-MM-DD, not {args.date!r}.")
    folder = args.out / f"track_{args.track}" / f"{args.date}_{args.name}"
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already; remove it, or choose another NAME.")
    table = submission(runs, kind, args)
    files = {
        "train_gpt.py": runs[0].source.encode(),
        "README.md": readme(runs, table).encode(),
        "submission.json": (json.dumps(table, indent=2) + "\n").encode(),
        "requirements.txt": requirements(runs[0].versions).encode(),
    }
    files |= {f"train_seed{run.seed}.log": run.data for run in runs}
    if args.artifact:
        data = read_bytes(args.artifact, CAP_BYTES)
        sizes = [run.artifact_bytes for run in runs]
        if len(data) not in sizes or not data.startswith(b"PCLL"):
            raise UserError(
                f"{args.artifact}, {len(data)} bytes, is no artifact of the logs, which state "
                f"{sizes}."
            )
        files["artifact.pcll"] = data
    write_folder(folder, files)
    return (
        f"{folder}\nval_bpb {table['val_bpb']:.5f}, {table['bytes_total']} bytes. "
        f"Check it: python verify.py {shlex.quote(str(folder))}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "pack.py", description="Turns the logs of finished runs into a record folder."
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="of the folder, after its date")
    add("logs", metavar="LOG", nargs="+", type=Path, help="the log of a finished run, one a seed")
    add("--track", choices=TRACKS, default=TRACKS[0], help="default: %(default)s")
    add("--author", default="", help="your name")
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
