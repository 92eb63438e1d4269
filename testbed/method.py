"""The one interface of every pruning method, and what a method is given to work with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from testbed.data import Splits
from testbed.dense_store import DenseRecord
from testbed.measurement import network_costs
from testbed.network_file import load_network
from testbed.training import (
    Distillation,
    Penalty,
    Report,
    Training,
    evaluate,
    ignore,
    train,
)
from testbed.training_cost import forward_multiplications

BEFORE = "val_accuracy_before_finetuning"


def shared_by_rounds(epochs: int, rounds: int) -> list[int]:
    """The epochs of each round; what does not divide goes to the last ones, which need it most."""
    each, left = divmod(epochs, rounds)
    return [each + (number >= rounds - left) for number in range(rounds)]


@dataclass(frozen=True)
class OwnTeacher:
    """A network that a method distils from by an option of its own."""

    network: nn.Module
    weight: float
    """Its share of the loss (see `Distillation`)."""


@dataclass(frozen=True)
class Judge:
    """Who looks at a run on its way, and ends it there if it does badly."""

    rungs: tuple[int, ...]
    """Looks after so many epochs of the fine-tuning budget."""
    look: Callable[[int, Mapping[str, float]], None]
    """Gets the rung, and val_accuracy and the costs there; raises to end the run."""
    latency: bool = False
    """Whether the latency is to be among the costs."""
    foreseen: nn.Module | None = None
    """A network that costs what the method's will (see `Foresees`); else those on the way say."""


