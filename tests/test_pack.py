"""records/pack.py: what it writes from a real log and edited copies, every way to be refused."""

import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_demo_data
from test_run import SMALL, run_here

import train_gpt
import verify

sys.path.insert(0, str(ROOT / "records"))
import pack  # noqa: E402

SCORES = {
    1337: 3.0,
    42: 3.1,
    7: 3.2,
}  # seed -> val_bpb after adaptation in the made-up logs: 3.1 +- 0.1
ON_8_GPUS = [("GPU none", "GPU NVIDIA H100 80GB HBM3"), ("world_size:1", "world_size:8")]
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
    source, rule, lines = log.partition(pack.RULE)
    for pattern, new in edits:
        lines, count = re.subn(pattern, new, lines, flags=re.MULTILINE)
        assert count, pattern
    return source + rule + lines


def edit_source(log: str, old: str, new: str) -> str:
    """The log with another source, and the size of that."""
    source, rule, lines = log.partition(pack.RULE)
    begin = source.index('"""')
    assert old in source
    changed = source[begin:].replace(old, new, 1)
    return edit(
        source[:begin] + changed + rule + lines,
        (r"^Code size: \d+", f"Code size: {len(changed.encode())}"),
    )


def loss_of(log: str, bpb: float) -> float:
    """Nats per token, by the tokens and bytes of a log's final line."""
    tokens, size = re.search(r"^final.* val_tokens:(\d+) bytes:(\d+)", log, re.M).groups()
    return bpb * math.log(2) * int(size) / int(tokens)


def score(log: str, kind: str, bpb: float) -> tuple[str, str]:
    """The edit that gives the final line of this kind, and its headline, another score."""
    values = rf"\g<1>val_loss:{loss_of(log, bpb):.8f} val_bpb:{bpb:.8f} "
    return rf"^((?:headline: )?final_pcll_{kind}_exact )val_loss:\S+ val_bpb:\S+ ", values


def seeded(log: str, seed: int, *edits: tuple[str, str]) -> str:
    """The log as a run of another seed, with its made-up score."""
    return edit(log, (r"\bseed:1337", f"seed:{seed}"), score(log, "ttt", SCORES[seed]), *edits)


def unadapted(log: str) -> str:
    """The log as if the run had had no adaptation."""
    return edit(log, ("^((?:headline: )?final_pcll_)ttt", r"\1sliding"))


def with_sliding(log: str) -> str:
    """The log as older scripts wrote it: the sliding window has a final line, too."""
    return edit(log, ("^(final_pcll_)ttt(.*)", r"\g<0>\n\1sliding\2"))


def write(folder: Path, *logs: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(len(logs))]
    for path, text in zip(paths, logs, strict=True):
        path.write_text(text)
    return [str(path) for path in paths]


def packed(folder: Path, *logs: str, options: tuple = ()) -> Path:
    """The record folder made from these logs."""
    arguments = [
        "entry",
        *write(folder, *logs),
        "--out",
        folder / "out",
        "--date",
        "2026-03-01",
        "--author",
        "A B",
        *options,
    ]
    assert pack.main([str(argument) for argument in arguments]) == 0
    (made,) = (folder / "out").glob("track_*/*")
    return made


@pytest.fixture
def refused(tmp_path, capsys):
    """Checks that pack.py refuses its arguments and leaves nothing behind; returns its sentence."""

    def check(*arguments) -> str:
        out = tmp_path / "out"
        author = () if "--author" in arguments else ("--author", "A B")
        arguments = (*arguments, *author, "--out", out)
        assert pack.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(r"pack\.py: .+\.\n", said.err), said.err
        assert not out.exists()
        return said.err

    return check


# ---- What is written


