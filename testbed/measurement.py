"""Measurement of the network that a method gives back: everything, in one call."""

import json
from dataclasses import dataclass

import torch
from torch import nn

from testbed.cost import (
    Cost,
    count_multiplications,
    count_parameters,
    layers_kept_whole,
    measure_latency,
    sparsity,
)
from testbed.data import Images, NormalisedImages, Splits
from testbed.prediction import Precision, predict
from testbed.special_costs import special_costs

LATENCY_BATCHES = (1, 128)
LOOKED_AT = 8  # images whose activations say how many bits they have
GLANCED_AT = 64  # images whose multiplications are a network's that is still being trained
TIMED_BYTES = 2**27  # of inputs that latencies are measured with


@dataclass(frozen=True)
class Measurement:
    """One network beside the dense one it came from."""

    figures: dict[str, float | int | str]
    """Accuracies (fractions), costs and latencies, under the names of trials.csv."""
    cost: Cost
    """Multiplications of each validation image, whole and per layer."""
    logits: torch.Tensor
    """(n_validation, classes) float32, of the validation images."""
    correct: torch.Tensor
    """(n_validation,) bool: which validation images the network classifies right."""


def measure(
    network: nn.Module,
    dense: nn.Module,
    data: Splits,
    device: torch.device,
    precision: Precision = "auto",
) -> Measurement:
    """Measures accuracy, multiplications, parameters and latency of `network` and of `dense`.

    Accuracies are of the training and validation images (the splits hold no others); costs are
    those of the validation images. Latencies are of float32 networks, dense and pruned in turn.
    """
    inputs = data.normalised(data.validation.to(device))
    cost = count_multiplications(network, inputs)
    dense_cost = count_multiplications(dense, inputs)
    logits = predict(network, data.validation, data, device=device, precision=precision)
    correct = _correct(logits, data.validation)
    of_training = predict(network, data.train, data, device=device, precision=precision)
    per_image = cost.per_image.double()
    p5, p50, p95 = torch.quantile(per_image, torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    figures: dict[str, float | int | str] = {
        "train_accuracy": _accuracy(_correct(of_training, data.train)),
        "val_accuracy": _accuracy(correct),
        "multiplications": cost.multiplications,
        "multiplications_p5": p5,
        "multiplications_p50": p50,
        "multiplications_p95": p95,
        "dense_multiplications": dense_cost.multiplications,
        "nonzero_multiplications": cost.nonzero_multiplications,
        "parameters": count_parameters(network),
        "dense_parameters": count_parameters(dense),
        "sparsity": sparsity(network),
        **special_costs(network, cost, inputs[:LOOKED_AT]),
        **{
            f"dense_{name}": value
            for name, value in special_costs(dense, dense_cost, inputs[:LOOKED_AT]).items()
        },
        "kept_whole": json.dumps(layers_kept_whole(network, dense)),
    }
    return Measurement(figures | _latencies(network, dense, inputs), cost, logits, correct)


def network_costs(
    network: nn.Module, data: Splits, device: torch.device, *, latency: bool
) -> tuple[dict[str, float], bool]:
    """Costs of a network on its way, under the names of trials.csv, from a few validation images.

    Where a network decides per image, of which the second part tells, that is a rough mean, else
    exact.
    """
    inputs = data.normalised(data.validation[:GLANCED_AT].to(device))[:]
    cost = count_multiplications(network.to(device), inputs)
    figures: dict[str, float] = {
        "multiplications": cost.multiplications,
        "nonzero_multiplications": cost.nonzero_multiplications,
        "parameters": count_parameters(network),
        **special_costs(network, cost, inputs[:LOOKED_AT]),
    }
    if latency:
        figures["latency_ms"] = measure_latency({"": network}, inputs, (1,))["", 1].median_ms
    return figures, cost.decides_per_image


def multiplications_per_class(
    cost: Cost, labels: torch.Tensor, class_names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Mean multiplications of the images of each true class: class name -> layer -> mean.

    Args:
        labels: (n,) the true classes of the images that `cost` is of. Classes without an image
            are left out.
    """
    labels = labels.cpu()
    return {
        name: {
            layer: each[labels == index].double().mean().item()
            for layer, each in cost.per_layer.items()
        }
        for index, name in enumerate(class_names)
        if (labels == index).any()
    }


def _latencies(
    network: nn.Module, dense: nn.Module, inputs: NormalisedImages
) -> dict[str, float | int | str]:
    """Median latencies and their spread, under the names of trials.csv."""
    n_timed = max(1, TIMED_BYTES // inputs[:1].nbytes)
    measured = measure_latency({"": network, "dense_": dense}, inputs[:n_timed], LATENCY_BATCHES)
    figures: dict[str, float | int | str] = {}
    for (prefix, batch), latency in measured.items():
        name = f"{prefix}latency_ms" + (f"_batch{batch}" if batch > 1 else "")
        figures[name] = latency.median_ms
        if not prefix:
            figures[f"{name}_iqr"] = latency.iqr_ms
            figures |= {"device": latency.device, "threads": latency.threads}
    return figures


def _accuracy(correct: torch.Tensor) -> float:
    return correct.double().mean().item()


def _correct(logits: torch.Tensor, images: Images) -> torch.Tensor:
    return logits.argmax(dim=1) == images.labels.cpu()
