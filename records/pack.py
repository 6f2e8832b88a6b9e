"""Turns the logs of finished runs into a record folder as the challenge wants it.

    python records/pack.py NAME logs/A.txt logs/B.txt --author NAME [--github-id ID]
                           [--track 10min_16mb] [--artifact artifact.pcll]
                           [--blurb TEXT] [--date DATE] [--out FOLDER]

One log per seed, all of the same source, settings, versions and hardware. Written is
records/track_TRACK/DATE_NAME/:
    train_gpt.py        the source text that the logs begin with
    train_seedN.log     a copy of each log
    submission.json     mean and standard deviation over the seeds, and each seed's results
    README.md           the same as a table, the method in words, and the command of each seed
    requirements.txt    the versions that the logs state
    artifact.pcll       with --artifact
The score is that of a log's one final line, which its headline repeats; what a log labels NOT LEGAL
is never a score. The README says where a run was resumed, and lists hardware, versions, settings
and data in turn where they changed. The track 10min_16mb is for runs on 8 H100 GPUs within 10
minutes of training, calibration included, and 10 of evaluation. Nothing of a log is executed or
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
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # imports start at the root
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from records.check import CAP_BYTES, LIMIT_S, STEP_S, WORLD_SIZE
from records.files import open_regular
from records.logs import ARTIFACT, FINAL_LINE, LOG_BYTES, PATTERNS, read_lines, stated_value
from records.report import STOPPED, UnusableInput

TRACKS = ("non_record_16mb", "10min_16mb")
RULE = "=" * 80  # the line between the source and the lines of the run
PER_RUN = ("seed", "run_id", "artifact_path", "checkpoint_every", "resume", "changed")
SEGMENT = (  # versions, GPU, settings and world size: how a run begins, and goes on when resumed
    r"^(python .+) GPU (.+)\n((?:\w+:.*\n)*)preset:\S+ world_size:([1-9]\d{0,5}) "
)
STEP = re.compile(r"step:(\d{1,19})/\d+ train_loss:(\d{1,39}\.\d{1,15}) ")
FINAL = "final_pcll_ttt_exact or final_pcll_sliding_exact"


# ---- Logs


@dataclass(frozen=True)
class Segment:
    """What a run states when it begins, and each time that it is resumed."""

    versions: dict[str, str]
    gpu: str  # "NVIDIA H100 80GB HBM3"
    settings: dict[str, str]  # name -> value
    world_size: int
    resumed: list[str]  # the step, where it is no beginning
    train_data: list[str]  # "NAME train_shards:3 tokens:28365024"; older logs do not say


@dataclass(frozen=True)
class Run:
    """What one log states; of several segments in turn: "1 x CPU, then 8 x NVIDIA H100"."""

    path: Path
    data: bytes  # the whole log
    source: str
    text: str  # the lines that follow the source
    segments: list[Segment]
    hardware: str
    train_data: str
    versions: dict[str, str]
    settings: dict[str, str]  # and "changed": those that the preset has otherwise
    losses: dict[int, float]  # of the training, by step
    kind: str  # of its score: "final_pcll_ttt_exact" or "final_pcll_sliding_exact"
    scored: tuple[int, int]  # tokens and bytes of text
    code_bytes: int
    results: dict[str, float | int | str]  # as submission.json has them of each seed

    @property
    def seed(self) -> int:
        return self.count("seed")

    @property
    def changed(self) -> list[str]:
        """The settings that the preset has otherwise."""
        names = re.findall(r"(?:^| )([A-Z][A-Z0-9_]*)=", self.setting("changed"))
        return [name.lower() for name in dict.fromkeys(names)]

    def setting(self, name: str) -> str:
        if name not in self.settings:
            raise UnusableInput(f"{self.path} does not state the setting {name} as name:value.")
        return self.settings[name]

    def count(self, name: str) -> int:
        """A setting that is one whole number."""
        if not re.fullmatch(r"\d{1,19}", self.setting(name)):
            raise UnusableInput(f"{self.path} does not state one number as its setting {name}.")
        return int(self.setting(name))


def in_turn(values: Iterable[str]) -> str:
    """A value of each segment, once it changes."""
    return ", then ".join(value for value, _ in groupby(values))


def all_in_turn(tables: list[dict[str, str]]) -> dict[str, str]:
    """The same for each name."""
    return {name: in_turn(table.get(name, "?") for table in tables) for name in tables[-1]}


def read_run(path: Path) -> Run:
    """Reads the log of a finished run of train_gpt.py; UnusableInput says what it lacks."""
    data = read_file(path, LOG_BYTES)
    source, rows = split_log(path, data)
    text = "\n".join(rows)
    parts = re.split(SEGMENT, text, flags=re.M)  # four facts and all that follows, by turns
    segments = [read_segment(*parts[i : i + 5]) for i in range(1, len(parts), 5)]
    last = parts[-1].split("\n")
    finals = [row for row in last if FINAL_LINE.match(row)]
    found = {
        "versions, settings and world_size": segments,
        "train_loss": list(filter(None, map(STEP.match, rows))),
        "train_time": stated("train", rows),
        "calibration_time": stated("calibration", last),
        "artifact_sha256": list(filter(None, map(ARTIFACT.match, last))),
        "Code size": stated("code_bytes", last),
        "Serialized model pcll": stated("model_bytes", last),
        FINAL: finals,
        "eval_time": stated("eval", finals),
        "eval_total_time": stated("eval_total", last),
        "headline": [row for row in last if row.startswith("headline: ")],
    }
    if lacking := [what for what, lines in found.items() if not lines]:
        raise UnusableInput(
            f"{path} has no line with {lacking[0]}: interrupted, or another script's."
        )
    if len(finals) > 1:
        raise UnusableInput(f"{path} has {len(finals)} final lines, but a run has one score.")
    if found["headline"] != [f"headline: {finals[0]}"]:
        raise UnusableInput(f"{path} does not end with a headline that repeats its final line.")

    loss, bpb, tokens, size = map(float, FINAL_LINE.match(finals[0]).groups())
    check_score(path, loss, bpb, tokens, size)
    code_bytes = found["Code size"][-1]
    own_bytes = len(source.encode())
    if code_bytes != own_bytes:
        raise UnusableInput(f"{path} states {code_bytes} bytes, but its source has {own_bytes}.")
    artifact_bytes = found["Serialized model pcll"][-1]
    losses = {int(step[1]): float(step[2]) for step in found["train_loss"]}
    return Run(
        path=path,
        data=data,
        source=source,
        text=text,
        segments=segments,
        hardware=in_turn(f"{segment.world_size} x {segment.gpu}" for segment in segments),
        train_data=in_turn(data for segment in segments for data in segment.train_data),
        versions=all_in_turn([segment.versions for segment in segments]),
        settings=all_in_turn([segment.settings for segment in segments]),
        losses=losses,
        kind=finals[0].partition(" ")[0],
        scored=(int(tokens), int(size)),
        code_bytes=code_bytes,
        results=dict(
            val_bpb=bpb,
            val_loss=loss,
            bytes_total=code_bytes + artifact_bytes,
            artifact_bytes=artifact_bytes,
            artifact_sha256=found["artifact_sha256"][-1][1],
            steps=max(losses),
            train_seconds=max(found["train_time"]),
            calibration_seconds=sum(found["calibration_time"]),
            eval_seconds=found["eval_time"][0],
            eval_total_seconds=found["eval_total_time"][-1],
        ),
    )


def stated(fact: str, rows: list[str]) -> list:
    """What lines state by one of the patterns of records/logs.py."""
    return [stated_value(found) for row in rows if (found := PATTERNS[fact].search(row))]


def read_file(path: Path, limit: int) -> bytes:
    """UnusableInput for more than so many bytes, OSError for what is no regular file."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnusableInput(f"{path} has more than {limit} bytes.")
    return data


