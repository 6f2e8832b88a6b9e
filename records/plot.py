"""Draws the pictures of a record folder that records/pack.py wrote, and shows them in its README.

    python records/plot.py records/track_TRACK/DATE_NAME

    loss.png     training loss against tokens, one line per run
    bpb.png      bits per byte before export, after it, and with each step of the evaluation
    bytes.png    what the bytes are spent on, if an artifact.pcll lies there

Made for grey print and half size: black and greys, line styles and hatches, labels at what
they name. The same folder gives the same bytes (with one version of matplotlib). An error leaves
everything as it was.
"""

import argparse
import io
import re
import sys
import textwrap
from itertools import cycle, pairwise
from pathlib import Path
from statistics import mean

import zstandard

if __name__ == "__main__":  # imports start at the root
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import decode_artifact as pcll
from records.files import TEXT_BYTES
from records.pack import Run, check_runs, read_file, read_run, run_tool, write_file
from records.report import UnusableInput

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
except ImportError:
    plt = None  # which main() says; --help does without

STYLE = {
    "font.size": 20,
    "figure.figsize": (12, 7.5),
    "figure.dpi": 100,
    "lines.linewidth": 4,
    "lines.markersize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 2,
    "hatch.linewidth": 2,
}
LINES = (("black", "-"), ("0.5", "--"), ("0.35", ":"), ("0.65", "-."))  # grey, line style
PARTS = {
    "MLP": (".up", ".down"),
    "query, key, value": (".q", ".k", ".v"),
    "attention output": (".out",),
    "bigram hash": ("bigram.table", "bigram.proj"),
    "token embedding": ("tok_emb",),
    "vectors": ("",),
}  # by the ending of a tensor's name; the first that fits
CAPTIONS = {
    "loss.png": "Training loss against tokens seen.",
    "bpb.png": "Bits per byte from training to score, means over the runs. The axis does not start "
    "at zero.",
    "bytes.png": "Bytes by part: its codes, and its side data (floats, codebooks, scales) as "
    "zstd-22 shrinks them when alone. The last bar is the rest of the file.",
}
Points = list[tuple[float, float]]


def picture(ax: "plt.Axes", x: str, y: str) -> bytes:
    """The PNG of a finished figure."""
    ax.set(xlabel=x, ylabel=y)
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(ax.figure)
    return file.getvalue()


def name_lines(ax: "plt.Axes", curves: dict[str, Points]) -> None:
    """Writes the names on the right, each with a line to the last point of its curve."""
    ax.figure.canvas.draw()  # fixes the axes' limits
    to_axes = ax.transData + ax.transAxes.inverted()
    look = dict(color="0.5", linewidth=1.5, shrinkA=2, shrinkB=6, arrowstyle="-", relpos=(0, 0.5))
    height = -1.0
    ends = [(*points[-1], name) for name, points in curves.items()]
    for x, y, name in sorted(ends, key=lambda end: (end[1], -end[0])):
        height = max(to_axes.transform((x, y))[1], height + 0.08)  # the names stay apart
        place = dict(xytext=(1.04, height), textcoords="axes fraction", va="center")
        text = textwrap.fill(name, 26)
        ax.annotate(text, (x, y), annotation_clip=False, arrowprops=look, **place)


def plain_log_axis(ax: "plt.Axes", values: list[float]) -> None:
    """A logarithmic x axis with labels such as 0.2, 0.5, 1, as many as have room."""
    wide = max(values) > 1000 * min(values)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def draw_loss(runs: list[Run]) -> bytes:
    curves = {}
    for run in runs:
        batch = run.count("train_batch_tokens") / 1e6
        curves[f"seed {run.seed}"] = [(i * batch, loss) for i, loss in sorted(run.losses.items())]
    ax = plt.subplots()[1]
    plain_log_axis(ax, [x for points in curves.values() for x, _ in points])
    for points, (grey, style) in zip(curves.values(), cycle(LINES), strict=False):
        ax.plot(*zip(*points, strict=True), color=grey, linestyle=style)
    name_lines(ax, curves)
    return picture(ax, "million tokens", "training loss, nats per token")


def stage_order(name: str) -> tuple[bool, ...]:
    """Before export, then after it: plain windows, sliding ones, adaptation."""
    return "adaptation" in name, "sliding" in name, "after" in name


