"""One short run from the data to a verified artifact: the seconds and the score of every stage.

    python tests/bench/whole.py --work FOLDER [--val-tokens N] [--seconds N] [VARIABLE=VALUE ...]

It runs train_gpt.py in FOLDER on the training shards of DATA_PATH and on the first N tokens of its
validation split (262,144 unless told otherwise), and then verify.py on the artifact. Settings are
train_gpt.py's environment variables. What both print is passed on; every line that states a figure
is followed by a line "name, unit<TAB>value", so that a run that is cut loses only the rest. With
--seconds train_gpt.py is ended after so long, and the artifact verified if there is one by then.
"""

import argparse
import collections
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import train_gpt  # noqa: E402

HEADER = 256  # int32 words before a shard's tokens; the third is their number


@dataclass(frozen=True)
class Figure:
    """A number that a line of the log states."""

    pattern: str  # its first group is the number
    name: str
    factor: float = 1.0


STEP = "step in training, ms"
FIGURES = (
    Figure(r"^warm-up and compilation: ([\d.]+) s", "warm-up and compilation, s"),
    Figure(r"^warm-up and compilation: .* (\d+) graphs", "graphs compiled"),
    Figure(r"; ([\d.]+) s of the cap are kept", "reserved for calibration, s"),
    Figure(r"^step:(\d+)/\d+ train_loss", "steps"),
    Figure(r"^step:.* train_loss:([\d.]+)", "training loss, nats"),
    Figure(r"^step:.* train_time:(\d+)ms", "training, s", 1e-3),
    Figure(r"^step:.* step_avg:([\d.]+)ms", STEP),
    Figure(r"^calibration_time:(\d+)ms", "calibration, s", 1e-3),
    Figure(r"^Serialized model pcll: (\d+) bytes", "artifact, bytes"),
    Figure(r"^final_pcll_ttt_exact .*val_bpb:([\d.]+)", "after adaptation, bpb"),
    Figure(r"^final_pcll_sliding_exact .*val_bpb:([\d.]+)", "after export, sliding window, bpb"),
    Figure(r"^eval_total_time:(\d+)ms", "evaluation of the headline, s", 1e-3),
)
SCORE = re.compile(
    r"^  (\S.*?) +([\d.]+) bpb +([\d.]+) s(?: diagnostic)?$"
)  # of the table at the end of the log
STAGES = {  # what a line begins with after which the log is about something else
    "warm-up and compilation": "in training",
    "calibration_time": "in evaluation",
}
CHECK = re.compile(r"^Check it: python (verify\.py .*)")


def show(figure: str, value: float) -> None:
    """One line of the table that run_on_gpu.sh collects."""
    text = f"{value:.6f}".rstrip("0").rstrip(".") if "bpb" in figure else f"{value:.10g}"
    print(f"{figure}\t{text}", flush=True)


def lines_of(
    command: list, folder: Path, environment: dict[str, str], limit: float = 3600.0
) -> Iterator[str]:
    """The lines that a command prints, passed on while it runs; then "exit N", its status. After
    `limit` seconds it is ended."""
    child = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(limit, child.kill)
    timer.start()
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            yield line.rstrip("\n")
        yield f"exit {child.wait()}"
    finally:
        timer.cancel()
        child.kill()


def show_figures(line: str, tokens: int = 0, figures: tuple[Figure, ...] = FIGURES) -> None:
    """The figures of a line; with the tokens of a step also how many a second that are."""
    for figure in figures:
        if found := re.search(figure.pattern, line):
            show(figure.name, figure.factor * float(found[1]))
            if figure.name == STEP:
                show("tokens a second in training", round(1000 * tokens / float(found[1])))
    if found := SCORE.search(line):
        show(f"{found[1]}, bpb", float(found[2]))
        show(f"{found[1]}, s", float(found[3]))


def make_demo_data(s: train_gpt.Settings) -> None:
    """Writes the demo's data if they are to be used and not there."""
    if s.preset == "demo":
        train_gpt.make_demo_data(s)


