"""A network as programs that others can run, of torch.export and of ONNX.

What is written takes images (n, C, H, W) float32 from 0 to 1 and gives logits; normalisation is
part of it. Every format is run on validation images and must give what the network gives.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from baselines.runtime.cascade_network import CascadeNetwork
from orchestrator.formatting import milliseconds, ratio
from rnp.grouped_network import GroupedNetwork
from rnp.routed_network import RoutedNetwork
from rnp.runtime_network import RuntimeNetwork
from testbed.cause import first_cause
from testbed.data import Splits

CHECKED_ON = 64  # validation images
TOLERANCE = 1e-3  # of a logit, relative to the largest
TIMED_RUNS = {1: 100, 128: 10}  # by the size of a batch
TIMED_BATCHES = tuple(TIMED_RUNS)
RUNTIME = "(ONNX Runtime, one thread, in turn)"
DENSE, OWN = "the dense network", "its own decisions"
CHEAPEST, DEAREST = "the cheapest", "the dearest"
SINGLE_IMAGES = "single images"  # what a program that skips takes
ANY_BATCH = {"images": {0: torch.export.Dim("batch", min=1)}}
PROGRAM, ONNX, BATCH_ONNX = "model.pt2", "model.onnx", "model_batch.onnx"

Run = Callable[[np.ndarray], np.ndarray]
"""Images to logits, both as arrays."""
MASKING = (RuntimeNetwork, CascadeNetwork, GroupedNetwork, RoutedNetwork)
"""Networks that decide per image. A program of torch.export computes all of them, and masks."""


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
        if isinstance(self.network, MASKING):
            return self.network.masked(normalised)
        logits: Tensor = self.network(normalised)
        return logits


def write_programs(network: nn.Module, dense: nn.Module, splits: Splits, target: Path) -> list[str]:
    """Writes a network to the folder `target` as a program in each format, each one checked.

    Args:
        dense: of the dense network's structure, whose ONNX program is timed in turn.

    Returns:
        A sentence for each thing to know, the measured latencies among them.

    Raises:
        ValueError: if a format does not give what the network gives.
    """
    whole = FromPixels(network, splits.mean, splits.std).eval()
    images = (splits.validation[:CHECKED_ON].pixels.float() / 255).contiguous()
    with torch.inference_mode():
        expected = whole(images).numpy()
    _check(PROGRAM, _torch_program(whole, images, target / PROGRAM), images, expected)
    timed = {DENSE: _dense_program(dense, splits, images)}
    if not isinstance(network, MASKING):
        timed[""] = _plain_onnx(whole, images, expected, target / ONNX)
        return [f"{ONNX}: any batch; {_compared(timed, images)}.", f"{PROGRAM}: any batch."]
    masked = f"{PROGRAM}: any batch; it computes all and masks, so it skips nothing."
    from orchestrator.deploy.skipping_programs import CannotSkipError, skipping_programs

    try:
        written = skipping_programs(network, splits)
    except CannotSkipError as error:
        if isinstance(network, CascadeNetwork) and network.confidence == "drawn":
            return [f"{ONNX}: not written ({error}).", masked]
        timed[""] = _plain_onnx(whole, images, expected, target / ONNX)
        masks = f"it cannot skip, and masks instead ({error})"
        return [f"{ONNX}: any batch; {masks}; {_compared(timed, images)}.", masked]
    notes = []
    for name, size, ends in zip((ONNX, BATCH_ONNX), TIMED_BATCHES, written, strict=True):
        if ends is None:
            continue
        (target / name).write_bytes(ends.own)
        named = zip((OWN, CHEAPEST, DEAREST), ends, strict=True)
        runs = timed | {end: onnx_session(program) for end, program in named}
        found = np.concatenate([runs[OWN](batch.numpy()) for batch in images.split(size)])
        _check(name, lambda _, found=found: found, images, expected)  # type: ignore[misc]
        notes.append(_timed_note(name, size, _latencies_ms(runs, images, size)))
    return [*notes, masked]


def _timed_note(name: str, size: int, took_ms: dict[str, float]) -> str:
    """What to know of a program that skips, by the times of a batch of so many images."""
    said = ", ".join(f"{milliseconds(took_ms[end])} with {end}" for end in (OWN, CHEAPEST, DEAREST))
    what, one = (SINGLE_IMAGES, "One image") if size == 1 else ("any batch", f"{size} images")
    share = took_ms[OWN] / took_ms[DENSE]
    note = (
        f"{name}: {what}; it skips. {one}: {said}; {ratio(share)} times the dense network's "
        f"{milliseconds(took_ms[DENSE])} {RUNTIME}."
    )
    if share > 1:
        note += " It decides per image, and is slower than the dense network here."
    if not took_ms[CHEAPEST] < took_ms[DEAREST]:
        note += " On a network as small as this, skipping saved no time here."
    return note


def _torch_program(whole: FromPixels, images: Tensor, path: Path) -> Run:
    """Writes a program of torch.export for any batch; returns it as it runs."""
    with torch.no_grad(), _as_refusal(PROGRAM, "torch.export"):
        program = torch.export.export(whole, (images[:2],), dynamic_shapes=ANY_BATCH)
    torch.export.save(program, path)
    module = program.module()
    return lambda batch: module(torch.from_numpy(batch)).detach().numpy()


def _dense_program(dense: nn.Module, splits: Splits, images: Tensor) -> Run:
    """The dense network's ONNX program, to be timed."""
    whole = FromPixels(dense, splits.mean, splits.std).eval()
    with torch.inference_mode():
        expected = whole(images).numpy()
    with tempfile.TemporaryDirectory() as folder:
        return _plain_onnx(whole, images, expected, Path(folder) / ONNX)


