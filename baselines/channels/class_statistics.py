"""Class statistics: Singh, Rajan, Bhavsar 2019, "Deep hidden analysis: a statistical framework to
prune feature maps", ICASSP; an F statistic on CNNs is arXiv 2502.07189.

Removes the channels whose mean response differs least between the classes, all at once, after the
training; then fine-tunes. A response is the mean of a channel's map as the next layer reads it; how
much it differs is the share of its variance that lies between the classes (eta squared, of a
one-way analysis of variance).

Where we differ: the paper drops what a test calls alike (p > alpha). With the images that a
training set has, every channel differs significantly, and how many are kept would be a matter of
the sample's size. Here channels are ranked, and one keep ratio holds for every layer, so that one
number moves along the frontier. F = eta^2 / (1 - eta^2) * (N - K) / (K - 1) ranks them alike. A
channel that never changes gets 0. Where several layers read a channel, as in a residual network,
its shares are averaged; where no reader's weight is a parameter, the channels with the smallest L1
norms go, as by `l1_filter`. The paper ignores maps for classifiers on each layer of a 1-D network;
here channels go for good, of networks for images or signals, and the network is fine-tuned.

Classes are looked at one channel at a time: a channel that tells them apart only together with
others, or whose response has other shapes but the same mean, counts for nothing.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroup
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.contributions import Product, Sampler, can_be_sampled, inputs_by_channel
from baselines.channels.group_norms import l1_norms
from baselines.channels.keep_ratio import KeepAmount
from testbed.data import Images, Splits
from testbed.method import Run

# Of the sum of squares: variation below is rounding of float32 responses that are all alike.
ROUNDING = 1e-12
FEWEST_OF_CLASS = 2  # in the mean: of one image each, all variance lies between the classes


class ClassStatistics(KeepAmount):
    """One of both amounts, a keep ratio of 0.5 where neither is given."""

    images: int = Field(
        default=1000,
        ge=1,
        description="Training images that responses are taken of; all if there are less.",
    )

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._check_images(data)
        super().check_network(dense, data)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned (see `PruningMethod`)."""
        self._check_images(data)
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        amount = self.amount(network, example)
        sampler = Sampler.of_run(network, data, run, self.images, positions=0)
        images = sampler.drawn(torch.Generator().manual_seed(run.seed))
        scores = between_classes(network, amount.groups, sampler, images)
        run.report({"statistics_epochs": len(images) / len(data.train)})
        removed = {
            name: scores[name].topk(amount.removed[name], largest=False).indices.tolist()
            for name in amount.groups
        }
        network = remove_channels(network, example, amount.groups, removed)
        run.fine_tune(network, data)
        return network

    def _check_images(self, data: Splits) -> None:
        images, classes = min(self.images, len(data.train)), data.n_classes
        if images < FEWEST_OF_CLASS * classes:
            raise ValueError(
                f"Expected {FEWEST_OF_CLASS} images at least of each of {classes} classes, to "
                f"compare what lies between classes and within them; got {images} images. Ask for "
                "more images."
            )


def between_classes(
    network: nn.Module, groups: Mapping[str, ChannelGroup], sampler: Sampler, images: Images
) -> dict[str, Tensor]:
    """How much the responses of each group's channels differ between classes, (channels,) each.

    Shares of variance; of a group that no sampled layer reads, L1 norms.

    Args:
        network: on the sampler's device; left unchanged.
        groups: of `network`.
        images: a sample of the training images.
    """
    read: dict[str, list[tuple[str, Tensor]]] = {}  # parameter -> groups, inputs of each channel
    for name, group in groups.items():
        for reader in can_be_sampled(network, group).values():
            places = inputs_by_channel(torch.from_numpy(reader.channels), group.channels)
            read.setdefault(str(reader.parameter), []).append((name, places))
    found: dict[tuple[str, str], BetweenClasses] = {}

    def take(parameter: str, product: Product, part: Images) -> None:
        pooled = product.maps.flatten(2).mean(dim=2).cpu()
        if len(pooled) != len(part):
            raise ValueError(
                f"Cannot tell which image each row of what {parameter!r} reads is of: "
                f"{len(part)} images give {len(pooled)}. Name what writes it in keep."
            )
        padded = torch.nn.functional.pad(pooled, (0, 1))
        for name, places in read[parameter]:
            response = padded[:, places].sum(dim=2)  # its scale does not matter
            if (name, parameter) not in found:
                found[name, parameter] = BetweenClasses(len(sampler.data.class_names), len(places))
            found[name, parameter].add(response, part.labels.cpu())

    sampler.catch(network, read, images, take)
    scores = {}
    for name, group in groups.items():
        shares = [each.share() for (own, _), each in found.items() if own == name]
        scores[name] = torch.stack(shares).mean(dim=0) if shares else l1_norms(network, group)
    return scores


class BetweenClasses:
    """Sums of responses that a one-way analysis of variance takes, for many channels at once."""

    def __init__(self, classes: int, channels: int) -> None:
        self._counts = torch.zeros(classes, dtype=torch.float64)
        self._sums = torch.zeros(classes, channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, responses: Tensor, labels: Tensor) -> None:
        """Takes responses (n, channels) of images of these classes, (n,) int64."""
        values = responses.double()
        self._counts += labels.bincount(minlength=len(self._counts))
        self._sums.index_add_(0, labels, values)
        self._squares += values.square().sum(dim=0)

    def share(self) -> Tensor:
        """Eta squared of each channel, (channels,) from 0 to 1: what lies between the classes.

        Source: Fisher 1925, analysis of variance: `sum n_c (x_c - x)^2 / sum (x_ci - x)^2`.
        """
        seen = self._counts > 0
        counts, sums = self._counts[seen], self._sums[seen]
        of_mean = sums.sum(dim=0).square() / counts.sum()
        between = (sums.square() / counts[:, None]).sum(dim=0) - of_mean
        total = self._squares - of_mean
        varies = total > ROUNDING * self._squares
        return torch.where(varies, between / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
