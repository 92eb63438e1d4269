"""A dense network, from the store or trained now."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from orchestrator.plan import DenseNetwork, Trial
from orchestrator.run_folder.workplace import Workplace
from testbed.backbones import draw_backbone, load_pretrained
from testbed.data import Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.machine import best_precision
from testbed.training import Report, evaluate, ignore, train


def obtain_dense(
    network: DenseNetwork, splits: Splits, workplace: Workplace, report: Report = ignore
) -> tuple[nn.Module, DenseRecord]:
    """The trained dense network, from the store or trained now and kept there, and its record."""
    device = workplace.device
    teacher = network_or_none(network.teacher, splits, workplace)
    # With the same settings another device, or one without bfloat16, makes another network.
    computed = {"device": device.type, "best_precision": str(best_precision(device))}
    spec = {**network.spec(splits.fingerprint), **computed}

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(network.seed)
            return drawn(network, splits)

    def train_it(model: nn.Module, checkpoint: Path) -> list[dict[str, float]]:
        history: list[dict[str, float]] = []

        def keep_and_report(values: Mapping[str, float]) -> None:
            history.append(dict(values))
            report(values)

        load_weights(model, network, splits)
        settings = network.training
        if settings.epochs == 0:  # what it is worth is known by then, as after any epoch
            accuracy = evaluate(
                model, splits.validation, splits, device=device, precision=settings.precision
            )
            keep_and_report({"epoch": 0, "val_accuracy": accuracy})
        train(
            model,
            splits,
            settings,
            seed=network.seed,
            device=device,
            report=keep_and_report,
            teacher=teacher,
            checkpoint=checkpoint,
        )
        return history

    model, record = DenseStore(workplace.dense).get_or_train(spec, build, train_it)
    return model.to(device), record


def drawn(network: DenseNetwork | Trial, splits: Splits) -> nn.Module:
    """The dense network of its kind, freshly drawn: for weights to be loaded."""
    return draw_backbone(
        network.backbone, splits.input_shape, splits.n_classes, network.backbone_options
    )


def load_weights(model: nn.Module, network: DenseNetwork, splits: Splits) -> None:
    """Puts the weights that the sweep file names into `model`.

    Where the network is trained, its last layer need not be in them.

    Raises:
        ValueError: if they do not fit, or cannot be had.
    """
    load_pretrained(
        model,
        network.backbone,
        splits.input_shape,
        splits.n_classes,
        network.backbone_options,
        new_head=network.training.epochs > 0,
    )


def network_or_none(
    network: DenseNetwork | None, splits: Splits, workplace: Workplace
) -> nn.Module | None:
    return None if network is None else obtain_dense(network, splits, workplace)[0]
