"""Costs of networks that tell their decisions, against every image run alone."""

from collections.abc import Callable
from functools import partial

import pytest
import small_cascades
import small_groups
import small_routes
import torch
from runtime_networks import runtime
from test_cost_per_image import SkippingNetwork
from torch import Tensor, nn

from testbed import cost
from testbed.cost import TellsDecisions, count_multiplications, multiplications_by_layer

TELLING: dict[str, Callable[[], nn.Module]] = {
    **{f"cascade, {c}": partial(small_cascades.cascade, c) for c in small_cascades.CONFIDENCES},
    "groups": small_groups.grouped,
    "routes": lambda: small_routes.deciding("two blocks"),
    "rnp": lambda: runtime("chain")[0],
}


@pytest.mark.parametrize("name", TELLING)
def test_each_image_costs_what_it_costs_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = TELLING[name](), small_cascades.images(64)
    alone = [multiplications_by_layer(network, image) for image in images.split(1)]
    assert isinstance(network, TellsDecisions)
    run = []
    in_turn = cost._in_turn
    monkeypatch.setattr(
        cost,
        "_in_turn",
        lambda net, batches: in_turn(net, [run.append(len(b)) or b for b in batches]),
    )
    found = count_multiplications(network, images, batch_size=64)
    assert found.per_image.tolist() == [each.total() for each in alone]
    for layer, counts in found.per_layer.items():
        assert counts.tolist() == [each[layer] for each in alone]
    n_kinds = len(network.decided(images).unique(dim=0))
    assert 2 <= n_kinds < 20, "that much of a test it is"
    assert sum(n == 1 for n in run) <= 2 * n_kinds + 5, "and the others were not run alone"


class Telling(SkippingNetwork):
    """Says that it never runs its second conv."""

    def decided(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, dtype=torch.int64)


@pytest.mark.parametrize("signs", [[1, -1, -1, 1], [-1, 1, 1, -1]])
def test_images_said_to_decide_alike_that_do_not_are_all_run(signs: list[int]) -> None:
    images = torch.ones(4, 4, 3, 3) * torch.tensor(signs)[:, None, None, None]
    always, sometimes = 4 * 4 * 9, 9 * 4 * 4 * 9
    found = count_multiplications(Telling(), images)
    assert found.per_image.tolist() == [always + sometimes * (sign > 0) for sign in signs]


def test_a_network_that_tells_wrong_decisions_is_refused() -> None:
    """Where the two images that were run agree by chance."""
    images = torch.ones(4, 4, 3, 3) * torch.tensor([1, 1, -1, -1])[:, None, None, None]
    with pytest.raises(ValueError, match="decide for each image"):
        count_multiplications(Telling(), images)
