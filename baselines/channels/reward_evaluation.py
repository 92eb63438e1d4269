"""Accuracy of a network with some of one group's channels removed, for many choices of them.

Nothing below the layers that read the group depends on the choice, so it is computed once and kept;
each choice then costs the layers above, and of the readers only what reads the channels that stay.
That takes a network which `torch.fx` can trace, and readers that are plain convs or linear layers.
Every cut is compared with the whole network before it is used, and where it cannot be made or gives
something else, the whole network runs each time.

What is kept takes the memory of the readers' inputs, and of what bypasses them, for all images.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from baselines.channels.channel_groups import ChannelGroups
from baselines.channels.dependency.removal import masked, shared_copy
from testbed.data import Images, Splits, normalise
from testbed.machine import Precision
from testbed.prediction import autocast, memory_format_for

log = logging.getLogger(__name__)

BATCH_SIZE = 512
MOST_CONTRIBUTIONS = 2**27  # floats, in all: 512 MiB
TOLERANCE = 1e-3  # largest difference that rounding makes, as a share of the largest output


class MaskEvaluation(Protocol):
    """The accuracy of a network with only some of the channels of one group."""

    def __call__(self, masks: Tensor) -> list[float]:
        """The share of images classified right with each mask.

        Args:
            masks: (masks, channels) bool, on the CPU: the channels that stay, one at least.
        """
        ...


def evaluation_of_masks(
    network: nn.Module,
    groups: ChannelGroups,
    name: str,
    images: Images,
    data: Splits,
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> MaskEvaluation:
    """Judges masks of one group by the accuracy on `images`, as quickly as the network allows.

    Args:
        network: on `device`; must stay as it is while the result is used.
        groups: of `network`.
        name: of the group.
        images: uint8, normalised here with the mean and deviation of `data`'s training images.
    """
    whole = WholeNetwork(network, groups, name, images, data, device=device, precision=precision)
    try:
        return CutNetwork(whole)
    except CannotCutError as error:
        log.info("Slower: every mask of %r runs the whole network, as %s.", name, error)
        return whole


class CannotCutError(Exception):
    """Why what lies below the readers of a group cannot be computed apart."""


class WholeNetwork:
    """Runs everything for each mask, with what is removed at zero."""

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        name: str,
        images: Images,
        data: Splits,
        *,
        device: torch.device,
        precision: Precision,
    ) -> None:
        """Arguments as for `evaluation_of_masks`."""
        self.network = shared_copy(network).eval()
        self.group = groups[name]
        self.device = device
        self.precision = precision
        self.labels = images.labels.to(device)
        layout = memory_format_for(network, data, device)
        self.batches = [
            normalise(batch.pixels.to(device), data.mean, data.std, memory_format=layout)
            for batch in images.batches(BATCH_SIZE)
        ]
        self._groups = groups

    def __call__(self, masks: Tensor) -> list[float]:
        accuracies = []
        with evaluation(self.device, self.precision):
            for mask in masks:
                guesses = [logits.argmax(dim=1) for logits in self.logits(mask, self.batches)]
                accuracies.append((torch.cat(guesses) == self.labels).double().mean().item())
        return accuracies

    def logits(self, mask: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each batch, without the channels that are not in `mask`, (channels,) bool."""
        lost = self._groups.lost({self.group.name: (~mask).nonzero().flatten().tolist()})
        for batch in batches:
            yield masked(self.network, self._groups.trace, lost, batch)


