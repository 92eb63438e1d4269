"""Layers made smaller in place: their parameters and buffers, and the attributes that follow."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from testbed.attention import allow_fewer_heads

Untold = Mapping[str, Mapping[str, Any]]
"""Layer -> its attributes that the shapes of its weights do not tell."""


def untold_sizes(network: nn.Module) -> dict[str, dict[str, Any]]:
    """The attributes of a network's layers that the shapes of their weights do not tell."""
    found = {name: _untold(module) for name, module in network.named_modules()}
    return {name: sizes for name, sizes in found.items() if sizes}


def _untold(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, _ConvNd) and module.groups > 1:
        return {"groups": module.groups}
    if isinstance(module, nn.GroupNorm):
        return {"num_groups": module.num_groups, "num_channels": module.num_channels}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is None:
        return {"normalized_shape": list(module.normalized_shape)}
    if isinstance(module, _NormBase) and module.weight is None and module.running_mean is None:
        return {"num_features": module.num_features}
    return dict(own_numbers(module))


def own_numbers(module: nn.Module) -> list[tuple[str, int]]:
    """The whole numbers among the attributes of a module that is not one of torch's own."""
    if type(module).__module__.startswith("torch.nn."):
        return []
    return [(name, value) for name, value in vars(module).items() if type(value) is int]


def resize(network: nn.Module, tensors: Mapping[str, Tensor], untold: Untold) -> None:
    """Gives `network` these parameters and buffers in place, and its layers the sizes of them.

    Args:
        tensors: by name; what is not named stays. A shared one may be named once or each time.
            Smaller ones take the place of what the network has.
        untold: as `untold_sizes` gave it.
    """
    current: dict[str, Tensor] = dict(network.named_buffers(remove_duplicate=False))
    current.update(network.named_parameters(remove_duplicate=False))
    smaller = {name: t for name, t in tensors.items() if current[name].shape != t.shape}
    if not smaller and not untold:
        return
    if smaller:
        allow_fewer_heads(network)
    made: dict[int, Tensor] = {}  # shared tensors stay shared
    for name, new in smaller.items():
        old = current[name]
        trained = isinstance(old, nn.Parameter)
        made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if trained else new
    for module in network.modules():
        both: list[dict[str, Any]] = [module._parameters, module._buffers]
        for owned in both:
            for key, old in owned.items():
                if old is not None and id(old) in made:
                    owned[key] = made[id(old)]
    for name, module in network.named_modules():
        for attribute, value in {**untold.get(name, {}), **_told(module, untold.get(name))}.items():
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)


def _told(module: nn.Module, untold: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes of a layer that follow from the shapes of its weights."""
    weight: Tensor | None = getattr(module, "weight", None)
    if isinstance(module, _NormBase):
        vector = weight if weight is not None else module.running_mean
        return {} if vector is None else {"num_features": len(vector)}
    if not isinstance(weight, Tensor):
        return {}
    shape = tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, _ConvNd):
        groups = (untold or {}).get("groups", module.groups)
        if "groups" not in (untold or {}) and groups == module.in_channels > 1:
            groups = shape[0] * groups // module.out_channels  # depthwise: one for each channel
        first, second = shape[0], shape[1] * groups
        inputs, outputs = (
            (first, second) if isinstance(module, _ConvTransposeNd) else (second, first)
        )
        return {"in_channels": inputs, "out_channels": outputs, "groups": groups}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    return {}
