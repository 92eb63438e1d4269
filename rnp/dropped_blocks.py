"""Makes a residual network work without some of its blocks, before anything decides without which.

Every image of a training batch does without blocks drawn at random (stochastic depth: Huang, Sun,
Liu, Sedra, Weinberger 2016, "Deep networks with stochastic depth", arXiv 1603.09382). Batch norms
inside a branch see the images alone that take it. `network_routing` and its control,
`static_blocks`, start from the same adapted backbone.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rnp.batch_norm_statistics import estimate_statistics
from rnp.execution.routed_run import COMPUTE
from rnp.routed_network import RoutedNetwork
from testbed.data import Splits
from testbed.method import Run
from testbed.operations import counting_multiplications
from testbed.prediction import evaluating

WHOLE = 0.25  # share of the images that take every block


class BlockAdaptation(BaseModel):
    """What `network_routing` and `static_blocks` have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    adaptation: float = Field(default=0.25, ge=0, le=1)
    """Share of the fine-tuning epochs in which blocks are dropped at random: a quarter of the
    images take all of them, each other one a share that is drawn for it."""


def adapted(
    model: nn.Module,
    data: Splits,
    run: Run,
    adaptation: float,
    encoding: int = 64,
    hidden: int = 128,
) -> RoutedNetwork:
    """A copy of `model` that works on any blocks, with a decision network still to be taught.

    Args:
        adaptation: share of the fine-tuning epochs that it takes, rounded.
        encoding, hidden: sizes of the decision network, which change nothing of the backbone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        network = RoutedNetwork(model, encoding, hidden).to(run.device)
    epochs = round(adaptation * run.fine_tuning.epochs)
    run.fine_tune(RandomBlocks(network), data, epochs, judged=False)  # with all blocks it costs all
    random_statistics(network, data, run)
    return network


def random_statistics(network: RoutedNetwork, data: Splits, run: Run) -> int:
    """Estimates batch norms for blocks as the adaptation drew them; says on how many images."""
    generator = torch.Generator().manual_seed(run.seed)
    n_blocks = len(network.flow.blocks)
    return estimate_statistics(
        network, data, run, lambda n: random_blocks(n, n_blocks, generator=generator)
    )


class RandomBlocks(nn.Module):
    """Draws the blocks of each image while training; computes all of them in evaluation mode."""

    def __init__(self, network: RoutedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        if not self.training or not torch.is_grad_enabled():
            return self.network.whole(images)
        n_blocks = len(self.network.flow.blocks)
        return self.network.routed(images, random_blocks(len(images), n_blocks, images.device))


def random_blocks(
    n: int,
    n_blocks: int,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Actions of n images, (n, blocks) int64 (see `BlockAdaptation.adaptation`).

    Args:
        device: None for the CPU.
        generator: on the device; None for its own.
    """
    share = torch.rand(n, 1, device=device, generator=generator)
    taken = torch.rand(n, n_blocks, device=device, generator=generator) < share
    drawn = torch.rand(n, 1, device=device, generator=generator)
    return torch.where(drawn < WHOLE, COMPUTE, taken.long())


class BlockCost:
    """Multiplications of an image that takes any blocks, its decisions included."""

    def __init__(self, network: RoutedNetwork, data: Splits, deciding: bool = True) -> None:
        """
        Args:
            deciding: whether decisions are made.
        """
        n_blocks = len(network.flow.blocks)
        steps = range(n_blocks if deciding else 0)
        self._deciding = sum(network.decision.multiplications(step) for step in steps)
        whole = torch.ones(1, n_blocks, dtype=torch.int64)
        self.dense = _counted(network, whole, data)
        without = _counted(network, torch.zeros_like(whole), data)
        one_each = torch.eye(n_blocks, dtype=torch.int64).split(1)
        blocks = [_counted(network, one, data) - without for one in one_each]
        self.least = without + self._deciding
        self._blocks = torch.tensor(blocks, dtype=torch.float64)

    def __call__(self, actions: tuple[int, ...]) -> int:
        """Multiplications of an image for which these actions are taken."""
        return round(self.of_images(torch.tensor([actions])).item())

    def of_images(self, actions: Tensor) -> Tensor:
        """Multiplications of each image, (n,) float64, that takes its own actions, (n, blocks)."""
        return self.least + actions.double() @ self._blocks.to(actions.device)

    def prices(self) -> Tensor:
        """What each branch multiplies, (blocks,), relative to the mean one."""
        return (self._blocks / self._blocks.mean()).float()

    def budget(self, keep_multiplications: float) -> float:
        """Multiplications that such a share of the dense ones comes to.

        Raises:
            ValueError: if they are more where every block is skipped.
        """
        if self.least > keep_multiplications * self.dense:
            share = math.ceil(1e4 * self.least / self.dense) / 1e4
            raise ValueError(
                f"keep_multiplications {keep_multiplications:g} cannot be reached: without all "
                f"{len(self._blocks)} blocks that can be skipped {share:g} of the multiplications "
                "are left"
                + (f", deciding takes {self._deciding / self.dense:.2g}" * (self._deciding > 0))
                + ". Ask for that or more."
            )
        return keep_multiplications * self.dense


def _counted(network: RoutedNetwork, actions: Tensor, data: Splits) -> int:
    """Multiplications of one image, of no content, without decisions."""
    black = torch.zeros(1, *data.input_shape, device=next(network.parameters()).device)
    with evaluating(network), torch.no_grad(), counting_multiplications(network) as by_layer:
        network.routed(black, actions.to(black.device))
    return by_layer.total()
