"""Programs of networks with few bits, or with convolutions in the Winograd domain."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from orchestrator.methods import method_class
from testbed.cost import weights_by_layer
from testbed.special_costs import bits_of
from testbed.winograd import WinogradConv2d

METHODS = {"bit_pruning": {}, "joint_sparsity": {"sparsity": 0.5}}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_holds_the_weights_that_the_method_made(name: str, tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from orchestrator.deploy.programs import write_programs

    method = method_class(name)(**METHODS[name])
    network = method.prune(tiny.trained(), tiny.splits(), tiny.run(2)).eval()
    write_programs(network, tiny.network(), tiny.splits(), tmp_path)  # checks what they give
    held = [
        torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
        for each in onnx.load(str(tmp_path / "model.onnx")).graph.initializer
    ]
    weights = weights_by_layer(network)
    weights |= {n: m.weight for n, m in network.named_modules() if isinstance(m, WinogradConv2d)}
    assert len(weights) == 4
    program = torch.export.load(tmp_path / "model.pt2").state_dict
    for layer, weight in weights.items():
        assert torch.equal(program[f"network.{layer}.weight"], weight)
    if name == "bit_pruning":
        for weight in weights.values():
            assert bits_of(weight) <= 8
            (same,) = (each for each in held if each.shape == weight.shape)
            rows, own = same.flatten(1), weight.detach().flatten(1)
            # A batch norm is folded into the conv before it: each channel has a scale of its own.
            scales = (rows * own).sum(dim=1, keepdim=True) / own.square().sum(dim=1, keepdim=True)
            torch.testing.assert_close(rows, scales * own, rtol=1e-4, atol=1e-6)
    else:
        zeros = sum(int((weight == 0).sum()) for weight in weights.values())
        assert sum(int((each == 0).sum()) for each in held if each.ndim > 1) == zeros
