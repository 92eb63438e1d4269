"""Cascades of a sweep's own networks: what they come to, against a run image by image."""

import time
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cascades import images
from small_cascades import networks as small_networks
from torch import nn

from baselines.runtime.cascade_network import CascadeNetwork
from orchestrator.analysis import cascades as module
from orchestrator.analysis.cascade_decision import MOST_SHOWN, OwnCascades
from orchestrator.analysis.cascades import _Looks, _tried, frontier, frontier_of, judged
from orchestrator.analysis.own_networks import OwnNetworks
from orchestrator.report.tables.cascades import cascades_table
from orchestrator.run_folder.logits import read_logits, write_logits
from orchestrator.run_folder.trials_table import write_images
from tests.knowing_networks import knowing, rows_of, swept, write
from tests.report_rows import DENSE, result_of


def played(
    networks: OwnNetworks, members: tuple[int, ...], thresholds: tuple[float, ...]
) -> tuple[list[bool], list[int]]:
    """Whether each image is classified right, and after how many looks."""
    right, looks = [], []
    for image, label in enumerate(networks.labels):
        for number in range(len(members)):
            logits = [
                networks.logits[place][image].astype(float) for place in members[: number + 1]
            ]
            odds = np.prod([np.exp(each) / np.exp(each).sum() for each in logits], axis=0)
            odds = odds ** (1 / (number + 1))
            *_, second, first = sorted(odds / odds.sum())
            if number == len(thresholds) or first - second >= thresholds[number]:
                right.append(bool(odds.argmax() == label))
                looks.append(number + 1)
                break
    return right, looks


def cost_of(networks: OwnNetworks, members: tuple[int, ...], looks: list[int]) -> float:
    return float(np.mean([networks.costs[list(members[:each])].sum() for each in looks]))


@pytest.mark.parametrize("size", [2, 3])
def test_every_combination_of_thresholds_comes_to_what_it_does_image_by_image(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THRESHOLDS", 5)
    networks = knowing(30, 3)
    looks = _Looks(networks, range(3))
    for members in combinations(range(3), size):
        tried = _tried(looks, members)
        assert tried.accuracies.shape == tried.costs.shape == (5,) * (size - 1)
        for place in range(tried.accuracies.size):
            right, looked = played(networks, members, tried.thresholds(place))
            chosen = np.array(right)[networks.chooses]
            assert tried.accuracies.flat[place] == pytest.approx(chosen.mean())
            assert tried.costs.flat[place] == pytest.approx(cost_of(networks, members, looked))


def test_what_judges_a_cascade_runs_it_image_by_image() -> None:
    networks = knowing(40, 3)
    for thresholds in product((0.2, 0.6), (0.3, 0.8)):
        found = judged(networks, (0, 1, 2), thresholds, alone=1)
        right, looks = played(networks, (0, 1, 2), thresholds)
        judges = ~networks.chooses
        assert found.accuracy == pytest.approx(np.array(right)[judges].mean())
        assert found.chosen_by == pytest.approx(np.array(right)[networks.chooses].mean())
        assert found.multiplications == pytest.approx(cost_of(networks, (0, 1, 2), looks))
        assert found.reached == pytest.approx([np.mean(np.array(looks) > k) for k in range(3)])
        alone = (networks.logits[1].argmax(axis=1) == networks.labels)[judges]
        assert found.alone == "n1" and found.alone_accuracy == alone.mean()
        assert found.ahead == pytest.approx(100 * (np.array(right)[judges].mean() - alone.mean()))
        assert found.images == judges.sum() == 20


def test_the_frontier_is_what_no_cascade_and_no_network_beats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "THRESHOLDS", 4)
    networks = knowing(60, 3, seed=2)
    looks, points = _Looks(networks, range(3)), []
    for members in [*combinations(range(3), 2), (0, 1, 2)]:
        tried = _tried(looks, members)
        points += [*zip(tried.accuracies.ravel(), tried.costs.ravel(), strict=True)]
    alone = [*zip(networks.alone["val_accuracy"], networks.costs, strict=True)]

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            a >= point[0] and c <= point[1] and (a, c) != point for a, c in [*points, *alone]
        )

    expected = {each for each in points if not beaten(each) and each[1] <= DENSE}
    found = frontier(networks)
    assert set(zip(found["val_accuracy"], found["multiplications"], strict=True)) == expected
    assert found["multiplications"].is_monotonic_increasing and len(found) == len(expected)


