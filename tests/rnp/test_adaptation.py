"""The backbone's adaptation to random prefixes."""

from collections.abc import Mapping

import pytest
import tiny
import torch
from torch import Tensor

from rnp.adaptation import Adaptation, Prefixes, RandomPrefixes, adapted
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP
from rnp.static_prefix import StaticPrefix
from testbed.backbones import build_backbone
from testbed.prediction import predict


def drawn_actions(monkeypatch: pytest.MonkeyPatch, prefixes: Prefixes, k: int = 4) -> Tensor:
    """What 4,000 images of one training batch are run with: (4000, 3)."""
    network = RuntimeNetwork(build_backbone("conv", (2, 8, 8), 3, channels=[16] * 4), k)
    seen: list[Tensor] = []

    def masked(images: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions)
        return images

    monkeypatch.setattr(network, "masked", masked)
    torch.manual_seed(0)
    RandomPrefixes(network, prefixes).train()(torch.zeros(4000, 2, 8, 8))
    return seen[0]


def test_the_sandwich_holds_the_least_and_the_full_width_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions = drawn_actions(monkeypatch, "sandwich")
    shares = [(actions == a).all(dim=1).double().mean().item() for a in range(4)]
    # A quarter each, and what the random half draws by chance: of three convs 1 in 64.
    assert shares == pytest.approx([0.258, 0.008, 0.008, 0.258], abs=0.03)
    others = actions[(actions != actions[:, :1]).any(dim=1)]
    for action in range(4):
        assert (others == action).double().mean(dim=0).tolist() == pytest.approx(
            [0.25] * 3, abs=0.03
        )


@pytest.mark.parametrize("k", [2, 4, 16])
def test_convs_depart_from_a_width_of_the_image_s_own(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_ends:
        without_ends.setattr("rnp.adaptation.AT_AN_END", 0.0)
        actions = drawn_actions(monkeypatch, "widths", k)
    alike = torch.corrcoef(actions.double().T)[0, 1]
    assert 0.1 < alike < 0.9, "alike in an image, but not the same"
    widths = torch.bincount(actions.flatten(), minlength=k)
    assert widths[k // 2 :].sum() > widths[: k // 2].sum(), "wide is likelier"
    by_chance = (actions == k - 1).all(dim=1).double().mean().item()
    full = (drawn_actions(monkeypatch, "widths", k) == k - 1).all(dim=1).double().mean().item()
    assert full == pytest.approx(0.25 + 0.75 * by_chance, abs=0.03), "a quarter, and by chance"


def test_in_evaluation_mode_all_channels_stay() -> None:
    model = tiny.network().eval()
    wrapped = RandomPrefixes(RuntimeNetwork(model), "widths").eval()
    images = torch.randn(5, 2, 8, 8)
    assert torch.equal(wrapped(images), model(images))


def test_adaptation_spends_its_share_of_the_budget() -> None:
    for share, spent in ((0, 0), (0.25, 1), (0.5, 2), (1, 4)):
        run = tiny.run(4)
        adapted(tiny.network(), tiny.splits(), run, Adaptation(adaptation=share))
        assert run.epochs_spent == spent


def test_the_backbone_does_not_depend_on_the_decision_network() -> None:
    small, large = (
        adapted(tiny.network(), tiny.splits(), tiny.run(4), Adaptation(), hidden=hidden)
        for hidden in (8, 64)
    )
    for name, tensor in small.state_dict().items():
        if not name.startswith("decision."):
            assert torch.equal(tensor, large.state_dict()[name]), name


def test_adapting_makes_small_prefixes_work() -> None:
    """Loss at the smallest prefixes, from a network that was trained at full width only."""
    data = tiny.splits(300, 150)
    dense = tiny.network()
    tiny.run(4).fine_tune(dense, data)
    losses = {}
    for share in (0.0, 1.0):
        run = tiny.run(6)
        network = adapted(dense, data, run, Adaptation(adaptation=share)).eval()
        pixels = (data.validation.pixels / 255 - 0.4) / 0.2
        with torch.no_grad():
            logits = network.masked(pixels, torch.zeros(len(pixels), 1, dtype=torch.int64))
        losses[share] = torch.nn.functional.cross_entropy(logits, data.validation.labels).item()
    assert losses[1.0] < 0.9 * losses[0.0]


def test_progress_is_reported_as_fine_tuning() -> None:
    reports: list[Mapping[str, float]] = []
    adapted(tiny.network(), tiny.splits(), tiny.run(4, reports=reports), Adaptation(adaptation=0.5))
    assert [r["epoch"] for r in reports if "epoch" in r] == [1, 2]
    assert "val_accuracy_before_finetuning" in reports[0]


def own_outputs(network: RuntimeNetwork, action: int) -> Tensor:
    """Probabilities of the validation images, all with the same prefixes."""
    inputs = tiny.splits().normalised(tiny.splits().validation)[:]
    actions = torch.full((len(inputs), len(network.flow.convs)), action)
    with torch.no_grad():
        return network.eval().masked(inputs, actions).softmax(dim=1)


def test_in_the_adaptation_prefixes_learn_from_the_full_width_as_it_trains() -> None:
    """Where they do, they say what it says, of more images than where all learn the labels."""
    dense = tiny.network()

    def distance(distillation: float) -> float:
        options = Adaptation(adaptation=1, distillation=distillation)
        network = adapted(dense, tiny.splits(), tiny.run(8), options)
        return (own_outputs(network, 0) - own_outputs(network, 3)).abs().mean().item()

    assert distance(1.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize(
    "method",
    [
        StaticPrefix(keep_multiplications=0.9, adaptation=0, distillation=1),
        RNP(rounds=1, steps=5, batch_size=16, adaptation=0, distillation=1),
    ],
    ids=["static_prefix", "rnp"],
)
def test_later_fine_tuning_distils_from_the_full_width_as_it_was_before(
    method: Adaptation,
) -> None:
    """With no share left for the labels, the outputs come nearer to the full width's."""
    data = tiny.splits()
    dense = tiny.network().eval()  # untrained: nobody gets near to it by learning the labels
    before = adapted(dense, data, tiny.run(12), method)

    def distance(distillation: float) -> float:
        options = method.model_copy(update={"distillation": distillation})
        assert isinstance(options, RNP | StaticPrefix)
        network = options.prune(dense, data, tiny.run(12))
        logits = predict(network, data.validation, data, device=torch.device("cpu"))
        return (logits.softmax(dim=1) - own_outputs(before, 3)).abs().mean().item()

    assert distance(1.0) < 0.3 * distance(0.0)
