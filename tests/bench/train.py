"""Times training: steps, their parts and kernels, memory, compilation, and one form beside another.

    python tests/bench/train.py [--steps N] [VARIABLE=VALUE ...]          steps, parts, kernels
    python tests/bench/train.py --pairs speed|tuned [VARIABLE=VALUE ...]  one change after the other
    python tests/bench/train.py --losses N [VARIABLE=VALUE ...]           what N steps train to

Settings are train_gpt.py's environment variables; the default is the full preset on a GPU and the
demo on a CPU, where tokens are random (times do not depend on them), but for --losses, which trains
on DATA_PATH. TRAIN_BATCH_TOKENS=98304 is the share of one rank of eight.

Every figure is a line "name, unit<TAB>value", printed as soon as it is known, so that a run that is
cut loses only the rest. Without an option it is steps as in training, with the recurrent span, if
there is one, off and on; then two under PyTorch's profiler (--kernels FILE: all of them), and each
part alone, with the device idle before and after it. With --pairs two trainings take turns in one
process: each change of SPEED beside the plain form, and of TUNED beside the script as it is.
"""

import argparse
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from bench import plain  # noqa: E402

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


MIX_ORDER = "triton.mix_order_reduction"


@dataclass(frozen=True)
class Variant:
    """A way to compute a step; the default is train_gpt.py's own."""

    name: str
    forms: tuple[type, ...] = ()  # of tests/bench/plain.py, in place of train_gpt.py's
    plain_grads: bool = False  # an addition for each parameter's gradient
    compiled_normuon: bool = False
    options: dict[str, object] = field(default_factory=dict)  # of Inductor, on top


MLP, SCALES, GAIN = plain.PLAIN
BEFORE = Variant("plain", plain.PLAIN, plain_grads=True, options={MIX_ORDER: True})
NOW = Variant("all together")
SPEED = (
    replace(BEFORE, name="no mix-order reductions", options={}),
    replace(BEFORE, name="padded MLP", forms=(SCALES, GAIN)),
    replace(BEFORE, name="scales in the matrices", forms=(MLP, GAIN)),
    replace(BEFORE, name="query gain before the rotation", forms=(MLP, SCALES)),
    replace(BEFORE, name="one gradient copy", plain_grads=False),
    NOW,
)
TUNED = (
    replace(NOW, name="compiled NorMuon", compiled_normuon=True),
    replace(NOW, name="max-autotune GEMMs", options={"max_autotune_gemm": True}),
)
PAIRS = {"speed": (BEFORE, SPEED), "tuned": (NOW, TUNED)}


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
    functions: dict[str, Callable]  # in place of train_gpt.py's

    @contextlib.contextmanager
    def in_force(self):
        """Within it train_gpt.py has this training's functions."""
        own = {name: getattr(train_gpt, name) for name in self.functions}
        vars(train_gpt).update(self.functions)
        try:
            yield
        finally:
            vars(train_gpt).update(own)

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


def make_training(
    environment: dict[str, str], folder: Path | None, variant: Variant = NOW
) -> Training:
    """A training as train_gpt.py begins it; with a folder on random tokens, without a limit of
    time."""
    if folder:
        environment = environment | {"DATA_PATH": str(folder), "MAX_WALLCLOCK_SECONDS": "0"}
    s = train_gpt.load_settings(environment)
    if folder and not list(folder.glob("*.bin")):
        write_shard(folder, s.vocab_size)
    train_gpt.ranks.init()
    torch.manual_seed(s.seed)
    model = train_gpt.GPT(s, getattr(torch, s.dtype)).to(train_gpt.ranks.device)
    plain.make_plain(model, *variant.forms)
    train_gpt.choose_attention()
    known = torch._inductor.list_options()
    options = {MIX_ORDER: False} | variant.options
    if train_gpt.is_compiled(s):
        options = {name: value for name, value in options.items() if name in known}
        model.compile(dynamic=False, options=options)

    state = train_gpt.TrainState(model, s)
    train_gpt.set_lr_scale(state.optimizers, 1.0)
    functions = {}
    if variant.plain_grads:
        functions["accumulate_grads"] = plain.accumulate_grads
    if variant.compiled_normuon:
        functions["normalize_rows"] = torch.compile(train_gpt.normalize_rows, dynamic=False)
        compile_normuon(state.optimizers[0])
    finished = torch.cuda.Event() if on_gpu() else None
    stream = train_gpt.TokenStream(s, "train")
    return Training(s, state, stream, finished, functions)


