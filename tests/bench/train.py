"""Times training: steps, their parts and kernels, memory, compilation and recompilations.

    python tests/bench/train.py [--steps N] [--variants] [VARIABLE=VALUE ...]

Settings are train_gpt.py's environment variables; the default is the full preset on a GPU and the
demo on a CPU, where tokens are random (times do not depend on them). TRAIN_BATCH_TOKENS=98304 is
the share of one rank of eight.

Every figure is a line "name, unit<TAB>value", printed as soon as it is known, so that a run that is
cut loses only the rest. First come steps as in training, then two under PyTorch's profiler, then
each part alone, with the device idle before and after it. With --variants it is only the time of a
step, for one change of settings, kernels or compiler after the other: see VARIANTS, in the order of
what they may be worth.
"""

import argparse
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._functorch.config
import torch._inductor.config
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402

HOPPER_FLOPS = 989e12  # operations a second, dense bfloat16
# bfloat16 operations and bytes a second, at best
REACHABLE = {"H100": (790e12, 3.0e12), "H200": (790e12, 4.3e12)}
WARM_UP = 3  # steps after the first one that are not timed
COSTLIEST = 10  # kernels that are named
SPANS = ("## ", "Optimizer.")  # how the names of a profile begin that hold kernels and are none

# What a kernel's or an operator's name contains, and whose attention that is. The first that fits:
# cuDNN's and FlashAttention 3's names contain "flash", too.
ATTENTION = {
    "cudnn_generated": "cuDNN",
    "FlashAttnFwdSm90": "FlashAttention 3",
    "FlashAttnBwdSm90": "FlashAttention 3",
    "flash_fwd": "FlashAttention 2",
    "flash_bwd": "FlashAttention 2",
    "fmha_cutlass": "the memory-efficient kernel",
    "flash_attention_for_cpu": "the CPU's flash kernel",
}


