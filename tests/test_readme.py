"""README.md: its table of settings is the script's, and each of its commands works for someone who
is new to it.

python tests/test_readme.py         writes the table of settings anew
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":  # python -P leaves the script's folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from conftest import ROOT
from test_pack import ON_8_GPUS, edit, seeded, tiny_run
from test_run import SMALL

import train_gpt

README = ROOT / "README.md"
MEND = "python tests/test_readme.py"
BEGIN, END = f"<!-- settings: begin, written by {MEND} -->\n", "<!-- settings: end -->\n"


# ---------------------------------------------------------------- the table of settings


SECTIONS = {  # by the first setting of each
    "PRESET": "Run",
    "VOCAB_SIZE": "Model",
    "SEED": "Training",
    "CALIBRATION_TOKENS": "Export",
    "EVAL_STRIDE": "Evaluation",
}


def settings_rows() -> dict[str, list[tuple[str, str, str, str]]]:
    """(variable, default, what, source) of each setting, by its section."""
    sections = {}
    for name, member in train_gpt.FIELDS.items():
        if name in SECTIONS:
            rows = sections[SECTIONS[name]] = []
        rows.append(settings_row(name, member))
    return sections


def settings_row(name: str, member: dataclasses.Field) -> tuple[str, str, str, str]:
    about = member.metadata
    value = int(member.default) if member.type is bool else member.default
    what = re.sub(r"([|*<])", r"\\\1", about["text"])
    if about["choices"] and member.type is not bool:
        what += f" ({', '.join(f'`{choice}`' for choice in about['choices'])})"
    default = "empty" if value == "" else f"`{value}`"
    return f"`{name}`", default, what, about["source"]


def settings_section() -> str:
    sections = settings_rows()
    lines = [
        f"<details><summary>All {len(train_gpt.FIELDS)} environment variables</summary>",
        "",
        "Source of a default: the number of an entry (532 is the one rebuilt here), *base* for "
        "the challenge's baseline script, *challenge* for its rules, or *ours*. A preset changes "
        "some of them.",
    ]
    lines += ["", "| variable | default | what | source |", "| --- | --- | --- | --- |"]
    for section, rows in sections.items():
        lines.append(f"| **{section}** | | | |")
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", "</details>", ""])


def with_settings(readme: str) -> str:
    """The README with the script's settings between its two markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md lacks the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + settings_section() + end + after


def test_settings_are_those_of_the_script():
    stale = f"README.md's table of settings is not that of train_gpt.py: {MEND} writes it anew."
    readme = README.read_text()
    assert with_settings(readme) == readme, stale


def test_no_setting_is_left_out():
    sections = settings_rows()
    assert list(sections) == ["Run", "Model", "Training", "Export", "Evaluation"]
    rows = {row[0].strip("`"): row for section in sections.values() for row in section}
    assert [*rows] == [*train_gpt.FIELDS]
    assert rows["LN_SCALE"][1] == "`1`" and rows["RUN_ID"][1] == "empty"
    assert rows["LN_SCALE"][2].endswith("1/sqrt(i+1)")
    assert rows["MATRIX_LR"] == ("`MATRIX_LR`", "`0.03`", "learning rate of the matrices", "532")
    assert rows["FIT"][2].endswith(" (`shrink`, `fill`)")
    assert rows["DATA_PATH"][2] == r"folder of fineweb_{train,val}_\*.bin"


# ---------------------------------------------------------------- commands


@dataclasses.dataclass(frozen=True)
class Trial:
    """How a command of the README is tried in a copy of the repository; a trial that is not slow
    finds a run's artifact, data and logs there."""

    slow: bool = False
    venv: bool = False  # in a new virtual environment
    environment: dict = dataclasses.field(default_factory=dict)
    begins: str = ""  # how the output begins where the command finds a fault


PART = "FAILED — split"  # the demo scores 2,999 tokens, which are no record

