"""Prediction: what a network has to return, and what is said when it returns something else."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from testbed.prediction import check_logits, predict
from testbed.training import Training, train

CPU = torch.device("cpu")


class Returning(nn.Module):
    """A linear classifier whose outputs are wrapped."""

    def __init__(self, wrap: Callable[[nn.Module, Tensor], Any], n_outputs: int = 3) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(2 * 8 * 8, n_outputs), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self, self.linear(images.flatten(1)))


WRONG: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "dict": (lambda _, y: {"out": y, "aux": y}, "got dict of 'out', 'aux'"),
    "tuple": (lambda _, y: (y, y), "got tuple of 2"),
    "number": (lambda _, y: 3.0, "got float"),
    "a sum": (lambda _, y: y.sum(), r"a tensor of shape \(\)"),
    "maps": (lambda _, y: y[:, :, None, None], r"a tensor of shape \(1, 3, 1, 1\)"),
    "with heads in training": (lambda net, y: (y, y) if net.training else y, "got tuple of 2"),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_network_that_returns_no_plain_logits_is_refused_before_it_is_trained(way: str) -> None:
    wrap, got = WRONG[way]
    network = Returning(wrap)
    before = network.linear.weight.clone()
    with pytest.raises(ValueError, match=rf"one tensor of logits \(\d+, 3\).*{got}"):
        train(network, tiny.splits(), Training(epochs=1), seed=0, device=CPU)
    assert torch.equal(network.linear.weight, before)


def test_a_network_of_other_classes_than_the_data_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="It has 1000 classes: give weights and a network of"):
        data = tiny.splits()
        predict(Returning(lambda _, y: y, 1000), data.validation, data, device=CPU)


def test_plain_logits_are_accepted() -> None:
    check_logits(torch.zeros(4, 3), 4, 3)