def split_log(path: Path, data: bytes) -> tuple[str, list[str]]:
    """The source that a log begins with, and the lines of the run, without colour codes, prefixes
    of a launcher, and the source where a later segment repeats it."""
    text = data.decode(errors="replace")
    source, rule, _ = text.partition(f"\n{RULE}\n")
    if not rule or b"\0" in data or text.encode() != data:
        raise UnusableInput(f"{path} is not a log that begins with its run's source and 80 '='.")
    rows = [row.text for row in read_lines(path)]
    begin = rows.index(RULE) + 1
    embedded = "\n".join(rows[:begin])
    lines = "\n".join(rows[begin:]).replace(f"\n{embedded}\n", "\n").split("\n")
    if RULE in lines:
        raise UnusableInput(f"{path} has runs of two sources.")
    return source, lines


def read_segment(versions: str, gpu: str, settings: str, world_size: str, rest: str) -> Segment:
    words = versions.split()
    return Segment(
        versions=dict(zip(words[::2], words[1::2], strict=False)),
        gpu=gpu.replace("none", "CPU"),
        settings=dict(re.findall(r"^(\w+):(.*)$", settings, re.M)),
        world_size=int(world_size),
        resumed=re.findall(r"^resumed from .+ at step (\d{1,19})$", rest, re.M),
        train_data=re.findall("^train_loader:dataset:(.+)$", rest, re.M),
    )


