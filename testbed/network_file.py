"""Network file: a network's weights alone, and how to make a network of them again.

The file holds a network that channels were removed from as well as one that is whole: the dense
network's code, with layers of the sizes in the file, is the network that was saved.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from testbed.layer_sizes import Untold, resize, untold_sizes
from testbed.tensor_file import read_tensors, write_tensors


def save_network(network: nn.Module, path: Path) -> None:
    """Write the weights and buffers of `network` to `path`, all of it or nothing."""
    write_tensors(path, network.state_dict(), {"sizes": json.dumps(untold_sizes(network))})


def load_network(path: Path, dense: nn.Module) -> nn.Module:
    """A copy of `dense` with the weights in the file, its layers as small as those.

    Every layer that can lose channels is resized. Buffers that a module names in `later_buffers`
    may be missing, as older files have none: its `of_older_file` says what they are (told the name,
    and the module's own tensors in the file), or else they stay as in `dense`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or does not fit `dense`; names the layer.
    """
    found, texts = read_tensors(path)
    tensors = {**_later(dense, found), **found}
    _check_names(path, tensors, dense.state_dict())
    return resized(dense, tensors, json.loads(texts.get("sizes", "{}")))


def resized(
    dense: nn.Module, tensors: Mapping[str, Tensor], untold: Untold | None = None
) -> nn.Module:
    """A copy of `dense` with these weights and buffers, its layers as small as those.

    Args:
        tensors: one for every name in the state dict of `dense`.
        untold: what their shapes do not tell (see `untold_sizes`).

    Raises:
        ValueError: if they cannot be of a smaller network of the kind of `dense`; names the layer.
    """
    network = copy.deepcopy(dense)
    load_resized(network, tensors, untold)
    return network


def load_resized(
    network: nn.Module, tensors: Mapping[str, Tensor], untold: Untold | None = None
) -> None:
    """Puts these weights and buffers into `network`, its layers made as small as those are.

    Args and errors as for `resized`.
    """
    _check_shapes(network, tensors)
    own = network.state_dict()
    resize(network, {n: t.to(own[n], copy=True) for n, t in tensors.items()}, untold or {})
    state = network.state_dict()  # it knows the versions that modules give their layers
    state.update(tensors)
    network.load_state_dict(state)


def _check_shapes(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that no smaller network of the same kind has; names the layer."""
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        own = {k: t for k, t in {**module._parameters, **module._buffers}.items() if t is not None}
        found = {key: tensors[prefix + key].shape for key in own if prefix + key in tensors}
        if not all(_is_part(found[key], own[key].shape) for key in found) or not _fit(
            module, found
        ):
            shapes = {key: tuple(shape) for key, shape in found.items()}
            raise ValueError(
                f"Cannot give layer {name or type(network).__name__!r} ({type(module).__name__}) "
                f"the shapes {shapes}. Expected the shapes of the dense network, or fewer channels."
            )


def _is_part(shape: torch.Size, of: torch.Size) -> bool:
    return len(shape) == len(of) and all(0 < n <= most for n, most in zip(shape, of, strict=True))


def _fit(module: nn.Module, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether a layer's shapes go with each other: its kernel is whole, its vectors alike."""
    lengths = {shape[0] for shape in shapes.values() if len(shape) == 1}
    if isinstance(module, _ConvNd) and "weight" in shapes:
        if shapes["weight"][2:] != module.kernel_size:
            return False
        lengths |= set() if module.transposed else {shapes["weight"][0]}
    if isinstance(module, nn.Linear) and "weight" in shapes:
        lengths.add(shapes["weight"][0])
    return len(lengths) < 2 or not type(module).__module__.startswith("torch.nn.modules")


def _later(network: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffers of `network` that older files lack, and this one does."""
    later = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        for key in getattr(module, "later_buffers", ()):
            if prefix + key in found:
                continue
            own = {k.removeprefix(prefix): t for k, t in found.items() if k.startswith(prefix)}
            older = getattr(module, "of_older_file", None)
            later[prefix + key] = older(key, own) if older else module.get_buffer(key)
    return later


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
