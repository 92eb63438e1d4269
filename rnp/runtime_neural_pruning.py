"""Runtime Neural Pruning: Lin, Rao, Lu, Zhou 2017, "Runtime neural pruning", NIPS 30.

A decision network looks at each image, conv by conv, and lets the backbone compute only the channel
groups that this image needs. It learns by Q-learning from the loss of the image and a penalty `p`
for each group; backbone and decision network are trained in turn (the paper's algorithm 1).

Where we differ: the paper leaves sizes, rates and schedules open; they are options, each with its
default's reason. Channels are ordered by importance before they are grouped, and pooled features
are standardised, as both made the policies better. The backbone first learns to work on random
prefixes, within the same fine-tuning epochs that every method gets. Batch norms have statistics for
each prefix, estimated anew for random prefixes before decisions are learnt, and for the network's
own once it is fine-tuned. The linear layer after the last
conv takes only the prefix too. On residual networks the first conv of each block is pruned. Passes
of images through the backbone for Q-learning are not epochs, but reported beside them
(`q_learning_epochs`).

Its output runs fewer multiplications, each image its own number of them.
"""

import copy

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from rnp.adaptation import Adaptation, adapted
from rnp.batch_norm_statistics import estimate_statistics
from rnp.execution.decision import DecisionNetwork
from rnp.learning.options import QLearning
from rnp.learning.qlearning import learn_decisions, meet_budget
from rnp.rounds import affordable, epochs_per_round, report_round
from rnp.runtime_network import RuntimeNetwork
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run
from testbed.prediction import evaluating


class RNP(Adaptation, QLearning):
    """Fine-tuning epochs left by the adaptation are shared evenly by the rounds."""

    rounds: int = Field(default=2, ge=1, validate_default=True)  # against the budget, too
    """Rounds of teaching the decision network, then the backbone."""
    learn_last: bool = False
    """Learn the decisions anew after the last fine-tuning, which has changed the backbone that they
    were learnt for. Costs a learning phase, but no epochs. With a budget, which is met in any case,
    it gained nothing on CIFAR-10; with p it helped."""
    encoding: int = Field(default=64, ge=1)
    """Length of a layer's encoding; longer ones cost, gain little."""
    hidden: int = Field(default=128, ge=1)
    """Length of the recurrent state; as for the encoding."""

    _affordable = field_validator("rounds")(affordable)

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self.check(self.skeleton(dense), data)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `RuntimeNetwork` made of `model` (see `PruningMethod`).

        Resumes after the adaptation or the last complete round, if the run has a folder.
        """
        network = self.skeleton(model).to(run.device)
        self.check(network, data)
        epochs = epochs_per_round(self.rounds, run.fine_tuning.epochs, self.adaptation)
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        if completed < 0:
            network = adapted(model, data, run, self, self.encoding, self.hidden)
            self._before_learning(network.decision)
            completed = 0
        for number in range(completed + 1, self.rounds + 1):
            # The backbone is fixed.
            seen = self.random_statistics(network, data, run) if number > 1 else 0
            learned = learn_decisions(network, data, self, run, number)
            # The decision network is fixed.
            teacher = self.teacher(copy.deepcopy(network))
            run.fine_tune(network, data, epochs[number - 1], teacher)
            seen += estimate_statistics(network, data, run)
            if number == self.rounds and self.keep_multiplications is not None:
                learned = meet_budget(network, data, self, learned, run)
            report_round(network, data, run, number, learned, seen, mean_actions)
            checkpoint.save(number, network)
        network.eval()
        return self.relearn(network, data, run) if self.learn_last else network

    def relearn(self, network: RuntimeNetwork, data: Splits, run: Run) -> RuntimeNetwork:
        """Another point of the curve: the same backbone, decisions learnt anew with these options.

        It costs no training of the backbone, whose batch-norm statistics alone are estimated anew:
        one adapted backbone serves a whole frontier.

        Args:
            network: what `prune` returned, for any `p`; left unchanged.

        Raises:
            ValueError: if its channels are in another number of groups than `k`.
        """
        if network.flow.groups != self.k:
            raise ValueError(
                f"Expected a network of k = {self.k} groups, as in these options, got one of "
                f"{network.flow.groups}. Groups are chosen before the backbone is adapted."
            )
        network = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(run.seed)
            network.decision = DecisionNetwork(
                network.decision.inputs, self.k, self.encoding, self.hidden
            )
        self._before_learning(network.decision)
        network.to(run.device)
        seen = self.random_statistics(network, data, run)
        learned = learn_decisions(network, data, self, run, self.rounds + 1)
        seen += estimate_statistics(network, data, run)
        if self.keep_multiplications is not None:
            learned = meet_budget(network, data, self, learned, run)
        report_round(network, data, run, self.rounds + 1, learned, seen, mean_actions)
        return network

    def skeleton(self, dense: nn.Module) -> RuntimeNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        return RuntimeNetwork(dense, self.k, self.encoding, self.hidden)

    def _before_learning(self, decision: DecisionNetwork) -> None:
        if self.keep_multiplications is not None:
            decision.favour_all()  # from where the penalty begins


@torch.no_grad()
def decide(network: RuntimeNetwork, images: Tensor) -> Tensor:
    """The actions that the network takes on normalised images: (n, decisions) int64, from 0."""
    with evaluating(network):
        return network.decided(images)


def mean_actions(network: RuntimeNetwork, images: Tensor) -> dict[str, float]:
    """Mean action of each conv on normalised images, counted from 1 as in the paper."""
    means = decide(network, images).double().mean(dim=0).tolist()
    names = [conv.name for conv in network.flow.convs]
    return {f"mean_action.{name}": mean + 1 for name, mean in zip(names, means, strict=True)}
