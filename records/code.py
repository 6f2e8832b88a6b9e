"""How large the code of an entry is: a proof, or two bounds.

    from records.code import code_bytes, measure_code, read_code
    size = measure_code(Path("train_gpt.py"))
    size.used, size.unresolved, size.others       # proven where nothing is unresolved
    as_they_lie, by_lzma = code_bytes(size.used)  # bytes

What a script pulls in from its own folder counts as code. It is found in the syntax tree, so
nothing is run. Every name that could reach a file has to be resolved: a call of a reading function
with a path that is known, an import of a file that is here or of a module that reads nothing by
itself. Whatever else could read or run a file is unresolved, and then the size lies between what is
surely used and that together with all other files of the folder that are no log, text, tokenizer or
shard.

Sections: code size, kinds of files, references, imports, calls, names.
"""

import ast
import lzma
import os
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from records.files import TEXT_BYTES, Folder, list_folder, open_regular
from records.programs import (
    MAX_DEPTH,
    MAX_PACKED,
    PACKED_CHARS,
    UNREADABLE,
    Constants,
    as_program,
    call_name,
    opening_call,
    parse,
)

# ---------------------------------------------------------------- code size


@dataclass
class CodeSize:
    """The files that a script uses."""

    used: list[Path] = field(default_factory=list)  # surely
    unresolved: list[str] = field(default_factory=list)  # "x.py:12 open": what could reach others
    others: list[Path] = field(default_factory=list)  # the largest first; [] where all is resolved
    unlisted: bool = False  # whether there may be more that they could reach

    @property
    def proven(self) -> bool:
        return not self.others and not self.unlisted

    @property
    def most(self) -> int:
        """Bytes at most."""
        return sum(path.stat().st_size for path in (*self.used, *self.others))


def measure_code(script: Path, folder: Folder | None = None) -> CodeSize:
    """What a script uses, and what of its folder it may use besides."""
    script = script.resolve()
    folder = folder or list_folder(script.parent)
    used, unresolved = follow(script, folder)
    size = CodeSize(used, unresolved)
    if unresolved:
        rest = [path for path in (*folder.files, *folder.hidden) if path not in used]
        rest = [path for path in rest if not is_no_code(path)]
        size.others = sorted(rest, key=lambda path: -path.stat().st_size)
        size.unlisted = folder.unlisted
    return size


def read_code(script: Path) -> tuple[list[Path], list[str]]:
    """A script and the files beside it that it surely uses; what may read or run more."""
    script = script.resolve()
    return follow(script, list_folder(script.parent))


def follow(script: Path, folder: Folder) -> tuple[list[Path], list[str]]:
    """The files that are surely used, and what is unresolved in them."""
    files = [script]
    run = {script}
    unresolved = []
    for file in files:  # grows on the way
        if file not in run and file.suffix != ".py":
            continue
        if folder.budget.is_late():
            unresolved.append(f"{file.name} as a whole (the time is used up)")
            continue
        found = References(file, folder, script.parent)
        found.read()
        unresolved += found.unresolved
        run |= {inside(path, folder) for path in found.run}
        for path in found.paths:
            path = inside(path, folder)
            if path and path not in files and (path in run or not is_data(path)):
                files.append(path)
    return files, unresolved


def inside(path: Path, folder: Folder) -> Path | None:
    """The regular file of the folder that a path means."""
    if not os.path.isfile(path):
        return None
    path = path.resolve()
    return path if path.is_relative_to(folder.root) else None


def code_bytes(files: list[Path]) -> tuple[int, int]:
    """Bytes of files as they lie there, and with each of them compressed by lzma; a large one is
    taken as it is."""
    raw = 0
    packed = 0
    for file in files:
        size = file.stat().st_size
        raw += size
        if size <= TEXT_BYTES:
            with open_regular(file) as opened:
                size = len(lzma.compress(opened.read()))
        packed += size
    return raw, packed


def least_packed(by_lzma: int) -> int:
    """Bytes that code surely takes, in whatever form: there are better compressors than lzma."""
    return by_lzma * 9 // 10


# ---------------------------------------------------------------- kinds of files

