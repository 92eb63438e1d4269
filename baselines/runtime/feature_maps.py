"""Feature maps: Liang, Wang, Shi, Glossner 2018, "Dynamic runtime feature map pruning", arXiv
1812.09922, and its published code (darknet).

For each image, maps whose every value is zero, or within `epsilon` of it, are taken for empty; the
next layer does not read them. Nothing is learnt.

Where we differ: the published code counts such maps and computes them all the same; here the layers
that read maps, convs and the linear layer after a flattened one, gather those that hold something
and multiply only these. `epsilon` is in standard deviations of what a layer reads, taken over
training images, as one absolute value means another thing in every layer; `unit: absolute` is the
paper's. Maps are tested as they are read: after activations, pooling and residual sums. A map that
is dropped has been computed already. The paper does not train; here the whole network is fine-tuned
first, as long as those of other methods, and `val_accuracy_before_finetuning` is what the paper's
own way comes to.

With epsilon 0 every output stays. Without ReLU hardly any map is empty; small maps are empty more
often than large ones. Testing takes a comparison for each value that a layer reads, which is no
multiplication: reported as `comparisons`.

Its output runs fewer multiplications, each image its own number of them.
"""

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from baselines.channels.channel_removal import example_images
from baselines.channels.dependency.trace import trace
from baselines.runtime.gathered import conv_on
from testbed.data import Images, Splits, normalise
from testbed.method import Run
from testbed.prediction import autocast, evaluating

BATCH_SIZE = 256


class FeatureMaps(BaseModel):
    """`epsilon` moves along the frontier; at 0 nothing but multiplications changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="A map within it of zero is empty."
    )
    unit: Literal["deviation", "absolute"] = Field(
        default="deviation", description="Of epsilon: deviations of what each layer reads, or 1."
    )
    images: int = Field(
        default=1000, ge=1, description="Training images that the deviations are of."
    )

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        layers_that_read_maps(dense, example_images(data, torch.device("cpu"))[:1])

    def skeleton(self, dense: nn.Module) -> nn.Module:
        """See `Rebuilding`. Which layers skip is in the file."""
        network = copy.deepcopy(dense)
        for module in network.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.__class__ = SkippingConv2d if type(module) is nn.Conv2d else SkippingLinear
                module.inputs_of_map = 0  # type: ignore[assignment]
                module.register_buffer("bound", torch.zeros(()))
        return network

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A fine-tuned network that skips empty maps in evaluation mode (see `PruningMethod`)."""
        network = self.skeleton(model).to(run.device)
        image = example_images(data, run.device)[:1]
        found = layers_that_read_maps(copy.deepcopy(model).to(run.device), image)
        skipping: dict[str, Any] = {name: network.get_submodule(name) for name in found}
        for name, inputs_of_map in found.items():
            skipping[name].inputs_of_map = inputs_of_map
        images = data.train.drawn(self.images, torch.Generator().manual_seed(run.seed))
        self._set_bounds(network, skipping, images, data, run)
        run.fine_tune(network, data)
        self._set_bounds(network, skipping, images, data, run)
        run.report({"comparisons": _values_read(network, skipping, image)})
        return network.eval()

    def _set_bounds(
        self,
        network: nn.Module,
        skipping: dict[str, Any],
        images: Images,
        data: Splits,
        run: Run,
    ) -> None:
        """Sets what counts as empty in each layer, from what it reads while nothing is dropped."""
        for layer in skipping.values():
            layer.bound.fill_(self.epsilon if self.unit == "absolute" else 0)
        if self.unit == "absolute" or self.epsilon == 0:
            return
        sums = {name: np.zeros(3) for name in skipping}  # values, their sum and that of squares

        def note(name: str) -> Callable[[nn.Module, Any], None]:
            def noted(_: nn.Module, given: Any) -> None:
                values = given[0].double()
                both = values.sum().item(), values.square().sum().item()
                sums[name] += (values.numel(), *both)

            return noted

        hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in skipping.items()]
        try:
            precision = autocast(run.fine_tuning.precision, run.device)
            with evaluating(network), torch.no_grad(), precision:
                for part in images.batches(BATCH_SIZE):  # `predict` runs a black image, too
                    network(normalise(part.pixels.to(run.device), data.mean, data.std))
        finally:
            for hook in hooks:
                hook.remove()
        for name, layer in skipping.items():
            n, total, squares = sums[name]
            layer.bound.fill_(self.epsilon * max(0.0, squares / n - (total / n) ** 2) ** 0.5)
        run.report({"statistics_epochs": len(images) / len(data.train)})


