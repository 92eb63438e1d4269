"""Runtime network, which RNP makes: it looks at each image and computes only the channels needed.

In training mode it computes all channels and masks those that an image does without, so that
gradients reach the backbone; in evaluation mode it skips them (see `skipping`).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from rnp.execution.decision import DecisionNetwork, decisions
from rnp.execution.layers import allow_prefixes
from rnp.execution.masked_run import MaskedRun
from rnp.execution.prepared import PreparedNetwork
from rnp.execution.skipping import logits_skipping
from rnp.structure.channel_flow import channel_flow
from rnp.structure.channel_groups import prefix_sizes_of_older_files
from rnp.structure.trace import adopt
from testbed.prediction import evaluating


class RuntimeNetwork(nn.Module):
    """A backbone whose layers keep their names, beside them `decision`, the decision network."""

    decision_prefixes: Tensor
    """(decisions, actions) int64: the channels that each action computes. A network file's decide,
    whatever rule made them."""
    later_buffers = ("decision_prefixes",)

    def __init__(
        self, backbone: nn.Module, groups: int = 4, encoding: int = 64, hidden: int = 128
    ) -> None:
        """
        Args:
            backbone: copied; its prunable convs' channels are grouped as they stand.
            groups: of each prunable conv's channels; as many actions has every step.
            encoding, hidden: sizes of the decision network (see `DecisionNetwork`).

        Raises:
            ValueError: if nothing of the backbone can be pruned at run time, or one of
                its parts is called like one of the network made of it.
        """
        super().__init__()
        backbone = copy.deepcopy(backbone)
        self.flow = channel_flow(backbone, groups)
        own = ("decision", "decision_prefixes", "flow")
        adopt(self, backbone, self.flow.graph, own)
        convs = (cast(nn.Conv2d, self.get_submodule(conv.name)) for conv in self.flow.convs)
        inputs = [conv.in_channels for conv in convs]
        allow_prefixes(self, self.flow.norms, groups)
        self.decision = DecisionNetwork(inputs, groups, encoding, hidden)
        prefixes = torch.tensor([conv.prefixes for conv in self.flow.convs])
        self.register_buffer("decision_prefixes", prefixes)
        self.register_load_state_dict_post_hook(_take_prefixes)
        self._prepared: PreparedNetwork | None = None

    def of_older_file(self, key: str, found: Mapping[str, Tensor]) -> Tensor:
        """The prefixes of a network file that does not hold them (see `load_network`)."""
        convs, groups = self.flow.convs, self.flow.groups
        return torch.tensor([prefix_sizes_of_older_files(conv.channels, groups) for conv in convs])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W), each computed as its decisions say.

        In evaluation mode no gradient flows.
        """
        return self.masked(images) if self.training else self.skipping(images)

    @torch.no_grad()
    def skipping(self, images: Tensor, actions: Tensor | None = None) -> Tensor:
        """The logits of `forward` in evaluation mode: only the chosen prefixes are computed.

        Weights are prepared once and again when they change. What writes into their `.data`, or a
        fused optimiser without a forward pass before, goes unnoticed until the network is moved or
        its mode is set.

        Args:
            actions: (n, decisions) int64 to run with instead of the network's own decisions.

        Raises:
            ValueError: if images or actions have another shape, or there is no such action.
        """
        self._check(images, actions)
        if actions is not None and ((actions < 0) | (actions >= self.flow.groups)).any():
            raise ValueError(
                f"Expected actions from 0 to {self.flow.groups - 1}, got "
                f"{int(actions.min())} to {int(actions.max())}."
            )
        if self.training:
            with evaluating(self):
                return self.skipping(images, actions)
        if len(images) == 0:
            return self.masked(images, actions)
        if self._prepared is None or not self._prepared.is_current():
            self._prepared = PreparedNetwork(self, self.decision, self.flow)
        return logits_skipping(self._prepared, images, actions)

    def masked(self, images: Tensor, actions: Tensor | None = None) -> Tensor:
        """As `skipping`, with all channels computed and those left out set to zero."""
        return self.masked_run(images, actions).logits

    def masked_run(self, images: Tensor, actions: Tensor | None = None) -> MaskedRun:
        """The run that `masked` has the logits of, which also has the actions taken."""
        self._check(images, actions)
        if torch.is_grad_enabled():
            self._prepared = None  # a fused optimiser changes weights without leaving a trace
        run = self.started(images)
        if actions is None:
            decisions(self.decision.fixed, run)
        else:
            while run.observe() is not None:
                run.act(actions[:, len(run.actions)])
        return run

    def decided(self, images: Tensor) -> Tensor:
        """The actions taken, (n, decisions) int64 from 0 (see `TellsDecisions`)."""
        return torch.stack(self.masked_run(images).actions, dim=1)

    def started(self, images: Tensor) -> MaskedRun:
        """A run of images (n, C, H, W), which waits for its first action."""
        return MaskedRun(self, self.flow, images)

    def train(self, mode: bool = True) -> Self:
        self._prepared = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._prepared = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def _check(self, images: Tensor, actions: Tensor | None) -> None:
        if images.ndim != 4:
            raise ValueError(f"Expected images (n, C, H, W), got shape {tuple(images.shape)}.")
        expected = (images.shape[0], len(self.flow.convs))  # len() would fix the batch of an export
        if actions is not None and actions.shape != expected:
            raise ValueError(
                f"Expected actions (images, decisions), here {expected}, got "
                f"{tuple(actions.shape)}."
            )


def _take_prefixes(network: RuntimeNetwork, _: object) -> None:
    """Makes a network whose weights were loaded run with the prefixes that came with them."""
    network.flow = network.flow.with_prefixes(network.decision_prefixes.tolist())
    network._prepared = None
