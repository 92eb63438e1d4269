"""What every method in the registry keeps to. Registering a method tests it."""

import copy
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import testbed.data
import testbed.method
import testbed.training
import testbed.training_checkpoint
from orchestrator.methods import METHODS, method_class
from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, count_parameters
from testbed.method import ChecksNetwork, Foresees, Run, load_pruned
from testbed.network_file import save_network
from testbed.new_weights import draw_anew

KINDS = ["conv", "residual"]
RESIDUAL_ALONE = ("network_routing", "static_blocks")  # what the others refuse
NAMES_AND_KINDS = [
    (name, kind) for kind in KINDS for name in METHODS
    if kind == "residual" or name not in RESIDUAL_ALONE
]  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "rnp": {"steps": 20},
    "rnp_groups": {"steps": 20},
    "network_routing": {"steps": 20},
    "amc": {"episodes": 6, "warm_up": 3},
    # Every channel of a tiny network is missed by many points.
    "policy_gradient": {"steps": 20, "drop_bound": 60.0},
    # Shares that both kinds of tiny networks come to.
    "cascade": {"stages": (0.34, 0.58)},
    "cascade_random": {"stages": (0.34, 0.58)},
    "second_look": {"keep_multiplications": 0.46},
}  # beside the default options, what would take a minute, or what a tiny network cannot be
# What a method trains where the dense network was trained for 2 epochs, and 3 are for fine-tuning.
FROM_SCRATCH = ("vanilla", "second_look", "rnp_groups")
EPOCHS = dict.fromkeys(FROM_SCRATCH, 5) | dict.fromkeys(("cascade", "cascade_random"), 5 + 5 + 3)
DECIDE_PER_IMAGE = (
    *("rnp", "rnp_groups", "network_routing"),
    *("cascade", "cascade_random", "second_look"),
)


