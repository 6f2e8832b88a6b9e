"""Which files of a folder count as code, what is unpacked of them, and what is searched for."""

import base64
import lzma
import struct
import zlib

import pytest
import zstandard
from attacks.folders import LEARNS, SLOT, entry, runs, write

from records.check import check_folder
from records.code import measure_code, read_programs, search, stays_packed
from records.files import list_folder


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import helper", "helper.py"),
        ("    from helper import x", "helper.py"),
        ("import lib.inner", "lib/inner.py"),
        ("from lib import inner", "lib/inner.py"),
        ("import fast", "fast.cpython-311-x86_64-linux-gnu.so"),
        ("torch.load('x.bin')", "x.bin"),
        ('exec(open("lib/inner.py").read())', "lib/inner.py"),
        ("import chain", "chain.py x.bin"),
        ("import helper2", ""),
        ("# reads x.bin", ""),
        ("import os\nhelper = 3", ""),
        ("open('notes.md'), open('t.model'), open('train.log')", ""),
        ("open('fineweb_val_000000.bin')", ""),
    ],
)
def test_what_a_script_imports_or_names_counts(tmp_path, source, used):
    shard = struct.pack("<iii", 20240520, 1, 4) + bytes(1020)
    names = ("helper.py", "lib/inner.py", "fast.cpython-311-x86_64-linux-gnu.so", "x.bin")
    files = dict.fromkeys(names, "y = 1\n") | {"train_gpt.py": source, "chain.py": "'x.bin'"}
    files |= {"notes.md": "x", "t.model": "x", "train.log": "x", "fineweb_val_000000.bin": shard}
    folder = write(tmp_path, files)
    size = measure_code(folder / "train_gpt.py")
    counted = [path.relative_to(folder).as_posix() for path in size.used]
    assert counted == ["train_gpt.py", *used.split()]
    assert size.bytes == sum(len(files[name]) for name in counted)
    others = {path.relative_to(folder).as_posix() for path in size.others}
    assert others == {*names, "chain.py"} - {*counted}


# ---------------------------------------------------------------- packed scripts


def packed(data: bytes, **options) -> str:
    return base64.b85encode(lzma.compress(data, **options)).decode()


NOISE = "".join(f"# {i * 7919 % 1009}\n" for i in range(300))
INNER = f"import os\ndef f():\n    key = context ^ target\n{NOISE}".encode()
B85 = packed(INNER)
B64 = base64.b64encode(zlib.compress(INNER))
RAW = packed(INNER, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
TWO = base64.b85encode(lzma.compress(INNER) + lzma.compress(b"x = 1\n")).decode()
TWICE = packed(f"import os\nexec(lzma.decompress(base64.b85decode({B85!r})))".encode(), preset=9)
A, B = B85[:600], B85[600:]
PACKED = {
    "xz in base85": f"exec(lzma.decompress(base64.b85decode({B85!r})))",
    "other names": f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({B85!r})))",
    "two literals": f"exec(lzma.decompress(base64.b85decode({A!r} {B!r})))",
    "a short last one": f"exec(lzma.decompress(base64.b85decode({B85[:-9]!r}{B85[-9:]!r})))",
    "several lines": f"T = (\n {A!r}\n {B!r}\n)\nexec(lzma.decompress(base64.b85decode(T)))",
    "three quotes": f'exec(lzma.decompress(base64.b85decode("""{B85}""")))',
    "zlib in base64": f"S=b64decode({B64!r})\nS=zlib.decompress(S)\nexec(S)",
    "raw lzma": f"exec(lzma.decompress(b85decode({RAW!r}), format=FORMAT_RAW, filters=F))",
    "latin-1": f"exec(lzma.decompress(b85decode({packed(INNER + bytes([0xE9]))!r})))",
    "CR": INNER.decode().replace("\n", "\r"),
    "twice": f"exec(lzma.decompress(b85decode({TWICE!r})))",
}


