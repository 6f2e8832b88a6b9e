"""The size of code is a proof or two bounds: each way to a file is counted, or listed as open."""

import ast
import base64
import lzma
import os
import struct
import zlib
from pathlib import Path

import pytest
import zstandard

from records import files
from records.code import measure_code, read_code
from records.programs import read_programs

HIDDEN = b"y = 1\n" * 3_000
COUNTED = """
exec(open('x.bin').read())
import torch; w = torch.load('x.bin')
import numpy as np; w = np.load('x.bin')
import numpy as np; np.fromfile('x.bin')
import numpy as np; np.memmap('x.bin')
import numpy as np; np.loadtxt('x.bin')
import numpy as np; np.lib.format.open_memmap('x.bin')
import io; io.open('x.bin')
import io; f = io.FileIO('x.bin')
import os; os.read(os.open('x.bin', 0), 9)
import mmap, os; mmap.mmap(os.open('x.bin', 0), 0)
import codecs; codecs.open('x.bin')
import gzip; gzip.open('x.bin')
import lzma; lzma.LZMAFile('x.bin')
import json; json.load(open('x.bin'))
import pickle; pickle.load(open('x.bin', 'rb'))
import ctypes; ctypes.CDLL('x.bin')
import torch; torch.ops.load_library('x.bin')
import torch; torch.UntypedStorage.from_file('x.bin', False, 9)
from safetensors.torch import load_file; load_file('x.bin')
from importlib.machinery import SourceFileLoader; SourceFileLoader('m', 'x.bin').load_module()
import zipimport; zipimport.zipimporter('x.bin').load_module('m')
import runpy; runpy.run_path('x.bin')
import linecache; linecache.getlines('x.bin')
import builtins; builtins.open('x.bin')
from pathlib import Path; Path('x' + '.bin').read_bytes()
from pathlib import Path; (Path(__file__).parent / f'{"x"}.bin').open('rb')
exec(open(__file__.replace('train_gpt.py', 'x.bin')).read())
with open('x.bin') as f: exec(f.read())
exec("import io; io.open('x.bin')")
exec(__import__('zlib').decompress(open('x.bin', 'rb').read()))
__import__('lib.hidden')
from lib import hidden
"""
OPEN = """
o = open; o('x.bin')
import sys; sys.path.append('lib'); import hidden
import subprocess; subprocess.run(['python', 'x.bin'])
import subprocess as sp; sp.check_output('cat x.bin', shell=True)
from subprocess import run; run('cat x.bin', shell=True)
import os; os.system('python x.bin')
from os import popen as p; p('cat x.bin')
getattr(__builtins__, 'op' + 'en')('x.bin')
__builtins__['open']('x.bin')
globals()['__builtins__'].open('x.bin')
import sys; sys.modules['builtins'].open('x.bin')
import fileinput; list(fileinput.input('x.bin'))
import shutil; shutil.copy('x.bin', 'a.py'); import a
import os; os.rename('x.bin', 'helper.py'); import helper
from pathlib import Path; Path('x.bin').replace('helper.py')
eval('open')('x.bin')
list(map(open, ['x.bin']))
def f(path, o=open): return o(path)
from io import open as q; q('x.bin')
from torch import *
import torch; r = torch.load; r('x.bin')
import torch; getattr(torch, 'lo' + 'ad')('x.bin')
from pathlib import Path; r = Path('x.bin').read_bytes; r()
from pathlib import Path; r = Path.read_bytes; r(Path('x.bin'))
import pkgutil; pkgutil.get_data('p', 'x.bin')
import site; site.addsitedir('lib')
import sqlite3; sqlite3.connect('x.bin')
import importlib; importlib.import_module(input())
from importlib import resources; resources.files('lib').joinpath('hidden.py').read_bytes()
().__class__.__base__.__subclasses__()
import os; os.chdir('lib'); open('hidden.py')
from os import chdir as c; c('lib'); open('hidden.py')
import contextlib; contextlib.chdir('lib').__enter__(); open('hidden.py')
import random; random._os.chdir('lib'); open('hidden.py')
from pathlib import Path; Path('q').hardlink_to('x.bin'); open('q')
import os; os.sys.path.insert(0, 'lib'); import random
import torch; torch.sys.path.insert(0, 'lib'); import random
import os; s = os.sys; s.path.insert(0, 'lib'); import random
import sys; setattr(sys, 'path', ['lib']); import random
import torch; torch.subprocess.run(['python', 'x.bin'])
import asyncio; asyncio.create_subprocess_shell('python x.bin')
import subprocess; subprocess.run(['nvidia-smi'], executable='x.bin')
import os; os.system('nvidia-smi && python x.bin')
import timeit; timeit.timeit("exec(open('x.bin').read())", number=1)
import typing; typing.get_type_hints({'a': "exec(open('x.bin').read())"})
import operator, io; operator.attrgetter(chr(111) + 'pen')(io)('x.bin')
import operator, io; operator.methodcaller(chr(111) + 'pen', 'x.bin')(io)
import io; [m for m in [io]]
import sentencepiece as s, os; s.SentencePieceProcessor(model_file=os.environ['x.bin'])
import logging.config; logging.config.dictConfig({'()': 'runpy.' + 'run_' + 'path'})
from torch.utils.cpp_extension import load; load('ext', ['x.bin'])
import torch; torch.hub.load('lib', 'm', source='local')
import triton; triton.compile('x.bin')
import numba; numba.cuda.jit(link=['x.bin'])
import types; types.FunctionType(compile('1', '', 'eval'), {})()
import ctypes; ctypes.cdll['./x.bin']
import ctypes; l = ctypes.CDLL('libc.so.6'); l['fopen'](b'x.bin', b'r')
import scipy.io.wavfile; scipy.io.wavfile.read('x.bin')
import tiktoken; tiktoken.get_encoding('x.bin')
import numpy as np; np.load('lib')
"""
SEVERAL_LINES = [
    "NAME = 'a'\nfor NAME in ['x.bin']: open(NAME)",
    "class A:\n    o = open\nA.o('x.bin')",
    "@open\ndef f(): pass",
    "import io\ndef f(m, n): return getattr(m, n)('x.bin')\nf(io, 'op' + 'en')",
    "def f(m, n): return getattr(m, n)",
    "def g(NAME='x.bin'): open(NAME)\nNAME = 'a'",
    "import train_gpt as me\nNAME = 'a'\nme.NAME = 'x.bin'\nopen(NAME)",
]


