"""Class statistics: an analysis of variance of each channel, on images and on signals."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from small_networks import Net, conv
from torch import Tensor, nn

from baselines import ClassStatistics
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import example_images
from baselines.channels.class_statistics import BetweenClasses, between_classes
from baselines.channels.contributions import Sampler
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.trials_table import read_trials
from sweeps.own_signals import SignalNet, chirps
from testbed.cost import count_multiplications
from testbed.data import Splits, load_splits

PROJECT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def share(responses: Tensor, labels: Tensor) -> Tensor:
    """As `BetweenClasses` has it of responses that come in two parts."""
    found = BetweenClasses(int(labels.max()) + 1, responses.shape[1])
    for part in (slice(None, 7), slice(7, None)):
        found.add(responses[part], labels[part])
    return found.share()


def f_of(eta_squared: Tensor, n: int, classes: int) -> Tensor:
    return eta_squared / (1 - eta_squared) * (n - classes) / (classes - 1)


def responses(n: int = 60, channels: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Means that differ between classes the more, the higher the channel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    noise = torch.randn(n, channels, generator=generator)
    return noise + 0.3 * labels[:, None] * torch.arange(channels), labels


def test_the_share_is_that_of_scipys_analysis_of_variance() -> None:
    values, labels = responses()
    found = f_of(share(values, labels), len(values), 3)
    by_class = [values[labels == label].double().numpy() for label in range(3)]
    np.testing.assert_allclose(found.numpy(), stats.f_oneway(*by_class).statistic, rtol=1e-9)


def test_of_two_classes_f_is_the_square_of_students_t() -> None:
    values, labels = responses(classes=2)
    t = stats.ttest_ind(*(values[labels == label].double().numpy() for label in range(2)))
    found = f_of(share(values, labels), len(values), 2)
    np.testing.assert_allclose(found.numpy(), t.statistic**2, rtol=1e-9)


def test_scaling_and_shifting_responses_changes_nothing() -> None:
    values, labels = responses()
    torch.testing.assert_close(share(-30 * values.double() + 500, labels), share(values, labels))


def test_of_labels_that_mean_nothing_alpha_of_the_channels_seem_to_differ() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(300, 2000, generator=generator)
    labels = torch.randint(10, (300,), generator=generator)
    f = f_of(share(values, labels), 300, 10)
    assert f.mean().item() == pytest.approx(290 / 288, abs=0.05)  # the mean of the F distribution
    p = stats.f.sf(f.numpy(), 9, 290)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_a_channel_that_never_changes_gets_nothing_and_one_that_is_the_class_all() -> None:
    labels = torch.arange(30) % 3
    values = torch.stack([torch.full((30,), 0.1), 7.0 * labels - 2], dim=1)
    assert share(values, labels).tolist() == pytest.approx([0, 1])


def scores(model: nn.Module, data: Splits) -> dict[str, Tensor]:
    sampler = Sampler(data, CPU, "float32", torch.contiguous_format, len(data.train), 0)
    groups = channel_groups(model, example_images(data, CPU), scope="all")
    return between_classes(model, groups, sampler, data.train)


def test_responses_are_the_means_of_maps_as_the_next_layer_reads_them() -> None:
    model, data = tiny.trained(), tiny.splits()
    seen: dict[str, Tensor] = {}
    for name in ("conv2", "hidden"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]})
        )
    with torch.no_grad():
        model.eval()(data.normalised(data.train)[:])
    means = {"conv1": seen["conv2"].mean(dim=(2, 3))}
    means["conv2"] = seen["hidden"].unflatten(1, (8, -1)).mean(dim=2)
    found = scores(model, data)
    assert found.keys() == means.keys()
    for name, values in means.items():
        torch.testing.assert_close(found[name], share(values, data.train.labels), atol=1e-6, rtol=0)


def test_of_several_readers_the_shares_are_averaged() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        return net.head(net.one(x.relu()).mean((2, 3)) + net.two((-x).relu()).mean((2, 3)))

    torch.manual_seed(0)
    model = Net(forward, first=conv(2, 4), one=conv(4, 3), two=conv(4, 3), head=nn.Linear(3, 3))
    data = tiny.splits()
    with torch.no_grad():
        maps = model.first(data.normalised(data.train)[:])
    labels = data.train.labels
    one, two = (share(each.relu().mean((2, 3)), labels) for each in (maps, -maps))
    torch.testing.assert_close(scores(model, data)["first"], (one + two) / 2, atol=1e-6, rtol=0)


def test_the_channels_that_differ_least_between_classes_go() -> None:
    model, data = tiny.trained(), tiny.splits()
    kept = scores(model, data)["conv1"].topk(3).indices.sort().values
    reports: list = []
    pruned = ClassStatistics().prune(model, data, tiny.run(0, reports=reports))
    assert torch.equal(pruned.get_parameter("conv1.weight"), model.conv1.weight[kept])
    assert reports[0] == {"statistics_epochs": 1.0}


def test_half_the_images_are_half_an_epoch() -> None:
    reports: list = []
    ClassStatistics(images=48).prune(tiny.trained(), tiny.splits(), tiny.run(0, reports=reports))
    assert reports[0] == {"statistics_epochs": 0.5}


def test_too_few_images_for_the_classes_are_refused_before_any_work() -> None:
    method = ClassStatistics(images=5)
    with pytest.raises(ValueError, match=r"2 images at least of each of 3 classes.*got 5 images"):
        method.check_network(tiny.network(), tiny.splits())
    run = tiny.run(1)
    with pytest.raises(ValueError, match="Ask for more images"):
        method.prune(tiny.network(), tiny.splits(), run)
    assert run.reported == []


def test_a_network_on_signals_loses_channels_of_its_1d_convs() -> None:
    data = load_splits("sweeps.own_signals:chirps", Path("data"), seed=0)
    assert data.input_shape == (2, 1, 64)
    torch.manual_seed(0)
    model = SignalNet(2, 3, 8)
    pruned = ClassStatistics(keep_ratio=0.5, images=300).prune(model, data, tiny.run(0))
    signals = data.normalised(data.validation)[:2]
    costs = [count_multiplications(each, signals).multiplications for each in (model, pruned)]
    # 9 x 64 of conv1, 5 x 32 of conv2, 5 x 16 of conv3, and the classifier
    assert costs[0] == 576 * 2 * 8 + 160 * 8 * 16 + 80 * 16 * 16 + 16 * 3
    assert costs[1] == 576 * 2 * 4 + 160 * 4 * 8 + 80 * 8 * 8 + 8 * 3


def test_signals_are_told_by_their_course_not_by_their_strength() -> None:
    drawn = chirps(Path("nowhere"))
    assert drawn["x_train"].shape == (900, 1, 64, 2)
    assert all(np.array_equal(drawn[key], value) for key, value in chirps(Path("else")).items())
    strength = drawn["x_train"].astype(float).std(axis=(1, 2, 3))
    means = [strength[drawn["y_train"] == label].mean() for label in range(3)]
    assert max(means) < 1.05 * min(means)


def test_the_shipped_sweep_on_signals_prunes_the_network_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["training.epochs=1", "methods.class_statistics.keep_multiplications=0.3"]
    overrides = [word for setting in quick for word in ("--set", setting)]
    monkeypatch.chdir(PROJECT)
    given = ["sweeps/own_signals.yaml", "--only", "class_statistics", "--output", str(tmp_path)]
    assert trial_main([*given, *overrides]) == 0
    (row,) = read_trials(tmp_path / "own_signals" / "trials.csv").to_dict("records")
    assert row["multiplications"] / row["dense_multiplications"] == pytest.approx(0.3, rel=0.03)
    assert row["statistics_epochs"] == 1
