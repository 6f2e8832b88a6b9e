"""What a script pulls in, and patterns in scripts that have invalidated entries before.

    from records.code import code_bytes, read_code
    files, computed = read_code(Path("train_gpt.py"))     # the files that count, calls not followed
    as_they_lie, by_lzma = code_bytes(files)              # bytes

What a script pulls in from its own folder counts as code. It is found in the syntax tree, so
nothing is run; a call whose target is only computed at run time is listed by itself.

Sections: text of files, code size, references, programs as they are compared, patterns.
"""

import ast
import base64
import lzma
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

TEXT_BYTES = 1_000_000  # a larger script, README or submission.json is not read
STATEMENT_CHARS = 4_000  # of a longer statement the rest is not searched
UNREADABLE = (  # what a program in any state may raise
    SyntaxError,
    ValueError,
    IndexError,
    RecursionError,
    MemoryError,
    OSError,
)


# ---------------------------------------------------------------- text of files


def read_text(path: Path | None) -> str:
    """A text file; empty where there is none or it is over TEXT_BYTES."""
    if path is None or path.stat().st_size > TEXT_BYTES:
        return ""
    return path.read_bytes().decode("utf-8-sig", "replace")


# ---------------------------------------------------------------- code size

NOT_CODE = {".bin", ".model", ".vocab", ".pcll"}  # shards, tokenizer, artifact


def read_code(script: Path) -> tuple[list[Path], list[str]]:
    """A script and the files beside it that it pulls in; its calls that may read or run more."""
    script = script.resolve()
    files = [script]
    computed = []

    for file in files:  # grows on the way
        if file.suffix != ".py":
            continue
        used, unknown = references(file, script.parent)
        computed += unknown

        for path in used:
            if not os.path.isfile(path) or path.suffix in NOT_CODE:
                continue
            path = path.resolve()
            if path.is_relative_to(script.parent) and path not in files:
                files.append(path)

    return files, computed


def code_bytes(files: list[Path]) -> tuple[int, int]:
    """Bytes of files as they lie there, and with each of them compressed by lzma."""
    texts = [file.read_bytes() for file in files]
    return sum(map(len, texts)), sum(len(lzma.compress(text)) for text in texts)


# ---------------------------------------------------------------- references

FILE_CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "exec",
    "eval",
    "run_path",
    "CDLL",
    "spec_from_file_location",
}
MODULE_CALLS = {"import_module", "__import__", "run_module"}
PATH_WORDS = (  # names that a path may contain and still be constant
    "__file__ Path pathlib os path str compile read parent join joinpath dirname "
    "abspath resolve with_name io runpy importlib util ctypes"
).split()


