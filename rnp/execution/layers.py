"""Layers that also run on a prefix of their channels, with weights that were prepared for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testbed.prepared_layers import Prepared, statistics_of

FEW = 4  # images: statistics of fewer are noise


class PrefixConv2d(nn.Conv2d):
    """A conv that also runs what was prepared for a prefix of its channels.

    That is run through the module, so that hooks see it and the counter of multiplications books
    it as this layer's.
    """

    def forward(self, input: Tensor, prepared: Prepared | None = None) -> Tensor:
        return super().forward(input) if prepared is None else prepared(input)


class PrefixLinear(nn.Linear):
    """A linear layer that also runs what was prepared for a prefix of its inputs."""

    def forward(self, input: Tensor, prepared: Prepared | None = None) -> Tensor:
        return super().forward(input) if prepared is None else prepared(input)


class _Reordered(torch.autograd.Function):
    """Images in another order: as `images[order]`, whose gradient takes ten times as long."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return _rows(images, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _rows(gradients[0], ctx.inverse), None, None


def _rows(images: Tensor, order: Tensor) -> Tensor:
    """`images[order]`, of feature maps as they lie in memory: channels last."""
    return images.movedim(1, -1).index_select(0, order).movedim(-1, 1)


class PrefixBatchNorm(_BatchNorm):
    """A batch norm with statistics for each prefix of its input; scale and shift are shared.

    In training an image is normalised by those of the batch that took the same action: what else is
    in the batch does not matter. Where these are fewer than `FEW`, the running statistics of the
    action do it. `running_mean` and `running_var` are left as the dense network had them.

    Source: Yu and Huang 2019, "Universally slimmable networks", arXiv 1903.05134; switchable batch
    norm is from Yu et al. 2019, arXiv 1812.08928.
    """

    prefix_mean: Tensor
    """(actions, channels), the running means."""
    prefix_var: Tensor
    """(actions, channels)."""
    later_buffers = ("prefix_mean", "prefix_var")  # which older files lack: see `load_network`
    averaged: list[int]
    """Batches of each action since `forget`, over which a momentum of None takes the mean."""

    @staticmethod
    def convert(norm: Any, n_actions: int) -> None:
        """Makes a batch norm with running statistics such a one, in place: alike for all."""
        flat = type(norm) is nn.BatchNorm1d
        norm.__class__ = PrefixBatchNorm1d if flat else PrefixBatchNorm2d
        for name in ("mean", "var"):
            running: Tensor = norm.get_buffer(f"running_{name}")
            norm.register_buffer(f"prefix_{name}", running.expand(n_actions, -1).clone())
        norm.forget()

    def forget(self) -> None:
        """Begins the means anew that are taken where momentum is None."""
        self.averaged = [0] * len(self.prefix_mean)

    def of_older_file(self, key: str, found: Mapping[str, Tensor]) -> Tensor:
        """A later buffer for a file that lacks it: statistics alike for all prefixes."""
        return found[key.replace("prefix", "running")].expand_as(self.get_buffer(key))

    def at(self, action: int) -> nn.BatchNorm2d:
        """A plain batch norm for one prefix, which shares these weights and statistics."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, affine=False).eval()
        norm.weight, norm.bias = self.weight, self.bias
        norm.running_mean, norm.running_var = self.prefix_mean[action], self.prefix_var[action]
        return norm

    def forward(self, input: Tensor, actions: Tensor) -> Tensor:  # type: ignore[override]
        """
        Args:
            input: (n, channels, ...).
            actions: (n,) int64, taken for the conv that the input comes from.
        """
        if self.training:
            return self._in_training(input, actions)
        scale = (self.prefix_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.prefix_mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        scale, shift = (
            each[actions].unflatten(1, (-1, *[1] * (input.ndim - 2))) for each in (scale, shift)
        )
        return torch.addcmul(shift, input, scale).to(input.dtype)

    def _in_training(self, input: Tensor, actions: Tensor) -> Tensor:
        order = actions.argsort(stable=True)  # images that took the same action side by side
        inverse = order.argsort()
        sizes = actions.bincount(minlength=len(self.prefix_mean)).tolist()
        parts = _Reordered.apply(input, order, inverse).split(sizes)
        normalised = [self._part(part, action) for action, part in enumerate(parts) if len(part)]
        result: Tensor = _Reordered.apply(torch.cat(normalised), inverse, order)
        return result

    def _part(self, images: Tensor, action: int) -> Tensor:
        by_batch = len(images) >= FEW
        self.averaged[action] += by_batch
        return F.batch_norm(
            images,
            self.prefix_mean[action],
            self.prefix_var[action],
            self.weight,
            self.bias,
            by_batch,
            1 / max(1, self.averaged[action]) if self.momentum is None else self.momentum,
            self.eps,
        )


class PrefixBatchNorm1d(PrefixBatchNorm):
    """Of (n, channels)."""


class PrefixBatchNorm2d(PrefixBatchNorm):
    """Of (n, channels, H, W)."""


def allow_prefixes(network: nn.Module, norms: Iterable[str], n_actions: int) -> None:
    """Makes the layers of `network` ones that run on prefixes, in place.

    Args:
        norms: the batch norms that meet a mixture of widths.
    """
    for norm in norms:
        PrefixBatchNorm.convert(network.get_submodule(norm), n_actions)
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = PrefixConv2d
        elif type(module) is nn.Linear:
            module.__class__ = PrefixLinear


def prepare_per_channel(layer: Any, channels: int | None) -> Prepared:
    """A layer with weights for each channel, in evaluation mode on a prefix of its channels.

    Args:
        layer: a PReLU, an instance norm, or a batch norm with running statistics.
        channels: of the prefix; None for all.
    """
    if isinstance(layer, nn.PReLU):
        slopes = layer.weight.detach()[:channels]
        return lambda images: F.prelu(images, slopes)
    mean, variance, weight, bias = statistics_of(layer, channels)
    if isinstance(layer, nn.InstanceNorm2d):
        of_images = mean is None
        return lambda images: F.instance_norm(
            images, mean, variance, weight, bias, use_input_stats=of_images, eps=layer.eps
        )
    return lambda images: F.batch_norm(images, mean, variance, weight, bias, eps=layer.eps)