def test_three_seeds_make_a_folder_that_verifies(tmp_path, tiny, log, monkeypatch, capsys):
    sizes = [("^Serialized model pcll: .*", "Serialized model pcll: 123456 bytes")]
    log = edit(log, *ON_8_GPUS)
    logs = seeded(log, 42), seeded(log, 1337), seeded(log, 7, *sizes)
    folder = packed(
        tmp_path,
        *logs,
        options=(
            "--artifact",
            tiny / "artifact.pcll",
            "--track",
            "10min_16mb",
            "--github-id",
            "ab",
            "--blurb",
            "Small.",
        ),
    )
    assert folder.parent.name == "track_10min_16mb" and folder.name == "2026-03-01_entry"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "submission.json",
        "requirements.txt",
        "train_gpt.py",
        "artifact.pcll",
        "train_seed42.log",
        "train_seed1337.log",
        "train_seed7.log",
    }
    code, model = len((ROOT / "train_gpt.py").read_bytes()), (tiny / "artifact.pcll").stat().st_size
    table = json.loads((folder / "submission.json").read_text())
    expected = dict(
        name="entry",
        author="A B",
        github_id="ab",
        date="2026-03-01",
        track="10min_16mb",
        blurb="Small.",
        val_bpb=3.1,
        val_bpb_std=0.1,
        val_loss=pytest.approx(loss_of(log, 3.1), abs=1e-8),
        bytes_code=code,
        artifact_bytes=max(model, 123456),
        bytes_total=code + max(model, 123456),
        seeds=[7, 42, 1337],
        hardware="8 x NVIDIA H100 80GB HBM3",
    )
    assert {name: table[name] for name in expected} == expected
    assert table["versions"]["torch"] == train_gpt.torch.__version__
    assert {int(seed): row["val_bpb"] for seed, row in table["seed_results"].items()} == SCORES
    row = table["seed_results"]["42"]
    assert row["val_loss"] == pytest.approx(loss_of(log, 3.1), abs=1e-8)
    assert row["bytes_total"] == code + model and row["steps"] == 3
    train = re.findall(r"train_time:(\d+)ms", log.partition(pack.RULE)[2])[-1]
    calibration = re.search(r"^calibration_time:(\d+)ms", log, re.M)[1]
    spent = re.search(r"^final_pcll_ttt.*eval_time:(\d+)ms", log, re.M)[1]
    total = re.search(r"^eval_total_time:(\d+)ms", log, re.M)[1]
    stated = dict(
        train_seconds=int(train) / 1000,
        calibration_seconds=int(calibration) / 1000,
        eval_seconds=int(spent) / 1000,
        eval_total_seconds=int(total) / 1000,
        artifact_sha256=hashlib.sha256((tiny / "artifact.pcll").read_bytes()).hexdigest(),
    )
    assert {name: row[name] for name in stated} == stated
    assert "score-first adaptation" in table["protocol"]
    monkeypatch.chdir(tiny)  # where the data lies
    capsys.readouterr()
    assert verify.main([str(folder), "--json"]) == 1
    doubts = {
        found["check"]
        for found in json.loads(capsys.readouterr().out)["findings"]
        if found["verdict"] in (verify.SUSPICION, verify.FAILED)
    }
    assert doubts == {"split"}  # the demo's text, in the record track


def test_files_are_copies(tmp_path, log):
    other = seeded(log, 42)
    folder = packed(tmp_path, log, other)
    assert (folder / "train_gpt.py").read_bytes() == (ROOT / "train_gpt.py").read_bytes()
    assert (folder / "train_seed1337.log").read_text() == log and (
        folder / "train_seed42.log"
    ).read_text() == other
    pins = (folder / "requirements.txt").read_text().split()
    assert (
        pins[0] == "torch==" + train_gpt.torch.__version__.partition("+")[0]
        and pins[3] == "sentencepiece"
    )


def test_one_seed_has_no_deviation(tmp_path, log):
    folder = packed(tmp_path, log)
    assert json.loads((folder / "submission.json").read_text())["val_bpb_std"] is None
    assert "deviation" not in (folder / "README.md").read_text()


def test_without_adaptation_in_every_log_the_sliding_window_counts(tmp_path, log):
    sliding = score(log, "sliding", 3.5)
    logs = with_sliding(seeded(log, 42)), unadapted(seeded(log, 7))
    folder = packed(tmp_path, *(edit(other, sliding) for other in logs))
    table = json.loads((folder / "submission.json").read_text())
    assert (
        table["val_bpb"] == 3.5
        and table["val_bpb_std"] == 0
        and "fixed weights" in table["protocol"]
    )
    assert verify.main([str(folder)]) == 0