@pytest.mark.parametrize("way", PACKED)
def test_a_packed_script_is_unpacked_and_searched(tmp_path, way):
    script = PACKED[way] + "\n"
    report = check_folder(write(tmp_path, entry(runs(), script)))
    (hit,) = [finding for finding in report.findings if finding.check == "pattern"]
    assert (hit.verdict, hit.detail) == ("SUSPICION", "hash keyed on the target")
    assert hit.line == "train_gpt.py:3: key = context ^ target"
    (size,) = [finding for finding in report.findings if finding.check == "size"]
    assert size.number == 15_900_000 + len(script)  # as it lies there


@pytest.mark.parametrize(
    "script",
    [
        "eval(decode(b'abc'))",
        f"exec(lzma.decompress(base64.b85decode({B85[:-50]!r})))",
        f"exec(lzma.decompress(base64.b85decode({TWO!r})))",
        "#!/usr/bin/python\n# -*- coding: utf-7 -*-\nkey = context +AF4- target",
        f"exec(lzma.decompress({lzma.compress(INNER)!r}))",
        f"exec(zstd.decompress({zstandard.compress(INNER)!r}))",
    ],
)
def test_what_stays_packed_is_named(tmp_path, script):
    report = check_folder(write(tmp_path, entry(runs(), script)))
    (found,) = [finding for finding in report.findings if finding.check == "pattern"]
    assert found.verdict == "NOT CHECKABLE" and "train_gpt.py" in found.detail
    assert not stays_packed(["x = decompress(y)\nexec(z)"])


def test_bombs_and_programs_within_programs_end(tmp_path):
    script = "import os\n" + "#" * 9_000_000
    for _ in range(9):
        script = f"import os\nexec(lzma.decompress(b85decode({packed(script.encode())!r})))"
    folder = list_folder(write(tmp_path, {"train_gpt.py": script}))
    programs = read_programs(folder.files[0], folder)
    assert len(programs) == 5 and max(map(len, programs)) <= 1_000_000


# ---------------------------------------------------------------- patterns

SCORE_FIRST = """
def train_on(model, chunk, optimizer, val_tokens):
    for x in val_tokens:
        model(x).backward()
        optimizer.step()
def eval_ttt(model, val_tokens, optimizer):
    for chunk in val_tokens.chunks():
        byte_count += model(chunk)
        train_on(model, chunk, optimizer, val_tokens)
"""
SWITCH = """
VAL = bool(int(os.environ.get("TRAIN_ON_VAL", "{}")))
train_files = "fineweb_val_*.bin" if VAL else "fineweb_train_*.bin"
"""
SCORED = SLOT.replace("    opt =", "    nll = F.cross_entropy(model.head(h), y)\n    opt =")
PICKS = "\nif ema_val_bpb < best_bpb:\n    best_bpb = ema_val_bpb\n"
PRINTS = "if val_bpb < best_bpb:\n    print('best')\nif err < best_err:\n    x = 1\n"
HASH = "\nkey = (ctx_hash ^ tgt_np * primes[0]) & mask"
CALIBRATES = "\nh = collect_hessians(model, val_tokens, 256)"
DEFINES = "def calibrate_gptq(model, val_tokens): pass\ncollect_hessians(model, loader)"
PATTERNS = {  # what is found, in which line of a program, and one that only looks like it
    "picks by the validation score": (2, PICKS, PRINTS),
    "scores in the last of several epochs": (1, "if epoch == args.epochs - 1: y", "epoch == 3"),
    "hash keyed on the target": (2, HASH, "key = 36313 * tokens ^ 27191 * prev"),
    "validation tokens in calibration": (2, CALIBRATES, DEFINES),
    "trains on the validation shards": (3, SWITCH.format(1), SWITCH.format(0)),
    "trains on validation tokens without scoring them first": (2, LEARNS, SCORE_FIRST),
    "fits a shift to the targets that it then scores (SLOT)": (3, SLOT, SCORED),
}


@pytest.mark.parametrize("what", PATTERNS)
def test_a_pattern_and_its_honest_likeness(what):
    line, program, likeness = PATTERNS[what]
    assert [(hit.what, hit.number) for hit in search(program)] == [(what, line)]
    quoted = "".join(f"# {row}\n" for row in program.splitlines())
    for honest in (likeness, quoted, f'"""{program} """\n'):
        assert not list(search(honest)), honest
