"""The decision network's steps as parts of ONNX programs."""

import torch
from torch import Tensor, nn

from rnp.execution.decision import DecisionNetwork
from testbed.onnx_graph import Graph


def q_values(
    graph: Graph, decision: DecisionNetwork, step: int, features: str, state: str | None
) -> tuple[str, str]:
    """Q-values (n, actions) of a step and the state (n, hidden) that the next one starts from.

    Args:
        features: (n, C), of images at the step, one at least.
        state: (n, hidden) from the step before; None at the first.
    """
    mean, deviation = (
        graph.constant(decision.get_buffer(f"{name}{step}")) for name in ("mean", "deviation")
    )
    standardised = graph.add("Div", graph.add("Sub", features, mean), deviation)
    encoder = decision.encoders[step]
    assert isinstance(encoder, nn.Linear)
    encoded = graph.add("Relu", _linear(graph, standardised, encoder.weight, encoder.bias))
    after = _gru(graph, encoded, decision.cell, state)
    bias = decision.decoder.bias + decision.offsets[step]
    return _linear(graph, after, decision.decoder.weight, bias), after


def _gru(graph: Graph, encoded: str, cell: nn.GRUCell, state: str | None) -> str:
    """torch's GRUCell as ONNX's GRU, which has its update gate before its reset gate."""
    one_step = graph.constant([0])

    def gates(*ours: Tensor) -> str:
        parts = [each.chunk(3) for each in ours]
        in_order = [gate for reset, update, new in parts for gate in (update, reset, new)]
        return graph.constant(torch.cat(in_order)[None])

    after = graph.add(
        "GRU",
        graph.add("Unsqueeze", encoded, one_step),
        gates(cell.weight_ih),
        gates(cell.weight_hh),
        gates(cell.bias_ih, cell.bias_hh),
        "",  # as long a sequence as there is
        graph.add("Unsqueeze", state, one_step) if state else "",  # zeros
        hidden_size=cell.hidden_size,
        linear_before_reset=1,
    )
    return graph.add("Squeeze", after, graph.constant([0, 1]))


def _linear(graph: Graph, value: str, weight: Tensor, bias: Tensor) -> str:
    return graph.add("Gemm", value, graph.constant(weight), graph.constant(bias), transB=1)
