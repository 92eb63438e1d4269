"""Skipping run: images that compute the same prefixes go through as one batch.

Such a batch holds the computed channels only. From one segment of the network to the next (see
`segments`) the images are gathered anew, one block of memory each, so nothing but prefixes is ever
copied or held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from rnp.execution.prepared import PreparedNetwork
from rnp.execution.segments import Segment

# On a CPU the first segments, whose images are largest, take so many of them at a time: they then
# stay in its cache between being computed, looked at and gathered.
CHUNK = 32
FIRST = 2  # segments: up to the first decision, and what it is about


def logits_skipping(
    network: PreparedNetwork, images: Tensor, actions: Tensor | None = None
) -> Tensor:
    """Logits (n, classes) of images (n, C, H, W), at least one.

    Args:
        actions: (n, decisions) int64 to run with instead of the network's own decisions.
    """
    n = len(images)
    given: list[list[int]] = [] if actions is None else actions.T.tolist()
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    if n == 1:
        return _logits_of_one(network, images, [action for (action,) in given])
    at_once = CHUNK if images.device.type == "cpu" else n
    chunks: list[_Batch] = []
    for start in range(0, n, at_once):
        chunk = images[start : start + at_once]
        values = {network.images: _Value([chunk], [list(range(len(chunk)))])}
        of_chunk = [of_step[start : start + at_once] for of_step in given]
        chunks.append(_Batch(network, len(chunk), values, of_chunk))
        for segment in network.segments[:FIRST]:
            chunks[-1].run(segment)
    batch = _joined(chunks) if len(chunks) > 1 else chunks[0]
    for segment in network.segments[FIRST:]:
        batch.run(segment)
    return batch.values[network.logits].of(list(range(n)))


def _logits_of_one(network: PreparedNetwork, image: Tensor, actions: list[int]) -> Tensor:
    """As above, of (1, C, H, W): no batches, whose keeping would cost a tenth of the time."""
    dtype = network.autocast_dtype()
    values: dict[fx.Node, Any] = {network.images: image}
    state = None
    for segment in network.segments:
        if segment.decision == len(actions):
            maps = values[segment.observed]
            (action,), state = network.decide(segment.decision, [maps], [0], state)
            actions.append(action)
        own = tuple([actions[step] for step in segment.steps])
        for gives, function, takes in network.calls(segment, own, dtype):
            values[gives] = function(*[values[node] for node in takes])
    logits: Tensor = values[network.logits]
    return logits


@dataclass
class _Value:
    """A value of all images, in the batches in which they ran."""

    batches: list[Tensor] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    """Of each batch, the numbers of its images."""

    def of(self, images: list[int]) -> Tensor:
        """The value of these images as one batch; copied only if they did not run together."""
        if images in self.members:
            return self.batches[self.members.index(images)]
        rows = torch.stack([self._rows[image] for image in images])
        return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows

    @cached_property
    def _rows(self) -> dict[int, Tensor]:
        rows: dict[int, Tensor] = {}
        for batch, members in zip(self.batches, self.members, strict=True):
            # As feature maps lie in memory (channels last), so that an image is one block.
            blocks = batch.permute(0, 2, 3, 1) if batch.ndim == 4 else batch
            rows.update(zip(members, blocks.unbind(), strict=True))
        return rows


@dataclass
class _Batch:
    """Images on their way through the network."""

    network: PreparedNetwork
    n: int
    values: dict[fx.Node, _Value]
    actions: list[list[int]]
    """Of each step taken, or all that are given: every image's."""
    state: Tensor | None = None
    """The decision network's."""

    def run(self, segment: Segment) -> None:
        """Takes all images through a segment, once its decision is made."""
        if segment.decision == len(self.actions):
            self._decide(segment.decision, self.values[segment.observed])
        dtype = self.network.autocast_dtype()
        kept = {node: _Value() for node in segment.keeps}
        for actions, members in self._groups(segment.steps).items():
            values: dict[fx.Node, Any] = {
                node: self.values[node].of(members) for node in segment.takes
            }
            for gives, function, takes in self.network.calls(segment, actions, dtype):
                values[gives] = function(*[values[node] for node in takes])
            for node, value in kept.items():
                value.batches.append(values[node])
                value.members.append(members)
        for node in segment.last_uses:
            del self.values[node]
        self.values.update(kept)

    def _decide(self, step: int, seen: _Value) -> None:
        images = list(chain.from_iterable(seen.members))
        actions, self.state = self.network.decide(step, seen.batches, images, self.state)
        self.actions.append(actions)

    def _groups(self, steps: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
        """The images that agree in their actions of `steps`."""
        if not steps:
            return {(): list(range(self.n))}
        groups: dict[tuple[int, ...], list[int]] = {}
        of_images = zip(*(self.actions[step] for step in steps), strict=True)
        for image, actions in enumerate(of_images):
            groups.setdefault(actions, []).append(image)
        return groups


def _joined(chunks: list[_Batch]) -> _Batch:
    """The chunks' images as one batch, in their order."""
    of_steps = zip(*(chunk.actions for chunk in chunks), strict=True)
    actions = [list(chain.from_iterable(of_chunks)) for of_chunks in of_steps]
    states = [chunk.state for chunk in chunks if chunk.state is not None]
    values = {node: _Value() for node in chunks[0].values}
    start = 0
    for chunk in chunks:
        for node, value in values.items():
            value.batches += chunk.values[node].batches
            value.members += [[start + i for i in each] for each in chunk.values[node].members]
        start += chunk.n
    return _Batch(chunks[0].network, start, values, actions, torch.cat(states) if states else None)
