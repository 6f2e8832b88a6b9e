"""records/plot.py: what its pictures show, that drawing them again changes nothing, and every way
to be refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_pack import NOT_LEGAL, edit, packed, seeded, tiny_run

import decode_artifact
import train_gpt
from records import plot
from records.check import check_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    """A record folder of two runs, one with a number that is not legal; without an artifact."""
    log = (tiny / "logs/test.txt").read_text()
    return packed(tmp_path, log, edit(seeded(log, 42), ("^(eval_total.*)", rf"\1\n{NOT_LEGAL}")))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple[list, list, list]]:
    """By the label of its y axis, each picture's lines, texts and labels of its x axis."""
    found = {}

    def picture(ax, x, y):
        ax.figure.canvas.draw()
        labels = [label.get_text() for label in ax.get_xticklabels(which="both")]
        lines = [line.get_xydata().tolist() for line in ax.lines]
        texts = [text.get_text() for text in ax.texts]
        found[y.partition(",")[0]] = lines, texts, [label for label in labels if label]
        plot.plt.close(ax.figure)
        return b""

    monkeypatch.setattr(plot, "picture", picture)
    return found


# ---- Pictures


def test_all_pictures_are_grey_shown_and_the_same_again(folder, tiny):
    """One that comes later joins the section; a folder with pictures verifies."""
    assert plot.main([str(folder)]) == 0
    first = contents(folder)
    (folder / "artifact.pcll").write_bytes((tiny / "artifact.pcll").read_bytes())
    command = [sys.executable, ROOT / "records/plot.py", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(": loss.png, bpb.png, bytes.png\n")
    for name in ("loss.png", "bpb.png", "bytes.png"):
        pixels = plot.plt.imread(folder / name)
        assert pixels.shape[1] > 1000 and (pixels[..., :1] == pixels[..., :3]).all()
        assert (folder / "README.md").read_text().count(f"]({name})") == 1
    assert (folder / "README.md").read_text().count("## Pictures") == 1
    again = contents(folder)
    assert all(again[name] == first[name] for name in first if name != "README.md")
    assert "FAILED" not in {finding.verdict for finding in check_folder(folder).findings}


def test_a_picture_that_the_readme_shows_elsewhere_stays_there(folder, drawn):
    """And all else to the byte."""
    before = (folder / "README.md").read_bytes() + b"\n![x](loss.png) \xff ![Bits](bpb.png)\n"
    before = before.replace(b"\n", b"\r\n")
    (folder / "README.md").write_bytes(before)
    assert plot.main([str(folder)]) == 0
    assert (folder / "README.md").read_bytes() == before


def test_losses_stand_at_their_tokens(folder, drawn):
    assert plot.main([str(folder)]) == 0
    (first, second), texts, _ = drawn["training loss"]
    assert texts == ["seed 42", "seed 1337"] and first == second
    assert [x for x, _ in first] == pytest.approx([0.002048, 0.004096, 0.006144])
    assert all(5 < loss < 8 for _, loss in first)  # about ln 1024 at the start


def test_the_waterfall_has_means_and_differences(folder, drawn):
    """In the order of the run, though a log's table begins with the headline; nothing of what is
    not legal."""
    stages = ("before export, plain", train_gpt.PLAIN, train_gpt.SLIDING, train_gpt.ADAPTED)
    for seed, levels, order in (
        (42, (2.0, 2.5, 2.3, 2.2), (3, 1, 2, 0)),
        (1337, (2.2, 2.6, 2.4, 2.3), (0, 1, 2, 3)),
    ):
        path = folder / f"train_seed{seed}.log"
        table = "".join(rf"  {stages[i]}   {levels[i]:.4f} bpb   0.1 s\n" for i in order)
        edits = (r"^  (before|after) .*\n", ""), ("^headline", f"{table}headline")
        path.write_text(edit(path.read_text(), *edits))
    assert plot.main([str(folder)]) == 0
    _, texts, labels = drawn["validation"]
    assert [text for text in texts if text[0] == "2"] == ["2.1000", "2.5500", "2.3500", "2.2500"]
    assert [text for text in texts if text[0] != "2"] == ["+0.4500", "-0.2000", "-0.1000"]
    assert [" ".join(label.split()) for label in labels] == list(stages)

    path.write_text(edit(path.read_text(), ("^  (before|after) .*\n", "")))
    drawn.clear()
    assert plot.main([str(folder)]) == 0 and list(drawn) == ["training loss"]


def test_bytes_are_all_attributed(tiny):
    data = (tiny / "artifact.pcll").read_bytes()
    shares = plot.attribute(data, 1000)
    assert sum(shares.values()) == pytest.approx(len(data) + 1000)
    assert all(share > 0 for share in shares.values())
    names = "code MLP bigram vectors token query attention header"
    assert {re.match(r"\w+", name)[0] for name in shares} == set(names.split())
    tensors = decode_artifact.parse_pcll(data).tensors
    coded = sum(tensor.bits / 8 for tensor in tensors if ".mlp." in tensor.name)
    assert 0.7 * coded < shares["MLP\ntrellis"] < coded + 20  # zstd finds something in side data


@pytest.mark.parametrize(
    ("low", "high", "within"),
    [
        (0.016, 3.3, {"0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"}),
        (0.786, 7800.0, {"1", "10", "100", "1000"}),
    ],
)
def test_labels_of_the_loss_are_plain_and_have_room(drawn, low, high, within):
    ax = plot.plt.subplots()[1]
    plot.plain_log_axis(ax, [low, high])
    ax.plot([low, high], [7.0, 3.0])
    plot.picture(ax, "", "loss")
    labels = drawn["loss"][2]
    assert within <= {*labels} and not [label for label in labels if "$" in label]
    assert sum(map(len, labels)) < 60


def test_help_needs_no_matplotlib(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('there is none')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for argument, code in (("--help", 0), (tmp_path, 2)):
        command = [sys.executable, ROOT / "records/plot.py", argument]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr
    assert done.stderr == "plot.py: matplotlib is missing: requirements-dev.txt names it.\n"


# ---- What is refused


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("train_seed42.log", lambda data: b"step:1/2\n", "train_seed42.log is not a log that"),
        ("train_seed42.log", lambda log: log.replace(b"\ncodec:", b"\ncodec:x"), "CODEC."),
        ("artifact.pcll", lambda data: data[:-1], "artifact.pcll: the header announces"),
        ("README.md", None, "README.md: No such file"),
        ("README.md", lambda data: data.decode().encode("utf-16"), "README.md is no text in UTF-8"),
        ("train_seed*.log", None, "is no record folder: it has no train_seed"),
    ],
)
def test_a_damaged_folder_stays_as_it_is(folder, tiny, capsys, name, damage, sentence):
    (folder / "artifact.pcll").write_bytes((tiny / "artifact.pcll").read_bytes())
    for path in folder.glob(name):
        path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    before = contents(folder)
    capsys.readouterr()
    assert plot.main([str(folder)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("plot.py: ") and said.err.count("\n") == 1
    assert sentence in said.err and contents(folder) == before
