"""A network as programs that others can run, of torch.export and of ONNX.

What is written takes images (n, C, H, W) float32 from 0 to 1 and gives logits; normalisation is
part of it. Every format is run on validation images and must give what the network gives.
"""

import copy
import math
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
from testbed.data import Splits

CHECKED_ON = 64  # validation images
TOLERANCE = 1e-3  # of a logit, relative to the largest
TIMED_RUNS = {1: 100, 128: 10}  # by the size of a batch
TIMED_BATCHES = tuple(TIMED_RUNS)
RUNTIME = "(ONNX Runtime, one thread, in turn)"
DENSE, OWN = "the dense network", "its own decisions"
SINGLE_IMAGES = "single images"  # what a program that skips takes
ANY_BATCH = {"images": {0: torch.export.Dim("batch", min=1)}}
PROGRAM, ONNX, BATCH_ONNX = "model.pt2", "model.onnx", "model_batch.onnx"
CHEAPEST, DEAREST = "the cheapest", "the dearest"

Run = Callable[[np.ndarray], np.ndarray]
"""Images to logits, both as arrays."""
MASKING = (RuntimeNetwork, CascadeNetwork, GroupedNetwork, RoutedNetwork)
"""Networks that decide per image: an exported program computes all, and masks."""


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
    if isinstance(network, CascadeNetwork):
        masked = f"{PROGRAM}: any batch; every stage looks at every image, so it skips nothing."
        return [*_cascade_programs(network, timed, splits, images, expected, target), masked]
    if not isinstance(network, RuntimeNetwork):
        timed[""] = _plain_onnx(whole, images, expected, target / ONNX)
        skips = "; it computes all and masks, so it skips nothing" * isinstance(network, MASKING)
        said = f"{ONNX}: any batch{skips}; {_compared(timed, images)}."
        return [said, f"{PROGRAM}: any batch{skips}."]
    masked = f"{PROGRAM}: any batch; it computes all channels and masks, so it skips nothing."
    try:
        skipping = _skipping_programs(network, splits)
    except ValueError as error:
        timed[""] = _plain_onnx(whole, images, expected, target / ONNX)
        masks = f"it cannot skip, and masks instead ({error})"
        return [f"{ONNX}: any batch; {masks}; {_compared(timed, images)}.", masked]
    runs = timed | {name: onnx_session(each) for name, each in skipping.items()}
    (target / ONNX).write_bytes(skipping[OWN])
    one_by_one = [runs[OWN](image[None]) for image in images.numpy()]
    _check(ONNX, lambda _: np.concatenate(one_by_one), images, expected)
    took_ms = _latencies_ms(runs, images, 1)
    said = ", ".join(f"{milliseconds(took_ms[name])} with {name}" for name in skipping)
    share = took_ms[OWN] / took_ms[DENSE]
    note = (
        f"{ONNX}: {SINGLE_IMAGES}; it skips. One image takes {said}; {ratio(share)} times the "
        f"dense network's {milliseconds(took_ms[DENSE])} {RUNTIME}."
    )
    if share > 1:
        note += " It decides per image, and that makes it slower than the dense network here."
    if not took_ms["the cheapest"] < took_ms["all groups"]:
        note += " On a network as small as this, skipping saved no time here."
    return [note, masked]


def _skipping_programs(network: RuntimeNetwork, splits: Splits) -> dict[str, bytes]:
    """ONNX programs for single images, by the decisions that they take: its own, and fixed ones.

    Raises:
        ValueError: if the network has an operation that no such program is written for.
    """
    from rnp.onnx_program import skipping_program

    fixed = {"the cheapest": 0, "all groups": network.flow.groups - 1}
    networks = {OWN: network} | {name: _always(network, action) for name, action in fixed.items()}
    return {
        name: skipping_program(
            each, splits.input_shape, splits.mean, splits.std
        ).SerializeToString()
        for name, each in networks.items()
    }


def _cascade_programs(
    network: CascadeNetwork,
    timed: dict[str, Run],
    splits: Splits,
    images: Tensor,
    expected: np.ndarray,
    target: Path,
) -> list[str]:
    """Writes checked ONNX programs of a cascade that skip; returns how long they take.

    Args:
        timed: the dense network's program.
    """
    from baselines.runtime.onnx_programs import CascadePrograms

    if network.confidence == "drawn":
        return [f"{ONNX}: not written, as a cascade at random draws by the bits of an image."]
    with _as_refusal(ONNX, "torch's ONNX exporter"):
        programs = CascadePrograms(network, splits.input_shape, splits.mean, splits.std)
    thresholds = {OWN: None, CHEAPEST: -math.inf, DEAREST: math.inf}
    notes = []
    for name, write, size in zip(
        (ONNX, BATCH_ONNX), (programs.single, programs.batch), TIMED_BATCHES, strict=True
    ):
        written = {end: write(each).SerializeToString() for end, each in thresholds.items()}
        runs = timed | {end: onnx_session(program) for end, program in written.items()}
        (target / name).write_bytes(written[OWN])
        found = np.concatenate([runs[OWN](batch.numpy()) for batch in images.split(size)])
        _check(name, lambda _, found=found: found, images, expected)  # type: ignore[misc]
        took_ms = _latencies_ms(runs, images, size)
        said = ", ".join(f"{milliseconds(took_ms[end])} with {end}" for end in written)
        what, one = (SINGLE_IMAGES, "One image") if size == 1 else ("any batch", f"{size} images")
        share = took_ms[OWN] / took_ms[DENSE]
        notes.append(
            f"{name}: {what}; it skips. {one}: {said}; {ratio(share)} times the dense network's "
            f"{milliseconds(took_ms[DENSE])} {RUNTIME}."
        )
    return notes


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
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        said = str(reason).partition("\n")[0].strip().rstrip(".")
        raise ValueError(
            f"{name} cannot be written: {exporter} does not take an operation of this network "
            f"({type(reason).__name__}: {said}). Write that operation otherwise in the network's "
            "forward; an equal one of torch.nn will do."
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


def _always(network: RuntimeNetwork, action: int) -> RuntimeNetwork:
    """The network with the same decision for every image and conv, the work for it included."""
    fixed = copy.deepcopy(network)
    decision = fixed.decision
    with torch.no_grad():
        for each in (decision.decoder.weight, decision.decoder.bias, decision.offsets):
            each.zero_()
        decision.decoder.bias[action] = 1
    return fixed


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
