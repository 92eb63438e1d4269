"""PCAS: Yamamoto, Maeno 2018, "PCAS: pruning channels with attention statistics for deep network
compression", BMVC 2019, arXiv 1806.05382.

After the training, attention modules are put between the layers of the frozen network and trained
alone. What attention a channel gets on average over images ranks the channels of all layers
together; one ratio for the whole network says how many go. The attention goes too, and the network
is fine-tuned.

Where we differ: of the paper's attention we know that it squeezes and excites (Hu et al. 2018); its
exact form is our choice. A group of C channels gets `A = C softmax(...)`, so that its importances
average exactly 1 and one threshold compares all layers; `attention: sigmoid` has the usual gates,
which no scale makes comparable. It is put where the next layer reads the channels, after norm and
activation; where several layers read a channel, as in a residual network, one module attends for
all of them. Without attention the remaining channels would be scaled otherwise than they were
learnt to be, so its mean is folded into the weights that read them (`fold`). The most important
channel of each group stays. A group that a layer reads whose weight is no parameter of a conv or
linear layer stays whole.

The attention's training is no fine-tuning; its passes are reported as `statistics_epochs`.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from baselines.channels.channel_groups import ChannelGroup, ChannelGroups, listed
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.contributions import inputs_by_channel
from baselines.channels.keep_ratio import AmountOptions, amount_for, multiple, n_removed
from baselines.channels.multiplications import Multiplications
from testbed.checkpoint import Checkpoint
from testbed.data import Splits, normalise
from testbed.method import Run
from testbed.prediction import autocast, evaluating
from testbed.training import ignore, train

Kind = Literal["softmax", "sigmoid"]

BATCH_SIZE = 256
FEWEST_HIDDEN = 8  # units: of one or two it happens that none is ever on


class PCAS(AmountOptions):
    """One of both amounts, of all channels together; a keep ratio of 0.5 where neither is given."""

    attention_epochs: int = Field(
        default=4, ge=1, description="Passes over the training images that attention learns for."
    )
    attention_rate: float = Field(default=0.3, gt=0, description="Their highest learning rate.")
    reduction: int = Field(
        default=4, ge=1, description="Channels for each hidden unit of an attention module."
    )
    attention: Kind = Field(default="softmax", description="What its weights go through.")
    images: int = Field(
        default=1000, ge=1, description="Training images that importances are a mean over."
    )
    fold: bool = Field(
        default=True, description="Scale what reads a channel by the attention it got on average."
    )

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._check(self.groups(dense, example_images(data, torch.device("cpu"))))

    def groups(self, network: nn.Module, example: Tensor) -> ChannelGroups:
        """As for every channel method, but for groups that no attention can be put before."""
        groups = super().groups(network, example)
        reasons = {
            name: f"{reader!r} reads it, which is no plain conv or linear layer"
            for name, group in groups.items()
            for reader, read in group.readers.items()
            if not isinstance(_module(network, reader), _ConvNd | nn.Linear)
            or read.parameter != f"{reader}.weight"
        }
        groups = groups.without(reasons)
        if not groups:
            raise ValueError(
                f"No channel of this network can get attention: {listed(groups.kept_whole)}. Take "
                "another method, such as l1_filter."
            )
        return groups

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the attention's training, if the run's folder holds a checkpoint.
        """
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        groups = self.groups(network, example)
        self._check(groups)
        checkpoint = Checkpoint(self, model, data, run)
        if checkpoint.load(network) < 0:
            found = self._importances(network, groups, data, run)
            checkpoint.notes = [{name: each.tolist() for name, each in found.items()}]
            checkpoint.save(0, network)
        importances = {name: torch.tensor(each) for name, each in checkpoint.notes[0].items()}
        if self.fold:
            fold_attention(network, groups, importances)
        removed = self._removed(groups, importances)
        network = remove_channels(network, example, groups, removed)
        run.fine_tune(network, data)
        return network

    def _check(self, groups: ChannelGroups) -> None:
        """Refuses an amount that no importances could reach."""
        if self.keep_ratio is None:
            assert self.keep_multiplications is not None
            amount_for(self.keep_multiplications, groups, self.round_to)
            return
        channels = sum(group.channels for group in groups.values())
        if self.keep_ratio < 1 and not n_removed(self.keep_ratio, channels):
            raise ValueError(
                f"keep_ratio {self.keep_ratio:g} removes nothing: of {channels} channels it takes "
                f"{(1 - self.keep_ratio) * channels:.2g}, which rounds to none. Ask for less than "
                f"{1 - 0.5 / channels:.4g}, or for 1 to keep all."
            )

    def _importances(
        self, network: nn.Module, groups: ChannelGroups, data: Splits, run: Run
    ) -> dict[str, Tensor]:
        """Mean attention of each channel of each group, (channels,) on the CPU."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(run.seed)
            attended = Attended(network, groups, self.reduction, self.attention).to(run.device)
        settings = run.fine_tuning.model_copy(
            update={
                "epochs": self.attention_epochs,
                "learning_rate": self.attention_rate,
                "distillation": None,
            }
        )
        kept = run.folder and run.folder / "attention.safetensors"
        train(
            attended,
            data,
            settings,
            seed=run.seed,
            device=run.device,
            report=ignore,
            checkpoint=kept,
        )
        images = data.train.drawn(self.images, torch.Generator().manual_seed(run.seed))
        precision, mean = autocast(settings.precision, run.device), attended.averaging()
        with mean as importances, evaluating(attended), torch.no_grad(), precision:
            for part in images.batches(BATCH_SIZE):  # `predict` runs a black image, too
                attended(normalise(part.pixels.to(run.device), data.mean, data.std))
        passes = self.attention_epochs + len(images) / len(data.train)
        run.report({"statistics_epochs": passes})
        return importances

    def _removed(
        self, groups: ChannelGroups, importances: Mapping[str, Tensor]
    ) -> dict[str, list[int]]:
        channels = sum(group.channels for group in groups.values())
        if self.keep_ratio is not None:
            n = n_removed(self.keep_ratio, channels)
            return least_important(importances, n, self.round_to)
        assert self.keep_multiplications is not None
        costs = Multiplications(groups)
        fewest, most = 0, channels  # the share falls with the number
        while fewest < most:
            middle = (fewest + most) // 2
            removed = least_important(importances, middle, self.round_to)
            counts = {name: len(gone) for name, gone in removed.items()}
            fits = costs.share(counts) <= self.keep_multiplications
            fewest, most = (fewest, middle) if fits else (middle + 1, most)
        return least_important(importances, fewest, self.round_to)


def least_important(
    importances: Mapping[str, Tensor], n: int, round_to: int = 1
) -> dict[str, list[int]]:
    """Group -> its channels among the `n` least important ones of all groups together.

    Every group keeps its most important channel, and multiples of `round_to` where it loses any.
    """
    free = [
        (value, name, channel)
        for name, values in importances.items()
        for channel, value in enumerate(values.tolist())
        if channel != int(values.argmax())
    ]
    gone = dict.fromkeys(importances, 0)
    for _, name, _ in sorted(free, key=lambda each: each[0])[:n]:
        gone[name] += 1
    removed = {}
    for name, values in importances.items():
        kept = multiple(len(values) - gone[name], len(values), round_to)
        order = values.argsort(stable=True).tolist()
        best = order.pop(order.index(int(values.argmax())))
        removed[name] = sorted([*order, best][: len(values) - kept])
    return removed


@torch.no_grad()
def fold_attention(
    network: nn.Module, groups: Mapping[str, ChannelGroup], attention: Mapping[str, Tensor]
) -> None:
    """Scales in place the weights that read each channel, as a constant attention (channels,) does.

    Args:
        groups: of `network`, each of them read by convs and linear layers only.
    """
    for name, group in groups.items():
        for reader, read in group.readers.items():
            weight = cast(Tensor, _module(network, reader).weight)
            inputs = weight.movedim(read.dim, 0)
            places = torch.from_numpy(read.channels)
            factors = torch.where(places < 0, 1.0, attention[name][places.clamp(min=0)])
            # A grouped conv reads the same channels at the same places of every group.
            inputs *= factors[: len(inputs)].to(weight).reshape(-1, *[1] * (weight.ndim - 1))


class Attention(nn.Module):
    """Squeeze and excitation: pooled maps (n, channels) to a weight for each, 1 in the mean.

    It begins with 1 for every channel of every image.

    Source: Hu, Shen, Sun 2018, "Squeeze-and-excitation networks", CVPR, equation 3.
    """

    def __init__(self, channels: int, reduction: int, kind: Kind) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(FEWEST_HIDDEN, channels // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)
        self.softmax = kind == "softmax"

    def forward(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.excite(self.squeeze(pooled).relu()).float()
        if self.softmax:
            return scores.shape[1] * scores.softmax(dim=1)
        return 2 * scores.sigmoid()


class Attended(nn.Module):
    """A frozen network whose groups of channels get attention where they are read.

    Only the attention learns; the network stays in evaluation mode.
    """

    def __init__(
        self, network: nn.Module, groups: Mapping[str, ChannelGroup], reduction: int, kind: Kind
    ) -> None:
        """`network` is copied."""
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.attention = nn.ModuleList(
            Attention(group.channels, reduction, kind) for group in groups.values()
        )
        self._names = list(groups)
        for attention, group in zip(self.attention, groups.values(), strict=True):
            for reader, read in group.readers.items():
                places = torch.from_numpy(read.channels)
                module = _module(self.network, reader)
                module.register_forward_pre_hook(_attending(attention, places, group.channels))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.network.eval()
        return self

    def averaging(self) -> "Averaging":
        """A context that gives the mean attention of each group over what runs in it."""
        return Averaging(dict(zip(self._names, self.attention, strict=True)))


class Averaging:
    """Means of what attention modules give while the context is open, filled when it closes."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(modules, 0)
        self._means: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        def noting(name: str) -> Any:
            def note(module: nn.Module, given: Any, result: Tensor) -> None:
                total = result.detach().double().sum(dim=0).cpu()
                self._sums[name] = self._sums.get(name, torch.zeros(())) + total
                self._counts[name] += len(result)

            return note

        self._hooks = [
            module.register_forward_hook(noting(name)) for name, module in self._modules.items()
        ]
        return self._means

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._means.update({name: self._sums[name] / self._counts[name] for name in self._modules})


def _module(network: nn.Module, name: str) -> nn.Module:
    return dict(network.named_modules()).get(name, network)


def _attending(attention: nn.Module, places: Tensor, channels: int) -> Any:
    """A hook that scales what a layer reads of a group.

    Args:
        places: (inputs,) the channel of each input of the layer, negative for another group's.
    """
    by_channel = inputs_by_channel(places, channels)
    inside, of_input = places >= 0, places.clamp(min=0)

    def attend(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
        x, *others = given
        last = isinstance(module, nn.Linear)
        pooled = x.float()
        if x.ndim > 2:
            pooled = pooled.flatten(1, -2).mean(dim=1) if last else pooled.flatten(2).mean(dim=2)
        padded = torch.nn.functional.pad(pooled, (0, 1))
        found = (by_channel < len(places)).sum(dim=1).to(x.device)
        weights = attention(padded[:, by_channel].sum(dim=2) / found)
        scales = torch.where(inside.to(x.device), weights[:, of_input], 1.0).to(x.dtype)
        between = [1] * (x.ndim - 2)
        shape = (len(x), *between, -1) if last else (len(x), -1, *between)
        return x * scales.reshape(shape), *others

    return attend
