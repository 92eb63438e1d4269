"""ONNX programs of groups and of routes: the same answers, and what no image needs does not run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_runs import convs_run, run
from small_groups import grouped
from small_routes import deciding
from torch import Tensor

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from rnp.grouped_network import GroupedNetwork
from rnp.onnx_groups import GroupLooks
from rnp.onnx_routes import RoutePrograms
from testbed.onnx_graph import CannotSkipError
from testbed.onnx_looks import LookPrograms

SHAPE, MEAN, STD = (2, 8, 8), (0.4, 0.3), (0.2, 0.1)
NORMALISED = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(5))
PIXELS = NORMALISED * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)


def group_programs(network: GroupedNetwork) -> LookPrograms:
    return LookPrograms(GroupLooks(network, SHAPE), SHAPE, MEAN, STD)


def answers(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(NORMALISED)
    return logits


def assert_both_give(
    programs: LookPrograms | RoutePrograms, expected: Tensor, sizes: tuple[int, ...] = (1, 7, 40)
) -> None:
    single = run(programs.single(), PIXELS.numpy())
    np.testing.assert_allclose(single, expected.numpy(), rtol=1e-3, atol=1e-4)
    batch = programs.batch()
    for n in sizes:
        found = run(batch, PIXELS[:n].numpy())
        np.testing.assert_allclose(found, expected[:n].numpy(), rtol=1e-3, atol=1e-4)


def test_programs_of_groups_answer_as_the_network_does(tmp_path: Path) -> None:
    network = grouped()
    programs = group_programs(network)
    assert_both_give(programs, answers(network))
    for go_on in (False, True):
        network.decision.offsets.zero_()
        network.decision.offsets[:, int(go_on)] = 1e6
        always = programs.always(go_on)
        assert_both_give(always, answers(network), (40,))
        ran = convs_run(always.single(), PIXELS[:1].numpy(), tmp_path)
        assert ran == 2 * (3 if go_on else 1)


def test_programs_of_routes_answer_as_the_network_does(tmp_path: Path) -> None:
    network = deciding("two blocks")
    programs = RoutePrograms(network, SHAPE, MEAN, STD)
    assert_both_give(programs, answers(network))
    for compute in (False, True):
        network.decision.offsets.zero_()
        network.decision.offsets[:, int(compute)] = 1e6
        always = programs.always(compute)
        assert_both_give(always, answers(network), (40,))
        ran = convs_run(always.single(), PIXELS[:1].numpy(), tmp_path)
        assert ran == (4 if compute else 1)


def test_a_network_that_cannot_be_cut_between_its_blocks_has_no_program_that_skips() -> None:
    with pytest.raises(CannotSkipError, match="from block to block"):
        RoutePrograms(deciding("in place"), SHAPE, MEAN, STD)
