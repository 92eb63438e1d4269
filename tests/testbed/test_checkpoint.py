"""A method's checkpoint: what it brings back, and whose."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch

from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import remove_channels
from baselines.channels.l1_filter import L1Filter
from testbed.checkpoint import Checkpoint
from testbed.method import Run


def run_in(
    folder: Path,
    epochs: int = 3,
    seed: int = 0,
    reports: list[Mapping[str, float]] | None = None,
) -> Run:
    run = tiny.run(epochs, seed, reports)
    run.folder = folder
    return run


def test_network_budget_and_step_come_back(tmp_path: Path) -> None:
    run, data, network = run_in(tmp_path), tiny.splits(), tiny.network()
    run.fine_tune(network, data, 2)
    Checkpoint(L1Filter(), tiny.network(), data, run).save(5, network)
    later = run_in(tmp_path)
    found = tiny.network()
    assert Checkpoint(L1Filter(), tiny.network(), data, later).load(found) == 5
    assert later.epochs_spent == 2
    assert all(torch.equal(found.state_dict()[k], v) for k, v in network.state_dict().items())


def test_a_network_that_lost_channels_comes_back_as_small_as_it_was(tmp_path: Path) -> None:
    data, example = tiny.splits(), torch.zeros(2, 2, 8, 8)
    groups = channel_groups(tiny.network(), example, flat_linear=True)
    network = remove_channels(tiny.network(), example, groups, {"conv1": [1], "hidden": [0, 2]})
    Checkpoint(L1Filter(), tiny.network(), data, run_in(tmp_path)).save(0, network)
    found = tiny.network()
    assert Checkpoint(L1Filter(), tiny.network(), data, run_in(tmp_path)).load(found) == 0
    assert (found.conv1.out_channels, found.norm1.num_features, found.conv2.in_channels) == (5,) * 3
    assert found.hidden.out_features == found.classifier.in_features == 8
    assert all(torch.equal(found.state_dict()[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("fine_tuned_before", [True, False])
def test_the_accuracy_before_fine_tuning_is_that_of_a_run_without_a_stop(
    tmp_path: Path, fine_tuned_before: bool
) -> None:
    data, network = tiny.splits(), tiny.network()
    first: list[Mapping[str, float]] = []
    run = run_in(tmp_path, reports=first)
    if fine_tuned_before:
        run.fine_tune(network, data, 1)
    Checkpoint(L1Filter(), tiny.network(), data, run).save(0, network)
    run.fine_tune(network, data)

    again: list[Mapping[str, float]] = []
    later, found = run_in(tmp_path, reports=again), tiny.network()
    Checkpoint(L1Filter(), tiny.network(), data, later).load(found)
    later.fine_tune(found, data)

    name = "val_accuracy_before_finetuning"
    reported, reported_again = (
        [values[name] for values in reports if name in values] for reports in (first, again)
    )
    assert reported == reported_again
    assert len(reported) == 1


@pytest.mark.parametrize("other", ["options", "seed", "budget", "data", "network"])
def test_a_checkpoint_of_something_else_is_not_taken(tmp_path: Path, other: str) -> None:
    run, data = run_in(tmp_path), tiny.splits()
    Checkpoint(L1Filter(), tiny.network(), data, run).save(1, tiny.network())
    method = L1Filter(rounds=2) if other == "options" else L1Filter()
    dense = tiny.network()
    if other == "network":
        dense.conv1.weight.data[0, 0, 0, 0] += 1
    if other == "data":
        data = tiny.splits(n_train=90)
    later = run_in(tmp_path, epochs=4 if other == "budget" else 3, seed=int(other == "seed"))
    before = dense.state_dict()["conv1.weight"].clone()
    assert Checkpoint(method, dense, data, later).load(dense) == -1
    assert later.epochs_spent == 0 and torch.equal(dense.state_dict()["conv1.weight"], before)


def test_a_damaged_checkpoint_and_none_at_all_start_anew(tmp_path: Path) -> None:
    run, data = run_in(tmp_path), tiny.splits()
    checkpoint = Checkpoint(L1Filter(), tiny.network(), data, run)
    assert checkpoint.load(tiny.network()) == -1
    checkpoint.save(1, tiny.network())
    file = tmp_path / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint.load(tiny.network()) == -1


def test_a_checkpoint_that_lacks_what_networks_now_have_is_not_taken(tmp_path: Path) -> None:
    data, older, dense = tiny.splits(), tiny.network(), tiny.network()
    del older.classifier.bias
    Checkpoint(L1Filter(), dense, data, run_in(tmp_path)).save(1, older)
    assert Checkpoint(L1Filter(), dense, data, run_in(tmp_path)).load(tiny.network()) == -1


def test_a_run_without_a_folder_keeps_nothing(tmp_path: Path) -> None:
    run = tiny.run(3)
    checkpoint = Checkpoint(L1Filter(), tiny.network(), tiny.splits(), run)
    checkpoint.save(1, tiny.network())
    assert checkpoint.load(tiny.network()) == -1
