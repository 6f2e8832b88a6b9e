"""The scripts for a lent GPU, as far as a CPU can rehearse them: parts, budgets, files, table."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import ablate, peer, plain, train, whole
from conftest import ROOT, TINY, tiny_settings, write_shard

import train_gpt

NUMBER = re.compile(r"-?\d+(\.\d+)?$")


def rehearse(out: Path, *parts: str, **changes: str) -> list[list[str]]:
    """The rows of the table that the parts leave: part, figure, value."""
    environment = {"REHEARSE": "1", "OUT": str(out), "PATH": os.environ["PATH"]}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "tests/run_on_gpu.sh", *parts],
        env=environment | {"OMP_NUM_THREADS": "1"} | changes,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = (out / "table.txt").read_text()
    assert done.stdout.endswith(table)
    title, *rows = table.splitlines()
    assert title.startswith("All figures, of ")
    return [[row[:9].strip(), row[10:72].strip(), row[73:]] for row in rows]


def figures(rows: list[list[str]], part: str) -> dict[str, str]:
    return {figure: value for name, figure, value in rows if name == part}


def test_parts_leave_files_and_numbers_whatever_the_one_before_did(tmp_path):
    rows = rehearse(tmp_path, "peer", "smoke", "bench", PEER="none.py")
    assert figures(rows, "peer")["seconds, FAILED"].endswith("tests/pack_for_gpu.sh takes one")
    assert {row[1] for row in rows if not NUMBER.match(row[2])} == {"seconds, FAILED"}
    smoke = figures(rows, "smoke")
    bench = figures(rows, "bench")
    assert sum(figure.endswith("[cpu], s") for figure in smoke) == 3
    assert float(bench["step, ms"]) > 0 and float(bench["tokens a second"]) > 0
    assert "MFU, % of 989 TFLOP/s" in bench and bench["recompilations after the warm-up"] == "0"
    assert sum(figure.startswith("kernel ") for figure in bench) == train.COSTLIEST
    assert {"forward, ms", "backward, ms", "optimizers, ms", "all else, ms"} < bench.keys()
    assert "seconds" in smoke and "seconds" in bench
    parts = {"peer.txt", "smoke.txt", "bench.txt"}
    assert {path.name for path in tmp_path.iterdir()} == parts | {"table.txt"}


def test_no_part_has_more_than_its_seconds_or_than_is_left(tmp_path):
    rows = rehearse(tmp_path, "bench", "run", "smoke", BENCH_SECONDS="1", TOTAL_SECONDS="8")
    assert list(figures(rows, "bench")) == list(figures(rows, "run")) == ["seconds, CUT"]
    assert figures(rows, "smoke") == {"seconds, NOT STARTED": "0: no time was left"}


PARTS = "smoke bench run peer speed tests tuned frontier documents losses"


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    rows = rehearse(tmp_path, *PARTS.split(), TOTAL_SECONDS="900")
    assert [row for row in rows if not NUMBER.match(row[2])] == []
    run = figures(rows, "run")
    assert run["verify.py, exit status"] == "0"
    claim, verified = (float(run[f"verify.py, {what}, bpb"]) for what in ("claim", "val_bpb_ttt"))
    # Six digits of two float32 computations, each some 1e-6 from float64: forward passes, sums of
    # 2,047 nats, and updates in another order.
    assert claim == pytest.approx(verified, abs=1e-5)
    assert float(run["steps"]) > 5 and float(run["calibration, s"]) > 0
    assert float(run["tokens a second in training"]) > 0 and "reserved for calibration, s" in run
    assert {"before export, plain, bpb", "after export, sliding window, s"} < run.keys()
    assert figures(rows, "peer")["steps"] == "4"
    assert "step before the recurrence, ms" in figures(rows, "frontier")
    documents = figures(rows, "documents")
    assert float(documents["after adaptation per document, s"]) > 0
    assert abs(float(figures(rows, "losses")["loss at step 6, difference"])) < 1e-3
    logs = sorted(path.suffix for path in (tmp_path / "logs").iterdir())
    assert logs == [".pcll", ".pcll", ".txt", ".txt"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 20  # may come back


def test_what_is_missing_is_a_sentence(tmp_path):
    for words, sentence in (
        ([], "Usage: bash tests/pack_for_gpu.sh DATA_FOLDER [PEER_SCRIPT]\n"),
        (["none"], "none is not a folder.\n"),
        ([tmp_path, "none.py"], "none.py is not a file.\n"),
    ):
        command = ["bash", ROOT / "tests/pack_for_gpu.sh", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr == sentence


def test_parts_are_known():
    done = subprocess.run(
        ["bash", ROOT / "tests/run_on_gpu.sh", "bnech"],
        env=os.environ | {"OUT": "unused"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("bnech is not one of smoke, bench")


# ---- The measuring -------------------------------------------------------------------------------


def test_recompilations_are_counted():
    before = train.compiled_graphs()
    doubled = torch.compile(lambda x: 2 * x, backend="eager")
    for size in (3, 3, 4):
        doubled(torch.ones(size))
    assert train.compiled_graphs() == before + 2


@pytest.mark.parametrize(
    "kernel, family",
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "cuDNN"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "FlashAttention 2"),
        ("void cutlass::device_kernel<flash::FlashAttnBwdSm90<...>>", "FlashAttention 3"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "the memory-efficient kernel"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "the CPU's flash kernel"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", ""),
    ],
)
def test_attention_is_told_by_its_kernel(kernel, family):
    assert train.attention_by(kernel) == family


def run_bench(monkeypatch, *words: str) -> dict[str, float]:
    """The figures that tests/bench/train.py prints with these arguments."""
    printed = {}
    monkeypatch.setattr(train, "show", lambda figure, value: printed.update({figure: float(value)}))
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    for name, value in TINY.items():
        monkeypatch.setenv(name, value)
    assert train.main() == 0
    return printed


def test_each_change_of_speed_is_timed_beside_the_plain_form(monkeypatch, tmp_path):
    path = tmp_path / "kernels.txt"
    words = ["--pairs", "speed", "--steps", "1", "--turns", "1", "--kernels", str(path)]
    printed = run_bench(monkeypatch, *words)
    for variant in train.SPEED:
        names = (f"{variant.name}, {what}" for what in ("ms", "ms of the other", "ratio"))
        own, other, ratio = map(printed.pop, names)
        assert ratio == pytest.approx(own / other)
    assert printed == {}
    kernels = path.read_text().splitlines()
    assert len(kernels) > 20
    assert all(re.match(r" *[\d.]+ ms +[\d.]+ x \S", line) for line in kernels)


def test_both_forms_train_to_the_same_loss(monkeypatch, tmp_path):
    """Twenty steps in float32, where the forms differ in the order of one product."""
    write_shard(tmp_path / "fineweb_train_000000.bin", np.arange(4096) % 60 + 1)
    printed = run_bench(monkeypatch, "--losses", "20", f"DATA_PATH={tmp_path}")
    assert list(printed)[0] == "loss at step 20, plain"
    assert printed["loss at step 20, all together"] < 3.5  # of ln 64 = 4.16 at first
    assert abs(printed["loss at step 20, difference"]) < 1e-3


def forms(training: train.Training) -> set[str]:
    """What a training has in place of train_gpt.py's own."""
    modules = {type(module) for module in training.state.model.modules()}
    own = {module.__name__ for module in modules if module.__module__ == plain.__name__}
    return own | training.functions.keys()


