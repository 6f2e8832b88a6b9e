"""The code of an entry: its files and their bytes, and the patterns that it is searched for.

    from records.code import measure_code, read_programs, search
    measure_code(Path("train_gpt.py")).bytes
    hits = [hit for program in read_programs(path, folder) for hit in search(program)]

Nothing is run or parsed: a script is text. What it imports or names and what lies in its folder
counts as code. A packed script counts as it lies there; to be searched, its largest literals are
unpacked, to at most TEXT_BYTES.
"""

import base64
import binascii
import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zstandard

from records.files import TEXT_BYTES, Folder, list_folder, read_regular

# ---------------------------------------------------------------- code size

NO_CODE = re.compile(  # logs, texts, pictures, tokenizers, exports, checkpoints
    r"(?i)(\.(md|txt|log|out|json|jsonl|csv|tsv|ya?ml|toml|cfg|ini|rst|png|jpe?g|svg|gif|pdf|html"
    r"|model|vocab|pcll|ptz|diff|patch|ipynb)|(^|/)(license|readme|notice|logs?|\.git\w+))$"
)
NEVER_CODE = re.compile(  # not even if the script names it
    r"(?i)(^readme|^submission|^requirements|\.(md|txt|log|out|model|vocab|pcll|ptz)$)"
)
SHARD = struct.pack("<ii", 20240520, 1)  # magic and version


@dataclass(frozen=True)
class CodeSize:
    """The files that a script uses, itself first, and what else could be code or data."""

    used: list[Path]
    others: list[Path]

    @property
    def bytes(self) -> int:
        """Of what is used, as it lies there."""
        return sum(path.stat().st_size for path in self.used)

    def other_names(self) -> str:
        names = [f"{path.name} {path.stat().st_size:,}" for path in self.others[:3]]
        return ", ".join(names) + (", ..." if len(self.others) > 3 else "")


def measure_code(script: Path, folder: Folder | None = None) -> CodeSize:
    """The script, the files that it imports or names, those that these do, and the others."""
    script = script.resolve()
    folder = folder or list_folder(script.parent)
    rest = [path for path in folder.files if path.resolve() != script]
    used = [script]
    for file in used:  # grows on the way
        for text in read_programs(file, folder):
            used += [path for path in rest if path not in used and uses(text, path, script.parent)]
    others = [path for path in rest if path not in used and may_be_code(path, folder)]
    return CodeSize(used, others)


def uses(text: str, path: Path, home: Path) -> bool:
    """Whether a program imports a file, or has its name in a literal."""
    if path.suffix in (".py", ".so", ".pyc"):
        parts = path.relative_to(home).parts if path.is_relative_to(home) else (path.name,)
        names = {re.escape(parts[0].split(".")[0]), re.escape(path.name.split(".")[0])}
        words = "|".join(names - {"__init__"})
        if re.search(rf"(?m)^\s*(?:import|from)\s[\w.\s,]*(?<!\w)(?:{words})\b", text):
            return True
    named = re.search(rf"""["'/]{re.escape(path.name)}["']""", text)
    return bool(named) and not NEVER_CODE.search(path.name)


def may_be_code(path: Path, folder: Folder) -> bool:
    return not NO_CODE.search(folder.name(path)) and read_regular(path, len(SHARD)) != SHARD


# ---------------------------------------------------------------- packed programs

LITERALS = re.compile(  # one, or several that stand side by side
    r'''(?s)"""(?:[^"\\]|\\.){500,}?"""|(?:[rb]{0,2}"(?:[^"\\\n]|\\.){20,}"\s*)+'''
    r"""|'''(?:[^'\\]|\\.){500,}?'''|(?:[rb]{0,2}'(?:[^'\\\n]|\\.){20,}'\s*)+"""
)
MAX_PACKED = 4  # programs within programs
UNPACK_MEMORY = 96 << 20  # bytes of a decoder; xz at preset 9 takes 65 MiB
RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": UNPACK_MEMORY // 2}]
DECODERS = (
    base64.b85decode,
    lambda text: base64.b64decode(text, validate=True),
    base64.a85decode,
    binascii.unhexlify,
    lambda text: text.encode().decode("unicode_escape").encode("latin-1"),
)
FAULTS = (
    ValueError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    MemoryError,
    zstandard.ZstdError,
)


