"""Small networks whose forward a test writes down."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from testbed.backbones import build_backbone


class Net(nn.Module):
    """Layers by name, and a forward."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.written_forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written_forward(self, x)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    """A 3x3 conv that keeps the size of the maps."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def pooled(x: Tensor) -> Tensor:
    """Means of the maps, (n, channels)."""
    return x.flatten(2).mean(dim=2)


def lived_in(model: nn.Module) -> nn.Module:
    """The same network with norms that shift and scale, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def backbone(name: str, **options: object) -> nn.Module:
    """A narrow one of the testbed's, for images of 3 x 32 x 32 and 5 classes."""
    torch.manual_seed(0)
    width = {} if name == "conv" else {"width": 0.25}
    return lived_in(build_backbone(name, (3, 32, 32), 5, **width, **options))


def images(dtype: torch.dtype = torch.float32, size: int = 32) -> Tensor:
    """Two, (2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)