def check_score(path: Path, loss: float, bpb: float, tokens: float, size: float) -> None:
    """UnusableInput unless the numbers of a final line are of some text, and agree."""
    if not tokens or not size:
        raise UnusableInput(f"{path} states no text that could be scored.")
    made = loss / math.log(2) * tokens / size
    if abs(made - bpb) >= 1e-6:
        raise UnusableInput(f"{path} states val_bpb:{bpb:.8f}, its loss and text make {made:.8f}.")


def check_runs(runs: list[Run], track: str) -> None:
    """UnusableInput unless the runs differ in their seed alone, and keep the limits."""
    for before, run in zip(runs, runs[1:], strict=False):
        if before.seed == run.seed:
            raise UnusableInput(f"{before.path} and {run.path} are both of seed {run.seed}.")
    if len({run.results["artifact_sha256"] for run in runs}) < len(runs):
        raise UnusableInput("Logs of several seeds name the same artifact: one is a copy.")

    first = shared(runs[0])
    for run in runs:
        own = shared(run)
        if differ := [what for what in first | own if first.get(what) != own.get(what)]:
            names = ", ".join(differ[:4])
            raise UnusableInput(f"{runs[0].path}, {run.path} differ beyond the seed: {names}.")
        total = run.results["bytes_total"]
        if total > CAP_BYTES:
            raise UnusableInput(f"{run.path} states {total} bytes in all, above {CAP_BYTES}.")
        if track == "10min_16mb":
            check_track(run)


def shared(run: Run) -> dict:
    """What runs have in common that differ in their seed alone."""
    return {
        "source": run.source,
        "versions": run.versions,
        "hardware": run.hardware,
        "training data": run.train_data,
        "final line": run.kind,
        "validation text": run.scored,
        **{name.upper(): value for name, value in run.settings.items() if name not in PER_RUN},
    }


def check_track(run: Run) -> None:
    """UnusableInput unless the run could be of the 10-minute track."""
    said = f"{run.path}: the track 10min_16mb"
    if any(s.world_size != WORLD_SIZE or "H100" not in s.gpu for s in run.segments):
        raise UnusableInput(
            f"{said} is for runs on {WORLD_SIZE} H100 GPUs, not on {run.hardware}; "
            "--track non_record_16mb is for all others."
        )
    if before := run.segments[0].resumed:
        raise UnusableInput(f"{said} needs all steps in one log, not from {before[0]} on.")
    train = run.results["train_seconds"]
    calibration = run.results["calibration_seconds"]
    evaluation = max(run.results["eval_total_seconds"], run.results["eval_seconds"])
    if train + calibration > LIMIT_S + STEP_S or evaluation > LIMIT_S or not train:
        raise UnusableInput(
            f"{said} allows {LIMIT_S:.0f} s for training with calibration, and for evaluation, not "
            f"{train:.1f} s with {calibration:.1f} s, and {evaluation:.1f} s."
        )


