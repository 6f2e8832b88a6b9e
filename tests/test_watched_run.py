"""One whole run inside this process, watched: which graphs it compiles, and what it exports.

The compiler here runs each graph as it is and only counts: no C++ compiler is needed.
"""

import re
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import make_demo_data
from test_run import run_here
from torch import nn

import train_gpt
from decode_artifact import read_pcll
from train_gpt import GPT

DECAY = 0.6
STEPS = 7
SETTINGS = dict(
    COMPILE="1",
    ITERATIONS=STEPS,
    WARMUP_STEPS=2,
    NUM_LAYERS=1,
    LOOP_PASSES=2,  # of the one block
    VAL_LOSS_EVERY=3,
    MICRO_BATCH_SEQS=8,
    EVAL_BATCH_SEQS=5,  # 47 windows: the last batch of a chunk is not full
    EVAL_STRIDE=64,
    TTT_BATCH_SEQS=3,  # four sequences a chunk: the second batch has one
    TTT_CHUNK_TOKENS=1024,  # 2,999 positions: the last chunk is shorter
    EMA_DECAY=DECAY,
    QUANTISATION_NATS=1e-9,
)


@dataclass
class Watched:
    """What was seen of a run."""

    graphs: list[list[tuple[int, ...]]] = field(default_factory=list)  # shapes of its int64 inputs
    at_warm_up: list[int] = field(default_factory=list)  # how many there were then
    weights: list[dict] = field(default_factory=list)  # after each step
    lines: list[str] = field(default_factory=list)
    given: dict[str, np.ndarray] = field(default_factory=dict)  # the weights to export
    exported: dict[str, np.ndarray] = field(default_factory=dict)

    def compile(self, graph, inputs):
        """A compiler: takes a graph down, and runs it as it is."""
        tokens = [x for x in inputs if isinstance(x, torch.Tensor) and x.dtype == torch.int64]
        self.graphs.append([tuple(x.shape) for x in tokens])
        return graph.forward


def watch(tmp_path_factory, **changes) -> Watched:
    """One run with these settings in place of some of SETTINGS."""
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(make_demo_data(tmp_path_factory.getbasetemp()), folder / "data/demo")
    seen = Watched()

    def compile_module(self, **options):
        assert options["dynamic"] is False
        nn.Module.compile(self, backend=seen.compile, dynamic=False)

    def warm_up(*args):
        plain_warm_up(*args)
        seen.at_warm_up.append(len(seen.graphs))
        seen.weights.clear()

    def train_step(state, *args):
        plain_train_step(state, *args)
        weights = {name: p.detach().clone() for name, p in state.model.named_parameters()}
        seen.weights.append(weights)

    def export(weights, *args):
        seen.given = {name: w.copy() for name, w in weights.items()}
        return plain_export(weights, *args)

    plain_warm_up, plain_train_step = train_gpt.warm_up, train_gpt.train_step
    plain_export = train_gpt.export
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "compile", compile_module, raising=False)
        patch.setattr(train_gpt, "warm_up", warm_up)
        patch.setattr(train_gpt, "train_step", train_step)
        patch.setattr(train_gpt, "export", export)
        done = run_here(folder, **SETTINGS | changes)
    torch._dynamo.reset()

    assert done.returncode == 0, done.stderr
    seen.lines = (folder / "logs/test.txt").read_text().split("=" * 80 + "\n", 1)[1].splitlines()
    seen.exported = read_pcll(folder / "artifact.pcll")[1]
    return seen


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    return watch(tmp_path_factory)


# ---- Graphs


def test_adaptation_per_document_has_four_graphs_more(tmp_path_factory):
    """With inputs of an eighth, a quarter, a half and all of 256; all in the warm-up."""
    changes = dict(TTT_PROTOCOL="per_document", ITERATIONS=2, VAL_LOSS_EVERY=0, DOCUMENT_TOKENS=32)
    seen = watch(tmp_path_factory, **changes)
    training, scoring = [(8, 256)] * 2, [(5, 256), (64,)]
    documents = [[(5, width), (32,)] for width in (32, 64, 128, 256)]
    expected = sorted(map(sorted, [training, training, scoring, *documents]))
    assert sorted(map(sorted, seen.graphs)) == expected and seen.at_warm_up == [7]
    assert any(line.startswith("headline: final_pcll_ttt_exact") for line in seen.lines)


def test_one_graph_for_each_of_training_scoring_and_learning(watched):
    """Their inputs: the tokens and the targets, or the positions. Training has a second one, as no
    block recurs at first."""
    training, scoring, learning = [(8, 256)] * 2, [(5, 256), (64,)], [(3, 256)] * 2
    expected = sorted([training, training, scoring, learning])
    assert sorted(map(sorted, watched.graphs)) == expected


def test_nothing_is_compiled_after_the_warm_up(watched):
    """Neither while training and validating, nor in any of the scores."""
    assert watched.at_warm_up == [4] and len(watched.graphs) == 4


def test_the_run_had_all_of_that(watched):
    text = "\n".join(watched.lines)
    assert len(re.findall(r"^step:[36]/7 val_loss:", text, re.M)) == 2
    assert len(re.findall(r"^final_pcll_ttt_exact .* val_tokens:2999 ", text, re.M)) == 1
    for name in ("before export, plain", "after export, plain", "after export, sliding window"):
        assert len(re.findall(rf"^  {name} .* diagnostic$", text, re.M)) == 1
    assert len(watched.weights) == STEPS


# ---- What is exported


def averaged(weights: list[dict]) -> dict[str, np.ndarray]:
    """The exponential average of the weights after each step, which the first ones begin."""
    average = {name: w.double() for name, w in weights[0].items()}
    for present in weights[1:]:
        for name, w in present.items():
            average[name] = DECAY * average[name] + (1 - DECAY) * w.double()
    return {name: w.numpy() for name, w in average.items()}


def test_the_artifact_holds_the_average_and_not_the_last_weights(watched):
    expected = averaged(watched.weights)
    last = {name: w.numpy() for name, w in watched.weights[-1].items()}
    assert watched.exported.keys() == watched.given.keys() == expected.keys()

    assert np.abs(last["tok_emb"] - expected["tok_emb"]).max() > 0.01
    for name, w in watched.exported.items():
        np.testing.assert_allclose(watched.given[name], expected[name], atol=1e-6, err_msg=name)
        if w.ndim < 2 or name.endswith(("gate_weight", "resid_mix", "skip_weights")):  # float16
            np.testing.assert_allclose(w, expected[name], atol=2e-3, rtol=1e-3, err_msg=name)
        elif "bigram" not in name:  # quantized: nearer to the average than to the last weights
            error = np.square(w - expected[name]).mean()
            assert error < 0.5 * np.square(w - last[name]).mean(), name


def test_the_plain_mean_is_another_average(watched):
    """What the test before would say of it."""
    mean = sum(weights["tok_emb"].double() for weights in watched.weights) / STEPS
    assert np.abs(watched.given["tok_emb"] - mean.numpy()).max() > 0.003