@dataclass(frozen=True)
class Variant:
    """One change whose effect on the time of a step is asked for."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    inductor: dict[str, object] = field(default_factory=dict)  # switches of torch._inductor.config
    attention: SDPBackend | None = None  # the only kernel that is allowed


VARIANTS = (
    Variant("as it is"),
    # With the recurrence, which is on for most of its training.
    Variant("PRESET=frontier", settings={"PRESET": "frontier"}),
    # A row of 1,500 bfloat16 is 3,000 bytes, and not a multiple of 16: 1,536 took 0.94 of the time.
    # Would 1,504, of which four could be zeros that no file holds?
    Variant("MLP_HIDDEN=1504", settings={"MLP_HIDDEN": "1504"}),
    Variant("MLP_HIDDEN=1536", settings={"MLP_HIDDEN": "1536"}),
    # Training takes cuDNN's or FlashAttention 3 where it can.
    Variant("flash attention", attention=SDPBackend.FLASH_ATTENTION),
    Variant("cuDNN's attention", attention=SDPBackend.CUDNN_ATTENTION),
    Variant("coordinate_descent_tuning", inductor={"coordinate_descent_tuning": True}),
)


@dataclass
class Step:
    """What steps in a row showed."""

    seconds: float  # of one step
    first_seconds: float  # of the very first one, in which all is compiled
    tokens: int
    operations: float  # floating-point ones, of one step
    peak_bytes: int  # of the GPU's memory
    graphs: int  # that the first steps compiled
    recompilations: int  # after that: none is what we want

    def show(self) -> None:
        show("step, ms", 1000 * self.seconds)
        show("tokens a second", self.tokens / self.seconds)
        show("TFLOP a second", self.operations / self.seconds / 1e12)
        show("MFU, % of 989 TFLOP/s", 100 * self.operations / self.seconds / HOPPER_FLOPS)
        show("peak memory, GiB", self.peak_bytes / 2**30)
        show("first step with its compilation, s", self.first_seconds)
        show("graphs compiled", self.graphs)
        show("recompilations after the warm-up", self.recompilations)


def show(figure: str, value: float | str) -> None:
    """One line of the table that run_on_gpu.sh collects."""
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    print(f"{figure}\t{text}", flush=True)


def on_gpu() -> bool:
    return torch.cuda.is_available()


def wait() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def seconds(function: Callable, repeats: int) -> float:
    """Median over the repeats after a first call, with the device idle before and after each."""
    function()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def compiled_graphs() -> int:
    """How many graphs this process has compiled so far; a recompilation is one more."""
    return counters["stats"]["unique_graphs"]


# ---- What is timed -------------------------------------------------------------------------------


def write_shard(folder: Path, vocab_size: int) -> None:
    tokens = np.random.default_rng(0).integers(2, vocab_size, 4_000_000).astype("<u2")
    header = np.array(
        [train_gpt.SHARD_MAGIC, train_gpt.SHARD_VERSION, len(tokens), *[0] * 253], dtype="<i4"
    )
    (folder / "fineweb_train_000000.bin").write_bytes(header.tobytes() + tokens.tobytes())


@dataclass
class Training:
    """What train_gpt.py makes before its first step."""

    s: train_gpt.Settings
    state: train_gpt.TrainState
    stream: train_gpt.TokenStream
    finished: torch.cuda.Event | None  # an earlier step, by the GPU

    def update(self) -> None:
        """A step at the full rates, and with the recurrence."""
        batches = train_gpt.train_batches(self.stream, self.state.step, self.s)
        train_gpt.train_step(self.state, batches, [], self.s)

    def step(self) -> None:
        """The same as training makes it: the host is never more than a step ahead of the GPU."""
        self.update()
        if self.finished:
            self.finished.synchronize()
            self.finished.record()


def make_training(environment: dict[str, str], folder: Path) -> Training:
    """A training as train_gpt.py begins it, on random tokens and without a limit of time."""
    own = {"DATA_PATH": str(folder), "MAX_WALLCLOCK_SECONDS": "0"}
    s = train_gpt.load_settings(environment | own)
    if not list(folder.glob("*.bin")):
        write_shard(folder, s.vocab_size)
    train_gpt.ranks.init()
    model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(train_gpt.ranks.device)
    train_gpt.choose_attention()
    if train_gpt.is_compiled(s):
        model.compile(dynamic=False)
    state = train_gpt.TrainState(model, s)
    train_gpt.set_lr_scale(state.optimizers, 1.0)
    finished = torch.cuda.Event() if on_gpu() else None
    return Training(s, state, train_gpt.TokenStream(s, "train"), finished)


def training_flops(model: train_gpt.GPT, s: train_gpt.Settings) -> float:
    """Operations for each token that is trained on.

    6 for each weight of a matrix, and 6 T D a layer for causal attention, forward and back.
    """
    weights = model.tok_emb.numel()
    if model.bigram is not None:
        weights += model.bigram.proj.numel()
    for index in model.order:
        for name, p in model.blocks[index].named_parameters():
            if train_gpt.role_of(name).group == "matrix":
                weights += p.numel()
    return 6.0 * (weights + len(model.order) * s.train_seq_len * s.model_dim)


def operations_of_a_step(training: Training) -> float:
    s = training.s
    return s.train_batch_tokens * training_flops(training.state.model, s)


def bytes_of_a_step(training: Training) -> float:
    """What a step has to move at least.

    Weights and states move once; each block's activations are written and read at least once,
    forward and backward.
    """
    s = training.s
    state = 4 * 8 * sum(p.numel() for p in training.state.model.parameters())
    width = 6 * s.model_dim + 2 * s.mlp_hidden
    return state + 2 * 4 * s.train_batch_tokens * s.num_layers * width


def show_floor(training: Training) -> None:
    """The time below which no step can go on this GPU, by its operations and its bytes."""
    operations = operations_of_a_step(training)
    moved = bytes_of_a_step(training)
    show("operations of a step, TFLOP", operations / 1e12)
    show("bytes moved in a step at least, GB", moved / 1e9)
    name = torch.cuda.get_device_name() if on_gpu() else ""
    for gpu, (flops, bandwidth) in REACHABLE.items():
        if gpu in name:
            floor = max(operations / flops, moved / bandwidth)
            show(f"floor of a step on one {gpu}, ms", 1000 * floor)


def time_steps(training: Training, steps: int) -> Step:
    """The first step, a few more, and then `steps` in a row, as in training."""
    before = compiled_graphs()
    began = time.perf_counter()
    training.step()
    wait()
    first_seconds = time.perf_counter() - began
    for _ in range(WARM_UP):
        training.step()
    graphs = compiled_graphs()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()

    wait()
    began = time.perf_counter()
    for _ in range(steps):
        training.step()
    wait()
    return Step(
        seconds=(time.perf_counter() - began) / steps,
        first_seconds=first_seconds,
        tokens=training.s.train_batch_tokens,
        operations=operations_of_a_step(training),
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu() else 0,
        graphs=graphs - before,
        recompilations=compiled_graphs() - graphs,
    )


def time_parts(training: Training, step: float, repeats: int) -> dict[str, float]:
    """Seconds of the parts of a step; "all else" is what is left of a step after the others.

    Each is measured alone; where they come to more than a step, as the machine had other work or
    the parts overlap in a step, they are what they are in proportion.
    """
    state = training.state
    batches = list(train_gpt.train_batches(training.stream, 0, training.s))

    def forward():
        for batch in batches:
            state.model(*batch).mean()

    def forward_and_backward():
        for batch in batches:
            state.model(*batch).mean().backward()

    def optimize():
        for optimizer in state.optimizers:
            optimizer.step()

    times = {"forward": seconds(forward, repeats)}
    times["backward"] = max(0.0, seconds(forward_and_backward, repeats) - times["forward"])
    times["optimizers"] = seconds(optimize, repeats)
    slowed = max(1.0, sum(times.values()) / step)
    times = {part: duration / slowed for part, duration in times.items()}
    return times | {"all else": step - sum(times.values())}


# ---- Kernels -------------------------------------------------------------------------------------


def kernel_times(training: Training, steps: int = 2) -> dict[str, float]:
    """Seconds a step of every kernel on the GPU, the costliest first (on a CPU: of operators)."""
    activities = [ProfilerActivity.CPU]
    if on_gpu():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        for _ in range(steps):
            training.step()
        wait()
    times = Counter()
    for event in recorded.key_averages():
        if getattr(event, "is_user_annotation", False) or event.key.startswith(SPANS):
            continue
        if not on_gpu():
            times[event.key] += event.self_cpu_time_total / 1e6 / steps
        elif event.device_type == DeviceType.CUDA:
            times[event.key] += event.self_device_time_total / 1e6 / steps
    return dict(times.most_common())


def attention_by(name: str) -> str:
    """Whose attention the kernel of this name is part of; empty for every other kernel."""
    return next((family for part, family in ATTENTION.items() if part in name), "")


def show_kernels(times: dict[str, float]) -> None:
    attention = Counter()
    for name, duration in times.items():
        if family := attention_by(name):
            attention[family] += duration
    for family, duration in attention.items():
        show(f"attention by {family}, ms", 1000 * duration)
    show("all kernels, ms", 1000 * sum(times.values()))
    for rank, (name, duration) in enumerate(list(times.items())[:COSTLIEST], 1):
        short = " ".join(name.removeprefix("void ").split())[:46]
        show(f"kernel {rank}: {short}, ms", 1000 * duration)


# ---- Main ----------------------------------------------------------------------------------------


def bench(environment: dict[str, str], folder: Path, steps: int) -> None:
    training = make_training(environment, folder)
    show("parameters", sum(p.numel() for p in training.state.model.parameters()))
    show_floor(training)
    step = time_steps(training, steps)
    step.show()
    show_kernels(kernel_times(training))
    for name, duration in time_parts(training, step.seconds, steps).items():
        show(f"{name}, ms", 1000 * duration)


@contextlib.contextmanager
def in_force(variant: Variant):
    """Within it the variant's compiler switches and kernels hold, and all is compiled anew."""
    torch._dynamo.reset()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._inductor.config.patch(variant.inductor))
        if variant.attention:
            # A graph is cached by what it was before PyTorch chose the kernel.
            stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
            stack.enter_context(sdpa_kernel(variant.attention))
        yield