def draw_bpb(runs: list[Run]) -> bytes | None:
    """The table at the logs' end as a waterfall; None where the logs have no such table."""
    row = r"^  ((?:before|after) .+?) +(\d+\.\d+) bpb "
    tables = [dict(re.findall(row, run.text, re.M)) for run in runs]
    order = sorted(set.intersection(*map(set, tables)), key=stage_order)
    stages = [(name, mean(float(table[name]) for table in tables)) for name in order]
    if len(stages) < 2:
        return None
    ax = plt.subplots(figsize=(14, 7.5))[1]
    low = min(bpb for _, bpb in stages)
    high = max(bpb for _, bpb in stages)
    span = high - low or 0.001
    for i, (_, bpb) in enumerate(stages):
        ax.plot([i - 0.4, i + 0.4], [bpb, bpb], color="black", linewidth=8, solid_capstyle="butt")
        ax.text(i, bpb + 0.03 * span, f"{bpb:.4f}", ha="center", va="bottom", weight="bold")
    for i, ((_, before), (_, after)) in enumerate(pairwise(stages)):  # a bar, hatched if worse
        hatch = "//" if after > before else None
        look = dict(color="0.85", edgecolor="black", linewidth=2, hatch=hatch)
        ax.bar(i + 0.5, after - before, 0.2, before, **look)
        end = min(after, before) - 0.03 * span
        ax.text(i + 0.5, end, f"{after - before:+.4f}", ha="center", va="top")

    names = [textwrap.fill(name, 17, break_on_hyphens=False) for name, _ in stages]
    ax.set_xticks(range(len(stages)), names)
    ax.set_ylim(low - 0.15 * span, high + 0.15 * span)
    return picture(ax, "", "validation, bits per byte")


def attribute(data: bytes, code: int) -> dict[str, float]:
    """Bytes of each part of code and artifact, as the caption of bytes.png says; they add up to
    the size of both."""
    cursor = pcll.Cursor(pcll.inflate(data))
    pcll.read_config(cursor)
    pcll.read_table(cursor, len(data))
    side = dict.fromkeys(PARTS, b"")  # what is stored before the codes
    coded = dict.fromkeys(PARTS, 0.0)  # bytes of both
    codecs = {part: {} for part in PARTS}
    for tensor in pcll.parse_pcll(data).tensors:
        part = next(part for part, endings in PARTS.items() if tensor.name.endswith(endings))
        start = cursor.position
        pcll.READERS[tensor.codec](cursor, tensor)
        side[part] += cursor.content[start : cursor.position]
        coded[part] += tensor.bits / 8
        codecs[part][pcll.CODECS[tensor.codec]] = True

    shares = {"code": float(code)}
    for part, stored in side.items():
        packed = len(zstandard.compress(stored, 22)) if stored else 0
        shares[f"{part}\n{', '.join(codecs[part])}"] = coded[part] - len(stored) + packed
    return shares | {"header, tables": len(data) + code - sum(shares.values())}


def draw_bytes(data: bytes, code: int) -> bytes:
    shares = attribute(data, code)
    total = len(data) + code
    ax = plt.subplots(figsize=(12, 9))[1]
    for row, (part, share) in enumerate(shares.items()):
        hatch = "//" if re.search("huffman|trellis", part) else ".."
        if part == "code":
            hatch = ""
        ax.barh(-row, share, 0.7, color="0.85", edgecolor="black", linewidth=2, hatch=hatch)
        text = f"{share:,.0f}  ({share / total:.1%})"
        ax.text(max(share, 0) + 0.01 * total, -row, text, va="center")
    ax.set_yticks(range(0, -len(shares), -1), shares)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    return picture(ax, f"bytes, together {total:,}", "")


def show(readme: str, names: list[str]) -> str:
    """The README with a section of the pictures that it does not show yet."""
    lacking = [name for name in names if f"]({name})" not in readme]
    new = [f"![{name}]({name})\n\n{CAPTIONS[name]}\n" for name in lacking]
    heading = [] if re.search("(?m)^## Pictures\\s*$", readme) or not new else ["## Pictures\n"]
    return "\n".join([readme, *heading, *new])


def plot(folder: Path) -> str:
    """Draws all pictures, then writes them; returns what to say about it."""
    runs = sorted(map(read_run, folder.glob("train_seed*.log")), key=lambda run: run.seed)
    if not runs:
        raise UnusableInput(f"{folder} is no record folder: it has no train_seed*.log.")
    check_runs(runs, "non_record_16mb")
    text = read_file(folder / "README.md", TEXT_BYTES).decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise UnusableInput(f"{folder / 'README.md'} is no text in UTF-8.")
    drawn = {"loss.png": draw_loss(runs), "bpb.png": draw_bpb(runs)}
    if (artifact := folder / "artifact.pcll").exists():
        try:
            drawn["bytes.png"] = draw_bytes(pcll.read_bytes(artifact), runs[0].code_bytes)
        except pcll.ArtifactError as error:
            raise UnusableInput(f"{artifact}: {error}.") from None

    names = [name for name in drawn if drawn[name]]
    for name in names:
        write_file(folder / name, drawn[name])
    write_file(folder / "README.md", show(text, names).encode("utf-8", "surrogateescape"))
    return f"{folder}: {', '.join(names)}"


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("plot.py", description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path, help="the record folder")
    folder = parser.parse_args(argv).folder
    if plt is None:
        print("plot.py: matplotlib is missing: requirements-dev.txt names it.", file=sys.stderr)
        return 2
    with plt.rc_context(STYLE):
        return run_tool("plot.py", lambda: plot(folder))


if __name__ == "__main__":
    sys.exit(main())
