"""Recurrent cells that were not taken apart: the gates of a unit, its state and its inputs are coupled."""

from __future__ import annotations

from secateur.structure.groups.labels import Layout
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op


@rule("mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn")
def fused(f: Follower, op: Op) -> list[Layout]:
    """A whole recurrent layer in one operator cannot be followed: its tensors are locked."""
    f.lock_all(list(op.refs()), f"the fused layer {op.name} cannot be followed")
    return [Layout(ref.shape) for ref in op.results()]
