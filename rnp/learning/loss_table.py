"""Loss table: losses and features of every image under every combination of prefixes.

They are computed once. With few decisions there are few combinations, and prefixes share the work
of what they have in common. A decision network then learns from the table, without the backbone:
thousands of batches in seconds. The price is that the training images are augmented once, not anew
for every batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.environment import BackboneEnvironment, Episodes
from rnp.prefix_cost import Deciding
from testbed.data import Splits

# 7 blocks of a ResNet-20, which cost 33 passes an image as counted here; 64 combinations of 4
# convs, the first of them never pruned, cost 6 to 10 on one CPU core. 2,000 batches of 256 live
# episodes cost 512,000 passes.
MOST_COMBINATIONS = 128
BATCH_SIZE = 256


def n_combinations(decision: DecisionNetwork) -> int:
    """In how many ways an image can go through the network."""
    return int(decision.n_actions ** len(decision.inputs))


class LossTable:
    """An environment whose episodes are looked up."""

    def __init__(self, live: BackboneEnvironment) -> None:
        """Runs all images of a live environment."""
        network, device = live.network, live.device
        self.n_images = live.n_images
        self.device = device
        self.n_actions = network.decision.n_actions
        steps = network.decision.inputs
        self.features = [
            torch.empty(self.n_images, self.n_actions**step, n, device=device)
            for step, n in enumerate(steps)
        ]
        """Of each step, (images, ways to get there, C): what is observed."""
        self.losses = torch.empty(self.n_images, self.n_actions ** len(steps), device=device)
        """(images, combinations). Column a_1 k^(m-1) + a_2 k^(m-2) + ... + a_m belongs to the
        actions a_1, ..., a_m of k; in `features` likewise those taken so far."""
        for images in torch.arange(self.n_images).split(BATCH_SIZE):
            self._fill(images.to(device), live.start(images))
        self.backbone_images = live.backbone_images

    def start(self, images: Tensor) -> "TableEpisodes":
        images = images.to(self.device)
        return TableEpisodes(self, images, torch.zeros_like(images))

    def _fill(self, images: Tensor, episodes: Episodes, step: int = 0, column: int = 0) -> None:
        features = episodes.observe()
        if features is None:
            self.losses[images, column] = episodes.losses
            return
        self.features[step][images, column] = features
        for action in range(self.n_actions):
            further = episodes.fork()
            further.act(torch.full_like(images, action))
            self._fill(images, further, step + 1, column * self.n_actions + action)


@dataclass
class TableEpisodes:
    """Episodes of images whose features and losses are in a table."""

    table: LossTable
    images: Tensor
    columns: Tensor
    """Where each image has come to by its actions, (n,) int64."""
    step: int = 0

    def observe(self) -> Tensor | None:
        if self.step == len(self.table.features):
            return None
        return self.table.features[self.step][self.images, self.columns]

    def act(self, actions: Tensor) -> None:
        self.columns = self.columns * self.table.n_actions + actions
        self.step += 1

    def fork(self) -> "TableEpisodes":
        return replace(self)

    @property
    def losses(self) -> Tensor:
        return self.table.losses[self.images, self.columns]


def passes_per_image(network: Deciding, data: Splits) -> float:
    """What an image's row of the table costs, in multiplications of a full pass."""
    one = replace(data, train=data.train.select(torch.zeros(1, dtype=torch.int64)))
    device = next(network.parameters()).device
    live = BackboneEnvironment(network, one, torch.Generator(), device, "float32")
    return LossTable(live).backbone_images
