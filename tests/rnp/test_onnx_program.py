"""The ONNX program of a network that decides per image: the same logits, and less work."""

import time

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from rnp.execution.layers import PrefixBatchNorm  # noqa: E402
from rnp.execution.masked_run import MaskedRun  # noqa: E402
from rnp.onnx_program import PrefixPrograms  # noqa: E402 - needs the extra
from rnp.runtime_network import RuntimeNetwork  # noqa: E402
from rnp.runtime_neural_pruning import decide  # noqa: E402
from testbed.backbones import build_backbone  # noqa: E402
from testbed.data import normalise  # noqa: E402
from testbed.onnx_graph import CannotSkipError  # noqa: E402

MEAN, STD = (0.4, 0.4), (0.2, 0.2)


class Pools(nn.Module):
    """Every kind of operation that the program knows and `conv` has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.second = nn.Conv2d(6, 8, (3, 1), padding=(1, 0), dilation=1, bias=False)
        self.pool = nn.MaxPool2d(2, stride=1, padding=1)
        self.norm = nn.BatchNorm2d(8)  # not right after its conv
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.average = nn.AvgPool2d(2, padding=1, count_include_pad=False)
        self.all = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.norm(self.pool(torch.sigmoid(self.second(self.first(images).relu()))))
        inner = self.average(torch.tanh(self.third(inner)))
        pooled = self.all(inner)
        logits: Tensor = self.classifier(pooled.view(pooled.size(0), -1))
        return logits


def network(kind: str) -> RuntimeNetwork:
    """Untrained, with statistics of its own and decisions that differ between images."""
    torch.manual_seed(0)
    backbones = {
        "pools": Pools,
        "resnet18": lambda: build_backbone("resnet18", (2, 8, 8), 3, width=0.1),
    }
    backbone = backbones[kind]() if kind in backbones else tiny.network(kind)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    found = RuntimeNetwork(backbone, groups=2, encoding=8, hidden=8).eval()
    for module in found.modules():
        if isinstance(module, PrefixBatchNorm):  # other statistics for each prefix
            nn.init.normal_(module.prefix_mean, 0, 0.2)
            nn.init.uniform_(module.prefix_var, 0.5, 2)
    with torch.no_grad():
        nn.init.normal_(found.decision.offsets)
        for parameter in found.decision.parameters():
            parameter.mul_(3)
        run = MaskedRun(found, found.flow, normalise(tiny.splits().validation.pixels, MEAN, STD))
        state = None
        while (features := run.observe()) is not None:  # half of the images take each action
            step = len(run.actions)
            found.decision.standardise(step, features)
            values, state = found.decision(step, features, state)
            better = values[:, 1] - values[:, 0]
            if step == 0:
                found.decision.decoder.bias[0] += better.quantile(0.5)  # between two images
            run.act((better > better.quantile(0.5)).long())
    return found


def session(found: RuntimeNetwork) -> "onnxruntime.InferenceSession":
    program = PrefixPrograms(found, (2, 8, 8), MEAN, STD).single()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(program.SerializeToString(), options)


@pytest.mark.parametrize("kind", ["conv", "residual", "pools", "resnet18"])
def test_logits_and_decisions_are_the_networks_own(kind: str) -> None:
    found = network(kind)
    run = session(found)
    pixels = tiny.splits().validation.pixels
    images = normalise(pixels, MEAN, STD)
    actions = decide(found, images)
    assert len(actions.unique(dim=0)) > 1
    with torch.no_grad():
        logits = found(images)
    for place in range(len(pixels)):
        given = (pixels[place : place + 1].float() / 255).numpy()
        own, took = run.run(None, {"images": given})
        np.testing.assert_array_equal(took, actions[place].numpy())
        np.testing.assert_allclose(own[0], logits[place].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("action", [0, 1])
def test_whatever_all_images_decide_the_program_does(action: int) -> None:
    found = network("conv")
    found.decision = found.decision.always(action)
    run = session(found)
    image = tiny.splits().validation.pixels[:1]
    own, took = run.run(None, {"images": (image.float() / 255).numpy()})
    assert set(took.tolist()) == {action}
    with torch.no_grad():
        expected = found.masked(normalise(image, MEAN, STD))
    np.testing.assert_allclose(own, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_the_cheapest_decisions_are_faster_than_all_groups() -> None:
    """On a network whose convs are most of the work; in turns, so that load slows both alike."""
    torch.manual_seed(0)
    backbone = build_backbone("conv", (2, 16, 16), 3, channels=(32, 192, 192), hidden=16)
    found = RuntimeNetwork(backbone, groups=4).eval()
    sessions = []
    programs = PrefixPrograms(found, (2, 16, 16), MEAN, STD)
    for go_on in (False, True):
        program = programs.always(go_on).single()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        sessions.append(onnxruntime.InferenceSession(program.SerializeToString(), options))
    image = {"images": np.random.default_rng(0).random((1, 2, 16, 16), dtype=np.float32)}
    times: list[list[float]] = [[], []]
    for _ in range(15):
        for run, taken in zip(sessions, times, strict=True):
            start = time.process_time()
            run.run(None, image)
            taken.append(time.process_time() - start)
    assert min(times[0]) < 0.5 * min(times[1])  # of the multiplications it has about a tenth


def test_what_cannot_be_written_is_said() -> None:
    class Odd(Pools):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.cumsum(dim=1))

    torch.manual_seed(0)
    programs = PrefixPrograms(RuntimeNetwork(Odd(), groups=2).eval(), (2, 8, 8), MEAN, STD)
    with pytest.raises(CannotSkipError, match="it has cumsum"):
        programs.single()
