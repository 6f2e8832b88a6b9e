"""A training step never makes the host wait for the device: nothing is copied between the two.

Without a GPU the model lies on the meta device, which computes shapes alone, and two modes look at
every operation of a step.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_settings, write_shard
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_gpt
from train_gpt import GPT, Distributed, TokenStream, TrainState

DEVICE = torch.device("meta")
END = 80  # the step at which a watched training ends


class Waits(AssertionError):
    """The operation would make the host wait for a device."""


def tensors_of(values) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def devices(values) -> set[str]:
    """Types of the devices of these tensors."""
    return {x.device.type for x in tensors_of(values)}


class RefuseCopies(TorchDispatchMode):
    """No operation that reads on one device and writes on the other, or gives a tensor's value."""

    VALUES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given, name = tensors_of((args, kwargs)), function.overloadpacket.__name__
        if name in self.VALUES and DEVICE.type in devices(given):
            raise Waits(f"{name} gives the host a value of the device")
        arrays = [x for x in given if x.dim() or x.device == DEVICE]  # a single number goes along
        if len(devices(arrays)) > 1:
            raise Waits(f"{name} takes tensors of the host and of the device")

        result = function(*args, **kwargs or {})
        if name in ("_to_copy", "copy_") and len(devices((given, result))) > 1:
            raise Waits(f"{name} copies between the host and the device")
        return result


class RefuseLists(TorchFunctionMode):
    """What no operation shows: numbers sent to the device, and an index by list, host or mask."""

    MAKERS = (torch.Tensor.new_tensor, torch.tensor, torch.as_tensor, torch.asarray)
    INDEXERS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
    NAMES = "item tolist cpu numpy nonzero __bool__ __float__ __int__".split()
    VALUES = [torch.nonzero, *(getattr(torch.Tensor, name) for name in NAMES)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.VALUES and devices(args) == {DEVICE.type}:
            raise Waits(f"{function.__name__} gives the host a value of the device")
        if function in self.INDEXERS and devices(args[0]) == {DEVICE.type}:
            self.check_index(args[1])
        result = function(*args, **kwargs)
        if function in self.MAKERS and DEVICE.type in devices(result):
            raise Waits(f"{function.__name__} copies numbers to the device")
        return result

    def check_index(self, index) -> None:
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, list | np.ndarray):
                raise Waits("an index out of numbers of Python is copied to the device")
            if isinstance(part, torch.Tensor) and part.device != DEVICE:
                raise Waits("an index of the host is copied to the device")
            if isinstance(part, torch.Tensor) and part.dtype == torch.bool:
                raise Waits("the host waits for the number of a mask's true elements")


class Enough(Exception):
    """The training has made the steps that are watched."""


@pytest.fixture
def make_state(tmp_path, monkeypatch):
    """make_state(**settings): a training on the meta device, and its evaluator.

    Every step has the same two batches, which are there before the watch begins, and step 80 none.
    """
    write_shard(tmp_path / "fineweb_train_0.bin", np.random.default_rng(0).integers(1, 64, 4000))
    monkeypatch.setattr(train_gpt, "ranks", Distributed(0, 1, DEVICE))
    monkeypatch.setattr(train_gpt, "StopRequest", lambda: SimpleNamespace(requested=False))
    plain_batches = train_gpt.train_batches

    def make(**changes) -> tuple[TrainState, SimpleNamespace]:
        steps = dict(ITERATIONS=100, WARMDOWN_ITERS=60, MICRO_BATCH_SEQS=3, MAX_WALLCLOCK_SECONDS=0)
        defaults = dict(DATA_PATH=tmp_path, LATE_QAT_THRESHOLD=0.5, TRAIN_LOG_EVERY=1000)
        s = tiny_settings(**defaults | steps | changes)
        drawn = plain_batches(TokenStream(s, "train"), 0, s)
        there = [tuple(x.to(DEVICE) for x in batch) for batch in drawn]
        assert len(there) == 2

        def batches(stream, step, s):
            if step == END:
                raise Enough
            return there

        monkeypatch.setattr(train_gpt, "train_batches", batches)
        with DEVICE:
            return TrainState(GPT(s), s), SimpleNamespace(s=s)

    return make


def train_watched(state: TrainState, evaluator: SimpleNamespace, first: int) -> None:
    """The steps from this one until END."""
    state.step = first
    state.seconds = 1.0
    with pytest.raises(Enough), RefuseCopies(), RefuseLists():
        train_gpt.train(state, None, evaluator)
    assert state.step == END


def test_the_first_step_does_not_wait(make_state):
    """By itself, as train() reads the loss of the first five for the log."""
    state, evaluator = make_state()
    train_gpt.set_lr_scale(state.optimizers, 1.0)
    with RefuseCopies(), RefuseLists():
        train_gpt.train_step(state, train_gpt.train_batches(None, 0, None), [], evaluator.s)
    assert state.step == 1


@pytest.mark.parametrize("optimizer", ["normuon", "muon_rows", "adamw"])
def test_training_after_a_warm_up_does_not_wait(make_state, optimizer):
    """Two steps, with fake quantization."""
    state, evaluator = make_state(WARMUP_STEPS=1, MATRIX_OPTIMIZER=optimizer)
    train_gpt.warm_up(state, None, evaluator)
    train_watched(state, evaluator, END - 2)


WAITING = {
    "a tensor out of a list": lambda x: x.new_tensor([1.0]),
    "an index out of a list": lambda x: x[[0, 2]],
    "a list among indices": lambda x: x[..., [0, 2]],
    "assignment to a list": lambda x: x.__setitem__([0, 2], 1.0),
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "torch.as_tensor": lambda x: torch.as_tensor([1.0, 2.0], device=DEVICE),
    "to the device": lambda x: torch.ones(3).to(DEVICE),
    "a number to the device": lambda x: torch.tensor(1).to(DEVICE),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "two devices": lambda x: x + torch.ones(3),
    "an index of the host": lambda x: x[torch.tensor([0, 2])],
    "index_select of the host": lambda x: x.index_select(0, torch.tensor([0, 2])),
    "a mask": lambda x: x[x > 0],
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "nonzero": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("case", WAITING)
def test_the_watch_sees(case):
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(Waits), RefuseCopies(), RefuseLists():
        WAITING[case](x)


def test_the_watch_lets_pass():
    x = torch.ones(3, device=DEVICE)
    with RefuseCopies(), RefuseLists():
        x.new_full((1,), 5)
        x * torch.tensor(2.0)  # a number of the host
        x[None, 1:, None] + x[-1]
        x[torch.arange(2, device=DEVICE)]
        torch.where(x.isfinite().all(), x, x + 1)
        torch.tensor([1.0, 2.0])[[0, 1]].sum().item()  # the host's own


def test_the_watch_sees_a_step_that_waits(make_state, monkeypatch):
    """As one is logged, and as a stack's own matrices are taken by a list."""
    with pytest.raises(Waits):
        train_watched(*make_state(TRAIN_LOG_EVERY=1), END - 1)
    monkeypatch.setattr(train_gpt, "newton_schulz", lambda update: update[[0]])
    with pytest.raises(Waits):
        train_watched(*make_state(), END - 1)