def _compared(runs: dict[str, Run], images: Tensor) -> str:
    """How long a program, named "", takes for one image and for a batch, beside the dense one."""
    said = []
    for size in TIMED_BATCHES:
        took_ms = _latencies_ms(runs, images, size)
        share = ratio(took_ms[""] / took_ms[DENSE])
        what = "one image" if size == 1 else f"a batch of {size}"
        said.append(f"{what} in {milliseconds(took_ms[''])}, {share} times the dense network's")
    return f"{'; '.join(said)} {RUNTIME}"


def _plain_onnx(whole: FromPixels, images: Tensor, expected: np.ndarray, path: Path) -> Run:
    """Writes a checked ONNX program for any batch; returns it as it runs."""
    with torch.no_grad(), warnings.catch_warnings(), _as_refusal(ONNX, "torch's ONNX exporter"):
        warnings.simplefilter("ignore")  # of the exporter's own parts, about one another
        torch.onnx.export(
            whole,
            (images[:2],),
            path,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=ANY_BATCH,
            external_data=False,
            verbose=False,
        )
        run = onnx_session(path)
    _check(ONNX, run, images, expected)
    return run


@contextmanager
def _as_refusal(name: str, exporter: str) -> Iterator[None]:
    """Whatever an exporter raises of a network it cannot write, in a sentence with its reason."""
    try:
        yield
    except Exception as error:  # of many types, none of them documented
        raise ValueError(
            f"{name} cannot be written: {exporter} does not take an operation of this network "
            f"({first_cause(error)}). Write that operation otherwise in the network's forward; an "
            "equal one of torch.nn will do."
        ) from error


def onnx_session(program: Path | bytes) -> Run:
    """An ONNX program, run by ONNX Runtime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = program if isinstance(program, bytes) else str(program)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


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


def _latencies_ms(runs: dict[str, Run], images: Tensor, size: int) -> dict[str, float]:
    """The median time of a batch of so many images, of all programs in turn."""
    places = np.arange(TIMED_RUNS[size] * size).reshape(-1, size) % len(images)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(images.numpy()[places[0]])
    for batch in places:
        for name, run in runs.items():
            given = images.numpy()[batch]
            start = time.perf_counter()
            run(given)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(taken)) for name, taken in times.items()}
