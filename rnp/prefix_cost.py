"""Cost of a network with any prefixes of its channels, in closed form."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from rnp.routed_network import RoutedNetwork
from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import ChannelFlow
from testbed.cost import multiplications_by_layer
from testbed.data import Splits
from testbed.operations import counting_multiplications
from testbed.prediction import evaluating

Deciding = RuntimeNetwork | RoutedNetwork
"""A network with a decision network in it."""
Actions = tuple[int, ...]
"""One for every prunable conv, from 0: the smallest prefix."""


class PrefixCost:
    """Multiplications per image, from one count of the whole network.

    A layer's cost is in proportion to the outputs that are computed, and to the inputs.
    """

    def __init__(self, flow: ChannelFlow, layers: Mapping[str, int], deciding: int = 0) -> None:
        """
        Args:
            layers: multiplications of each layer with all channels.
            deciding: those of the decisions, whatever they come to.
        """
        self.flow = flow
        self.dense = sum(layers.values())
        self._layers = dict(layers)
        self._deciding = deciding

    @classmethod
    def of_model(cls, model: nn.Module, flow: ChannelFlow, data: Splits) -> Self:
        """Of a network without decisions; `flow` is its own."""
        return cls(flow, multiplications_by_layer(model, _black(model, data)))

    @classmethod
    def of_runtime(cls, network: RuntimeNetwork, data: Splits) -> Self:
        """Of a network with its decisions."""
        black = _black(network, data)
        whole = multiplications_by_layer(network, black)
        deciding = sum(n for name, n in whole.items() if name.split(".")[0] == "decision")
        return cls(network.flow, backbone_multiplications(network, data), deciding)

    def __call__(self, actions: Actions) -> int:
        """Multiplications of an image for which these actions are taken."""
        return round(self.of_images(torch.tensor([actions])).item())

    def of_images(self, actions: Tensor) -> Tensor:
        """Multiplications of each image, (n,) float64, that takes its own actions, (n, T)."""
        kept: dict[str, Tensor] = {}
        for conv, taken in zip(self.flow.convs, actions.unbind(dim=1), strict=True):
            prefixes = torch.tensor(conv.prefixes, dtype=torch.float64, device=actions.device)
            share = (prefixes / conv.channels)[taken]
            for layer in (conv.name, *conv.readers):
                kept[layer] = kept[layer] * share if layer in kept else share
        same = sum(n for name, n in self._layers.items() if name not in kept) + self._deciding
        return same + torch.stack([self._layers[name] * kept[name] for name in kept]).sum(dim=0)

    def prices(self) -> Tensor:
        """What a group of each conv adds to the multiplications, (T,), relative to the mean conv's.

        With everything else computed: the conv itself, and the layers that read it.
        """
        added = [
            self._layers[conv.name] + sum(self._layers[reader] for reader in conv.readers)
            for conv in self.flow.convs
        ]
        return torch.tensor(added, dtype=torch.float32) / (sum(added) / len(added))

    def budget(self, keep_multiplications: float) -> float:
        """Multiplications that such a share of the dense ones comes to.

        Raises:
            ValueError: if even the smallest prefixes cost more.
        """
        smallest = self((0,) * len(self.flow.convs))
        if smallest > keep_multiplications * self.dense:
            share = math.ceil(1e4 * smallest / self.dense) / 1e4
            raise ValueError(
                f"keep_multiplications {keep_multiplications:g} cannot be reached: with the "
                f"smallest prefixes of all {len(self.flow.convs)} prunable convs {share:g} of the "
                "multiplications are left, as the other layers stay"
                + (f" and deciding takes {self._deciding / self.dense:.2g}" * (self._deciding > 0))
                + ". Ask for that or more, or for more groups (k)."
            )
        return keep_multiplications * self.dense


def backbone_multiplications(network: Deciding, data: Splits) -> Counter[str]:
    """Of an image, with all computed and without decisions, by layer."""
    black, decision = _black(network, data), network.decision
    everything = torch.full((1, len(decision.inputs)), decision.n_actions - 1)
    with evaluating(network), torch.no_grad(), counting_multiplications(network) as by_layer:
        network.masked(black, everything.to(black.device))
    return by_layer


def _black(network: nn.Module, data: Splits) -> Tensor:
    """One image, of no content, on the network's device."""
    return torch.zeros(1, *data.input_shape, device=next(network.parameters()).device)
