"""Times training: tokens a second, model-flops utilisation, memory, and the share of each part of a step.

    python tests/bench_train.py [--steps N] [VARIABLE=VALUE ...]

Settings are train_gpt.py's environment variables; the default is the full preset on a GPU and the demo on a CPU, where
tokens are random (times do not depend on them). First the count: operations and bytes of a step, and the time below
which no step can go on this GPU. Then steps as in training. Then each part alone, with the device idle before and after
it, so that the parts add up to a little more than a step. Last, attention by each kernel that PyTorch has for it here.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_gpt  # noqa: E402

REACHABLE = {
    "H100": (790e12, 3.0e12),
    "H200": (790e12, 4.3e12),
}  # bfloat16 operations and bytes a second, at best


def write_shard(folder: Path, vocab_size: int) -> None:
    tokens = np.random.default_rng(0).integers(2, vocab_size, 4_000_000).astype("<u2")
    header = np.array(
        [train_gpt.SHARD_MAGIC, train_gpt.SHARD_VERSION, len(tokens), *[0] * 253], dtype="<i4"
    )
    (folder / "fineweb_train_000000.bin").write_bytes(header.tobytes() + tokens.tobytes())


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function, repeats: int) -> float:
    """Median over the repeats, with the device idle before and after."""
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def count(trainer: train_gpt.Trainer) -> None:
    """Operations and bytes of a step, and the floor that they set."""
    s, model = trainer.s, trainer.model
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    matrices = sum(
        n for name, n in sizes.items() if name.endswith((*train_gpt.MATRICES, "tok_emb"))
    )
    attention = 6 * s.num_layers * s.train_seq_len * s.model_dim
    operations = s.train_batch_tokens * (6 * matrices + attention)
    # Weights and states once a step; each block's activations are written and read at least once forward and backward.
    state = 4 * 8 * sum(sizes.values())
    activations = 2 * 4 * s.train_batch_tokens * s.num_layers * (6 * s.model_dim + 2 * s.mlp_hidden)
    share = attention / (6 * matrices + attention)
    print(
        f"a step of {s.train_batch_tokens} tokens: {operations / 1e12:.2f} TFLOP ({share:.0%} of them attention's), "
        f"at least {(state + activations) / 1e9:.1f} GB moved"
    )
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for gpu, (flops, bandwidth) in REACHABLE.items():
        if gpu in name:
            floor = max(operations / flops, (state + activations) / bandwidth)
            print(f"floor on one {gpu}: {1000 * floor:.1f} ms")


def parts(trainer: train_gpt.Trainer) -> dict:
    """What a step consists of, each to be called alone."""
    s, ranks = trainer.s, trainer.ranks
    loss = []

    def load():
        return list(train_gpt.train_batches(trainer.stream, 0, s, ranks))

    batches = load()

    def forward():
        loss[:] = [trainer.loss_of(trainer.model, *batch) for batch in batches[:1]]

    def backward():
        forward()
        loss[0].backward()

    def optimize():
        for optimizer in trainer.optimizers:
            optimizer.step()

    return {
        "loader": (load, 1),
        "forward": (forward, len(batches)),
        "forward + backward": (backward, len(batches)),
        "optimizers": (optimize, 1),
        "EMA": (lambda: trainer.average.update_parameters(trainer.model), 1),
    }


def attention_kernels(
    s: train_gpt.Settings, device: torch.device, repeats: int
) -> dict[str, float]:
    """Seconds of causal attention, forward and backward, in all layers of a step, by each kernel that can do it; a
    training takes the first of them that PyTorch prefers."""
    batch, dim = (
        min(s.micro_batch_seqs, s.train_batch_tokens // s.train_seq_len),
        s.model_dim // s.num_heads,
    )
    q, k, v = (
        torch.randn(
            batch,
            heads,
            s.train_seq_len,
            dim,
            device=device,
            dtype=getattr(torch, s.dtype),
            requires_grad=True,
        )
        for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads)
    )
    many = s.num_layers * s.train_batch_tokens / (batch * s.train_seq_len)

    def forward_and_backward():
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y.backward(y.detach())

    times = {"PyTorch's choice": many * seconds(forward_and_backward, repeats)}
    for kernel in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ):
        with (
            contextlib.suppress(RuntimeError),
            warnings.catch_warnings(action="ignore"),
            sdpa_kernel(kernel),
        ):
            forward_and_backward()
            times[kernel.name] = many * seconds(forward_and_backward, repeats)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("settings", nargs="*", metavar="VARIABLE=VALUE")
    args = parser.parse_args()
    preset = {"PRESET": "pcll" if torch.cuda.is_available() else "demo"}
    chosen = preset | dict(os.environ) | dict(item.split("=", 1) for item in args.settings)
    with tempfile.TemporaryDirectory() as folder:
        s = train_gpt.load_settings(chosen | {"DATA_PATH": folder, "MAX_WALLCLOCK_SECONDS": "0"})
        write_shard(Path(folder), s.vocab_size)
        ranks = train_gpt.join_ranks(s)
        model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(ranks.device)
        trainer = train_gpt.Trainer(model, s, ranks)
        print(
            f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, {torch.get_num_threads()} "
            f"threads, torch {torch.__version__}, {sum(p.numel() for p in model.parameters())} parameters"
        )
        count(trainer)
        began = time.perf_counter()
        trainer.warm_up()
        wait()
        print(f"warm-up and compilation: {time.perf_counter() - began:.1f} s")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.set_schedule()
        trainer.update()
        wait()
        began = time.perf_counter()
        for _ in range(args.steps):
            trainer.set_schedule()
            trainer.update()
        wait()
        trainer.seconds = time.perf_counter() - began
        step = trainer.seconds / args.steps
        trainer.step = args.steps
        print(f"{1000 * step:.1f} ms a step, {trainer.speed()}")
        if torch.cuda.is_available():
            print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        times = {
            name: many * seconds(part, args.steps) for name, (part, many) in parts(trainer).items()
        }
        times["backward"] = times.pop("forward + backward") - times["forward"]
        for title, table in (
            ("part", times),
            ("attention alone", attention_kernels(s, ranks.device, args.steps)),
        ):
            print(f"\n{title:20} {'ms':>9} {'of a step':>9}")
            for name, duration in table.items():
                print(f"{name:20} {1000 * duration:9.1f} {duration / step:9.0%}")


if __name__ == "__main__":
    main()
