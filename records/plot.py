"""Draws the pictures of a record folder that records/pack.py wrote, and shows them in its README.

    python records/plot.py records/track_TRACK/DATE_NAME

    loss.png     training loss against tokens, a line a run
    bpb.png      bits per byte before export, after it, and with each step of the evaluation:
                 means over the runs
    bytes.png    what the bytes are spent on, if an artifact.pcll lies there
    rate.png     bits per byte against rate, if a rate.csv lies there, with the columns
                 way,bits_per_weight,val_bpb (and any others)

Made for grey print and half size: black and greys, line styles, markers and hatches, labels at what
they name. The same folder gives the same bytes (with one version of matplotlib). An error leaves
everything as it was.
"""

import argparse
import csv
import io
import math
import os
import re
import sys
import textwrap
from itertools import cycle
from pathlib import Path
from statistics import mean, median

import zstandard
from pack import Run, UserError, read_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import decode_artifact as pcll  # noqa: E402

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
MARKERS = "os^Dv"  # five, so that with four lines 20 curves differ
PARTS = {
    "MLP": (".up", ".down"),
    "query, key, value": (".q", ".k", ".v"),
    "attention output": (".out",),
    "bigram hash": ("bigram.table", "bigram.proj"),
    "token embedding": ("tok_emb",),
    "vectors": ("",),
}  # by ending
HIGHEST = 6  # a picture of rates ends so many times as far above the lowest point as the median
CAPTIONS = {
    "loss.png": "Training loss against tokens seen.",
    "bpb.png": "Bits per byte from training to score, means over the runs. The axis does not start "
    "at zero.",
    "bytes.png": "Bytes by part: its codes, and its side data (floats, codebooks, scales) as "
    "zstd-22 shrinks them when alone. The last bar is the rest of the file.",
    "rate.png": "Bits per byte against the rate of the weights. The axes do not start at zero; "
    "points far above the others are left out.",
}
Points = list[tuple[float, float]]


def picture(ax: "plt.Axes", x: str, y: str) -> bytes:
    """The PNG of a finished figure."""
    ax.set(xlabel=x, ylabel=y)
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(ax.figure)
    return file.getvalue()


def draw_lines(ax: "plt.Axes", curves: dict[str, Points], first: bool) -> None:
    """Draws the lines, with their names beside their last points; or with markers, and the names
    beside the first points, on the left, while the y axis stands on the right."""
    looks = zip(curves.values(), cycle(LINES), cycle(MARKERS), strict=False)
    for points, (grey, style), marker in looks:
        shape = marker if first else None
        ax.plot(*zip(*points, strict=True), color=grey, linestyle=style, marker=shape)
    if first:
        ax.yaxis.tick_right()
        ax.yaxis.set_label_position("right")
        ax.spines["left"].set_visible(False)
        ax.spines["right"].set_visible(True)
    name_lines(ax, curves, first)


def name_lines(ax: "plt.Axes", curves: dict[str, Points], first: bool) -> None:
    """Writes the names at one side of the picture, each with a line to its point."""
    ax.figure.canvas.draw()  # fixes the axes' limits
    to_axes = ax.transData + ax.transAxes.inverted()
    gap = 0.12 if first else 0.08  # long names take two lines
    height = -1.0
    leader = dict(arrowstyle="-", color="0.5", linewidth=1.5, shrinkA=2, shrinkB=6)
    leader["relpos"] = (1.0 if first else 0.0, 0.5)

    ends = [(*points[0 if first else -1], name) for name, points in curves.items()]
    for x, y, name in sorted(ends, key=lambda end: (end[1], end[0] if first else -end[0])):
        height = max(to_axes.transform((x, y))[1], height + gap)  # the names stay apart
        ax.annotate(
            textwrap.fill(name, 26),
            (x, y),
            (-0.04 if first else 1.04, height),
            textcoords="axes fraction",
            va="center",
            ha="right" if first else "left",
            annotation_clip=False,
            arrowprops=leader,
        )


