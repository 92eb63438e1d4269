"""Winograd convolution F(2x2, 3x3): sixteen multiplications where a direct one takes 36.

Tiles of 4x4 inputs, two apart, give 2x2 outputs each: y = A' [(G w G') * (B' d B)] A, summed over
the inputs' channels (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
CVPR, arXiv 1509.09308). The transforms of inputs and outputs only add; that of the weights is done
once. A zero among the sixteen transformed weights saves its multiplication in every tile.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

EXPECTED = "a 3x3 conv of stride 1, without groups and dilation, padded with zeros by a number"


def takes_winograd(layer: nn.Module) -> bool:
    """Whether a layer is a conv that can run so."""
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def transformed(weight: Tensor) -> Tensor:
    """G w G': (..., 3, 3) to (..., 4, 4)."""
    return _along(_along(weight, -1), -2)


def _along(weight: Tensor, dim: int) -> Tensor:
    first, middle, last = weight.unbind(dim)
    outer = (first + last) / 2
    return torch.stack([first, outer + middle / 2, outer - middle / 2, last], dim)


class WinogradConv2d(nn.Module):
    """A conv whose weights lie in the Winograd domain, where they may be any, zeros among them."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Of the conv's own weights; it gives what the conv does, but for rounding.

        Raises:
            ValueError: if the conv is of another kind (see `takes_winograd`).
        """
        super().__init__()
        if not takes_winograd(conv):
            raise ValueError(f"Expected {EXPECTED}, got {conv}.")
        self.weight = nn.Parameter(transformed(conv.weight.detach()))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.padding = conv.padding

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, H, W) to (n, outputs, H + 2 padding - 2, W + 2 padding - 2)."""
        vertical, horizontal = (int(side) for side in self.padding)
        height, width = (
            size + 2 * side - 2
            for size, side in zip(images.shape[2:], (vertical, horizontal), strict=True)
        )
        rows, columns = (height + 1) // 2, (width + 1) // 2  # of tiles
        below, right = 2 * rows - height, 2 * columns - width
        padded = F.pad(images, (horizontal, horizontal + right, vertical, vertical + below))
        parts = [
            [padded[:, :, r : r + 2 * rows : 2, c : c + 2 * columns : 2] for c in range(4)]
            for r in range(4)
        ]
        inside = [_differences(row) for row in parts]
        tiles = zip(*(_differences([row[c] for row in inside]) for c in range(4)), strict=True)
        # (16, n, inputs, rows, columns)
        data = torch.stack([each for row in tiles for each in row])
        kernels = self.weight.permute(2, 3, 0, 1).flatten(0, 1)  # (16, outputs, inputs)
        products = kernels @ data.movedim(2, 1).flatten(2)
        cells = products.unflatten(2, (images.shape[0], rows, columns)).unbind(0)
        sums = [_sums(cells[4 * r : 4 * r + 4]) for r in range(4)]
        first, second = (_sums([row[c] for row in sums]) for c in range(2))
        pairs = [torch.stack([first[r], second[r]], dim=-1) for r in range(2)]
        # (outputs, n, rows, 2, columns, 2)
        outputs = torch.stack(pairs, dim=3).flatten(4, 5).flatten(2, 3).transpose(0, 1)
        outputs = outputs[:, :, :height, :width]
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


def _differences(d: list[Tensor]) -> list[Tensor]:
    """B' d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _sums(m: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """A' m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def direct_multiplications(layer: WinogradConv2d, outputs: Tensor) -> int:
    """What the direct convolution that it stands for would take for outputs (n, channels, H, W)."""
    return 9 * layer.weight.shape[1] * outputs.numel()


def winograd_share(weight: Tensor, height: int, width: int) -> float:
    """Multiplications with the non-zero weights, as a share of those of the direct convolution.

    Args:
        weight: transformed, (outputs, inputs, 4, 4).
        height, width: of the output.
    """
    tiles = -(-height // 2) * -(-width // 2)
    share = int(weight.count_nonzero()) / weight.numel()
    return share * 16 * tiles / (9 * height * width)
