"""What every method in the registry keeps to. Registering a method tests it."""

import copy
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
from testbed.data import Splits
from testbed.method import ChecksNetwork, Foresees, Run, load_pruned
from testbed.network_file import save_network

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


def method_of(name: str) -> Any:
    """The method with its default options, or nearly so."""
    return method_class(name)(**QUICK.get(name, {}))


def kind_of(name: str) -> str:
    """A kind of network that the method takes."""
    return "residual" if name in RESIDUAL_ALONE else "conv"


def splits_of(name: str) -> Splits:
    """Mirrored training images for `second_look`, which is refused without."""
    data = tiny.splits()
    mirrored = replace(data, augmentation=Augmentation(crop=1, flip=True))
    return mirrored if name == "second_look" else data


class Pruned(NamedTuple):
    """What a method makes of a tiny network with seed 0 and three epochs, and what it did."""

    network: nn.Module
    run: Run
    before: dict[str, Any]
    after: dict[str, Any]
    trained: list[int]
    """Epochs of each training."""


@cache
def pruned(name: str, kind: str) -> Pruned:
    """One run of a method with its default options, for all tests that look at one."""
    model = tiny.trained(kind)
    model.get_submodule("conv1").eval()
    before, method, run = state(model), method_of(name), tiny.run(3)
    if isinstance(method, ChecksNetwork):
        method.check_network(model, splits_of(name))
    trained: list[int] = []
    real_train = testbed.method.train

    def counting_train(model: nn.Module, data: Any, settings: Any, **others: Any) -> None:
        trained.append(settings.epochs)
        real_train(model, data, settings, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testbed.method, "train", counting_train)
        network = method.prune(model, splits_of(name), run)
    return Pruned(network, run, before, state(model), trained)


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
    _, _, before, after, _ = pruned(name, kind)
    assert after["tensors"].keys() == before["tensors"].keys()
    for key, value in before["tensors"].items():
        assert torch.equal(after["tensors"][key], value), key
    for others in ("modes", "hooks", "gradients"):
        assert before[others] == after[others]


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_images_of_any_number_give_logits_that_do_not_depend_on_each_other(
    name: str, kind: str
) -> None:
    network = pruned(name, kind).network
    together = logits(network, images(5))
    assert together.shape == (5, 3) and together.dtype == torch.float32
    alone = torch.cat([logits(network, x[None]) for x in images(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_seed_gives_one_network_whatever_was_drawn_before(name: str) -> None:
    first = pruned(name, kind_of(name)).network.state_dict()
    torch.manual_seed(1)
    again = method_of(name).prune(tiny.trained(kind_of(name)), splits_of(name), tiny.run(3))
    assert again.state_dict().keys() == first.keys()
    assert all(torch.equal(first[key], value) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_budget_is_spent_and_not_exceeded(name: str) -> None:
    _, run, _, _, trained = pruned(name, kind_of(name))
    reports = run.reported
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
    model, undisturbed = tiny.trained(kind_of(name)), pruned(name, kind_of(name))
    reports = undisturbed.run.reported
    n_reports = len(reports)
    for stop in (n_reports // 2, n_reports - 1):
        run = tiny.run(3)
        run.folder = tmp_path

        def stopping(values: Mapping[str, float], run: Run = run, stop: int = stop) -> None:
            if len(run.reported) == stop:
                raise Stopped

        run._listener = stopping
        with pytest.raises(Stopped):
            method_of(name).prune(model, splits_of(name), run)
    epochs, again = [], tiny.run(3)
    real_evaluate = testbed.training.evaluate

    def counting_evaluate(*arguments: Any, **settings: Any) -> float:
        epochs.append(1)
        return real_evaluate(*arguments, **settings)

    monkeypatch.setattr(testbed.training, "evaluate", counting_evaluate)
    again.folder = tmp_path
    found = method_of(name).prune(model, splits_of(name), again)
    assert again.reported == reports
    assert again.epochs_spent == 3
    assert len(epochs) <= 2, "what had been trained is not trained again"
    expected, other = undisturbed.network.state_dict(), found.state_dict()
    assert all(torch.equal(other[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", METHODS)
def test_accuracy_before_fine_tuning_is_reported_once(name: str) -> None:
    reports = pruned(name, kind_of(name)).run.reported
    before = [r for r in reports if "val_accuracy_before_finetuning" in r]
    assert len(before) == (0 if name in FROM_SCRATCH else 1)


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
    network = pruned(name, kind).network
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
    assert count_multiplications(pruned(name, kind).network, images()).multiplications < 0.8 * dense


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
    [e for e in NAMES_AND_KINDS if e[0] not in ("dense", "feature_maps", *DECIDE_PER_IMAGE)],
)
def test_a_method_that_removes_nothing_fails_and_says_what_to_do(name: str, kind: str) -> None:
    cls = method_class(name)
    shares = [o for o in ("keep_ratio", "keep_multiplications") if o in cls.model_fields]
    model = tiny.trained(kind)
    dense = count_multiplications(model, images()).multiplications
    for options in [{share: 0.999} for share in shares] or [KEEPS_ALL[name]]:
        run = tiny.run(2)
        try:
            network = cls(**{**QUICK.get(name, {}), **options}).prune(model, splits_of(name), run)
        except ValueError as error:
            assert re.search("removes nothing|Nothing was removed|cannot be reached", str(error))
            assert re.search("Ask for|Raise", str(error))
            assert run.epochs_spent == SPENT_BEFORE.get(name, 0)
        else:  # the least that can be removed is more than was asked for
            assert count_multiplications(network, images()).nonzero_multiplications < dense


@pytest.mark.parametrize(
    ("name", "kind"),
    [e for e in NAMES_AND_KINDS if "keep_multiplications" in method_class(e[0]).model_fields],
)
def test_a_share_out_of_reach_is_refused_of_an_untrained_network_too(name: str, kind: str) -> None:
    method, model = method_class(name)(keep_multiplications=1e-6), tiny.network(kind)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="cannot be reached") as before:
        method.check_network(model, splits_of(name))
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    with pytest.raises(ValueError) as while_pruning:
        method.prune(model, splits_of(name), tiny.run(1))
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


@pytest.mark.parametrize(("name", "kind"), NAMES_AND_KINDS)
def test_what_a_method_foresees_costs_what_comes_back(name: str, kind: str) -> None:
    method = method_of(name)
    if not isinstance(method, Foresees):
        pytest.skip("it does not know beforehand")
    foreseen = method.foreseen(tiny.trained(kind), splits_of(name))
    costs = [
        (count_multiplications(each, images(1)).multiplications, count_parameters(each))
        for each in (foreseen, pruned(name, kind).network)
    ]
    assert costs[0] == costs[1]


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
        lambda: test_the_budget_is_spent_and_not_exceeded("halved"),
        lambda: test_options_are_frozen_and_unknown_ones_refused("halved"),
        lambda: test_the_network_comes_back_from_a_file("halved", "conv", tmp_path),
    ):
        check()
