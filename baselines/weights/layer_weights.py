"""Weights of a network's conv and linear layers, as methods that learn about them take hold."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import ValidationInfo
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from testbed.training import Training


def weight_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The conv and linear layers by name, each with a weight of its own.

    Raises:
        ValueError: if there is none, or a weight is computed or shared: what is learnt of it would
            then be another layer's too.
    """
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }
    if not layers:
        raise ValueError("Nothing to prune: the network has no conv and no linear layer.")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"Expected a weight that is a parameter in layer {name!r}, but it is computed. Put "
                "what it computes in its place first: torch.nn.utils.parametrize."
                "remove_parametrizations."
            )
        if id(weight) in owners:
            raise ValueError(
                f"Layers {owners[id(weight)]!r} and {name!r} share one weight. Give each a copy."
            )
        owners[id(weight)] = name
    return layers


def n_zeros(sparsity: float, weights: Mapping[str, Tensor]) -> int:
    """How many weights a sparsity, from 0 to 1, zeroes; one of each layer stays.

    Raises:
        ValueError: if it zeroes none, or as many cannot be zeroed.
    """
    n = sum(weight.numel() for weight in weights.values())
    wanted, most = round(sparsity * n), n - len(weights)
    if not wanted:
        raise ValueError(
            f"sparsity {sparsity:g} removes nothing: of {n} weights it takes none. Ask for "
            f"{1 / n:.2g} or more."
        )
    if wanted > most:
        raise ValueError(
            f"sparsity {sparsity:g} cannot be reached: every layer keeps a weight, so of {n} at "
            f"most {most} go. Ask for less."
        )
    return wanted


def originals(layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters that parametrised weights are made of, by layer."""
    return {
        name: layer.get_parameter("parametrizations.weight.original")
        for name, layer in layers.items()
    }


def bake(layers: dict[str, nn.Module]) -> None:
    """Puts what their parametrisations make of the weights in their place."""
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


@contextmanager
def held_at_zero(weights: Mapping[str, Tensor], zeros: Mapping[str, Tensor]) -> Iterator[None]:
    """Masks the gradients meanwhile. With no gradient, SGD with momentum and decay leaves zeros.

    Args:
        zeros: bool tensors of the weights' shapes, true where a weight is zero and is to stay so.
    """
    hooks = [
        weight.register_hook(lambda gradient, mask=zeros[name]: gradient.masked_fill(mask, 0))
        for name, weight in weights.items()
        if weight.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def moves(settings: Training, n_images: int) -> Tensor:
    """(steps,): how far a gradient of 1 moves a parameter in the end, by each step of a training.

    That is the step's rate over 1 - momentum.

    Args:
        n_images: of the training.
    """
    steps = settings.epochs * math.ceil(n_images / settings.batch_size)
    rates = [settings.learning_rate_at((step + 0.5) / steps) for step in range(steps)]
    return torch.tensor(rates, dtype=torch.float64) / (1 - settings.momentum)


def moved(moves: Tensor, begin: float, end: float) -> float:
    """The sum of `moves` over a part of the training, from 0 to 1."""
    return moves[int(begin * len(moves)) : int(end * len(moves))].sum().item()


def check_epochs(name: str, epochs: int, needed: int) -> None:
    """
    Raises:
        ValueError: if there are fewer epochs of fine-tuning than the method called `name` needs.
    """
    if epochs < needed:
        raise ValueError(
            f"{name} learns what to prune while it fine-tunes: expected fine_tuning.epochs of "
            f"{needed} or more, got {epochs}."
        )


def check_budget(name: str, info: ValidationInfo, needed: int) -> None:
    """The same when a sweep file is checked (see `PruningMethod`)."""
    if info.context and "fine_tuning" in info.context:
        check_epochs(name, info.context["fine_tuning"].epochs, needed)
