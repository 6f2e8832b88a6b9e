"""records/pack.py: what it writes from a real log and edited copies, every way to be refused."""

import json
import os
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
FINAL_LINE = r"^(final_pcll_{}_exact val_loss:)\S+( val_bpb:)\S+"
HEADLINE = r"^(headline: final_pcll_ttt_exact val_loss:)\S+( val_bpb:)\S+"
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


def seeded(log: str, seed: int, *edits: tuple[str, str]) -> str:
    """The log as a run of another seed, with its made-up score."""
    bpb = SCORES[seed]
    values = rf"\g<1>{2 * bpb:.8f}\g<2>{bpb:.8f}"
    scores = (FINAL_LINE.format("ttt"), values), (HEADLINE, values)
    return edit(log, (r"\bseed:1337", f"seed:{seed}"), *scores, *edits)


def write(folder: Path, *logs: str) -> list[str]:
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
        assert pack.main([str(argument) for argument in (*arguments, "--out", out)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(r"pack\.py: .+\.\n", said.err), said.err
        assert not out.exists()
        return said.err

    return check


# ---- What is written


def test_three_seeds_make_a_folder_that_verifies(tmp_path, tiny, log, monkeypatch, capsys):
    sizes = [("^Serialized model pcll: .*", "Serialized model pcll: 123456 bytes")]
    logs = seeded(log, 42), seeded(log, 1337), seeded(log, 7, *sizes)
    folder = packed(
        tmp_path,
        *logs,
        options=(
            "--artifact",
            tiny / "artifact.pcll",
            "--track",
            "10min_16mb",
            "--author",
            "A B",
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
        val_loss=6.2,
        bytes_code=code,
        artifact_bytes=max(model, 123456),
        bytes_total=code + max(model, 123456),
        seeds=[7, 42, 1337],
        hardware="1 x CPU",
    )
    assert {name: table[name] for name in expected} == expected
    assert table["versions"]["torch"] == train_gpt.torch.__version__
    assert {int(seed): row["val_bpb"] for seed, row in table["seed_results"].items()} == SCORES
    row = table["seed_results"]["42"]
    assert row["val_loss"] == 6.2 and row["bytes_total"] == code + model and row["steps"] == 3
    train = re.findall(r"train_time:(\d+)ms", log.partition(pack.RULE)[2])[-1]
    calibration = re.search(r"^calibration_time:(\d+)ms", log, re.M)[1]
    spent = re.search(r"^final_pcll_ttt.*eval_time:(\d+)ms", log, re.M)[1]
    assert (
        row["train_seconds"] == (int(train) + int(calibration)) / 1000
        and row["eval_seconds"] == int(spent) / 1000
    )
    assert "score-first adaptation" in table["protocol"]
    monkeypatch.chdir(tiny)  # where the data lies
    capsys.readouterr()
    assert verify.main([str(folder), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["findings"]
    alarms = {row["check"]: row["verdict"] for row in rows}
    alarms = {check: v for check, v in alarms.items() if v in (verify.SUSPICION, verify.FAILED)}
    assert alarms.pop("split") == verify.FAILED  # the demo's text is no record's
    assert alarms.keys() <= {"hardware"}, "no GPU"


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
    sliding = (FINAL_LINE.format("sliding"), r"\g<1>5.00000000\g<2>2.50000000")
    folder = packed(
        tmp_path, seeded(log, 42, sliding), seeded(log, 7, sliding, ("^final_pcll_ttt.*", ""))
    )
    table = json.loads((folder / "submission.json").read_text())
    assert (
        table["val_bpb"] == 2.5
        and table["val_bpb_std"] == 0
        and "fixed weights" in table["protocol"]
    )
    assert verify.main([str(folder)]) == 0


def test_a_sliding_window_that_was_left_out_is_not_needed(tmp_path, log):
    left_out = edit(log, ("^final_pcll_sliding_exact.*", "The sliding window was left out."))
    folder = packed(tmp_path, left_out, seeded(log, 42))
    table = json.loads((folder / "submission.json").read_text())
    assert "score-first adaptation" in table["protocol"] and table["seeds"] == [42, 1337]


def test_logs_that_have_no_score_in_common(refused, tmp_path, log):
    without = "^final_pcll_{}_exact.*"
    one = edit(log, (without.format("sliding"), ""))
    other = seeded(log, 42, (without.format("ttt"), ""))
    assert "has no line with final_pcll_sliding_exact, but others do" in refused(
        "entry", *write(tmp_path, one, other)
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
    assert environment["LN_SCALE"] == "False" and "EMA_DECAY" not in environment


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
    assert run.train_seconds == pytest.approx(plain.train_seconds + 1.5)
    assert (run.steps, run.scores, run.settings) == (plain.steps, plain.scores, plain.settings)


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
    assert pack.main(["entry", first, second, "--out", str(tmp_path / "out")]) == 0
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


# ---- What is refused


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
        lambda log: log[: log.index("\nfinal_pcll_sliding_exact val_loss:")],
        "has no line with headline",
    ),
    "not a number": (
        lambda log: edit(
            log, (r"^(final_pcll_\w+_exact val_loss:)\S+( val_bpb:)\S+", r"\1nan\2nan")
        ),
        "final_pcll_sliding_exact",
    ),
    "only not legal": (
        lambda log: edit(log, ("^final_pcll_sliding.*", NOT_LEGAL), ("^final_pcll_ttt.*", "")),
        "final_pcll_sliding_exact",
    ),
    "code size": (lambda log: edit(log, (r"^Code size: ", "Code size: 1")), "but its source has"),
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
        [(r"(ttt_exact .*tokens:)\d+", r"\g<1>5")],
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
    slow = edit(log, (f"{field}_time:.*?ms", f"{field}_time:601001ms"))
    assert "allows 600 s" in refused("entry", *write(tmp_path, slow), "--track", "10min_16mb")
    assert packed(tmp_path, slow).parent.name == "track_non_record_16mb"


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


def test_an_artifact_of_another_run(refused, tmp_path, tiny, log):
    data, (path,) = (tiny / "artifact.pcll").read_bytes(), write(tmp_path, log)
    for other in (data + b"\0", data[:-1], b"", b"X" + data[1:]):
        (tmp_path / "other.pcll").write_bytes(other)
        assert "is no artifact of the logs" in refused(
            "entry", path, "--artifact", tmp_path / "other.pcll"
        )
    assert "No such file" in refused("entry", path, "--artifact", tmp_path / "none.pcll")


@pytest.mark.parametrize("day", ["yesterday", "2026-3-1", "2026-13-01", "2026-01-01/.."])
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
    assert pack.main(["entry", path, "--out", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/*"))


def test_an_unusable_place(refused, tmp_path, log, capsys):
    path, out = write(tmp_path, log)[0], tmp_path / "file"
    out.write_text("")
    assert pack.main(["entry", path, "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
