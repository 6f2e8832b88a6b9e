"""Programs of a stranger as syntax trees: packed ones unpacked, none of them run.

    from records.programs import read_programs
    programs, packed = read_programs("train_gpt.py", text)

A packed script is exec(lzma.decompress(b85decode("..."))) in one of its many spellings. Constants
folds the expression: literals, their sums and joins, names that are bound once, and the decoders
below; what it cannot fold is named. Decoders write at most TEXT_BYTES and use at most UNPACK_MEMORY
bytes, which is enough for xz at preset 9.

Sections: parsing, constants, decoders, packed programs, programs as they are compared, patterns,
what is switched off.
"""

import ast
import base64
import binascii
import bz2
import hashlib
import lzma
import operator
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import zstandard

from records.files import TEXT_BYTES

UNPACK_MEMORY = 96 << 20  # bytes of a decoder; xz at preset 9 takes 65 MiB
MAX_TOKENS = 200_000  # words and signs of a program; a tree takes about 1 kB for each
MAX_ATTEMPTS = 40  # lines that are left out so that the rest parses
MAX_NESTING = 100  # of an expression that is folded
MAX_DECODED = 100  # packed texts of a program that are decoded
MAX_PACKED = 20  # programs that are packed in one
PACKED_CHARS = 3_000_000  # of these together
MAX_DEPTH = 5  # packed programs within packed programs
STATEMENT_CHARS = 4_000  # of a longer statement the rest is not searched
UNREADABLE = (  # what a program in any state may raise
    SyntaxError,
    ValueError,
    IndexError,
    RecursionError,
    MemoryError,
    OSError,
)


# ---------------------------------------------------------------- parsing


class Parsed(NamedTuple):
    """A program's tree, and what of it could not be read."""

    tree: ast.Module  # of all statements that could be read
    problem: str  # "" or "line 2 has no syntax of Python 3.11"
    nodes: list[ast.AST]  # of the tree, the outer ones first


@lru_cache(maxsize=4)
def parse(text: str) -> Parsed:
    """A program as far as it can be read: statement by statement where it does not parse."""
    tree, problem = parse_statements(text)
    return Parsed(tree, problem, list(ast.walk(tree)))


def parse_statements(text: str) -> tuple[ast.Module, str]:
    nothing = ast.Module([], [])
    if sum(1 for _ in re.finditer(r"\w+|[^\w\s]", text)) > MAX_TOKENS:
        return nothing, f"it has more than {MAX_TOKENS:,} words and signs"
    try:
        return ast.parse(text), ""
    except SyntaxError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        problem = f"line {error.lineno or 1} has no syntax of Python {version}"
    except UNREADABLE as error:
        problem = f"{type(error).__name__} in it"

    tree = ast.Module([], [])
    attempts = MAX_ATTEMPTS
    for first, lines in statements(text):
        part = None
        while part is None and attempts > 0:
            part, wrong = parse_lines(lines)
            if not wrong:
                break
            attempts -= 1
            spaces = len(lines[wrong - 1]) - len(lines[wrong - 1].lstrip())
            lines[wrong - 1] = " " * spaces + "pass"
        if part:
            tree.body += ast.increment_lineno(part, first).body
    return tree, problem


def parse_lines(lines: list[str]) -> tuple[ast.Module | None, int]:
    """The tree of some lines, or the number of the one that does not parse; 0 where there is
    none."""
    try:
        return ast.parse("\n".join(lines)), 0
    except SyntaxError as error:
        return None, min(error.lineno or 0, len(lines))
    except UNREADABLE:
        return None, 0


def statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines before a statement of the outermost level, and its lines; a decorator stands alone."""
    lines = text.split("\n")
    edges = [i for i, line in enumerate(lines) if re.match(r"[^\s#)\]}]", line)]
    edges = [i for i in edges if not re.match(r"(elif|else|except|finally)\b", lines[i])]
    if not edges:
        return
    for start, end in zip(edges, [*edges[1:], len(lines)], strict=True):
        yield start, lines[start:end]


# ---------------------------------------------------------------- constants


def bindings(nodes: list[ast.AST]) -> dict[str, ast.expr | None]:
    """Each name that is bound, with its expression; None if bound twice, or otherwise than by an
    assignment or a with."""
    values = {}
    counts = Counter()
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value if len(node.targets) == 1 else None
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            values[node.optional_vars.id] = node.context_expr
        elif isinstance(node, BINDING):
            counts.update(names_bound_by(node))
    return {name: values.get(name) if count == 1 else None for name, count in counts.items()}


BINDING = (ast.Name, ast.Attribute, ast.arg, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BINDING += (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def names_bound_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return [node.id if isinstance(node, ast.Name) else node.attr]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return [node.name]
    return []


def call_name(call: ast.Call) -> str:
    """The last part of what is called: "open" for io.open(...)."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class Constants:
    """Values of a program's expressions that are known without running it: text, bytes, numbers and
    lists of them. A path is text."""

    def __init__(self, nodes: list[ast.AST], file: str = "", folder: str = ""):
        self.names = bindings(nodes)
        self.file = file  # what __file__ is
        self.folder = folder  # in which it runs
        self.values = {}  # of names that were looked up; None while they are
        self.depth = 0
        self.left = MAX_DECODED
        self.lacking = ""  # a decoder that is not installed here

    def of(self, node: ast.expr | None) -> str | bytes | int | list | None:
        """None for what is only known when it runs."""
        fold = {
            ast.Constant: lambda node: node.value,
            ast.Name: self.of_name,
            ast.JoinedStr: self.of_parts,
            ast.FormattedValue: self.of_formatted,
            ast.BinOp: self.of_sum,
            ast.UnaryOp: self.of_negative,
            ast.Attribute: self.of_attribute,
            ast.Subscript: self.of_slice,
            ast.List: self.of_list,
            ast.Tuple: self.of_list,
            ast.Call: self.of_call,
        }.get(type(node))
        if fold is None or self.depth > MAX_NESTING:
            return None
        self.depth += 1
        try:
            value = fold(node)
        finally:
            self.depth -= 1
        if isinstance(value, str | bytes | list) and len(value) > 4 * TEXT_BYTES:
            return None
        return value if isinstance(value, str | bytes | int | list) else None

    def of_name(self, node: ast.Name) -> object:
        name = node.id
        if name == "__file__" and name not in self.names:
            return self.file
        if name not in self.values:
            self.values[name] = None  # so that a name which is bound to itself ends
            bound = self.names.get(name)
            self.values[name] = self.of(bound) if bound is not None else None
        return self.values[name]

    def of_parts(self, node: ast.JoinedStr) -> object:
        parts = [self.of(part) for part in node.values]
        return None if None in parts else "".join(map(str, parts))

    def of_formatted(self, node: ast.FormattedValue) -> object:
        return self.of(node.value) if node.conversion == -1 and not node.format_spec else None

    def of_sum(self, node: ast.BinOp) -> object:
        left = self.of(node.left)
        right = self.of(node.right)
        texts = isinstance(left, str) and isinstance(right, str)
        if isinstance(node.op, ast.Add) and isinstance(left, str | bytes | list):
            return left + right if type(left) is type(right) else None
        if isinstance(node.op, ast.Div) and texts:
            return os.path.join(left, right)
        return None

    def of_negative(self, node: ast.UnaryOp) -> object:
        value = self.of(node.operand)
        return -value if isinstance(node.op, ast.USub) and isinstance(value, int) else None

    def of_attribute(self, node: ast.Attribute) -> object:
        value = self.of(node.value)
        if not isinstance(value, str):
            return None
        parts = {"parent": os.path.dirname(value), "name": os.path.basename(value)}
        return parts.get(node.attr)

    def of_slice(self, node: ast.Subscript) -> object:
        value = self.of(node.value)
        if not isinstance(value, str | bytes | list):
            return None
        if not isinstance(node.slice, ast.Slice):
            index = self.of(node.slice)
            return value[index] if isinstance(index, int) and -1 <= index < len(value) > 0 else None
        ends = [node.slice.lower, node.slice.upper, node.slice.step]
        numbers = [self.of(end) for end in ends]
        known = [number is not None for end, number in zip(ends, numbers, strict=True) if end]
        return value[slice(*numbers)] if all(known) else None

    def of_list(self, node: ast.List | ast.Tuple) -> object:
        items = [self.of(item) for item in node.elts]
        return None if None in items else items

    def of_call(self, node: ast.Call) -> object:
        name = call_name(node)
        if name in DECODERS and node.args:
            return self.decoded(name, node.args[0])
        arguments = [self.of(argument) for argument in node.args]
        if None in arguments:
            return None
        if isinstance(node.func, ast.Attribute):
            module = ast.unparse(node.func.value) if is_short(node.func.value) else ""
            if module not in MODULES_OF_PATHS:
                return self.of_method(name, self.of(node.func.value), arguments)
        return self.of_function(name, arguments)

    def decoded(self, name: str, node: ast.expr) -> bytes | None:
        value = self.of(node)
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes) or self.left <= 0:
            return None
        self.left -= DECODERS[name] is None  # others are quick
        found, lacking = decode(name, value)
        self.lacking = self.lacking or lacking
        return found

    def of_function(self, name: str, arguments: list) -> object:
        texts = all(isinstance(argument, str) for argument in arguments)
        if name in ("getcwd", "cwd", "Path") and not arguments:
            return self.folder
        if name in ("Path", "PurePath", "join") and texts:
            return os.path.join(*arguments)
        if name == "dirname" and texts:
            return os.path.dirname(arguments[0])
        if name == "basename" and texts:
            return os.path.basename(arguments[0])
        if name in ("str", "fspath", "abspath", "realpath", "normpath") and texts and arguments:
            return arguments[0]
        if name in ("bytes", "bytearray") and arguments:
            return as_bytes(arguments[0])
        return arguments[0] if name == "compile" and arguments else None

    def of_method(self, name: str, value: object, arguments: list) -> object:
        if name in ("resolve", "absolute", "as_posix") and isinstance(value, str):
            return value
        if name == "joinpath" and isinstance(value, str):
            return os.path.join(value, *map(str, arguments))
        if name == "with_name" and isinstance(value, str) and arguments:
            return os.path.join(os.path.dirname(value), str(arguments[0]))
        if name == "join" and isinstance(value, str | bytes) and arguments:
            kinds = {type(item) for item in arguments[0]} if isinstance(arguments[0], list) else ()
            return value.join(arguments[0]) if kinds == {type(value)} else None
        if name == "decode" and isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if name == "encode" and isinstance(value, str):
            return value.encode()
        if name == "replace" and isinstance(value, str | bytes) and len(arguments) == 2:
            alike = all(isinstance(argument, type(value)) for argument in arguments)
            small = alike and value.count(arguments[0]) * len(arguments[1]) <= TEXT_BYTES
            return value.replace(*arguments) if small else None
        if name in ("strip", "lstrip", "rstrip") and isinstance(value, str | bytes):
            return getattr(value, name)() if not arguments else None
        return None


