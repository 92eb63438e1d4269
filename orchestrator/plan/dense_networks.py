"""The dense networks that trials start from, and those that these and they are taught by."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.plan.studies import cells
from orchestrator.plan.trial import Trial
from orchestrator.sweep_file import Sweep
from orchestrator.sweep_file.conditions import decided
from orchestrator.sweep_file.grids_and_ranges import variables
from testbed.backbones import with_defaults
from testbed.data import DataOptions
from testbed.training import Training
from testbed.weights import file_digest


class DenseNetwork(BaseModel):
    """All that determines a trained dense network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataOptions
    backbone: str
    backbone_options: dict[str, Any]
    training: Training  # without distillation where the network would be its own teacher
    seed: int
    teacher: "DenseNetwork | None" = None

    def spec(self, data_fingerprint: str) -> dict[str, Any]:
        """What a `DenseStore` keeps it under.

        The fingerprint says all of the data that matters; of a file of weights its content does.
        """
        options = dict(self.backbone_options)
        weights = options.get("weights")
        if isinstance(weights, str) and Path(weights).is_file():
            options["weights"] = file_digest(Path(weights))
        return {
            **self.model_dump(mode="json", exclude={"data", "teacher"}),
            "backbone_options": options,
            "data": data_fingerprint,
            "teacher": self.teacher and self.teacher.spec(data_fingerprint),
        }


def dense_network(trial: Trial) -> DenseNetwork:
    """The dense network that a trial starts from."""
    return _dense_network(trial.data, _backbone(trial), trial.training, trial.seed)


def fine_tuning_teacher(trial: Trial) -> DenseNetwork | None:
    """The dense network that a trial's fine-tuning distils from, if it distils."""
    if trial.fine_tuning.distillation is None:
        return None
    taught_by = {**_backbone(trial), **trial.fine_tuning.distillation.teacher}
    return _dense_network(trial.data, taught_by, trial.training, trial.seed)


def networks_of(trial: Trial) -> list[DenseNetwork]:
    """The dense networks that must be there for a trial, teachers before their students."""
    needed = [*_with_teachers(dense_network(trial))]
    if teacher := fine_tuning_teacher(trial):
        needed += _with_teachers(teacher)
    return needed


def dense_networks(sweep: Sweep) -> list[DenseNetwork]:
    """The dense networks that are known before the search, each once, teachers before students.

    Those of the confirmation's seeds too: they are as many again, which no core need wait for.

    What depends on a range is not among them: it is known only when the trial is.
    """
    found: dict[str, DenseNetwork] = {}
    for options, _ in cells(sweep.shared):
        sections = decided(options)
        if any(variables({name: sections[name] for name in ("data", "backbone", "training")})):
            continue
        data = DataOptions.model_validate(sections["data"])
        training = Training.model_validate(sections["training"])
        backbones = [sections["backbone"]]
        distillation = {**sections["training"], **sections["fine_tuning"]}.get("distillation")
        # A range, that hangs on the method, is known only with a trial.
        if isinstance(distillation, Mapping) and not any(variables(distillation["teacher"])):
            backbones.append({**sections["backbone"], **distillation["teacher"]})
        for seed in (*sweep.seeds, *sweep.fresh_seeds):
            for backbone in backbones:
                for network in _with_teachers(_dense_network(data, backbone, training, seed)):
                    found.setdefault(network.model_dump_json(), network)
    return list(found.values())


def _backbone(trial: Trial) -> dict[str, Any]:
    return {"name": trial.backbone, **trial.backbone_options}


def _with_teachers(network: DenseNetwork) -> Iterator[DenseNetwork]:
    if network.teacher:
        yield from _with_teachers(network.teacher)
    yield network


def _dense_network(
    data: DataOptions, backbone: Mapping[str, Any], training: Training, seed: int
) -> DenseNetwork:
    options = _with_defaults(backbone)
    teacher = None
    if training.distillation:
        taught_by = _with_defaults({**options, **training.distillation.teacher})
        if taught_by == options:
            training = training.model_copy(update={"distillation": None})
        else:
            teacher = _dense_network(data, taught_by, training, seed)
    return DenseNetwork(
        data=data,
        backbone=options.pop("name"),
        backbone_options=options,
        training=training,
        seed=seed,
        teacher=teacher,
    )


def _with_defaults(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's name and options, also those that a teacher or a range has left out.

    Raises:
        ValueError: if they do not go together.
    """
    options = dict(backbone)
    name = options.pop("name")
    return {"name": name, **with_defaults(name, options)}