@pytest.fixture(autouse=True)
def _images_to_look_at_twice(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrored training images for `second_look`, which is refused without."""
    if "second_look" in request.node.name:
        for kind in KINDS:
            tiny.trained(kind)
        data = tiny.splits()
        mirrored = replace(data, augmentation=Augmentation(crop=1, flip=True))
        monkeypatch.setattr(tiny, "splits", lambda: mirrored)


def method_of(name: str) -> Any:
    """The method with its default options, or nearly so."""
    return method_class(name)(**QUICK.get(name, {}))


def kind_of(name: str) -> str:
    """A kind of network that the method takes."""
    return "residual" if name in RESIDUAL_ALONE else "conv"


def prune(
    name: str,
    kind: str | None = None,
    *,
    seed: int = 0,
    reports: list[Mapping[str, float]] | None = None,
) -> nn.Module:
    """The network that a method with its default options makes of a tiny one."""
    run = tiny.run(3, seed=seed, reports=reports)
    model = tiny.trained(kind or kind_of(name))
    network: nn.Module = method_of(name).prune(model, tiny.splits(), run)
    return network


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def logits(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)


def state(network: nn.Module) -> dict[str, Any]:
    """All that a method could change of a network."""
    return {
        "tensors": {k: v.clone() for k, v in network.state_dict().items()},
        "modes": [m.training for m in network.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "gradients": [
            (p.requires_grad, p.grad is None, not p._backward_hooks) for p in network.parameters()
        ],
    }


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_the_given_network_stays_as_it_is(name: str, kind: str) -> None:
    model = tiny.trained(kind)
    model.get_submodule("conv1").eval()
    before = state(model)
    method = method_of(name)
    if isinstance(method, ChecksNetwork):
        method.check_network(model, tiny.splits())
    method.prune(model, tiny.splits(), tiny.run(2))
    after = state(model)
    for key, value in before.pop("tensors").items():
        assert torch.equal(after["tensors"][key], value), key
    del after["tensors"]
    assert before == after


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_images_of_any_number_give_logits_that_do_not_depend_on_each_other(
    name: str, kind: str
) -> None:
    network = prune(name, kind)
    together = logits(network, images(5))
    assert together.shape == (5, 3) and together.dtype == torch.float32
    alone = torch.cat([logits(network, x[None]) for x in images(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_seed_gives_one_network_whatever_was_drawn_before(name: str) -> None:
    networks = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        networks.append(prune(name, seed=7).state_dict())
    assert all(torch.equal(networks[0][key], value) for key, value in networks[1].items())


@pytest.mark.parametrize("name", METHODS)
def test_the_budget_is_spent_and_not_exceeded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    real_train = testbed.method.train

    def counting_train(model: nn.Module, data: Any, settings: Any, **others: Any) -> None:
        trained.append(settings.epochs)
        real_train(model, data, settings, **others)

    monkeypatch.setattr(testbed.method, "train", counting_train)
    reports: list[Mapping[str, float]] = []
    run = tiny.run(3, reports=reports)
    method_of(name).prune(tiny.trained(kind_of(name)), tiny.splits(), run)
    assert run.epochs_spent == 3 and run.epochs_left == 0
    # From scratch the dense network's epochs are spent too, and cascades train several networks.
    budget = EPOCHS.get(name, 3)
    assert sum(trained) == sum(r.get("training_epochs", 0) for r in reports) == budget
    assert [r["epoch"] for r in reports if "epoch" in r] == [*range(1, budget + 1)]


class Stopped(Exception):  # noqa: N818 (no error)
    pass


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_stopped_goes_on_and_ends_as_without_the_stop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testbed.training_checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(testbed.training_checkpoint, "SHARE", 0)
    model, undisturbed = tiny.trained(kind_of(name)), tiny.run(3)
    expected = method_of(name).prune(model, tiny.splits(), undisturbed)
    n_reports = len(undisturbed.reported)
    for stop in (n_reports // 2, n_reports - 1):
        run = tiny.run(3)
        run.folder = tmp_path

        def stopping(values: Mapping[str, float], run: Run = run, stop: int = stop) -> None:
            if len(run.reported) == stop:
                raise Stopped

        run._listener = stopping
        with pytest.raises(Stopped):
            method_of(name).prune(model, tiny.splits(), run)
    epochs, again = [], tiny.run(3)
    real_evaluate = testbed.training.evaluate

    def counting_evaluate(*arguments: Any, **settings: Any) -> float:
        epochs.append(1)
        return real_evaluate(*arguments, **settings)

    monkeypatch.setattr(testbed.training, "evaluate", counting_evaluate)
    again.folder = tmp_path
    found = method_of(name).prune(model, tiny.splits(), again)
    assert again.reported == undisturbed.reported
    assert again.epochs_spent == 3
    assert len(epochs) <= 2, "what had been trained is not trained again"
    state, other = expected.state_dict(), found.state_dict()
    assert all(torch.equal(other[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", METHODS)
def test_accuracy_before_fine_tuning_is_reported_once(name: str) -> None:
    reports: list[Mapping[str, float]] = []
    prune(name, reports=reports)
    before = [r for r in reports if "val_accuracy_before_finetuning" in r]
    assert len(before) == (0 if name in FROM_SCRATCH else 1)


def test_random_channels_draws_anew_for_every_ratio() -> None:
    model = tiny.network("conv")

    def kept(ratio: float, layer: str) -> set[float]:
        """What stays of a layer, told apart by the filters' first weights, before fine-tuning."""
        method = method_class("random_channels")(keep_ratio=ratio)
        network = method.prune(model, tiny.splits(), tiny.run(0))
        return set(network.get_parameter(f"{layer}.weight")[:, 0, 0, 0].tolist())

    nested = [kept(low, "conv1") <= kept(low + 0.25, "conv1") for low in (0.25, 0.4, 0.5, 0.6)]
    assert not all(nested)


@pytest.mark.parametrize("name", METHODS)
def test_options_are_frozen_and_unknown_ones_refused(name: str) -> None:
    cls = method_class(name)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cls(no_such_option=1)
    method = cls()
    assert cls.model_validate(method.model_dump(mode="json")) == method
    for option in cls.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(method, option, getattr(method, option))


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_the_network_comes_back_from_a_file(name: str, kind: str, tmp_path: Path) -> None:
    network = prune(name, kind)
    save_network(network, tmp_path / "network.safetensors")
    path = tmp_path / "network.safetensors"
    loaded = load_pruned(path, method_of(name), tiny.network(kind))
    assert torch.equal(logits(loaded, images()), logits(network, images()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [n for n in METHODS if "keep_ratio" in method_class(n).model_fields]
)
def test_channel_methods_run_fewer_multiplications(name: str, kind: str) -> None:
    dense = count_multiplications(tiny.network(kind), images()).multiplications
    assert count_multiplications(prune(name, kind), images()).multiplications < 0.8 * dense


# What makes a method keep all, beside a share that rounds to everything.
KEEPS_ALL: dict[str, dict[str, Any]] = {
    "magnitude": {"threshold": 1e-9},
    "str": {"sparsity": 1e-9},
    "autoprune": {"pressure": 1e-9},
    "bit_pruning": {"pressure": 1e-9},
    "joint_sparsity": {"sparsity": 1e-9},
    # Every channel of a tiny network is missed by many points.
    "policy_gradient": {"steps": 20, "drop_bound": 60.0},
    "fbs": {"density": 0.999},
}
# What a method's work takes of two epochs that tells it so.
SPENT_BEFORE = {"policy_gradient": 2, "autoprune": 1, "bit_pruning": 1}


# `dense` is to remove nothing. What decisions, or the empty maps of images, come to is measured.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        each
        for each in NAMES_AND_KINDS
        if each[0] not in ("dense", "feature_maps", *DECIDE_PER_IMAGE)
    ],
)
def test_a_method_that_removes_nothing_fails_and_says_what_to_do(name: str, kind: str) -> None:
    cls = method_class(name)
    shares = [o for o in ("keep_ratio", "keep_multiplications") if o in cls.model_fields]
    model = tiny.trained(kind)
    dense = count_multiplications(model, images()).multiplications
    for options in [{share: 0.999} for share in shares] or [KEEPS_ALL[name]]:
        run = tiny.run(2)
        try:
            network = cls(**{**QUICK.get(name, {}), **options}).prune(model, tiny.splits(), run)
        except ValueError as error:
            assert re.search("removes nothing|Nothing was removed|cannot be reached", str(error))
            assert re.search("Ask for|Raise", str(error))
            assert run.epochs_spent == SPENT_BEFORE.get(name, 0)
        else:  # the least that can be removed is more than was asked for
            assert count_multiplications(network, images()).nonzero_multiplications < dense


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        each
        for each in NAMES_AND_KINDS
        if "keep_multiplications" in method_class(each[0]).model_fields
    ],
)
def test_a_share_out_of_reach_is_refused_of_an_untrained_network_too(name: str, kind: str) -> None:
    method, model = method_class(name)(keep_multiplications=1e-6), tiny.network(kind)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="cannot be reached") as before:
        method.check_network(model, tiny.splits())
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    with pytest.raises(ValueError) as while_pruning:
        method.prune(model, tiny.splits(), tiny.run(1))
    assert str(before.value) == str(while_pruning.value)