def folder_with(home: Path, source: str) -> Path:
    """A folder with 18 kB in x.bin and 12 kB in lib; the script."""
    (home / "lib").mkdir()
    (home / "x.bin").write_bytes(HIDDEN)
    (home / "lib" / "hidden.py").write_text("z = 1\n" * 2_000)
    (home / "helper.py").write_text("")
    (home / "a").write_text("")
    script = home / "train_gpt.py"
    script.write_text(source)
    return script


@pytest.mark.parametrize("source", COUNTED.strip().splitlines())
def test_a_known_path_counts(tmp_path, source):
    used = {path.name for path in measure_code(folder_with(tmp_path, source)).used}
    assert used & {"x.bin", "hidden.py"}


@pytest.mark.parametrize("source", OPEN.strip().splitlines() + SEVERAL_LINES)
def test_an_unknown_path_gives_both_bounds(tmp_path, source):
    size = measure_code(folder_with(tmp_path, source))
    assert size.unresolved and not size.proven
    assert {"x.bin", "hidden.py"} <= {path.name for path in (*size.used, *size.others)}
    assert size.most >= len(source) + len(HIDDEN) + 12_000


@pytest.mark.parametrize(
    "source",
    [
        "import os, json, torch\nprint(json.loads('{}'), os.environ.get('SEED'))",
        "import subprocess\nsubprocess.run(['nvidia-smi'], capture_output=True)",
        "from dataclasses import replace\nimport copy\nx = replace(copy.deepcopy(y), a=1)",
        "import torch\nassert hasattr(torch, 'compile')\ngetattr(torch, 'float32')",
        "import torch\nm = torch.compile(torch.nn.Linear(2, 2))\nm.load_state_dict({})",
        "open('log.txt', 'w').write('x')",
        "def load(x):\n    return x\nload(3)",
        "text = open(__file__).read()",
    ],
)
def test_what_reads_no_file_is_proven(tmp_path, source):
    size = measure_code(folder_with(tmp_path, source))
    assert size.proven and [path.name for path in size.used] == ["train_gpt.py"]


