"""ONNX programs of a cascade: the same answers, and networks that no image needs do not run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_runs import convs_run, run
from small_cascades import cascade
from torch import nn

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from baselines.runtime import onnx_cascade
from baselines.runtime.cascade_network import CascadeNetwork
from baselines.runtime.onnx_cascade import CascadeLooks
from testbed.onnx_graph import CannotSkipError, translated
from testbed.onnx_looks import LookPrograms

SHAPE, MEAN, STD = (2, 8, 8), (0.4, 0.3), (0.2, 0.1)
PIXELS = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(0))
NORMALISED = (PIXELS - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


known: dict[torch.Size, onnx.ModelProto] = {}


@pytest.fixture(autouse=True)
def _translates_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it takes seconds, and `cascade` is always of the same three."""

    def once(network: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
        key = network.get_parameter("conv1.weight").shape
        if key not in known:
            known[key] = translated(network, example)
        return known[key]

    monkeypatch.setattr(onnx_cascade, "translated", once)


def programs_of(network: CascadeNetwork) -> LookPrograms:
    return LookPrograms(CascadeLooks(network, SHAPE), SHAPE, MEAN, STD)


def deciding(confidence: str, mirror: bool) -> CascadeNetwork:
    """A cascade whose thresholds are the medians for `NORMALISED`."""
    network = cascade(confidence, mirror)
    with torch.no_grad():
        for number in range(network.looks - 1):
            network.thresholds[number:] = -torch.inf
            answers = network(NORMALISED)
            network.thresholds[number] = network.confidences(answers, NORMALISED).median()
    return network


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("confidence", ["margin", "max_softmax"])
def test_both_programs_answer_as_the_network_does(confidence: str, mirror: bool) -> None:
    network = deciding(confidence, mirror)
    with torch.no_grad():
        expected = network(NORMALISED).numpy()
    programs = programs_of(network)
    single, batches = programs.single(), programs.batch()
    np.testing.assert_allclose(run(single, PIXELS.numpy()), expected, rtol=1e-3, atol=1e-4)
    for n in (1, 7, 30):
        found = run(batches, PIXELS[:n].numpy())
        np.testing.assert_allclose(found, expected[:n], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threshold", [-np.inf, np.inf])
def test_all_images_may_be_sure_or_none(threshold: float) -> None:
    network = cascade()
    network.thresholds.fill_(threshold)
    with torch.no_grad():
        expected = network(NORMALISED).numpy()
    always = programs_of(cascade()).always(threshold > 0)
    for program in (always.single(), always.batch()):
        found = run(program, PIXELS.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("thresholds", "looks"), [((-1, 2, 2), 1), ((2, -1, 2), 2), ((2,) * 3, 4)])
def test_the_single_program_ends_at_the_first_sure_answer(
    thresholds: tuple[float, ...], looks: int, tmp_path: Path
) -> None:
    network = cascade()
    network.thresholds.copy_(torch.tensor(thresholds))
    program = programs_of(network).single()
    assert convs_run(program, PIXELS[:1].numpy(), tmp_path) == 2 * looks


def test_a_cascade_at_random_has_no_program() -> None:
    with pytest.raises(CannotSkipError, match="draws by the bits"):
        programs_of(cascade("drawn"))
