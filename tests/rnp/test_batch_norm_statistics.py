"""Batch-norm statistics of prefixes: which norms have them, what they are, and old files."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from small_networks import Net, conv, lived_in, pooled
from torch import Tensor, nn

from rnp.adaptation import Adaptation, FullWidth, random_prefixes
from rnp.batch_norm_statistics import estimate_statistics
from rnp.execution.layers import FEW, PrefixBatchNorm2d
from rnp.execution.masked_run import MaskedRun
from rnp.prefix_cost import Actions
from rnp.runtime_network import RuntimeNetwork
from rnp.static_prefix import cut, fixed_to
from rnp.structure.channel_flow import channel_flow
from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.data import Splits, normalise
from testbed.network_file import load_network, save_network
from testbed.tensor_file import write_tensors

K = 4
KINDS = ["chain", "residual", "preactivated", "late norm"]


def data() -> Splits:
    """One batch of training images, as they are."""
    splits = tiny.splits(200, 40)
    return Splits(
        train=splits.train,
        validation=splits.validation,
        class_names=splits.class_names,
        augmentation=Augmentation(crop=0, flip=False),
        mean=splits.mean,
        std=splits.std,
    )


def backbone(kind: str, channels: tuple[int, ...] = (6, 9, 8, 7)) -> nn.Module:
    torch.manual_seed(0)
    if kind == "chain":
        return build_backbone("conv", (2, 8, 8), 3, channels=channels, hidden=10, batch_norm=True)
    if kind == "residual":
        return build_backbone("resnet20", (2, 8, 8), 3, width=0.5)
    layers = {"stem": conv(2, 6), "conv1": conv(6, 8), "conv2": conv(8, 6), "last": conv(6, 4)}
    if kind == "preactivated":

        def forward(net: Net, x: Tensor) -> Tensor:
            stem = net.stem(x)
            inner = net.conv2(net.norm1(net.conv1(stem)).relu())
            return net.classifier(pooled(net.last(net.norm2(stem + inner).relu())))

        norms = {"norm1": nn.BatchNorm2d(8), "norm2": nn.BatchNorm2d(6)}
        return Net(forward, **layers, **norms, classifier=nn.Linear(4, 3))

    def late(net: Net, x: Tensor) -> Tensor:
        wide = net.conv2(net.conv1(net.stem(x)).relu())
        return net.classifier(net.norm(net.hidden(wide.relu().flatten(1))).relu())

    hidden = nn.Linear(6 * 8 * 8, 5)
    return Net(late, **layers, hidden=hidden, norm=nn.BatchNorm1d(5), classifier=nn.Linear(5, 3))


def uniform(network: RuntimeNetwork, number: int) -> Actions:
    """Different actions for its convs, others for each number."""
    return tuple((number + step) % K for step in range(len(network.flow.convs)))


def estimated(kind: str, actions: Actions) -> RuntimeNetwork:
    network = RuntimeNetwork(lived_in(backbone(kind)), K).eval()
    chosen = torch.tensor(actions)
    assert estimate_statistics(network, data(), tiny.run(), lambda n: chosen.expand(n, -1)) == 200
    return network


def test_a_norm_s_statistics_are_of_the_conv_that_its_own_layer_reads() -> None:
    def norms(kind: str) -> dict[str, int]:
        return dict(channel_flow(backbone(kind), K).norms)

    assert norms("chain") == {"norm3": 0, "norm4": 1}, "the first two read all channels"
    flow = channel_flow(backbone("residual"), K)
    assert flow.norms == {c.name.replace("conv1", "norm2"): n for n, c in enumerate(flow.convs)}
    assert norms("preactivated") == {"norm2": 0}, "a sum passes the mixture of its parts on"
    assert norms("late norm") == {"norm": 1}


@pytest.mark.parametrize("number", range(K))
@pytest.mark.parametrize("kind", KINDS)
def test_estimated_statistics_are_those_of_a_batch_in_the_network_cut_to_the_prefixes(
    kind: str, number: int
) -> None:
    model = lived_in(backbone(kind))
    network = RuntimeNetwork(model, K)
    actions = uniform(network, number)
    small = cut(model, model.state_dict(), network.flow, actions)
    for module in small.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    images = data().train
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    inputs = normalise(images.pixels[order], data().mean, data().std)
    with torch.no_grad():
        small.train()(inputs)
    network = estimated(kind, actions)
    ours = cut(model, fixed_to(actions, network, model), network.flow, actions)
    assert len(network.flow.norms) > 0
    for name, expected in small.named_buffers():
        if "running" in name:
            torch.testing.assert_close(ours.get_buffer(name), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_skipping_and_cut_networks_have_the_statistics_of_the_prefix(kind: str) -> None:
    torch.manual_seed(1)
    images = torch.randn(5, 2, 8, 8)
    model = lived_in(backbone(kind))
    network = RuntimeNetwork(model, K).eval()
    run = tiny.run()
    estimate_statistics(
        network, data(), run, lambda n: random_prefixes(n, network.flow, "sandwich")
    )
    for number in range(K):
        actions = uniform(network, number)
        small = cut(model, fixed_to(actions, network, model), network.flow, actions).eval()
        given = torch.tensor([actions] * 5)
        with torch.no_grad():
            expected = small(images)
            torch.testing.assert_close(
                network.masked(images, given), expected, rtol=1e-3, atol=1e-4
            )
            torch.testing.assert_close(
                network.skipping(images, given), expected, rtol=1e-3, atol=1e-4
            )


def prefix_norm() -> PrefixBatchNorm2d:
    norm: nn.Module = nn.BatchNorm2d(3)
    PrefixBatchNorm2d.convert(lived_in(norm), K)
    assert isinstance(norm, PrefixBatchNorm2d)
    with torch.no_grad():
        norm.prefix_mean += torch.arange(K)[:, None]
        norm.prefix_var *= 1 + torch.arange(K)[:, None]
    return norm


def plain_norm(norm: PrefixBatchNorm2d, action: int) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(
        {
            "weight": norm.weight,
            "bias": norm.bias,
            "running_mean": norm.prefix_mean[action],
            "running_var": norm.prefix_var[action],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return plain


@pytest.mark.parametrize("training", [True, False])
def test_images_are_normalised_with_those_of_their_own_action_alone(training: bool) -> None:
    norm = prefix_norm().train(training)
    actions = torch.tensor([0, 2, 2, 0, 2, 0, 2, 0, 2, 3, 3, 3, 3])
    images = torch.randn(len(actions), 3, 4, 4, requires_grad=True)
    plain = {action: plain_norm(norm, action).train(training) for action in (0, 2, 3)}
    expected = torch.empty_like(images)
    for action, own in plain.items():
        expected[actions == action] = own(images[actions == action])
    weights = torch.randn_like(images)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), images)
    ours = norm(images, actions)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), images)[0], gradient)
    for action, own in plain.items():
        torch.testing.assert_close(norm.prefix_mean[action], own.running_mean)
        torch.testing.assert_close(norm.prefix_var[action], own.running_var)


def test_a_few_images_of_a_batch_are_normalised_by_the_running_statistics() -> None:
    norm, images = prefix_norm().train(), torch.randn(20, 3, 4, 4)
    actions = torch.zeros(20, dtype=torch.int64)
    actions[: FEW - 1] = 1
    before = norm.prefix_mean[1].clone()
    ours = norm(images, actions)[: FEW - 1]
    torch.testing.assert_close(ours, plain_norm(norm, 1).eval()(images[: FEW - 1]))
    assert torch.equal(norm.prefix_mean[1], before)


def test_prefixes_that_no_image_meets_keep_their_statistics() -> None:
    before = RuntimeNetwork(lived_in(backbone("chain")), K).state_dict()
    after = estimated("chain", (1, 2, 0)).state_dict()
    for norm, taken in (("norm3", 1), ("norm4", 2)):
        for action in range(K):
            alike = torch.equal(
                before[f"{norm}.prefix_mean"][action], after[f"{norm}.prefix_mean"][action]
            )
            assert alike == (action != taken)


def test_estimating_changes_nothing_but_statistics_and_leaves_the_modes() -> None:
    network = RuntimeNetwork(lived_in(backbone("chain")), K).train()
    network.get_submodule("norm2").eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    estimate_statistics(network, data(), tiny.run())
    assert [module.training for module in network.modules()] == modes
    statistics = {"running_mean", "running_var", "prefix_mean", "prefix_var", "num_batches_tracked"}
    for name, value in network.state_dict().items():
        if name.rpartition(".")[2] not in statistics:
            assert torch.equal(value, before[name]), name
    assert network.get_submodule("norm3").momentum == 0.1


def test_a_network_without_batch_norm_has_nothing_to_estimate() -> None:
    plain = build_backbone("conv", (2, 8, 8), 3, channels=(6, 8), batch_norm=False)
    network = RuntimeNetwork(plain, K)
    before = copy.deepcopy(network.state_dict())
    assert estimate_statistics(network, data(), tiny.run()) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.flow.norms


def test_a_file_keeps_statistics_and_prefixes(tmp_path: Path) -> None:
    network = estimated("chain", (1, 2, 0))
    save_network(network, tmp_path / "network")
    loaded = load_network(tmp_path / "network", RuntimeNetwork(backbone("chain"), K)).eval()
    images = torch.randn(6, 2, 8, 8)
    assert torch.equal(loaded(images), network(images))


def test_an_older_file_has_its_own_groups_and_statistics_alike_for_all_prefixes(
    tmp_path: Path,
) -> None:
    channels = (6, 100, 8, 70)
    model = lived_in(backbone("chain", channels)).eval()
    network = RuntimeNetwork(model, K)
    tensors = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if "prefix_" not in name and name not in ("decision_prefixes", "decision.offsets")
    }
    write_tensors(tmp_path / "older", tensors, {})
    loaded = load_network(tmp_path / "older", RuntimeNetwork(backbone("chain", channels), K)).eval()
    assert isinstance(loaded, RuntimeNetwork)
    assert [c.prefixes for c in network.flow.convs] == [
        (25, 50, 75, 100), (2, 4, 6, 8), (18, 36, 53, 70)
    ]  # fmt: skip
    assert [c.prefixes for c in loaded.flow.convs] == [
        (32, 64, 96, 100), (2, 4, 6, 8), (32, 48, 64, 70)
    ]  # fmt: skip
    images, actions = torch.randn(8, 2, 8, 8), torch.randint(0, K, (8, 3))
    run = MaskedRun(model, loaded.flow, images)  # with plain batch norms
    with torch.no_grad():
        while run.observe() is not None:
            run.act(actions[:, len(run.actions)])
        for ours in (loaded.masked(images, actions), loaded.skipping(images, actions)):
            torch.testing.assert_close(ours, run.logits, rtol=1e-4, atol=1e-5)


def test_prefixes_that_do_not_fit_the_network_are_refused() -> None:
    network = RuntimeNetwork(backbone("chain"), K)
    state = network.state_dict()
    state["decision_prefixes"] = state["decision_prefixes"] + 1
    with pytest.raises(ValueError, match=r"rise from 1 channel or more to all 9, got \["):
        network.load_state_dict(state)


def test_a_program_of_any_batch_has_the_statistics_of_each_image_s_prefixes() -> None:
    network = RuntimeNetwork(lived_in(backbone("chain")), K).eval()
    for norm in network.flow.norms:
        network.get_buffer(f"{norm}.prefix_mean").normal_()

    def chosen(images: Tensor) -> Tensor:
        return (10 * images[:, 0, 0, :3].abs()).long() % K

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            return self.network.masked(images, chosen(images))

    images = torch.randn(9, 2, 8, 8)
    with torch.no_grad():
        any_batch = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(Masked(), (images[:2],), dynamic_shapes=any_batch)
        ours, expected = program.module()(images), network.skipping(images, chosen(images))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_full_width_teaches_and_is_left_as_it_is(in_place: bool) -> None:
    network = RuntimeNetwork(lived_in(backbone("chain")), K).train()
    images, everything = torch.randn(8, 2, 8, 8), torch.full((8, 3), K - 1)
    before = copy.deepcopy(network.state_dict())
    taught = FullWidth(network, in_place)(images)
    assert not taught.requires_grad
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked"), name
    for module in network.modules():
        module.train(in_place and isinstance(module, nn.modules.batchnorm._BatchNorm))
    with torch.no_grad():
        assert torch.equal(taught, network.masked(images, everything))
    assert Adaptation(distillation=0).teacher(network) is None
