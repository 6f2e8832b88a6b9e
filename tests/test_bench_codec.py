"""The comparison with the author's layout: it reads back, and the table comes out."""

import sys

import numpy as np
import pytest
from bench import codec
from bench.codec import Matrix, author_decode_tensor, author_encode, author_kmeans

LEVELS = {  # by the name of a tensor
    "blocks.3.mlp.up": 48,
    "encoder.layer.0.intermediate.dense.weight": 48,
    "blocks.3.attn.q": 80,
    "encoder.layer.0.output.dense.weight": 48,
    "encoder.layer.0.attention.output.dense.weight": 64,
    "encoder.layer.0.attention.self.value.weight": 80,
    "blocks.3.attn.out": 64,
}


@pytest.fixture(scope="module")
def matrix():
    w = np.random.default_rng(0).standard_normal((160, 420)).astype(np.float32)
    return Matrix("blocks.0.mlp.up", w)


def test_an_authors_file_reads_back_bit_by_bit(matrix):
    file, decoded = author_encode([matrix])
    read = author_decode_tensor(file, matrix.name, 10**9)
    assert np.array_equal(read, decoded[matrix.name].ravel())
    centroids, indices = author_kmeans(matrix.w, 48)
    nearest = np.abs(matrix.w.ravel()[:2000, None] - centroids).argmin(axis=1)
    assert np.array_equal(indices[:2000], nearest)


def test_levels_go_by_the_name():
    assert {name: Matrix(name, np.zeros((1, 1))).levels for name in LEVELS} == LEVELS


def test_table(tmp_path, monkeypatch, capsys, matrix):
    np.savez(tmp_path / "w.npz", **{matrix.name: matrix.w, "emb": matrix.w, "gain": matrix.w[0]})
    monkeypatch.setattr(sys, "argv", ["codec.py", str(tmp_path / "w.npz")])
    assert codec.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 matrices, 67,200 weights" in lines[0]
    rows = {line[:16].strip(): line[16:].split() for line in lines[3:]}
    assert rows["author's PCLL"][3] == "+0.00%"
    assert float(rows["trellis"][3][:-1]) < -4


def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "w.npz", gain=np.zeros(3))
    for path in (tmp_path / "w.npz", tmp_path / "missing.npz"):
        monkeypatch.setattr(sys, "argv", ["codec.py", str(path)])
        assert codec.main() == 2
        assert capsys.readouterr().err.count("\n") == 1
