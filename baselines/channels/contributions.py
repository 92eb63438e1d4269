"""Contributions of a layer's channels to sampled outputs of the layers that read them.

An output of a conv or linear layer is a sum over its input channels and a bias. A channel's
contribution is its part of that sum; without the channel, the output is less by just that.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray
from torch import Tensor, nn

from testbed.data import Splits, normalise
from testbed.machine import Precision
from testbed.prediction import autocast, evaluating, memory_format_for

Gram = NDArray[np.float64]  # (channels, channels)

IMAGES_AT_ONCE = 32


def gram_matrix(contributions: Tensor) -> Gram:
    """The products of every two channels' contributions, summed over the samples, in float64.

    Args:
        contributions: (samples, channels), on any device.
    """
    values = contributions.cpu().double().numpy()
    # NumPy sees that one matrix is multiplied with itself and computes half of the products.
    gram: Gram = values.T @ values
    return gram


@torch.no_grad()
def sampled_gram_matrices(
    network: nn.Module,
    readers: Mapping[str, Tensor],
    data: Splits,
    *,
    images: int,
    positions: int,
    generator: torch.Generator,
    device: torch.device,
    precision: Precision,
) -> dict[str, Gram]:
    """Each reader of a layer's channels -> the Gram matrix of what they contribute to its outputs.

    Args:
        network: on `device`; left unchanged.
        readers: a conv of one group or a linear layer -> (channels, k) int64: its inputs that come
            from each channel.
        images: how many training images are drawn; all are taken where there are fewer.
        positions: how many of a reader's output values are drawn for each image, each at a place
            and filter of its own; all are taken where there are fewer.
        generator: on the CPU; of both draws.
    """
    grams: dict[str, Gram] = {
        reader: np.zeros((len(inputs), len(inputs))) for reader, inputs in readers.items()
    }

    def sampling(reader: str) -> Any:
        def sample(layer: nn.Module, seen: tuple[Tensor]) -> None:
            inputs = readers[reader].to(device)
            found = sampled_contributions(layer, seen[0], inputs, positions, generator)
            grams[reader] += gram_matrix(found)

        return sample

    chosen = torch.randperm(len(data.train), generator=generator)[:images]
    looked_at = data.train.select(chosen.to(data.train.labels.device))
    layout = memory_format_for(network, data, device)
    hooks = [
        network.get_submodule(reader).register_forward_pre_hook(sampling(reader))
        for reader in readers
    ]
    try:
        with evaluating(network), autocast(precision, device):
            for batch in looked_at.batches(IMAGES_AT_ONCE):
                seen = batch.pixels.to(device)
                network(normalise(seen, data.mean, data.std, memory_format=layout))
    finally:
        for hook in hooks:
            hook.remove()
    return grams


def sampled_contributions(
    layer: nn.Module, seen: Tensor, inputs: Tensor, positions: int, generator: torch.Generator
) -> Tensor:
    """What channels contribute to random outputs of the layer that reads them, without its bias.

    Args:
        layer: a conv of one group, or a linear layer.
        seen: its input, (n, inputs, height, width) or (n, ..., inputs).
        inputs: (channels, k) int64, the inputs that come from each channel.
        positions: as for `sampled_gram_matrices`.

    Returns:
        (samples, channels) float32.
    """
    maps, weight, stride, dilation = _as_conv(layer, seen.float(), inputs.flatten())
    filters, _, *kernel = weight.shape
    height, width = (
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(maps.shape[2:], kernel, stride, dilation, strict=True)
    )
    drawn = _draw(len(maps), filters * height * width, positions, generator).to(maps.device)
    place, of_filter = drawn % (height * width), drawn // (height * width)
    rows, columns = (
        (at * s)[:, :, None] + d * torch.arange(k, device=maps.device)
        for at, k, s, d in zip(
            (place // width, place % width), kernel, stride, dilation, strict=True
        )
    )
    image = torch.arange(len(maps), device=maps.device)[:, None, None, None]
    patches = maps[image, :, rows[:, :, :, None], columns[:, :, None, :]]
    products = patches * weight.permute(0, 2, 3, 1)[of_filter]  # (n, drawn, *kernel, inputs)
    return products.sum(dim=(2, 3)).reshape(-1, *inputs.shape).sum(dim=2)


def _as_conv(
    layer: Any, seen: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]]:
    """Padded feature maps, weight, stride and dilation of a conv that does the same to `inputs`."""
    weight = layer.weight.detach().float()[:, inputs]
    if isinstance(layer, nn.Linear):
        maps = seen[..., inputs].reshape(len(seen), -1, len(inputs)).transpose(1, 2)
        return maps[:, :, :, None], weight[:, :, None, None], (1, 1), (1, 1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # The one place where torch keeps a conv's padding in numbers whichever way it was given.
    maps = F.pad(seen[:, inputs], layer._reversed_padding_repeated_twice, mode)
    return maps, weight, layer.stride, layer.dilation


def _draw(n: int, values: int, positions: int, generator: torch.Generator) -> Tensor:
    """Which of so many output values are taken of each of n images, (n, drawn) int64."""
    if positions >= values:
        return torch.arange(values).expand(n, values)
    return torch.randint(values, (n, positions), generator=generator)
