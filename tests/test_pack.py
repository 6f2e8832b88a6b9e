"""records/pack.py: what it writes from a real log and edited copies, every way to be refused."""

import json
import math
import os
import random
import re
import shlex
import shutil
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT, make_demo_data
from test_run import SMALL, run_here

import train_gpt
from records import pack
from records.check import check_folder

RULE = "\n" + "=" * 80 + "\n"
LARGEST = 9 * 10**18  # seed, and number of steps
SCORES = {1337: 3.0, 42: 3.1, LARGEST: 3.2}  # seed -> val_bpb in the made-up logs: 3.1 +- 0.1
H100 = "GPU NVIDIA H100 80GB HBM3"
ON_8_GPUS = [("GPU none", H100), ("world_size:1", "world_size:8")]
SLIDING = ("^((?:headline: )?final_pcll_)ttt", r"\1sliding")
TRACK = ("--track", "10min_16mb")
NOT_LEGAL = (
    f"{train_gpt.NOT_LEGAL} train_then_score val_loss:1.11111111 val_bpb:1.04870000 tokens:9 "
    "bytes:9 eval_time:9ms"
)
CHANGED = dict(ITERATIONS="3", WARMUP_STEPS="0", LN_SCALE="0")


def tiny_run(base: Path) -> Path:
    """A folder with the demo's data, cut short, and train_gpt.py's log and artifact.

    Made once for all test files.
    """
    folder = base / "tiny"
    if not folder.exists():
        shutil.copytree(make_demo_data(base), folder / "data/demo")
        done = run_here(folder, **CHANGED)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def log(tiny) -> str:
    return (tiny / "logs/test.txt").read_text()


def edit(log: str, *edits: tuple[str, str]) -> str:
    """The log with regular expressions replaced in what follows the source; each must match."""
    source, rule, lines = log.partition(RULE)
    for pattern, new in edits:
        lines, count = re.subn(pattern, new, lines, flags=re.MULTILINE)
        assert count, pattern
    return source + rule + lines


def cut(log: str, before: str) -> str:
    return log[: log.rindex(f"\n{before}") + 1]


def with_source(log: str, source: str) -> str:
    """The log as if another script had written it."""
    size = len(source.encode())
    return edit(source + RULE + log.partition(RULE)[2], (r"^(Code size): \d+", rf"\1: {size}"))


def scored(log: str, bpb: float) -> tuple[str, str]:
    """The edit that gives the final line and its headline another score."""
    tokens, size = re.search(r"^final.* val_tokens:(\d+) bytes:(\d+)", log, re.M).groups()
    loss = bpb * math.log(2) * int(size) / int(tokens)
    return r"^((?:headline: )?final\S+ )val_loss:\S+ val_bpb:\S+ ", (
        rf"\g<1>val_loss:{loss:.8f} val_bpb:{bpb:.8f} "
    )


def seeded(log: str, seed: int, *edits: tuple[str, str]) -> str:
    """The log as a run of another seed, with its made-up score."""
    sha256 = r"\g<0>" if seed == 1337 else f"artifact_sha256:{seed:064x}"
    own = ((r"\bseed:1337", f"seed:{seed}"), (r"artifact_sha256:.{64}", sha256))
    return edit(log, *own, scored(log, SCORES[seed]), *edits)


def write(folder: Path, *logs: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(len(logs))]
    for path, text in zip(paths, logs, strict=True):
        path.write_text(text)
    return paths


def run_pack(*words: object) -> int:
    return pack.main(list(map(str, words)))


def packed(folder: Path, *logs: str, options: tuple = ()) -> Path:
    """The record folder made from these logs."""
    words = ["--out", folder / "out", "--date=2026-03-01", "--author=A B", *options]
    assert run_pack("entry", *write(folder, *logs), *words) == 0
    (made,) = (folder / "out").glob("track_*/*")
    return made


def table_of(folder: Path) -> dict:
    return json.loads((folder / "submission.json").read_text())


