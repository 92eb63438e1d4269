"""Torch-Pruning's pruner by group norms: Fang, Ma, Song, Mi, Wang 2023, "DepGraph: Towards any
structural pruning", CVPR, arXiv 2301.12900.

Its dependency graph, its importance (the L2 norm of all weights of a coupled channel) and its
pruner with the library's defaults; the classifier is spared, as its examples do. The pruning ratio
is found by bisection: the lowest whose network costs at most what is asked for, by our counter.
The network is fine-tuned once.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy

import torch_pruning
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from baselines.channels.channel_removal import example_images
from testbed.cost import multiplications_by_layer
from testbed.data import Splits
from testbed.method import Run

STEPS = 10  # of the bisection: the ratio is found within a thousandth


class GroupNorm(BaseModel):
    """One ratio for every layer, or one threshold for all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_multiplications: float = Field(gt=0, lt=1, description="Share to keep, at most.")
    ranks: bool = Field(default=False, description="All layers' channels in one ranking.")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """See `PruningMethod`."""
        dense = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)[:1]
        most = self.keep_multiplications * multiplications_by_layer(dense, example).total()
        too_little, enough = 0.0, 1.0
        found: nn.Module | None = None
        for _ in range(STEPS):
            middle = (too_little + enough) / 2
            network = self._pruned(dense, example, middle)
            if multiplications_by_layer(network, example).total() <= most:
                enough, found = middle, network
            else:
                too_little = middle
        if found is None:
            raise ValueError(
                f"No pruning ratio leaves {self.keep_multiplications:g} of the multiplications."
            )
        run.fine_tune(found, data)
        return found

    def _pruned(self, dense: nn.Module, example: Tensor, ratio: float) -> nn.Module:
        network = copy.deepcopy(dense).eval()
        *_, classifier = (m for m in network.modules() if isinstance(m, nn.Linear))
        torch_pruning.pruner.BasePruner(
            network,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            global_pruning=self.ranks,
            pruning_ratio=ratio,
            ignored_layers=[classifier],
        ).step()
        return network