TEXTS = set(".md .txt .log .out .json .jsonl .csv .tsv .yaml .yml .toml .cfg .ini .rst".split())
NAMED_TEXTS = {"LICENSE", "README", "NOTICE", ".gitignore", ".gitattributes"}
SHARD = struct.pack("<ii", 20240520, 1)  # magic and version
PACKED_BYTES = 100_000  # in a text: a log may hold a packed script, and no more
PACKED_SAMPLES = 8


def head_of(path: Path) -> bytes:
    with suppress(OSError), open_regular(path) as file:
        return file.read(4096)
    return b""


def is_data(path: Path) -> bool:
    """Whether a file is a shard, a tokenizer or an artifact, by what it begins with."""
    head = head_of(path)
    size = path.stat().st_size
    if path.suffix == ".model":
        return size <= TOKENIZER_BYTES and head[:1] == b"\n" and b"<unk>" in head[:64]
    if path.suffix == ".vocab":
        return size <= TOKENIZER_BYTES and b"\t" in head and is_text(head)
    return is_shard(head, size) or (path.suffix == ".pcll" and head.startswith(b"PCLL"))


def is_shard(head: bytes, size: int) -> bool:
    """Whether a file is as long as its header says, and begins with ids of a small vocabulary."""
    if not head.startswith(SHARD) or len(head) < 1024:
        return False
    (count,) = struct.unpack_from("<i", head, 8)
    ids = struct.unpack(f"<{(len(head) - 1024) // 2}H", head[1024 : len(head) // 2 * 2])
    return size == 1024 + 2 * count and max(ids, default=0) < 2**15


def is_text(head: bytes) -> bool:
    return b"\0" not in head and len(head.decode("utf-8", "ignore").encode()) > len(head) - 4


def is_no_code(path: Path) -> bool:
    """Whether a file is a log, a text, a tokenizer, a shard or an artifact."""
    named = path.suffix in TEXTS or path.name in NAMED_TEXTS
    return is_data(path) or (named and is_text(head_of(path)) and not is_packed(path))


def is_packed(path: Path) -> bool:
    """Whether a text holds PACKED_BYTES that hardly compress, as base64 does: by samples."""
    size = path.stat().st_size
    if size < PACKED_BYTES:
        return False
    found = 0
    with suppress(OSError), open_regular(path) as file:
        for i in range(PACKED_SAMPLES):
            file.seek(size * i // PACKED_SAMPLES)
            block = file.read(4096)
            found += len(zlib.compress(block)) > 0.57 * len(block) > 0
    return found / PACKED_SAMPLES * size >= PACKED_BYTES


# ---------------------------------------------------------------- references

READS_FIRST = {  # calls whose first argument is a path
    *"open fdopen CDLL PyDLL LoadLibrary load_library load fromfile memmap loadtxt".split(),
    *"genfromtxt".split(),
    *"open_memmap from_file run_path zipimporter ZipFile load_file safe_open FileIO".split(),
    *"imread GzipFile BZ2File LZMAFile read_csv getlines fromregex".split(),
    "SentencePieceProcessor",
}
READS_SELF = {"read_text", "read_bytes"}  # methods of a path
READS_SECOND = {"spec_from_file_location", "SourceFileLoader", "ExtensionFileLoader"}
READS_SECOND |= {"SourcelessFileLoader", "load_source"}
LIBRARIES = {"CDLL", "PyDLL", "LoadLibrary"}  # of the system they can open any file
RUNS = {"exec", "eval"}
IMPORTS = {"import_module", "__import__", "run_module"}
REACHING = READS_FIRST | READS_SELF | READS_SECOND | RUNS | IMPORTS
NAMES = {  # built-in names that lead to anything
    *"open exec eval compile __import__ globals locals vars __builtins__ __loader__".split(),
    *"__spec__ breakpoint".split(),
}
ATTRIBUTES = re.compile(  # of any object: they lead to a file, or to the names above
    r"^(builtins|modules|path_hooks|meta_path|f_globals|f_builtins|__globals__|__dict__"
    r"|__subclasses__|__builtins__|__getattribute__|__loader__|__import__|pythonapi|exec_module"
    r"|load_module|c?dll|pydll|_*(sys|os|io|subprocess|importlib|runpy|shutil|pathlib|posix|pty))$"
)
CALLS = re.compile(  # what is called so may read or run a file
    r"(?i)open|load|read|import|exec|spawn|system|popen|file|mmap|txt|regex|source|dll|run_path"
    r"|run_module|get_data|unpack_archive|connect|getlines|archive|zipimp|copy(2|tree|$)|link"
    r"|rename|^replace$|^move$|include|addsitedir|chdir|chroot|subprocess|get_type_hints"
    r"|get_annotations|attrgetter|methodcaller|get_field|dictconfig|functiontype|codetype"
    r"|get_encoding|encoding_for_model"
)
HARMLESS_CALLS = re.compile(  # of those, what reads no file by its path
    r"(?i)^(load_state_dict|thread\w*|\w*threads?|read|readline|readlines|readinto|is_file|isfile"
    r"|profile\w*|reader|dictreader|upload|dataloader|getsource|register_\w+|getfilesystem\w*"
    r"|isreadable|readable|fileno|clear_\w+|temporaryfile|namedtemporaryfile|write_text"
    r"|removesuffix|reload_\w+|threadpoolexecutor|processpoolexecutor|zip|spread|copyto"
    r"|deepcopy|unlink|islink)$"
)
RISKY_WORDS = {
    "eval_str",
    "executable",
    "link",
    "opener",
    "pickle_module",
}  # arguments that may run
RISKY_MODULES = ("scipy.io", "scipy.datasets", "numpy.f2py", "torch.utils.cpp_extension")
LOADERS = ("hub", "cpp_extension", "triton")  # whose load and compile take more than one path
MODULES = {  # that read or run a file through the calls and attributes above alone
    *"torch numpy scipy sentencepiece zstandard brotli triton tiktoken einops tqdm".split(),
    *"flash_attn flash_attn_interface huggingface_hub numba psutil packaging xxhash".split(),
    *"typing_extensions safetensors flash_attn_3 fla causal_conv1d mamba_ssm".split(),
    *"__future__ abc argparse array ast atexit base64 binascii bisect bz2 cmath codecs".split(),
    *"collections concurrent contextlib contextvars copy csv ctypes dataclasses datetime".split(),
    *"decimal enum errno faulthandler fnmatch fractions functools gc glob gzip heapq".split(),
    *"hashlib html importlib inspect io itertools json keyword lzma marshal math mmap".split(),
    *"numbers operator os pathlib pickle pprint pydoc_data queue random re resource runpy".split(),
    *"secrets shlex shutil signal statistics string struct subprocess sys textwrap".split(),
    *"tempfile threading time traceback types typing unicodedata uuid".split(),
    *"platform warnings weakref zipfile zipimport zlib multiprocessing logging socket".split(),
    *"select asyncio difflib fcntl".split(),
}
COMMAND = re.compile(r"nvidia-smi\b[\w\s=,.-]*")  # reads no file of ours
TOKENIZER_BYTES = 2_000_000  # what is larger is no tokenizer, whatever it begins with
MAX_PARTS = 32  # of a dotted name


class References:
    """What one Python file imports, opens and runs."""

    def __init__(self, file: Path, folder: Folder, home: Path):
        self.file = file
        self.folder = folder
        self.home = home  # of the script, in which it runs
        self.paths: list[Path] = []  # that it uses; they need not exist
        self.run: set[Path] = set()  # of these, what it runs as code
        self.unresolved: dict[str, None] = {}  # in order
        self.defined: set[str] = set()  # its own functions and classes
        self.modules: dict[str, str] = {}  # "sp" -> "subprocess"
        self.constants = Constants([])
        self.packed: set[str] = set()  # programs in it that were read

    def read(self) -> None:
        size = self.file.stat().st_size
        name = self.file.name
        if self.file.suffix == ".so":
            return None  # counted; what a library of machine code opens is not looked for
        if size > TEXT_BYTES or not self.folder.budget.allows(size, name):
            return self.leave_whole(f"{size:,} bytes")
        with open_regular(self.file) as file:
            text = file.read(TEXT_BYTES).decode("utf-8-sig", "replace")
        try:
            self.read_program(text, 0)
        except UNREADABLE as error:
            self.leave_whole(type(error).__name__)
        return None

    def read_program(self, text: str, depth: int) -> None:
        _, problem, nodes = parse(text)
        if problem:
            self.leave_whole(problem)
        outer = self.constants
        self.constants = Constants(nodes, str(self.file), str(self.home))
        definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:  # first, as they name modules
            self.read_import(node)
        self.defined |= {node.name for node in nodes if isinstance(node, definitions)}

        owners = {node.value for node in nodes if isinstance(node, ast.Attribute)}
        idle = set()  # names that are called, or that do nothing, by their nodes
        for node in nodes:
            if isinstance(node, ast.Call):
                idle.add(node.func)
                if call_name(node) in ("getattr", "hasattr"):
                    owners.update(node.args[:1])
                self.read_call(node, depth)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Attribute):
                idle.add(node.value)
            elif isinstance(node, ast.Name | ast.Attribute) and node not in idle:
                self.read_name(node, node in owners)
        self.constants = outer

    def leave(self, node: ast.AST, what: str) -> None:
        """Notes what cannot be resolved."""
        self.unresolved[f"{self.file.name}:{getattr(node, 'lineno', 1)} {what[:60]}"] = None

    def leave_whole(self, why: str) -> None:
        self.unresolved[f"{self.file.name} as a whole ({why})"] = None

    # ------------------------------------------------------------ imports

    def read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        level = getattr(node, "level", 0)
        module = getattr(node, "module", None) or ""
        if level > len(self.file.parents):
            return self.leave(node, "import from above the root")
        base = self.file.parents[level - 1] if level else self.home
        here = False
        for alias in node.names:
            full = f"{module}.{alias.name}".strip(".")
            found = module_files(full, base, self.folder)
            self.paths += found
            self.run.update(found)
            here = here or bool(found)
            if len(full.split(".")) > MAX_PARTS:
                self.leave(node, f"import of a name of over {MAX_PARTS} parts")

        tops = [module] if module else [alias.name for alias in node.names]
        unknown = [top for top in tops if top.split(".")[0] not in MODULES]
        full = [f"{module}.{alias.name}".strip(".") for alias in node.names]
        unknown += [
            name for name in full if f"{name}.".startswith(tuple(f"{m}." for m in RISKY_MODULES))
        ]
        if not here and unknown:
            self.leave(node, f"import {unknown[0]}, which is not here")
        if not here:
            self.read_imported_names(node)
        return None

    def read_imported_names(self, node: ast.Import | ast.ImportFrom) -> None:
        """Names that lead to a file and are given another, and all names at once."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                self.modules[name] = alias.name if alias.asname else name
            return
        for alias in node.names:
            renamed = alias.asname not in (None, alias.name)
            if alias.name == "*" or ATTRIBUTES.match(alias.name):
                self.leave(node, f"import {alias.name} from {node.module}")
            elif renamed and may_reach(alias.name):
                self.leave(node, f"{alias.name} by another name")
            elif node.module == "subprocess":
                self.leave(node, f"subprocess.{alias.name}")
            elif node.module == "sys" and alias.name in ("path", "modules"):
                self.leave(node, f"sys.{alias.name}")

    # ------------------------------------------------------------ calls

    def read_call(self, call: ast.Call, depth: int) -> None:
        name = call_name(call)
        dotted = isinstance(call.func, ast.Attribute)
        owner = call.func.value if dotted else None
        if not name:
            return None  # what is called was looked at as a name
        if RISKY_WORDS & {keyword.arg for keyword in call.keywords}:
            return self.leave(call, name)
        if name in RUNS and (not dotted or self.named(owner) == "builtins"):
            return self.read_run(call, depth)
        if name in RUNS or (name in self.defined and not dotted):
            return None
        if name in ("getattr", "setattr", "delattr") and not dotted:
            return self.read_getattr(call)
        if name in ("load", "compile") and self.last_name(owner) in LOADERS:
            return self.leave(call, name)
        if self.named(owner) == "subprocess" or (
            name in ("system", "popen") and self.named(owner) == "os"
        ):
            return self.read_command(call, name)
        if name in REACHING:
            return self.read_target(call, name, dotted)
        if self.may_read(call, name, owner):
            self.leave(call, name)
        return None

    def may_read(self, call: ast.Call, name: str, owner: ast.expr | None) -> bool:
        """Whether a call that REACHING does not know may reach a file."""
        if (
            name in self.defined
            and owner is None
            or HARMLESS_CALLS.match(name)
            or name in NAMES - REACHING - {"vars"}
        ):
            return name in ("globals", "locals", "__loader__", "breakpoint")
        if name == "vars" and not call.args:
            return True
        if ATTRIBUTES.match(name):
            return True
        if name == "loads" and self.named(owner) == "json":
            return False
        if name == "replace":
            words = {keyword.arg for keyword in call.keywords}
            if owner is None and words and not words & {"src", "dst", "target", None}:
                return False  # of dataclasses
            return (
                len(call.args) != 2 or self.named(owner) == "os"
            )  # text.replace(old, new) has two
        if name == "rename":
            return True
        return may_reach(name)

    def read_run(self, call: ast.Call, depth: int) -> None:
        """exec or eval: of a text that is known, or of a file's."""
        target = call.args[0] if call.args else None
        text = as_program(self.constants.of(target))
        if text in self.packed:
            return None
        if text is not None and depth < MAX_DEPTH:
            self.packed.add(text)
            small = sum(map(len, self.packed)) <= PACKED_CHARS and len(self.packed) <= MAX_PACKED
            return (
                self.read_program(text, depth + 1) if small else self.leave(call, call_name(call))
            )
        opening = opening_call(target, self.constants) if target else None
        path = self.path_of(opening) if opening else None
        if path is None:
            return self.leave(call, call_name(call))
        self.paths.append(path)
        self.run.add(path)
        return None

    def read_getattr(self, call: ast.Call) -> None:
        """getattr and setattr: of a name that is known, and leads to no file."""
        name = self.constants.of(call.args[1]) if len(call.args) > 1 else None
        harmless = isinstance(name, str) and not may_reach(name) and not ATTRIBUTES.match(name)
        if not harmless or name == "path":
            self.leave(call, call_name(call))

    def named(self, node: ast.expr | None) -> str:
        """The module, or else the name, that an expression is; "" for any other."""
        name = node.id if isinstance(node, ast.Name) else ""
        return self.modules.get(name, name)

    def last_name(self, node: ast.expr | None) -> str:
        """ "hub" of torch.hub, and of hub"""
        return node.attr if isinstance(node, ast.Attribute) else self.named(node).split(".")[-1]

    def is_module(self, node: ast.expr) -> bool:
        """Whether an expression may be a module: an unbound name, or an attribute of one."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id not in self.constants.names

    def read_command(self, call: ast.Call, name: str) -> None:
        target = call.args[0] if call.args else None
        if isinstance(target, ast.List) and target.elts:
            target = target.elts[0]
        command = self.constants.of(target) if target is not None else None
        if isinstance(command, list) and command:
            command = command[0]
        if not isinstance(command, str) or not COMMAND.fullmatch(command):
            self.leave(call, f"{name} of a command")

    def read_target(self, call: ast.Call, name: str, dotted: bool) -> None:
        """A call of REACHING."""
        if only_writes(call, name, dotted):
            return
        if name in IMPORTS:
            module = self.constants.of(call.args[0]) if call.args else None
            if not isinstance(module, str) or len(module.split(".")) > MAX_PARTS:
                return self.leave(call, name)
            found = module_files(module, self.home, self.folder)
            self.paths += found
            self.run.update(found)
            if not found and module.split(".")[0] not in MODULES:
                self.leave(call, f"{name} of {module}")
            return None

        inner = call.args[0] if call.args else None
        if name == "load" and inner is not None and opening_call(inner, self.constants):
            return None  # json.load(open(x)): the inner call is looked at by itself
        path = self.path_of(call)
        several = name == "load" and not dotted and len(call.args) > 1  # cpp_extension's, hub's
        foreign = name in LIBRARIES and path is not None and inside(path, self.folder) is None
        if path is None or several or foreign or os.path.isdir(path):
            return self.leave(call, name)
        self.paths.append(path)
        if name in READS_SECOND or name in ("run_path", "zipimporter", "CDLL", "LoadLibrary"):
            self.run.add(path)
        return None

    def path_of(self, call: ast.Call) -> Path | None:
        """The path that a reading call names, if it is known."""
        target = target_of(call)
        value = self.constants.of(target)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if not isinstance(value, str) or "\0" in value or len(value) > 4_000:
            return None
        return self.home / value

    # ------------------------------------------------------------ names

    def read_name(self, node: ast.Name | ast.Attribute, owner: bool) -> None:
        """A name that is no call's: whatever leads to a file may be called by another name, and a
        module that is no owner of an attribute may be asked for any."""
        if isinstance(node, ast.Name):
            bound = not isinstance(node.ctx, ast.Load)
            if node.id in NAMES | {"open"} or (node.id in REACHING and node.id not in self.defined):
                if not (node.id == "compile" and node.id in self.defined):
                    self.leave(node, f"{node.id} {'bound anew' if bound else 'by another name'}")
            elif node.id in self.modules and not owner and not bound:
                self.leave(node, f"{node.id} as a value")
        elif ATTRIBUTES.match(node.attr) or (
            node.attr == "path" and self.named(node.value) == "sys"
        ):
            self.leave(node, ast.unparse(node) if self.named(node.value) else node.attr)
        elif node.attr in REACHING | {"system", "popen"} and self.is_module(node.value):
            self.leave(node, f"{node.attr} by another name")
        elif node.attr in READS_SELF or self.named(node.value) in ("subprocess", "builtins"):
            self.leave(node, f"{node.attr} by another name")


def may_reach(name: str) -> bool:
    """Whether what is called so may read or run a file."""
    if HARMLESS_CALLS.match(name):
        return False
    return name in REACHING | NAMES or bool(CALLS.search(name))


def target_of(call: ast.Call) -> ast.expr | None:
    """The expression that names what a call of REACHING reads."""
    name = call_name(call)
    dotted = isinstance(call.func, ast.Attribute)
    if name in READS_SELF:
        return call.func.value if dotted else None
    if name == "open" and dotted and is_method(call):
        return call.func.value
    if name in READS_SECOND:
        return call.args[-1] if len(call.args) > 1 else None
    return call.args[0] if call.args else None


def modes_of(call: ast.Call) -> list[str]:
    """Constant arguments that read like the mode of open."""
    others = [*call.args, *(keyword.value for keyword in call.keywords)]
    values = [other.value for other in others if isinstance(other, ast.Constant)]
    return [value for value in values if isinstance(value, str) and set(value) <= set("rwaxbt+")]


def is_method(call: ast.Call) -> bool:
    """Whether open is called as path.open(), of which all arguments are modes."""
    return len(modes_of(call)) >= len(call.args)


def only_writes(call: ast.Call, name: str, dotted: bool) -> bool:
    """Whether a call of open only writes."""
    if name != "open":
        return False
    first = 0 if dotted and is_method(call) else 1
    modes = [mode for mode in modes_of(call) if mode]
    if first and call.args and isinstance(call.args[0], ast.Constant):
        modes = [mode for mode in modes if mode != call.args[0].value]
    return bool(modes) and not set(modes[0]) & set("r+")


def module_files(name: str, base: Path, folder: Folder) -> list[Path]:
    """The files of an imported module: of a.b a/__init__.py, a.py, a/b/__init__.py, a/b.py,
    a/b.*.so, ..., as far as they are there."""
    found = []
    stem = base
    for part in name.split(".")[:MAX_PARTS]:
        if part.isidentifier():
            found += [stem / part / "__init__.py", stem / f"{part}.py", stem / f"{part}.pyc"]
            found += folder.libraries.get((stem, part), [])
            stem = stem / part
    return [path for path in found if os.path.isfile(path)]