def bench_variant(variant: Variant, environment: dict[str, str], folder: Path, steps: int) -> None:
    """Prints the time of a step; a variant that does not run here says why."""
    began = time.perf_counter()
    try:
        with in_force(variant):
            step = time_steps(make_training(environment | variant.settings, folder), steps)
    except Exception as error:  # of many kinds: compiler, driver, memory, an unknown switch
        sentence = str(error).strip().splitlines() or [""]
        show(f"{variant.name}, ms", f"failed, {type(error).__name__}: {sentence[0][:120]}")
    else:
        show(f"{variant.name}, ms", 1000 * step.seconds)
        print(
            f"({variant.name}: first step {step.first_seconds:.1f} s, {step.peak_bytes / 2**30:.1f}"
            f" GiB, {time.perf_counter() - began:.1f} s in all)",
            flush=True,
        )
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--variants", action="store_true", help="only the variants' times")
    parser.add_argument("settings", nargs="*", metavar="VARIABLE=VALUE")
    args = parser.parse_args()
    environment = {"PRESET": "pcll" if on_gpu() else "demo"} | dict(os.environ)
    environment |= dict(item.split("=", 1) for item in args.settings)
    print(
        f"{torch.cuda.get_device_name() if on_gpu() else 'CPU'}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            if not args.variants:
                bench(environment, Path(folder), args.steps)
                return 0
            train_gpt.load_settings(environment)  # what is wrong for all is said once
            for variant in VARIANTS:
                if on_gpu() or variant.attention != SDPBackend.CUDNN_ATTENTION:
                    bench_variant(variant, environment, Path(folder), args.steps)
        return 0
    except train_gpt.UserError as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