class CutNetwork:
    """Keeps what lies below the readers of a group, and runs the rest for each mask."""

    def __init__(self, whole: WholeNetwork) -> None:
        """Raises CannotCutError if the result would not be that of `whole`."""
        self._whole = whole
        graph = _traced_and_fused(whole.network)
        readers = {name: whole.group.inputs_by_channel(name) for name in whole.group.readers}
        taken, below, self._above = _cut(graph, readers)
        with evaluation(whole.device, whole.precision):
            self._kept = [below(batch) for batch in whole.batches]
        self._readers = [
            self._reader(name, torch.tensor(inputs, device=whole.device), graph, taken)
            for name, inputs in readers.items()
        ]
        self._check(below)

    def __call__(self, masks: Tensor) -> list[float]:
        whole, n_right = self._whole, torch.zeros(len(masks), dtype=torch.int64)
        labels = whole.labels.split(BATCH_SIZE)
        with evaluation(whole.device, whole.precision):
            self._take(masks)
            for batch, kept in enumerate(self._kept):
                for number in range(len(masks)):
                    guesses = self._run(kept, batch, number).argmax(dim=1)
                    n_right[number] += (guesses == labels[batch]).sum().cpu()
        return (n_right.double() / len(whole.labels)).tolist()

    def _reader(
        self, name: str, inputs: Tensor, graph: fx.GraphModule, taken: list[fx.Node]
    ) -> "SlicedReader | SummedReader":
        """What takes the place of a layer above the cut, (channels, inputs of each channel)."""
        layer: Any = graph.get_submodule(name)
        reader: SlicedReader | SummedReader = SlicedReader(layer, inputs)
        node = next(node for node in graph.graph.nodes if node.target == name)
        read = node.all_input_nodes[0]
        if isinstance(layer, nn.Linear) and read in taken and inputs.numel() == layer.in_features:
            n_inputs = sum(kept[taken.index(read)].numel() for kept in self._kept)
            n_contributions = n_inputs // inputs.shape[1] * layer.out_features
            if n_contributions <= MOST_CONTRIBUTIONS:
                reader = SummedReader(layer, inputs)
        self._above.set_submodule(name, reader)
        return reader

    def _take(self, masks: Tensor) -> None:
        for reader in self._readers:
            reader.take(masks)

    def _run(self, kept: tuple[Tensor, ...], batch: int, mask: int) -> Tensor:
        for reader in self._readers:
            reader.batch, reader.mask = batch, mask
        logits: Tensor = self._above(*kept)
        return logits

    def _check(self, below: nn.Module) -> None:
        """Compares two masks with the whole network: the second sees what the first left behind."""
        images = self._whole.batches[0][:2]
        masks = torch.arange(self._whole.group.channels) % 2 == torch.tensor([[0], [1]])
        with evaluation(self._whole.device, "float32"):
            kept = below(images)
            self._take(masks)
            for number, mask in enumerate(masks):
                (expected,) = self._whole.logits(mask, [images])
                try:
                    off = (self._run(kept, -1, number) - expected).abs().max().item()
                except Exception as error:  # a user's forward may raise anything on smaller tensors
                    raise CannotCutError(f"it raises {type(error).__name__}: {error}") from error
                if not off <= TOLERANCE * expected.abs().max().item():
                    raise CannotCutError(f"its outputs would be {off:.2g} off")


class SlicedReader(nn.Module):
    """A conv or linear layer that reads some of its inputs only."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> None:
        """`inputs`: (channels, inputs of each channel) int64, on the layer's device."""
        super().__init__()
        self.batch = self.mask = 0
        self._layer = layer
        self._inputs = inputs
        n_inputs = layer.weight.shape[1]
        self._others = torch.ones(n_inputs, dtype=torch.bool, device=inputs.device)
        self._others[inputs.flatten()] = False
        self._taken: list[tuple[Tensor, Tensor]] = []

    def take(self, masks: Tensor) -> None:
        """From now on `mask` is the number of one of these, (masks, channels) bool."""
        self._taken = []
        for mask in masks.to(self._inputs.device):
            read = self._others.clone()
            read[self._inputs[mask].flatten()] = True
            places = read.nonzero().flatten()
            self._taken.append((places, self._layer.weight.detach().index_select(1, places)))

    def forward(self, x: Tensor) -> Tensor:
        places, weight = self._taken[self.mask]
        if isinstance(self._layer, nn.Linear):
            return F.linear(_gathered(x, places), weight, self._layer.bias)
        x = _gathered(x.permute(0, 2, 3, 1), places).permute(0, 3, 1, 2)
        return self._layer._conv_forward(x, weight, self._layer.bias)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """Entries of the last dimension; some times as fast as `index_select` there."""
    return x.gather(-1, places.expand(*x.shape[:-1], -1))