MODULES_OF_PATHS = ("os", "os.path", "path", "pathlib", "Path", "osp", "op")


def is_short(node: ast.expr) -> bool:
    """Whether an expression is a name, or a name of a name."""
    if isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def as_bytes(value: object) -> bytes | None:
    if isinstance(value, bytes):
        return value
    good = isinstance(value, list) and all(isinstance(x, int) and 0 <= x < 256 for x in value)
    return bytes(value) if good else None


# ---------------------------------------------------------------- decoders


def inflated(form: int) -> Callable[[bytes], bytes]:
    return lambda data: zlib.decompressobj(form).decompress(data, TEXT_BYTES)


def unpacked_lzma(**form) -> Callable[[bytes], bytes]:
    return lambda data: lzma.LZMADecompressor(**form).decompress(data, TEXT_BYTES)


def unpacked_zstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=UNPACK_MEMORY // 2).stream_reader(data)
    return reader.read(TEXT_BYTES)


def unpacked_brotli(data: bytes) -> bytes:
    import brotli  # not everywhere

    decoder = brotli.Decompressor()
    text = decoder.process(data, output_buffer_limit=TEXT_BYTES)
    if not text:
        raise ValueError("no brotli")
    return text


def raw_lzma(kind: int) -> dict:
    return {"format": lzma.FORMAT_RAW, "filters": [{"id": kind, "dict_size": UNPACK_MEMORY // 2}]}


DECODERS = {  # the last part of a call's name -> what takes its one argument apart
    "b85decode": base64.b85decode,
    "a85decode": base64.a85decode,
    "b64decode": base64.b64decode,
    "decodebytes": base64.b64decode,
    "a2b_base64": base64.b64decode,
    "standard_b64decode": base64.b64decode,
    "urlsafe_b64decode": base64.urlsafe_b64decode,
    "b32decode": base64.b32decode,
    "b16decode": lambda data: base64.b16decode(data, True),
    "unhexlify": binascii.unhexlify,
    "a2b_hex": binascii.unhexlify,
    "fromhex": lambda data: bytes.fromhex(data.decode()),
    "decompress": None,  # by what the data begin with, or by trial
}
UNPACKERS = {
    "zstd": unpacked_zstd,
    "xz": unpacked_lzma(memlimit=UNPACK_MEMORY),
    "bzip2": lambda data: bz2.BZ2Decompressor().decompress(data, TEXT_BYTES),
    "zlib": inflated(zlib.MAX_WBITS | 32),  # gzip as well
    "raw lzma2": unpacked_lzma(**raw_lzma(lzma.FILTER_LZMA2)),
    "raw lzma1": unpacked_lzma(**raw_lzma(lzma.FILTER_LZMA1)),
    "raw deflate": inflated(-zlib.MAX_WBITS),
    "brotli": unpacked_brotli,
}
BY_TRIAL = ("raw lzma2", "raw lzma1", "raw deflate", "brotli")  # data that name no form
DECODING_FAULTS = (*UNREADABLE, lzma.LZMAError, zlib.error, EOFError, zstandard.ZstdError)


def decode(name: str, data: bytes) -> tuple[bytes | None, str]:
    """What a decoder of DECODERS makes of data; the decoder that is not installed here, if it could
    be that one."""
    if len(data) > 4 * TEXT_BYTES:
        return None, ""
    if DECODERS[name]:
        with suppress(*DECODING_FAULTS):
            return DECODERS[name](data), ""
        return None, ""

    lacking = ""
    for kind, unpack in UNPACKERS.items():
        try:
            text = unpack(data)
            if kind in BY_TRIAL:
                text.decode()  # anything may come out of them
            if text:
                return text, ""
        except ImportError:
            lacking = kind
        except Exception:  # noqa: S112 - their data, and brotli's errors are of no common type
            continue
    return None, lacking


# ---------------------------------------------------------------- packed programs


class Program(NamedTuple):
    """A program that can be searched."""

    name: str  # "train_gpt.py"; of what is packed in it, too
    text: str
    nodes: list[ast.AST]  # of its tree


def read_programs(
    name: str, text: str, depth: int = 0, known: set[str] | None = None
) -> tuple[list[Program], list[str]]:
    """A program and those packed in it; what of them could not be read, "train_gpt.py: ...".
    `known` are texts that were read before."""
    known = {text} if known is None else known
    _, problem, nodes = parse(text)
    unread = [f"{name}: {problem}"] if problem else []
    programs = [Program(name, text, nodes)]
    constants = Constants(nodes)
    largest = None  # once it was looked for; "" where there is none

    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if call_name(call) not in ("exec", "eval") or not call.args:
            continue
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) != "builtins":
            continue  # model.eval()
        inner = as_program(constants.of(call.args[0]))
        if inner is None:
            largest = largest_packed(constants, nodes) if largest is None else largest
            inner = largest or None
        if inner is None or depth == MAX_DEPTH:
            lacking = f", by {constants.lacking}?" if constants.lacking else ""
            missing = f", {constants.lacking} is not installed here" if lacking else ""
            if not reads_a_file(call.args[0], constants):
                unread.append(f"{name}:{call.lineno} {call_name(call)} stays packed{missing}")
            continue
        if inner in known:
            continue
        known.add(inner)
        if len(known) > MAX_PACKED or sum(map(len, known)) > PACKED_CHARS:
            unread.append(f"{name}:{call.lineno} too much is packed in it")
            break
        more, also_unread = read_programs(name, inner, depth + 1, known)
        programs += more
        unread += also_unread
    return programs, unread


def as_program(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and len(value) <= TEXT_BYTES else None


def reads_a_file(node: ast.expr, constants: Constants) -> bool:
    """Whether what is run is the text of a file, whose own statements are looked at elsewhere."""
    return opening_call(node, constants) is not None


def opening_call(node: ast.expr | None, constants: Constants) -> ast.Call | None:
    """The open(...) or read_text() that an expression's bytes come from: that of
    compile(open(x).read(), ...), or of f.read() within with open(x) as f."""
    for _ in range(20):
        if isinstance(node, ast.Name):
            node = constants.names.get(node.id)
        elif isinstance(node, ast.Call):
            name = call_name(node)
            if name in ("open", "read_text", "read_bytes"):
                return node
            if name in ("read", "decode", "encode") and isinstance(node.func, ast.Attribute):
                node = node.func.value
            elif name in (*DECODERS, "compile", "str", "bytes", "loads") and node.args:
                node = node.args[0]
            else:
                return None
        else:
            return None
    return None


def largest_packed(constants: Constants, nodes: list[ast.AST]) -> str:
    """The program in the largest packed text of another, where the expression that is run cannot be
    folded; "" if there is none."""
    assigned = [node.value for node in nodes if isinstance(node, ast.Assign)][:200]
    literals = [node.value for node in nodes if isinstance(node, ast.Constant)]
    literals += [constants.of(value) for value in assigned]
    literals = [x for x in literals if isinstance(x, str | bytes) and len(x) >= 500]

    for literal in sorted(literals, key=len, reverse=True)[:2]:
        data = literal.encode() if isinstance(literal, str) else literal
        for name in ("b85decode", "b64decode", "a85decode", "unhexlify", None):
            blob = decode(name, data)[0] if name else data
            text = as_program(decode("decompress", blob)[0]) if blob else None
            if text and len(parse(text).nodes) > 3:
                return text
    return ""


# ---------------------------------------------------------------- programs as they are compared


@lru_cache(maxsize=48)
def code_shape(text: str) -> bytes | None:
    """A hash of a program without its comments, docstrings and layout; None if it does not
    parse."""
    tree, problem = parse_statements(text)  # anew, as it is changed
    if problem:
        return None
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not is_remark(part)]
    with suppress(*UNREADABLE):
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "replace")).digest()
    return None