def layers_that_read_maps(model: nn.Module, image: Tensor) -> dict[str, int]:
    """The layers that can skip empty maps -> how many of its inputs belong to one map.

    They are ungrouped convs of maps that another layer made, and linear layers of flattened maps.

    Args:
        model: left unchanged.
        image: (1, channels, H, W), normalised, on the model's device.

    Raises:
        ValueError: if there is none.
    """
    modules = dict(model.named_modules())
    found: dict[str, int] = {}
    for reader in trace(model, image).readers:
        module = modules.get(reader.module)
        if reader.weight is None or reader.weight[0] != f"{reader.module}.weight":
            continue
        if type(module) is nn.Conv2d and module.groups == 1:
            found[reader.module] = 1
        elif type(module) is nn.Linear:
            starts = 1 + int(np.count_nonzero(np.diff(reader.labels)))
            inputs, rest = divmod(len(reader.labels), starts)
            blocks = reader.labels[: inputs * starts].reshape(starts, inputs)
            if inputs > 1 and not rest and (blocks == blocks[:, :1]).all():
                found[reader.module] = inputs
    if not found:
        raise ValueError(
            "No layer of this network reads feature maps that it could skip: expected a plain conv "
            "after another one, or a linear layer after flattened maps. Take another method."
        )
    return found


class SkippingConv2d(nn.Conv2d):
    """A conv that does not read empty maps in evaluation mode."""

    inputs_of_map: int
    """1 if it reads maps; 0 if it reads images, so that it skips nothing."""
    bound: Tensor
    """A map with no value beyond it is empty."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or not self.inputs_of_map:
            return super().forward(input)
        full = input.abs().amax(dim=(2, 3)) > self.bound
        return run_alike(input, full, self._on)

    def _on(self, images: Tensor, inputs: Tensor) -> Tensor:
        if len(inputs) == self.in_channels:
            return super().forward(images)
        weight = self.weight.index_select(1, inputs)
        return conv_on(self, images, inputs, weight, self.bias)


class SkippingLinear(nn.Linear):
    """A linear layer that does not read empty flattened maps in evaluation mode."""

    inputs_of_map: int
    """0 if it reads no maps, so that it skips nothing."""
    bound: Tensor
    """A map with no value beyond it is empty."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or not self.inputs_of_map:
            return super().forward(input)
        maps = input.unflatten(1, (-1, self.inputs_of_map))
        full = maps.abs().amax(dim=2) > self.bound
        return run_alike(input, full, self._on)

    def _on(self, values: Tensor, maps: Tensor) -> Tensor:
        if len(maps) * self.inputs_of_map == self.in_features:
            return super().forward(values)
        weight = self.weight.unflatten(1, (-1, self.inputs_of_map)).index_select(1, maps)
        read = values.unflatten(1, (-1, self.inputs_of_map)).index_select(1, maps)
        return F.linear(read.flatten(1), weight.flatten(1), self.bias)


def run_alike(images: Tensor, full: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Runs images that have the same maps empty as one batch each; the results in their order.

    Args:
        images: (n, ...).
        full: (n, maps) bool, which hold something.
        run: gets images and the numbers of the maps that hold something, (k,) int64.
    """
    if len(images) == 1:
        return run(images, full[0].nonzero().flatten())
    kinds, of_image = full.unique(dim=0, return_inverse=True)
    if len(kinds) == 1:
        return run(images, kinds[0].nonzero().flatten())
    order = of_image.argsort(stable=True)
    parts = images.index_select(0, order).split(of_image.bincount().tolist())
    results = [run(part, kind.nonzero().flatten()) for part, kind in zip(parts, kinds, strict=True)]
    return torch.cat(results).index_select(0, order.argsort())


@torch.no_grad()
def _values_read(network: nn.Module, skipping: dict[str, nn.Module], image: Tensor) -> int:
    """How many values the layers that skip read of one image."""
    read: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
        for layer in skipping.values()
    ]
    network.eval()(image)
    for hook in hooks:
        hook.remove()
    return sum(read)
