"""ONNX programs of a cascade: the same answers, and networks that no image needs do not run."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_cascades import cascade
from torch import nn

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from baselines.runtime import onnx_programs  # noqa: E402 - needs the extra
from baselines.runtime.cascade_network import CascadeNetwork  # noqa: E402
from baselines.runtime.onnx_programs import CascadePrograms  # noqa: E402

SHAPE, MEAN, STD = (2, 8, 8), (0.4, 0.3), (0.2, 0.1)
PIXELS = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(0))
NORMALISED = (PIXELS - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


real_export = onnx_programs._exported
translated: dict[torch.Size, onnx.ModelProto] = {}


@pytest.fixture(autouse=True)
def _translates_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it takes seconds, and `cascade` is always of the same three."""

    def exported(network: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
        key = network.get_parameter("conv1.weight").shape
        if key not in translated:
            translated[key] = real_export(network, shape)
        return translated[key]

    monkeypatch.setattr(onnx_programs, "_exported", exported)


def deciding(confidence: str, mirror: bool) -> CascadeNetwork:
    """A cascade whose thresholds are the medians for `NORMALISED`."""
    network = cascade(confidence, mirror)
    with torch.no_grad():
        for number in range(network.looks - 1):
            network.thresholds[number:] = -torch.inf
            answers = network(NORMALISED)
            network.thresholds[number] = network.confidences(answers, NORMALISED).median()
    return network


def run(program: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    single = session.get_inputs()[0].shape[0] == 1
    batches = np.split(pixels, len(pixels)) if single else [pixels]
    return np.concatenate([session.run(["logits"], {"images": each})[0] for each in batches])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("confidence", ["margin", "max_softmax"])
def test_both_programs_answer_as_the_network_does(confidence: str, mirror: bool) -> None:
    network = deciding(confidence, mirror)
    with torch.no_grad():
        expected = network(NORMALISED).numpy()
    programs = CascadePrograms(network, SHAPE, MEAN, STD)
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
    programs = CascadePrograms(cascade(), SHAPE, MEAN, STD)
    found = run(programs.batch(threshold), PIXELS.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def convs_run(program: onnx.ModelProto, pixels: np.ndarray, folder: Path) -> int:
    """How many convs ONNX Runtime ran, as its profile says."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(["logits"], {"images": pixels})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    counted = Counter(e["args"]["op_name"] for e in kernels)
    return sum(n for name, n in counted.items() if "Conv" in name)


@pytest.mark.parametrize(("thresholds", "looks"), [((-1, 2, 2), 1), ((2, -1, 2), 2), ((2,) * 3, 4)])
def test_the_single_program_ends_at_the_first_sure_answer(
    thresholds: tuple[float, ...], looks: int, tmp_path: Path
) -> None:
    network = cascade()
    network.thresholds.copy_(torch.tensor(thresholds))
    program = CascadePrograms(network, SHAPE, MEAN, STD).single()
    assert convs_run(program, PIXELS[:1].numpy(), tmp_path) == 2 * looks


def test_a_cascade_at_random_has_no_program() -> None:
    with pytest.raises(ValueError, match="draws by the bits"):
        CascadePrograms(cascade("drawn"), SHAPE, MEAN, STD)
