"""Networks in the form in which they are timed compute what they did."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from rnp.runtime_network import RuntimeNetwork
from testbed.backbones import build_backbone
from testbed.inference_form import inference_form
from testbed.latency import measure_latency

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_statistics(network: nn.Module) -> nn.Module:
    """Batch norms that are not those of a new network."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(IMAGES)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return network


@pytest.mark.parametrize("name", ["conv", "resnet20", "vgg16", "resnet18"])
def test_a_prepared_network_has_no_batch_norm_and_gives_the_same_logits(name: str) -> None:
    options = {"width": 0.25} if name != "resnet20" else {}
    network = with_statistics(build_backbone(name, (3, 32, 32), 10, **options))
    form = inference_form(network, IMAGES[:1])
    assert form is not network and network.training
    left = [type(module) for module in form.modules()]
    assert not {nn.BatchNorm2d, nn.Conv2d, nn.Linear, nn.Dropout} & set(left)
    for images in (IMAGES, IMAGES[:1], IMAGES.contiguous(memory_format=torch.channels_last)):
        with torch.inference_mode():
            expected = network.eval()(images)
            torch.testing.assert_close(form(images), expected, rtol=1e-3, atol=1e-3)


def test_a_relu_after_a_pool_is_folded_into_the_conv_too() -> None:
    network = with_statistics(
        build_backbone("conv", (3, 32, 32), 10, channels=[4, 6], pool_after=[1, 2])
    )
    form = inference_form(network, IMAGES[:1])
    assert sum(isinstance(module, nn.ReLU) for module in form.modules()) == 1, "the linear layer's"


def test_a_relu_of_a_pool_that_others_read_stays() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.relu = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            maps = self.pool(self.conv(images))
            logits: Tensor = (maps + self.relu(maps)).mean(dim=(2, 3))
            return logits

    network = Forked().eval()
    form = inference_form(network, IMAGES[:1])
    assert any(isinstance(module, nn.ReLU) for module in form.modules())
    torch.testing.assert_close(form(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_whose_conv_is_read_elsewhere_stays() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            logits: Tensor = (maps + self.norm(maps)).mean(dim=(2, 3))
            return logits

    network = with_statistics(Forked()).eval()
    form = inference_form(network, IMAGES[:1])
    assert any(isinstance(module, nn.BatchNorm2d) for module in form.modules())
    torch.testing.assert_close(form(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    """Looks at what it computes, which a tracer cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.conv(images).mean(dim=(2, 3))
        return logits if logits.sum() > 0 else -logits


def test_what_cannot_be_traced_or_changes_its_weights_by_hooks_runs_as_it_is() -> None:
    hooked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    for network in (Branching(), hooked, RuntimeNetwork(tiny.network())):
        images = IMAGES[:, :2, :8, :8] if isinstance(network, RuntimeNetwork) else IMAGES
        assert inference_form(network.eval(), images[:1]) is network
        measured = measure_latency({"it": network}, images, (1,), seconds=0)
        assert measured["it", 1].median_ms > 0


def test_to_be_timed_leaves_a_network_as_it_was() -> None:
    network = with_statistics(build_backbone("resnet20", (3, 32, 32), 10))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_latency({"it": network}, IMAGES, (2,), seconds=0)
    after = network.state_dict()
    assert after.keys() == before.keys() and network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert all(parameter.is_contiguous() for parameter in network.parameters())
