"""Checks of a sweep's data, networks and methods, before anything is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from orchestrator.jobs.dense import drawn, load_weights
from orchestrator.methods import method_class
from orchestrator.plan import Plan
from orchestrator.plan.jobs import splits_key
from orchestrator.sweep_file import SweepFileError
from testbed.data import Splits, load_splits
from testbed.method import ChecksNetwork
from testbed.prediction import check_logits

SEEN_BY_METHODS = {"method", "options", "data", "backbone", "backbone_options"}  # of a trial


@contextmanager
def as_bad_input() -> Iterator[None]:
    """What goes wrong before the first job is for the user to mend, so it gets no traceback."""
    try:
        yield
    except SweepFileError:
        raise
    except (ValueError, OSError) as error:
        raise SweepFileError([str(error)]) from error


def load_shared(plan: Plan, data_root: Path) -> dict[str, Splits]:
    """The splits of every data set and seed of the sweep, by `splits_key`."""
    shared: dict[str, Splits] = {}
    for data, seed in plan.splits:
        splits = shared[splits_key(data, seed)] = load_splits(data, data_root, seed)
        _ = splits.fingerprint  # worked out here once, and not in every worker
    return shared


def check_networks(plan: Plan, shared: Mapping[str, Splits]) -> None:
    """Builds every kind of dense network that is known, and runs it, before any is trained.

    Raises:
        ValueError: if one does not fit its images, say because they are too small for it, or its
            weights do not fit, or what it gives is no logits of the data's classes.
    """
    looked_at: set[str] = set()
    for network in plan.dense_networks:
        splits = shared[splits_key(network.data, network.seed)]
        shape = (*splits.input_shape, splits.n_classes, network.training.epochs > 0)
        kind = f"{network.backbone} {network.backbone_options} {shape}"
        if kind not in looked_at:
            looked_at.add(kind)
            model = drawn(network, splits)
            load_weights(model, network, splits)
            _check_outputs(network.backbone, model, splits)


def _check_outputs(name: str, model: nn.Module, splits: Splits) -> None:
    """Checks what a network gives for two images, in evaluation and in training mode."""
    images = torch.zeros(2, *splits.input_shape)
    with torch.random.fork_rng(), torch.no_grad():
        for training in (False, True):
            try:
                output = model.train(training)(images)
            except Exception:
                # A user's forward may need what the CPU lacks, or more images than these: a trial
                # will tell.
                continue
            try:
                check_logits(output, len(images), splits.n_classes)
            except ValueError as error:
                raise ValueError(f"backbone {name}: {error}") from error


def check_methods(plan: Plan, shared: Mapping[str, Splits]) -> None:
    """Has methods look at the untrained networks that they are to prune.

    What is searched in `training` and `fine_tuning` does not matter to them; studies that search
    anything else are left to their trials.

    Raises:
        SweepFileError: with all that they refuse.
    """
    problems: list[str] = []
    looked_at: set[str] = set()
    for study in plan.studies:
        if any(not path.startswith(("training.", "fine_tuning.")) for path in study.ranges):
            continue
        trial = study.trial(0, study.values(lambda _, found: found.drawn[0]))
        seen = trial.model_dump_json(include=SEEN_BY_METHODS)
        method = method_class(trial.method).model_validate(trial.options)
        if seen in looked_at or not isinstance(method, ChecksNetwork):
            continue
        looked_at.add(seen)
        splits = shared[splits_key(trial.data, trial.seed)]
        try:
            method.check_network(drawn(trial, splits), splits)
        except ValueError as error:
            problems.append(f"{study.name}: {error}")
        except Exception:
            # A user's forward may raise anything, or need what the CPU lacks: its trials will tell.
            continue
    if problems:
        raise SweepFileError(problems)