TRIALS = {  # what a command begins with -> its trial
    "pip install -r requirements.txt && PRESET=demo": Trial(slow=True, venv=True),
    "pip install -r requirements.txt -r requirements-dev.txt": Trial(slow=True, venv=True),
    "PRESET=demo python train_gpt.py": Trial(slow=True),
    "torchrun --standalone --nproc_per_node=8 train_gpt.py": Trial(slow=True, environment=SMALL),
    "python tests/bench/": Trial(slow=True),
    "python verify.py artifact.pcll": Trial(),
    "python verify.py records/": Trial(begins=PART),
    "python records/check.py": Trial(begins=PART),
    "python decode_artifact.py artifact.pcll": Trial(),
    "python records/pack.py": Trial(),
    "python records/plot.py": Trial(),
    "python records/wrap.py": Trial(),
    "python tests/test_readme.py": Trial(),
}
PLACEHOLDERS = {
    "DIR": "data/demo",
    "FILE": "data/demo/bpe_1024.model",
    "LOG": "logs/A.txt",
    "TRACK": "10min_16mb",
    "NAME": "another",
    "DATE_name": "2026-03-01_entry",
    "FOLDER": "records/track_10min_16mb/2026-03-01_entry",
    "ID": "me",
}


def commands(text: str) -> list[str]:
    """The lines of the shell blocks of a README, fenced or indented by four; what is no command
    needs a fence that names another language."""
    text, found = re.sub(r"\\\n *", "", text), []

    def take(block: re.Match) -> str:
        if block[1] in ("", "sh", "bash", "shell", "console"):
            found.extend(block[2].splitlines())
        return ""

    text = re.sub(r"(?ms)^```(\w*)\n(.*?)^```$", take, text)
    found += re.findall(r"(?m)^ {4}(.+)$", text)
    return [
        line
        for line in (line.removeprefix("$ ").strip() for line in found)
        if line and line[0] != "#"
    ]


def claims(command: str) -> list[str]:
    return [prefix for prefix in TRIALS if command.startswith(prefix)]


def filled(command: str, home: Path) -> str:
    """The command with every option that it offers in brackets, and its placeholders filled in."""
    log = (home / "logs/test.txt").read_text() if (home / "logs").exists() else ""
    score = r"^  after export, sliding window +([\d.]+) bpb"
    if "--ttt" in command:
        score = r"^final_pcll_ttt_exact .*val_bpb:([\d.]+)"
    values = PLACEHOLDERS | {"BPB": "".join(re.findall(score, log, re.M))}
    command = re.sub(r"[\[\]]| \.\.\.", "", command)
    return re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[1]], command)


def copy_repository(folder: Path) -> Path:
    """What git would commit, as it is in the working tree."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("needs a git checkout, to know which files belong to the repository")
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def home_after_a_run(tmp_path_factory) -> Path:
    """A copy of the repository after a run, with logs A and B of two seeds and a record folder of
    them."""
    tiny = tiny_run(tmp_path_factory.getbasetemp())
    home = copy_repository(tmp_path_factory.mktemp("repository"))
    for name in ("data", "logs", "artifact.pcll"):
        (shutil.copytree if (tiny / name).is_dir() else shutil.copy)(tiny / name, home / name)
    log = edit((home / "logs/test.txt").read_text(), *ON_8_GPUS)
    (home / "logs/A.txt").write_text(log)
    (home / "logs/B.txt").write_text(seeded(log, 42))
    words = """records/pack.py entry logs/A.txt logs/B.txt --artifact artifact.pcll
        --track 10min_16mb --date 2026-03-01 --author me""".split()
    subprocess.run([sys.executable, *words], cwd=home, check=True)
    return home


def marked(command: str):
    slow = any(TRIALS[prefix].slow for prefix in claims(command))
    return pytest.param(command, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("command", [*map(marked, dict.fromkeys(commands(README.read_text())))])
def test_command(command, request, tmp_path):
    assert len(claims(command)) == 1, (
        f"Exactly one entry of TRIALS must begin this command of README.md: {command}"
    )
    trial = TRIALS[claims(command)[0]]
    home = copy_repository(tmp_path) if trial.slow else request.getfixturevalue("home_after_a_run")
    programs = Path(sys.executable).parent
    if trial.venv:
        programs = tmp_path / ".venv/bin"
        subprocess.run([sys.executable, "-m", "venv", programs.parent], check=True)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | trial.environment
    done = subprocess.run(
        filled(command, home), shell=True, cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == bool(trial.begins), done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith(trial.begins), done.stdout[-2000:] + done.stderr[-2000:]


def test_commands_are_found_and_claimed():
    text = "Text\n\n    a \\\n        b\n\n```bash\n# comment\n$ c\n```\n\n"
    text += "```json\nd\n```\n- list\n  e\n"
    assert commands(text) == ["c", "a b"]
    assert claims("python unknown.py") == []
    for prefix in TRIALS:
        assert claims(prefix) == [prefix]


if __name__ == "__main__":
    README.write_text(with_settings(README.read_text(encoding="utf-8")), encoding="utf-8")
