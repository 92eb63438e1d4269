"""The decision network: Q-values without bounds, a memory of the layers before, scaled features."""

import pytest
import torch

from rnp.execution.decision import DecisionNetwork


def decision(features: tuple[int, ...] = (3, 5), n_actions: int = 4) -> DecisionNetwork:
    torch.manual_seed(0)
    return DecisionNetwork(features, n_actions, encoding=6, hidden=7)


def test_there_is_a_q_value_for_every_action_of_every_image() -> None:
    network = decision()
    values, state = network(0, torch.randn(11, 3))
    later, _ = network(1, torch.randn(11, 5), state)
    assert values.shape == later.shape == (11, 4)
    assert state.shape == (11, 7)


def test_q_values_are_also_negative() -> None:
    """All rewards are negative, so with a ReLU on Q nothing could be learnt."""
    values, _ = decision()(0, 10 * torch.randn(100, 3))
    assert (values < -0.1).any() and (values > 0.1).any()


def test_what_an_earlier_layer_showed_changes_later_values() -> None:
    network = decision()
    later_features = torch.ones(1, 5).expand(2, 5)
    _, state = network(0, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    first, second = network(1, later_features, state)[0]
    assert not torch.allclose(first, second)


def test_the_values_of_an_image_do_not_depend_on_the_batch() -> None:
    network, features = decision(), torch.randn(9, 3)
    values, state = network(0, features)
    alone, state_alone = network(0, features[4:5])
    torch.testing.assert_close(values[4:5], alone)
    torch.testing.assert_close(state[4:5], state_alone)


def test_the_same_features_have_the_same_values_every_time() -> None:
    """No projection of the features is drawn anew: all there is are weights that are learnt."""
    network, features = decision(), torch.randn(9, 3)
    assert torch.equal(network(0, features)[0], network(0, features)[0])
    names = {name for name, _ in network.named_parameters()}
    assert {"encoders.0.weight", "encoders.1.weight", "decoder.weight"} <= names


def test_all_layers_share_the_decoder_and_the_cell() -> None:
    assert [name for name, _ in decision().named_children()] == ["encoders", "cell", "decoder"]
    assert len(decision().encoders) == 2


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    network = decision()
    features = torch.randn(1000, 3) * torch.tensor([0.01, 1.0, 100.0]) + torch.tensor([5.0, 0, -3])
    seen: list[torch.Tensor] = []
    network.encoders[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.standardise(0, features)
    network(0, features)
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].std(dim=0, correction=0), torch.ones(3))


def test_a_feature_that_never_varies_is_only_shifted() -> None:
    network = decision()
    network.standardise(0, torch.tensor([[2.0, 1.0, 0.0], [2.0, 3.0, 0.0]]))
    assert network.get_buffer("deviation0").tolist() == [1.0, 1.0, 1.0]
    assert network.get_buffer("mean0").tolist() == [2.0, 2.0, 0.0]


def test_the_scale_is_saved_with_the_weights() -> None:
    network, other, features = decision(), decision(), torch.randn(20, 5)
    network.standardise(1, 3 * features + 1)
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(1, features)[0], other(1, features)[0])


@pytest.mark.parametrize("step", [0, 1])
def test_each_layer_has_a_scale_of_its_own(step: int) -> None:
    network = decision()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.standardise(step, 2 * torch.randn(50, (3, 5)[step]) + 1)
    changed = {name for name, buffer in network.named_buffers() if not buffer.equal(before[name])}
    assert changed == {f"mean{step}", f"deviation{step}"}


def test_offsets_are_added_to_the_values_of_their_own_step() -> None:
    network = decision()
    features = torch.randn(9, 3), torch.randn(9, 5)
    before = [network(step, features[step])[0] for step in range(2)]
    with torch.no_grad():
        network.offsets[1, 2] = 0.5
    after = [network(step, features[step])[0] for step in range(2)]
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1] - before[1], torch.tensor([0, 0, 0.5, 0]).expand(9, 4))


@pytest.mark.parametrize("k", [2, 4, 16])
def test_a_new_network_that_favours_all_takes_the_last_action(k: int) -> None:
    torch.manual_seed(1)
    network, state = decision(features=(5, 5, 5), n_actions=k), None
    network.favour_all()
    for step in range(3):
        values, state = network(step, torch.randn(1000, 5), state)
        assert (values.argmax(dim=1) == k - 1).double().mean() > 0.9
