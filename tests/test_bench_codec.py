"""The benchmark's own parts: the author's layout reads back, the bound is the textbook's, and the
table comes out."""

import sys

import numpy as np
import pytest
from bench import codec as bench_codec
from bench.codec import (
    Matrix,
    author_decode_tensor,
    author_encode,
    author_kmeans,
    integers_per_row,
    largest_for,
)


@pytest.fixture(scope="module")
def matrix():
    return Matrix(
        "blocks.0.mlp.up", np.random.default_rng(0).standard_normal((160, 420)).astype(np.float32)
    )


def test_author_file_reads_back_bit_by_bit(matrix):
    file, decoded, code_bits, symbol_bits = author_encode([matrix])
    assert np.array_equal(
        author_decode_tensor(file, matrix.name, 10**9), decoded[matrix.name].ravel()
    )
    assert symbol_bits < code_bits < 1.03 * symbol_bits and code_bits < 8 * len(file)


def test_author_kmeans_picks_the_nearest_centroid(matrix):
    centroids, indices = author_kmeans(matrix.w, 48)
    w = matrix.w.ravel()[:2000]
    assert np.array_equal(indices[:2000], np.abs(w[:, None] - centroids).argmin(axis=1))


def test_levels_go_by_the_name():
    names = {
        "blocks.3.mlp.up": 48,
        "encoder.layer.0.intermediate.dense.weight": 48,
        "blocks.3.attn.q": 80,
        "encoder.layer.0.output.dense.weight": 48,
        "encoder.layer.0.attention.output.dense.weight": 64,
        "encoder.layer.0.attention.self.value.weight": 80,
        "blocks.3.attn.out": 64,
    }
    assert {name: Matrix(name, np.zeros((1, 1))).levels for name in names} == names


def test_bound_is_the_textbook_one():
    """Half a log2 of variance to error per weight; where a variance lies below the water level,
    nothing."""
    same = Matrix("w", np.full((8, 8), 2.0, np.float32))
    assert same.bound(0.25) == pytest.approx(64 * np.log2(4 / 0.25) / 2)
    assert same.bound(4.0) == 0
    two = Matrix("w", np.array([[4.0] * 8, [1.0] * 8], np.float32))
    assert two.bound(0.5) == pytest.approx(8 * np.log2(16 / 0.5) / 2 + 8 * np.log2(1 / 0.5) / 2)
    assert two.bound(1.5) == pytest.approx(
        8 * np.log2(16 / 2) / 2
    )  # level 2: the second row keeps its variance of 1


def test_integers_per_row_reach_an_error(matrix):
    largest = largest_for(matrix, 1e-3)
    q, scales = integers_per_row(matrix.w, largest)
    assert matrix.mse(q * scales.astype(np.float32)) == pytest.approx(1e-3, rel=0.02)


def test_table(tmp_path, monkeypatch, capsys, matrix):
    np.savez(tmp_path / "w.npz", **{matrix.name: matrix.w, "emb": matrix.w, "gain": matrix.w[0]})
    monkeypatch.setattr(sys, "argv", ["codec.py", str(tmp_path / "w.npz")])
    assert bench_codec.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 matrices, 67,200 weights" in lines[0]
    rows = {line[:32].strip(): line[32:].split() for line in lines[3:]}
    assert rows["author's PCLL"][3] == "+0.00%"
    versus_author, over_entropy = (float(rows["trellis"][i][:-1]) for i in (3, 6))
    assert versus_author < 0 < over_entropy < 1


def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "w.npz", gain=np.zeros(3))
    for path in (tmp_path / "w.npz", tmp_path / "missing.npz"):
        monkeypatch.setattr(sys, "argv", ["codec.py", str(path)])
        assert bench_codec.main() == 2
        assert capsys.readouterr().err.count("\n") == 1
