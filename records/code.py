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
PATH_WORDS = [  # names that a path may contain and still be constant
    *FILE_CALLS,
    *MODULE_CALLS,
    *"__file__ Path pathlib os path str compile read parent join joinpath dirname".split(),
    *"abspath resolve with_name io runpy importlib util ctypes".split(),
]


def references(file: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Paths that a Python file imports, opens or runs, from `folder` on, which need not exist; its
    calls whose target is computed, "x.py:12 open", and the file where it cannot be read."""
    if file.stat().st_size > TEXT_BYTES:
        return [], [f"{file.name} as a whole (over {TEXT_BYTES:,} bytes)"]

    paths = []
    computed = []
    names = dict.fromkeys(PATH_WORDS, "")  # name -> its text; None for one that is computed
    try:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                paths += imported_files(node, file, folder)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                text = constant_path(node.value, names)
                names[name] = None if name in names else text  # one that changes is computed
            elif isinstance(node, ast.Call):
                target = call_target(node)
                if target is None:
                    continue
                call = ast.unparse(node.func).split(".")[-1]
                text = constant_path(target, names)
                if text is None:
                    computed.append(f"{file.name}:{node.lineno} {call}")
                elif call in MODULE_CALLS:
                    paths += module_files(text, folder)
                else:
                    beside = "__file__" in ast.unparse(target)
                    paths.append((file.parent if beside else folder) / text)
    except UNREADABLE as error:
        computed.append(f"{file.name} as a whole ({type(error).__name__})")
    return paths, computed


def imported_files(node: ast.Import | ast.ImportFrom, file: Path, folder: Path) -> list[Path]:
    """Where the modules of an import in `file` could lie."""
    level = getattr(node, "level", 0)
    module = getattr(node, "module", None) or ""
    base = file.parents[level - 1] if level else folder
    found = []
    for name in node.names:
        found += module_files(f"{module}.{name.name}", base)
    return found


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
    found = []
    stem = base
    for part in name.split("."):
        if part.isidentifier():
            found += [stem / part / "__init__.py", stem / f"{part}.py", stem / f"{part}.pyc"]
            found += stem.glob(f"{part}.*so")
            stem = stem / part
    return found


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
    "picks by the validation score": (
        r"\b\w*(bpb|nll|val_loss)\b[^<>]{0,60}<=? \(?(best|selected|min)_?\w*"
    ),
    "scores in the last of several epochs": r"epoch\w* == .{0,40}epochs - 1",
    "scores tokens in a second pass": r"\b(two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\(",
    "hash keyed on the target": (
        r"^(full_(key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(tgt|target)\w*"
    ),
    "validation tokens in calibration": (
        r"(hessian|calib|gptq)\w*\([^)]*\bval_(tokens|data|loader)\b"
    ),
    "downloads": (
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
            if re.search(pattern, text):
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
        loops = [loop.lineno for loop in outer_loops(node) if learns_unscored(ast.unparse(loop))]
        if not loops:
            continue
        callers = [other for other, text in texts.items() if other != name and f"{name}(" in text]
        if any("eval" in caller or "score" in caller for caller in callers):
            continue
        for line in loops:
            what = "trains on validation tokens without scoring them first"
            yield Hit(what, line, f"loop in {name}")


def learns_unscored(loop: str) -> bool:
    steps = ".backward(" in loop and ".step(" in loop
    return steps and bool(VAL_TOKENS.search(loop)) and not SCORED.search(loop)


def outer_loops(node: ast.AST) -> list[ast.For | ast.While]:
    """The loops of a function that lie in no other loop."""
    loops = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.For | ast.While):
            loops.append(child)
        elif not isinstance(child, ast.FunctionDef):
            loops += outer_loops(child)
    return loops
