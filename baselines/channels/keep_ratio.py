"""Keep ratio: a share of every layer's channels, or the one that leaves a share of the cost."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from baselines.channels.channel_graph import (
    PrunableLayer,
    prunable_layers,
    why_layers_keep_their_channels,
)
from baselines.channels.channel_removal import example_images, n_removed, remove_channels
from testbed.cost import multiplications_by_layer
from testbed.data import Splits

KeepRatio = Annotated[
    float, Field(gt=0, le=1, description="Share of its channels that every prunable layer keeps.")
]
KeepMultiplications = Annotated[
    float, Field(gt=0, le=1, description="Share of the dense network's multiplications to keep.")
]
DEFAULT_KEEP_RATIO = 0.5
LARGEST_MISS = 0.1  # relative; how far a reachable share may lie from the one asked for


class KeepAmount(BaseModel):
    """Options of channel methods: how much to keep, by one of both amounts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: KeepRatio | None = None
    keep_multiplications: KeepMultiplications | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, options: Any) -> Any:
        """Refuses both amounts; fills in the default."""
        if not isinstance(options, Mapping):
            return options
        given = [o for o in ("keep_ratio", "keep_multiplications") if options.get(o) is not None]
        if len(given) == 2:
            raise ValueError("give keep_ratio or keep_multiplications, not both")
        return options if given else {**options, "keep_ratio": DEFAULT_KEEP_RATIO}

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self.channels_to_remove(dense, example_images(data, torch.device("cpu")))

    def channels_to_remove(
        self, network: nn.Module, example: Tensor
    ) -> tuple[float, dict[str, int]]:
        """The keep ratio, and how many channels each prunable conv loses (see the function)."""
        return channels_to_remove(network, example, self.keep_ratio, self.keep_multiplications)


def channels_to_remove(
    model: nn.Module,
    example: Tensor,
    keep_ratio: float | None,
    keep_multiplications: float | None,
    *,
    linear_layers: bool = False,
) -> tuple[float, dict[str, int]]:
    """The keep ratio, and how many channels each prunable conv loses by it.

    Args:
        example: (n, channels, height, width), a valid input, on the model's device.
        linear_layers: whether prunable linear layers lose units by it too.

    Raises:
        ValueError: if no layer can be pruned, no channel would go though less than all is to be
            kept, or the share of multiplications cannot be reached.
    """
    prunable = prunable_layers(model, example, linear=linear_layers)
    if keep_ratio is None:
        assert keep_multiplications is not None
        keep_ratio = _keep_ratio_for(keep_multiplications, model, example, prunable, linear_layers)
    removed = _removed(keep_ratio, prunable)
    if keep_ratio < 1 and not any(removed.values()):
        widest = max(layer.channels for layer in prunable.values())
        raise ValueError(
            f"keep_ratio {keep_ratio:g} removes nothing: of the {widest} channels of the widest "
            f"prunable layer it takes {(1 - keep_ratio) * widest:.2g}, which rounds to none. "
            f"Ask for less than {1 - 0.5 / widest:.4g}, or for 1 to keep all."
        )
    return keep_ratio, removed


def _removed(keep_ratio: float, prunable: Mapping[str, PrunableLayer]) -> dict[str, int]:
    return {name: n_removed(keep_ratio, layer.channels) for name, layer in prunable.items()}


def _keep_ratio_for(
    share: float,
    model: nn.Module,
    example: Tensor,
    prunable: Mapping[str, PrunableLayer],
    linear_layers: bool,
) -> float:
    """The keep ratio whose network comes nearest to `share` of the dense multiplications.

    Found by bisection on a closed form; the network that it leads to is counted in the end.
    """
    if share == 1:
        return 1.0
    image = example[:1]
    costs = multiplications_by_layer(model, image)
    dense = costs.total()

    def share_at(keep_ratio: float) -> float:
        kept = _kept_shares(model, prunable, _removed(keep_ratio, prunable))
        return sum(n * kept.get(layer, 1.0) for layer, n in costs.items()) / dense

    below, above = 0.0, 1.0  # share_at rises in steps; the one that crosses `share` lies between
    while above - below > 1e-6:
        middle = (below + above) / 2
        below, above = (below, middle) if share_at(middle) > share else (middle, above)
    # Where nothing goes at `above`, only what lies below it prunes at all.
    found = [ratio for ratio in (below, above) if ratio > 0 and share_at(ratio) < 1]
    best = min(found, key=lambda ratio: abs(share_at(ratio) - share))
    removed = {name: range(n) for name, n in _removed(best, prunable).items()}
    thinned = remove_channels(model, example, removed)
    reached = multiplications_by_layer(thinned, image).total() / dense
    if abs(reached - share) > LARGEST_MISS * share:
        held = why_layers_keep_their_channels(model, example, costs, linear=linear_layers)
        raise ValueError(
            f"keep_multiplications {share:g} cannot be reached within {LARGEST_MISS:.0%}: the "
            f"nearest that thinning every prunable layer of this network comes to is "
            f"{reached:.3g}, in a range from {share_at(0.0):.3g} (one channel in each) to 1. "
            + (f"These layers keep their channels: {held}. " if held else "")
            + "Ask for a share in that range."
        )
    return best


def _kept_shares(
    model: nn.Module, prunable: Mapping[str, PrunableLayer], removed: Mapping[str, int]
) -> dict[str, float]:
    """Layer -> share of its multiplications that stays when convs lose so many channels.

    A layer costs in proportion to its outputs times its inputs, a depthwise conv to its channels.
    """
    inputs_lost: dict[str, int] = {}
    kept: dict[str, float] = {}
    for name, layer in prunable.items():
        for thinned in (name, *layer.depthwise):
            kept[thinned] = 1 - removed[name] / layer.channels
        for reader, inputs in layer.readers.items():
            inputs_lost[reader] = inputs_lost.get(reader, 0) + removed[name] * inputs
    for reader, lost in inputs_lost.items():
        n_inputs = model.get_parameter(f"{reader}.weight").shape[1]  # no reader is grouped
        kept[reader] = kept.get(reader, 1.0) * (1 - lost / n_inputs)
    return kept