def plain_log_axis(ax: "plt.Axes", values: list[float]) -> None:
    """A logarithmic x axis with labels such as 0.2, 0.5, 1, as many as have room."""
    wide = max(values) > 1000 * min(values)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def draw_loss(runs: list[Run]) -> bytes | None:
    """None for runs without a step."""
    curves = {}
    for run in runs:
        batch = int(run.settings["train_batch_tokens"]) / 1e6
        steps = re.findall(r"^step:(\d+)/\d+ train_loss:(\d+\.\d+)", run.lines, re.M)
        losses = {int(step): float(loss) for step, loss in steps}  # some twice after a resume
        curves[f"seed {run.seed}"] = [(step * batch, loss) for step, loss in sorted(losses.items())]
    if not all(curves.values()):
        return None
    ax = plt.subplots()[1]
    plain_log_axis(ax, [x for points in curves.values() for x, _ in points])
    draw_lines(ax, curves, first=False)
    return picture(ax, "million tokens", "training loss, nats per token")


def stage_order(name: str) -> tuple[bool, ...]:
    """Before export, then after it: plain windows, sliding ones, adaptation."""
    return "adaptation" in name, "sliding" in name, "after" in name


def draw_bpb(runs: list[Run]) -> bytes | None:
    """The table at the logs' end as a waterfall; None where the logs have no such table."""
    tables = [
        dict(re.findall(r"^  ((?:before|after) .+?) +(\d+\.\d+) bpb ", run.lines, re.M))
        for run in runs
    ]
    stages = [
        (name, mean(float(table[name]) for table in tables))
        for name in sorted(tables[0], key=stage_order)
        if all(name in table for table in tables)
    ]
    if len(stages) < 2:
        return None
    ax = plt.subplots(figsize=(14, 7.5))[1]
    low = min(bpb for _, bpb in stages)
    high = max(bpb for _, bpb in stages)
    span = high - low or 0.001
    for i, (_, bpb) in enumerate(stages):
        ax.plot([i - 0.4, i + 0.4], [bpb, bpb], color="black", linewidth=8, solid_capstyle="butt")
        ax.text(i, bpb + 0.03 * span, f"{bpb:.4f}", ha="center", va="bottom", weight="bold")
        if i:
            draw_change(ax, i - 0.5, stages[i - 1][1], bpb, 0.03 * span)

    names = [textwrap.fill(name, 17, break_on_hyphens=False) for name, _ in stages]
    ax.set_xticks(range(len(stages)), names)
    ax.set_ylim(low - 0.15 * span, high + 0.15 * span)
    return picture(ax, "", "validation, bits per byte")


def draw_change(ax: "plt.Axes", x: float, before: float, after: float, gap: float) -> None:
    """A bar from one level to the next, hatched if that is worse, with the difference below."""
    hatch = "//" if after > before else None
    look = dict(color="0.85", edgecolor="black", linewidth=2, hatch=hatch)
    ax.bar(x, after - before, 0.2, before, **look)
    text = f"{after - before:+.4f}"
    ax.text(x, min(after, before) - gap, text, ha="center", va="top")


READERS = {pcll.HUFFMAN: pcll.read_codebook, pcll.TRELLIS: pcll.read_scales}


def side_data(data: bytes) -> dict[str, bytes]:
    """Of each tensor, what the artifact stores before the codes: floats, codebook or scales."""
    cursor = pcll.Cursor(pcll.inflate(data))
    pcll.read_config(cursor)
    found = {}
    for tensor in pcll.read_table(cursor, len(data)):
        start = cursor.position
        READERS.get(tensor.codec, pcll.read_floats)(cursor, tensor)
        found[tensor.name] = bytes(cursor.content[start : cursor.position])
    return found


def part_of(name: str) -> str:
    """The first of PARTS with an ending that the tensor's name has."""
    return next(part for part, endings in PARTS.items() if name.endswith(endings))


