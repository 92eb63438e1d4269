"""One training loop for dense networks, scratch and fine-tuning, and the evaluation of a network.

What makes it fast on CPUs and GPUs alike: images lie on the device as uint8 (those of a folder in
a memory-mapped file) and are augmented and normalised a batch at a time; activations are channels
last; matrix products run in bfloat16 where the machine multiplies in it, while weights, their
updates and the loss stay float32; one fused optimiser step. On CPUs `testbed.machine.tune_malloc`
belongs to it.
`benchmarks/training_speed.py` measures what that gives.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from testbed.data import Splits, normalise
from testbed.machine import Precision, best_precision
from testbed.prediction import (
    autocast,
    check_logits,
    evaluate,
    evaluating,
    memory_format_for,
    predict,
)
from testbed.training_checkpoint import TrainingCheckpoint

__all__ = [
    "Distillation",
    "DivergedError",
    "Penalty",
    "Precision",
    "Report",
    "Training",
    "evaluate",
    "ignore",
    "predict",
    "train",
]

Report = Callable[[Mapping[str, float]], None]
Penalty = Callable[[nn.Module, float], Tensor]
"""What a step's loss gets beside the labels', of the network and how far the training is (0..1)."""
Schedule = Literal["one_cycle", "cosine"]

WARM_UP = 0.25  # share of a one-cycle schedule in which the learning rate rises
HOPELESS = 100  # times the loss of guessing: no training was seen to come back from there
STEPS_LOOKED_AT_TOGETHER = 64  # their losses, on a GPU: to look at one is to wait for it


class Distillation(BaseModel):
    """Learning from the outputs of another network beside the labels.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: dict[str, Any] = Field(
        description="The teacher's backbone options that differ from the student's: {depth: 8}."
    )
    weight: float = Field(
        default=0.5, ge=0, le=1, description="The teacher's share of the loss; the labels' is rest."
    )
    temperature: float = Field(
        default=4.0, gt=0, description="Divides both networks' logits before they are compared."
    )


class Training(BaseModel):
    """How a network is trained: the `training` and `fine_tuning` sections of a sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=0, description="Passes over the training images; 0 changes nothing.")
    batch_size: int = Field(default=256, ge=1, description="Images a step, at most.")
    learning_rate: float = Field(default=0.1, gt=0, description="The highest of the schedule.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum.")
    weight_decay: float = Field(
        default=5e-4, ge=0, description="Of conv and linear weights; norms and biases have none."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Probability taken from the label and spread evenly."
    )
    schedule: Schedule = Field(
        default="one_cycle", description="Of the rate; one_cycle: straight up, straight down to 0."
    )
    precision: Precision = Field(
        default="auto", description="Of the matrix products; auto: the machine's fastest."
    )
    distillation: Distillation | None = Field(
        default=None, description="Learn from another network's outputs too."
    )

    def learning_rate_at(self, progress: float) -> float:
        """The rate at `progress`, from 0 (start) to 1 (end of the training)."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        rising, falling = progress / WARM_UP, (1 - progress) / (1 - WARM_UP)
        return self.learning_rate * min(rising, falling)


class DivergedError(RuntimeError):
    """The loss is not a number any more, or far above that of guessing."""


def ignore(values: Mapping[str, float]) -> None:
    """A `Report` that nobody listens to."""


def train(
    model: nn.Module,
    data: Splits,
    settings: Training,
    *,
    seed: int,
    device: torch.device,
    report: Report = ignore,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    penalty: Penalty | None = None,
) -> None:
    """Train `model` in place; it ends on `device`, in eval mode and without gradients.

    The same seed, network and machine (its number of threads too) give the same weights, bit for
    bit; the caller's random state stays as it was. Every epoch sees every training image once, in
    batches of equal size (or one less), since batch norm fails on a last batch of one. A weight
    that is zero and gets zero gradients stays exactly zero. Where there are no epochs, nothing is
    touched.

    Args:
        seed: of the order of the images, their augmentation, and dropout.
        report: after each epoch gets epoch (from 1), train_loss and train_accuracy (of augmented
            images, while the network changes), val_accuracy, learning_rate (of the last step).
        teacher: learnt from if `settings.distillation` is given, else ignored; moved to `device`.
        checkpoint: a file that this training keeps its state in from time to time, at the end of an
            epoch. What was kept of the same training there, by a process that was stopped, is gone
            on with: its epochs are reported again, not trained. The caller removes the file.
        penalty: added to every step's loss, but not to what is reported. What it remembers must lie
            in the network, and what it draws come from torch's default generator, since only those
            are kept by a checkpoint.

    Raises:
        ValueError: if `settings.distillation` is given without a teacher, or the network does not
            give one tensor of logits of the data's classes.
        DivergedError: says when, at which learning rate, and what to try.
    """
    if settings.epochs == 0:
        return
    if settings.distillation is None:
        teacher = None
    elif teacher is None:
        raise ValueError("Expected a teacher, as the training has distillation. Pass its network.")
    model.to(device)
    teaching = evaluating(teacher.to(device)) if teacher else nullcontext()
    with _own_randomness(seed, device), teaching:
        _train(model, data, settings, seed, device, report, teacher, checkpoint, penalty)
    model.eval()