@pytest.fixture
def refused(tmp_path, capsys):
    """Checks that pack.py refuses its arguments and leaves nothing behind; returns its sentence."""

    def check(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert run_pack("--out", tmp_path / "out", "--author=A B", *words) == 2
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(r"pack\.py: .+\.\n", said.err), said.err
        assert sorted(tmp_path.rglob("*")) == before
        return said.err

    return check


# ---- What is written


def test_three_seeds_make_a_folder_that_verifies(tmp_path, tiny, log):
    larger = ("^Serialized model pcll: .*", "Serialized model pcll: 123456 bytes")
    log = edit(log, *ON_8_GPUS)
    log = edit(log, ("^step:3/3 ", f"step:{LARGEST}/{LARGEST} "))
    logs = {42: seeded(log, 42), 1337: seeded(log, 1337), LARGEST: seeded(log, LARGEST, larger)}
    artifact = tiny / "artifact.pcll"
    options = (*TRACK, "--artifact", artifact, "--github-id=ab", "--blurb=Small.")
    folder = packed(tmp_path, *logs.values(), options=options)
    assert folder.parent.name == "track_10min_16mb" and folder.name == "2026-03-01_entry"
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents.pop("train_gpt.py") == (ROOT / "train_gpt.py").read_bytes()
    assert contents.pop("artifact.pcll") == artifact.read_bytes()
    for seed, text in logs.items():
        assert contents.pop(f"train_seed{seed}.log").decode() == text
    assert sorted(contents) == ["README.md", "requirements.txt", "submission.json"]
    torch = f"torch=={train_gpt.torch.__version__.partition('+')[0]}\n"
    assert contents["requirements.txt"].startswith(torch.encode())

    def seconds(pattern: str) -> float:
        return int(re.findall(rf"^{pattern}:(\d+)ms", log, re.M)[-1]) / 1000

    table = table_of(folder)
    code, model = len((ROOT / "train_gpt.py").read_bytes()), artifact.stat().st_size
    loss = float(re.search(r"val_loss:(\S+)", scored(log, 3.1)[1])[1])
    assert table["seed_results"]["42"] == dict(
        val_bpb=3.1,
        val_loss=loss,
        bytes_total=code + model,
        artifact_bytes=model,
        artifact_sha256=f"{42:064x}",
        steps=LARGEST,
        train_seconds=seconds("step.* train_time"),
        calibration_seconds=seconds("calibration_time"),
        eval_seconds=seconds("final.* eval_time"),
        eval_total_seconds=seconds("eval_total_time"),
    )
    said = [table[name] for name in "name author github_id date track blurb".split()]
    assert said == ["entry", "A B", "ab", "2026-03-01", "10min_16mb", "Small."]
    assert {int(seed): row["val_bpb"] for seed, row in table["seed_results"].items()} == SCORES
    assert table["seeds"] == [42, 1337, LARGEST]
    assert (table["val_bpb"], table["val_bpb_std"]) == (3.1, 0.1)
    sizes = table["bytes_code"], table["artifact_bytes"], table["bytes_total"]
    assert sizes == (code, 123456, code + 123456)  # of the largest
    assert table["hardware"] == "8 x NVIDIA H100 80GB HBM3"
    assert "score-first adaptation" in table["protocol"]
    report = check_folder(folder)
    assert sorted(run.seed for run in report.runs) == [42, 1337, LARGEST]
    doubts = {found.check for found in report.findings if found.verdict in ("FAILED", "SUSPICION")}
    assert doubts == {"split"}  # the demo's text, in the record track


def test_a_log_alone(tmp_path, log):
    """No deviation; the date is the log's."""
    (path,) = write(tmp_path, log)
    os.utime(path, (0, 1_000_000_000))  # 2001-09-09 01:46 UTC
    assert run_pack("entry", path, "--author=me", "--out", tmp_path) == 0
    (made,) = tmp_path.glob("track_non_record_16mb/2001-09-0*_entry")
    assert table_of(made)["val_bpb_std"] is None
    assert "deviation" not in (made / "README.md").read_text()


def test_what_is_not_legal_stands_apart_with_its_label(tmp_path, log):
    folder = packed(tmp_path, edit(log, (r"^(eval_total_time.*)", rf"\1\n{NOT_LEGAL}")))
    assert "1.0487" not in (folder / "submission.json").read_text()
    (line,) = re.findall(".*1.0487.*", (folder / "README.md").read_text())
    assert line.startswith("- Seed 1337, not a score: NOT LEGAL ")


def read_command(folder: Path) -> dict[str, str]:
    """The environment of the command in a record's README."""
    line = re.search(r"^    (.* train_gpt.py)$", (folder / "README.md").read_text(), re.M)[1]
    return dict(word.split("=", 1) for word in shlex.split(line) if re.match("[A-Z]", word))


def test_the_command_repeats_the_settings(tmp_path, log):
    environment = read_command(packed(tmp_path, log))
    assert train_gpt.load_settings(environment) == train_gpt.load_settings(SMALL | CHANGED)
    assert environment["LN_SCALE"] == "0" and "EMA_DECAY" not in environment


@pytest.mark.parametrize("changed", ["", "EMA_DECAY=0.5 DATA_PATH=a b"])
def test_what_was_changed_is_what_the_log_says(tmp_path, log, changed):
    """The script's defaults are not looked up: they may be other ones today."""
    log = edit(log, *ON_8_GPUS, ("^changed:.*", f"changed:{changed}"))
    folder = packed(tmp_path, edit(log, ("^data_path:.*", "data_path:my data")))
    more = dict(EMA_DECAY="0.97", DATA_PATH="my data") if changed else {}
    assert read_command(folder) == dict(SEED="1337", PRESET="demo") | more
    words = " with ema_decay=0.97, data_path=my data" if changed else ""
    assert table_of(folder)["blurb"] == f"Preset demo{words}"
    launched = "torchrun --standalone --nproc_per_node=8 train_gpt.py\n"
    assert launched in (folder / "README.md").read_text()


def test_further_lines_colours_and_prefixes_do_not_disturb(tmp_path, log):
    steps = (r"^(step:.*)$", r"\1 tok_s:123456 mfu:0.41\ncheckpoint: a.pt step:900/1000")
    more = edit(log, steps, (r"^(Code size.*)", r"warning: none\n\1\ncalibration_time:1500ms"))
    more = edit(more, ("^(.+)$", "[rank0]: \x1b[32m\\1\x1b[0m"))
    plain, other = map(pack.read_run, write(tmp_path, log, more))
    plain.results["calibration_seconds"] += 1.5
    assert other.results == pytest.approx(plain.results)
    assert (other.source, other.settings) == (plain.source, plain.settings)


def resumed(log: str, *first: tuple[str, str], with_source: bool = False) -> str:
    """The log of a run that was stopped before its export and went on; `first` edits its start."""
    source, rule, lines = log.partition(RULE)
    before = cut(edit(log, *first), "before export")
    return before + (source + rule) * with_source + lines


@pytest.mark.parametrize("with_source", [False, True])
def test_what_differs_between_segments_is_stated(tmp_path, refused, log, with_source):
    log = edit(log, *ON_8_GPUS)
    first = [(H100, "GPU NVIDIA A100"), ("world_size:8", "world_size:1")]
    first += [("^iterations:3", "iterations:9"), ("^ema_decay:.*", "ema_decay:0.5")]
    first += [("numpy [0-9.]+", "numpy 1.0"), (r"train_time:\d+", "train_time:77000")]
    text = resumed(log, *first, ("^run_id:.*", "run_id:x"), with_source=with_source)
    folder = packed(tmp_path, text)
    table, readme = table_of(folder), (folder / "README.md").read_text()
    assert table["hardware"] == "1 x NVIDIA A100, then 8 x NVIDIA H100 80GB HBM3"
    assert table["versions"]["numpy"] == f"1.0, then {train_gpt.np.__version__}"
    assert table["versions"]["torch"] == train_gpt.torch.__version__
    assert table["seed_results"]["1337"]["train_seconds"] == 77.0  # of all segments
    assert f"{table['hardware']}; python" in readme and " 9, then 3 steps " in readme
    assert re.findall("^- Resumed .*", readme, re.M) == [
        "- Resumed with another setting: iterations=9, then 3.",
        "- Resumed with another setting: ema_decay=0.5, then 0.97.",
    ]
    assert "ITERATIONS=3 " in readme and (folder / "requirements.txt").read_text().count("==") == 3
    sentence = refused("entry", *write(tmp_path, text), *TRACK)
    assert "not on 1 x NVIDIA A100, then 8 x NVIDIA H100 80GB HBM3;" in sentence


def test_where_a_run_was_resumed_and_on_what_it_was_trained(tmp_path, refused, log):
    """A log whose first segment was resumed lacks the steps before."""
    data = "x train_shards:4 tokens:9000"
    more = rf"\1\ntrain_loader:dataset:{data}\nresumed from checkpoints/at step 9/x.pt at step 2"
    log = edit(log, *ON_8_GPUS, (r"^(preset:.* model_params:\d+)$(\ntrain_loader:.*)?", more))
    begun = resumed(log, ("train_shards:4", "train_shards:3"), ("^resumed from .*", ""))
    facts = (packed(tmp_path / "a", begun, options=TRACK) / "README.md").read_text()
    assert f"\n- Training data: x train_shards:3 tokens:9000, then {data}.\n" in facts
    assert "\n- Seed 1337: resumed at step 2.\n" in facts

    text = resumed(log, ("at step 2$", "at step 1"))
    facts = (packed(tmp_path / "b", text) / "README.md").read_text()
    assert f"\n- Training data: {data}.\n" in facts
    other = "the steps before 1 are of another log, which is not here"
    assert f"\n- Seed 1337: resumed at step 1, then 2; {other}.\n" in facts
    said = refused("entry", *write(tmp_path, text), *TRACK)
    assert "the track 10min_16mb needs all steps in one log, not from 1 on." in said


def test_a_resumed_run_has_the_score_of_its_last_segment(tmp_path, refused, log):
    """Also where the first one had ended."""
    lines = log.partition(RULE)[2]
    plain, again = write(tmp_path, log, edit(log, scored(log, 3.5)) + lines)
    assert pack.read_run(again).results == pack.read_run(plain).results
    assert table_of(packed(tmp_path / "b", resumed(log)))["hardware"] == "1 x CPU"
    stopped = log + cut(lines, "before export")
    assert ": interrupted, or" in refused("entry", *write(tmp_path, stopped))
    other = log + with_source(log, "import os\n")
    assert "has runs of two sources" in refused("entry", *write(tmp_path, other))
    mixed = resumed(log, (r"\bseed:1337", "seed:7"))
    assert "one number as its setting seed" in refused("entry", *write(tmp_path, mixed))


def test_the_readme_explains_the_method(tmp_path, log):
    text = (packed(tmp_path, log) / "README.md").read_text().partition("## Method")[2]
    assert re.search("^- Network: .*", text, re.M)[0] == (
        "- Network: 2 layers of width 64, 4 query and 2 key/value heads of which 8 dimensions "
        "rotate, MLPs of 128, a vocabulary of 1024 tokens, sequences of 256 tokens; with a bigram "
        "hash table, a smear gate, value residual, gated attention, plain U-Net skips, "
        "exclusive self-attention in the last 1 layers."
    )
    assert re.search("^- Training: .*", text, re.M)[0] == (
        "- Training: 3 steps of 2048 tokens, matrices by NorMuon, all else by AdamW; the exported "
        "weights are their exponential moving average with decay 0.97."
    )
    assert "trellis-coded quantization with error feedback" in text
    assert "- Evaluation: score-first adaptation: sliding window of 256 tokens, stride 256" in text
    other = edit(log, ("^codec:.*", "codec:huffman"), ("^skips:.*", "skips:off"))
    other = edit(other, ("^ttt_protocol:.*", "ttt_protocol:per_document"))
    other = edit(other, ("^max_wallclock_seconds:.*", "max_wallclock_seconds:600.0"))
    other = edit(other, ("^ema_decay:.*", "ema_decay:0.0"), ("^loop_passes:.*", "loop_passes:3"))
    text = (packed(tmp_path / "b", other) / "README.md").read_text()
    assert "k-means codebooks" in text and "the token embedding in float16" in text
    assert "U-Net skips" not in text and ", blocks 0 to 0 run 3 times." in text
    assert "- Training: 3 steps of 2048 tokens at most, within 600.0 s, matrices by" in text
    assert "the exported weights are those of the last step.\n" in text
    assert "48 at a time are scored once, then learned from by matrices of rank 96" in text


@pytest.mark.parametrize("folder", sorted((ROOT / "records").glob("track_*/*")), ids=str)
def test_the_logs_of_the_records_here_make_the_same_record(tmp_path, folder):
    table = table_of(folder)
    options = {name: table[name] for name in ("author", "github_id", "date", "track", "blurb")}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    words += ["--artifact", folder / "artifact.pcll", "--out", tmp_path]
    assert run_pack(table["name"], *folder.glob("train_seed*.log"), *words) == 0
    made = tmp_path / folder.parent.name / folder.name
    assert table_of(made) == table
    for name in ("train_gpt.py", "requirements.txt", *(path.name for path in folder.glob("*.log"))):
        assert (made / name).read_bytes() == (folder / name).read_bytes()


def test_nothing_of_a_source_is_executed(tmp_path, log):
    source = f"\ufeff# \ufffd\r\nimport os\nos.remove({str(tmp_path / '0.txt')!r})\n"
    folder = packed(tmp_path, with_source(log, source))
    assert (folder / "train_gpt.py").read_bytes() == source.encode()
    assert (tmp_path / "0.txt").exists()


# ---- What is refused

DAYS = """yesterday 2026-3-1 2026-13-01 2026-01-01/.. 2026-02-30 2025-02-29 2026-00-10 0000-01-01
    20260301 2026-W10-1""".split()
NAMES = ("", ".", "..", "a/b", "a b", ".x", "é", "x" * 81, "a\n")
WORDS = [
    *([name, "NAME must be"] for name in NAMES),
    *(["entry", "--date", day, "--date must be"] for day in (*DAYS, "9" * 5000)),
    *(["entry", "--author", author, "--author is missing"] for author in ("", " ")),
    *(["entry", f"{o}=\udcff", "must be text in UTF-8"] for o in ("--author", "--blurb")),
]


@pytest.mark.parametrize("words", WORDS)
def test_options(refused, tmp_path, log, words):
    assert words[-1] in refused(*words[:-1], *write(tmp_path, log))


AGREE = ", its loss and text make"
REPEATS = "does not end with a headline that repeats its final line"
NO_FINAL = "has no line with final_pcll_ttt_exact or final_pcll_sliding_exact: interrupted"
TWO = "has 2 final lines, but a run has one score"
EDITS = {  # pattern and what takes its place -> what the sentence says
    "cut before the rest": (
        "has no line with versions, settings and world_size:",
        r"^preset:demo world(.|\n)*",
        "",
    ),
    "cut in training": ("has no line with calibration_time", r"^step:2/3(.|\n)*", ""),
    "cut before the score": (NO_FINAL, r"^final_pcll_ttt_exact val(.|\n)*", ""),
    "cut after the score": ("has no line with eval_total_time", r"^eval_total(.|\n)*", ""),
    "no step": ("has no line with train_loss", "^step:.*\n", ""),
    "no headline": ("has no line with headline", "^headline: .*\n", ""),
    "no number": (NO_FINAL, r"^(final\S+ val_loss:)\S+( val_bpb:)\S+", r"\1nan\2nan"),
    "only not legal": (NO_FINAL, "^final_pcll_ttt.*", NOT_LEGAL),
    "code size": ("but its source has", "^Code size: ", "Code size: 1"),
    "a second final line": (TWO, "^(final_pcll_ttt.*)", r"\1\n\1"),
    "one after the headline": (TWO, "^(headline: )(final.*)", r"\1\2\n\2"),
    "one of another kind": (TWO, "^(final_pcll_)ttt(.*)", r"\g<0>\n\1sliding\2"),
    "another headline": (REPEATS, r"^(headline: .*val_bpb:)\d", r"\g<1>0"),
    "two headlines": (REPEATS, "^(headline: .*)", r"\1\n\1"),
    "bytes": (AGREE, r"(ttt_exact .* bytes:)\d+", r"\g<1>151080000"),
    "no bytes": ("states no text that could be scored", r"(ttt_exact .* bytes:)\d+", r"\g<1>0"),
    "no seed": ("does not state the setting seed", "^seed:.*\n", ""),
    "a seed of words": ("does not state one number as its setting seed", "^seed:.*", "seed:x"),
    "no versions": ("has no line with versions, settings and world_size:", "^python .*", ""),
    "no changes": ("does not state the setting changed", "^changed:.*\n", ""),
    "no preset": ("does not state the setting preset", "^preset:demo$", ""),
    "nothing of a change": ("does not state the setting ln_scale", "^ln_scale:.*\n", ""),
    "no window": ("does not state the setting eval_stride", "^eval_stride:.*\n", ""),
    "no heads": ("does not state the setting num_heads", "^num_heads:.*\n", ""),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_log(refused, tmp_path, log, case):
    sentence, *change = EDITS[case]
    assert sentence in refused("entry", *write(tmp_path, edit(log, change)))


NO_LOGS = [lambda log: log.partition(RULE)[2], lambda log: log.replace(RULE, "\n")]
NO_LOGS += [lambda log: "", lambda log: log + "\0"]


@pytest.mark.parametrize("damage", NO_LOGS)
def test_no_log(refused, tmp_path, log, damage):
    said = refused("entry", *write(tmp_path, damage(log)))
    assert "is not a log that begins with its run's source" in said


NUMBERS = r"""val_loss:\d+ val_bpb:\d+ val_tokens:\d+ bytes:\d+\b eval_time:\d+ train_time:\d+
    ^calibration_time:\d+ ^eval_total_time:\d+ ^step:\d+ world_size:\d+ size:\s\d+ pcll:\s\d+
    ^seed:\d+""".split()


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000], ids=len)
@pytest.mark.parametrize("pattern", NUMBERS)
def test_numbers_of_any_length_end_in_a_sentence(refused, tmp_path, log, pattern, digits):
    name = re.sub(r"\\d.*|\^", "", pattern).replace(r"\s", " ")
    assert len(refused("entry", *write(tmp_path, edit(log, (pattern, name + digits))))) < 12_000