def test_without_another_file_an_open_call_is_no_doubt(tmp_path):
    script = tmp_path / "train_gpt.py"
    script.write_text("import sys\nopen(sys.argv[1])")
    (tmp_path / "train.log").write_text("seed:1\n")
    (tmp_path / "README.md").write_text("# x\n")
    size = measure_code(script)
    assert size.unresolved == ["train_gpt.py:2 open"] and size.proven


def test_a_text_that_is_none_may_be_code(tmp_path):
    script = tmp_path / "train_gpt.py"
    script.write_text("import sys\nopen(sys.argv[1])")
    (tmp_path / "notes.txt").write_bytes(bytes(range(256)) * 9)
    (tmp_path / ".hidden").write_bytes(b"\x7fELF")
    assert {path.name for path in measure_code(script).others} == {"notes.txt", ".hidden"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.txt", base64.b64encode(os.urandom(300_000))),
        ("weights.log", os.urandom(150_000).hex().encode()),
        ("t.model", b"\n\x0e\n\x05<unk>" + bytes(2_000_001)),
        ("x.bin", struct.pack("<iii", 20240520, 1, 9) + bytes(1012) + os.urandom(5_000)),
        ("y.bin", struct.pack("<iii", 20240520, 1, 2_500) + bytes(1012) + b"\xff" * 5_000),
    ],
)
def test_what_only_looks_like_data_may_be_code(tmp_path, name, content):
    script = tmp_path / "train_gpt.py"
    script.write_text("import sys\nopen(sys.argv[1])")
    (tmp_path / name).write_bytes(content)
    assert [path.name for path in measure_code(script).others] == [name]


def test_what_is_data_is_no_code(tmp_path):
    script = tmp_path / "train_gpt.py"
    script.write_text("import sys\nopen(sys.argv[1])")
    packed = base64.b85encode(os.urandom(60_000))
    steps = b"".join(b"step:%d/20000 train_loss:2.%04d\n" % (i, i * i % 9999) for i in range(9_000))
    (tmp_path / "train.log").write_bytes(b"exec(%s)\n" % packed + steps)
    (tmp_path / "t.model").write_bytes(b"\n\x0e\n\x05<unk>" + bytes(300_000))
    shard = struct.pack("<iii", 20240520, 1, 2_500) + bytes(1012) + b"\x01\x02" * 2_500
    (tmp_path / "fineweb_val_000000.bin").write_bytes(shard)
    assert measure_code(script).proven


def test_files_that_were_not_listed_may_be_code(tmp_path, monkeypatch):
    script = tmp_path / "train_gpt.py"
    script.write_text("import sys\nopen(sys.argv[1])")
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text("x\n")
    (tmp_path / "weights.bin").write_bytes(HIDDEN)
    monkeypatch.setattr(files, "MAX_FILES", 20)
    assert not measure_code(script).proven
    script.write_text("x = 1")
    assert measure_code(script).proven  # nothing could reach them


def test_more_libraries_than_one(tmp_path):
    for i in range(40):
        (tmp_path / f"m{i}.cpython-311-x86_64-linux-gnu.so").write_text("ELF")
    script = tmp_path / "train_gpt.py"
    script.write_text("import m39, random")
    assert len(measure_code(script).used) == 2


def test_a_link_out_of_the_folder_does_not_count(tmp_path):
    (tmp_path / "outside.py").write_text("x = 1")
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "helper.py").symlink_to("../outside.py")
    (entry / "train_gpt.py").write_text("import helper")
    files, _ = read_code(entry / "train_gpt.py")
    assert [path.name for path in files] == ["train_gpt.py"]


# ---------------------------------------------------------------- packed scripts

