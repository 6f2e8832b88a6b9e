"""records/plot.py: what its pictures show, that drawing them again changes nothing, and every way
to be refused."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_pack import NOT_LEGAL, edit, packed, seeded, tiny_run

import decode_artifact
import train_gpt
import verify

sys.path.insert(0, str(ROOT / "records"))
import plot  # noqa: E402

RATES = """network,way,multiplier,bytes,bits_per_weight,val_bpb
a,trellis,1.0,15000000,4.1,1.16
a,huffman,2.0,13000000,3.4,1.19
a,huffman,1.0,16000000,4.4,1.16
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    """A record folder of two runs, one with a number that is not legal; no artifact, no rates."""
    log = (tiny / "logs/test.txt").read_text()
    return packed(tmp_path, log, edit(seeded(log, 42), ("^(Check it.*)", rf"\1\n{NOT_LEGAL}")))


@pytest.fixture
def full(folder, tiny) -> Path:
    (folder / "artifact.pcll").write_bytes((tiny / "artifact.pcll").read_bytes())
    (folder / "rate.csv").write_text(RATES)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """What is written into pictures, instead of the pictures themselves."""
    found = []

    def picture(ax, x, y):
        found.extend([text.get_text() for text in ax.texts])
        plot.plt.close(ax.figure)
        return b""

    monkeypatch.setattr(plot, "picture", picture)
    return found


# ---- Pictures


def test_all_pictures_are_grey_shown_and_the_same_again(full):
    command = [sys.executable, ROOT / "records/plot.py", full]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, readme = contents(full), (full / "README.md").read_text()
    assert {name for name in first if name.endswith("png")} == set(plot.CAPTIONS)
    for name in plot.CAPTIONS:
        pixels = plot.plt.imread(full / name)
        assert pixels.shape[1] > 1000 and np.ptp(pixels[..., :3], axis=2).max() == 0
        assert readme.count(f"]({name})") == 1
    assert plot.main([str(full)]) == 0
    assert contents(full) == first
    assert verify.main([str(full)]) == 0


def test_pictures_that_come_later_join_the_section(folder):
    assert plot.main([str(folder)]) == 0
    assert (
        "bytes.png" not in (folder / "README.md").read_text()
        and not (folder / "bytes.png").exists()
    )
    (folder / "rate.csv").write_text(RATES)
    assert plot.main([str(folder)]) == 0
    readme = (folder / "README.md").read_text()
    assert readme.count("## Pictures") == 1
    assert [readme.count(f"]({name})") for name in plot.CAPTIONS] == [1, 1, 0, 1]


def test_a_picture_that_the_readme_shows_elsewhere_stays_there(folder):
    with open(folder / "README.md", "a") as file:
        file.write("\n![Loss](loss.png) ![Bits](bpb.png)\n")
    before = (folder / "README.md").read_text()
    assert plot.main([str(folder)]) == 0
    assert (folder / "README.md").read_text() == before


def test_losses_stand_at_their_tokens(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plot, "draw_lines", lambda ax, curves, first: drawn.update(curves))
    assert plot.main([str(folder)]) == 0
    assert list(drawn) == ["seed 42", "seed 1337"]
    assert [x for x, _ in drawn["seed 42"]] == pytest.approx(
        [step * 2048 / 1e6 for step in (1, 2, 3)]
    )
    assert all(5 < loss < 8 for _, loss in drawn["seed 42"])  # about ln 1024 at the start


def test_the_waterfall_has_means_and_differences(folder, texts):
    """In the order of the run, though a log's table begins with the headline; an older one's did
    not."""
    stages = ("before export, plain", train_gpt.PLAIN, train_gpt.SLIDING, train_gpt.ADAPTED)
    for seed, levels, order in (
        (42, (2.0, 2.5, 2.3, 2.2), (3, 1, 2, 0)),
        (1337, (2.2, 2.6, 2.4, 2.3), (0, 1, 2, 3)),
    ):
        path = folder / f"train_seed{seed}.log"
        table = "".join(rf"  {stages[i]}   {levels[i]:.4f} bpb   0.1 s\n" for i in order)
        edits = (r"^  (before|after) .*\n", ""), ("^headline", f"{table}headline")
        path.write_text(edit(path.read_text(), *edits))
    plot.main([str(folder)])
    means = [text for text in texts[2:] if text[0] == "2"]  # the first two name the runs
    assert means == ["2.1000", "2.5500", "2.3500", "2.2500"]
    assert [text for text in texts[2:] if text not in means] == ["+0.4500", "-0.2000", "-0.1000"]


def test_nothing_that_is_not_legal_is_drawn(folder, texts):
    plot.main([str(folder)])
    assert len(texts) == 2 + 4 + 3 and not [text for text in texts if "1.04" in text]


@pytest.mark.parametrize("lacking", ["step:", "  (before|after) "])
def test_runs_without_a_step_or_a_table_lack_that_picture(folder, lacking):
    for path in folder.glob("*.log"):
        path.write_text(edit(path.read_text(), (f"^{lacking}.*\n", "")))
    assert plot.main([str(folder)]) == 0
    assert (folder / "loss.png").exists() == (lacking != "step:") != (folder / "bpb.png").exists()


