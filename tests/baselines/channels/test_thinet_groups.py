"""ThiNet on groups of layers: a fit for every reader, the same as by least squares over all."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from small_networks import Net, conv, pooled
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from baselines import ThiNet
from baselines.channels.channel_groups import ChannelGroup, channel_groups
from baselines.channels.channel_removal import remove_channels
from baselines.channels.contributions import SampledReader, Sampler, can_be_sampled
from baselines.channels.dependency.removal import shared_copy
from baselines.channels.dependency.trace import plain_run
from baselines.channels.group_norms import group_filters, l1_norms
from baselines.channels.keep_ratio import n_removed
from baselines.channels.multiplications import Multiplications
from testbed.data import normalise

EVERY_OUTPUT = 10**6


def inputs() -> Tensor:
    data = tiny.splits()
    return normalise(data.train.pixels, data.mean, data.std)


def residual() -> Net:
    """A stem and two blocks that add to it; the second has a grouped conv."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        x = x + net.b(net.a(x).relu())
        x = x + net.d(net.c(x.relu()).relu())
        return net.fc(pooled(x.relu()))

    return Net(
        forward,
        stem=conv(2, 16), a=conv(16, 5), b=conv(5, 16), c=conv(16, 12, groups=2), d=conv(12, 16),
        fc=nn.Linear(16, 3),
    )  # fmt: skip


def sequences() -> Net:
    """1-D convs, one of them transposed."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x.flatten(2)).relu()
        return net.fc(pooled(net.last(net.up(x).relu())))

    return Net(
        forward,
        first=nn.Conv1d(2, 6, 3, stride=2),
        up=nn.ConvTranspose1d(6, 4, 3, stride=2),
        last=nn.Conv1d(4, 3, 3),
        fc=nn.Linear(3, 3),
    )


def encoder() -> Net:
    """Patches, a transformer's encoder layer with four heads, a classifier."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.block(net.patch(x).flatten(2).mT).mean(dim=1))

    block = nn.TransformerEncoderLayer(12, 4, 10, dropout=0, batch_first=True, norm_first=True)
    return Net(forward, patch=nn.Conv2d(2, 12, 2, stride=2), block=block, fc=nn.Linear(12, 3))


def functional() -> Net:
    """The second conv's weight is multiplied by the network's own code."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.conv2d(net.a(x).relu(), net.b.weight, net.b.bias, padding=1)
        return net.fc(pooled(x.relu()))

    return Net(forward, a=conv(2, 6), b=conv(6, 4), fc=nn.Linear(4, 3))


NETWORKS = {
    "residual": residual,
    "sequences": sequences,
    "encoder": encoder,
    "functional": functional,
}


def parts(network: nn.Module, x: Tensor, group: ChannelGroup, reader: str) -> Tensor:
    """What each channel adds to all outputs of a reader, (outputs, channels), by running it."""
    read = group.readers[reader]
    network = shared_copy(network)  # whose attention runs its layers as modules
    weight = network.get_parameter(read.parameter)
    seen: list[Tensor] = []

    def noting(module: nn.Module, args: tuple[Tensor, ...], result: object) -> None:
        seen.append(args[0])

    owner = reader.rpartition(".in_proj")[0] if "in_proj" in reader else reader
    handle = network.get_submodule(owner).register_forward_hook(noting)
    with plain_run(network):
        network(x)
    handle.remove()
    module = network.get_submodule(owner)
    found = []
    for channel in range(group.channels):
        others = torch.from_numpy((read.channels != channel).nonzero()[0])
        if isinstance(module, _ConvNd):
            alone = seen[0].index_fill(1, others, 0)
            with torch.no_grad():
                part = module(alone) - module(torch.zeros_like(alone))
        else:
            part = F.linear(seen[0].index_fill(-1, others, 0), weight.detach())
        found.append(part.flatten())
    return torch.stack(found, dim=1).double()


CASES = [
    ("residual", "stem"),
    ("residual", "a"),
    ("residual", "c"),
    ("sequences", "first"),
    ("sequences", "up"),
    ("encoder", "patch"),
    ("encoder", "block.self_attn.in_proj"),
    ("encoder", "block.linear1"),
]


def sampled(network: nn.Module, group: ChannelGroup) -> list[SampledReader]:
    """The readers of a group, sampled at every output of every image."""
    layout = torch.contiguous_format
    cpu = torch.device("cpu")
    sampler = Sampler(tiny.splits(), cpu, "float32", layout, images=96, positions=EVERY_OUTPUT)
    return sampler.readers(network, group, torch.Generator())


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_reader_of_a_group_is_sampled_and_scaled(kind: str, name: str) -> None:
    network, x = NETWORKS[kind](), inputs()
    group = channel_groups(network, x[:2], scope="all")[name]
    readers = sampled(network, group)
    before = [parts(network, x, group, reader) for reader in group.readers]
    assert len(readers) == len(group.readers)
    for reader, expected in zip(readers, before, strict=True):
        gram = expected.T @ expected
        np.testing.assert_allclose(reader.gram, gram, rtol=1e-4, atol=1e-5 * gram.max())
    scales = torch.arange(1.0, group.channels + 1) / 2
    last = list(group.readers)[-1]
    readers[-1].scale(scales)
    after = parts(network, x, group, last)
    torch.testing.assert_close(after, before[-1] * scales, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "patch"])
def test_a_group_is_thinned_so_that_its_readers_see_the_least_change(kind: str, name: str) -> None:
    network, x = NETWORKS[kind](), inputs()
    groups = channel_groups(network, x[:2], scope="all")
    group = groups[name]
    keep = tuple(other.removesuffix(".in_proj") for other in groups if other != name)
    method = ThiNet(scope="all", keep=keep, positions=EVERY_OUTPUT)
    smaller = method.prune(network, tiny.splits(), tiny.run(0))
    (left,) = channel_groups(smaller, x[:2], scope="all", keep=keep).values()
    n = group.channels // 2
    gone = loop_choice([parts(network, x, group, reader) for reader in group.readers], n)
    kept = [c for c in range(group.channels) if c not in gone]
    assert left.channels == len(kept)
    # All the others' weights are those of the dense network, but for the scales of least squares.
    reader = next(iter(group.readers))
    contributions = parts(network, x, group, reader)
    wanted = contributions.sum(dim=1, keepdim=True)
    best = contributions[:, kept] @ torch.linalg.lstsq(contributions[:, kept], wanted).solution
    found = parts(smaller, x, left, reader).sum(dim=1, keepdim=True)
    if len(found) == len(best):  # else the reader lost outputs as well
        torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


def loop_choice(contributions: list[Tensor], n: int) -> list[int]:
    """The paper's loop over the samples of all readers, each a share of its own squares."""
    samples = torch.cat([each / each.square().sum().sqrt() for each in contributions])
    gone: list[int] = []
    for _ in range(n):
        left = [c for c in range(samples.shape[1]) if c not in gone]
        gone.append(
            min(left, key=lambda c: samples[:, [*gone, c]].sum(dim=1).square().sum().item())
        )
    return gone


