"""Latency: contenders in turns, and figures that follow the work."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from testbed.backbones import build_backbone
from testbed.latency import measure_latency
from testbed.machine import device_name

IMAGES = torch.randn(5, 4, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every tiny operation are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_contenders_are_timed_in_turns_on_the_same_images() -> None:
    calls: list[tuple[str, Tensor]] = []

    class Noting(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            assert torch.is_inference_mode_enabled()
            assert images.is_contiguous(memory_format=torch.channels_last)
            calls.append((self.name, images))
            return images

    networks = {"dense": Noting("dense"), "pruned": Noting("pruned")}
    measured = measure_latency(networks, IMAGES, batch_sizes=(1, 7), seconds=0.01)
    assert list(measured) == [("dense", 1), ("pruned", 1), ("dense", 7), ("pruned", 7)]
    timed = [call for call in calls if len(call[1]) == 1][4:]  # two runs each to warm up
    assert len(timed) == 2 * measured["dense", 1].runs
    for number, (dense, pruned) in enumerate(zip(timed[::2], timed[1::2], strict=True)):
        assert (dense[0], pruned[0]) == ("dense", "pruned")
        assert dense[1] is pruned[1]
        assert torch.equal(dense[1], IMAGES[number % 5 : number % 5 + 1])
    assert {len(images) for _, images in calls} == {1, 7}
    assert all(network.training for network in networks.values())


def test_a_network_with_more_work_takes_longer() -> None:
    networks = {
        name: build_backbone("conv", (4, 8, 6), 10, channels=[width, width])
        for name, width in (("small", 8), ("large", 512))
    }
    measured = measure_latency(networks, IMAGES, batch_sizes=(1,), seconds=0.05)
    small, large = measured["small", 1], measured["large", 1]
    assert 0 < small.median_ms < large.median_ms
    assert small.iqr_ms >= 0
    assert small.device == device_name(torch.device("cpu"))
    assert small.threads == torch.get_num_threads()


def test_at_least_five_runs_are_made_whatever_the_time() -> None:
    measured = measure_latency({"net": nn.Conv2d(4, 4, 1)}, IMAGES, (1,), seconds=0)
    assert measured["net", 1].runs == 5


class Disturbed(nn.Module):
    """Takes twenty times as long in every second run, for so many runs."""

    def __init__(self, disturbed: int) -> None:
        super().__init__()
        self.runs, self.disturbed = -2, disturbed  # two to warm up

    def forward(self, images: Tensor) -> Tensor:
        float(images[0, 0, 0, 0])  # a trace would leave the rest out
        time.sleep(0.02 if 0 <= self.runs < self.disturbed and self.runs % 2 else 0.001)
        self.runs += 1
        return images


def test_on_a_busy_machine_it_is_measured_for_longer() -> None:
    both = {"dense": Disturbed(9), "pruned": Disturbed(9)}
    measured = measure_latency(both, IMAGES, (1,), seconds=0.04)
    assert measured["dense", 1].runs > 9
    assert measured["dense", 1].median_ms < 10
    steady = measure_latency({"dense": Disturbed(0), "pruned": Disturbed(9)}, IMAGES, (1,), 0.004)
    assert steady["pruned", 1].runs == 5  # it decides per image, say


def test_a_network_can_be_trained_on_after_it_was_timed() -> None:
    network = build_backbone("conv", (4, 8, 6), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_latency({"net": network}, IMAGES, (2,), seconds=0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network(IMAGES).sum().backward()


class Viewed(nn.Module):
    """Flattens by `.view`, which channels-last feature maps do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6 * 48, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(images).view(images.shape[0], -1))
        return logits


def test_a_network_that_flattens_by_view_is_timed_and_works_afterwards() -> None:
    network = Viewed().eval()
    expected = network(IMAGES)
    measured = measure_latency({"viewed": network, "conv": nn.Conv2d(4, 4, 3)}, IMAGES, (1, 3), 0)
    assert all(each.median_ms > 0 for each in measured.values()) and len(measured) == 4
    assert torch.equal(network(IMAGES), expected)


def test_the_layout_of_the_weights_is_no_lasting_one() -> None:
    network = nn.Conv2d(4, 4, 3)
    measure_latency({"conv": network}, IMAGES, (1,), 0)
    assert network.weight.is_contiguous()
