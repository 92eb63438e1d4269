"""The run that methods get: a budget that is the same for all, and what goes out through it."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from testbed.data import Splits
from testbed.method import OwnTeacher, PruningMethod, Run, load_pruned
from testbed.network_file import save_network
from testbed.training import Distillation, evaluate


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def reported(reports: list[Mapping[str, float]], name: str) -> list[float]:
    return [values[name] for values in reports if name in values]


def test_fine_tuning_spends_all_that_is_left_unless_told_otherwise() -> None:
    reports: list[Mapping[str, float]] = []
    run = tiny.run(5, reports=reports)
    model, data = tiny.network(), tiny.splits()
    run.fine_tune(model, data, epochs=1)
    run.fine_tune(model, data, epochs=2)
    assert (run.epochs_spent, run.epochs_left) == (3, 2)
    run.fine_tune(model, data)
    assert (run.epochs_spent, run.epochs_left) == (5, 0)
    assert reported(reports, "epoch") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("epochs", [-1, 3])
def test_more_epochs_than_are_left_are_refused(epochs: int) -> None:
    run = tiny.run(3)
    model, data = tiny.network(), tiny.splits()
    run.fine_tune(model, data, epochs=1)
    before = weights(model)
    with pytest.raises(ValueError, match="at most the 2 epochs that are left of the 3"):
        run.fine_tune(model, data, epochs=epochs)
    assert torch.equal(before, weights(model))
    assert run.epochs_spent == 1


@pytest.mark.parametrize("budget", [0, 2])
def test_accuracy_before_fine_tuning_is_measured_once_and_first(budget: int) -> None:
    reports: list[Mapping[str, float]] = []
    run = tiny.run(budget, reports=reports)
    model, data = tiny.network(), tiny.splits()
    expected = evaluate(model, data.validation, data, device=run.device, precision="float32")
    for _ in range(budget or 1):
        run.fine_tune(model, data, epochs=min(budget, 1))
    assert reported(reports, "val_accuracy_before_finetuning") == [expected]
    assert "val_accuracy_before_finetuning" in reports[0]


def test_each_call_sees_the_images_in_another_order_and_the_same_run_repeats_it() -> None:
    data = tiny.splits()
    models = []
    for _ in range(2):
        run = tiny.run(2)
        first, second = tiny.network(), tiny.network()
        run.fine_tune(first, data, epochs=1)
        run.fine_tune(second, data, epochs=1)
        models.append((first, second))
    assert not torch.equal(weights(models[0][0]), weights(models[0][1]))
    assert torch.equal(weights(models[0][0]), weights(models[1][0]))
    assert torch.equal(weights(models[0][1]), weights(models[1][1]))


def test_from_scratch_takes_the_epochs_of_the_dense_network_and_the_budget_in_one_schedule() -> (
    None
):
    reports: list[Mapping[str, float]] = []
    run = tiny.run(3, reports=reports)
    run.train_from_scratch(tiny.network(), tiny.splits())
    assert reported(reports, "epoch") == [1, 2, 3, 4, 5]
    rates = reported(reports, "learning_rate")
    assert rates[1:] == sorted(rates[1:], reverse=True)  # one peak only
    assert run.epochs_left == 0
    assert not reported(reports, "val_accuracy_before_finetuning")
    with pytest.raises(ValueError, match="3 of its epochs have been spent"):
        run.train_from_scratch(tiny.network(), tiny.splits())


def test_training_from_scratch_for_no_epoch_at_all_is_refused() -> None:
    run = tiny.run(0)
    run.training = run.training.model_copy(update={"epochs": 0})
    with pytest.raises(ValueError, match=r"training\.epochs and fine_tuning\.epochs are both 0"):
        run.train_from_scratch(tiny.network(), tiny.splits())


def test_the_runs_teacher_is_learnt_from_where_fine_tuning_asks_for_it() -> None:
    data = tiny.splits()
    plain, taught = tiny.run(1), tiny.run(1)
    taught.teacher = tiny.network("residual")
    taught.fine_tuning = taught.fine_tuning.model_copy(
        update={"distillation": Distillation(teacher={})}
    )
    models = [tiny.network(), tiny.network()]
    plain.fine_tune(models[0], data)
    taught.fine_tune(models[1], data)
    assert not torch.equal(weights(models[0]), weights(models[1]))


def test_training_from_scratch_is_distilled_as_the_others_fine_tuning_is() -> None:
    data, teacher = tiny.splits(), tiny.network("residual")
    distillation = Distillation(teacher={}, weight=0.7)
    taught, by_training, plain = tiny.run(1), tiny.run(1), tiny.run(1)
    taught.teacher = teacher
    taught.fine_tuning = taught.fine_tuning.model_copy(update={"distillation": distillation})
    by_training.teacher_from_scratch = teacher
    by_training.training = by_training.training.model_copy(update={"distillation": distillation})
    models = [tiny.network(), tiny.network(), tiny.network()]
    for run, model in zip((taught, by_training, plain), models, strict=True):
        run.train_from_scratch(model, data)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_a_methods_own_teacher_comes_before_the_runs() -> None:
    data = tiny.splits()
    own, given = tiny.network("residual"), tiny.network()
    with_both, with_own = tiny.run(1), tiny.run(1)
    with_both.teacher = given
    with_both.fine_tuning = with_both.fine_tuning.model_copy(
        update={"distillation": Distillation(teacher={}, weight=0.9)}
    )
    models = [tiny.network(), tiny.network()]
    for run, model in zip((with_both, with_own), models, strict=True):
        run.fine_tune(model, data, own_teacher=OwnTeacher(own, 0.25))
    assert torch.equal(weights(models[0]), weights(models[1]))


class Wrapped(nn.Module):
    """A network that no resizing of the dense one gives."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(dense)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.gain * self.inner(images)
        return logits


class Wraps:
    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        return Wrapped(model)

    def skeleton(self, dense: nn.Module) -> nn.Module:
        return Wrapped(dense)


class Keeps:
    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        return copy.deepcopy(model)


@pytest.mark.parametrize("method", [Wraps(), Keeps()])
def test_a_file_is_read_into_what_its_method_makes(method: PruningMethod, tmp_path: Path) -> None:
    made = method.prune(tiny.network(), tiny.splits(), tiny.run(0)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    save_network(made, tmp_path / "network")
    loaded = load_pruned(tmp_path / "network", method, tiny.network()).eval()
    images = torch.randn(3, 2, 8, 8)
    assert torch.equal(loaded(images), made(images))
    assert type(loaded) is type(made)


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    save_network(Wrapped(tiny.network()), tmp_path / "network")
    with pytest.raises(ValueError, match="is of another network"):
        load_pruned(tmp_path / "network", Keeps(), tiny.network())
