"""Recurrent layers keep the length of sequences free in files, whichever axis it is; nothing stays changed after."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch._decomp import decomposition_table

import secateur as sc
from secateur.adapters.onnx_model import OnnxModel
from secateur.adapters.recurrent import whole_recurrent


class Sequences(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], batch_first: bool):
        super().__init__()
        torch.manual_seed(0)
        self.layers = kind(6, 8, num_layers=2, bidirectional=True, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        found = self.layers(x)[0]
        return self.head(found.mean(1 if self.layers.batch_first else 0))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_file_takes_sequences_of_any_length(kind, batch_first, ending, tmp_path):
    if ending == ".onnx":
        pytest.importorskip("onnxscript", reason="NOT TESTED: ONNX export, as onnxscript is not installed")
    model, path = Sequences(kind, batch_first).eval(), tmp_path / f"m{ending}"
    done = sc.export(model, path, torch.randn(5, 7, 6), dynamic_axes={"x": [0, 1]})
    assert not any("fixed" in note for note in done.notes)
    written = OnnxModel(path) if ending == ".onnx" else torch.export.load(path).module()
    for shape in ((5, 7, 6), (2, 11, 6), (12, 3, 6)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.allclose(written(x), model(x), atol=1e-6), shape


def test_another_thread_records_as_always():
    """What it decomposes into does the layer's work, and is not empty memory."""
    found = []

    def record():
        program = torch.export.export(nn.LSTM(4, 8).eval(), (torch.zeros(5, 2, 4),), strict=False)
        targets = {str(node.target) for node in program.run_decompositions().graph.nodes}
        found.append(any("tanh" in each or "lstm" in each for each in targets))

    with whole_recurrent():
        other = threading.Thread(target=record)
        other.start()
        other.join()
    assert found == [True]


def test_nothing_stays_changed_even_after_an_error():
    operators = [torch.ops.aten.lstm.input, torch.ops.aten.gru.input]
    before = [(dict(each.py_kernels), decomposition_table.get(each)) for each in operators]
    with whole_recurrent():
        assert [dict(each.py_kernels) for each in operators] != [kernels for kernels, _ in before]
    with pytest.raises(ZeroDivisionError), whole_recurrent():
        1 / 0  # noqa: B018
    assert [(dict(each.py_kernels), decomposition_table.get(each)) for each in operators] == before
