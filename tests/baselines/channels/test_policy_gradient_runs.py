"""Runs of policy-gradient pruning: their images, epochs, reports, stops and refusals."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import baselines.channels.policy_gradient
from baselines import PolicyGradient
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import example_images
from baselines.channels.contributions import Sampler
from baselines.channels.policy_gradient import POSITIONS, REFITTED_ON, epochs_by
from baselines.channels.refit import Refit
from baselines.channels.reward_evaluation import evaluation_of_masks
from orchestrator.jobs.work import Workplace, obtain_dense, run_trial
from orchestrator.plan import Trial, dense_network
from orchestrator.sweep_file import Resources
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Images, load_splits
from testbed.held_back import divided
from testbed.method import Judge, judged_on
from testbed.network_file import load_network
from testbed.prediction import evaluate
from testbed.training import Training, ignore, train

CPU = torch.device("cpu")


def pixels_of(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.pixels}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_held_back_images_are_the_validation_images_that_give_no_rewards(share: float) -> None:
    data = tiny.splits(n_validation=60)
    rewarding, held_back = divided(data, share, "reward_share")
    assert len(rewarding) == round(share * 60)
    assert not pixels_of(rewarding) & pixels_of(held_back.validation)
    assert pixels_of(rewarding) | pixels_of(held_back.validation) == pixels_of(data.validation)
    assert rewarding.labels.bincount().tolist() == [len(rewarding) // 3] * 3  # classes alike
    assert held_back.train is data.train
    again = PolicyGradient(reward_share=share).held_back(data)
    assert torch.equal(again.validation.pixels, held_back.validation.pixels)
    assert judged_on(PolicyGradient(reward_share=share), data).validation.labels.equal(
        held_back.validation.labels
    )


def test_only_reward_images_decide_and_only_held_back_ones_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, method = tiny.splits(), PolicyGradient(steps=5)
    rewarding, held_back = divided(data, method.reward_share, "reward_share")
    spoilt = torch.randint_like(held_back.validation.pixels, 256)
    seen: list[set[bytes]] = []
    real = baselines.channels.policy_gradient.evaluation_of_masks

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(pixels_of(arguments[3]))
        return real(*arguments, **options)

    monkeypatch.setattr(baselines.channels.policy_gradient, "evaluation_of_masks", spy)
    reports: list[Mapping[str, float]] = []
    network = method.prune(tiny.trained(), data, tiny.run(3, reports=reports))
    assert len(seen) == 4 and seen[:2] == seen[2:]  # of each layer: to learn from, to choose by
    assert seen[0] == pixels_of(rewarding)
    assert seen[1] < pixels_of(data.train) and len(seen[1]) == 2 * len(rewarding) == 48
    accuracy = evaluate(network, held_back.validation, data, device=CPU, precision="float32")
    assert [r["val_accuracy"] for r in reports if "epoch" in r][-1] == accuracy
    # With other held-back images the same network comes out.
    pixels = data.validation.pixels.clone(memory_format=torch.preserve_format)
    for place, image in enumerate(data.validation.pixels):
        if image.numpy().tobytes() not in pixels_of(rewarding):
            pixels[place] = spoilt[place % len(spoilt)]
    other = replace(data, validation=Images(pixels, data.validation.labels))
    same = method.prune(tiny.trained(), other, tiny.run(3))
    assert all(torch.equal(same.state_dict()[k], v) for k, v in network.state_dict().items())


def test_the_mask_that_is_kept_is_chosen_on_images_that_no_agent_learnt_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Channels 0 to 3 matter where agents learn; on the images to choose by it is 0 alone."""
    learnt: list[list[float]] = []
    training = pixels_of(tiny.splits().train)

    def judge(*arguments: Any, **_: Any) -> Any:
        needed = slice(1) if pixels_of(arguments[3]) <= training else slice(4)

        def evaluate(masks: Tensor) -> list[float]:
            return masks[:, needed].double().mean(dim=1).tolist()

        evaluate.images_per_mask = 1  # type: ignore[attr-defined]
        return evaluate

    def learn(filters: Tensor, reward: Any, *_: Any) -> Tensor:
        masks = torch.arange(len(filters)) < torch.tensor([[4], [1], [len(filters)]])
        learnt.append(reward(masks).tolist())
        return masks

    monkeypatch.setattr(baselines.channels.policy_gradient, "evaluation_of_masks", judge)
    monkeypatch.setattr(baselines.channels.policy_gradient, "learn", learn)
    network = tiny.trained()
    method = PolicyGradient(layers="one", layer="conv2", drop_bound=10)
    pruned = method.prune(network, tiny.splits(), tiny.run(0))
    kept = torch.isin(network.conv2.weight[:, 0, 0, 0], pruned.conv2.weight[:, 0, 0, 0])
    assert kept.nonzero().flatten().tolist() == [0]
    assert learnt[0][1] < learnt[0][2] < learnt[0][0]


