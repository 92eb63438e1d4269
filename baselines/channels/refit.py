"""Least-squares refit: the layers that read channels make up for those that go.

A layer's outputs are linear in what it reads. Of the sums of products of its inputs follow, in
closed form, the weights of the inputs that stay which give nearest to its outputs of before.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroup, Removed
from baselines.channels.contributions import (
    Gram,
    Product,
    Sampler,
    can_be_sampled,
    gram_matrix,
    sampled_patches,
)
from testbed.data import Images

# Of the mean diagonal entry: keeps the weights where they are in directions that no sample shows.
RIDGE = 1e-6
MOST_INPUTS = 512 * 9  # of one output, beyond which a refit takes minutes


class Refit:
    """Refits the plain conv and linear layers that read groups of channels.

    Grouped and transposed convs, weights that are no parameters, and layers with more than
    `MOST_INPUTS` inputs of one output, such as a linear layer that reads large maps, stay as they
    are.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Mapping[str, ChannelGroup],
        sampler: Sampler,
        images: Images,
        generator: torch.Generator,
    ) -> None:
        """Samples what the layers read; it takes (inputs * kernel)^2 floats for each of them.

        Args:
            network: on the sampler's device; left unchanged.
            groups: of `network`.
            generator: on the CPU; draws the positions.

        Raises:
            ValueError: if what a layer reads is not finite.
        """
        self._inputs: dict[str, list[tuple[str, Tensor]]] = {}
        for name, group in groups.items():
            for reader, read in can_be_sampled(network, group).items():
                if read.parameter == f"{reader}.weight" and _can_be_refitted(network, reader):
                    channels = torch.from_numpy(read.channels)
                    self._inputs.setdefault(reader, []).append((name, channels))
        self.grams: dict[str, Gram] = {}
        """Layer -> sums of products of what it reads, (inputs * kernel, inputs * kernel)."""

        def take(parameter: str, product: Product, _: Images) -> None:
            patches = sampled_patches(product, sampler.positions, generator)
            layer = parameter.removesuffix(".weight")
            self.grams[layer] = self.grams.get(layer, np.zeros(())) + gram_matrix(patches)

        if names := [f"{reader}.weight" for reader in self._inputs]:
            sampler.catch(network, names, images, take)
        for layer, gram in self.grams.items():
            if not np.isfinite(gram).all():
                raise ValueError(
                    f"What layer {layer!r} reads is not finite: the network has diverged. Expected "
                    "a trained one; train with a lower learning_rate."
                )

    def refits(self, layer: str) -> bool:
        """Whether a layer's weight may change."""
        return layer in self._inputs

    @torch.no_grad()
    def __call__(self, network: nn.Module, removed: Removed) -> None:
        """Refits layers in place; the weights of inputs that go are zero then.

        Args:
            network: of the sampled one's weights and sizes.
        """
        for layer in self._inputs:
            weight: Tensor = network.get_submodule(layer).weight  # type: ignore[assignment]
            weight.copy_(self.fitted(layer, weight, removed))

    @torch.no_grad()
    def fitted(self, layer: str, weight: Tensor, removed: Removed) -> Tensor:
        """A layer's refitted weight; `weight` itself where nothing that it reads goes, or all."""
        lost = torch.zeros(weight.shape[1], dtype=torch.bool)
        for name, channels in self._inputs.get(layer, ()):
            gone = torch.tensor(list(removed.get(name, ())), dtype=torch.int64)
            lost |= torch.isin(channels, gone)
        if lost.all() or not lost.any():
            return weight
        flat = weight.detach().flatten(1).cpu().double()
        places = lost.repeat_interleave(flat.shape[1] // len(lost))
        found = refitted(flat, torch.from_numpy(self.grams[layer]), places)
        return found.reshape(weight.shape).to(weight)


def refitted(weight: Tensor, gram: Tensor, lost: Tensor) -> Tensor:
    """The weight (outputs, inputs) whose outputs, without lost inputs, are nearest to before.

    `min_V sum |V x_kept - W x|^2` over samples x: with the Gram matrix G,
    `V = W_kept + W_lost G_lost,kept (G_kept,kept)^-1`.

    Args:
        gram: (inputs, inputs) float64, the sum of `x x^T`.
        lost: (inputs,) bool, not all of them.

    Source: He, Zhang, Sun 2017, "Channel pruning for accelerating very deep neural networks", ICCV,
    equation 1 (its second step); without intercept.
    """
    kept = ~lost
    own = gram[kept][:, kept]
    ridge = RIDGE * own.diagonal().mean() + torch.finfo(own.dtype).tiny
    lower = torch.linalg.cholesky(own + ridge * torch.eye(len(own), dtype=own.dtype))
    missing = weight[:, lost] @ gram[lost][:, kept]
    result = torch.zeros_like(weight)
    result[:, kept] = weight[:, kept] + torch.cholesky_solve(missing.T, lower).T
    return result


def _can_be_refitted(network: nn.Module, name: str) -> bool:
    module = dict(network.named_modules()).get(name)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        return False
    small = module.weight[0].numel() <= MOST_INPUTS
    return small and getattr(module, "groups", 1) == 1
