"""Thin network: one of a network's kind, with a share of the channels of every layer.

Which layers have channels in common is not worked out. How many a layer keeps depends on how many
it has, so that layers whose outputs are added keep as many; what it reads is found by running it.
"""

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from testbed.layer_sizes import resize
from testbed.prediction import evaluating
from testbed.resnet import PaddingShortcut


def classifier_of(network: nn.Module) -> str:
    """The name of the last linear layer.

    Raises:
        ValueError: if there is none.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1] == "":
        raise ValueError(
            f"Expected a network that ends in a linear layer, its classifier; "
            f"{type(network).__name__} has none."
        )
    return linear[-1]


def size_of(share: float, channels: int) -> int:
    """How many channels a share of a layer's is: the nearest number, one at least."""
    return max(1, int(share * channels + 0.5))


def thin_network(model: nn.Module, share: float, image: Tensor) -> nn.Module:
    """A copy of `model` with a share of every layer's channels; its weights mean nothing.

    The first layer reads whole images, the classifier gives all classes.

    Args:
        model: left unchanged.
        image: (1, C, H, W), of any content, on the model's device.

    Raises:
        ValueError: if the network does not end in its classifier, or cannot run with fewer
            channels; says why.
    """
    classifier = classifier_of(model)
    network = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(network):
        expected, padded = _seen(network, classifier, image)
        try:
            with ExitStack() as hooks:
                resized: set[str] = set()
                for name, module in network.named_modules():
                    resizing = partial(_resize, name, resized, share, name == classifier, padded)
                    hooks.callback(module.register_forward_pre_hook(resizing).remove)
                got = network(image)
            if got.shape != expected.shape:
                raise ValueError(f"it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
        except Exception as error:  # whatever a user's forward says to another size
            raise ValueError(
                f"Cannot make {type(network).__name__} with {share:g} of its channels: {error}. "
                "Expected a network of plain or depthwise convs, batch norms and linear layers, "
                "whose forward does not count on the number of channels."
            ) from error
    return network


def _seen(
    network: nn.Module, classifier: str, image: Tensor
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """What the network gives, and the channels that each shortcut without weights reads and gives.

    Raises:
        ValueError: if what it gives is not what its classifier does.
    """
    given: list[Tensor] = []
    padded: dict[str, tuple[int, int]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if name == classifier:
            given.append(output)
        elif isinstance(module, PaddingShortcut):
            padded[name] = inputs[0].shape[1], output.shape[1]

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        result: Tensor = network(image)
    if len(given) != 1 or given[0] is not result:
        raise ValueError(
            f"Expected a network that returns what its last linear layer {classifier!r} gives; "
            f"{type(network).__name__} does more with it, or less. Let its forward end there."
        )
    return result, padded


def _resize(
    name: str,
    resized: set[str],
    share: float,
    is_classifier: bool,
    padded: dict[str, tuple[int, int]],
    module: nn.Module,
    given: tuple[Any, ...],
) -> None:
    """Before a layer runs: cuts its inputs to what it is given, its outputs to the share, once."""
    if name in resized:
        return
    resized.add(name)
    if isinstance(module, PaddingShortcut):
        inputs, outputs = padded[name]
        module.new_channels = size_of(share, outputs) - size_of(share, inputs)
    elif isinstance(module, nn.Linear):
        kept = module.out_features if is_classifier else size_of(share, module.out_features)
        _cut(module, given[0].shape[-1], kept)
    elif isinstance(module, _ConvNd):
        inputs = given[0].shape[1]
        _cut(module, inputs, _outputs(module, inputs, share))
    elif isinstance(module, _NormBase | nn.PReLU):
        _cut(module, 0, given[0].shape[1])


def _outputs(conv: _ConvNd, inputs: int, share: float) -> int:
    """How many channels a conv keeps; a depthwise one as many as it reads, or that many times."""
    if isinstance(conv, _ConvTransposeNd):
        raise ValueError("it has a transposed conv")
    if conv.groups == 1:
        return size_of(share, conv.out_channels)
    if conv.groups != conv.in_channels:
        raise ValueError(f"it has a conv of {conv.groups} groups")
    return inputs * (conv.out_channels // conv.in_channels)


def _cut(layer: nn.Module, inputs: int, outputs: int) -> None:
    """Leaves a layer its first inputs and outputs, so many of them; a weight for all stays one."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    resize(
        layer,
        {
            name: (tensor[:outputs, :inputs] if tensor.ndim > 1 else tensor[:outputs]).clone()
            for name, tensor in tensors.items()
            if tensor.ndim > 0
        },
        {},
    )
