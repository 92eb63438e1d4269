"""What the cascades are made of, and what is refused before anything is trained."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from baselines import Cascade, CascadeRandom, Dense, SecondLook, Vanilla
from baselines.runtime.cascade_network import CascadeNetwork
from testbed.augmentation import Augmentation
from testbed.cost import count_multiplications
from testbed.data import Images, Splits
from testbed.held_back import divided
from testbed.method import Judge, PruningMethod

STAGES = (0.34, 0.58)


def pruned(method: PruningMethod, data: Splits | None = None) -> CascadeNetwork:
    network = method.prune(tiny.trained(), data or tiny.splits(), tiny.run(1))
    assert isinstance(network, CascadeNetwork)
    return network


def same(one: nn.Module, other: nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(others[name], tensor) for name, tensor in one.state_dict().items())


def test_stages_are_vanillas_networks_and_the_fine_tuned_dense_one() -> None:
    network = pruned(Cascade(stages=STAGES))
    for share, stage in zip(STAGES, network.networks, strict=False):
        vanilla = Vanilla(keep_multiplications=share)
        assert same(vanilla.prune(tiny.trained(), tiny.splits(), tiny.run(1)), stage)
    dense = Dense().prune(tiny.trained(), tiny.splits(), tiny.run(1))
    assert same(dense, network.networks[-1])


def test_a_cascade_is_not_judged_by_a_stage_on_its_way() -> None:
    looked: list[int] = []
    run = tiny.run(2)
    run.judge = Judge(rungs=(1, 2), look=lambda rung, values: looked.append(rung))
    Cascade(stages=STAGES).prune(tiny.trained(), tiny.splits(), run)
    assert looked == []


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.9])
def test_the_mean_cost_of_the_choosing_images_is_the_budget(keep: float) -> None:
    data = tiny.splits(n_validation=200, brighter=20)
    method = Cascade(stages=STAGES, keep_multiplications=keep)
    network = pruned(method, data)
    images, _ = divided(data, method.choice_share, "choice_share")
    cost = count_multiplications(network, data.normalised(images)[:])
    dense = count_multiplications(tiny.network(), data.normalised(images)[:1])
    share = cost.multiplications / dense.multiplications
    assert keep - 1.6 / len(images) <= share <= keep


def test_images_that_judge_choose_nothing() -> None:
    data = tiny.splits(n_validation=120, brighter=20)
    method = Cascade(stages=STAGES, keep_multiplications=0.6)
    images, _ = divided(data, method.choice_share, "choice_share")
    chosen = {image.numpy().tobytes() for image in images.pixels}
    judge = torch.tensor([each.numpy().tobytes() not in chosen for each in data.validation.pixels])
    assert judge.sum() == 60
    others = torch.where(judge[:, None, None, None], 0, data.validation.pixels)
    other = replace(data, validation=Images(others, data.validation.labels))
    assert same(pruned(method, data), pruned(method, other))


def test_the_control_has_the_same_networks_and_shares_but_draws() -> None:
    data = tiny.splits(n_validation=200, brighter=20)
    options = {"stages": STAGES, "keep_multiplications": 0.6}
    network, control = pruned(Cascade(**options), data), pruned(CascadeRandom(**options), data)
    assert same(network.networks, control.networks)
    inputs = data.normalised(data.validation)[:]
    costs = [count_multiplications(each, inputs).per_image.double() for each in (network, control)]
    dense = count_multiplications(tiny.network(), inputs[:1]).multiplications
    assert costs[1].mean() / dense == pytest.approx(0.6, abs=0.1)
    assert abs(torch.corrcoef(torch.stack(costs))[0, 1]) < 0.2, "who goes on is drawn"


def test_a_second_look_is_at_the_mirrored_image() -> None:
    data = replace(tiny.splits(), augmentation=Augmentation(crop=1, flip=True))
    method = SecondLook(keep_multiplications=0.46)
    network = pruned(method, data)
    thin = Vanilla(keep_multiplications=0.46 / 1.35)
    assert same(thin.prune(tiny.trained(), data, tiny.run(1)), network.networks[0])
    network.thresholds.fill_(torch.inf)
    network.weights[1] = 0.5
    inputs = data.normalised(data.validation)[:]
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), network(inputs.flip(-1)))


@pytest.mark.parametrize("stages", [(0.4, 0.2), (0.4, 0.4), (), (0.0, 0.5), (0.5, 1.0)])
def test_stages_that_do_not_rise_to_the_dense_network_are_refused(stages: Any) -> None:
    with pytest.raises(ValidationError):
        Cascade(stages=stages)


class Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(dim=1)


class Named(Probabilities):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.network(images)}


MIRRORED = {"stages": STAGES, "mirror": True}
REFUSED = {
    "too small a budget": (
        {"stages": STAGES, "keep_multiplications": 0.2},
        tiny.network,
        "cannot be reached: the first stage alone takes 0.3.*Ask for that or more",
    ),
    "stages alike": ({"stages": (0.56, 0.565)}, tiny.network, "number 1 and the one after it"),
    "stages out of reach": (
        {"stages": (0.01, 0.5)},
        tiny.network,
        "the one of 0.01: .* range from",
    ),
    "probabilities": ({"stages": STAGES}, lambda: Probabilities(tiny.network()), "before the soft"),
    "no tensor": ({"stages": STAGES}, lambda: Named(tiny.network()), "one tensor of logits"),
    "no mirror": (MIRRORED, tiny.network, "classes stay the same in a mirror"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_before_training(case: str) -> None:
    options, network, message = REFUSED[case]
    run = tiny.run(3)
    with pytest.raises(ValueError, match=message):
        Cascade(**options).check_network(network(), tiny.splits())
    with pytest.raises(ValueError, match=message):
        Cascade(**options).prune(network(), tiny.splits(), run)
    assert run.reported == []


@pytest.mark.parametrize("method", [Cascade(stages=STAGES), SecondLook(keep_multiplications=0.46)])
def test_a_single_class_is_refused(method: Any) -> None:
    data = tiny.splits()
    mirrored = Augmentation(crop=1, flip=True)
    one = replace(data, class_names=("a",), augmentation=mirrored)
    with pytest.raises(ValueError, match="two or more classes"):
        method.check_network(tiny.network(), one)


def test_a_second_look_at_data_with_a_left_and_a_right_is_refused() -> None:
    with pytest.raises(ValueError, match="classes stay the same in a mirror"):
        SecondLook(keep_multiplications=0.46).check_network(tiny.network(), tiny.splits())