def compile_normuon(optimizer: train_gpt.NorMuon) -> None:
    """Its momentum is a tensor to the compiler, which would compile anew for each number."""
    compiled = torch.compile(optimizer.update_shard, dynamic=False)

    def update_shard(grad: Tensor, average: Tensor, momentum: float) -> Tensor:
        return compiled(grad, average, torch.tensor(momentum))

    optimizer.update_shard = update_shard


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


@dataclass
class Kernel:
    """A kernel on the GPU, or an operator on a CPU, in one step."""

    seconds: float = 0.0
    calls: float = 0.0


def profile_kernels(training: Training, steps: int = 2) -> dict[str, Kernel]:
    """All kernels of a step by name, the costliest first."""
    activities = [ProfilerActivity.CPU]
    if on_gpu():
        activities.append(ProfilerActivity.CUDA)
    with training.in_force(), profile(activities=activities) as recorded:
        for _ in range(steps):
            training.step()
        wait()

    kernels = defaultdict(Kernel)
    for event in recorded.key_averages():
        if getattr(event, "is_user_annotation", False) or event.key.startswith(SPANS):
            continue
        if on_gpu() and event.device_type != DeviceType.CUDA:
            continue
        duration = event.self_device_time_total if on_gpu() else event.self_cpu_time_total
        kernels[event.key].seconds += duration / 1e6 / steps
        kernels[event.key].calls += event.count / steps
    return dict(sorted(kernels.items(), key=lambda item: -item[1].seconds))


def write_kernels(training: Training, path: Path) -> None:
    """A line for every kernel: milliseconds and calls in a step, and the name."""
    kernels = profile_kernels(training)
    lines = [f"{1000 * k.seconds:9.4f} ms {k.calls:6g} x {name}" for name, k in kernels.items()]
    path.write_text("\n".join(lines) + "\n")


def attention_by(name: str) -> str:
    """Whose attention the kernel of this name is part of; empty for every other kernel."""
    return next((family for part, family in ATTENTION.items() if part in name), "")


def show_kernels(kernels: dict[str, Kernel]) -> None:
    attention = Counter()
    for name, kernel in kernels.items():
        if family := attention_by(name):
            attention[family] += kernel.seconds
    for family, duration in attention.items():
        show(f"attention by {family}, ms", 1000 * duration)
    show("all kernels, ms", 1000 * sum(kernel.seconds for kernel in kernels.values()))
    for rank, (name, kernel) in enumerate(list(kernels.items())[:COSTLIEST], 1):
        short = " ".join(name.removeprefix("void ").split())[:46]
        show(f"kernel {rank}: {short}, ms", 1000 * kernel.seconds)


# ---- Main ----------------------------------------------------------------------------------------


def bench(environment: dict[str, str], folder: Path, args: argparse.Namespace) -> None:
    training = make_training(environment, folder)
    model = training.state.model
    show("parameters", sum(p.numel() for p in model.parameters()))
    show_floor(training)
    if len(model.full_order) > len(model.blocks):
        model.set_recurrence(False)
        step = time_steps(training, args.steps)
        show("step before the recurrence, ms", 1000 * step.seconds)
        show("peak memory before the recurrence, GiB", step.peak_bytes / 2**30)
        model.set_recurrence(True)
    step = time_steps(training, args.steps)
    step.show()
    show_kernels(profile_kernels(training))
    if args.kernels:
        write_kernels(training, args.kernels)
    for name, duration in time_parts(training, step.seconds, args.steps).items():
        show(f"{name}, ms", 1000 * duration)


def bench_pairs(environment: dict[str, str], folder: Path, args: argparse.Namespace) -> None:
    torch._dynamo.config.recompile_limit = 64  # each training compiles the same functions
    first, others = PAIRS[args.pairs]
    make = partial(make_training, environment, folder)
    training = make(first)
    with training.in_force():
        time_steps(training, 1)
    if args.kernels:
        write_kernels(training, args.kernels)
    for variant in others:
        bench_pair(training, variant, make, args)