# ---- The folder's files


def protocol(run: Run) -> str:
    s = run.setting
    window = (
        f"sliding window of {s('train_seq_len')} tokens, stride {s('eval_stride')}, each token "
        "scored once"
    )
    if run.kind == "final_pcll_sliding_exact":
        return f"fixed weights: {window}"
    if s("ttt_protocol") == "per_document":
        return (
            f"adaptation per document: each by itself, in windows of {s('train_seq_len')} tokens; "
            f"{s('document_tokens')} at a time are scored once, then learned from by matrices of "
            f"rank {s('document_rank')}"
        )
    return (
        f"score-first adaptation: {window}; chunks of {s('ttt_chunk_tokens')} tokens, learned from "
        f"({s('ttt_epochs')} epochs) only once scored"
    )


def command(run: Run) -> str:
    """What to type to repeat the run, with the settings of its last segment."""
    last = run.segments[-1]
    names = ["seed", "preset", *run.changed]
    words = [f"{name.upper()}={shlex.quote(last.settings[name])}" for name in names]
    launcher = "python"
    if last.world_size > 1:
        launcher = f"torchrun --standalone --nproc_per_node={last.world_size}"
    return " ".join([*words, launcher, "train_gpt.py"])


def summary(run: Run) -> str:
    """The preset and what differs from it, in a sentence's words."""
    preset = f"Preset {run.setting('preset')}"
    changed = ", ".join(f"{name}={run.setting(name)}" for name in run.changed)
    return f"{preset} with {changed}" if changed else preset


CODECS = {
    "trellis": "matrices and the token embedding by trellis-coded quantization with error "
    "feedback, step sizes from the Fisher information of training tokens, and interleaved rANS",
    "huffman": "matrices by k-means codebooks and one canonical Huffman code, the token embedding "
    "in float16",
}
OPTIMIZERS = {"normuon": "NorMuon", "muon_rows": "Muon with rows scaled to one norm"}
PARTS = {
    "bigram_buckets": "a bigram hash table",
    "smear_gate": "a smear gate",
    "value_residual": "value residual",
    "gated_attention": "gated attention",
    "skips": "{} U-Net skips",
    "ln_scale": "inputs scaled by depth",
    "xsa_last_n": "exclusive self-attention in the last {} layers",
    "parallel_last_n": "attention beside the MLP in the last {} layers",
}  # by the setting that turns them on


def method(run: Run) -> list[str]:
    """What was trained, packed and scored, and how, in items of a list."""
    s = run.setting
    off = ("0", "0.0", "off", "False")
    values = {name: run.settings.get(name, "0") for name in PARTS}
    parts = [PARTS[name].format(value) for name, value in values.items() if value not in off]
    if s("loop_passes") != "1":
        parts.append(f"blocks {s('loop_first')} to {s('loop_last')} run {s('loop_passes')} times")
    cap = s("max_wallclock_seconds")
    within = "" if cap in off else f" at most, within {cap} s"
    average = f"their exponential moving average with decay {s('ema_decay')}"
    exported = "those of the last step" if s("ema_decay") in off else average
    return [
        f"- Network: {s('num_layers')} layers of width {s('model_dim')}, {s('num_heads')} query "
        f"and {s('num_kv_heads')} key/value heads of which {s('rope_dims')} dimensions rotate, "
        f"MLPs of {s('mlp_hidden')}, a vocabulary of {s('vocab_size')} tokens, sequences of "
        f"{s('train_seq_len')} tokens; with {', '.join(parts) or 'no further parts'}.",
        f"- Training: {s('iterations')} steps of {s('train_batch_tokens')} tokens{within}, "
        f"matrices by {OPTIMIZERS.get(s('matrix_optimizer'), s('matrix_optimizer'))}, all else by "
        f"AdamW; the exported weights are {exported}.",
        f"- Export: {CODECS.get(s('codec'), s('codec'))}; everything else in float16; one "
        "zstd-22 frame. The score is that of the weights read back from this file.",
        f"- Evaluation: {protocol(run)}.",
    ]