class SummedReader(nn.Module):
    """A linear layer whose output is the sum of what each channel that stays contributes to it.

    The contributions are computed once for each batch, which costs as much as the whole layer; a
    mask is then a sum of them, and all masks together are one small matrix product.
    """

    def __init__(self, layer: nn.Linear, inputs: Tensor) -> None:
        """As for `SlicedReader`; the layer reads nothing but these inputs."""
        super().__init__()
        self.batch = self.mask = 0
        self._inputs = inputs
        self._weight = layer.weight.detach()[:, inputs].permute(1, 2, 0).contiguous()
        self._bias = layer.bias
        self._contributions: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    def take(self, masks: Tensor) -> None:
        """From now on `mask` is the number of one of these, (masks, channels) bool."""
        self._masks = masks.to(self._inputs.device, torch.float32)
        self._sums = {}

    def forward(self, x: Tensor) -> Tensor:
        """`x` must be the same each time for the same `batch`."""
        if self.batch not in self._sums:
            with torch.autocast(x.device.type, enabled=False):
                self._sums = {self.batch: self._sum(x)}
        return self._sums[self.batch][self.mask]

    def _sum(self, x: Tensor) -> Tensor:
        """Of the masks, (masks, ..., outputs)."""
        if self.batch not in self._contributions:
            by_channel = x.float()[..., self._inputs].flatten(0, -3).transpose(0, 1)
            self._contributions[self.batch] = torch.bmm(by_channel, self._weight)
        each = self._contributions[self.batch]  # (channels, images, outputs)
        sums = (self._masks @ each.flatten(1)).view(-1, *x.shape[:-1], each.shape[-1])
        return sums if self._bias is None else sums + self._bias


@contextmanager
def evaluation(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients, and matrix products in this precision."""
    with torch.no_grad(), autocast(precision, device):
        yield


def _traced_and_fused(network: nn.Module) -> fx.GraphModule:
    """A copy of the network as a graph, with batch norms folded into the convs before them."""
    try:
        fused = fuse(fx.GraphModule(network, fx.Tracer().trace(network)))
    except Exception as error:  # a user's forward may do anything with a traced value
        raise CannotCutError(f"torch.fx raises {type(error).__name__}: {error}") from error
    assert isinstance(fused, fx.GraphModule)
    return fused


def _cut(
    network: fx.GraphModule, readers: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[list[fx.Node], fx.GraphModule, fx.GraphModule]:
    """Nodes whose values are kept, the part that gives them, and the part that takes them."""
    nodes = list(network.graph.nodes)
    modules = dict(network.named_modules())
    for name, inputs in readers.items():
        layer: Any = modules.get(name)
        if type(layer) not in (nn.Conv2d, nn.Linear) or getattr(layer, "groups", 1) > 1:
            raise CannotCutError(f"{name!r}, which reads it, is no plain conv or linear layer")
        if len({len(each) for each in inputs}) > 1:
            raise CannotCutError(f"{name!r} reads some of its channels more often than others")
        if sum(node.op == "call_module" and node.target == name for node in nodes) != 1:
            raise CannotCutError(f"{name!r}, which reads it, does not run once")
    depends: set[fx.Node] = set()
    for node in nodes:
        reads = node.op == "call_module" and node.target in readers
        if reads or not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    taken = list(
        dict.fromkeys(
            used
            for node in nodes
            if node in depends
            for used in node.all_input_nodes
            if used not in depends
        )
    )
    below, above = fx.Graph(), fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in depends and node.op != "output":
            own[node] = below.node_copy(node, own.__getitem__)
    below.output(tuple(own[node] for node in taken))
    passed = {node: above.placeholder(node.name) for node in taken}
    for node in nodes:
        if node in depends:
            passed[node] = above.node_copy(node, passed.__getitem__)
    return taken, fx.GraphModule(network, below), fx.GraphModule(network, above)
