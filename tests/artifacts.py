"""Artifacts, data and runs of verify.py, for the tests of it."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import zstandard
from conftest import write_shard

import verify

CONFIG = json.loads("""{
    "vocab_size": 320, "num_layers": 5, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2,
    "mlp_hidden": 24, "rope_dims": 4, "rope_base": 100.0, "logit_softcap": 30.0, "xsa_last_n": 2,
    "bigram_buckets": 64, "bigram_dim": 8, "mlp_negative_slope": 0.5, "ln_scale": true,
    "smear_gate": true, "value_residual": true, "gated_attention": true, "unet_skips": true,
    "bos_reset": true, "parallel_last_n": 0, "loop_first": 0, "loop_last": 0, "loop_passes": 1,
    "gate_dims": 0, "smear_dims": 0, "skip_gates": false, "train_seq_len": 32, "eval_stride": 8,
    "ttt_protocol": "off", "ttt_chunk_tokens": 128, "ttt_epochs": 2, "ttt_optimizer": "adamw",
    "ttt_lr": 0.01, "ttt_batch_seqs": 2, "ttt_grad_clip": 1.0, "tokenizer_sha256": "",
    "document_rank": 96, "document_lr": 0.0001, "document_tokens": 48, "seed": 1
}""")
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A list is a mutable sequence; naïve readers call it an array. "
    "Ünïcode — 漢字 — needs byte pieces!",
    "  Two spaces lead this one, and two  stand inside.",
    "x",
    "Arguments are passed by assignment in Python. "
    "Since assignment creates references to objects, there is no alias.",
] * 3


# ---------------------------------------------------------------- artifacts, data, runs


def pack(path: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    """Writes a PCLL container of float32 tensors (codec 0)."""
    header = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    table, planes = struct.pack("<H", len(weights)), b""
    for name, w in sorted(weights.items()):
        table += bytes([len(name)]) + name.encode() + bytes([0, w.ndim])
        table += struct.pack(f"<{w.ndim}I", *w.shape)
        planes += np.frombuffer(w.astype("<f4").tobytes(), "u1").reshape(-1, 4).T.tobytes()
    content = struct.pack("<I", len(header)) + header + table + planes
    frame = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(content)
    path.write_bytes(struct.pack("<4sHHII", b"PCLL", 1, 0, len(content), len(frame)) + frame)
    return path


def random_weights(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of order one everywhere, so that every feature shows in the logits."""
    draw = np.random.default_rng(seed)
    shapes = verify.expected_shapes(config)
    return {
        n: (draw.normal(size=s) * (0.5 if len(s) < 2 else s[1] ** -0.5)).astype("f4")
        for n, s in shapes.items()
    }


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with data/demo: a tokenizer of 320 tokens with byte fallback, and one validation
    shard."""
    folder = tmp_path_factory.mktemp("demo")
    data = folder / "data" / "demo"
    data.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(data / "bpe"),
        vocab_size=320,
        model_type="bpe",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=True,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data / "bpe.model"))
    write_shard(
        data / "fineweb_val_000000.bin", [i for text in TEXTS for i in [1, *pieces.encode(text)]]
    )
    return folder


@pytest.fixture
def home(demo, tmp_path, monkeypatch) -> Path:
    """A working folder as after the demo: data/demo, a train_gpt.py, no artifact yet."""
    (tmp_path / "data").symlink_to(demo / "data")
    (tmp_path / "train_gpt.py").write_text("print('train')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "HERE", tmp_path)  # as where verify.py lies
    targets = len(verify.read_tokens(tmp_path / "data/demo", 320)) - 1
    monkeypatch.setattr(verify, "SPLIT_TOKENS", {320: targets // 1024 * 1024})  # it is official
    monkeypatch.setattr(verify, "SPLIT_BYTES", sum(len(text.encode()) for text in TEXTS))
    return tmp_path


def settings_of(home: Path, **changes) -> dict:
    sha = hashlib.sha256((home / "data/demo/bpe.model").read_bytes()).hexdigest()
    return CONFIG | {"tokenizer_sha256": sha} | changes


def make(home: Path, **changes) -> Path:
    config = settings_of(home, **changes)
    return pack(home / "artifact.pcll", config, random_weights(config))


def run(capsys, *arguments) -> tuple[int, dict[str, dict]]:
    """(exit code, findings by check) of `verify.py arguments --json`."""
    code = verify.main([*map(str, arguments), "--json"])
    out = capsys.readouterr().out
    return code, {f["check"]: f for f in json.loads(out)["findings"]} if out else {}
