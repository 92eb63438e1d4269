"""Accuracy of a network with some of one group's channels removed, for many choices of them.

Each choice is judged with batch-norm statistics of its own (see `batch_norm_statistics`).

Nothing below the layers that read the group depends on the choice, so it is computed once and kept;
each choice then costs the layers above, and of the readers only what reads the channels that stay.
The statistics of a group's own batch norms do not depend on the choice either.
That takes a network which `torch.fx` can trace, and readers that are plain convs or linear layers.
Every cut is compared with the whole network before it is used, and where it cannot be made or gives
something else, the whole network runs each time.

What is kept takes the memory of the readers' inputs, and of what bypasses them, for all images.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

from baselines.channels.batch_norm_statistics import (
    estimate_statistics,
    estimated_norms,
    normalised_batches,
)
from baselines.channels.channel_groups import ChannelGroups
from baselines.channels.dependency.removal import shared_copy, without
from baselines.channels.masked_layers import (
    NormedConv,
    NormOfMasks,
    SlicedReader,
    SummedReader,
    Turn,
)
from baselines.channels.refit import Refit
from testbed.data import Images, Splits
from testbed.machine import Precision
from testbed.prediction import autocast

log = logging.getLogger(__name__)

MOST_CONTRIBUTIONS = 2**27  # floats, in all: 512 MiB
TOLERANCE = 1e-3  # largest difference that rounding makes, as a share of the largest output


class MaskEvaluation(Protocol):
    """The accuracy of a network with only some of the channels of one group."""

    images_per_mask: int
    """How many images each mask takes through the network, those for statistics among them."""

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
    statistics: Images,
    data: Splits,
    *,
    device: torch.device,
    precision: Precision = "auto",
    refit: Refit | None = None,
) -> MaskEvaluation:
    """Judges masks of one group by the accuracy on `images`, as quickly as the network allows.

    Args:
        network: on `device`; must stay as it is while the result is used.
        groups: of `network`.
        name: of the group.
        images: uint8, normalised here with the mean and deviation of `data`'s training images.
        statistics: likewise; each mask's batch-norm statistics come from these.
        refit: of `network`: what reads the group is refitted for each mask.
    """
    whole = WholeNetwork(
        *(network, groups, name, images, statistics, data),
        device=device,
        precision=precision,
        refit=refit,
    )
    try:
        return CutNetwork(whole)
    except CannotCutError as error:
        log.info("Slower: every mask of %r runs the whole network, as %s.", name, error)
        return whole


class CannotCutError(Exception):
    """Why what lies below the readers of a group cannot be computed apart."""


class WholeNetwork:
    """Runs the whole smaller network for each mask."""

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        name: str,
        images: Images,
        statistics: Images,
        data: Splits,
        *,
        device: torch.device,
        precision: Precision,
        refit: Refit | None,
    ) -> None:
        """Arguments as for `evaluation_of_masks`."""
        self.group = groups[name]
        self.device = device
        self.precision = precision
        self.labels = images.labels.to(device)
        self.statistics, self.batches = (
            normalised_batches(network, each, data, device) for each in (statistics, images)
        )
        self.network = shared_copy(copy.deepcopy(network)).eval()  # its statistics will change
        self.refit = refit
        self._has_norms = bool(estimated_norms(network))
        self.images_per_mask = len(images) + self._has_norms * len(statistics)
        self._groups = groups

    def __call__(self, masks: Tensor) -> list[float]:
        accuracies = []
        with evaluation(self.device, self.precision):
            for mask in masks:
                smaller = self.smaller(mask)
                guesses = [smaller(batch).argmax(dim=1) for batch in self.batches]
                accuracies.append((torch.cat(guesses) == self.labels).double().mean().item())
        return accuracies

    def smaller(self, mask: Tensor) -> nn.Module:
        """Without the channels that are not in `mask`, (channels,) bool; its statistics its own."""
        whole, removed = self.network, self._lost(mask)
        if self.refit is not None:
            whole = copy.deepcopy(whole)
            self.refit(whole, removed)
        network = without(whole, self._groups.trace, self._groups.lost(removed))
        if self._has_norms:
            estimate_statistics(network, self.statistics)
        return network

    def weight_for(self, reader: str, weight: Tensor, mask: Tensor) -> Tensor:
        """The weight that a layer has with a mask: `weight`, or that refitted."""
        return weight if self.refit is None else self.refit.fitted(reader, weight, self._lost(mask))

    def _lost(self, mask: Tensor) -> dict[str, list[int]]:
        """The channels of the group that are not in `mask`."""
        return {self.group.name: (~mask).nonzero().flatten().tolist()}


class CutNetwork:
    """Keeps what lies below the readers of a group, and runs the rest for each mask."""

    def __init__(self, whole: WholeNetwork) -> None:
        """Raises CannotCutError if the result would not be that of `whole`."""
        self._whole = whole
        self._turn = Turn()
        graph = _traced(whole.network)
        inputs = {name: whole.group.inputs_by_channel(name) for name in whole.group.readers}
        taken, below, self._above = _cut(graph, inputs)
        with evaluation(whole.device, whole.precision):
            self._kept = _kept_of(below, whole.statistics, whole.batches)
        self._statistics = range(len(whole.statistics))  # their places among what is kept
        self._readers = [
            self._reader(name, torch.tensor(each, device=whole.device), graph, taken)
            for name, each in inputs.items()
        ]
        self._norms = _with_norms_of_masks(self._above, graph, self._turn)
        self.images_per_mask = whole.images_per_mask if self._norms else len(whole.labels)
        self._check(below)

    def __call__(self, masks: Tensor) -> list[float]:
        whole, n_right = self._whole, torch.zeros(len(masks), dtype=torch.int64)
        with evaluation(whole.device, whole.precision):
            self._take(masks, self._statistics)
            labels_of_batches = whole.labels.split([len(batch) for batch in whole.batches])
            for batch, labels in enumerate(labels_of_batches, len(self._statistics)):
                for number in range(len(masks)):
                    guesses = self._run(batch, number).argmax(dim=1)
                    n_right[number] += (guesses == labels).sum().cpu()
        return (n_right.double() / len(whole.labels)).tolist()

    def _reader(
        self, name: str, inputs: Tensor, graph: fx.GraphModule, taken: list[fx.Node]
    ) -> SlicedReader | SummedReader:
        """What takes the place of a layer above the cut, (channels, inputs of each channel)."""
        layer: Any = graph.get_submodule(name)
        weight_for = partial(self._whole.weight_for, name, layer.weight.detach())
        reader: SlicedReader | SummedReader = SlicedReader(layer, inputs, self._turn, weight_for)
        node = next(node for node in graph.graph.nodes if node.target == name)
        read = node.all_input_nodes[0]
        refit = self._whole.refit
        fixed = isinstance(layer, nn.Linear) and not (refit and refit.refits(name))
        if fixed and read in taken and inputs.numel() == layer.in_features:
            n_inputs = sum(kept[taken.index(read)].numel() for kept in self._kept)
            n_contributions = n_inputs // inputs.shape[1] * layer.out_features
            if n_contributions <= MOST_CONTRIBUTIONS:
                reader = SummedReader(layer, inputs, self._turn)
        self._above.set_submodule(name, reader)
        return reader

    def _take(self, masks: Tensor, statistics: Sequence[int]) -> None:
        """From now on these masks run, with statistics from these batches."""
        for layer in (*self._readers, *self._norms):
            layer.take(masks)
        if self._norms:
            for batch in statistics:
                for number in range(len(masks)):
                    self._run(batch, number, estimating=True)

    def _run(self, batch: int, mask: int, estimating: bool = False) -> Tensor:
        self._turn.batch, self._turn.mask, self._turn.estimating = batch, mask, estimating
        logits: Tensor = self._above(*self._kept[batch])
        return logits

    def _check(self, below: fx.GraphModule) -> None:
        """Compares two masks with the whole network: the second sees what the first left behind."""
        whole, images = self._whole, self._whole.batches[0][:2]
        masks = torch.arange(whole.group.channels) % 2 == torch.tensor([[0], [1]])
        masks[:, 0] |= ~masks.any(dim=1)
        with evaluation(whole.device, "float32"):
            expected = [whole.smaller(mask)(images) for mask in masks]
            n_kept, n_statistics = len(self._kept), len(whole.statistics)
            self._kept += _kept_of(below, whole.statistics, [images])
            self._take(masks, range(n_kept, n_kept + n_statistics))
            for number in range(len(masks)):
                try:
                    found = self._run(n_kept + n_statistics, number)
                    off = (found - expected[number]).abs().max().item()
                except Exception as error:  # a user's forward may raise anything on smaller tensors
                    raise CannotCutError(f"it raises {type(error).__name__}: {error}") from error
                if not off <= TOLERANCE * expected[number].abs().max().item():
                    raise CannotCutError(f"its outputs would be {off:.2g} off")
            del self._kept[n_kept:]


@contextmanager
def evaluation(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients, and matrix products in this precision."""
    with torch.no_grad(), autocast(precision, device):
        yield