def test_lines_at_random_end_in_a_folder_or_a_sentence(tmp_path, log, capsys):
    """Lines that are lacking, repeated, cut or exchanged: never a traceback."""
    source, rule, text = log.partition(RULE)
    rng = random.Random(0)
    for attempt in range(60):
        lines = text.splitlines()
        for _ in range(rng.randint(1, 4)):
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            changes = [lines[j], lines[i][: len(lines[i]) // 2], "", lines[i] + "9", "\ud7ff: x"]
            lines[i] = rng.choice(changes)
        paths = write(tmp_path, source + rule + "\n".join(lines) + "\n")
        out = tmp_path / str(attempt)
        code = run_pack("entry", *paths, "--author=A B", "--out", out)
        assert code == (0 if out.exists() else 2)
        assert capsys.readouterr().err.count("\n") == (code == 2)


NINE = r"\g<1>val_loss:2.07944154 val_bpb:3.00000000 val_tokens:9 bytes:9"
APART = {  # edits of a second log, of another seed -> what the sentence says
    "MATRIX_LR, CODEC.": [("^matrix_lr:.*", "matrix_lr:0.5"), ("^codec:.*", "codec:other")],
    "source.": [],
    "hardware.": [("world_size:1", "world_size:2")],
    "versions.": [("numpy [0-9.]+", "numpy 1.0")],
    "final line.": [SLIDING],
    "training data.": [
        ("^(preset:demo w.*)", r"\1\ntrain_loader:dataset:x train_shards:4 tokens:9")
    ],
    "validation text.": [(r"(ttt_exact ).* bytes:\d+", NINE)],
}


@pytest.mark.parametrize("what", APART)
def test_logs_that_differ(refused, tmp_path, log, what):
    other = seeded(log, 42, *APART[what])
    if what == "source.":
        other = with_source(other, "import os\n")
    said = refused("entry", *write(tmp_path, log, other))
    assert f"differ beyond the seed: {what}" in said


def test_two_logs_of_a_seed(refused, tmp_path, log):
    """Settings that differ from run to run make no other run of it."""
    names = ("^run_id:.*", "run_id:b"), ("^artifact_path:.*", "artifact_path:b.pcll")
    said = refused("entry", *write(tmp_path, seeded(log, 42), log, edit(log, *names)))
    assert "are both of seed 1337" in said
    copy = edit(log, (r"\bseed:1337", "seed:7"))
    assert "name the same artifact" in refused("entry", *write(tmp_path, log, copy))
    assert packed(tmp_path, log, seeded(log, 42, *names)).is_dir()


TRAINED = (r"train_time:\d+", "train_time:599500")


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([], "is for runs on 8 H100 GPUs, not on 1 x CPU"),
        (ON_8_GPUS[:1], "not on 1 x NVIDIA H100"),
        (ON_8_GPUS[1:], "not on 8 x CPU"),
        ([("GPU none", H100), ("world_size:1", "world_size:16")], "not on 16 x NVIDIA H100"),
        ([("GPU none", "GPU NVIDIA A100"), ON_8_GPUS[1]], "not on 8 x NVIDIA A100"),
        ([*ON_8_GPUS, (r"train_time:\d+", "train_time:0")], "allows 600 s for training"),
        ([*ON_8_GPUS, (r" eval_time:\d+", " eval_time:600000")], ""),
        ([*ON_8_GPUS, (r" eval_time:\d+", " eval_time:600001")], "allows 600 s"),
        ([*ON_8_GPUS, (r"^eval_total_time:\d+", "eval_total_time:600000")], ""),
        ([*ON_8_GPUS, (r"^eval_total_time:\d+", "eval_total_time:600001")], "allows 600 s"),
        ([*ON_8_GPUS, TRAINED, (r"^calibration_time:\d+", "calibration_time:1500")], ""),
        (
            [*ON_8_GPUS, TRAINED, (r"^calibration_time:\d+", "calibration_time:1501")],
            "not 599.5 s with 1.5 s, and",
        ),
    ],
)
def test_the_10_minute_track(refused, tmp_path, log, edits, sentence):
    """Training may be longer by the step that crosses the limit: 601 s, with calibration."""
    other = edit(log, *edits)
    if sentence:
        assert sentence in refused("entry", *write(tmp_path, other), *TRACK)
        assert packed(tmp_path, other).parent.name == "track_non_record_16mb"
    else:
        assert packed(tmp_path, other, options=TRACK).parent.name == "track_10min_16mb"