def test_bytes_are_all_attributed(tiny):
    data = (tiny / "artifact.pcll").read_bytes()
    shares = plot.attribute(data, 1000)
    assert math.isclose(sum(shares.values()), len(data) + 1000)
    assert all(share > 0 for share in shares.values())
    _, tensors, weights = decode_artifact.parse_pcll(data)
    share = {name.partition("\n")[0]: share for name, share in shares.items()}
    for part, name in (
        ("MLP", ".mlp."),
        ("token embedding", "tok_emb"),
    ):  # zstd finds something in the side data
        coded = sum(tensor.bits / 8 for tensor in tensors if name in tensor.name)
        assert 0.7 * coded < share[part] < coded + 20
    assert set(share) == {"code", *plot.PARTS, "header, tables"}


def labels_of(monkeypatch, draw, *args) -> tuple[list[str], list[str]]:
    """The texts of a picture and the labels of its x axis."""
    found = []

    def picture(ax, x, y):
        ax.figure.canvas.draw()
        labels = [label.get_text() for label in ax.get_xticklabels(which="both")]
        found.extend([[text.get_text() for text in ax.texts], [label for label in labels if label]])
        plot.plt.close(ax.figure)
        return b""

    monkeypatch.setattr(plot, "picture", picture)
    draw(*args)
    return tuple(found)


@pytest.mark.parametrize(
    ("low", "high", "within"),
    [
        (0.016, 3.3, {"0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"}),
        (0.002, 0.006, {"0.002", "0.005"}),
        (0.786, 7800.0, {"1", "10", "100", "1000"}),
    ],
)
def test_labels_of_the_loss_are_plain_and_have_room(monkeypatch, low, high, within):
    def draw():
        ax = plot.plt.subplots()[1]
        plot.plain_log_axis(ax, [low, high])
        plot.draw_lines(ax, {"seed 1": [(low, 7.0), (high, 3.0)]}, first=False)
        plot.picture(ax, "", "")

    _, labels = labels_of(monkeypatch, draw)
    assert within <= {*labels} and not [label for label in labels if "$" in label]
    assert sum(map(len, labels)) < 60


def test_a_point_far_above_the_others_is_left_out(monkeypatch):
    curves = {
        "one step": [(2.7, 2.077), (3.5, 2.0353), (4.4, 2.0345)],
        "row, column": [(2.4, 2.0364), (2.9, 2.0338), (3.5, 2.0333)],
        "huffman": [(2.0, 2.9)],
    }
    near = plot.near_points(curves)
    assert near == {
        "one step": [(3.5, 2.0353), (4.4, 2.0345)],
        "row, column": curves["row, column"],
    }
    texts, _ = labels_of(monkeypatch, plot.draw_rates, curves)
    assert {text.replace("\n", " ") for text in texts} == {"one step", "row, column"}
    equal = {"a": [(1.0, 2.0), (2.0, 2.0)], "b": [(1.5, 2.0), (1.0, 2.5)]}
    assert plot.near_points(equal) == equal


def test_help_needs_no_matplotlib(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('there is none')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for argument, code in (("--help", 0), (tmp_path, 2)):
        command = [sys.executable, ROOT / "records/plot.py", argument]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr
    assert done.stderr == "plot.py: matplotlib is missing: requirements-dev.txt names it.\n"


def test_rates_are_told_apart_by_the_way_to_quantise(tmp_path):
    path = tmp_path / "rate.csv"
    path.write_text(RATES)
    assert plot.read_rates(path) == {
        "huffman": [(3.4, 1.19), (4.4, 1.16)],
        "trellis": [(4.1, 1.16)],
    }


# ---- What is refused


def refusal(folder: Path, capsys) -> str:
    """The sentence with which plot.py refuses the folder, which it leaves as it was."""
    before = contents(folder) if folder.is_dir() else None
    assert plot.main([str(folder)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("plot.py: ") and said.err.count("\n") == 1, (
        said.err
    )
    assert before is None or contents(folder) == before
    return said.err


def test_a_folder_without_logs(tmp_path, capsys):
    assert "is no record folder" in refusal(tmp_path, capsys)
    assert "is no record folder" in refusal(tmp_path / "none", capsys)


def test_a_damaged_log(folder, capsys):
    (folder / "train_seed42.log").write_text("step:1/2\n")
    assert "train_seed42.log is not a log" in refusal(folder, capsys)


def test_a_damaged_artifact(full, capsys):
    (full / "artifact.pcll").write_bytes((full / "artifact.pcll").read_bytes()[:-1])
    assert "artifact.pcll: the header announces" in refusal(full, capsys)


def test_a_damaged_table_of_rates(full, capsys):
    header = RATES.splitlines()[0]
    for table in (
        "",
        "way,bytes\nhuffman,1\n",
        header,
        RATES + "a,b,1,1,nan,1\n",
        RATES + "a,b\n",
        RATES + "a,b,1,1,x,1\n",
        "\0\n",
        "\xff",
    ):
        (full / "rate.csv").write_bytes(table.encode("latin-1"))
        assert "rate.csv is no table of rates" in refusal(full, capsys), table


def test_a_folder_without_readme(folder, capsys):
    (folder / "README.md").unlink()
    assert "README.md: No such file" in refusal(folder, capsys)
