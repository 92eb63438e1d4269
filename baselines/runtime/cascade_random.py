"""Cascade at random: the control that shows what a cascade gains by knowing where it is unsure.

The networks of `cascade`, and the shares of images that come to each of them; but which images
these are is drawn.

Where we differ from a draw for each image each time: an image's draw is a hash of its pixels and
the seed, so that it comes to the same networks in any batch and every time. Averages are weighted
by what is best for images drawn at random.

Its output runs fewer multiplications, each image its own number of them.
"""

import torch
from torch import Tensor, nn

from baselines.runtime.cascade_network import CascadeNetwork
from baselines.runtime.stages import Stages
from testbed.data import Splits
from testbed.held_back import divided
from testbed.looks import average, fitted_weight
from testbed.method import Run


class CascadeRandom(Stages):
    """The stages' options."""

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `CascadeNetwork` that draws (see `PruningMethod`)."""
        network, decisions, looks = self.trained(model, data, run)
        images, _ = divided(data, self.choice_share, "choice_share")
        network.thresholds.copy_(torch.tensor(decisions.reached[1:]))
        network.seed.fill_(run.seed)
        if self.average:
            network.weights.copy_(torch.tensor(weights_for_all(looks, images.labels.cpu())))
        return network

    def skeleton(self, dense: nn.Module) -> CascadeNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        network = super().skeleton(dense)
        network.confidence = "drawn"
        return network


def weights_for_all(looks: Tensor, labels: Tensor) -> list[float]:
    """Weight of each look in the answer after it, where any image may come to it."""
    weights, answers = [1.0], looks[0]
    for look in looks[1:]:
        weights.append(fitted_weight(answers, look, labels))
        answers = average(answers, look, weights[-1])
    return weights
