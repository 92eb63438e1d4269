"""Network file: a network's weights alone, and how to make a network of them again.

The file holds a network that channels were removed from as well as one that is whole: the dense
network's code, with layers of the sizes in the file, is the network that was saved.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from testbed.tensor_file import read_tensors, write_tensors

Shapes = Mapping[str, torch.Size]  # of a layer's own parameters and buffers, by their names in it


def save_network(network: nn.Module, path: Path) -> None:
    """Write the weights and buffers of `network` to `path`, all of it or nothing."""
    write_tensors(path, network.state_dict(), {})


def load_network(path: Path, dense: nn.Module) -> nn.Module:
    """A copy of `dense` with the weights in the file, its layers as small as those.

    Convolutions (grouped and depthwise too), linear layers and batch norms are resized; others must
    have the same shapes in the file as in `dense`. Buffers that a module names in `later_buffers`
    may be missing, as older files have none; they stay as in `dense`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or does not fit `dense`; names the layer.
    """
    found, _ = read_tensors(path)
    tensors = {**_later(dense), **found}
    _check_names(path, tensors, dense.state_dict())
    return resized(dense, tensors)


def resized(dense: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `dense` with these weights and buffers, its layers as small as those.

    Args:
        tensors: one for every name in the state dict of `dense`.

    Raises:
        ValueError: if a layer cannot be resized; names it.
    """
    network = copy.deepcopy(dense)
    load_resized(network, tensors)
    return network


def load_resized(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts these weights and buffers into `network`, its layers made as small as those are.

    Args and errors as for `resized`.
    """
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        own = {**module._parameters, **module._buffers}
        shapes = {
            key: tensors[prefix + key].shape
            for key, tensor in own.items()
            if tensor is not None and prefix + key in tensors
        }
        if any(own[key].shape != shape for key, shape in shapes.items()):
            _resize(name or type(module).__name__, module, shapes)
    network.load_state_dict(tensors)


def _later(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that older files lack, as they are in `network`."""
    return {
        f"{name}.{key}".lstrip("."): module.get_buffer(key)
        for name, module in network.named_modules()
        for key in getattr(module, "later_buffers", ())
    }


def _check_names(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for kind, names in (
        ("lacks", expected.keys() - found.keys()),
        ("also has", found.keys() - expected.keys()),
    ):
        if names:
            raise ValueError(
                f"{path} is of another network: beside the dense one it {kind} "
                f"{', '.join(sorted(names))}. Give the dense network that it was pruned from."
            )


def _resize(name: str, module: nn.Module, shapes: Shapes) -> None:
    """Make `module` one of the given shapes, with weights still to be loaded."""
    sizes = _sizes(module, shapes)
    if sizes is None:
        raise ValueError(
            f"Cannot give layer {name!r} ({type(module).__name__}) the shapes "
            f"{ {key: tuple(shape) for key, shape in shapes.items()} }. Expected the "
            "shapes of the dense network, or a convolution, linear layer or batch norm with fewer "
            "channels."
        )
    for attribute, value in sizes.items():
        setattr(module, attribute, value)
    for key, shape in shapes.items():
        old: Tensor = getattr(module, key)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            setattr(module, key, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, key, new)


def _sizes(module: nn.Module, shapes: Shapes) -> dict[str, int] | None:
    """The attributes of a layer of these shapes; None if `module` cannot become one."""
    weight = shapes.get("weight", torch.Size())
    vectors = {shape for key, shape in shapes.items() if len(shape) == 1}
    if isinstance(module, _BatchNorm) and len(vectors) == 1:
        return {"num_features": vectors.pop()[0]}
    if vectors - {weight[:1]}:  # a bias that is longer or shorter than the weight
        return None
    if isinstance(module, nn.Linear) and len(weight) == 2:
        return {"out_features": weight[0], "in_features": weight[1]}
    if (
        isinstance(module, _ConvNd)
        and not isinstance(module, _ConvTransposeNd)
        and weight[2:] == module.kernel_size
    ):
        groups = module.groups
        if groups == module.in_channels > 1:  # depthwise: one group for each channel that is left
            per_group = module.out_channels // groups
            groups = weight[0] // per_group
        if weight[0] % groups == 0:
            return {
                "out_channels": weight[0],
                "in_channels": weight[1] * groups,
                "groups": groups,
            }
    return None
