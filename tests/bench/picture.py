"""Draws the README's table of results: bits per byte after export against bytes.

    python tests/bench/picture.py [README.md] [--out records/bpb_against_bytes.png]

The table is the first with columns "after export" and "code + model bytes"; a row's runs, separated
by ", ", have one marker. The same table gives the same bytes (with one version of matplotlib).
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from records import plot  # noqa: E402
from records.pack import write_file  # noqa: E402

BPB, BYTES = "after export", "code + model bytes"
MARKERS = "os^Dv"
HIGHEST = 2.4  # what scores worse is left out, and named in what is printed


@dataclass(frozen=True)
class Row:
    """One way to make a file, and its runs."""

    name: str
    bpb: list[float]
    bytes: list[int]


def read_table(text: str) -> list[Row]:
    """The rows of the first table with the two columns; ValueError without one."""
    columns = []
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if BPB in cells and BYTES in cells:
            columns = cells
        elif columns and not line.startswith("|"):
            break
        elif columns and not cells[0].startswith("---"):
            scores = cells[columns.index(BPB)].split(", ")
            sizes = [size.replace(",", "") for size in cells[columns.index(BYTES)].split(", ")]
            name = cells[0].replace("`", "").replace("*", "")
            rows.append(Row(name, list(map(float, scores)), list(map(int, sizes))))
    if not rows:
        raise ValueError(f'no table with the columns "{BPB}" and "{BYTES}"')
    return rows


def draw(rows: list[Row]) -> bytes:
    """The PNG; ours in black, the others in grey, their names on the right."""
    ax = plot.plt.subplots(figsize=(12, 9))[1]
    curves = {}
    for row in rows:
        if max(row.bpb) > HIGHEST:
            continue
        ours = not row.name.startswith(("entry", "challenge"))
        points = [(size / 1e6, bpb) for size, bpb in zip(row.bytes, row.bpb, strict=True)]
        marker = MARKERS[len(curves) % len(MARKERS)]
        ax.plot(*zip(*points, strict=True), marker, color="black" if ours else "0.55")
        curves[row.name] = points
    ax.margins(0.08)
    plot.name_lines(ax, curves)
    return plot.picture(ax, "code + model, million bytes", "validation after export, bits per byte")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", type=Path, nargs="?", default=ROOT / "README.md")
    parser.add_argument("--out", type=Path, default=ROOT / "records/bpb_against_bytes.png")
    args = parser.parse_args()
    if plot.plt is None:
        print("picture.py: matplotlib is missing: requirements-dev.txt names it.", file=sys.stderr)
        return 2
    try:
        rows = read_table(args.readme.read_text(encoding="utf-8"))
        with plot.plt.rc_context(plot.STYLE | {"font.size": 15}):
            write_file(args.out, draw(rows))
    except (OSError, ValueError) as error:
        print(f"{args.readme}: {error}.", file=sys.stderr)
        return 2
    left_out = [row.name for row in rows if max(row.bpb) > HIGHEST]
    print(f"{args.out}; above {HIGHEST} bpb and left out: {'; '.join(left_out) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
