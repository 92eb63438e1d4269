"""Latency of networks, measured side by side so that a busy machine slows all of them alike."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from testbed.inference_form import inference_form
from testbed.machine import device_name
from testbed.prediction import evaluating, refuses_channels_last

WARM_UP_RUNS = 2
FEWEST_RUNS = 5
MOST_RUNS = 1000
UNSTEADY = 0.5
"""Interquartile range over median. A busy machine is one where that of every network is larger."""
PATIENCE = 10
"""How many times as long as usual a measurement may take, until figures are steady."""


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a whole batch, in float32."""

    median_ms: float
    iqr_ms: float
    """Interquartile range."""
    runs: int
    device: str
    threads: int
    """Of torch's CPU work within one operation."""


def measure_latency(
    networks: Mapping[str, nn.Module],
    inputs: Tensor,
    batch_sizes: Sequence[int] = (1, 128),
    seconds: float = 0.3,
) -> dict[tuple[str, int], Latency]:
    """Times the networks in turns, in evaluation mode with channels-last memory.

    All are timed in the form in which they run best: batch norm folded into the convs, weights laid
    out beforehand (`inference_form`). A network that decides per image does so itself.

    In each round all networks get the same images, in the next round the next ones, so a network
    that decides per image shows how it behaves on all. A network that cannot take channels-last
    images, as its forward has a `.view`, is timed with contiguous ones.

    Args:
        inputs: (n, C, H, W) normalised floats; repeated where a batch needs more.
        seconds: for each network and batch size. At least five runs are made, however long. On a
            busy machine, which shows in the spread of all networks' times, it may be ten times as
            long.

    Returns:
        (name, batch size) -> latency.
    """
    parameters = (parameter for network in networks.values() for parameter in network.parameters())
    device = next(parameters, inputs).device
    pool = inputs.to(device, torch.float32)
    forms = {name: inference_form(network, pool[:1]) for name, network in networks.items()}
    measured = {}
    for batch_size in batch_sizes:
        for name, times in _times_ms(forms, pool, batch_size, seconds).items():
            low, median, high = _quartiles(times)
            measured[name, batch_size] = Latency(
                median, high - low, len(times), device_name(device), torch.get_num_threads()
            )
    for form in forms.values():
        form.to(memory_format=torch.contiguous_format)
    return measured


def _times_ms(
    networks: Mapping[str, nn.Module], pool: Tensor, batch_size: int, seconds: float
) -> dict[str, list[float]]:
    """Name -> times, taken in turns until the time of all together is used up."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    with evaluating(*networks.values()), ExitStack() as timed:
        layouts = {
            name: _warmed_up(network, pool, batch_size) for name, network in networks.items()
        }
        timed.enter_context(torch.inference_mode())
        begun, span = time.perf_counter(), seconds * len(networks)
        for run in range(MOST_RUNS):
            spent = time.perf_counter() - begun
            over = run >= FEWEST_RUNS and spent > span
            if over and (spent > PATIENCE * span or _steady(times)):
                break
            batches = {
                layout: _batch(pool, run, batch_size, layout) for layout in set(layouts.values())
            }
            for name, network in networks.items():
                _synchronise(pool.device)
                start = time.perf_counter()
                network(batches[layouts[name]])
                _synchronise(pool.device)
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def _quartiles(times: Sequence[float]) -> list[float]:
    return np.quantile(times, (0.25, 0.5, 0.75)).tolist()


def _steady(times: Mapping[str, Sequence[float]]) -> bool:
    """Whether one network's times vary little. Those of one that decides per image may vary."""
    quartiles = map(_quartiles, times.values())
    return any(high - low <= UNSTEADY * median for low, median, high in quartiles)


def _warmed_up(network: nn.Module, pool: Tensor, batch_size: int) -> torch.memory_format:
    """Runs the network a few times, with weights and images channels last if it can.

    Returns:
        The layout of both, in which the weights are left.
    """
    for layout in (torch.channels_last, torch.contiguous_format):
        # Not in inference mode, or no one could train the network afterwards.
        network.to(memory_format=layout)
        try:
            with torch.inference_mode():
                for _ in range(WARM_UP_RUNS):
                    network(_batch(pool, 0, batch_size, layout))
        except RuntimeError as error:
            if layout is torch.contiguous_format or not refuses_channels_last(error):
                raise
        else:
            break
    return layout


def _batch(pool: Tensor, number: int, size: int, layout: torch.memory_format) -> Tensor:
    indices = torch.arange(number * size, (number + 1) * size, device=pool.device) % len(pool)
    return pool[indices].contiguous(memory_format=layout)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