def test_a_sliding_window_beside_the_adapted_score_is_not_needed(tmp_path, log):
    folder = packed(tmp_path, with_sliding(log), seeded(log, 42))
    table = json.loads((folder / "submission.json").read_text())
    assert "score-first adaptation" in table["protocol"] and table["seeds"] == [42, 1337]


def test_logs_that_have_no_score_in_common(refused, tmp_path, log):
    other = unadapted(seeded(log, 42))
    assert "has no line with final_pcll_sliding_exact, but others do" in refused(
        "entry", *write(tmp_path, log, other)
    )


def test_what_is_not_legal_stands_apart_with_its_label(tmp_path, log):
    folder = packed(tmp_path, edit(log, (r"^(final_pcll_ttt.*)", rf"\1\n{NOT_LEGAL}")))
    assert "1.0487" not in (folder / "submission.json").read_text()
    score, apart = (folder / "README.md").read_text().split("## Not a score")
    assert "1.0487" not in score
    assert (
        all("NOT LEGAL" in line for line in apart.splitlines() if "1.0487" in line)
        and "1.0487" in apart
    )


def read_command(folder: Path) -> dict[str, str]:
    """The environment of the command in a record's README."""
    text = (folder / "README.md").read_text()
    line = re.search(r"^    (.* python train_gpt.py)$", text, re.M)[1]
    return dict(word.split("=", 1) for word in shlex.split(line)[:-2])


def test_the_command_repeats_the_settings(tmp_path, log):
    environment = read_command(packed(tmp_path, log))
    given = train_gpt.load_settings(SMALL | CHANGED)
    assert train_gpt.load_settings(environment) == given
    assert environment["LN_SCALE"] == "0" and "EMA_DECAY" not in environment


def test_what_was_changed_is_what_the_log_says(tmp_path, log):
    """The script's defaults are not looked up: they may be other ones today."""
    other = edit(log, ("^changed:.*", "changed:SEED=5 EMA_DECAY=0.5 RUN_ID=x DATA_PATH=a b"))
    environment = read_command(packed(tmp_path, other))
    assert environment == dict(SEED="1337", PRESET="demo", EMA_DECAY="0.97", DATA_PATH="data/demo")


def test_nothing_changed(tmp_path, log):
    folder = packed(tmp_path, edit(log, ("^changed:.*", "changed:")))
    assert json.loads((folder / "submission.json").read_text())["blurb"] == "Preset demo"
    assert read_command(folder) == dict(SEED="1337", PRESET="demo")


def test_a_log_without_that_line_leaves_it_open(tmp_path, log):
    """Neither the line nor the headline was in the logs of older scripts."""
    old = edit(log, ("^changed:.*\n", ""), ("^headline: .*\n", ""))
    folder = packed(tmp_path, old)
    blurb = json.loads((folder / "submission.json").read_text())["blurb"]
    assert blurb == "Preset demo; its log does not say which settings differ from it"
    assert read_command(folder) == dict(SEED="1337", PRESET="demo")
    assert "What else was set, the logs do not say" in (folder / "README.md").read_text()


def test_eight_gpus_are_started_by_torchrun(tmp_path, log):
    folder = packed(
        tmp_path,
        edit(
            log,
            ("GPU none", "GPU NVIDIA H100 80GB HBM3"),
            ("world_size:1", "world_size:8"),
            ("^data_path:.*", "data_path:my data"),
            ("^changed:", "changed:DATA_PATH=my data "),
        ),
    )
    text = (folder / "README.md").read_text()
    assert "SEED=1337 PRESET=demo " in text and "DATA_PATH='my data' " in text
    assert "torchrun --standalone --nproc_per_node=8 train_gpt.py" in text
    assert (
        json.loads((folder / "submission.json").read_text())["hardware"]
        == "8 x NVIDIA H100 80GB HBM3"
    )


def test_further_lines_do_not_disturb(tmp_path, log):
    plain = pack.read_run(Path(write(tmp_path, log)[0]))
    more = edit(
        log,
        (r"^(step:.*)$", r"\1 tok_s:123456 mfu:0.41\ncheckpoint: checkpoints/a.pt step:900/1000"),
        (
            r"^(Code size.*)",
            r"resumed from checkpoints/a.pt at step 2\n\1\ncalibration_time:1500ms",
        ),
    )
    run = pack.read_run(Path(write(tmp_path, "The demo makes its own text ...\n" + more)[0]))
    assert run.calibration_seconds == pytest.approx(plain.calibration_seconds + 1.5)
    assert (run.steps, run.scores, run.settings) == (plain.steps, plain.scores, plain.settings)
    assert run.train_seconds == plain.train_seconds