def cut_validation(data: Path, folder: Path, count: int) -> None:
    """A folder of data with the same training shards and the first `count` validation tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in data.glob("fineweb_train_*.bin"):
        (folder / shard.name).symlink_to(shard.resolve())
    shard = sorted(data.glob("fineweb_val_*.bin"))[0]
    words = np.fromfile(shard, dtype="<i4", count=HEADER)
    tokens = np.fromfile(shard, dtype="<u2", count=count, offset=words.nbytes)
    words[2] = len(tokens)
    (folder / shard.name).write_bytes(words.tobytes() + tokens.tobytes())


def train(
    work: Path, environment: dict[str, str], limit: float, tokens: int
) -> tuple[int, str, str]:
    """The exit status of train_gpt.py, its device, and the check that it recommends; a step has so
    many tokens."""
    began = time.monotonic()
    stage = "before training"
    device = "cpu"
    check = ""
    status = 1
    recompilations = collections.Counter()
    for line in lines_of([sys.executable, ROOT / "train_gpt.py"], work, environment, limit):
        if line.startswith("preset:"):
            show("imports, data and model, s", round(time.monotonic() - began, 2))
        for start, following in STAGES.items():
            if line.startswith(start):
                stage = following
        recompilations[stage] += "Recompiling function" in line
        show_figures(line, tokens)
        if found := re.search(r"^preset:.* device:(\w+)", line):
            device = found[1]
        if found := CHECK.search(line):
            check = found[1]
        if found := re.fullmatch(r"exit (-?\d+)", line):
            status = int(found[1])
    for stage in STAGES.values():
        show(f"recompilations {stage}", recompilations[stage])
    show("train_gpt.py in all, s", round(time.monotonic() - began, 2))
    show("train_gpt.py, exit status", status)
    return status, device, check


def verify(check: str, work: Path, environment: dict[str, str], device: str) -> int:
    """The exit status of verify.py, with the arguments that train_gpt.py recommends."""
    began = time.monotonic()
    findings = ""
    status = 1
    words = [ROOT / "verify.py", *shlex.split(check)[1:], "--code", ROOT / "train_gpt.py"]
    command = [sys.executable, *words, "--device", device, "--json"]
    for line in lines_of(command, work, environment):
        if found := re.fullmatch(r"exit (-?\d+)", line):
            status = int(found[1])
        else:
            findings += line
    show("verify.py, s", round(time.monotonic() - began, 2))
    show("verify.py, exit status", status)
    for finding in findings_of(findings):
        if finding["verdict"] == "FAILED":
            print(f"verify.py, FAILED {finding['check']}\t{finding['detail']}")
        if finding.get("unit") == "bits/byte":
            show(f"verify.py, {finding['check']}, bpb", float(finding["number"]))
    return status


def findings_of(text: str) -> list[dict]:
    """The findings that verify.py printed for machines, after its lines of progress; none if it
    printed something else."""
    try:
        found = json.loads(text[text.find("{") :])
    except ValueError:
        return []
    return found["findings"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that it writes")
    parser.add_argument("--val-tokens", type=int, default=262_144, metavar="N")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for train_gpt.py at most")
    parser.add_argument("settings", nargs="*", metavar="VARIABLE=VALUE")
    args = parser.parse_args()
    work = args.work.resolve()
    environment = dict(os.environ) | dict(item.split("=", 1) for item in args.settings)
    try:
        s = train_gpt.load_settings(environment)
        make_demo_data(s)
        cut_validation(Path(s.data_path), work / "data", args.val_tokens)
    except (train_gpt.UserError, OSError) as error:
        print(train_gpt.user_message(error))
        return 2

    environment |= {
        "DATA_PATH": str(work / "data"),
        "TOKENIZER_PATH": str(Path(s.tokenizer_path).resolve()),
        "ARTIFACT_PATH": str(work / "artifact.pcll"),
        "TORCH_LOGS": "recompiles",  # each is a line of the log
    }
    status, device, check = train(work, environment, args.seconds, s.train_batch_tokens)
    artifact = environment["ARTIFACT_PATH"]
    if not check and Path(artifact).exists():
        words = [artifact, "--data", environment["DATA_PATH"]]
        check = shlex.join(["verify.py", *words, "--tokenizer", environment["TOKENIZER_PATH"]])
    return (verify(check, work, environment, device) if check else 0) or status


if __name__ == "__main__":
    sys.exit(main())
