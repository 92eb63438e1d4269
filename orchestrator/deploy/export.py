"""A trial's network as others can use it: safetensors, torch.export, ONNX, and a model card.

What is exported takes images (n, C, H, W) float32 from 0 to 1 and gives logits; normalisation is
part of it. Every format is run on validation images and must give what the network gives.
"""

from __future__ import annotations

import copy
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.formatting import milliseconds
from orchestrator.methods import method_class
from orchestrator.plan import Trial
from rnp.runtime_network import RuntimeNetwork
from testbed.backbones import build_backbone
from testbed.data import Splits, load_splits
from testbed.method import load_pruned

CHECKED_ON = 64  # validation images
TOLERANCE = 1e-3  # of a logit, relative to the largest
TIMED_RUNS = 100
WEIGHTS, PROGRAM, ONNX = "weights.safetensors", "model.pt2", "model.onnx"

Run = Callable[[np.ndarray], np.ndarray]
"""Images to logits, both as arrays."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found out about it."""

    folder: Path
    skips: bool
    """Whether the ONNX program does less for images that need less."""
    notes: list[str]
    """A sentence for each thing to know, the measured latencies among them."""


class FromPixels(nn.Module):
    """A network with its normalisation before it. One that decides per image masks, not skips."""

    network: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        normalised = (images - self.mean) / self.std
        if isinstance(self.network, RuntimeNetwork):
            return self.network.masked(normalised)
        logits: Tensor = self.network(normalised)
        return logits


def export(trial: Trial, run_folder: Path, target: Path, data_root: Path) -> Exported:
    """Writes a trial's network to the folder `target`, in every format, each one checked.

    Raises:
        FileExistsError: if there is such a folder.
        ImportError: without the extra `export`.
        ValueError: if a format does not give what the network gives.
    """
    import onnx  # noqa: F401 - a refusal before any work
    import onnxruntime  # noqa: F401

    splits = load_splits(trial.data, data_root, trial.seed)
    dense = build_backbone(
        trial.backbone, splits.input_shape, splits.n_classes, **trial.backbone_options
    )
    method = method_class(trial.method).model_validate(trial.options)
    weights = run_folder / "networks" / f"{trial.trial_id}.safetensors"
    network = load_pruned(weights, method, dense).eval()
    target.mkdir(parents=True)
    shutil.copyfile(weights, target / WEIGHTS)
    whole = FromPixels(network, splits.mean, splits.std).eval()
    images = splits.validation.pixels[:CHECKED_ON].float() / 255
    with torch.inference_mode():
        expected = whole(images).numpy()
    program = _torch_program(whole, images, target / PROGRAM)
    _check(PROGRAM, _run_torch(program), images, expected)
    if isinstance(network, RuntimeNetwork):
        return _export_deciding(network, whole, splits, images, expected, target)
    _plain_onnx(whole, images, target / ONNX)
    run = onnx_session(target / ONNX)
    _check(ONNX, run, images, expected)
    took = _latencies_ms({"": run}, images)[""]
    return Exported(
        target,
        False,
        [
            f"{ONNX}: any batch; one image in {milliseconds(took)} (ONNX Runtime, one thread).",
            f"{PROGRAM}: any batch.",
        ],
    )


def _export_deciding(
    network: RuntimeNetwork,
    whole: FromPixels,
    splits: Splits,
    images: Tensor,
    expected: np.ndarray,
    target: Path,
) -> Exported:
    """ONNX of a network that decides per image: one that skips, for single images."""
    from rnp.onnx_program import skipping_program

    masked = f"{PROGRAM}: any batch; it computes all channels and masks, so it skips nothing."
    shape = splits.input_shape
    try:
        program = skipping_program(network, shape, splits.mean, splits.std)
    except ValueError as error:
        _plain_onnx(whole, images, target / ONNX)
        run = onnx_session(target / ONNX)
        _check(ONNX, run, images, expected)
        took = milliseconds(_latencies_ms({"": run}, images)[""])
        note = f"{ONNX}: any batch; it cannot skip, and masks instead ({error}) One image in {took}"
        return Exported(target, False, [f"{note} (ONNX Runtime, one thread).", masked])
    (target / ONNX).write_bytes(program.SerializeToString())
    runs = {"its own decisions": onnx_session(target / ONNX)}
    _check(ONNX, one_by_one(runs["its own decisions"]), images, expected)
    actions = {"the cheapest": 0, "all groups": network.flow.groups - 1}
    for name, action in actions.items():
        fixed = skipping_program(_always(network, action), shape, splits.mean, splits.std)
        runs[name] = onnx_session(fixed.SerializeToString())
    took_ms = _latencies_ms(runs, images)
    said = ", ".join(f"{name} {milliseconds(ms)}" for name, ms in took_ms.items())
    skips = took_ms["the cheapest"] < took_ms["all groups"]
    note = f"{ONNX}: single images; it skips. One image with {said} (ONNX Runtime, one thread)."
    if not skips:
        note += " On a network as small as this, skipping saved no time here."
    return Exported(target, skips, [note, masked])


def _torch_program(whole: FromPixels, images: Tensor, path: Path) -> torch.export.ExportedProgram:
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        program = torch.export.export(whole, (images[:2],), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return program


def _plain_onnx(whole: FromPixels, images: Tensor, path: Path) -> None:
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts, about one another
        torch.onnx.export(
            whole,
            (images[:2],),
            path,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


def onnx_session(program: Path | bytes) -> Run:
    """An ONNX program, run by ONNX Runtime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = program if isinstance(program, bytes) else str(program)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


def one_by_one(run: Run) -> Run:
    """Takes a batch image by image."""
    return lambda images: np.concatenate([run(image[None]) for image in images])


def _run_torch(program: torch.export.ExportedProgram) -> Run:
    module = program.module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: Tensor = module(torch.from_numpy(images))
        return logits.numpy()

    return run


def _check(name: str, run: Run, images: Tensor, expected: np.ndarray) -> None:
    """
    Raises:
        ValueError: if the logits of the images are not those expected, but for rounding.
    """
    found = run(images.numpy())
    largest = float(np.abs(found - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not largest <= allowed:
        raise ValueError(
            f"{name} gives other logits than the network: up to {largest:.3g} off on "
            f"{len(images)} validation images, where {allowed:.3g} is allowed. Do not use it."
        )


def _always(network: RuntimeNetwork, action: int) -> RuntimeNetwork:
    """The network with the same decision for every image and conv, the work for it included."""
    fixed = copy.deepcopy(network)
    with torch.no_grad():
        fixed.decision.decoder.weight.zero_()
        fixed.decision.decoder.bias.zero_()
        fixed.decision.offsets.zero_()
        fixed.decision.decoder.bias[action] = 1
    return fixed


def _latencies_ms(runs: dict[str, Run], images: Tensor) -> dict[str, float]:
    """The median time of a single image, of all programs in turn."""
    singles = [image[None] for image in images.numpy()]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(singles[0])
    for number in range(TIMED_RUNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(singles[number % len(singles)])
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(taken)) for name, taken in times.items()}