def test_the_cap_and_the_rounding_of_a_score(refused, tmp_path, log):
    """Each just inside and just outside."""
    room = 16_000_000 - len((ROOT / "train_gpt.py").read_bytes())
    stated = float(re.search(r"^final.* val_bpb:(\S+)", log, re.M)[1])
    for pattern, inside, outside, sentence in (
        (r"^(Serialized model pcll: )\d+", room, room + 1, "states 16000001 bytes in all, above"),
        (r"(ttt_exact .* val_bpb:)\S+", f"{stated + 8e-7:.8f}", f"{stated + 1.2e-6:.8f}", AGREE),
    ):
        assert packed(tmp_path / str(inside), edit(log, (pattern, rf"\g<1>{inside}"))).is_dir()
        other = edit(log, (pattern, rf"\g<1>{outside}"))
        assert sentence in refused("entry", *write(tmp_path, other))


def test_files_that_are_no_logs_and_an_unusable_place(refused, tmp_path, tiny, log):
    (tmp_path / "huge.txt").write_bytes(b" " * 16_000_001)
    for path, sentence in (
        (tiny / "artifact.pcll", "is not a log"),
        (tmp_path / "huge.txt", "huge.txt has more than 16000000 bytes"),
        (tmp_path, "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path / "none", "No such file"),
    ):
        assert sentence in refused("entry", path)
    assert "huge.txt" in refused("entry", *write(tmp_path, log), "--out", tmp_path / "huge.txt")


def test_an_artifact_is_bound_to_its_log(refused, tmp_path, tiny, log):
    """By its sha256: one of the same size is another run's."""
    data = (tiny / "artifact.pcll").read_bytes()
    twin, (path,) = tmp_path / "twin.pcll", write(tmp_path, log)
    for other in (data[:-1] + b"x", data + b"\0", b""):
        twin.write_bytes(other)
        assert "is no run's artifact" in refused("entry", path, "--artifact", twin)
    assert "No such file" in refused("entry", path, "--artifact", tmp_path / "none.pcll")


def test_an_existing_folder_stays_as_it_is(refused, tmp_path, log):
    folder = packed(tmp_path, log)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = refused("entry", tmp_path / "0.txt", "--date=2026-03-01")
    assert "is there already" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("out", ["new/deep", "mine"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"), KeyboardInterrupt])
def test_a_full_disk_or_a_ctrl_c_leaves_nothing(tmp_path, log, monkeypatch, capsys, out, error):
    (tmp_path / "mine").mkdir()
    paths = write(tmp_path, log)
    monkeypatch.setattr(Path, "write_bytes", mock.Mock(side_effect=error))
    code = run_pack("entry", *paths, "--author=me", "--out", tmp_path / out)
    said = {2: "x: No space left on device.", 130: "stopped by Ctrl-C"}
    assert capsys.readouterr().err == f"pack.py: {said[code]}\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.txt", "mine"]