def unpackers() -> Iterator:
    """Decompressors, anew for each data; their first argument may be followed by a length."""
    window = UNPACK_MEMORY // 2
    yield lzma.LZMADecompressor(memlimit=UNPACK_MEMORY).decompress
    yield zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
    yield bz2.BZ2Decompressor().decompress
    yield (
        lambda data, most: (
            zstandard.ZstdDecompressor(max_window_size=window).stream_reader(data).read(most)
        )
    )
    yield lzma.LZMADecompressor(lzma.FORMAT_RAW, None, RAW_LZMA).decompress
    yield zlib.decompressobj(-zlib.MAX_WBITS).decompress


def read_programs(file: Path, folder: Folder) -> list[str]:
    """A file's text and the programs that are packed in it; [] for what is no text."""
    content = folder.bytes(file)
    if content is None or b"\0" in content and file.suffix != ".py":
        return []
    texts = [content.decode("utf-8-sig", "replace")]
    for text in texts:  # grows on the way
        inner = packed_program(text) if len(texts) <= MAX_PACKED else ""
        texts += [inner] if inner and inner not in texts else []
    return texts


def packed_program(text: str) -> str:
    """The program in one of the largest literals of another; empty where there is none."""
    literals = (found[0].strip() for found in LITERALS.finditer(text) if len(found[0]) > 500)
    for joined in sorted(literals, key=len, reverse=True)[:2]:
        quote = joined[-1]
        joined = re.sub(rf"{quote}\s*[rb]{{0,2}}{quote}", "", joined)
        literal = re.sub(rf"^[rb]{{0,2}}{quote}+|{quote}+$", "", joined)
        for decode in DECODERS:
            for unpack in unpackers():
                with suppress(*FAULTS):
                    program = unpack(decode(literal), TEXT_BYTES).decode()
                    if re.search(r"(?m)^(?:import|from|def|class)\s", program):
                        return program
    return ""


def stays_packed(programs: list[str]) -> bool:
    """Whether the innermost program runs something that was not unpacked."""
    return bool(re.search(r"(?m)^[^#\n]*\b(?:exec|eval)\(.*(?:decompress|decode)\(", programs[-1]))


# ---------------------------------------------------------------- patterns

TOKEN = re.compile(  # comments and literals, in which no bracket counts
    r"""(?s)#[^\n]*|[rbufRBUF]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''"""
    r"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
)
PATTERNS = {  # what has invalidated entries before, in one statement
    "picks by the validation score": (
        r"^(?:el)?if\b.*\b\w*(?:bpb|nll|val_loss)\b[^<>]{0,60}<=? ?\(?(?:best|selected|min)_?\w*"
    ),
    "scores in the last of several epochs": r"epoch\w* == .{0,40}epochs - 1",
    "scores tokens in a second pass": r"\b(?:two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\(",
    "hash keyed on the target": (
        r"^(?:full_(?:key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(?:tgt|target)\w*"
    ),
    "validation tokens in calibration": (
        r"^(?!def ).*(?:hessian|calib|gptq)\w*\([^)]*\bval_(?:tokens|data|loader)\b"
        r"(?!\.(?!(?:val_)?tokens))"
    ),
    "downloads": (
        r"\b(?:urlopen|urlretrieve|\w+_download|load_dataset|requests\.get)\(|\b(?:curl|wget) "
    ),
}
LOOP = re.compile(r"(?:for|while)\b")
LEARNS = re.compile(r"(?s)\.backward\(.*\.step\(")
VAL_TOKENS = re.compile(r"\bval_(?:tokens|data|seqs)\b")
SCORES = re.compile(r"byte|bpb|scored")


@dataclass(frozen=True)
class Statement:
    number: int  # of its first line, from 1 on
    indent: int
    text: str  # in one line, without comments


@dataclass(frozen=True)
class Hit:
    """A place that looks like something that has invalidated entries."""

    what: str
    statement: Statement