def test_a_resumed_run_counts_from_its_last_start(tmp_path, log):
    source, rule, lines = log.partition(pack.RULE)
    first = lines.partition("\nexport")[0].replace("\ncodec:", "\ncodec:other ") + "\n"
    early = re.search("^final_pcll_ttt.*\n", lines, re.M)[0]
    paths = write(
        tmp_path, log, source + rule + first + early + lines, source + rule + lines + first
    )
    plain, resumed = (pack.read_run(Path(path)) for path in paths[:2])
    assert (resumed.steps, resumed.scores, resumed.settings) == (
        plain.steps,
        plain.scores,
        plain.settings,
    )
    with pytest.raises(pack.UserError, match="was interrupted"):
        pack.read_run(Path(paths[2]))


def test_the_date_is_that_of_the_newest_log(tmp_path, log):
    first, second = write(tmp_path, log, seeded(log, 42))
    os.utime(first, (0, 1_000_000_000))  # 2001-09-09 01:46 UTC
    os.utime(second, (0, 900_000_000))
    options = ["--out", str(tmp_path / "out"), "--author", "A B"]
    assert pack.main(["entry", first, second, *options]) == 0
    assert [path.name[:7] for path in (tmp_path / "out").glob("track_non_record_16mb/*")] == [
        "2001-09"
    ]


def test_the_command_line(tmp_path, log):
    command = [
        sys.executable,
        ROOT / "records/pack.py",
        "entry",
        *write(tmp_path, log),
        "--out",
        "out",
        "--author",
        "A B",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[0].startswith(
        "out/track_non_record_16mb/"
    )
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_folder_runs_where_nothing_else_is(tmp_path, log):
    script = tmp_path / "empty/train_gpt.py"
    script.parent.mkdir()
    script.write_bytes((packed(tmp_path, log) / "train_gpt.py").read_bytes())
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    } | SMALL
    done = subprocess.run(
        [sys.executable, "train_gpt.py"], cwd=script.parent, env=environment, capture_output=True
    )
    assert done.returncode == 0 and (script.parent / "artifact.pcll").exists()


def test_the_readme_explains_the_method(tmp_path, log):
    text = (packed(tmp_path, log) / "README.md").read_text().partition("## Method")[2]
    for words in (
        "Preset demo with ",
        "num_layers=2",
        "2 layers of width 64, 4 query and 2 key/value heads",
        "a 1024-token vocabulary",
        "a bigram hash table, a smear gate, value residual, gated attention, U-Net skips",
        "exclusive self-attention in the last 1 layers",
        "steps of 2048 tokens, at most 3 of them",
        "normuon for matrices",
        "trellis-coded quantisation with error feedback",
        "the token embedding by the same",
        "one zstd-22 frame",
        "score-first adaptation: sliding window of 256 tokens, stride 256",
    ):
        assert words in text, words
    assert "inputs scaled by depth" not in text  # LN_SCALE=0
    huffman = edit(log, ("^codec:.*", "codec:huffman"), ("^skips:.*", "skips:off"))
    text = (packed(tmp_path / "b", huffman) / "README.md").read_text()
    assert "k-means codebooks" in text and "the token embedding by float16" in text
    assert "U-Net skips" not in text
    document = edit(log, ("^ttt_protocol:.*", "ttt_protocol:per_document"))
    text = (packed(tmp_path / "c", document) / "README.md").read_text()
    assert "48 at a time are scored once, then learned from by matrices of rank 96" in text


@pytest.mark.parametrize("folder", sorted((ROOT / "records").glob("track_*/*")), ids=str)
def test_logs_of_older_scripts_make_the_same_record(tmp_path, folder):
    """As the record folders here hold them; they state settings that went since."""
    table = json.loads((folder / "submission.json").read_text())
    options = {name: table[name] for name in ("author", "github_id", "date", "track", "blurb")}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    logs = map(str, folder.glob("train_seed*.log"))
    assert pack.main([table["name"], *logs, *words, "--out", str(tmp_path)]) == 0
    made = tmp_path / folder.parent.name / folder.name
    assert json.loads((made / "submission.json").read_text()) == table
    said = (made / "README.md").read_text().partition("## Method")[2]
    assert "U-Net skips" in said and "the token embedding by the same" in said