AMOUNTS = [
    (name, option)
    for name in METHODS
    for option in ("keep_ratio", "keep_multiplications")
    if option in method_class(name).model_fields
]


@pytest.mark.parametrize(("name", "option"), AMOUNTS)
@pytest.mark.parametrize("amount", [0, -0.5, 1.01, float("nan")])
def test_an_amount_that_is_no_share_is_refused(name: str, option: str, amount: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|less than or equal to 1"):
        method_class(name)(**{option: amount})


@pytest.mark.parametrize("name", [name for name, option in AMOUNTS if option == "keep_ratio"])
def test_a_layer_of_one_channel_keeps_it(name: str) -> None:
    torch.manual_seed(0)
    model = build_backbone("conv", (2, 8, 8), 3, channels=(1, 8), hidden=10)
    method = method_class(name)(keep_ratio=0.5, **QUICK.get(name, {}))
    network = method.prune(model, tiny.splits(), tiny.run(0))
    assert network.get_parameter("conv1.weight").shape[0] == 1
    assert network.get_parameter("conv2.weight").shape[0] == 4


@pytest.mark.parametrize("name", METHODS)
def test_the_module_opens_with_what_readers_need(name: str) -> None:
    opening = inspect.getdoc(sys.modules[method_class(name).__module__]) or ""
    assert "Its output" in opening and "multiplications" in opening
    if name != "dense":
        assert "Where we differ" in opening


def test_random_channels_differ_from_seed_to_seed() -> None:
    method = method_class("random_channels")()
    first, second = (
        method.prune(tiny.network(), tiny.splits(), tiny.run(0, seed=seed)) for seed in (0, 1)
    )
    assert not torch.equal(first.conv2.weight, second.conv2.weight)
    rows = {tuple(row.flatten().tolist()) for row in tiny.network().conv1.weight}
    assert all(tuple(row.flatten().tolist()) in rows for row in first.conv1.weight)


def test_vanilla_keeps_no_trained_weight_and_no_statistics() -> None:
    model = tiny.network()
    for norm in (model.norm1, model.norm2):
        norm.running_mean.fill_(3.0)
    thin = copy.deepcopy(model)
    draw_anew(thin, seed=1)
    for key, value in model.state_dict().items():
        if key.endswith(("conv1.weight", "hidden.weight", "classifier.bias", "running_mean")):
            assert not torch.isclose(thin.state_dict()[key], value).all(), key
    again = copy.deepcopy(model)
    state_before = torch.random.get_rng_state()
    draw_anew(again, seed=1)
    assert torch.equal(state_before, torch.random.get_rng_state())
    assert torch.equal(again.conv1.weight, thin.conv1.weight)


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_what_a_method_foresees_costs_what_comes_back(name: str, kind: str) -> None:
    method = method_of(name)
    if not isinstance(method, Foresees):
        pytest.skip("it does not know beforehand")
    foreseen = method.foreseen(tiny.trained(kind), tiny.splits())
    costs = [
        (count_multiplications(each, images(1)).multiplications, count_parameters(each))
        for each in (foreseen, prune(name, kind))
    ]
    assert costs[0] == costs[1]


def test_vanilla_starts_from_weights_that_only_the_seed_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, model = method_class("vanilla")(keep_ratio=1), tiny.network()
    monkeypatch.setattr(Run, "train_from_scratch", lambda *_: None)
    networks = []
    for seed in (0, 1):
        networks.append(method.prune(model, tiny.splits(), tiny.run(0, seed=seed)))
        draw_anew(drawn := copy.deepcopy(model), seed)
        assert torch.equal(networks[-1].conv2.weight, drawn.conv2.weight)
    assert not torch.isclose(networks[0].conv2.weight, networks[1].conv2.weight).any()


def test_vanilla_shuffles_parameters_of_modules_that_cannot_draw_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.arange(24.0).reshape(2, 12))

    networks = [nn.Sequential(nn.MultiheadAttention(4, 2), Scaled()) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        draw_anew(network, seed)
    drawn = [network[1].scale for network in networks]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], torch.arange(24.0).reshape(2, 12))
    assert sorted(drawn[0].flatten().tolist()) == list(range(24))
    assert torch.equal(networks[0][0].in_proj_weight, networks[1][0].in_proj_weight)