def is_remark(statement: ast.AST) -> bool:
    """Whether a statement is a text that does nothing."""
    return isinstance(getattr(statement, "value", None), ast.Constant) and isinstance(
        statement, ast.Expr
    )


# ---------------------------------------------------------------- patterns

PICKS = "picks by the validation score"
DOWNLOADS = "downloads"
LABEL = re.compile(r"""(?<!\w)[rbuf]{0,2}('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.I)
CODE_PATTERNS = {  # looked for in each statement, or in the condition of an if or while
    PICKS: (r"\b\w*(bpb|nll|val_loss)\b[^<>]{0,60}<=? \(?(best|selected|min)_?\w*"),
    "scores in the last of several epochs": r"epoch\w* == .{0,40}epochs - 1",
    "scores tokens in a second pass": r"\b(two_pass|second_pass|pass_?2|\w{0,30}rescore)\w*\(",
    "hash keyed on the target": (
        r"^(full_(key|idx|hash)\w*|fk|fh) = .*\^|= .*\^ .{0,4}\b(tgt|target)\w*"
    ),
    "validation tokens in calibration": (
        r"(hessian|calib|gptq)\w*\([^)]*\bval_(tokens|data|loader)\b(?!\.(?!(val_)?tokens))"
    ),
    DOWNLOADS: (
        r"\b(urlopen|urlretrieve|\w+_download|load_dataset|requests\.get)\(|\b(curl|wget) "
    ),
}
LEARNS_UNSCORED = "trains on validation tokens without scoring them first"
WORTH_A_LOOK = re.compile(
    r"best|selected|min|epochs|two_pass|second_pass|pass_?2|rescore|\^|hessian|calib|gptq|urlopen"
    r"|urlretrieve|_download|load_dataset|requests|curl|wget"
)
VAL_TOKENS = re.compile(r"^val_(tokens|data|seqs)$")
SCORED = re.compile("byte|bpb|scored")


class Hit(NamedTuple):
    """A place that looks like something that has invalidated entries."""

    what: str  # "downloads"
    line: int  # number, from 1 on
    text: str  # the statement or condition


def code_patterns(program: Program, said: "Said | None") -> Iterator[Hit]:
    """The hits in a program, for a person to judge; none in what is switched off by what logs say,
    and else by default. None: all may run."""
    idle = set() if said is None else idle_nodes(program.nodes, said)
    yield from unscored_learning(program.nodes[0], idle)
    lines = program.text.split("\n")
    for node in program.nodes:
        searched = None if node in idle else searched_part(node)
        if searched is None:
            continue
        last = min(searched.end_lineno, searched.lineno + 40)
        raw = (line[:STATEMENT_CHARS] for line in lines[searched.lineno - 1 : last])
        if not any(WORTH_A_LOOK.search(line) for line in raw):
            continue
        text = ast.unparse(searched)[:STATEMENT_CHARS]
        silent = LABEL.sub(without_label, text)
        for what, pattern in CODE_PATTERNS.items():
            found = re.search(pattern, text if what == DOWNLOADS else silent)
            if found and not (what == PICKS and only_says(node)):
                yield Hit(what, node.lineno, text)


def without_label(found: re.Match) -> str:
    """A text literal without what it says: a name alone may be a key, and an f-string may call."""
    text = found[0]
    return "''" if re.search("[ (]", text) and not re.search(r"\{[^}]*\(", text) else text


def only_says(node: ast.AST) -> bool:
    """Whether a comparison does no more than choose a text or print."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
        return all(isinstance(x, ast.Constant) for x in (node.value.body, node.value.orelse))
    if not isinstance(node, ast.If) or node.orelse:
        return False
    calls = [part.value for part in node.body if isinstance(part, ast.Expr)]
    calls = [call for call in calls if isinstance(call, ast.Call)]
    said = all(re.match("print|log", call_name(call)) for call in calls)
    return said and len(calls) == len(node.body)


def searched_part(node: ast.AST) -> ast.AST | None:
    """A condition, or a statement without a body that is no docstring."""
    test = getattr(node, "test", None)
    if test is not None:
        return test
    if not isinstance(node, ast.stmt) or hasattr(node, "body"):
        return None
    return None if isinstance(getattr(node, "value", None), ast.Constant) else node


class Functions(NamedTuple):
    """What a walk over a program finds out about its functions, nested ones by themselves."""

    loops: dict[str, list[ast.For | ast.While]]  # outermost loops
    calls: dict[str, set[str]]  # names that are called


def find_functions(tree: ast.Module) -> Functions:
    found = Functions({}, {})
    stack = [(node, None, False) for node in tree.body]
    while stack:
        node, function, in_loop = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
            in_loop = False
            found.loops.setdefault(function, [])
            found.calls.setdefault(function, set())
        elif isinstance(node, ast.For | ast.While):
            if function and not in_loop:
                found.loops[function].append(node)
            in_loop = True
        elif isinstance(node, ast.Call) and function:
            found.calls[function].add(call_name(node))
        stack += [(child, function, in_loop) for child in ast.iter_child_nodes(node)]
    return found


def unscored_learning(tree: ast.Module, idle: set[ast.AST]) -> Iterator[Hit]:
    """Loops that train on validation tokens and score nothing, in functions that no function
    calls which evaluates or scores: those adapt on what they scored. Warming up is no training."""
    functions = find_functions(tree)
    for name, loops in functions.loops.items():
        loops = [loop for loop in loops if loop not in idle and learns_unscored(loop)]
        lines = sorted(loop.lineno for loop in loops if not is_warm_up(loop))
        if not lines:
            continue
        callers = [other for other, calls in functions.calls.items() if name in calls]
        if any("eval" in caller or "score" in caller for caller in callers if caller != name):
            continue
        for line in lines:
            yield Hit(LEARNS_UNSCORED, line, f"loop in {name}")


def is_warm_up(loop: ast.For | ast.While) -> bool:
    return isinstance(loop, ast.For) and "warmup" in ast.unparse(loop.iter)[:200].lower()


def learns_unscored(loop: ast.For | ast.While) -> bool:
    methods = set()
    words = set()
    for node in ast.walk(loop):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            methods.add(node.func.attr)
        for field in ("id", "attr", "arg", "name"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                words.add(word)
    steps = {"backward", "step"} <= methods
    return steps and any(map(VAL_TOKENS.match, words)) and not any(map(SCORED.search, words))


# ---------------------------------------------------------------- what is switched off

FALSE = ("", "0", "0.0", "false", "none", "no", "off", "''", '""', "[]")  # as logs print it


def is_off(text: str) -> bool:
    return text.strip().lower() in FALSE


class Said(NamedTuple):
    """What the logs of a program's runs say, in small letters."""

    settings: dict[str, str]  # by name
    words: set[str]  # of all lines; names are several words


COMMON_WORDS = {  # that say nothing of a switch
    *"enabled enable use run eval debug mode flag do no with the is on off only train val".split(),
    *"size steps step iters seed model max min num log every lr".split(),
}


class Switches:
    """What is surely true or false in a program whose settings are those that logs state; and else
    the defaults of its environment variables, unless a log speaks of the like."""

    def __init__(self, nodes: list[ast.AST], said: Said):
        self.names = bindings(nodes)
        self.stated = said.settings
        self.words = said.words
        self.depth = 0

    def is_spoken_of(self, name: str) -> bool:
        words = set(re.findall("[a-z]{2,}", name.lower())) - COMMON_WORDS
        return not words or bool(words & self.words)

    def value(self, node: ast.expr | None) -> object:
        """None where it is not known; of what is false, None never."""
        fold = {
            ast.Constant: lambda node: node.value,
            ast.Name: lambda node: self.of_setting(node.id),
            ast.Attribute: lambda node: self.of_setting(node.attr),
            ast.Call: self.of_call,
            ast.Compare: self.of_comparison,
            ast.BoolOp: self.of_parts,
            ast.UnaryOp: self.of_opposite,
        }.get(type(node))
        if fold is None or self.depth > MAX_NESTING:
            return None
        self.depth += 1
        try:
            return fold(node)
        finally:
            self.depth -= 1

    def of_setting(self, name: str) -> object:
        stated = self.stated.get(name.lower())
        if stated is not None:
            return False if is_off(stated) else None
        return self.value(self.names.get(name))

    def of_call(self, call: ast.Call) -> object:
        """An environment variable's default, and that as a number or a flag."""
        name = call_name(call)
        owner = ast.unparse(call.func)[:40] if isinstance(call.func, ast.Attribute) else name
        if owner in ("os.environ.get", "environ.get", "os.getenv", "getenv"):
            return self.of_variable(call)
        if name in ("lower", "strip") and isinstance(call.func, ast.Attribute) and not call.args:
            text = self.value(call.func.value)
            return text.lower().strip() if isinstance(text, str) else None
        if name in ("int", "float", "bool") and len(call.args) == 1:
            value = self.value(call.args[0])
            with suppress(ValueError, TypeError, OverflowError):
                return (
                    {"int": int, "float": float, "bool": bool}[name](value)
                    if value is not None
                    else None
                )
        return None

    def of_variable(self, call: ast.Call) -> object:
        name = call.args[0] if call.args else None
        if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
            return None
        stated = self.stated.get(name.value.lower())
        if stated is not None:
            return False if is_off(stated) else None
        if self.is_spoken_of(name.value):
            return None
        if len(call.args) == 1 and not call.keywords:
            return ""  # it is None, which is as false
        default = call.args[1] if len(call.args) == 2 else None
        return default.value if isinstance(default, ast.Constant) else None

    def of_comparison(self, node: ast.Compare) -> object:
        left = self.value(node.left)
        right = self.value(node.comparators[0]) if len(node.ops) == 1 else None
        if isinstance(node.ops[0], ast.In) and isinstance(
            node.comparators[0], ast.Tuple | ast.List
        ):
            right = [self.value(item) for item in node.comparators[0].elts]
            return None if left is None or None in right else left in right
        if left is None or right is None:
            return None
        compare = COMPARE.get(type(node.ops[0]))
        with suppress(TypeError):
            return compare(left, right) if compare else None
        return None

    def of_parts(self, node: ast.BoolOp) -> object:
        values = [self.value(part) for part in node.values]
        if isinstance(node.op, ast.And):
            if any(value is not None and not value for value in values):
                return False
            return None if None in values else True
        if any(values):
            return True
        return None if None in values else False

    def of_opposite(self, node: ast.UnaryOp) -> object:
        value = self.value(node.operand)
        return not value if isinstance(node.op, ast.Not) and value is not None else None


COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


def idle_nodes(nodes: list[ast.AST], said: Said) -> set[ast.AST]:
    """What does not run: behind a switch that is off, and functions that are named only there."""
    switches = Switches(nodes, said)
    idle = set()
    for node in nodes:
        if isinstance(node, ast.If) and node not in idle:
            value = switches.value(node.test)
            if value is not None:
                dead = node.orelse if value else node.body
                idle.update(part for top in dead for part in ast.walk(top))
            if value is not None and not value:
                idle.add(node)  # its condition, too

    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for _ in range(4):  # what calls them may be idle in turn
        named = Counter()
        used = set()
        for node in nodes:
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            if isinstance(node, ast.Name | ast.Attribute):
                named[name] += 1
                if node not in idle:
                    used.add(name)
        before = len(idle)
        for function in functions:
            if function not in idle and named[function.name] and function.name not in used:
                idle.update(ast.walk(function))
        if len(idle) == before:
            break
    return idle
