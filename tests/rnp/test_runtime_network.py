"""The network that comes back: it computes what the masked network computes, and nothing more."""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rnp.runtime_network
from rnp.execution.decision import DecisionNetwork
from rnp.execution.layers import PrefixBatchNorm
from rnp.execution.masked_run import MaskedRun
from rnp.execution.prepared import PreparedNetwork
from rnp.execution.skipping import CHUNK
from rnp.runtime_network import RuntimeNetwork
from testbed import compiled
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, weights_by_layer
from testbed.operations import counting_multiplications
from testbed.prediction import autocast

CPU = torch.device("cpu")
SHAPES = {
    "conv": ((2, 16, 16), {"channels": (6, 9, 8, 7), "pool_after": (2, 4), "hidden": 10}),
    "lfw3_net": ((1, 16, 16), {"width": 0.25, "hidden": 8, "dropout": 0.3}),
    "m_cifarnet": ((3, 16, 16), {"width": 0.125}),
    "vgg16": ((3, 32, 32), {"width": 0.0625}),
    "resnet18": ((3, 16, 16), {"width": 0.125}),
    "resnet20": ((3, 16, 16), {"width": 0.5}),
    "resnet56": ((3, 8, 8), {"width": 0.25}),
}


class Branching(nn.Module):
    """Several readers, values that live on across decisions, functions, constants, a batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.second = nn.Conv2d(6, 7, 3, stride=2, padding=1, padding_mode="reflect")
        self.left = nn.Conv2d(8, 5, 3, stride=2, padding="valid")
        self.right = nn.Conv2d(8, 9, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(9, affine=False)
        self.join = nn.Conv2d(9, 4, 3, padding=1)
        self.other = nn.Conv2d(7, 4, 3, padding=1, groups=1)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.narrow = nn.Linear(5 * 3 * 3, 4)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        n = images.size(0)
        stem = F.relu(self.stem(images)) * (self.scale + torch.tensor(0.5))
        first = F.dropout(F.gelu(self.first(stem)), 0.4, self.training)
        second = self.second(stem)  # decided after `first` is computed, before it is read
        narrow = self.narrow(torch.flatten(self.left(first).sigmoid(), 1))
        right = self.join(self.norm(self.right(first)).tanh())
        wide = (right + self.other(F.relu(second))).mean(dim=(2, 3))
        logits: Tensor = self.classifier(torch.cat([wide, narrow], dim=1).view(n, 8))
        return logits


def shaken(model: nn.Module) -> nn.Module:
    """With running statistics and affine weights as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def runtime(name: str, groups: int = 4) -> tuple[RuntimeNetwork, tuple[int, int, int]]:
    torch.manual_seed(0)
    if name == "branching":
        backbone, shape = Branching(), (2, 8, 8)
    elif name in ("chain", "residual"):
        backbone, shape = tiny.network("conv" if name == "chain" else name), (2, 8, 8)
    else:
        shape, options = SHAPES[name]
        backbone = build_backbone(name, shape, 3, **options)
    network = RuntimeNetwork(shaken(backbone), groups, encoding=6, hidden=5).eval()
    tell_prefixes_apart(network)
    decide_differently(network, shape)
    return network, shape


def tell_prefixes_apart(network: nn.Module) -> None:
    """Gives batch norms other statistics for each prefix, as estimated ones are; not for all."""
    for module in network.modules():
        if isinstance(module, PrefixBatchNorm):
            nn.init.normal_(module.prefix_mean[:-1], 0, 0.3)
            nn.init.uniform_(module.prefix_var[:-1], 0.5, 2)


def decide_differently(network: RuntimeNetwork, shape: tuple[int, int, int]) -> None:
    """Weights with which actions differ between images, as a trained network's do."""
    images = torch.randn(64, *shape)
    run = MaskedRun(network, network.flow, images)
    actions = random_actions(network, 64)
    state = None
    with torch.no_grad():
        while (features := run.observe()) is not None:
            step = len(run.actions)
            network.decision.standardise(step, features)
            values, state = network.decision(step, features, state)
            run.act(actions[:, step])
        nn.init.normal_(network.decision.decoder.weight, std=8.0)
        values = network.decision.decoder(state)
        network.decision.decoder.bias -= values.mean(dim=0)
        nn.init.normal_(network.decision.offsets)


