"""Costs on machines that do other than multiply whole numbers of 32 bits directly.

Bit operations, for those that multiply numbers of few bits; multiplications of Winograd
convolutions, for those that run them and can skip zeros. Both are found out from the network, as
every cost, and say nothing of the multiplications that run on a machine of today.
"""

import torch
from torch import Tensor, nn

from testbed.cost import Cost, count_parameters, weights_by_layer
from testbed.prediction import evaluating
from testbed.winograd import WinogradConv2d, takes_winograd, transformed, winograd_share

WHOLE = 32  # bits of a number that lies on no coarse grid
FINEST = 12  # bits of a grid; float32 blurs finer ones
NEAR = 0.05  # of a step: how far from a grid's place a value still lies on it
ENOUGH = 2**14  # values that tell whether there are more than a grid has


def special_costs(network: nn.Module, cost: Cost, images: Tensor) -> dict[str, float]:
    """Bit operations, mean bits, footprint and Winograd multiplications of a network.

    `bit_operations` of an image are its multiplications, each times the bits of both factors: of a
    conv or linear layer those of its weights and of its inputs, of any other 32. `mean_bits` is the
    mean of all these layers' weights and inputs. `footprint_bytes` is what the parameters take,
    weights with their bits. `winograd_multiplications` are with non-zero weights alone, of 3x3
    convs in the Winograd domain.

    Args:
        cost: of the network.
        images: a few, normalised, (n, C, H, W), on the network's device.
    """
    weights = weights_by_layer(network)
    inputs, sizes = _seen(network, images)
    ran = {layer: each.double().mean().item() for layer, each in cost.per_layer.items()}
    weight_bits = {layer: bits_of(weight) for layer, weight in weights.items()}
    input_bits = {layer: bits_of(*inputs[layer]) if inputs[layer] else WHOLE for layer in weights}
    both = [*weight_bits.values(), *input_bits.values()]
    stored = sum(weight.numel() * weight_bits[layer] for layer, weight in weights.items())
    others = count_parameters(network) - sum(weight.numel() for weight in weights.values())
    return {
        "bit_operations": sum(
            count * weight_bits.get(layer, WHOLE) * input_bits.get(layer, WHOLE)
            for layer, count in ran.items()
        ),
        "mean_bits": sum(both) / len(both) if both else float(WHOLE),
        "footprint_bytes": (stored + WHOLE * others) / 8,
        "winograd_multiplications": sum(
            count * _share(network.get_submodule(layer), sizes.get(layer))
            for layer, count in ran.items()
        ),
    }


def bits_of(*values: Tensor) -> int:
    """Bits of the coarsest uniform grid that all values lie on; 32 where it would need over 12.

    That is of 2^n values from the least to the greatest, as long as both are there; else of as many
    as the smallest step asks for.
    """
    if any(len(each.detach().flatten()[:ENOUGH].unique()) > 2**FINEST for each in values):
        return WHOLE
    distinct = torch.cat([each.detach().flatten().unique() for each in values]).double().unique()
    if not 1 < len(distinct) <= 2**FINEST:
        return 1 if len(distinct) == 1 else WHOLE
    above, span = distinct - distinct[0], (distinct[-1] - distinct[0]).item()
    for bits in range((len(distinct) - 1).bit_length(), FINEST + 1):
        if _on_grid(above, span / (2**bits - 1)):
            return bits
    steps = distinct.diff()
    step = steps[steps < 1.5 * steps.min()].mean().item()
    bits = round(span / step).bit_length()
    return bits if bits <= FINEST and _on_grid(above, span / round(span / step)) else WHOLE


def _on_grid(above: Tensor, step: float) -> bool:
    places = above / step
    return bool(((places - places.round()).abs() < NEAR).all())


def _share(layer: nn.Module, size: tuple[int, int] | None) -> float:
    """Of a layer's multiplications, those in the Winograd domain, or with non-zero weights."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, WinogradConv2d) and size:
        return winograd_share(layer.weight, *size)
    if takes_winograd(layer) and size:
        return winograd_share(transformed(layer.weight.detach()), *size)  # type: ignore[operator]
    if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and isinstance(weight, Tensor):
        return int(weight.count_nonzero()) / weight.numel()
    return 1.0


def _seen(
    network: nn.Module, images: Tensor
) -> tuple[dict[str, list[Tensor]], dict[str, tuple[int, int]]]:
    """What each conv and linear layer reads of the images, and the height and width it writes.

    A layer whose weight another module uses is not called, and reads nothing here.
    """
    read: dict[str, list[Tensor]] = {name: [] for name in weights_by_layer(network)}
    sizes: dict[str, tuple[int, int]] = {}
    hooks = []
    for name, layer in network.named_modules():
        if name not in read and not isinstance(layer, WinogradConv2d):
            continue

        def seen(
            _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> None:
            if name in read:
                read[name].append(inputs[0].detach())
            if output.ndim == 4:
                sizes[name] = output.shape[2], output.shape[3]

        hooks.append(layer.register_forward_hook(seen))
    try:
        with torch.no_grad(), evaluating(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return read, sizes