def bench_pair(first: Training, variant: Variant, make: Callable, args: argparse.Namespace) -> None:
    """Prints a step of the variant beside the first one's, and their ratio; a variant that does
    not run here says why."""
    began = time.perf_counter()
    try:
        training = make(variant)
        with training.in_force():
            step = time_steps(training, 1)
        mine, others = time_turns((training, first), args.steps, args.turns)
    except Exception as error:  # of many kinds: compiler, driver, memory, an unknown switch
        sentence = str(error).strip().splitlines() or [""]
        show(f"{variant.name}, ms", f"failed, {type(error).__name__}: {sentence[0][:120]}")
    else:
        show(f"{variant.name}, ms", 1000 * statistics.median(mine))
        show(f"{variant.name}, ms of the other", 1000 * statistics.median(others))
        ratios = [a / b for a, b in zip(mine, others, strict=True)]
        show(f"{variant.name}, ratio", statistics.median(ratios))
        print(
            f"({variant.name}: ratios {' '.join(f'{x:.3f}' for x in sorted(ratios))}, first step "
            f"{step.first_seconds:.1f} s, {step.peak_bytes / 2**30:.1f} GiB with both trainings, "
            f"{time.perf_counter() - began:.1f} s in all)",
            flush=True,
        )
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def time_turns(trainings: tuple[Training, ...], steps: int, turns: int) -> list[list[float]]:
    """Seconds of a step of each training, in each of its turns."""
    times = [[] for _ in trainings]
    for _ in range(turns):
        for training, durations in zip(trainings, times, strict=True):
            with training.in_force():
                wait()
                began = time.perf_counter()
                for _ in range(steps):
                    training.step()
                wait()
            durations.append((time.perf_counter() - began) / steps)
    return times


def bench_losses(environment: dict[str, str], count: int) -> None:
    """Prints what both forms train to in so many steps of the same batches and schedule."""
    length = {"ITERATIONS": str(count), "WARMDOWN_ITERS": str(2 * count // 5)}
    environment = environment | length | {"MAX_WALLCLOCK_SECONDS": "0", "CHECKPOINT_EVERY": "0"}
    s = train_gpt.load_settings(environment)
    if s.preset == "demo" and not train_gpt.find_shards(s.data_path, "train"):
        train_gpt.make_demo_data(s)

    last = max(1, count // 10)
    losses = {}
    for variant in (BEFORE, NOW):
        found = losses_of(make_training(environment, None, variant))
        losses[variant.name] = found
        show(f"loss at step {count}, {variant.name}", found[-1])
        show(f"mean loss of the last {last} steps, {variant.name}", statistics.mean(found[-last:]))
    difference = losses[NOW.name][-1] - losses[BEFORE.name][-1]
    show(f"loss at step {count}, difference", f"{difference:.6f}")


def losses_of(training: Training) -> list[float]:
    """The loss of each step of train_gpt.py's training."""
    own_step = train_gpt.train_step
    losses = []

    def train_step(state: train_gpt.TrainState, *rest) -> None:
        own_step(state, *rest)
        losses.append(state.grads[-1].clone())

    training.functions |= dict(train_step=train_step, save_checkpoint=lambda *_: None)
    with training.in_force():
        train_gpt.train(training.state, training.stream, SimpleNamespace(s=training.s))
    return [loss.item() for loss in losses]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", choices=sorted(PAIRS), help="only these pairs' times")
    parser.add_argument("--turns", type=int, default=5, help="of each training of a pair")
    parser.add_argument("--losses", type=int, metavar="N", help="only the losses of N steps")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="for the list of all kernels")
    parser.add_argument("settings", nargs="*", metavar="VARIABLE=VALUE")
    args = parser.parse_args()
    environment = {"PRESET": "pcll" if on_gpu() else "demo"} | dict(os.environ)
    environment |= dict(item.split("=", 1) for item in args.settings)
    print(
        f"{torch.cuda.get_device_name() if on_gpu() else 'CPU'}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}"
    )
    try:
        train_gpt.load_settings(environment)  # what is wrong for all is said once
        with tempfile.TemporaryDirectory() as folder:
            if args.losses:
                bench_losses(environment, args.losses)
            elif args.pairs:
                bench_pairs(environment, Path(folder), args)
            else:
                bench(environment, Path(folder), args)
        return 0
    except train_gpt.UserError as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
