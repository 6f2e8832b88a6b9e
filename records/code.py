"""The code of an entry: its files and their bytes, and the patterns that it is searched for.

Nothing is run or parsed: a script is text. What it imports or names and what lies in its folder
counts as code. A packed script counts as it lies there, and is unpacked to be searched.
"""

import base64
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from records.files import TEXT_BYTES, Folder, list_folder, open_regular

NO_CODE = re.compile(  # texts, logs, pictures, tokenizers, exports, checkpoints: not even if named
    r"(?i)\.(md|txt|log|out|tsv|rst|png|jpe?g|svg|gif|pdf|html|model|vocab|pcll|ptz|pt|diff|patch)$"
    r"|(^|/)(license|readme|notice|logs?|\.git\w+|submission[^/]*\.json)$"
)
SHARD = struct.pack("<ii", 20240520, 1)  # magic and version


@dataclass(frozen=True)
class CodeSize:
    """The files that a script uses, itself first, and what else could be code or data."""

    programs: dict[Path, list[str]]  # of the files that are used, with what is packed in them
    others: list[Path]

    @property
    def used(self) -> list[Path]:
        return list(self.programs)

    @property
    def bytes(self) -> int:
        """Of what is used, as it lies there."""
        return sum(path.stat().st_size for path in self.used)

    @property
    def packed_bytes(self) -> int:
        """Of what is used, by lzma; at most what lies there."""
        texts = ("".join(programs[:1]).encode() for programs in self.programs.values())
        return min(self.bytes, len(lzma.compress(b"".join(texts))))

    def other_names(self) -> str:
        names = [f"{path.name} {path.stat().st_size:,}" for path in self.others[:3]]
        return ", ".join(names) + (", ..." if len(self.others) > 3 else "")


def measure_code(script: Path, folder: Folder | None = None) -> CodeSize:
    """The script, what it imports or names in literals, what these use, and the others."""
    script = script.resolve()
    folder = folder or list_folder(script.parent)
    rest = [path for path in folder.files if path.resolve() != script and may_be_code(path, folder)]
    programs = {}
    found = [script]
    for file in found:  # grows on the way
        programs[file] = read_programs(file, folder)
        text = "\n".join(programs[file])
        literals = set(re.findall(r"""["'/]([^"'/\n]{1,200})["']""", text))
        imports = re.findall(r"(?m)^[ \t]*(?:import|from)[ \t]([^\n#;]{1,400})", text)
        modules = set(re.findall(r"\w+", " ".join(imports)))
        for path in rest:
            names = {path.name.split(".")[0], path.parent.name}
            imported = path.suffix in (".py", ".so", ".pyc") and names & modules
            if path not in found and (path.name in literals or imported):
                found.append(path)
    return CodeSize(programs, [path for path in rest if path not in programs])


def may_be_code(path: Path, folder: Folder) -> bool:
    """Whether a file may be code or data that counts, and is no token shard."""
    if NO_CODE.search(folder.name(path)):
        return False
    with open_regular(path) as file:
        return file.read(len(SHARD)) != SHARD


LITERALS = re.compile(  # one, or several that stand side by side
    r'''(?s)"""(?:[^"\\]|\\.){500,}?"""|(?:[rb]{0,2}"(?:[^"\\\n]|\\.){20,}"\s*)+("[^"\\\n]{1,19}")?'''
    r"""|'''(?:[^'\\]|\\.){500,}?'''|(?:[rb]{0,2}'(?:[^'\\\n]|\\.){20,}'\s*)+('[^'\\\n]{1,19}')?"""
    r"""|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?"""  # short, or without an end
)
MAX_PACKED = 4  # programs within programs
UNPACK_MEMORY = 96 << 20  # bytes of a decoder; xz at preset 9 takes 65 MiB
RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": UNPACK_MEMORY // 2}]
FAULTS = (ValueError, lzma.LZMAError, zlib.error, EOFError, MemoryError)
STATEMENT = re.compile(rb"(?:^|[\r\n])(?:\xef\xbb\xbf)?(?:import|from|def|class)\s")
OTHER_CODING = re.compile(  # that line 1 or 2 names, and whose ASCII may be something else
    rb"\s*(?:#[^\r\n]*[\r\n]\s*)?#[^\r\n]*coding[:=][ \t]*(?!(?i:utf.?8|latin|iso.?8859|ascii))\w"
)