def _train(
    model: nn.Module,
    data: Splits,
    settings: Training,
    seed: int,
    device: torch.device,
    report: Report,
    teacher: nn.Module | None,
    checkpoint: Path | None,
    penalty: Penalty | None,
) -> None:
    training, validation = data.train.to(device), data.validation.to(device)
    layout = memory_format_for(model, data, device)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    optimizer = _optimizer(model, settings)
    n_steps = math.ceil(len(training) / settings.batch_size)
    look_every = 1 if device.type == "cpu" else STEPS_LOOKED_AT_TOGETHER
    kept = TrainingCheckpoint(
        checkpoint,
        model,
        optimizer,
        {"images": generator, **_generators(device)},
        {
            "settings": settings.model_dump_json(),
            "seed": str(seed),
            "data": data.fingerprint,
            # With the same settings another device, or one without bfloat16, makes another network.
            "computed": f"{device.type} {best_precision(device)}",
        },
    )
    kept.load()
    for values in kept.reported:
        report(values)
    for epoch in range(len(kept.reported) + 1, settings.epochs + 1):
        model.train()
        losses = torch.empty(n_steps, device=device)
        n_correct = torch.zeros((), dtype=torch.int64, device=device)
        order = torch.randperm(len(training), generator=generator)
        for step, indices in enumerate(order.tensor_split(n_steps)):
            progress = _progress(epoch, step, n_steps, settings)
            rate = settings.learning_rate_at(progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = training.select(indices.to(device))
            pixels = data.augmented(batch, generator)
            images = normalise(pixels, data.mean, data.std, memory_format=layout)
            with autocast(settings.precision, device):
                logits = model(images)
                with torch.no_grad():
                    taught = teacher(images) if teacher else None
            check_logits(logits, len(batch), data.n_classes)  # in training mode, this time
            loss = _loss(logits.float(), batch.labels, taught, settings)
            (loss if penalty is None else loss + penalty(model, progress)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses[step] = loss.detach()
            n_correct += (logits.detach().argmax(dim=1) == batch.labels).sum()
            if (step + 1) % look_every == 0 or step + 1 == n_steps:
                _check(losses[: step + 1], epoch, n_steps, settings, data.n_classes)
        values = {
            "epoch": epoch,
            "train_loss": losses.mean().item(),
            "train_accuracy": n_correct.item() / len(training),
            "val_accuracy": evaluate(
                model, validation, data, device=device, precision=settings.precision
            ),
            "learning_rate": rate,
        }
        kept.epoch_ended(values)
        report(values)


def _loss(logits: Tensor, labels: Tensor, taught: Tensor | None, settings: Training) -> Tensor:
    """Cross-entropy with the labels, and the distance from the teacher's logits if there are any.

    The distance is the KL divergence at the temperature T, times T^2 to keep the size of its
    gradients (Hinton et al. 2015, section 2.1).
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if taught is None or settings.distillation is None:
        return loss
    weight, temperature = settings.distillation.weight, settings.distillation.temperature
    distance = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(taught.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * loss + weight * temperature**2 * distance


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.SGD:
    """SGD with Nesterov momentum; the learning rate is set before every step."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Norms and biases do not decay: there it limits what the network can say, not its size.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1]},
    ]
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def _progress(epoch: int, step: int, n_steps: int, settings: Training) -> float:
    """The middle of a step, as a share of the training: never 0 or 1, so no step has rate 0."""
    return (epoch - 1 + (step + 0.5) / n_steps) / settings.epochs


def _check(losses: Tensor, epoch: int, n_steps: int, settings: Training, n_classes: int) -> None:
    """Raise if one of the losses of an epoch's first steps is NaN, infinite or hopeless."""
    lost = ~(losses < HOPELESS * math.log(max(n_classes, 2)))  # so that NaN is among them
    if not lost.any():
        return
    step = int(lost.nonzero()[0])
    rate = settings.learning_rate_at(_progress(epoch, step, n_steps, settings))
    raise DivergedError(
        f"Training diverged: the loss was {losses[step].item():.3g} in epoch {epoch} of "
        f"{settings.epochs}, step {step + 1} of {n_steps}, at learning rate {rate:.3g}. Try a "
        f"learning_rate well below {settings.learning_rate:g}, batch norm in the backbone, or "
        "precision: float32."
    )


def _generators(device: torch.device) -> dict[str, torch.Generator]:
    """Those that layers draw from, dropout say."""
    if device.type != "cuda":
        return {"cpu": torch.default_generator}
    number = torch.cuda.current_device() if device.index is None else device.index
    return {"cpu": torch.default_generator, "gpu": torch.cuda.default_generators[number]}


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers start from `seed`; afterwards they go on as if nothing had been.

    Meanwhile cuDNN, on a GPU, may only use what gives the same result every time.
    """
    gpus = [device] if device.type == "cuda" else []
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        try:
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
