"""What several test files share: the project's modules on the path, small settings and data."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of what they start: several run side by side

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train_gpt  # noqa: E402


def pairs(text: str) -> dict[str, str]:
    """The words NAME=value of a text."""
    return dict(word.split("=") for word in text.split())


TINY = pairs("""
    PRESET=demo VOCAB_SIZE=64 NUM_LAYERS=3 MODEL_DIM=32 NUM_HEADS=4 NUM_KV_HEADS=2 MLP_HIDDEN=48
    ROPE_DIMS=4 XSA_LAST_N=2 BIGRAM_BUCKETS=32 BIGRAM_DIM=8 TRAIN_SEQ_LEN=16 TRAIN_BATCH_TOKENS=64
    TTT_CHUNK_TOKENS=32 EVAL_STRIDE=4 EVAL_BATCH_SEQS=3
""")


def tiny_settings(**changes) -> train_gpt.Settings:
    return train_gpt.load_settings(TINY | {name: str(value) for name, value in changes.items()})


def random_model(s: train_gpt.Settings, seed: int = 0) -> train_gpt.GPT:
    """A float32 model in which no parameter is zero: every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = train_gpt.GPT(s)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim < 2 else 0.15))
    return model


def write_shard(
    path: Path, tokens, magic: int = 20240520, version: int = 1, count: int | None = None
) -> None:
    tokens = np.asarray(tokens, dtype="<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + tokens.tobytes())


def make_demo_data(base: Path) -> Path:
    """The demo's data with a validation split of 3,000 tokens; made once, only to be copied."""
    folder = base / "demo_data"
    if not folder.exists():
        names = dict(DATA_PATH=str(folder), TOKENIZER_PATH=str(folder / "bpe_1024.model"))
        s = train_gpt.load_settings({"PRESET": "demo"} | names)
        train_gpt.make_demo_data(s)
        shard = folder / "fineweb_val_000000.bin"
        write_shard(shard, np.fromfile(shard, "<u2", offset=1024)[:3000])
    return folder


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(1, 2): this process is rank 1 of 2, without the other one."""

    def become(rank: int, world_size: int) -> None:
        ranks = train_gpt.Distributed(rank, world_size, torch.device("cpu"))
        monkeypatch.setattr(train_gpt, "ranks", ranks)

    return become


from artifacts import demo, home  # noqa: E402, F401 - fixtures; they need what stands above
