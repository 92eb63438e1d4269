"""Segments of the traced network, cut where decisions are made, for the run that skips.

A segment reaches from one pruned conv to just before the next; the first one starts at the images.
How many channels it computes depends on few decisions: its own, and those of the convs whose output
is still to be read. Images that agree in these can run through it as one batch. A linear layer that
reads a pruned conv starts a segment too: it depends on one decision fewer than that conv did, and
its speed, unlike a conv's, is that of reading its weights, once for each batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from rnp.structure.channel_flow import ChannelFlow
from testbed.inference_form import module_of

_ASKED_OF_TENSORS = frozenset({"shape", "device", "dtype"})


@dataclass
class Segment:
    """Operations that run together."""

    decision: int | None = None
    """The decision that has to be made first, if any: about the conv that it starts with."""
    nodes: list[fx.Node] = field(default_factory=list)
    """Of the graph made by `folded_graph`."""
    takes: list[fx.Node] = field(default_factory=list)
    """Values of earlier segments, or the images."""
    keeps: list[fx.Node] = field(default_factory=list)
    """Values of its own that later segments take, or the logits."""
    last_uses: list[fx.Node] = field(default_factory=list)
    """Those of `takes` that no later segment takes."""
    steps: tuple[int, ...] = ()
    """The decisions on which its channels, and the statistics of its batch norms, depend."""

    @property
    def observed(self) -> fx.Node:
        """What its decision is made from: the input of its conv."""
        return self.nodes[0].all_input_nodes[0]


def cut_into_segments(
    graph: fx.Graph, flow: ChannelFlow, modules: Mapping[str, nn.Module]
) -> list[Segment]:
    """Segments of a network: one before the first decision, at least one after each.

    Args:
        graph: the folded one of the network that `flow` traced.
        modules: the network's, by name.
    """
    _, *nodes, output = graph.nodes
    between = {name: step for step, conv in enumerate(flow.convs) for name in conv.between}
    pruned = {
        node: flow.step_of[str(node.target)]
        for node in nodes
        if node.op == "call_module" and node.target in flow.step_of
    }
    # Each node that gives a prefix of a conv's channels -> the decision about that conv.
    step_of = {node: between[node.name] for node in nodes if node.name in between} | pruned
    segments = [Segment()]
    for node in nodes:
        if node in pruned:
            segments.append(Segment(pruned[node]))
        elif isinstance(module_of(node, modules), nn.Linear) and (
            step_of.keys() & set(node.all_input_nodes)
        ):
            segments.append(Segment())
        _add(node, segments[-1])
    taken = set(output.all_input_nodes)
    for segment in reversed(segments):
        segment.keeps = [node for node in segment.nodes if node in taken]
        segment.last_uses = [value for value in segment.takes if value not in taken]
        taken.update(segment.takes)
        steps = {step_of[value] for value in segment.takes if value in step_of}
        own = set() if segment.decision is None else {segment.decision}
        norms = {node.meta.get("norm", node.target) for node in segment.nodes}
        statistics = {step for norm, step in flow.norms.items() if norm in norms}
        segment.steps = tuple(sorted(steps | own | statistics))
    return segments


def _add(node: fx.Node, segment: Segment) -> None:
    """Adds a node and, before it, what it needs that each segment computes for itself."""
    for value in node.all_input_nodes:
        if value in segment.nodes or value in segment.takes:
            continue
        if _is_of_the_batch(value):
            _add(value, segment)
        else:
            segment.takes.append(value)
    segment.nodes.append(node)


def _is_of_the_batch(value: fx.Node) -> bool:
    """Whether the value says nothing of single images: a weight, or the size of the batch."""
    if value.op == "placeholder":
        return False
    asks = value.op == "call_method" and value.target in ("size", "dim")
    gets = value.op == "call_function" and value.target is getattr
    if asks or (gets and value.args[1] in _ASKED_OF_TENSORS):
        return True
    return all(map(_is_of_the_batch, value.all_input_nodes))
