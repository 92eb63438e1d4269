"""Cascades of a sweep's own networks: what they come to, against a run image by image."""

import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.analysis import cascades as module
from orchestrator.analysis.cascades import _judged, _log_softmax, _Networks, _tried, cascades
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report.tables.cascades import cascades_table
from orchestrator.run_folder.logits import read_logits, write_logits
from orchestrator.run_folder.trials_table import write_images
from tests.report_rows import result_of, trial


def drawn(n: int, networks: int, classes: int = 4, seed: int = 0) -> _Networks:
    """Networks that know more the more they cost."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    logits = random.normal(size=(networks, n, classes))
    for number in range(networks):
        logits[number, np.arange(n), labels] += 0.5 + 2.0 * (number + 1) / networks
    costs = np.linspace(10, 100, networks)
    return _Networks([f"n{k}" for k in range(networks)], costs, _log_softmax(logits), labels)


def played(
    networks: _Networks, members: tuple[int, ...], thresholds: tuple[float, ...]
) -> tuple[float, float]:
    """Accuracy and mean cost, image by image."""
    right, spent = 0, 0.0
    for image, label in enumerate(networks.labels):
        for number, place in enumerate(members):
            spent += networks.costs[place]
            product_ = np.prod(np.exp(networks.answers[list(members[: number + 1]), image]), axis=0)
            odds = product_ ** (1 / (number + 1))
            *_, second, first = sorted(odds / odds.sum())
            if number == len(thresholds) or first - second >= thresholds[number]:
                right += int(odds.argmax() == label)
                break
    n = len(networks.labels)
    return right / n, spent / n


@pytest.mark.parametrize("size", [2, 3])
def test_every_combination_of_thresholds_comes_to_what_it_does_image_by_image(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THRESHOLDS", 5)
    networks = drawn(30, 3)
    for members in combinations(range(3), size):
        tried = list(_tried(networks, members))
        assert len(tried) == 5 ** (size - 1)
        for each in tried:
            expected = played(networks, members, each["thresholds"])  # type: ignore[arg-type]
            assert (each["val_accuracy"], each["multiplications"]) == pytest.approx(expected)


def test_what_judges_a_cascade_runs_it_image_by_image() -> None:
    networks = drawn(40, 3)
    for thresholds in product((0.2, 0.6), (0.3, 0.8)):
        found = _judged(networks, (0, 1, 2), thresholds)
        assert (found["val_accuracy"], found["multiplications"]) == pytest.approx(
            played(networks, (0, 1, 2), thresholds)
        )
        alone = (networks.answers.argmax(axis=2) == networks.labels).mean(axis=1)
        no_dearer = networks.costs <= found["multiplications"]
        assert found["best_alone"] == alone[no_dearer].max()


def folder_of(path: Path, networks: _Networks) -> None:
    for place, name in enumerate(networks.trial_ids):
        logits = torch.from_numpy(networks.answers[place])
        write_logits(path / "logits" / f"{name}.safetensors", logits, torch.tensor(networks.labels))


def swept(path: Path, networks: _Networks) -> SweepResult:
    rows = [
        trial("vanilla", 0.5, cost / 100, trial_id=name)
        for name, cost in zip(networks.trial_ids, networks.costs, strict=True)
    ]
    folder_of(path, networks)
    return result_of(path, rows)


def test_the_frontier_is_ahead_of_the_networks_alone(tmp_path: Path) -> None:
    networks = drawn(4000, 6)
    result = swept(tmp_path, networks)
    found = cascades(result)
    assert 2 < len(found) <= module.MOST_SHOWN
    assert found["multiplications"].is_monotonic_increasing
    assert (found["judged"] == 2000).all()
    assert {len(each) for each in found["networks"]} <= {2, 3}
    assert (found["val_accuracy"] - found["best_alone"]).median() > 0.01
    table = cascades_table(result, found)
    assert " → " in table.rows[0][table.header.index("networks, in turn")]


def test_thresholds_are_judged_on_images_that_did_not_choose_them(tmp_path: Path) -> None:
    """Of networks that know nothing none is better than chance, but for luck that chose."""
    networks = drawn(400, 6, seed=1)
    blind = np.random.default_rng(5).permutation(networks.labels)
    result = swept(tmp_path, _Networks(networks.trial_ids, networks.costs, networks.answers, blind))
    found = cascades(result)
    deviation = (0.25 * 0.75 / 200) ** 0.5
    assert (found["val_accuracy"] - 0.25).abs().max() < 4 * deviation


def test_networks_that_decide_per_image_or_left_no_logits_are_left_out(tmp_path: Path) -> None:
    networks = drawn(200, 2)
    rows = [trial("vanilla", 0.5, 0.1, trial_id="n0"), trial("rnp", 0.5, 0.2, trial_id="n1")]
    result = result_of(tmp_path, rows)
    assert cascades(result).empty
    folder_of(tmp_path, networks)
    assert len(cascades(result))
    write_images(tmp_path, "n1", ["a"], [True], [10])
    assert cascades(result).empty


def test_networks_that_were_judged_on_other_images_are_not_combined(tmp_path: Path) -> None:
    networks = drawn(200, 2)
    result = swept(tmp_path, networks)
    fewer = torch.from_numpy(networks.answers[1, :100]), torch.tensor(networks.labels[:100])
    write_logits(tmp_path / "logits" / "n1.safetensors", *fewer)
    assert cascades(result).empty


def test_logits_are_kept_as_they_are_but_for_rounding(tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, -2.5, 1e6], [0.1, 0.2, 0.3]])
    write_logits(tmp_path / "a.safetensors", logits, torch.tensor([2, 0]))
    found, labels = read_logits(tmp_path / "a.safetensors")
    assert labels.tolist() == [2, 0] and found[0].tolist() == [1.0, -2.5, 65504.0]
    np.testing.assert_allclose(found[1], logits[1], rtol=1e-3)


def test_a_hundred_networks_take_seconds(tmp_path: Path) -> None:
    result = swept(tmp_path, drawn(2000, 100, classes=10))
    begun = time.process_time()
    assert len(cascades(result))
    assert time.process_time() - begun < 15
