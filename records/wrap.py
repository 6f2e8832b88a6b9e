"""Packs a script into one that counts fewer bytes under the cap, or takes it out again.

    python records/wrap.py train_gpt.py wrapped.py             then run wrapped.py in its place
    python records/wrap.py --unwrap wrapped.py readable.py     any script that unpacks another

A wrapped script is exec(lzma.decompress(b85decode("..."))): the same program to the letter. Its log
embeds it, and the record folder holds it as train_gpt.py. Unwrapping runs nothing, so it is safe
with a stranger's script. An error leaves nothing behind.
"""

import argparse
import ast
import base64
import lzma
import sys
from pathlib import Path

if __name__ == "__main__":  # imports start at the root
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from records.code import packed_program
from records.files import TEXT_BYTES
from records.pack import read_file, run_tool, write_file
from records.report import UnusableInput

LINE_CHARS = 1000  # a log's reader takes no line of more than 4,000


def wrap(name: str, source: bytes) -> bytes:
    """A script that runs the source; UnusableInput if that is no Python."""
    try:
        ast.parse(source, name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnusableInput(f"{name} is no Python program: {error}.") from None

    packed = lzma.compress(source, preset=9 | lzma.PRESET_EXTREME)
    text = base64.b85encode(packed).decode()  # without a quote or a backslash
    lines = [f'"{text[at : at + LINE_CHARS]}"' for at in range(0, len(text), LINE_CHARS)]
    head = "import base64, lzma\n\nexec(lzma.decompress(base64.b85decode(\n"
    return "\n".join([head + lines[0], *lines[1:], ")))\n"]).encode()


def unwrap(name: str, source: bytes) -> bytes:
    """The program that a script unpacks first, byte by byte; UnusableInput if there is none."""
    if program := packed_program(source.decode("utf-8-sig", "replace")):
        return program
    raise UnusableInput(f"{name} unpacks no other program that is whole.")


def convert(args: argparse.Namespace) -> str:
    """Writes the other script; returns what to say about it."""
    source = read_file(args.script, TEXT_BYTES)
    if args.out.exists() and args.out.samefile(args.script):
        raise UnusableInput(f"{args.out} is the script itself: give another name.")
    result = (unwrap if args.unwrap else wrap)(str(args.script), source)
    write_file(args.out, result)
    return f"{args.out}: {len(result)} bytes for the {len(source)} of {args.script}."


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("wrap.py", description=__doc__, formatter_class=form)
    parser.add_argument("script", metavar="SCRIPT", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--unwrap", action="store_true", help="take the packed program out")
    args = parser.parse_args(argv)
    return run_tool("wrap.py", lambda: convert(args))


if __name__ == "__main__":
    sys.exit(main())