def read_programs(file: Path, folder: Folder) -> list[str]:
    """A file's text and the programs that are packed in it; [] for what is not read as text."""
    texts = [source_text(folder.bytes(file))]
    for text in texts:  # grows on the way
        inner = source_text(packed_program(text)) if len(texts) <= MAX_PACKED else ""
        texts += [inner] if inner and inner not in texts else []
    return texts if texts[0] else []


def source_text(content: bytes) -> str:
    """A script's text, each line ended by \\n; empty for no text and for unusual codings."""
    if b"\0" in content or OTHER_CODING.match(content):
        return ""
    return re.sub("\r\n?", "\n", content.decode("utf-8-sig", "replace"))


def packed_program(text: str) -> bytes:
    """The program in one of the largest literals of another; empty where there is none."""
    literals = sorted((found[0].strip() for found in LITERALS.finditer(text)), key=len)
    for joined in [one for one in literals[:-3:-1] if len(one) > 50 and one[-1] in "\"'"]:
        quote = joined[-1]
        joined = re.sub(rf"{quote}\s*[rb]{{0,2}}{quote}", "", joined)
        literal = re.sub(rf"^[rb]{{0,2}}{quote}+|{quote}+$", "", joined)
        for decode in (base64.b85decode, base64.b64decode):
            with suppress(*FAULTS):
                if program := unpacked(decode(literal)):
                    return program
    return b""


def unpacked(data: bytes) -> bytes:
    """The whole program that a decompressor makes of all data; empty where none does."""
    for decompressor in (
        lzma.LZMADecompressor(memlimit=UNPACK_MEMORY),
        lzma.LZMADecompressor(lzma.FORMAT_RAW, None, RAW_LZMA),
        zlib.decompressobj(zlib.MAX_WBITS | 32),
    ):
        with suppress(*FAULTS):
            program = decompressor.decompress(data, TEXT_BYTES + 1)
            if decompressor.eof and not decompressor.unused_data and STATEMENT.search(program):
                return program
    return b""


def stays_packed(programs: list[str]) -> bool:
    """Whether nothing was read, or the innermost program runs what was not unpacked."""
    runs = r"\b(?:exec|eval)\([^\n#]{0,200}?(?:decompress|decode)\("
    return not programs or bool(re.search(runs, programs[-1]))


# Patterns are searched in a program without its comments and without what it says to people.
TOKEN = re.compile(
    r"""(?s)#[^\n]*|[rbufRBUF]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''"""
    r"""|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)"""
)
BODY = r"(?:\1[ \t]+.*\n|\n)+"  # lines that stand deeper than the first one
PATTERNS = {
    "picks by the validation score": (
        r"^([ \t]*)(?:el)?if\b.*\b\w*(?:bpb|nll|val_loss)\b[^<>\n]{0,60}<=? ?\(?"
        r"(?:best|selected|min)_?\w*.*\n(?!(?:\1[ \t]+(?:print|log).*\n)+(?!\1[ \t]))"
    ),
    "scores in the last of several epochs": r"epoch\w* == .{0,40}epochs - 1",
    "hash keyed on the target": (
        r"^[ \t]*(?:full_(?:key|idx|hash)\w*|fk|fh) = .*\^|= .{0,200}\^ .{0,4}\b(?:tgt|target)\w*"
    ),
    "validation tokens in calibration": (
        r"^(?![ \t]*def ).*(?:hessian|calib|gptq)\w*\([^()]{0,400}\bval_(?:tokens|data|loader)\b"
        r"(?!\.(?!(?:val_)?tokens))"
    ),
}
FUNCTION = re.compile(rf"(?m)^([ \t]*)(?:async )?def (\w+)\(.*\n{BODY}")
LOOP = re.compile(rf"(?m)^([ \t]*)(?:for|while)\b(?!.*warmup).*\n{BODY}")
VAL_TOKENS = re.compile(r"\bval_(?:tokens|data|seqs)\b")
SCORES = re.compile(r"byte|bpb|scored|next_batch")
FITTED = (  # one after the other in a function: a new tensor, fitted in a loop, and then scored
    re.compile(r"requires_grad(?:_\((?!False)|\s*=\s*(?!False)\w)"),
    re.compile(r"[\n;][ \t]*(?:for|while)\b[^\n]*:"),
    re.compile(r"cross_entropy\((?!ctx|context)"),
    re.compile(r"\.backward\("),
    re.compile(r"\.step\("),
    re.compile(r"cross_entropy\(|log_softmax\(|nll_loss\("),
)
LINE_CHARS = 1_000  # of a longer line the rest is not searched
MAX_PLACES = 100  # of a program that are looked at