def search(program: str) -> Iterator[Hit]:
    """The first place of each pattern in a program, for a person to judge."""
    code = statements(program)
    places = {what: places_of(pattern, code) for what, pattern in PATTERNS.items()} | {
        "trains on the validation shards": shards_trained_on(code),
        "trains on validation tokens without scoring them first": unscored_learning(code),
        "fits a shift to the targets that it then scores (SLOT)": fitted_targets(code),
    }
    for what, found in places.items():
        if first := next(found, None):
            yield Hit(what, first)


def statements(program: str) -> list[Statement]:
    """The statements of a program, in order, without comments and what is said to people."""

    def shortened(found: re.Match) -> str:
        text = found[0]
        if text[0] == "#":
            return ""
        return "''" + "\n" * text.count("\n") if " " in text or len(text) > 200 else text

    found = []
    brackets = 0  # that are open
    for number, line in enumerate(TOKEN.sub(shortened, program).split("\n"), 1):
        text = line.strip()
        if brackets > 0:
            first = found.pop()
            found.append(Statement(first.number, first.indent, f"{first.text} {text}"[:4_000]))
        elif text:
            found.append(Statement(number, len(line) - len(line.lstrip()), text))
        brackets += sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
        brackets = max(0, brackets)
    return found


def body_of(code: list[Statement], i: int) -> list[Statement]:
    """The statements within statement i."""
    end = i + 1
    while end < len(code) and code[end].indent > code[i].indent:
        end += 1
    return code[i + 1 : end]


def text_of(code: list[Statement]) -> str:
    return "\n".join(one.text for one in code)


def places_of(pattern: str, code: list[Statement]) -> Iterator[Statement]:
    """Statements of a pattern, but conditions that do no more than print."""
    for i, one in enumerate(code):
        if re.search(pattern, one.text):
            body = body_of(code, i)
            if not body or not all(re.match("print|log", inner.text) for inner in body):
                yield one


def shards_trained_on(code: list[Statement]) -> Iterator[Statement]:
    """Validation shards as training files, unless a switch that is off by default says so."""
    for one in code:
        if re.match(r"(?:\w+\.)?\w*train\w*\s*(?::[^=]+)?=.*fineweb_val", one.text):
            switch = re.search(r"\bif (?:\w+\.)*(\w+)", one.text)
            default = switch and re.search(
                rf"(?m)^(?:\w+\.)*{switch[1]}\b.*=.*(?:environ\.get|getenv)\([^,]+,\s*([^)]+)\)",
                text_of(code),
            )
            if not default or default[1].strip("\"' ").lower() not in (
                "",
                "0",
                "false",
                "no",
                "off",
            ):
                yield one


def unscored_learning(code: list[Statement]) -> Iterator[Statement]:
    """Outer loops that train on validation tokens and score nothing, in functions that no other
    calls which evaluates or scores: those adapt on what they scored. Warming up is no training."""
    defined = {i: re.match(r"(?:async )?def (\w+)", one.text) for i, one in enumerate(code)}
    bodies = {name[1]: body_of(code, i) for i, name in defined.items() if name}
    for name, body in bodies.items():
        callers = (other for other, inner in bodies.items() if f"{name}(" in text_of(inner))
        if any(re.search("eval|score", caller) for caller in callers if caller != name):
            continue
        end = 0
        for i, one in enumerate(body):
            if i < end or not LOOP.match(one.text):
                continue
            loop = text_of(body_of(body, i))
            end = i + len(body_of(body, i))
            learns = LEARNS.search(loop) and "warmup" not in one.text.lower()
            if learns and VAL_TOKENS.search(one.text + loop) and not SCORES.search(loop):
                yield one


def fitted_targets(code: list[Statement]) -> Iterator[Statement]:
    """Loops that fit a new tensor by the loss that is computed after them, and not before."""
    for i, one in enumerate(code):
        loop = text_of(body_of(code, i)) if LOOP.match(one.text) else ""
        if "cross_entropy(" not in loop or not LEARNS.search(loop):
            continue
        first = i
        while first > 0 and code[first - 1].indent >= one.indent:
            first -= 1
        before = text_of(code[first:i])
        after = text_of(body_of(code, first - 1)) if first else text_of(code)
        after = after[len(before) + len(one.text) + len(loop) :]
        new = re.search(r"requires_grad(?:_\(|\s*=\s*True)|nn\.Parameter\(", before)
        if new and "cross_entropy(" in after and "cross_entropy(" not in before:
            yield one
