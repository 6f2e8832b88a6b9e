"""The comparison with the author's layout: it reads back, and the table comes out."""

import sys

import numpy as np
import pytest
from bench import codec
from bench.codec import Matrix, author_decode_tensor, author_encode, author_kmeans

import train_gpt

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


def test_stages_of_an_artifact(tmp_path, monkeypatch, capsys):
    w = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    moments = train_gpt.Moments(np.full(64, 100.0), np.eye(512))
    coded = {"mlp.up": train_gpt.encode_trellis(w, moments, 1.0)}
    (tmp_path / "a.pcll").write_bytes(train_gpt.encode_pcll({}, coded))
    monkeypatch.setattr(sys, "argv", ["codec.py", str(tmp_path / "a.pcll")])
    assert codec.main() == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("a.pcll: 32,768 weights in the trellis")
    bits = [float(line.split()[-4]) for line in lines]
    float32, by_matrix, by_context, rans, whole = bits
    assert float32 == 32 and 3 < by_context < by_matrix < 5
    assert by_context < rans < by_context + 0.6 and whole > rans


def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "w.npz", gain=np.zeros(3))
    for path in (tmp_path / "w.npz", tmp_path / "missing.npz"):
        monkeypatch.setattr(sys, "argv", ["codec.py", str(path)])
        assert codec.main() == 2
        assert capsys.readouterr().err.count("\n") == 1