class Hit(NamedTuple):
    """A place that looks like something that has invalidated entries."""

    what: str
    number: int  # of its line, from 1 on
    text: str


def search(program: str) -> Iterator[Hit]:
    """The first place of each pattern in a program, for a person to judge."""

    def shortened(found: re.Match) -> str:
        text = found[0]
        if text[0] == "#":
            return ""
        return "''" + "\n" * text.count("\n") if " " in text or len(text) > 200 else text

    lines = []  # of the program; a statement of several lines stands in its first one
    brackets = first = 0
    for line in TOKEN.sub(shortened, program).split("\n"):
        if brackets and len(lines[first]) < LINE_CHARS:
            lines[first] += f" {line.strip()}"
        elif not brackets:
            first = len(lines)
        lines.append("" if brackets else line.rstrip())
        brackets += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        brackets = max(0, brackets)
    code = "".join(f"{line[:LINE_CHARS]}\n" for line in lines)
    found = ((what, re.search(pattern, code, re.M)) for what, pattern in PATTERNS.items())
    places = {what: match.start() for what, match in found if match} | {
        "trains on the validation shards": shards_trained_on(code),
        "trains on validation tokens without scoring them first": unscored_learning(code),
        "fits a shift to the targets that it then scores (SLOT)": fitted_targets(code),
    }
    for what, place in places.items():
        if place is not None:
            number = code.count("\n", 0, place)
            yield Hit(what, number + 1, lines[number].strip())


def shards_trained_on(code: str) -> int | None:
    """Validation shards as training files, unless a switch that is off by default says so."""
    named = re.compile(r"\btrain\w{0,40}\s*(?::[^=;\n]{1,80})?=[^=;\n]*fineweb_(?:val|\*)[^\n]*")
    for found in islice(named.finditer(code), MAX_PLACES):
        switch = re.search(r"\bif (?:\w+\.)*(\w+)", found[0])
        name = switch[1] if switch else "no switch"
        get = rf"(?m)^[ \t]*(?:\w+\.)*{name}\b.*=.*(?:environ\.get|getenv)\([^,]+,\s*([^)\n]+)\)"
        default = re.search(get, code)
        if not default or default[1].strip("\"' ").lower() not in ("", "0", "false", "no", "off"):
            return found.start()
    return None


def unscored_learning(code: str) -> int | None:
    """A loop that trains on validation tokens and scores none, in no function of an evaluation."""
    functions = list(FUNCTION.finditer(code))
    scoring = [one for one in functions if re.search("eval|score", one[2])]
    learning = [one for one in functions if ".backward(" in one[0] and VAL_TOKENS.search(one[0])]
    for one in learning[:MAX_PLACES]:
        if any(f"{one[2]}(" in other[0] for other in scoring[:MAX_PLACES] if other[2] != one[2]):
            continue
        for loop in LOOP.finditer(one[0]):
            steps = ".backward(" in loop[0] and ".step(" in loop[0]
            if steps and VAL_TOKENS.search(loop[0]) and not SCORES.search(loop[0]):
                return one.start() + loop.start()
    return None


def fitted_targets(code: str) -> int | None:
    """A new tensor that is fitted in a loop by the loss that is computed only after it."""
    for first in list(FITTED[0].finditer(code))[:MAX_PLACES]:
        end = re.compile(r"\n[ \t]*(?:async )?def ").search(code, first.end())
        found = [first]
        for step in FITTED[1:]:
            found.append(step.search(code, found[-1].end(), end.start() if end else len(code)))
            if found[-1] is None:
                break
        scored = "cross_entropy(" in code[first.end() : found[1].start()] if found[1] else True
        if found[-1] and not scored:
            return first.start()
    return None