@dataclass
class Run:
    """What is the same for every method: seed, device, budget, and where progress goes."""

    seed: int
    device: torch.device
    training: Training
    """What the dense network was trained with."""
    fine_tuning: Training
    """The budget of every method: `epochs` over the training images, and how they are spent."""
    report: Report = ignore
    folder: Path | None = None
    """A place to save and find checkpoints, if the caller keeps any. Every training in it goes on
    where it was stopped; a method of several steps keeps a `Checkpoint` after each."""
    teacher: nn.Module | None = None
    """The network that fine-tuning distils from, where `fine_tuning` asks for one."""
    teacher_from_scratch: nn.Module | None = None
    """The network that training from scratch distils from, where `training` asks for one."""
    judge: Judge | None = None
    dense: DenseRecord | None = None
    """Where the dense network is kept, if it is. Stages that trials share lie beside it."""
    epochs_spent: int = field(default=0, init=False)
    """Epochs of the fine-tuning budget that are used up. To be read, not written."""
    reported: list[dict[str, float]] = field(default_factory=list, init=False)
    """All that was reported so far. To be read, not written."""

    def __post_init__(self) -> None:
        self._listener, self.report = self.report, self._keep_and_report

    @property
    def epochs_left(self) -> int:
        """Epochs of the fine-tuning budget that a method may still spend."""
        return self.fine_tuning.epochs - self.epochs_spent

    @property
    def val_accuracy_before_finetuning(self) -> float | None:
        """Of what the first `fine_tune` was given; None before that."""
        return next((values[BEFORE] for values in self.reported if BEFORE in values), None)

    @property
    def epochs_reported(self) -> int:
        """The number of the last epoch that was reported, 0 before the first."""
        return int(max((values.get("epoch", 0) for values in self.reported), default=0))

    def beside(self, name: str) -> "Run":
        """A run with a budget of its own, for a network that a method makes beside others.

        What it reports goes through this run, the epochs with numbers that go on from it. Nobody
        judges it on its way.

        Args:
            name: of a folder in this run's, for its checkpoints.
        """
        last = self.epochs_reported

        def report(values: Mapping[str, float]) -> None:
            number = {"epoch": last + values["epoch"]} if "epoch" in values else {}
            self.report({**values, **number})

        folder = self.folder and self.folder / name
        return replace(self, report=report, folder=folder, judge=None)

    def resume_after(self, epochs_spent: int, reported: Sequence[Mapping[str, float]]) -> None:
        """Takes as done what was done before the process was stopped, and reports it once more.

        Args:
            epochs_spent: of the budget.
            reported: all that was reported by then.
        """
        self.epochs_spent = epochs_spent
        for values in reported:
            self.report(values)

    def fine_tune(
        self,
        model: nn.Module,
        data: Splits,
        epochs: int | None = None,
        own_teacher: OwnTeacher | None = None,
        judged: bool = True,
        penalty: Penalty | None = None,
    ) -> None:
        """Fine-tune `model` in place with the settings that every method gets.

        The first call reports `val_accuracy_before_finetuning` of what it is given, also where no
        epoch is left to spend. Epochs are reported with numbers that go on from call to call.

        Args:
            epochs: how many of the epochs left to spend; None spends them all. Each call is one
                whole learning rate schedule.
            own_teacher: what a method itself distils from, in place of what `fine_tuning` asks for.
            judged: false where `model` does not cost yet what the method is to make of it, so that
                the run's `judge` would look at nothing.
            penalty: what the method adds to the loss of every step (see `train`).

        Raises:
            ValueError: if `epochs` is negative or more than are left.
        """
        epochs = self.epochs_left if epochs is None else epochs
        if not 0 <= epochs <= self.epochs_left:
            raise ValueError(
                f"Expected at most the {self.epochs_left} epochs that are left of the "
                f"{self.fine_tuning.epochs} for fine-tuning, got {epochs}. "
                "Ask for fewer, or give all methods more with fine_tuning.epochs."
            )
        if self.val_accuracy_before_finetuning is None:
            accuracy = evaluate(
                model,
                data.validation,
                data,
                device=self.device,
                precision=self.fine_tuning.precision,
            )
            self.report({BEFORE: accuracy})
        settings, teacher = self.fine_tuning, self.teacher
        if own_teacher is not None:
            teacher = own_teacher.network
            distillation = Distillation(teacher={}, weight=own_teacher.weight)
            settings = settings.model_copy(update={"distillation": distillation})
        self._spend(model, data, settings, epochs, epochs, teacher, judged, penalty)

    def train_from_scratch(
        self, model: nn.Module, data: Splits, penalty: Penalty | None = None
    ) -> None:
        """Train a network that starts from random weights for as long as the others get in total.

        Those are the dense network's epochs and the fine-tuning's, in one schedule, with the dense
        network's settings. Where `fine_tuning` asks for distillation, which the others get then,
        all of it distils as that says.

        Args:
            penalty: what the method adds to the loss of every step (see `train`).

        Raises:
            ValueError: if epochs have been spent already, or there are none at all.
        """
        if self.epochs_spent:
            raise ValueError(
                "Training from scratch takes the whole fine-tuning budget, "
                f"but {self.epochs_spent} of its epochs have been spent."
            )
        total = self.training.epochs + self.fine_tuning.epochs
        if total == 0:
            raise ValueError(
                "Training from scratch needs an epoch at least, but training.epochs and "
                "fine_tuning.epochs are both 0. Set one of them, or leave this method out."
            )
        budget = self.fine_tuning.epochs
        settings, teacher = self.training, self.teacher_from_scratch
        if distillation := self.fine_tuning.distillation:
            settings = settings.model_copy(update={"distillation": distillation})
            teacher = self.teacher
        self._spend(model, data, settings, total, budget, teacher, penalty=penalty)

    def _keep_and_report(self, values: Mapping[str, float]) -> None:
        self.reported.append(dict(values))
        self._listener(values)

    def _spend(
        self,
        model: nn.Module,
        data: Splits,
        settings: Training,
        epochs: int,
        budget: int,
        teacher: nn.Module | None,
        judged: bool = True,
        penalty: Penalty | None = None,
    ) -> None:
        """Train for `epochs`, which costs `budget` of the epochs for fine-tuning.

        Reports first what the training takes in all: `training_epochs`, and
        `training_multiplications`, those of the forward passes.
        """
        spent, last = self.epochs_spent, self.epochs_reported
        self.epochs_spent += budget
        if epochs:
            learnt_from = None if settings.distillation is None else teacher
            each = forward_multiplications(model, data.input_shape, self.device, learnt_from)
            passes = epochs * len(data.train)
            self.report({"training_epochs": epochs, "training_multiplications": passes * each})
        rungs = self._rungs_at(spent, epochs, budget) if judged else {}
        costs: dict[str, float] = {}
        decides = False
        if self.judge and rungs:
            costs, decides = network_costs(
                self.judge.foreseen or model, data, self.device, latency=self.judge.latency
            )

        def report_with_running_number(values: Mapping[str, float]) -> None:
            self.report({**values, "epoch": last + values["epoch"]})
            for rung in rungs.get(int(values["epoch"]), ()):
                assert self.judge is not None
                # Else those of the network as it was given: a method that lets pruned weights grow
                # again meanwhile takes them out once more. But decisions move with what is learnt.
                now = costs
                if decides:
                    now, _ = network_costs(model, data, self.device, latency=self.judge.latency)
                self.judge.look(rung, {**now, "val_accuracy": values["val_accuracy"]})

        train(
            model,
            data,
            settings.model_copy(update={"epochs": epochs}),
            seed=self.seed + spent,  # another order of the images in each round
            device=self.device,
            report=report_with_running_number,
            teacher=teacher,
            checkpoint=self.folder and self.folder / "training.safetensors",
            penalty=penalty,
        )

    def _rungs_at(self, spent: int, epochs: int, budget: int) -> dict[int, list[int]]:
        """Epoch of a training -> the rungs that it comes to then, for `_spend`."""
        found: dict[int, list[int]] = {}
        for rung in self.judge.rungs if self.judge else ():
            if spent < rung <= spent + budget:
                found.setdefault(math.ceil((rung - spent) * epochs / budget), []).append(rung)
        return found