class _Tracer(fx.Tracer):
    """Also leaves whole what other libraries derive from batch norm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:  # a user's forward may do anything with a traced value
        raise CannotCutError(f"torch.fx raises {type(error).__name__}: {error}") from error


def _with_norms_of_masks(
    above: fx.GraphModule, graph: fx.GraphModule, turn: Turn
) -> list[NormOfMasks]:
    """Puts batch norms of each mask's own in the place of those above the cut.

    Args:
        above: its readers are in their places.
        graph: with the layers as they were.
    """
    own = {id(norm) for norm in estimated_norms(above)}
    norms: dict[str, NormOfMasks] = {}
    for node in list(above.graph.nodes):
        norm: Any = graph.get_submodule(node.target) if node.op == "call_module" else None
        if id(norm) not in own:
            continue
        if node.target not in norms:
            norms[node.target] = NormOfMasks(norm, turn)
            above.set_submodule(node.target, norms[node.target])
        source = node.all_input_nodes[0]
        follows_conv = (
            source.op == "call_module"
            and type(graph.get_submodule(source.target)) is nn.Conv2d
            and len(source.users) == 1
        )
        if follows_conv and type(norm) is nn.BatchNorm2d:
            conv: Any = above.get_submodule(source.target)
            pair = NormedConv(conv, norms[node.target], turn)
            source.target = f"normed_{node.name}"
            above.add_submodule(source.target, pair)
            node.replace_all_uses_with(source)
            above.graph.erase_node(node)
    above.recompile()
    return list(norms.values())


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


def _kept_of(
    below: fx.GraphModule, statistics: Sequence[Tensor], batches: Sequence[Tensor]
) -> list[tuple[Tensor, ...]]:
    """What the part below gives for all of these, its own batch norms estimated from the first."""
    kept = estimate_statistics(below, statistics)
    folded = fuse(below)
    return [*kept, *(folded(batch) for batch in batches)]