@pytest.mark.parametrize("refit", [True, False])
def test_the_layers_that_read_what_goes_are_refitted_as_they_were_for_the_mask(
    refit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(filters: Tensor, *_: Any) -> Tensor:
        return torch.arange(len(filters))[None] != 2

    monkeypatch.setattr(baselines.channels.policy_gradient, "learn", learn)
    network, data, run = tiny.trained().eval(), tiny.splits(), tiny.run(0)
    method = PolicyGradient(layers="one", layer="conv1", drop_bound=90, refit=refit)
    pruned = method.prune(network, data, run)
    expected = copy.deepcopy(network)
    if refit:
        group = channel_groups(network, example_images(data, CPU))["conv1"]
        sampler = Sampler.of_run(network, data, run, REFITTED_ON, POSITIONS)
        generator = torch.Generator().manual_seed(0)
        images = sampler.drawn(generator)
        Refit(network, {"conv1": group}, sampler, images, generator)(expected, {"conv1": [2]})
        assert not torch.equal(expected.conv2.weight, network.conv2.weight)
    left = expected.conv2.weight[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(pruned.conv2.weight, left)


class StoppedError(Exception):
    """Stands for whatever stops a process."""


@pytest.mark.parametrize("stopped_in_layer", [1, 2, 3])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(
    stopped_in_layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = PolicyGradient(steps=15, drop_bound=10)
    whole = method.prune(tiny.trained(), tiny.splits(), tiny.run(3))
    real_learn, learnt = baselines.channels.policy_gradient.learn, []

    def stop(*arguments: Any) -> Any:
        if len(learnt) == stopped_in_layer - 1:
            raise StoppedError
        learnt.append(real_learn(*arguments))
        return learnt[-1]

    first, second = tiny.run(3), tiny.run(3)
    first.folder = second.folder = tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(baselines.channels.policy_gradient, "learn", stop)
        if stopped_in_layer < 3:
            with pytest.raises(StoppedError):
                method.prune(tiny.trained(), tiny.splits(), first)
        else:
            method.prune(tiny.trained(), tiny.splits(), first)  # stopped after its last layer
    learnt.clear()

    def count(*arguments: Any) -> Any:
        learnt.append(real_learn(*arguments))
        return learnt[-1]

    monkeypatch.setattr(baselines.channels.policy_gradient, "learn", count)
    network = method.prune(tiny.trained(), tiny.splits(), second)
    assert len(learnt) == 3 - stopped_in_layer, "layers that were done are not learnt again"
    assert network.conv1.out_channels < 6  # so that the checkpoint's network is a smaller one
    assert all(torch.equal(network.state_dict()[k], v) for k, v in whole.state_dict().items())
    assert second.epochs_spent == 3
    layers = [report["layer"] for report in second.reported if "layer" in report]
    assert layers == [1, 2]


def test_each_layer_reports_what_it_kept_and_is_fine_tuned() -> None:
    reports: list[Mapping[str, float]] = []
    run = tiny.run(3, reports=reports)
    network = PolicyGradient(steps=10, drop_bound=20).prune(tiny.trained(), tiny.splits(), run)
    layers = [report for report in reports if "layer" in report]
    assert [report["layer"] for report in layers] == [1, 2]
    for name, report, channels in (("conv1", layers[0], 6), ("conv2", layers[1], 8)):
        kept = report[f"channels_kept.{name}"]
        assert kept == network.get_submodule(name).out_channels < channels
        assert report[f"channels_pruned.{name}"] == channels - kept
    kinds = ["epoch" if "epoch" in r else "layer" for r in reports if {"epoch", "layer"} & r.keys()]
    assert kinds == ["epoch", "layer", "epoch", "epoch", "layer"]


def test_half_of_the_epochs_are_spread_over_the_layers_and_the_others_one_schedule() -> None:
    assert [epochs_by(layer, 5, 16) for layer in range(1, 6)] == [2, 4, 6, 8, 16]
    assert [epochs_by(layer, 4, 3) for layer in range(1, 5)] == [0, 0, 1, 3]
    assert epochs_by(1, 1, 7) == 7


def test_early_stopping_looks_only_where_every_layer_is_pruned() -> None:
    looks: list[tuple[int, float]] = []
    run = tiny.run(4)
    run.judge = Judge((1, 2, 3, 4), lambda rung, costs: looks.append((rung, costs["parameters"])))
    network = PolicyGradient(steps=10, drop_bound=20).prune(tiny.trained(), tiny.splits(), run)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert looks == [(3, parameters), (4, parameters)]


def test_passes_for_rewards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        evaluation = evaluation_of_masks(*arguments, **options)
        norms_above = arguments[2] == "conv1"

        def evaluate_and_count(masks: Tensor) -> Any:
            seen.append(len(masks) * (len(arguments[3]) + norms_above * len(arguments[4])))
            return evaluation(masks)

        evaluate_and_count.images_per_mask = evaluation.images_per_mask  # type: ignore[attr-defined]
        return evaluate_and_count

    monkeypatch.setattr(baselines.channels.policy_gradient, "evaluation_of_masks", counting)
    reports: list[Mapping[str, float]] = []
    run = tiny.run(2, reports=reports)
    PolicyGradient(steps=5).prune(tiny.trained(), tiny.splits(), run)
    said = sum(report.get("reward_epochs", 0) for report in reports)
    assert said == pytest.approx(sum(seen) / len(tiny.splits().train)) and said > 0


def test_layers_are_pruned_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(4, 3)
            self.upper = nn.Conv2d(5, 4, 3, padding=1)
            self.lower = nn.Conv2d(2, 5, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            inner = self.upper(self.lower(images).relu()).relu()
            logits: Tensor = self.classifier(inner.amax(dim=(2, 3)))
            return logits

    torch.manual_seed(0)
    network, data = Backwards(), tiny.splits()
    train(network, data, tiny.LEARNING, seed=0, device=CPU)
    reports: list[Mapping[str, float]] = []
    PolicyGradient(steps=2).prune(network, data, tiny.run(0, reports=reports))
    layers = [report for report in reports if "layer" in report]
    assert "channels_kept.lower" in layers[0] and "channels_kept.upper" in layers[1]


def test_one_layer_alone_is_pruned_where_one_is_asked_for() -> None:
    run, method = tiny.run(2), PolicyGradient(steps=10, layers="one", layer="conv2", drop_bound=20)
    network = method.prune(tiny.trained(), tiny.splits(), run)
    assert network.conv1.out_channels == 6 and network.conv2.out_channels < 8
    assert run.epochs_spent == 2


class EveryChannelCounts:
    """Stands for an evaluation of masks."""

    images_per_mask = 1

    def __call__(self, masks: Tensor) -> list[float]:
        return masks.double().mean(dim=1).tolist()


@pytest.fixture
def every_channel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        baselines.channels.policy_gradient,
        "evaluation_of_masks",
        lambda *_, **__: EveryChannelCounts(),
    )


@pytest.mark.usefixtures("every_channel_counts")
def test_where_nothing_may_be_lost_it_fails_and_says_what_to_do() -> None:
    method = PolicyGradient(drop_bound=1e-9, steps=1)
    with pytest.raises(ValueError, match=r"Nothing was removed: .* conv1, conv2. Raise drop_bound"):
        method.prune(tiny.trained(), tiny.splits(), tiny.run(0))


@pytest.mark.usefixtures("every_channel_counts")
def test_that_one_layer_can_spare_nothing_is_an_answer() -> None:
    reports: list[Mapping[str, float]] = []
    method = PolicyGradient(drop_bound=1e-9, steps=1, layers="one", layer="conv2")
    network = method.prune(tiny.trained(), tiny.splits(), tiny.run(1, reports=reports))
    assert network.conv2.out_channels == tiny.trained().conv2.out_channels
    assert [r["channels_pruned.conv2"] for r in reports if "layer" in r] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_bound": 0.0}, "greater than 0"),
        ({"drop_bound": -1.0}, "greater than 0"),
        ({"drop_bound": float("inf")}, "finite"),
        ({"samples": 1}, "greater than or equal to 2"),
        ({"reward_share": 0.0}, "greater than 0"),
        ({"reward_share": 1.0}, "less than 1"),
        ({"layers": "one"}, "give layer, the name of one"),
        ({"layer": "conv1"}, "give layer, the name of one"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PolicyGradient(**options)


def test_a_dense_network_no_better_than_chance_is_refused_before_any_work() -> None:
    run = tiny.run(3)
    with pytest.raises(
        ValueError, match=r"no better than chance: of 24 .*commonest class 3[0-9.]+%"
    ):
        PolicyGradient().prune(tiny.network(), tiny.splits(), run)
    assert run.epochs_spent == 0


def test_validation_images_that_cannot_be_divided_are_refused() -> None:
    for share in (0.001, 0.999):  # none and all of them
        method = PolicyGradient(reward_share=share)
        with pytest.raises(ValueError, match="of 48 validation images"):
            method.prune(tiny.trained(), tiny.splits(), tiny.run(1))
        with pytest.raises(ValueError, match="of 48 validation images"):
            method.check_network(tiny.trained(), tiny.splits())


def test_an_unknown_layer_is_answered_with_those_that_there_are() -> None:
    method = PolicyGradient(layers="one", layer="conv3")
    with pytest.raises(ValueError, match=r"unknown prunable layer 'conv3'.*conv1, conv2"):
        method.prune(tiny.trained(), tiny.splits(), tiny.run(1))


@pytest.mark.parametrize("narrow", ["conv1", "conv2"])
def test_a_layer_of_one_channel_stays(narrow: str) -> None:
    data = tiny.splits(384, 192)
    channels = (1, 8) if narrow == "conv1" else (6, 1)
    torch.manual_seed(0)
    network: Any = build_backbone("conv", (2, 8, 8), 3, channels=channels, hidden=10)
    train(network, data, tiny.LEARNING, seed=0, device=CPU)
    smaller = PolicyGradient(steps=10, drop_bound=20).prune(network, data, tiny.run(1))
    assert smaller.get_submodule(narrow).out_channels == 1
    other = "conv2" if narrow == "conv1" else "conv1"
    assert smaller.get_submodule(other).out_channels < network.get_submodule(other).out_channels


def test_a_sweeps_row_is_of_the_held_back_images(tmp_path: Path) -> None:
    data = DataOptions(name="digits", train_images=400, validation_share=0.25)
    workplace = Workplace(tmp_path, tmp_path / "dense", tmp_path, Resources())
    splits = load_splits(data, tmp_path, seed=0)
    training = Training(epochs=8, batch_size=32, learning_rate=0.1)
    permissive = {"steps": 10, "drop_bound": 100.0, "reward_share": 0.4}
    rows = {}
    for method, options in (("dense", {}), ("policy_gradient", permissive)):
        trial = Trial(
            trial_id=method,
            study=method,
            cell="all",
            method=method,
            options=options,
            data=data,
            backbone="conv",
            backbone_options={"depth": 4, "width": 0.25},
            training=training,
            fine_tuning=training.model_copy(update={"epochs": 1}),
            seed=0,
        )
        rows[method] = run_trial(trial, splits, workplace, ignore).row
    row = rows["dense"]
    assert (row["validation_images"], row["reward_images"]) == (100, 0)
    row = rows["policy_gradient"]
    assert row["status"] == "completed", row["error"]
    assert (row["validation_images"], row["reward_images"]) == (60, 40)
    dense = build_backbone("conv", splits.input_shape, 10, depth=4, width=0.25)
    network = load_network(workplace.network("policy_gradient"), dense)
    held_back = PolicyGradient(reward_share=0.4).held_back(splits)
    assert row["val_accuracy"] == evaluate(network, held_back.validation, splits, device=CPU)
    trained, record = obtain_dense(dense_network(trial), splits, workplace)
    expected = evaluate(trained, held_back.validation, splits, device=CPU)
    assert row["dense_val_accuracy"] == expected
    assert rows["dense"]["dense_val_accuracy"] == record.history[-1]["val_accuracy"] != expected
