"""Batch-norm statistics, estimated anew for the widths that are to run.

While weights are trained, running statistics follow them late, and are those of the mixture of
widths that the training met. So they are estimated again once training is over, for each prefix
(see `PrefixBatchNorm`), before anything is learnt or chosen by the losses that they give.

Source: Yu and Huang 2019, "Universally slimmable networks", arXiv 1903.05134, section 3.3.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp.execution.layers import PrefixBatchNorm
from rnp.routed_network import RoutedNetwork
from rnp.runtime_network import RuntimeNetwork
from testbed.data import Splits, normalise
from testbed.method import Run
from testbed.prediction import autocast, evaluating, memory_format_for

IMAGES, BATCH_SIZE = 2048, 256  # of the training images at most; a batch norm sees a batch at once


@torch.no_grad()
def estimate_statistics(
    network: RuntimeNetwork | RoutedNetwork,
    data: Splits,
    run: Run,
    actions: Callable[[int], Tensor] | None = None,
) -> int:
    """Sets the running statistics of all batch norms to their means over some training images.

    The images are augmented as in training, and drawn by the run's seed. A prefix that hardly any
    of them meets, or a branch that none of them takes, keeps the statistics that it has. A network
    without batch norm stays as it is.

    Args:
        network: on the run's device; its modules stay in their modes, as each was.
        actions: makes the actions, (n, decisions), of n images; None for the network's own.

    Returns:
        How many images went through the network.
    """
    norms = _norms(network)
    if not norms:
        return 0
    device, layout = run.device, memory_format_for(network, data, run.device)
    generator = torch.Generator().manual_seed(run.seed)
    images = torch.randperm(len(data.train), generator=generator)[:IMAGES]
    for norm in norms:
        if isinstance(norm, PrefixBatchNorm):
            norm.forget()
        elif norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()  # the first batch takes the place of what it has
    logits = network.routed if isinstance(network, RoutedNetwork) else network.masked
    # Without momentum: the mean over batches.
    with by_batch(network, momentum=None), autocast(run.fine_tuning.precision, device):
        for batch in images.tensor_split(math.ceil(len(images) / BATCH_SIZE)):
            pixels = data.augmented(data.train.select(batch).to(device), generator)
            inputs = normalise(pixels, data.mean, data.std, memory_format=layout)
            taken = None if actions is None else actions(len(inputs)).to(device)
            logits(inputs, taken)
    return len(images)


@contextmanager
def by_batch(network: nn.Module, momentum: float | None) -> Iterator[None]:
    """Evaluation mode meanwhile, but for batch norms, which normalise by the statistics of a batch.

    Args:
        momentum: with which running statistics follow; 0 leaves them as they are.
    """
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    with evaluating(network):
        for norm in norms:
            norm.train()
            norm.momentum = momentum
        try:
            yield
        finally:
            for norm, own in zip(norms, momenta, strict=True):
                norm.momentum = own


def _norms(network: nn.Module) -> list[_BatchNorm]:
    """Those with running statistics."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]