def attribute(data: bytes, code: int) -> dict[str, float]:
    """Bytes of each part of code and artifact, as the caption of bytes.png says; they add up to
    the size of both."""
    tensors = pcll.parse_pcll(data)[1]
    side = side_data(data)
    shares = {"code": float(code)}
    for part in PARTS:
        own = [t for t in tensors if part_of(t.name) == part]
        codecs = ", ".join(dict.fromkeys(pcll.CODECS[t.codec] for t in own))
        stored = b"".join(side[t.name] for t in own)
        codes = sum(t.bits / 8 for t in own) - len(stored)
        packed = len(zstandard.compress(stored, 22)) if own else 0
        shares[f"{part}\n{codecs}"] = codes + packed
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


def read_rates(path: Path) -> dict[str, Points]:
    """(bits per weight, bpb) by rising rate, for each way to quantise."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        points = [(float(row["bits_per_weight"]), float(row["val_bpb"])) for row in rows]
        ways = [row["way"] for row in rows]
        if not points or not all(map(math.isfinite, sum(points, ()))):
            raise ValueError
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is no table of rates: plot.py --help names its columns.") from None
    curves = {}
    for way, point in sorted(zip(ways, points, strict=True)):
        curves.setdefault(way, []).append(point)
    return curves


def near_points(curves: dict[str, Points]) -> dict[str, Points]:
    """The curves without points that lie so high that the others would be one flat line."""
    levels = [bpb for points in curves.values() for _, bpb in points]
    limit = min(levels) + HIGHEST * (median(levels) - min(levels))
    if limit == min(levels):
        limit = max(levels)
    near = {
        name: [point for point in points if point[1] <= limit] for name, points in curves.items()
    }
    return {name: points for name, points in near.items() if points}


def draw_rates(curves: dict[str, Points]) -> bytes:
    ax = plt.subplots()[1]
    draw_lines(ax, near_points(curves), first=True)
    return picture(ax, "bits per weight", "validation, bits per byte")


def show(readme: str, names: list[str]) -> str:
    """The README with a section of the pictures that it does not show yet."""
    new = [
        f"![{CAPTIONS[name]}]({name})\n\n{CAPTIONS[name]}\n"
        for name in names
        if f"]({name})" not in readme
    ]
    heading = [] if "\n## Pictures\n" in readme or not new else ["## Pictures\n"]
    return "\n".join([readme, *heading, *new])


def plot(folder: Path) -> list[str]:
    """Draws all pictures, then writes them; their names."""
    logs = sorted(folder.glob("train_seed*.log"))
    if not logs:
        raise UserError(f"{folder} is no record folder: it has no train_seed*.log.")
    runs = sorted(map(read_run, logs), key=lambda run: run.seed)
    text = (folder / "README.md").read_text(encoding="utf-8")
    pictures = {}
    if (rates := folder / "rate.csv").exists():
        pictures["rate.png"] = draw_rates(read_rates(rates))
    if (artifact := folder / "artifact.pcll").exists():
        pictures["bytes.png"] = draw_bytes(pcll.read_bytes(artifact), runs[0].code_bytes)
    pictures |= {"loss.png": draw_loss(runs), "bpb.png": draw_bpb(runs)}
    pictures = {name: pictures[name] for name in CAPTIONS if pictures.get(name)}
    for name, data in (pictures | {"README.md": show(text, list(pictures)).encode()}).items():
        write_atomically(folder / name, data)
    return list(pictures)


def write_atomically(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "plot.py",
        description=about,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the record folder")
    args = parser.parse_args(argv)
    if plt is None:
        print("plot.py: matplotlib is missing: requirements-dev.txt names it.", file=sys.stderr)
        return 2
    try:
        with plt.rc_context(STYLE):
            print(f"{args.folder}: {', '.join(plot(args.folder))}")
        return 0
    except UserError as error:
        problem = str(error)
    except pcll.ArtifactError as error:
        problem = f"{args.folder / 'artifact.pcll'}: {error}."
    except (OSError, UnicodeDecodeError) as error:
        where = getattr(error, "filename", None) or args.folder
        problem = f"{where}: {getattr(error, 'strerror', None) or error}."
    print(f"plot.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