def submission(runs: list[Run], args: argparse.Namespace) -> dict:
    """The fields of submission.json."""
    run = runs[0]
    results = {str(run.seed): run.results for run in runs}
    columns = {name: [row[name] for row in results.values()] for name in run.results}
    return dict(
        **{name: vars(args)[name] for name in ("name", "author", "github_id", "date", "track")},
        blurb=args.blurb or summary(run),
        val_bpb=round(mean(columns["val_bpb"]), 8),
        val_bpb_std=round(stdev(columns["val_bpb"]), 8) if len(runs) > 1 else None,
        val_loss=round(mean(columns["val_loss"]), 8),
        bytes_total=max(columns["bytes_total"]),
        bytes_code=run.code_bytes,
        artifact_bytes=max(columns["artifact_bytes"]),
        seeds=[run.seed for run in runs],
        seed_results=results,
        hardware=run.hardware,
        versions=run.versions,
        protocol=protocol(run),
        val_tokens=run.scored[0],
        val_bytes=run.scored[1],
    )


ROW = (
    "| {seed} | {val_bpb:.5f} | {val_loss:.5f} | {steps} | {train_seconds:.1f} | "
    "{calibration_seconds:.1f} | {eval_seconds:.1f} | {artifact_bytes:,} | {bytes_total:,} |"
)


def resumes(run: Run) -> str:
    """At which steps a run was resumed, and what its log does not show; empty if it was not."""
    steps = [step for segment in run.segments for step in segment.resumed]
    said = f"resumed at step {', then '.join(steps)}" if steps else ""
    if run.segments[0].resumed:
        said += f"; the steps before {steps[0]} are of another log, which is not here"
    return said


def readme(runs: list[Run], table: dict) -> str:
    spread = f", standard deviation {table['val_bpb_std']:.5f}" if len(runs) > 1 else ""
    versions = ", ".join(" ".join(pair) for pair in table["versions"].items())
    rows = [
        "| seed | val_bpb | val_loss | steps | training, s | calibration, s | evaluation, s "
        "| artifact bytes | with code |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(ROW.format(seed=seed, **row) for seed, row in table["seed_results"].items()),
    ]
    facts = [
        f"- Scored: {table['val_tokens']:,} tokens, {table['val_bytes']:,} bytes of text.",
        f"- Hardware: {table['hardware']}; {versions}.",
        "- Calibration counts as training; the time of evaluation is that of the scored pass.",
    ]
    if runs[0].train_data:
        facts.append(f"- Training data: {runs[0].train_data}.")
    facts += [f"- Seed {run.seed}: {resumes(run)}." for run in runs if resumes(run)]
    facts += [
        f"- Resumed with another setting: {name}={value}."
        for name, value in runs[0].settings.items()
        if ", then " in value and name not in PER_RUN
    ]
    facts += [
        f"- Seed {run.seed}, not a score: {line}"
        for run in runs
        for line in re.findall(r"^NOT LEGAL.* val_loss:.*", run.text, re.M)
    ]
    blocks = [
        f"# {table['name']}",
        table["blurb"],
        f"**val_bpb {table['val_bpb']:.5f}**, seeds: {len(runs)}{spread}; at most "
        f"{table['bytes_total']:,} bytes, {table['bytes_code']:,} of them code.",
        "\n".join(rows),
        "\n".join(facts),
        "## Method",
        "\n".join(method(runs[0])),
        "## Run",
        "\n".join(f"    {command(run)}" for run in runs),
    ]
    return "\n\n".join(blocks) + "\n"


