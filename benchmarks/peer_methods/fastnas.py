"""FastNAS of NVIDIA's Model Optimizer: `modelopt.torch.prune.prune(mode="fastnas")`.

Measures for each layer, and each number of channels that it may have, by how much the accuracy on
validation images drops when that layer alone is thinned and batch norms are calibrated anew; then
finds the lowest bound on these drops that meets the budget. Channels are ranked by its own norms.
The network is fine-tuned once.

It counts the multiplications on its own: where ours come to more, it is asked for less, and what it
measured of the layers is kept.

Its output is a smaller network: it runs fewer multiplications.
"""

import contextlib
import copy
import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import modelopt.torch.prune as mtp
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from baselines.channels.channel_removal import example_images
from testbed.cost import multiplications_by_layer
from testbed.data import Splits
from testbed.machine import best_precision
from testbed.method import Run
from testbed.prediction import evaluate

CALIBRATION_BATCHES = 50  # it calibrates with no fewer


class FastNAS(BaseModel):
    """Scored by the accuracy on the validation images that a method is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_multiplications: float = Field(gt=0, lt=1, description="Share to keep, at most.")
    channel_divisor: int | None = Field(
        default=None,
        ge=1,
        description="Layers keep multiples of it; null: of half the channels of the narrowest one.",
    )
    calibration_batch: int = Field(default=16, ge=2, description="Images; of 50 batches.")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """See `PruningMethod`."""
        example = example_images(data, run.device)[:1]
        most = self.keep_multiplications * multiplications_by_layer(model, example).total()
        share = self.keep_multiplications
        with TemporaryDirectory() as folder:
            while True:
                network = self._searched(model, data, run, example, share, Path(folder))
                reached = multiplications_by_layer(network, example).total()
                if reached <= most:
                    break
                share *= 0.99 * most / reached
        run.fine_tune(network, data)
        return network

    def _searched(
        self, model: nn.Module, data: Splits, run: Run, example: Tensor, share: float, folder: Path
    ) -> nn.Module:
        """The network that it finds, of at most this share of its own count of flops."""

        def score(network: nn.Module) -> float:
            precision = run.fine_tuning.precision
            return evaluate(network, data.validation, data, device=run.device, precision=precision)

        config = mtp.fastnas.FastNASConfig().model_dump()
        convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
        divisor = self.channel_divisor or max(1, min(m.out_channels for m in convs) // 2)
        for kind, name in (("nn.Conv2d", "channel"), ("nn.BatchNorm2d", "feature")):
            config[kind]["*"][f"{name}_divisor"] = divisor
        with (
            _autocast(run.device),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            network, _ = mtp.prune(
                copy.deepcopy(model).to(run.device),
                mode=[("fastnas", config)],
                constraints={"flops": f"{100 * share}%"},
                dummy_input=example,
                config={
                    "data_loader": list(self._calibration(data, run)),
                    "collect_func": lambda batch: batch,
                    "score_func": score,
                    "checkpoint": str(folder / "search.pth"),
                    "verbose": False,
                },
            )
        return network

    def _calibration(self, data: Splits, run: Run) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(run.seed)
        order = torch.randperm(len(data.train), generator=generator)
        n = min(len(order), CALIBRATION_BATCHES * self.calibration_batch)
        for rows in order[:n].tensor_split(CALIBRATION_BATCHES):
            yield data.normalised(data.train.select(rows))[:].to(run.device)


def _autocast(device: torch.device) -> torch.autocast:
    """Without its cache of weights, which the traces that count the flops would hold as constants
    with gradients, and fail."""
    enabled = best_precision(device) is torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