def test_each_change_of_speed_is_one(tmp_path, monkeypatch):
    """What it leaves plain; as all are plain but for the change that is timed."""
    seen = []
    monkeypatch.setattr(
        train_gpt.GPT, "compile", lambda self, **options: seen.append(options["options"])
    )
    everything = {"NarrowMLP", "ScalingBlock", "LateGainAttention", "accumulate_grads"}
    expected = [
        ("plain", everything, True),
        ("no mix-order reductions", everything, False),
        ("padded MLP", everything - {"NarrowMLP"}, True),
        ("scales in the matrices", everything - {"ScalingBlock"}, True),
        ("query gain before the rotation", everything - {"LateGainAttention"}, True),
        ("one gradient copy", everything - {"accumulate_grads"}, True),
        ("all together", set(), False),
    ]
    for variant, (name, own, mix_order) in zip((train.BEFORE, *train.SPEED), expected, strict=True):
        training = train.make_training(TINY | {"COMPILE": "1"}, tmp_path, variant)
        assert variant.name == name and forms(training) == own
        assert seen.pop() == {"triton.mix_order_reduction": mix_order}


def test_compiled_normuon_takes_every_momentum_without_compiling_anew(tmp_path, monkeypatch):
    """The same update as the plain one, to float32's rounding. No C++ compiler is needed."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    (tuned,) = [variant for variant in train.TUNED if variant.compiled_normuon]
    compiled, own = (train.make_training(TINY, tmp_path, x) for x in (tuned, train.NOW))
    before = 0
    for step in range(4):
        for training in (compiled, own):
            for group in training.state.optimizers[0].param_groups:
                group["momentum"] = 0.9 + 0.01 * step
            with training.in_force():
                training.step()
        if step == 0:
            before = train.compiled_graphs()
    assert train.compiled_graphs() == before > 0
    for p, other in zip(
        compiled.state.model.parameters(), own.state.model.parameters(), strict=True
    ):
        torch.testing.assert_close(p, other, rtol=1e-3, atol=1e-4)


def test_a_variant_that_fails_says_why(capsys):
    def make(variant):
        raise RuntimeError("no such kernel\nmore")

    train.bench_pair(None, train.Variant("tuned"), make, None)
    assert capsys.readouterr().out == "tuned, ms\tfailed, RuntimeError: no such kernel\n"


def test_validation_is_cut(tmp_path):
    data = tmp_path / "data"
    cut = tmp_path / "cut"
    data.mkdir()
    write_shard(data / "fineweb_val_000000.bin", range(1, 50))
    write_shard(data / "fineweb_train_000000.bin", range(1, 9))
    whole.cut_validation(data, cut, 7)
    s = tiny_settings(DATA_PATH=cut)
    tokens = [train_gpt.TokenStream(s, split) for split in ("val", "train")]
    assert [stream.total for stream in tokens] == [7, 8]
    assert tokens[0].read(0, 7).tolist() == list(range(1, 8))


def test_findings_are_read_after_lines_of_progress():
    findings = [{"check": "size", "verdict": "OK"}]
    text = json.dumps({"schema": 1, "findings": findings})
    for progress in ("", "after export:  50.0%, 1,024 positions scored, 0 s left"):
        assert whole.findings_of(progress + text) == findings
    assert whole.findings_of("Traceback") == whole.findings_of("") == []


def test_a_peers_attention_is_replaced():
    source = (
        "from __future__ import annotations\nimport torch\n"
        "from flash_attn_interface import flash_attn_func as attend\n"
        "world_size = 1\ngrad_accum_steps = 8 // world_size\n"
    )
    names = {}
    exec(compile(peer.adapted(source), "peer", "exec"), names)
    assert names["grad_accum_steps"] == 1
    q = torch.randn(2, 5, 4, 8)
    kv = torch.randn(2, 5, 2, 8)
    y = names["attend"](q, kv, kv, causal=True)
    assert y.shape == q.shape
    # The first position sees itself alone; two query heads share a head of keys and values.
    torch.testing.assert_close(y[:, 0], kv[:, 0].repeat_interleave(2, dim=1))


def test_no_part_is_longer_than_its_step(tmp_path):
    """Even where other work has slowed down the parts, which are measured alone."""
    environment = TINY | {"NUM_LAYERS": "1", "MICRO_BATCH_SEQS": "3"}  # two unequal batches
    training = train.make_training(environment, tmp_path)
    training.step()
    for step in (1e-6, 10.0):
        parts = train.time_parts(training, step, repeats=1)
        assert list(parts) == ["forward", "backward", "optimizers", "all else"]
        assert sum(parts.values()) == pytest.approx(step)
        assert all(-1e-9 < seconds <= step for seconds in parts.values())


@pytest.mark.parametrize("bench", [ablate, train, whole], ids=lambda bench: bench.__name__)
def test_benches_stop_at_an_unknown_name(tmp_path, monkeypatch, capsys, bench):
    """By main(), or by what calls it."""
    monkeypatch.chdir(tmp_path)
    words = ["--work", "."] if bench == whole else []
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    monkeypatch.setenv("MATRIXLR", "1")
    sentence = "MATRIXLR is no setting. Did you mean MATRIX_LR? If not, unset MATRIXLR."
    try:
        assert bench.main() == 2 and sentence in capsys.readouterr().out
    except train_gpt.UserError as error:
        assert str(error) == sentence
