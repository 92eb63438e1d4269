"""Trace of a network: what one forward pass shows of its channels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from baselines.channels.dependency.operations import rule_for
from baselines.channels.dependency.records import Trace
from baselines.channels.dependency.tracer import Tracer
from testbed.prediction import evaluating

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # which there are rules for


def trace(network: nn.Module, example: Tensor) -> Trace:
    """What a run of `network` on `example` shows of its channels.

    Args:
        network: is left unchanged.
        example: (n, channels, ...), a valid input, on the network's device.

    Raises:
        ValueError: if the network fails on it.
    """
    try:
        return _traced(network, example)
    except Exception as error:  # a user's forward may raise anything
        raise ValueError(
            "Cannot find out which channels of this network belong together: running it on "
            f"images of shape {tuple(example.shape)} raises {type(error).__name__}: {error}."
        ) from error


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, detached, by name; shared ones once."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _traced(network: nn.Module, example: Tensor) -> Trace:
    # Each in memory of its own, as `Weights` asks, and as a forward may write to it.
    state = {name: tensor.clone() for name, tensor in network_tensors(network).items()}
    tracer = Tracer(state, rule_for)
    for name, constant in network.named_buffers(recurse=False):
        if name in state and constant.is_floating_point():
            tracer.fix(
                state[name], f"the network holds {name!r}, a buffer of fixed size, beside it"
            )
    with plain_run(network), tracer.following(network), tracer:
        output = functional_call(network, state, (example,))
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor):
            tracer.fix(tensor, "its channels are the network's output")
    for name in state.keys() - tracer.used:
        for labels in tracer.trace.tensors[name]:
            tracer.labels.fix(torch.from_numpy(labels), "the forward pass does not run it")
    return tracer.trace


@contextmanager
def plain_run(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and no fused attention that no rule knows."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(network), torch.no_grad(), sdpa_kernel(ATTENTION):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