class PruningMethod(Protocol):
    """Implemented by a frozen pydantic model of the method's options, with `extra="forbid"`.

    A validator of options may look at pydantic's `info.context`: `{"fine_tuning": Training}` when a
    sweep file is checked, to refuse what the budget cannot pay before anything starts.

    A method whose networks are more than the dense one with smaller layers is also a `Rebuilding`,
    one that learns from the accuracy on validation images also `HoldsBack`, one that cannot prune
    every network as asked also `ChecksNetwork`, one that knows what its network will cost also
    `Foresees`, one whose first steps few of its options enter also `SharesStage`.
    """

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """Return a network of the same inputs and outputs as `model` that does less work.

        Args:
            model: a trained dense network, left unchanged.
            data: training and validation images.
            run: gives `fine_tune`, the seed, the device and `report`.
        """
        ...


@runtime_checkable
class Rebuilding(Protocol):
    """A method that says what its networks are made of, so that their files can be read."""

    def skeleton(self, dense: nn.Module) -> nn.Module:
        """A network of the structure that `prune` makes of `dense`, its weights to be loaded.

        `load_network` still makes layers of it smaller, where those in the file are.

        Args:
            dense: any network of the dense one's structure, left unchanged.
        """
        ...


@runtime_checkable
class ChecksNetwork(Protocol):
    """A method that tells from a network's structure what it cannot do with it."""

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """Refuses what can be told of it before anything is trained.

        Args:
            dense: untrained, on the CPU; left unchanged.

        Raises:
            ValueError: as `prune` would for any network of this structure.
        """
        ...


@runtime_checkable
class Foresees(Protocol):
    """A method that knows the sizes of its network's layers before it prunes.

    Where trials may be stopped early, it is judged by what that network costs from the first look
    on, however many rounds or layers are still to be pruned.
    """

    def foreseen(self, dense: nn.Module, data: Splits) -> nn.Module:
        """A network with layers of the sizes that `prune` gives; its weights do not matter.

        Args:
            dense: left unchanged.
        """
        ...


@runtime_checkable
class HoldsBack(Protocol):
    """A method that is rewarded for its accuracy on some of the validation images.

    Its networks are judged on the others: on its own it would be better than it is.
    """

    def held_back(self, data: Splits) -> Splits:
        """`data` with only those validation images that `prune` learns nothing from.

        The same ones each time, whatever the dense network and the run.
        """
        ...


def judged_on(method: PruningMethod, data: Splits) -> Splits:
    """`data` with the validation images that a network which `method` made is to be measured on."""
    return method.held_back(data) if isinstance(method, HoldsBack) else data


def load_pruned(path: Path, method: PruningMethod, dense: nn.Module) -> nn.Module:
    """The network that `method` made of `dense` and that `save_network` wrote to `path`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or of another method or network.
    """
    skeleton = method.skeleton(dense) if isinstance(method, Rebuilding) else dense
    return load_network(path, skeleton)