def test_the_method_of_a_log_that_states_little(tmp_path, log):
    """The logs of older scripts lack some settings."""
    stated = "|".join(pack.STATED)
    bare = edit(log, (rf"^(?!{stated})[a-z_]+:(?!.*(?:ms|world_size)).*\n", ""))
    assert "? layers" in (packed(tmp_path, bare) / "README.md").read_text()


def test_the_check_can_be_pasted_anywhere(tmp_path, log, capsys):
    out = tmp_path / "it's here"
    (path,) = write(tmp_path, log)
    assert pack.main(["entry", path, "--author", "A B", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said.partition("Check it: ")[2])
    assert words[0] == "python" and Path(words[1]) == ROOT / "verify.py"
    assert Path(words[2]).is_absolute() and Path(words[2]).parents[1] == out


# ---- What is refused


@pytest.mark.parametrize("author", [(), ("--author", ""), ("--author", " ")])
@pytest.mark.parametrize("track", pack.TRACKS)
def test_an_entry_without_an_author(tmp_path, log, capsys, author, track):
    (path,) = write(tmp_path, log)
    out = tmp_path / "out"
    assert pack.main(["entry", path, *author, "--track", track, "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("pack.py: --author is missing: ")
    assert not out.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", ".x", "é", "x" * 81, "a\n"])
def test_names(refused, tmp_path, log, name):
    assert "NAME must be" in refused(name, *write(tmp_path, log))


ALONE = {  # a log, edited -> what the sentence says
    "no source": (lambda log: log.partition(pack.RULE)[2], "begins with its run's source"),
    "no rule": (lambda log: log.replace(pack.RULE, "\n"), "begins with its run's source"),
    "empty": (lambda log: "", "begins with its run's source"),
    "zeros": (lambda log: log + "\0", "begins with its run's source"),
    "cut in the source": (lambda log: log[:10_000], "begins with its run's source"),
    "cut after the rule": (lambda log: log[: log.index(pack.RULE) + 90], "has no line with"),
    "cut in training": (lambda log: log[: log.index("\nstep:2/3")], "has no line with Code size"),
    "cut before the score": (
        lambda log: log[: log.index("\nfinal_pcll_ttt_exact val_loss:")],
        "has no line with final_pcll_ttt_exact or final_pcll_sliding_exact",
    ),
    "cut after the score": (
        lambda log: log[: log.index("\neval_total_time:")],
        "has no line with headline",
    ),
    "not a number": (
        lambda log: edit(
            log, (r"^(final_pcll_\w+_exact val_loss:)\S+( val_bpb:)\S+", r"\1nan\2nan")
        ),
        "final_pcll_sliding_exact",
    ),
    "only not legal": (
        lambda log: edit(log, ("^final_pcll_ttt.*", NOT_LEGAL)),
        "final_pcll_sliding_exact",
    ),
    "code size": (lambda log: edit(log, (r"^Code size: ", "Code size: 1")), "but its source has"),
    "a second final line": (
        lambda log: (
            log + "final_pcll_ttt_exact val_loss:0.69314718 val_bpb:1.00000000 "
            "val_tokens:9 bytes:9 eval_time:9ms\n"
        ),
        "has two lines with final_pcll_ttt_exact",
    ),
    "a second final line before the headline": (
        lambda log: edit(log, ("^(final_pcll_ttt.*)", r"\1\n\1")),
        "has two lines with final_pcll_ttt_exact",
    ),
    "a final line that its headline does not know": (
        lambda log: unadapted(log) + re.search("^final_pcll_ttt.*", log, re.M)[0] + "\n",
        "headline that repeats its final line",
    ),
    "a better final line before the headline": (
        lambda log: edit(
            unadapted(log),
            ("^headline", re.search("^final_pcll_ttt.*", log, re.M)[0] + "\nheadline"),
        ),
        "headline that repeats its final line",
    ),
    "a headline that does not agree": (
        lambda log: edit(log, (r"^(headline: .*val_bpb:)\d", r"\g<1>0")),
        "headline that repeats its final line",
    ),
    "two headlines": (
        lambda log: edit(log, ("^(headline: .*)", r"\1\n\1")),
        "headline that repeats its final line",
    ),
    "bpb that its loss does not make": (
        lambda log: edit(log, (r"(ttt_exact .*val_bpb:)\S+", r"\g<1>1.00000000")),
        "states val_bpb:1.00000000, but its loss, tokens and bytes make",
    ),
    "bytes that do not fit": (
        lambda log: edit(log, (r"(ttt_exact .* bytes:)\d+", r"\g<1>151080000")),
        "but its loss, tokens and bytes make",
    ),
    "no tokens": (
        lambda log: edit(log, (r"(ttt_exact .* val_tokens:)\d+", r"\g<1>0")),
        "states no text that could be scored",
    ),
    "no bytes": (
        lambda log: edit(log, (r"(ttt_exact .* bytes:)\d+", r"\g<1>0")),
        "states no text that could be scored",
    ),
    "over the cap": (
        lambda log: edit(
            log, ("^Serialized model pcll: .*", "Serialized model pcll: 16000000 bytes")
        ),
        "above the cap of 16000000",
    ),
    "the seed is not printed": (lambda log: edit(log, ("^seed:.*\n", "")), "setting seed"),
    "the seed is no number": (lambda log: edit(log, ("^seed:.*\n", "seed:x\n")), "setting seed"),
    "no preset": (lambda log: edit(log, ("^preset:demo$", "")), "setting preset"),
    "a changed setting is not printed": (
        lambda log: edit(log, ("^ln_scale:.*\n", "")),
        "setting ln_scale",
    ),
}


DIGITS = "9" * 5000
NUMBERS = [
    r"val_loss:\d+",
    r"val_bpb:\d+",
    r"val_tokens:\d+",
    r" bytes:\d+",
    r"eval_time:\d+",
    r"train_time:\d+",
    r"^calibration_time:\d+",
    r"^eval_total_time:\d+",
    r"^step:\d+",
    r"world_size:\d+",
    r"^Code size: \d+",
    r"^Serialized model pcll: \d+",
    r"^seed:\d+",
]


@pytest.mark.parametrize("digits", [DIGITS, "9" * 400, "9" * 30], ids=len)
@pytest.mark.parametrize("pattern", NUMBERS)
def test_numbers_of_any_length_end_in_a_sentence(refused, tmp_path, log, pattern, digits):
    name = pattern.removesuffix(r"\d+").removeprefix("^")
    assert len(refused("entry", *write(tmp_path, edit(log, (pattern, name + digits))))) < 12_000


def test_lines_at_random_end_in_a_folder_or_a_sentence(tmp_path, log, capsys):
    """Lines that are lacking, repeated, cut or exchanged: never a traceback."""
    source, rule, text = log.partition(pack.RULE)
    rng = random.Random(0)
    for attempt in range(60):
        lines = text.splitlines()
        for _ in range(rng.randint(1, 4)):
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            changes = [lines[j], lines[i][: len(lines[i]) // 2], "", lines[i] + "9", "\ud7ff: x"]
            lines[i] = rng.choice(changes)
        (path,) = write(tmp_path, source + rule + "\n".join(lines) + "\n")
        out = tmp_path / str(attempt)
        code = pack.main(["entry", path, "--author", "A B", "--out", str(out)])
        said = capsys.readouterr()
        assert code == (0 if out.exists() else 2) and said.err.count("\n") == (code == 2)


SOURCES = {
    "no text": "",
    "a shell script": "#!/bin/sh\necho 1\n",
    "words": "The quick brown fox\n",
    "another script": '"""Another."""\nimport os\n',
}


@pytest.mark.parametrize("case", SOURCES)
def test_logs_of_unknown_sources(tmp_path, log, capsys, case):
    """Nothing of a source is looked at but its size: a folder, or a sentence."""
    lines = log.partition(pack.RULE)[2]
    size = len(SOURCES[case].encode())
    changed = edit(pack.RULE + lines, (r"^Code size: \d+", f"Code size: {size}"))
    (path,) = write(tmp_path, SOURCES[case] + changed)
    out = tmp_path / "out"
    code = pack.main(["entry", path, "--author", "A B", "--out", str(out)])
    said = capsys.readouterr()
    assert code == (0 if out.exists() else 2) and said.err.count("\n") == (code == 2)


@pytest.mark.parametrize("case", ALONE)
def test_a_log(refused, tmp_path, log, case):
    change, sentence = ALONE[case]
    assert sentence in refused("entry", *write(tmp_path, change(log)))


APART = {  # edits of a second log, of another seed -> what the sentence says
    "settings": (
        [("^matrix_lr:.*", "matrix_lr:0.5"), ("^codec:.*", "codec:other")],
        "MATRIX_LR, CODEC.",
    ),
    "hardware": ([("world_size:1", "world_size:2")], "differ in more than the seed: hardware."),
    "GPU": ([("GPU none", "GPU NVIDIA H100")], "differ in more than the seed: hardware."),
    "versions": ([("numpy [0-9.]+", "numpy 1.0")], "differ in more than the seed: versions."),
    "text": (
        [
            (
                r"(ttt_exact ).* bytes:\d+",
                r"\1val_loss:2.07944154 val_bpb:3.00000000 val_tokens:9 bytes:9",
            )
        ],
        "differ in more than the seed: validation text.",
    ),
}


@pytest.mark.parametrize("case", APART)
def test_logs_that_differ(refused, tmp_path, log, case):
    edits, sentence = APART[case]
    assert sentence in refused("entry", *write(tmp_path, log, seeded(log, 42, *edits)))


def test_logs_of_two_sources(refused, tmp_path, log):
    other = edit_source(seeded(log, 42), "import ast", "import ast  # changed")
    assert "differ in more than the seed: source." in refused("entry", *write(tmp_path, log, other))


def test_two_logs_of_a_seed(refused, tmp_path, log):
    other = edit(log, ("^run_id:.*", "run_id:again"), ("^artifact_path:.*", "artifact_path:b.pcll"))
    assert "are both of seed 1337" in refused("entry", *write(tmp_path, log, other))


def test_run_id_and_artifact_path_may_differ(tmp_path, log):
    other = seeded(
        log, 42, ("^run_id:.*", "run_id:again"), ("^artifact_path:.*", "artifact_path:b.pcll")
    )
    assert packed(tmp_path, log, other).is_dir()


@pytest.mark.parametrize("field", ["train", "eval"])
def test_the_10_minute_track_has_limits(refused, tmp_path, log, field):
    slow = edit(log, *ON_8_GPUS, (f"{field}_time:.*?ms", f"{field}_time:601001ms"))
    assert "allows 600 s" in refused("entry", *write(tmp_path, slow), "--track", "10min_16mb")
    assert packed(tmp_path, slow).parent.name == "track_non_record_16mb"


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([], "is for runs on 8 H100 GPUs, not on 1 x CPU"),
        (ON_8_GPUS[:1], "is for runs on 8 H100 GPUs, not on 1 x NVIDIA H100"),
        (ON_8_GPUS[1:], "is for runs on 8 H100 GPUs, not on 8 x CPU"),
        ([*ON_8_GPUS, ("H100 80GB HBM3", "A100-SXM4-80GB")], "not on 8 x NVIDIA A100"),
        ([*ON_8_GPUS, (r"^calibration_time:\d+", "calibration_time:601001")], "allows 600 s"),
        ([*ON_8_GPUS, (r"^eval_total_time:\d+", "eval_total_time:600001")], "allows 600 s"),
        ([*ON_8_GPUS, ("^eval_total_time:.*", "")], "needs the lines calibration_time and eval"),
        ([*ON_8_GPUS, ("^calibration_time:.*", "")], "needs the lines calibration_time and eval"),
        ([*ON_8_GPUS, (r"train_time:\d+ms", "train_time:0ms")], "allows 600 s"),
    ],
)
def test_the_10_minute_track_is_for_8_gpus_inside_both_limits(
    refused, tmp_path, log, edits, sentence
):
    other = edit(log, *edits)
    assert sentence in refused("entry", *write(tmp_path, other), "--track", "10min_16mb")
    assert packed(tmp_path, other).parent.name == "track_non_record_16mb"


def test_training_and_calibration_share_the_limit_and_stand_apart(refused, tmp_path, log):
    """The step that crosses the limit may end: 601 s."""
    times = [(r"train_time:\d+ms", "train_time:599500ms")]
    fits, too_long = (
        edit(log, *ON_8_GPUS, *times, (r"^calibration_time:\d+", f"calibration_time:{ms}"))
        for ms in (1500, 1501)
    )
    said = refused("entry", *write(tmp_path, too_long), "--track", "10min_16mb")
    assert "not 599.5 s with 1.5 s, and" in said
    folder = packed(tmp_path, fits, options=("--track", "10min_16mb"))
    text = (folder / "README.md").read_text()
    assert "| training, s | calibration, s | evaluation, s |" in text
    assert "| 599.5 | 1.5 |" in text


def test_files_that_are_no_logs(refused, tmp_path, tiny):
    huge = tmp_path / "huge.txt"
    huge.touch()
    os.truncate(huge, pack.LOG_BYTES + 1)  # a hole: takes no room
    for path, sentence in (
        (tiny / "artifact.pcll", "is not a log"),
        (huge, "is no file of at most"),
        (tmp_path, "is no file"),
        ("/dev/zero", "is no file"),
        (tmp_path / "none", "No such file"),
    ):
        assert sentence in refused("entry", path)


def test_an_artifact_is_bound_to_its_log(refused, tmp_path, tiny, log):
    """By its sha256, and in older logs by its size."""
    data = bytearray((tiny / "artifact.pcll").read_bytes())
    data[-1] ^= 1
    twin = tmp_path / "twin.pcll"
    twin.write_bytes(data)
    assert "is no artifact of the logs" in refused(
        "entry", *write(tmp_path, log), "--artifact", twin
    )
    old = edit(log, ("^artifact_sha256:.*\n", ""))
    folder = packed(tmp_path, old, options=("--artifact", twin))
    assert (folder / "artifact.pcll").read_bytes() == data


def test_an_artifact_of_another_run(refused, tmp_path, tiny, log):
    data, (path,) = (tiny / "artifact.pcll").read_bytes(), write(tmp_path, log)
    for other in (data + b"\0", data[:-1], b"", b"X" + data[1:]):
        (tmp_path / "other.pcll").write_bytes(other)
        assert "is no artifact of the logs" in refused(
            "entry", path, "--artifact", tmp_path / "other.pcll"
        )
    assert "No such file" in refused("entry", path, "--artifact", tmp_path / "none.pcll")


@pytest.mark.parametrize(
    "day",
    [
        "yesterday",
        "2026-3-1",
        "2026-13-01",
        "2026-01-01/..",
        "2026-02-30",
        "2025-02-29",
        "2026-00-10",
        "0000-01-01",
        "20260301",
        "2026-W10-1",
        "9" * 5000,
    ],
)
def test_dates(refused, tmp_path, log, day):
    assert "--date must be" in refused("entry", *write(tmp_path, log), "--date", day)


def test_an_existing_folder_stays_as_it_is(tmp_path, log, capsys):
    folder = packed(tmp_path, log)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (
        pack.main(
            [
                "entry",
                str(tmp_path / "0.txt"),
                "--out",
                str(tmp_path / "out"),
                "--date",
                "2026-03-01",
                "--author",
                "A B",
            ]
        )
        == 2
    )
    assert "is there already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_leaves_no_folder(tmp_path, log, monkeypatch, capsys):
    (path,) = write(tmp_path, log)

    def fail(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    arguments = ["entry", path, "--author", "A B", "--out"]
    assert pack.main([*arguments, str(tmp_path / "out/deep")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    assert pack.main([*arguments, str(tmp_path / "mine")]) == 2
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_ctrl_c_leaves_no_folder(tmp_path, log, monkeypatch):
    (path,) = write(tmp_path, log)

    def interrupted(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack.main(["entry", path, "--author", "A B", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_unusable_place(refused, tmp_path, log, capsys):
    path, out = write(tmp_path, log)[0], tmp_path / "file"
    out.write_text("")
    assert pack.main(["entry", path, "--author", "A B", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
