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
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # imports start at the root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from records.files import TEXT_BYTES, open_regular
from records.programs import UNREADABLE, read_programs

LINE_CHARS = 1000  # a log's reader takes no line of more than 4,000


class UserError(Exception):
    """What is wrong with a script; its text is the sentence that is printed."""


def wrap(name: str, source: bytes) -> bytes:
    """A script that runs the source; UserError if that is no Python."""
    try:
        ast.parse(source, name)
    except UNREADABLE as error:
        raise UserError(f"{name} is no Python program: {error}.") from None

    packed = lzma.compress(source, preset=9 | lzma.PRESET_EXTREME)
    text = base64.b85encode(packed).decode()  # without a quote or a backslash
    lines = [f'"{text[at : at + LINE_CHARS]}"' for at in range(0, len(text), LINE_CHARS)]
    head = "import base64, lzma\n\nexec(lzma.decompress(base64.b85decode(\n"
    return "\n".join([head + lines[0], *lines[1:], ")))\n"]).encode()


def unwrap(name: str, source: bytes) -> bytes:
    """The program that a script unpacks first; UserError if there is none."""
    programs, unread = read_programs(name, source.decode("utf-8-sig", "replace"))
    if len(programs) > 1:
        return programs[1].text.encode()
    reason = f": {unread[0]}" if unread else ""
    raise UserError(f"{name} unpacks no other program{reason}.")


def read(path: Path) -> bytes:
    with open_regular(path) as file:
        source = file.read(TEXT_BYTES + 1)
    if len(source) > TEXT_BYTES:
        raise UserError(f"{path} has more than {TEXT_BYTES} bytes.")
    return source


def write_atomically(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("wrap.py", description=__doc__, formatter_class=form)
    parser.add_argument("script", metavar="SCRIPT", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--unwrap", action="store_true", help="take the packed program out")
    args = parser.parse_args(argv)
    try:
        source = read(args.script)
        if args.out.exists() and args.out.samefile(args.script):
            raise UserError(f"{args.out} is the script itself: give another name.")
        result = (unwrap if args.unwrap else wrap)(str(args.script), source)
        write_atomically(args.out, result)
        print(f"{args.out}: {len(result)} bytes for the {len(source)} of {args.script}.")
        return 0
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}."
    print(f"wrap.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
