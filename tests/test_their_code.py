"""Attacks on verify.py --model FILE --trust-code: their code runs in a process of its own, and what
it does there neither ends nor bends the report. At best it is CONSISTENT."""

import json
import py_compile
import time
from pathlib import Path

import pytest
from artifacts import pack, random_weights, settings_of

import verify

NETWORK = """
import torch
from torch import nn
import torch.nn.functional as F
BEFORE

class GPT(nn.Module):
    def __init__(self, vocab_size: int, model_dim: int):
        super().__init__()
        self.tok_emb = nn.Parameter(torch.zeros(vocab_size, model_dim))
        INIT

    def forward(self, tokens):
        x = self.tok_emb[tokens]
        logits = F.linear(x, self.tok_emb)
        FORWARD
        return logits
"""


@pytest.fixture
def theirs(home, capsys):
    """Findings by check, for code put into a small network, and the exit code."""

    def check(before: str = "", init: str = "", forward: str = "", **options) -> dict:
        config = settings_of(home, **options.pop("settings", {}))
        weights = {"tok_emb": random_weights(config)["tok_emb"]}
        artifact = pack(home / "artifact.pcll", config, weights)
        text = NETWORK.replace("BEFORE", before).replace("INIT", init or "pass")
        (home / "theirs.py").write_text(text.replace("FORWARD", forward))
        words = [str(artifact), "--model", str(home / "theirs.py"), "--trust-code", "--json"]
        for name, value in options.items():
            words += [f"--{name}"] if value is None else [f"--{name}", str(value)]
        code = verify.main(words)
        found = {row["check"]: row for row in json.loads(capsys.readouterr().out)["findings"]}
        assert found["integrity"]["verdict"] == "PROVEN"  # the report is whole
        return found | {"code": code}

    return check


def is_stopped(found: dict, words: str) -> bool:
    """Their code gave no score, and the report says why."""
    verdict = found["model"]["verdict"]
    return verdict == "NOT CHECKABLE" and words in found["model"]["detail"]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("import os; os._exit(0)", "ended without an answer"),
        ("class Odd(BaseException): pass\nraise Odd", "ended without an answer"),
        ("raise ValueError('no')", "stopped by ValueError no"),
        ("import os; [os.write(fd, b'x' * 64) for fd in range(3, 20)]", ""),
    ],
)
def test_what_ends_their_process_leaves_the_report(theirs, before, words):
    if "os.write" in before:
        before = (
            "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'x' * 64)\n"
            "    except OSError: pass"
        )
        words = "its answer has the shape"
    assert is_stopped(theirs(before), words)


def test_exit_in_the_middle_of_the_scores(theirs):
    found = theirs(
        init="self.calls = 0", forward="self.calls += 1\n        if self.calls > 30: quit()"
    )
    assert is_stopped(found, "ended without an answer")


def test_patches_stay_in_their_process(theirs):
    """A cross_entropy of zero, an argmax of the targets, a clock that stands still."""
    honest = theirs()
    patched = theirs(
        "F.cross_entropy = lambda *_, **__: torch.zeros(())\n"
        "import time, builtins, math\ntime.monotonic = lambda: 0.0\nmath.isfinite = bool\n"
        "builtins.print = builtins.abs = lambda *_, **__: 0\n"
        "import verify\nverify.FAILED = verify.PROVEN = 'PROVEN'\n"
        "verify.count_bytes = lambda *_: 10**9"
    )
    assert patched["val_bpb"]["number"] == honest["val_bpb"]["number"]
    assert patched["val_bpb"]["verdict"] == "CONSISTENT"


def test_nothing_that_rests_on_their_code_is_proven(theirs):
    found = theirs()
    proven = {name for name, row in found.items() if name != "code" and row["verdict"] == "PROVEN"}
    assert proven == {"size", "integrity", "tokenizer", "bytes"}


def test_a_loop_without_end_ends_with_the_minutes(theirs):
    began = time.monotonic()
    found = theirs(forward="while True: pass", minutes=0.25)
    assert time.monotonic() - began < 40
    assert found["code"] == 0 and found["causality"]["verdict"] == "NOT CHECKABLE"


def test_memory_has_a_limit(theirs):
    found = theirs("hoard = bytearray(3 * 10**9)", memory=2)
    assert is_stopped(found, "MemoryError")


def test_only_the_source_that_was_read_runs(theirs, home):
    """A .pyc beside it, unchecked, says otherwise; nothing is written into their folder."""
    (home / "helper.py").write_text("raise SystemExit('from the .pyc')\n")
    compiled = home / "__pycache__" / "helper.cpython-311.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(home / "helper.py"), str(compiled), invalidation_mode=mode)
    (home / "helper.py").write_text("x = 1\n")
    before = listing(home)
    found = theirs("import helper")
    assert found["val_bpb"]["verdict"] == "CONSISTENT"
    assert listing(home) - before == {"artifact.pcll", "theirs.py"}


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_environment_is_clean(theirs, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = theirs("import os\nif 'SECRET_TOKEN' in os.environ: raise ValueError('seen')")
    assert found["val_bpb"]["verdict"] == "CONSISTENT"


def test_a_leak_far_in_the_window_is_seen(theirs):
    """Behind 1,024 tokens it looks one ahead."""
    ahead = "logits[:, 1024:-1] += 9 * F.one_hot(tokens[:, 1025:], 320)"
    settings = dict(train_seq_len=1200, eval_stride=1200)
    assert theirs(forward=ahead, settings=settings)["causality"]["verdict"] == "FAILED"


@pytest.mark.parametrize("stride", [1, 8])
def test_reading_the_next_row_of_the_batch_is_seen(theirs, stride):
    """A window's targets stand in the one that follows at the stride, if both lie in one batch."""
    shift = f"(tokens[1:, :-{stride}] == tokens[:-1, {stride}:]).all(1)"
    leak = (
        f"if len(tokens) > 1:\n            near = {shift}[:, None, None]\n"
        f"            target = F.one_hot(tokens[1:, -{stride}:], 320)\n"
        f"            logits[:-1, -{stride}:] += 9 * near * target"
    )
    found = theirs(forward=leak, settings=dict(eval_stride=stride), **{"max-tokens": 99})
    assert found["determinism"]["verdict"] == "FAILED"


def test_their_network_adapts_in_its_process(theirs):
    settings = dict(ttt_protocol="score_first", ttt_lr=0.1)
    found = theirs(settings=settings, ttt=None)
    assert found["val_bpb_ttt"]["verdict"] == "CONSISTENT"
    assert abs(found["val_bpb_ttt"]["number"] - found["val_bpb"]["number"]) > 1e-3


def test_what_depends_on_the_order_of_rows_is_seen(theirs):
    found = theirs(forward="logits[0] *= 1.01", **{"max-tokens": 99})
    assert found["determinism"]["verdict"] == "FAILED"
