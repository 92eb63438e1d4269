"""Layers prepared for prefixes."""

import pytest
import torch
from torch import nn

from testbed.prepared_layers import prepare_conv


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("size", [2, 8, 16, 32])
@pytest.mark.parametrize("channels", [(64, 192), (128, 256), (96, 80)])
def test_weights_are_laid_out_once_for_images_of_one_size(
    channels: tuple[int, int], size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """oneDNN lays them out anew at every call, four times as long as the conv, if told wrongly."""
    run = prepare_conv(nn.Conv2d(*channels, 3, padding=1), torch.float32, relu=True)
    run(torch.randn(4, channels[0], size, size))
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        for n in (1, 4, 7, 33):
            run(torch.randn(n, channels[0], size, size).to(memory_format=torch.channels_last))
    said = capfd.readouterr().out
    assert said.count("exec,cpu,convolution") == 4
    assert "exec,cpu,reorder" not in said
