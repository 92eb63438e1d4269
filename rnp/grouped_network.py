"""Grouped network, which `rnp_groups` makes: groups of channels, computed one after the other for
as long as an image needs more.

No weight leads from one group to another: group g of a layer reads group g of the layer before.
Each group ends in a classifier of its own, and the answer after it is the average of those so far.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from rnp.execution.decision import DecisionNetwork, PreparedStep
from rnp.structure.thin_network import classifier_of
from testbed.inference_form import inference_form
from testbed.looks import average, confidence_of, gathered

STOP, GO_ON = 0, 1
"""The actions after each group but the last."""


class GroupedNetwork(nn.Module):
    """Groups in the order in which they are computed, and what decides who goes on to the next."""

    weights: Tensor
    """(groups,) float32: the share of a group's own log-probabilities in the answer after it."""

    def __init__(self, groups: Sequence[nn.Module], encoding: int = 16, hidden: int = 32) -> None:
        """
        Args:
            groups: networks that end in a linear layer; taken apart there, not copied.
            encoding, hidden: sizes of the decision network (see `DecisionNetwork`).
        """
        super().__init__()
        self.bodies, self.classifiers = nn.ModuleList(), nn.ModuleList()
        read = []
        for group in groups:
            name = classifier_of(group)
            classifier = group.get_submodule(name)
            assert isinstance(classifier, nn.Linear)
            read.append(classifier.in_features)
            parent, _, child = name.rpartition(".")
            setattr(group.get_submodule(parent), child, nn.Identity())
            self.bodies.append(group)
            self.classifiers.append(classifier)
        self.decision = DecisionNetwork([n + 1 for n in read[:-1]], 2, encoding, hidden)
        self.register_buffer("weights", torch.ones(len(read)))
        self._steps: list[PreparedStep | None] = [None] * (len(read) - 1)

    @property
    def n_groups(self) -> int:
        """Of every layer's channels."""
        return len(self.bodies)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (n, classes) of images (n, C, H, W)."""
        return self.masked(images) if self.training else self.compacted(images)

    def compacted(self, images: Tensor) -> Tensor:
        """As `masked`, but each group is computed for those images alone that go on to it."""
        waiting, places, state = images, None, None
        features, looked = self.look(0, images)
        current = answers = looked
        for step in range(self.n_groups - 1):
            values, state = self.decide(step, features, current, state)
            rows = (values.argmax(dim=1) == GO_ON).nonzero().flatten()
            if len(rows) == 0:
                break
            if len(rows) < len(waiting):
                waiting = gathered(waiting, rows)
                current, state = current.index_select(0, rows), state.index_select(0, rows)
                places = rows if places is None else places.index_select(0, rows)
            features, looked = self.look(step + 1, waiting)
            current = average(current, looked, self.weights[step + 1])
            answers = current if places is None else answers.index_copy(0, places, current)
        return answers

    def masked(self, images: Tensor) -> Tensor:
        """As `forward` in evaluation mode, with every group computed for all images."""
        return self._all_groups(images)[0]

    def decided(self, images: Tensor) -> Tensor:
        """How many groups are computed, (n, 1) int64 (see `TellsDecisions`)."""
        return self._all_groups(images)[1][:, None]

    def _all_groups(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (n, classes), and how many groups each image needs, (n,) int64."""
        features, current = self.look(0, images)
        answers, state = current, None
        going = torch.ones_like(answers[:, 0], dtype=torch.bool)
        needed = going.long()
        for step in range(self.n_groups - 1):
            values, state = self.decide(step, features, current, state)
            going = going & (values.argmax(dim=1) == GO_ON)
            needed = needed + going
            features, looked = self.look(step + 1, images)
            current = average(current, looked, self.weights[step + 1])
            answers = torch.where(going[:, None], current, answers)
        return answers, needed

    def look(self, group: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """What a group's classifier reads, (n, features), and its log-probabilities, (n, classes).

        Both float32.
        """
        features = self.bodies[group](images)
        return features.float(), self.classifiers[group](features).float().log_softmax(dim=1)

    def decide(
        self, step: int, features: Tensor, answers: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Q-values of stopping after a group and of going on, (n, 2), and the next state.

        Args:
            features: what the group's classifier read.
            answers: log-probabilities (n, classes) after it.
        """
        return self.decision.fixed(step, observed(features, answers), state, self._steps[step])

    def inference_form(self, example: Tensor) -> Self:
        """The same network of parts that are each in the form in which they run best."""
        form = type(self).__new__(type(self))
        nn.Module.__init__(form)
        form.bodies = nn.ModuleList(inference_form(body, example) for body in self.bodies)
        form.classifiers, form.decision = self.classifiers, self.decision
        form.register_buffer("weights", self.weights)
        form._steps = [self.decision.prepare(step) for step in range(len(self._steps))]
        return form.eval()


def observed(features: Tensor, answers: Tensor) -> Tensor:
    """What is decided from, (n, features + 1): the features, and the answer's margin."""
    margin = confidence_of(answers, "margin")
    return torch.cat([features.detach(), margin.detach()[:, None]], dim=1)