def requirements(run: Run) -> str:
    """What train_gpt.py imports, in the versions of the run where its log states them."""
    names = ("torch", "numpy", "zstandard", "sentencepiece")
    versions = run.segments[-1].versions
    pins = {name: f"=={versions[name].partition('+')[0]}" for name in names if name in versions}
    return "".join(f"{name}{pins.get(name, '')}\n" for name in names)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes a folder so that it is complete or not there, whatever happens in between."""
    home = next(parent for parent in folder.parents if parent.exists())
    with TemporaryDirectory(dir=home) as place:
        draft = Path(place, folder.name)
        draft.mkdir()
        for name, data in files.items():
            (draft / name).write_bytes(data)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(folder)


def record_date(given: str, logs: list[Path]) -> str:
    """The date that was given, or that of the newest log; UnusableInput if there is no such day."""
    day = given or date.fromtimestamp(max(path.stat().st_mtime for path in logs)).isoformat()
    with contextlib.suppress(ValueError):
        if date.fromisoformat(day).isoformat() == day:
            return day
    raise UnusableInput(f"--date must be a day as YYYY-MM-DD, not {given[:80]!r}.")


def read_artifact(path: Path, runs: list[Run]) -> bytes:
    """The artifact; UnusableInput unless its sha256 is that of one run."""
    data = read_file(path, CAP_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    named = [run.results["artifact_sha256"] for run in runs]
    if sha256 not in named:
        raise UnusableInput(f"{path}, sha256 {sha256}, is no run's artifact: {', '.join(named)}.")
    return data


# ---- The command line


def pack(args: argparse.Namespace) -> str:
    """Writes the record folder; returns what to say about it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", args.name):
        raise UnusableInput(f"NAME must be up to 80 letters, digits and _.+-, not {args.name!r}.")
    if not args.author.strip():
        raise UnusableInput("--author is missing: submission.json has to say whose entry it is.")
    if re.search("[\ud800-\udfff]", args.author + args.github_id + args.blurb):
        raise UnusableInput("--author, --github-id and --blurb must be text in UTF-8.")
    runs = sorted(map(read_run, args.logs), key=lambda run: run.seed)
    check_runs(runs, args.track)
    args.date = record_date(args.date, args.logs)

    folder = args.out / f"track_{args.track}" / f"{args.date}_{args.name}"
    if os.path.lexists(folder):
        raise UnusableInput(f"{folder} is there already; remove it, or choose another NAME.")
    table = submission(runs, args)
    files = {
        "train_gpt.py": runs[0].source.encode(),
        "README.md": readme(runs, table).encode(),
        "submission.json": (json.dumps(table, indent=2) + "\n").encode(),
        "requirements.txt": requirements(runs[0]).encode(),
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


def write_file(path: Path, data: bytes) -> None:
    """Writes a file so that it is whole or not there, whatever stops it."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise UnusableInput(f"{path} is there and is no regular file.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException as error:  # a Ctrl-C, too
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def run_tool(program: str, work: Callable[[], str]) -> int:
    """Prints what the work returns; or, after an error, its one sentence. The exit code."""
    try:
        said = work()
        if sys.stdout:
            sys.stdout.buffer.write(os.fsencode(f"{said}\n"))  # paths as they are
            sys.stdout.flush()
        return 0
    except UnusableInput as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or 'stdout'}: {error.strerror}."
    except KeyboardInterrupt:
        print(f"{program}: {STOPPED}", file=sys.stderr)
        return 130
    print(f"{program}: {problem}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("pack.py", description="Makes a record folder of runs' logs.")
    add = parser.add_argument
    add("name", metavar="NAME", help="of the folder, after its date")
    add("logs", metavar="LOG", nargs="+", type=Path, help="the log of a finished run, one per seed")
    add("--track", choices=TRACKS, default=TRACKS[0], help="default: %(default)s")
    add("--author", default="", help="your name, or your team's (required)")
    add("--github-id", default="", help="your GitHub account")
    add("--blurb", default="", help="the entry in a sentence (default: its settings)")
    add("--artifact", type=Path, metavar="FILE", help="puts a run's artifact into the folder")
    add("--date", default="", help="YYYY-MM-DD (default: that of the newest log file)")
    home = Path(__file__).resolve().parent
    add("--out", type=Path, default=home, metavar="FOLDER", help="default: that of pack.py")
    args = parser.parse_args(argv)
    return run_tool("pack.py", lambda: pack(args))


if __name__ == "__main__":
    sys.exit(main())