class Told(nn.Module):
    """Gives stored logits of images that hold their own numbers."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits, self.seen = torch.from_numpy(logits), 0

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        self.seen += len(numbers)
        return self.logits[numbers[:, 0, 0, 0].long()]


def network_of(networks: Sequence[nn.Module], thresholds: tuple[float, ...]) -> CascadeNetwork:
    """As `own_cascade.built` makes it."""
    network = CascadeNetwork(networks).eval()
    network.thresholds.copy_(torch.tensor(thresholds))
    network.weights.copy_(1 / torch.arange(1, len(networks) + 1))
    return network


@pytest.mark.parametrize("members", [(0, 2), (0, 1, 2), (2, 0, 1)])
def test_a_cascade_network_answers_and_routes_as_the_analysis_says(
    members: tuple[int, ...],
) -> None:
    networks = knowing(400, 3, seed=4)
    numbers = torch.arange(400.0)[:, None, None, None]
    for _, each in frontier_of(networks, members).iloc[::5].iterrows():
        told = [Told(networks.logits[place]) for place in members]
        network = network_of(told, each["thresholds"])
        with torch.no_grad():
            answers = network(numbers).numpy()
        seen = [own.seen for own in told]
        found = judged(networks, members, each["thresholds"], alone=0)
        assert [count / 400 for count in seen] == list(found.reached)
        right = answers.argmax(axis=1) == networks.labels
        assert right[~networks.chooses].mean() == found.accuracy
        right_alone, looks = played(networks, members, each["thresholds"])
        assert right.tolist() == right_alone
        for image in range(0, 400, 37):  # the normalised mean of the log-probabilities
            logits = [torch.tensor(networks.logits[m][image]) for m in members[: looks[image]]]
            mean = torch.stack([own.log_softmax(dim=0) for own in logits]).mean(dim=0)
            np.testing.assert_allclose(answers[image], mean.log_softmax(dim=0), atol=1e-5)


def test_what_float16_leaves_of_real_networks_logits_routes_all_but_images_on_the_edge() -> None:
    whole, members = list(small_networks()), (0, 1, 2)
    given = images(300)
    with torch.no_grad():
        logits = [each.eval()(given).half().float().numpy() for each in whole]
    labels = np.random.default_rng(0).integers(3, size=300)
    rows = knowing(300, 3).rows
    networks = OwnNetworks(rows, logits, labels, np.ones(3, dtype=bool))
    thresholds = (0.55, 0.4)
    found = judged(networks, members, thresholds, alone=0)
    network = network_of(whole, thresholds)
    with torch.no_grad():
        answers = network(given)
    reached = [1.0, *_shares(network, given)]
    near = sum(
        (np.abs(_Looks(networks, members).after(members[:k]).margins - t) < 2e-3).mean()
        for k, t in enumerate(thresholds, 1)
    )
    assert found.reached == pytest.approx(reached, abs=near + 1e-9) and near < 0.02
    assert 0.1 < reached[2] < reached[1] < 0.9
    right = answers.argmax(dim=1).numpy() == labels
    assert right[~networks.chooses].mean() == pytest.approx(found.accuracy, abs=2 * near + 1e-9)


def _shares(network: CascadeNetwork, given: torch.Tensor) -> list[float]:
    """Of the images that come to the second look, and to the third."""
    with torch.no_grad():
        first = network.look(0, given).log_softmax(dim=1)
        unsure = network.confidences(first, given) < network.thresholds[0]
        second = network.averaged(1, first, network.look(1, given))
        further = unsure & (network.confidences(second, given) < network.thresholds[1])
    return [unsure.double().mean().item(), further.double().mean().item()]


def test_at_random_is_what_drawing_who_goes_on_comes_to() -> None:
    networks, members = knowing(600, 3, seed=3), (0, 1, 2)
    found = judged(networks, members, (0.5, 0.5), alone=0)
    looks, judges = _Looks(networks, members), ~networks.chooses
    right = np.stack([looks.after(members[: k + 1]).correct[judges] for k in range(3)])
    random = np.random.default_rng(0)
    drawn = random.random((4000, judges.sum()))
    last = sum((drawn < share).astype(int) for share in found.reached[1:])
    accuracies = np.take_along_axis(right, last, axis=0).mean(axis=1)
    assert found.at_random == pytest.approx(accuracies.mean(), abs=4 * accuracies.std() / 63)
    assert found.at_random < found.accuracy


@pytest.mark.parametrize("thresholds", [(np.inf, np.inf), (-1.0, 0.5)])
def test_where_all_or_none_go_on_random_decisions_are_the_same(
    thresholds: tuple[float, float],
) -> None:
    found = judged(knowing(200, 3), (0, 1, 2), thresholds, alone=0)
    assert found.at_random == pytest.approx(found.accuracy)


# Of a run folder


def test_the_frontier_is_ahead_of_the_networks_alone(tmp_path: Path) -> None:
    networks = knowing(4000, 6)
    result = swept(tmp_path, networks)
    ((_, found),) = OwnCascades(result).shown()
    assert 2 < len(found) <= MOST_SHOWN
    costs = [each.multiplications for each in found]
    assert costs == sorted(costs)
    assert all(each.images == 2000 for each in found)
    assert {len(each.networks) for each in found} <= {2, 3}
    assert all(each.alone_multiplications <= each.multiplications for each in found)
    assert np.median([each.ahead for each in found]) > 1
    assert np.median([each.accuracy - each.at_random for each in found]) > 0.01
    table = cascades_table(result, found)
    assert " → " in table.rows[0][table.header.index("networks, in turn")]
    assert " ± " in table.rows[0][table.header.index("points ahead")]
    assert table.rows[0][table.header.index("at random")] == f"{found[0].at_random:.3f}"


def test_thresholds_are_judged_on_images_that_did_not_choose_them(tmp_path: Path) -> None:
    """Of networks that know nothing none is better than chance, but for luck that chose."""
    found = []
    for seed in range(8):
        result = swept(tmp_path / str(seed), knowing(400, 6, seed=seed, blind=True))
        found += [each for _, own in OwnCascades(result).shown() for each in own]
    deviation = (0.25 * 0.75 / 200) ** 0.5
    assert max(each.chosen_by for each in found) > 0.25 + deviation
    assert max(abs(each.accuracy - 0.25) for each in found) < 4 * deviation
    assert abs(np.mean([each.accuracy for each in found]) - 0.25) < deviation


def test_networks_that_decide_per_image_or_left_no_logits_are_left_out(tmp_path: Path) -> None:
    networks = knowing(200, 2)
    result = result_of(tmp_path, rows_of(networks))
    assert OwnCascades(result).shown() == []
    write(tmp_path, networks)
    assert len(OwnCascades(result).shown()) == 1
    write_images(tmp_path, "n1", ["a"], [True], [10])
    assert OwnCascades(result).shown() == []


def test_networks_that_were_judged_on_other_images_are_not_combined(tmp_path: Path) -> None:
    networks = knowing(200, 2)
    result = swept(tmp_path, networks)
    fewer = torch.from_numpy(networks.logits[1][:100]), torch.tensor(networks.labels[:100])
    write_logits(tmp_path / "logits" / "n1.safetensors", *fewer)
    assert OwnCascades(result).shown() == []


def test_logits_are_kept_as_they_are_but_for_rounding(tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, -2.5, 1e6], [0.1, 0.2, 0.3]])
    write_logits(tmp_path / "a.safetensors", logits, torch.tensor([2, 0]))
    found, labels = read_logits(tmp_path / "a.safetensors")
    assert labels.tolist() == [2, 0] and found[0].tolist() == [1.0, -2.5, 65504.0]
    np.testing.assert_allclose(found[1], logits[1], rtol=1e-3)


def test_a_hundred_networks_take_seconds(tmp_path: Path) -> None:
    result = swept(tmp_path, knowing(2000, 100, classes=10))
    begun = time.process_time()
    assert OwnCascades(result).shown()
    assert time.process_time() - begun < 8