def test_an_unknown_method_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'l1_filtre'. Did you mean 'l1_filter'"):
        method_class("l1_filtre")
    with pytest.raises(ValueError, match="Expected a pydantic model with a method `prune`"):
        method_class("pathlib:Path")


NEW_METHOD = '''
    """Halves the weights of every conv. Its output runs as many multiplications."""

    import copy

    from pydantic import BaseModel, ConfigDict, Field
    from torch import nn

    from testbed.data import Splits
    from testbed.method import Run


    class Halved(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")

        factor: float = Field(default=0.5, gt=0)

        def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
            network = copy.deepcopy(model).to(run.device)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.data.mul_(self.factor)
            run.fine_tune(network, data)
            return network
'''


def test_a_new_method_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halved_method.py").write_text(textwrap.dedent(NEW_METHOD))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(METHODS, "halved", "halved_method:Halved")
    assert method_class("halved") is method_class("halved_method:Halved")
    for check in (
        lambda: test_the_given_network_stays_as_it_is("halved", "residual"),
        lambda: test_images_of_any_number_give_logits_that_do_not_depend_on_each_other(
            "halved", "conv"
        ),
        lambda: test_one_seed_gives_one_network_whatever_was_drawn_before("halved"),
        lambda: test_the_budget_is_spent_and_not_exceeded("halved", monkeypatch),
        lambda: test_options_are_frozen_and_unknown_ones_refused("halved"),
        lambda: test_the_network_comes_back_from_a_file("halved", "conv", tmp_path),
    ):
        check()
