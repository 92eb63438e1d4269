"""Cascade: each image goes on to a wider network only where the narrower one is unsure.

After Viola and Jones 2001, "Rapid object detection using a boosted cascade of simple features",
CVPR; of whole networks by their confidence: Wang, Kondratyuk, Christiansen, Kitani, Alon, Eban
2022, "Wisdom of committees: an overlooked approach to faster and more accurate models", ICLR, arXiv
2012.01988.

Thin networks of the dense one's kind, each trained from scratch as `vanilla` trains them, answer
first, the narrowest before the others; the dense network, fine-tuned, comes last. An image goes on
where the answer so far is unsure, by the margin between its two most probable classes.

Where we differ: the answer is the average of all looks' log-probabilities, weighted, not of their
probabilities. Thresholds and weights are chosen for a budget of mean multiplications, on a part of
the validation images (`choice_share`); every accuracy that is reported is of the others
(`held_back`). Stages share no weights.

It trains several networks, each for as many epochs as other methods train one: compare its
`training_epochs` and `training_multiplications` with theirs.

Its output runs fewer multiplications, each image its own number of them.
"""

from torch import nn

from baselines.runtime.stages import Stages, set_decisions
from testbed.data import Splits
from testbed.method import Run


class Cascade(Stages):
    """The stages' options."""

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `CascadeNetwork` (see `PruningMethod`)."""
        network, decisions, _ = self.trained(model, data, run)
        set_decisions(network, decisions)
        return network