class References:
    """What a Python file refers to, collected from one syntax node after the other."""

    def __init__(self, file: Path, folder: Path):
        self.file = file
        self.folder = folder  # the script's: imports and paths start there
        self.paths = []  # what it imports, opens or runs; need not exist
        self.computed = []  # its calls whose target is computed: "x.py:12 open"
        words = [*FILE_CALLS, *MODULE_CALLS, *PATH_WORDS]
        self.names = dict.fromkeys(words, "")  # name -> its text; None for a computed one

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.visit_import(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self.visit_name(node.targets[0].id, node.value)
        elif isinstance(node, ast.Call):
            self.visit_call(node)

    def visit_import(self, node: ast.Import | ast.ImportFrom) -> None:
        level = getattr(node, "level", 0)
        module = getattr(node, "module", None) or ""
        base = self.file.parents[level - 1] if level else self.folder
        names = [f"{module}.{name.name}" for name in node.names]
        self.paths += [path for name in names for path in module_files(name, base)]

    def visit_name(self, name: str, value: ast.expr) -> None:
        text = constant_path(value, self.names)
        self.names[name] = None if name in self.names else text  # one that changes is computed

    def visit_call(self, call: ast.Call) -> None:
        target = call_target(call)
        if target is None:
            return

        name = ast.unparse(call.func).split(".")[-1]
        text = constant_path(target, self.names)
        if text is None:
            self.computed.append(f"{self.file.name}:{call.lineno} {name}")
        elif name in MODULE_CALLS:
            self.paths += module_files(text, self.folder)
        else:
            beside = "__file__" in ast.unparse(target)
            self.paths.append((self.file.parent if beside else self.folder) / text)


def references(file: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Paths that a Python file imports, opens or runs, which need not exist; its calls whose
    target is computed, and the file as a whole where it cannot be read."""
    if file.stat().st_size > TEXT_BYTES:
        return [], [f"{file.name} as a whole (over {TEXT_BYTES:,} bytes)"]

    found = References(file, folder)
    try:
        for node in ast.walk(ast.parse(file.read_bytes())):
            found.visit(node)
    except UNREADABLE as error:
        found.computed.append(f"{file.name} as a whole ({type(error).__name__})")
    return found.paths, found.computed


def call_target(call: ast.Call) -> ast.expr | None:
    """The expression that names what a call reads, runs or imports; None for a call that does
    nothing of the kind."""
    dotted = isinstance(call.func, ast.Attribute)
    name = call.func.attr if dotted else getattr(call.func, "id", "")
    if name not in FILE_CALLS | MODULE_CALLS:
        return None
    if name == "open":
        return open_target(call, dotted)
    if dotted and name in ("exec", "eval"):
        return None  # a method of this name is neither
    if dotted and name in ("read_text", "read_bytes"):
        return call.func.value
    if not call.args:
        return None
    return call.args[-1] if name == "spec_from_file_location" else call.args[0]


def open_target(call: ast.Call, dotted: bool) -> ast.expr | None:
    """What a call of open, or of a method `dotted` of this name, reads; None if it only writes."""
    others = call.args if dotted else call.args[1:]
    others = [*others, *(keyword.value for keyword in call.keywords)]
    constants = [other.value for other in others if isinstance(other, ast.Constant)]
    modes = [value for value in constants if set(str(value)) <= set("rwaxbt+")]

    if modes and not set(modes[0]) & set("r+"):
        return None
    if dotted and len(modes) == len(call.args):
        return call.func.value
    return call.args[0] if call.args else None


def constant_path(node: ast.expr, names: dict[str, str | None]) -> str | None:
    """The path lib/x.py for Path(__file__).parent / "lib" / NAME and the like; None for what is
    computed."""
    parts = []
    for text, word, other in re.findall(r"'([^'\\]*)'|(\w+)|([^\s./,()])", ast.unparse(node)):
        part = names.get(word) if word else text
        if other or part is None:
            return None
        parts.append(part)
    return os.path.join("", *parts)


def module_files(name: str, base: Path) -> list[Path]:
    """Where an imported module could lie: a.b as a/__init__.py, a.py, a/b/__init__.py, a/b.py,
    a/b.*.so, ..."""
    parts = [part for part in name.split(".") if part.isidentifier()]
    stems = [base.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    ends = ("/__init__.py", ".py", ".pyc")
    plain = [stem.parent / f"{stem.name}{end}" for stem in stems for end in ends]
    compiled = [file for stem in stems for file in stem.parent.glob(f"{stem.name}.*so")]
    return plain + compiled


# ---------------------------------------------------------------- programs as they are compared

PACKED = re.compile(r"['\"]([^'\"\s\\]{1000,})['\"]")  # a program as text of letters
RAW_LZMA = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}


def code_shape(lines: list[str]) -> str | None:
    """A program without its comments and layout; None if it does not parse."""
    with suppress(*UNREADABLE):
        return ast.dump(ast.parse("\n".join(lines)))


def unpack(text: str) -> str:
    """The program inside exec(lzma.decompress(b85decode("..."))), as late entries pack it; else
    the program itself."""
    decoders = (base64.b85decode, base64.b64decode)
    forms = ({"memlimit": 1 << 26}, RAW_LZMA)
    for blob, decode, form in product(PACKED.findall(text)[:3], decoders, forms):
        with suppress(ValueError, lzma.LZMAError):
            return lzma.LZMADecompressor(**form).decompress(decode(blob), TEXT_BYTES).decode()
    return text


# ---------------------------------------------------------------- patterns

CODE_PATTERNS = {  # looked for in each statement, or in the condition of an if or while
    "picks by the validation score": re.compile(
        r"\b\w*(bpb|nll|val_loss)\b[^<>]{0,60}<=? \(?(best|selected|min)_?\w*"
    ),
    "scores in the last of several epochs": re.compile(r"epoch\w* == .{0,40}epochs - 1"),
    "scores tokens in a second pass": re.compile(
        r"\b(two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\("
    ),
    "hash keyed on the target": re.compile(
        r"^(full_(key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(tgt|target)\w*"
    ),
    "validation tokens in calibration": re.compile(
        r"(hessian|calib|gptq)\w*\([^)]*\bval_(tokens|data|loader)\b"
    ),
    "downloads": re.compile(
        r"\b(urlopen|urlretrieve|\w+_download|load_dataset|requests\.get)\(|\b(curl|wget) "
    ),
}
VAL_TOKENS = re.compile(r"\bval_(tokens|data|seqs)\b")
SCORED = re.compile("byte|bpb|scored")


class Hit(NamedTuple):
    """A place that looks like something that has invalidated entries."""

    what: str  # "downloads"
    line: int  # number, from 1 on
    text: str  # the statement or condition


def code_patterns(tree: ast.Module) -> Iterator[Hit]:
    """The hits in a program, for a person to judge."""
    yield from unscored_learning(tree)
    for node in ast.walk(tree):
        searched = searched_part(node)
        if searched is None:
            continue
        text = ast.unparse(searched)[:STATEMENT_CHARS]
        for what, pattern in CODE_PATTERNS.items():
            if pattern.search(text):
                yield Hit(what, node.lineno, text)


def searched_part(node: ast.AST) -> ast.AST | None:
    """A condition, or a statement without a body that is no docstring."""
    test = getattr(node, "test", None)
    if test is not None:
        return test
    if not isinstance(node, ast.stmt) or hasattr(node, "body"):
        return None
    return None if isinstance(getattr(node, "value", None), ast.Constant) else node


def unscored_learning(tree: ast.Module) -> Iterator[Hit]:
    """Loops that train on validation tokens and score nothing, in functions that no function
    calls which evaluates or scores: those adapt on what they scored."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    texts = {name: ast.unparse(node) for name, node in functions.items()}

    for name, node in functions.items():
        loops = {loop.lineno: ast.unparse(loop) for loop in outer_loops(node)}
        learning = [line for line, text in loops.items() if learns_unscored(text)]
        if not learning:
            continue
        callers = [other for other, text in texts.items() if other != name and f"{name}(" in text]
        if any("eval" in caller or "score" in caller for caller in callers):
            continue
        for line in learning:
            what = "trains on validation tokens without scoring them first"
            yield Hit(what, line, f"loop in {name}")


def learns_unscored(loop: str) -> bool:
    steps = ".backward(" in loop and ".step(" in loop
    return steps and VAL_TOKENS.search(loop) is not None and not SCORED.search(loop)


def outer_loops(node: ast.AST) -> list[ast.For | ast.While]:
    """The loops of a function that lie in no other loop."""
    loops = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.For | ast.While):
            loops.append(child)
        elif not isinstance(child, ast.FunctionDef):
            loops += outer_loops(child)
    return loops
