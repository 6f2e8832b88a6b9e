"""Draws the README's picture: scores against bytes, and what quantization costs against bits.

    python tests/bench/picture.py [README.md] [measurements.md] [--out records/results.png]

On the left is the first table of README.md with the columns "after export" and "code + model
bytes"; a row's runs, separated by ", ", have one marker. On the right are the tables of
records/measurements.md whose first cell is "bits per weight, N weights". The same tables give the
same bytes (with one version of matplotlib).
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from records import plot  # noqa: E402
from records.pack import write_file  # noqa: E402

BPB, BYTES = "after export", "code + model bytes"
RATES = "bits per weight, "
GREYS = {"int6 and GPTQ": "0.55", "ours": "black"}  # of the rows that are drawn
MARKERS = "os^Dv"
HIGHEST = 2.4  # what scores worse is left out, and named in what is printed


@dataclass(frozen=True)
class Row:
    """One way to make a file, and its runs."""

    name: str
    bpb: list[float]
    bytes: list[int]


def tables(text: str) -> Iterator[list[list[str]]]:
    """The cells of each table, its header first."""
    rows = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip().replace("*", "") for cell in line.strip().strip("|").split("|")]
            rows.append(cells)
        elif rows:
            yield [row for row in rows if not row[0].startswith("---")]
            rows = []


def numbers(cell: str) -> list[float]:
    """Of "2.1, 2.2" or "1,900,000, 2,000,000"."""
    return [float(number.replace(",", "")) for number in cell.split(", ")]


def read_results(text: str) -> list[Row]:
    """The rows of the first table with the two columns; ValueError without one."""
    for header, *rows in tables(text):
        if BPB in header and BYTES in header:
            bpb, size = header.index(BPB), header.index(BYTES)
            return [Row(r[0].replace("`", ""), numbers(r[bpb]), numbers(r[size])) for r in rows]
    raise ValueError(f'no table with the columns "{BPB}" and "{BYTES}"')


def read_rates(text: str) -> dict[str, plot.Points]:
    """Bits per weight and bpb added, of each way in each table; ValueError without one."""
    curves = {}
    for header, *rows in tables(text):
        if not header[0].startswith(RATES):
            continue
        for row in rows:
            if row[0] in GREYS:
                points = zip(map(float, header[1:]), map(float, row[1:]), strict=True)
                curves[f"{row[0]}, {header[0].removeprefix(RATES)}"] = [*points]
    if not curves:
        raise ValueError(f'no table that begins with "{RATES}"')
    return curves


def draw_results(ax: "plot.plt.Axes", rows: list[Row]) -> None:
    """Ours in black, the others in grey, names beside their points."""
    shown = [row for row in rows if max(row.bpb) <= HIGHEST]
    middle = sum(min(row.bytes) + max(row.bytes) for row in shown) / 2 / len(shown)
    for i, row in enumerate(shown):
        ours = not row.name.startswith(("entry", "challenge"))
        points = [(size / 1e6, bpb) for size, bpb in zip(row.bytes, row.bpb, strict=True)]
        marker = MARKERS[i % len(MARKERS)]
        ax.plot(*zip(*points, strict=True), marker, color="black" if ours else "0.55")
        left = max(row.bytes) > middle * 1.2
        point = min(points) if left else max(points)
        place = dict(ha="right", va="bottom") if left else dict(ha="left", va="center")
        offset = (-12 if left else 12, 0)
        ax.annotate(
            row.name, point, textcoords="offset points", xytext=offset, fontsize=13, **place
        )
    ax.margins(0.12)
    ax.set_xlabel("code + model, million bytes (the challenge's cap is 16)")
    ax.set_ylabel("validation after export, bits per byte")


def draw_rates(ax: "plot.plt.Axes", curves: dict[str, plot.Points]) -> None:
    """Solid lines for the last table, dashed ones for those before."""
    sizes = [*dict.fromkeys(name.partition(", ")[2] for name in curves)]
    for name, points in curves.items():
        way, _, size = name.partition(", ")
        style = "-" if size == sizes[-1] else "--"
        ax.plot(*zip(*points, strict=True), style, marker="o", color=GREYS[way], label=name)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(plot.StrMethodFormatter("{x:g}"))
    ax.legend(frameon=False, handlelength=4)


def draw(rows: list[Row], curves: dict[str, plot.Points]) -> bytes:
    """The PNG."""
    figure, (left, right) = plot.plt.subplots(1, 2, figsize=(19, 8.5))
    figure.subplots_adjust(wspace=0.22)
    draw_results(left, rows)
    draw_rates(right, curves)
    return plot.picture(right, "bits per weight", "bits per byte added by quantization")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("readme", type=Path, nargs="?", default=ROOT / "README.md")
    add("rates", type=Path, nargs="?", default=ROOT / "records/measurements.md")
    add("--out", type=Path, default=ROOT / "records/results.png")
    args = parser.parse_args()
    if plot.plt is None:
        print("picture.py: matplotlib is missing: requirements-dev.txt names it.", file=sys.stderr)
        return 2
    try:
        rows = read_results(args.readme.read_text(encoding="utf-8"))
        curves = read_rates(args.rates.read_text(encoding="utf-8"))
        with plot.plt.rc_context(plot.STYLE | {"font.size": 15, "lines.linewidth": 3}):
            write_file(args.out, draw(rows, curves))
    except (OSError, ValueError) as error:
        print(f"picture.py: {error}.", file=sys.stderr)
        return 2
    left_out = [row.name for row in rows if max(row.bpb) > HIGHEST]
    print(f"{args.out}; above {HIGHEST} bpb and left out: {'; '.join(left_out) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