INNER = "def f():\n    return hf_hub_download('x', 'y')\n" + "".join(
    f"# {i * 7919 % 1009}\n" for i in range(300)
)
BLOB = lzma.compress(INNER.encode())
RAW = lzma.compress(
    INNER.encode(),
    format=lzma.FORMAT_RAW,
    filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}],
)
B85 = base64.b85encode(BLOB).decode()
HALF = len(B85) // 2
PACKED = {
    "xz in base85": f"exec(lzma.decompress(base64.b85decode({B85!r})))",
    "at preset 9": f"exec(lzma.decompress({lzma.compress(INNER.encode(), preset=9)!r}))",
    "two literals": f"exec(lzma.decompress(base64.b85decode({B85[:HALF]!r} {B85[HALF:]!r})))",
    "several lines": f"T = (\n {B85[:HALF]!r}\n {B85[HALF:]!r}\n)\nexec(D(b85decode(T)))".replace(
        "D(", "lzma.decompress("
    ),
    "a sum": f"exec(lzma.decompress(base64.b85decode({B85[:HALF]!r} + {B85[HALF:]!r})))",
    "a join": f"exec(lzma.decompress(base64.b85decode(''.join([{B85[:HALF]!r}, {B85[HALF:]!r}]))))",
    "reversed": f"exec(lzma.decompress(base64.b85decode({B85[::-1]!r}[::-1])))",
    "other names": f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({B85!r})))",
    "base64": f"exec(lzma.decompress(base64.b64decode({base64.b64encode(BLOB).decode()!r})))",
    "ascii85": f"exec(lzma.decompress(base64.a85decode({base64.a85encode(BLOB).decode()!r})))",
    "hex": f"exec(lzma.decompress(bytes.fromhex({BLOB.hex()!r})))",
    "bytes": f"exec(lzma.decompress({BLOB!r}))",
    "a list of numbers": f"exec(lzma.decompress(bytes({list(BLOB)!r})))",
    "raw lzma": f"exec(lzma.decompress({RAW!r}, format=lzma.FORMAT_RAW, filters=FILTERS))",
    "zlib": f"exec(zlib.decompress({zlib.compress(INNER.encode())!r}).decode())",
    "zstd": f"exec(zstd.decompress({zstandard.compress(INNER.encode())!r}))",
    "zstd of an object": (
        f"exec(zstandard.ZstdDecompressor().decompress({zstandard.compress(INNER.encode())!r}))"
    ),
    "a name that is bound twice": f"S=lzma.decompress({BLOB!r})\nS=S.decode()\nexec(S)",
    "compiled": f"exec(compile(lzma.decompress({BLOB!r}), 'x', 'exec'), globals())",
    "twice": f"exec({f'exec(lzma.decompress({BLOB!r}))'!r})",
    "through a function that is not known": f"exec(mystery({B85!r}))",
}


@pytest.mark.parametrize("way", PACKED)
def test_a_packed_script_is_read(way):
    programs, unread = read_programs("train_gpt.py", PACKED[way])
    assert programs[-1].text == INNER and not unread


@pytest.mark.parametrize(
    "source, named",
    [
        ("exec(decompress(key ^ blob))", "train_gpt.py:1 exec stays packed"),
        ("exec(marshal.loads(b'abc'))", "train_gpt.py:1 exec stays packed"),
        ("x = a ?? b\n", "line 1 has no syntax of Python"),
        ("\0", "train_gpt.py: "),
        ("x = 1\n" * 120_000, "more than 200,000 words and signs"),
    ],
)
def test_what_stays_packed_is_named(source, named):
    assert any(named in problem for problem in read_programs("train_gpt.py", source)[1])


def test_what_stands_around_a_line_of_unknown_syntax_is_read():
    source = "def f(d):\n    x = d ?? 'a'\n    return hf_hub_download(x)\n"
    programs, unread = read_programs("train_gpt.py", source)
    names = {node.id for node in programs[0].nodes if isinstance(node, ast.Name)}
    assert "hf_hub_download" in names and "line 2" in unread[0]


def test_brotli_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "brotli", None)
    source = f"exec(brotli.decompress({bytes(range(7, 200))!r}))"
    assert "brotli is not installed here" in read_programs("train_gpt.py", source)[1][0]


def test_a_bomb_is_not_unpacked():
    bomb = zlib.compress(b"#" * 50_000_000)
    programs, _ = read_programs("train_gpt.py", f"exec(zlib.decompress({bomb!r}))")
    assert max(len(program.text) for program in programs) <= 1_000_000
