"""A dense network, from the store or trained now."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from orchestrator.plan import DenseNetwork
from orchestrator.run_folder.workplace import Workplace
from testbed.backbones import build_backbone
from testbed.data import Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.machine import best_precision
from testbed.training import Report, ignore, train


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
            return build_backbone(
                network.backbone, splits.input_shape, splits.n_classes, **network.backbone_options
            )

    def train_it(model: nn.Module, checkpoint: Path) -> list[dict[str, float]]:
        history: list[dict[str, float]] = []

        def keep_and_report(values: Mapping[str, float]) -> None:
            history.append(dict(values))
            report(values)

        train(
            model,
            splits,
            network.training,
            seed=network.seed,
            device=device,
            report=keep_and_report,
            teacher=teacher,
            checkpoint=checkpoint,
        )
        return history

    model, record = DenseStore(workplace.dense).get_or_train(spec, build, train_it)
    return model.to(device), record


def network_or_none(
    network: DenseNetwork | None, splits: Splits, workplace: Workplace
) -> nn.Module | None:
    return None if network is None else obtain_dense(network, splits, workplace)[0]
