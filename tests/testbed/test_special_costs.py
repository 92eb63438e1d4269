"""Bits that a network's numbers have, found out from the numbers."""

import pytest
import torch
from small_networks import Net, conv, pooled
from torch import Tensor, nn

from testbed.cost import count_multiplications, count_parameters
from testbed.quantisation import InputQuantiser, quantise_inputs, quantised
from testbed.special_costs import bits_of, special_costs


def values(n: int = 2000) -> Tensor:
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(0)) + 0.03


def on_grid(values: Tensor, bits: int) -> Tensor:
    return quantised(values, values.min(), values.max(), torch.tensor(float(bits)))


@pytest.mark.parametrize("bits", range(1, 13))
def test_the_bits_of_a_grid_are_found(bits: int) -> None:
    assert bits_of(on_grid(values(), bits)) == bits
    assert bits_of(on_grid(values(40), bits)) == bits, "where most places are empty"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_whose_greatest_value_is_never_met_is_found(bits: int) -> None:
    read = quantised(values().relu(), torch.tensor(0.0), torch.tensor(0.9), torch.tensor(bits))
    assert read.max() < 0.85
    needed = len(torch.arange(0, read.max().item() + 1e-6, 0.9 / (2**bits - 1)))
    assert bits_of(read[:900], read[900:]) == (needed - 1).bit_length()


def test_what_lies_on_no_coarse_grid_has_32_bits() -> None:
    assert bits_of(values()) == bits_of(values(20)) == bits_of(torch.randn(9000)) == 32
    assert bits_of(torch.zeros(5)) == bits_of(torch.ones(1)) == 1


def test_quantising_is_idempotent_and_no_further_off_than_half_a_step() -> None:
    for bits in (1, 3, 8):
        once = on_grid(values(), bits)
        assert len(once.unique()) <= 2**bits
        torch.testing.assert_close(on_grid(once, bits), once, rtol=0, atol=1e-6)
        step = (values().max() - values().min()) / (2**bits - 1)
        assert (once - values()).abs().max() <= step / 2 + 1e-6


def network() -> Net:
    return Net(
        lambda net, x: net.head(pooled(net.conv(x).relu())), conv=conv(3, 4), head=nn.Linear(4, 2)
    )


def test_the_costs_of_bits_agree_with_a_count_by_hand() -> None:
    net, x = network(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cost = count_multiplications(net, x)
    dense = special_costs(net, cost, x)
    assert dense["bit_operations"] == 32 * 32 * cost.multiplications
    assert dense["mean_bits"] == 32
    assert dense["footprint_bytes"] == 4 * count_parameters(net)
    with torch.no_grad():
        net.conv.weight.copy_(on_grid(net.conv.weight, 3))
    quantiser = InputQuantiser()
    for name, value in (("low", -3.0), ("high", 3.0), ("bits", 5.0)):
        quantiser.get_buffer(name).fill_(value)
    quantise_inputs(net.head, quantiser)
    cost = count_multiplications(net, x)
    found = special_costs(net, cost, x)
    read = net.head.input_quantiser(pooled(net.conv(x).relu()))
    bits = bits_of(read)
    assert bits <= 5
    assert found["bit_operations"] == 9 * 3 * 4 * 64 * 3 * 32 + 8 * 32 * bits
    assert found["mean_bits"] == (3 + 32 + 32 + bits) / 4
    assert found["footprint_bytes"] == (108 * 3 + 32 * (4 + 8 + 2)) / 8