def random_actions(network: RuntimeNetwork, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = len(network.flow.convs)
    return torch.randint(0, network.flow.groups, (n, steps), generator=generator)


def own_decisions(network: RuntimeNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """(n, decisions): the masked network's actions, and by how much the best Q-values lead."""
    run = MaskedRun(network, network.flow, images)
    state, leads = None, []
    while (features := run.observe()) is not None:
        values, state = network.decision(len(run.actions), features, state)
        best = values.topk(2, dim=1).values
        leads.append(best[:, 0] - best[:, 1])
        run.act(values.argmax(dim=1))
    return torch.stack(run.actions, dim=1), torch.stack(leads, dim=1)


def assert_same(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    scale = expected.abs().max().item()
    assert (ours - expected).abs().max().item() <= tolerance * scale


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with the compiled operators, if they are built, and without."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "operators", lambda: None)
    elif compiled.operators() is None:
        pytest.skip("the compiled operators are not built")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


NAMES = [*SHAPES, "branching", "chain", "residual"]


@pytest.mark.parametrize("n", [1, 2, 7, CHUNK + 3])
@pytest.mark.parametrize("name", NAMES)
def test_at_set_decisions_its_logits_are_the_masked_networks(name: str, n: int) -> None:
    network, shape = runtime(name)
    images, actions = torch.randn(n, *shape), random_actions(network, n)
    assert_same(network.skipping(images, actions), network.masked(images, actions))


class Viewing(nn.Module):
    """Flattens as older code does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 3)
        self.classifier = nn.Linear(8 * 4 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images).relu())
        logits: Tensor = self.classifier(maps.view(maps.size(0), -1))
        return logits


@pytest.mark.parametrize("n", [1, CHUNK + 3])
def test_a_view_that_keeps_only_the_batch_takes_the_prefixes(n: int) -> None:
    network = RuntimeNetwork(Viewing(), 4)
    images, actions = torch.randn(n, 2, 8, 8), random_actions(network, n)
    assert [conv.name for conv in network.flow.convs] == ["second"]
    assert_same(network.skipping(images, actions), network.masked(images, actions))
    with counting_multiplications(network) as by_layer:
        network.skipping(images, torch.zeros_like(actions))
    assert by_layer["classifier"] == n * 2 * 4 * 4 * 3


@pytest.mark.parametrize("n", [1, CHUNK + 20])
@pytest.mark.parametrize("name", NAMES)
def test_its_own_decisions_are_the_masked_networks_where_the_q_values_differ(
    name: str, n: int
) -> None:
    network, shape = runtime(name)
    images = torch.randn(n, *shape)
    actions, leads = own_decisions(network, images)
    sure = (leads > 1e-4).all(dim=1)
    assert sure.sum() >= 0.9 * n
    assert_same(network(images)[sure], network.masked(images)[sure])
    if n > 1:
        assert len(actions.unique()) > 1, "a network that always does the same shows nothing"


@pytest.mark.parametrize("name", ["conv", "branching", "residual"])
def test_an_images_logits_do_not_depend_on_the_batch(name: str) -> None:
    network, shape = runtime(name)
    images = torch.randn(CHUNK + 9, *shape)
    together = network(images)
    alone = torch.cat([network(image) for image in images.split(1)])
    assert_same(together, alone)
    order = torch.randperm(len(images))
    assert_same(network(images[order]), together[order])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_no_logits(name: str) -> None:
    network, shape = runtime(name)
    assert network(torch.zeros(0, *shape)).shape == (0, network(torch.zeros(1, *shape)).shape[1])


@pytest.mark.parametrize("name", ["conv", "resnet20", "branching"])
def test_in_bfloat16_it_agrees_with_the_masked_network_to_its_precision(name: str) -> None:
    network, shape = runtime(name)
    images, actions = torch.randn(9, *shape), random_actions(network, 9)
    with autocast("bfloat16", CPU):
        for few in (1, 9):
            ours = network.skipping(images[:few], actions[:few])
            assert_same(
                ours.float(), network.masked(images[:few], actions[:few]).float(), tolerance=0.05
            )
            assert ours.dtype is torch.bfloat16


def test_the_decision_network_runs_in_float32_under_autocast() -> None:
    network, shape = runtime("conv")
    seen: list[torch.dtype] = []
    network.decision.register_forward_hook(
        lambda module, args, result: seen.extend([args[1].dtype, result[0].dtype])
    )
    with autocast("bfloat16", CPU):
        network(torch.randn(5, *shape))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_all_groups_kept_gives_the_dense_networks_logits(name: str) -> None:
    network, shape = runtime(name)
    torch.manual_seed(0)
    dense, _ = dense_of(name)
    images = torch.randn(5, *shape)
    actions = torch.full((5, len(network.flow.convs)), network.flow.groups - 1)
    assert_same(network.skipping(images, actions), dense(images))


def dense_of(name: str) -> tuple[nn.Module, RuntimeNetwork]:
    """A backbone in evaluation mode, and the network that has the same weights."""
    network, shape = runtime(name)
    if name == "branching":
        dense: nn.Module = Branching()
    elif name in ("chain", "residual"):
        dense = tiny.network("conv" if name == "chain" else name)
    else:
        dense = build_backbone(name, shape, 3, **SHAPES[name][1])
    own = network.state_dict()
    dense.load_state_dict({name: own[name] for name in dense.state_dict()})
    return dense.eval(), network


def closed_form(network: RuntimeNetwork, actions: tuple[int, ...]) -> dict[str, int]:
    """Multiplications of one 16 x 16 image in `conv`, layer by layer, at these actions."""
    two, three, four = (
        conv.prefixes[action] for conv, action in zip(network.flow.convs, actions, strict=True)
    )
    decision = sum(6 * channels + 15 * (6 + 5) + 5 * 4 for channels in network.decision.inputs)
    return {
        "conv1": 256 * 9 * 2 * 6,
        "conv2": 256 * 9 * 6 * two,
        "conv3": 64 * 9 * two * three,
        "conv4": 64 * 9 * three * four,
        "hidden": 16 * four * 10,
        "classifier": 10 * 3,
        "decision": decision,
    }


def by_top_layer(counted: Counter[str]) -> dict[str, int]:
    result: Counter[str] = Counter()
    for name, count in counted.items():
        result[name.partition(".")[0]] += count
    return dict(+result)


def choose_always(network: RuntimeNetwork, actions: tuple[int, ...]) -> None:
    """The decision network does its work and is then overruled."""

    def overrule(module: nn.Module, args: Any, result: Any) -> Any:
        values, state = result
        return F.one_hot(torch.tensor([actions[args[0]]] * len(values)), 4).float(), state

    network.decision.register_forward_hook(overrule)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_runs_is_the_closed_form_for_every_combination_of_prefixes(precision: Any) -> None:
    network, shape = runtime("conv")
    for actions in product(range(4), repeat=3):
        other = copy.deepcopy(network)
        choose_always(other, actions)
        for n in (1, 3):
            with autocast(precision, CPU), counting_multiplications(other) as counted:
                other(torch.randn(n, *shape))
            expected = {k: n * v for k, v in closed_form(network, actions).items()}
            assert by_top_layer(counted) == expected


def test_each_image_costs_what_its_own_actions_cost_and_the_batch_their_sum() -> None:
    network, shape = runtime("conv")
    images = torch.randn(12, *shape)
    actions, _ = own_decisions(network, images)
    cost = count_multiplications(network, images, batch_size=5)
    expected = [sum(closed_form(network, tuple(each)).values()) for each in actions.tolist()]
    assert cost.per_image.tolist() == expected
    assert len(set(expected)) > 1
    with counting_multiplications(network) as together:
        network(images)
    assert together.total() == sum(expected)
    assert {"conv1", "conv2", "conv3", "conv4", "hidden"} <= cost.per_layer.keys()


def test_to_count_more_images_does_not_prepare_it_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[PreparedNetwork] = []

    class Counted(PreparedNetwork):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            prepared.append(self)

    monkeypatch.setattr(rnp.runtime_network, "PreparedNetwork", Counted)
    network, shape = runtime("conv")
    often = []
    for n in (4, 12):
        prepared.clear()
        count_multiplications(network, torch.randn(n, *shape))
        often.append(len(prepared))
    assert 0 < often[0] == often[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_costs_less_than_the_dense_network_at_the_smallest_prefixes(name: str) -> None:
    dense, network = dense_of(name)
    _, shape = runtime(name)
    images = torch.randn(2, *shape)
    with counting_multiplications(dense) as all_of_it:
        dense(images)
    for action, at_most in ((0, 0.9), (network.flow.groups - 1, 1.0)):
        actions = torch.full((2, len(network.flow.convs)), action)
        with counting_multiplications(network) as counted:
            network.skipping(images, actions)
        assert counted.total() <= at_most * all_of_it.total()
    assert counted == all_of_it


def test_its_weights_have_the_backbones_names_and_the_decision_networks() -> None:
    dense, network = dense_of("resnet20")
    network(torch.randn(2, 3, 16, 16))
    added = set(network.state_dict()) - set(dense.state_dict())
    own = {name for name in added if not name.startswith("decision.")} - {"decision_prefixes"}
    norms = [conv.name.replace("conv1", "norm2") for conv in network.flow.convs]
    assert own == {f"{norm}.prefix_{each}" for norm in norms for each in ("mean", "var")}
    found = [name for name in weights_by_layer(network) if not name.startswith("decision.")]
    assert found == list(weights_by_layer(dense))


def test_hooks_of_a_layer_see_the_prefixes() -> None:
    network, shape = runtime("conv")
    seen: list[tuple[int, int]] = []
    network.get_submodule("conv3").register_forward_hook(
        lambda module, args, result: seen.append((args[0].shape[1], result.shape[1]))
    )
    network.skipping(torch.randn(2, *shape), torch.tensor([[0, 1, 3], [2, 3, 0]]))
    two, three, _ = network.flow.convs
    expected = {(two.prefixes[0], three.prefixes[1]), (two.prefixes[2], three.prefixes[3])}
    assert set(seen) == expected


def changes() -> dict[str, Any]:
    def in_place(network: RuntimeNetwork) -> None:
        network.get_parameter("conv3.weight").mul_(1.5)

    def statistics(network: RuntimeNetwork) -> None:
        network.get_buffer("norm3.prefix_mean").add_(0.5)

    def decision(network: RuntimeNetwork) -> None:
        network.decision.decoder.weight.neg_()

    def another_parameter(network: RuntimeNetwork) -> None:
        layer: Any = network.get_submodule("hidden")
        layer.weight = nn.Parameter(layer.weight * 2)

    def load(network: RuntimeNetwork) -> None:
        torch.manual_seed(9)
        state = {k: v + 0.1 * torch.rand(v.shape) for k, v in network.state_dict().items()}
        network.load_state_dict({**network.state_dict(), **state}, strict=False)

    def load_and_assign(network: RuntimeNetwork) -> None:
        state = network.state_dict()
        state = {k: v * 1.25 if v.is_floating_point() else v for k, v in state.items()}
        network.load_state_dict(state, assign=True)

    def fine_tune(network: RuntimeNetwork) -> None:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        with torch.enable_grad():
            for _ in range(2):
                optimizer.zero_grad()
                network(torch.randn(8, 2, 16, 16)).square().mean().backward()
                optimizer.step()
        network.eval()

    def fused_step(network: RuntimeNetwork) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
        with torch.enable_grad():  # in evaluation mode, as where batch norms stay as they are
            actions = random_actions(network, 8)
            network.masked(torch.randn(8, 2, 16, 16), actions).square().mean().backward()
        optimizer.step()

    def parameters_one_after_the_other(network: RuntimeNetwork) -> None:
        layer: Any = network.get_submodule("hidden")
        for _ in range(6):  # so that one may lie where the first lay
            layer.weight = nn.Parameter(layer.weight * 1.2)

    def another_module(network: RuntimeNetwork) -> None:
        network.norm3 = nn.BatchNorm2d(8).eval()

    def data_then_mode(network: RuntimeNetwork) -> None:
        network.get_parameter("conv2.weight").data *= 2
        network.eval()

    def precision(network: RuntimeNetwork) -> None:
        network.double()

    given = (in_place, statistics, decision, another_parameter, load, load_and_assign, fine_tune,
             fused_step, parameters_one_after_the_other, another_module, data_then_mode,
             precision)  # fmt: skip
    return {change.__name__: change for change in given}


@pytest.mark.parametrize("change", changes())
def test_it_notices_that_weights_changed(change: str) -> None:
    network, shape = runtime("conv")
    images = torch.randn(6, *shape)
    before = network(images)
    changes()[change](network)
    images = images.to(network.get_parameter("conv1.weight").dtype)
    ours = network(images)
    assert_same(ours, network.masked(images))
    if change != "precision":
        assert not torch.allclose(ours, before)


def test_cast_to_another_precision_it_computes_what_the_masked_network_does() -> None:
    network, shape = runtime("conv")
    network.to(torch.bfloat16)
    images, actions = torch.randn(5, *shape).bfloat16(), random_actions(network, 5)
    ours, masked = network.skipping(images, actions), network.masked(images, actions)
    assert network(images).dtype is torch.bfloat16
    torch.testing.assert_close(ours, masked, rtol=0.1, atol=0.1)


def test_to_skip_in_training_mode_is_to_evaluate_and_changes_nothing() -> None:
    network = RuntimeNetwork(Branching()).train()
    images, actions = torch.randn(4, 2, 8, 8), random_actions(network, 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    skipped = network.skipping(images, actions)
    assert network.training and all(module.training for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(skipped, network.eval().skipping(images, actions))


@pytest.mark.parametrize(
    ("images", "actions", "message"),
    [
        (torch.zeros(2, 16, 16), None, r"Expected images \(n, C, H, W\), got shape \(2, 16, 16\)"),
        (torch.zeros(2, 2, 16, 16), torch.zeros(1, 3).long(), r"here \(2, 3\), got \(1, 3\)"),
        (torch.zeros(2, 2, 16, 16), torch.full((2, 3), -1), "from 0 to 3, got -1 to -1"),
        (torch.zeros(2, 2, 16, 16), torch.full((2, 3), 4), "from 0 to 3, got 4 to 4"),
    ],
)
def test_images_and_actions_of_another_shape_are_refused(
    images: Tensor, actions: Tensor | None, message: str
) -> None:
    network, _ = runtime("conv")
    with pytest.raises(ValueError, match=message):
        network.skipping(images, actions)


def test_copies_and_files_of_it_compute_the_same() -> None:
    network, shape = runtime("resnet56")
    images = torch.randn(4, *shape)
    expected = network(images)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(other(images), expected)
    fresh, _ = runtime("resnet56")
    for parameter in fresh.parameters():
        parameter.add_(0.1)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(images), expected)


def test_a_copy_does_not_share_what_was_prepared() -> None:
    network, shape = runtime("conv")
    images = torch.randn(3, *shape)
    expected = network(images)
    other = copy.deepcopy(network)
    other.get_parameter("conv3.weight").zero_()
    other(images)
    assert torch.equal(network(images), expected)


def test_it_runs_where_weights_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        network, shape = runtime("conv")
        images, actions = torch.randn(3, *shape), random_actions(network, 3)
        assert_same(network.skipping(images, actions), network.masked(images, actions))


def test_while_training_gradients_reach_the_backbone_through_the_masks() -> None:
    network, shape = runtime("conv")
    network.train()
    with torch.enable_grad():
        network(torch.randn(4, *shape)).sum().backward()
    assert network.get_parameter("conv1.weight").grad is not None
    assert network.get_parameter("conv1.weight").grad.abs().sum() > 0
    assert network.decision.decoder.weight.grad is None


def test_in_evaluation_mode_no_gradient_flows() -> None:
    network, shape = runtime("conv")
    with torch.enable_grad():
        assert not network(torch.randn(4, *shape)).requires_grad


def test_functional_dropout_follows_the_networks_mode_not_that_of_the_trace() -> None:
    network, shape = runtime("branching")
    images, actions = torch.randn(3, *shape), random_actions(network, 3)
    assert torch.equal(network.masked(images, actions), network.masked(images, actions))
    network.train()
    assert not torch.equal(network.masked(images, actions), network.masked(images, actions))


@pytest.mark.parametrize("name", ["decision", "flow", "masked", "train"])
def test_a_backbone_with_a_part_of_a_taken_name_is_an_error(name: str) -> None:
    backbone = tiny.network()
    backbone._modules[name] = nn.ReLU()
    with pytest.raises(ValueError, match=f"a part called '{name}'"):
        RuntimeNetwork(backbone)


def test_the_compiled_decision_is_the_modules() -> None:
    if compiled.operators() is None:
        pytest.skip("without them there is nothing to compare")
    torch.manual_seed(4)
    for channels, n in product((3, 32, 70), (1, 2, 33)):
        decision = DecisionNetwork([channels], 4, 24, 40)
        decision.get_buffer("mean0").normal_()
        decision.get_buffer("deviation0").uniform_(0.5, 2)
        decision.offsets.normal_()
        features, state = 3 * torch.randn(n, channels), torch.randn(n, 40)
        for before in (None, state):
            plain = decision(0, features, before)
            fast = decision(0, features, before, decision.prepare(0))
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
            for prepared in (None, decision.prepare(0)):
                with FlopCounterMode(display=False) as counter:
                    decision(0, features, before, prepared)
                products = n * (24 * channels + 120 * (24 + 40) + 40 * 4)
                assert counter.get_total_flops() == 2 * products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_pooling_is_the_mean_of_each_images_own_channels(dtype: torch.dtype) -> None:
    operators = compiled.operators()
    if operators is None:
        pytest.skip("without them there is nothing to compare")
    batches = [torch.randn(2, 70, 5, 3).to(dtype), torch.randn(3, 33, 5, 3).to(dtype)]
    pooled = operators.pooled(batches, [4, 0, 1, 3, 2], 70)
    for row, (batch, i) in {4: (0, 0), 0: (0, 1), 1: (1, 0), 3: (1, 1), 2: (1, 2)}.items():
        expected = batches[batch][i].float().mean(dim=(1, 2))
        torch.testing.assert_close(pooled[row, : len(expected)], expected, rtol=1e-5, atol=1e-6)
        assert not pooled[row, len(expected) :].any()