def test_a_part_of_a_weight_that_several_readers_share_is_scaled_alone() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        queries, others = net.a(x).flatten(2).mT, net.b(x).flatten(2).mT
        attended = net.attention(queries, others, others, need_weights=False)[0]
        return net.fc(attended.mean(dim=1))

    network = Net(
        forward,
        a=conv(2, 8), b=conv(2, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True),
        fc=nn.Linear(8, 3),
    )  # fmt: skip
    group = channel_groups(network, inputs()[:2], scope="all")["a"]
    readers = sampled(network, group)
    dense = network.attention.in_proj_weight.detach().clone()
    assert [len(reader.inputs.T) for reader in readers] == [8, 8, 8]
    readers[1].scale(torch.full((8,), 2.0))
    changed = (network.attention.in_proj_weight / dense).round(decimals=4)
    assert (changed[8:16] == 2).all() and (changed[:8] == 1).all() and (changed[16:] == 1).all()


def test_a_weight_that_writes_what_it_reads_has_no_say() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        hidden = F.linear(pooled(net.a(x)), net.tied.weight)
        return net.fc(F.linear(hidden.relu(), net.tied.weight.T) + pooled(net.a(x)))

    network = Net(forward, a=conv(2, 6), tied=nn.Linear(6, 5, bias=False), fc=nn.Linear(6, 3))
    group = channel_groups(network, inputs()[:2], scope="all", flat_linear=True)["a"]
    assert set(can_be_sampled(network, group)) == {"fc"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_groups_of_a_thinner_network_follow_from_those_of_the_dense_one(kind: str) -> None:
    network, x = NETWORKS[kind](), inputs()[:2]
    groups = channel_groups(network, x, scope="all")
    for name in list(groups):
        gone = {name: range(0, groups[name].channels - 2, 2)}
        network = remove_channels(network, x, groups, gone)
        groups = groups.after(gone)
        traced = channel_groups(network, x, scope="all")
        assert list(groups) == list(traced)
        assert Multiplications(groups).share({name: 1}) == Multiplications(traced).share({name: 1})
        for one, other in zip(groups.values(), traced.values(), strict=True):
            assert one.channels == other.channels and one.readers.keys() == other.readers.keys()
            for reader in one.readers:
                assert one.inputs_by_channel(reader) == other.inputs_by_channel(reader)
            assert torch.equal(l1_norms(network, one), l1_norms(network, other))


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_groups_can_be_thinned_one_after_the_other(kind: str) -> None:
    network, x = NETWORKS[kind](), inputs()
    groups = channel_groups(network, x[:2], scope="all")
    smaller = ThiNet(scope="all").prune(network, tiny.splits(), tiny.run(1))
    assert smaller(x).isfinite().all()
    left = channel_groups(smaller, x[:2], scope="all")
    for name, group in groups.items():
        kept = group.channels - n_removed(0.5, group.channels)
        assert kept == 1 or left[name].channels == kept


def test_filters_of_a_group_are_those_of_all_its_writers_each_at_the_same_scale() -> None:
    network = residual()
    groups = channel_groups(network, inputs()[:2], scope="all")
    alone = group_filters(network, groups["a"])
    assert torch.equal(alone, network.a.weight.detach().flatten(1))
    together = group_filters(network, groups["stem"])
    assert together.shape == (8, 2 * (18 + 45 + 108))  # the grouped conv ties two to a channel
    own = network.b.weight.detach().unflatten(0, (2, 8)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(together[:, 36:126], (own - own.mean()) / own.std())
    heads = group_filters(
        encoder(), channel_groups(encoder(), inputs()[:2])["block.self_attn.in_proj"]
    )
    weight = encoder().block.self_attn.in_proj_weight.detach()
    assert torch.equal(heads[1], weight.unflatten(0, (3, 4, 3))[:, 1].flatten())
