"""The training loop: what it does to a network, how repeatably, and when it gives up."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from testbed.augmentation import Augmentation
from testbed.data import Images, Splits, normalise
from testbed.training import (
    Distillation,
    DivergedError,
    Precision,
    Training,
    evaluate,
    predict,
    train,
)

CPU = torch.device("cpu")


def settings(**changed: Any) -> Training:
    return Training(
        **{"epochs": 2, "batch_size": 32, "learning_rate": 0.05, "precision": "float32", **changed}
    )


def trained(
    model: nn.Module, data: Splits | None = None, seed: int = 0, **changed: Any
) -> tuple[nn.Module, list[Mapping[str, float]]]:
    """A trained copy, and what was reported."""
    model = copy.deepcopy(model)
    reports: list[Mapping[str, float]] = []
    teacher, penalty = changed.pop("by", None), changed.pop("penalty", None)
    train(
        model,
        data or tiny.splits(),
        settings(**changed),
        seed=seed,
        device=CPU,
        report=reports.append,
        teacher=teacher,
        penalty=penalty,
    )
    return model, reports


def unaugmented(data: Splits) -> Splits:
    return dataclasses.replace(data, augmentation=Augmentation(crop=0, flip=False))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Viewing(nn.Module):
    """A network as in many tutorials: `.view` on feature maps, which channels last forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.classifier = nn.Linear(4 * 6 * 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.conv(images).relu().view(-1, 4 * 6 * 6))
        return logits


class Recording(nn.Module):
    """Answers as the network inside does, and keeps what it was shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            self.seen.append(images.clone())
            self.modes.append(self.training)
        logits: Tensor = self.inner(images)
        return logits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns_three_easy_classes(precision: Precision) -> None:
    model, reports = trained(tiny.network(), epochs=8, precision=precision)
    assert reports[-1]["val_accuracy"] > 0.9
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_each_epoch_is_reported_with_what_it_measured() -> None:
    data = tiny.splits()
    model, reports = trained(tiny.network(), data, epochs=3)
    assert [values["epoch"] for values in reports] == [1, 2, 3]
    for values in reports:
        assert values.keys() == {
            "epoch", "train_loss", "train_accuracy", "val_accuracy", "learning_rate"
        }  # fmt: skip
    assert reports[-1]["val_accuracy"] == evaluate(
        model, data.validation, data, device=CPU, precision="float32"
    )


def test_no_epochs_touch_nothing() -> None:
    model = tiny.network().train()
    before = copy.deepcopy(model.state_dict())
    train(model, tiny.splits(), settings(epochs=0), seed=0, device=CPU)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    precision: Precision,
) -> None:
    first, _ = trained(tiny.network(), precision=precision)
    torch.rand(5)  # whatever the caller drew meanwhile
    second, _ = trained(tiny.network(), precision=precision)
    other, _ = trained(tiny.network(), precision=precision, seed=1)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_the_callers_random_state_stays_as_it_was() -> None:
    model = tiny.network()  # with dropout, which draws from it
    state = torch.get_rng_state()
    trained(model)
    assert torch.equal(state, torch.get_rng_state())


def test_cudnn_has_to_be_repeatable_while_training_and_is_as_before_afterwards() -> None:
    cudnn = torch.backends.cudnn
    seen = []

    class Looking(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark))
            return super().forward(images).mean(dim=(2, 3))

    before = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    trained(Looking(2, 3, 3))
    assert set(seen) == {(before[0], True, False)}
    assert (cudnn.enabled, cudnn.deterministic, cudnn.benchmark) == before


@pytest.mark.parametrize(("n", "batch_size"), [(33, 32), (7, 32), (96, 95)])
def test_an_epoch_sees_every_image_once_in_batches_of_like_size(n: int, batch_size: int) -> None:
    data = unaugmented(tiny.splits(n_train=n))
    recording = Recording(tiny.network())
    train(recording, data, settings(epochs=1, batch_size=batch_size), seed=0, device=CPU)
    batches = [x for x, training in zip(recording.seen, recording.modes, strict=True) if training]
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
    shown = torch.cat(batches).flatten(1)
    images = normalise(data.train.pixels, data.mean, data.std).flatten(1)
    assert torch.equal(_sorted_rows(shown), _sorted_rows(images))


def _sorted_rows(rows: Tensor) -> Tensor:
    return torch.tensor(sorted(rows.tolist()))


def test_one_step_is_sgd_with_nesterov_momentum_decay_and_smoothed_labels() -> None:
    """Two steps against torch's own unfused optimiser on the whole batch, written out."""
    data = unaugmented(tiny.splits(n_train=24))
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    options = settings(batch_size=24, weight_decay=0.1, label_smoothing=0.2, schedule="cosine")
    ours, _ = trained(model, data, **options.model_dump())
    theirs = copy.deepcopy(model)
    images = normalise(data.train.pixels, data.mean, data.std)
    velocity = [torch.zeros_like(value) for value in theirs.parameters()]
    for step in range(2):
        rate = 0.05 * (1 + math.cos(math.pi * (step + 0.5) / 2)) / 2
        logs = theirs(images).log_softmax(1)
        wanted = nn.functional.one_hot(data.train.labels, 3) * 0.8 + 0.2 / 3
        gradients = torch.autograd.grad(-(wanted * logs).sum(1).mean(), list(theirs.parameters()))
        with torch.no_grad():
            for value, gradient, v in zip(theirs.parameters(), gradients, velocity, strict=True):
                slope = gradient + 0.1 * value if value.ndim > 1 else gradient
                v.mul_(0.9).add_(slope)
                value.sub_(rate * (slope + 0.9 * v))
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        ("one_cycle", {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0}),
    ],
)
def test_schedules_go_through_their_closed_forms(
    schedule: str, expected: dict[float, float]
) -> None:
    options = settings(learning_rate=2.0, schedule=schedule)
    for progress, share in expected.items():
        assert options.learning_rate_at(progress) == pytest.approx(2 * share)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_zero_weights_with_masked_gradients_stay_exactly_zero(precision: Precision) -> None:
    model = tiny.network()
    masks = {}
    for name, value in model.named_parameters():
        if value.ndim > 1:
            masks[name] = torch.rand_like(value) < 0.5
            value.data[masks[name]] = 0
            value.register_hook(lambda gradient, mask=masks[name]: gradient.masked_fill(mask, 0))
    train(
        model,
        tiny.splits(),
        settings(weight_decay=0.01, precision=precision),
        seed=0,
        device=CPU,
    )
    for name, value in model.named_parameters():
        if name in masks:
            assert (value[masks[name]] == 0).all()
            assert (value[~masks[name]] != 0).all()


def test_frozen_parameters_stay_as_they_are() -> None:
    model = tiny.network()
    first = next(model.parameters())
    first.requires_grad_(False)
    after, _ = trained(model)
    assert torch.equal(next(after.parameters()), first)
    assert not torch.equal(weights(after), weights(model))


def test_a_network_that_cannot_take_channels_last_is_trained_all_the_same() -> None:
    torch.manual_seed(0)
    _, reports = trained(Viewing(), epochs=8)
    assert reports[-1]["val_accuracy"] > 0.9


def _poison(model: nn.Module) -> None:
    next(model.parameters()).data.fill_(math.nan)


def _blow_up(model: nn.Module) -> None:
    list(model.parameters())[-1].data.copy_(torch.tensor([1e4, -1e4, 0.0]))


@pytest.mark.parametrize("harm", [_poison, _blow_up])
def test_a_diverging_loss_says_when_at_which_rate_and_what_to_try(
    harm: Callable[[nn.Module], None],
) -> None:
    model = tiny.network()
    harm(model)
    with pytest.raises(DivergedError, match=r"epoch 1 of 2, step 1 of 3, at learning rate") as info:
        trained(model)
    assert "learning_rate well below 0.05" in str(info.value)


def test_divergence_in_a_later_step_is_found_there() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.network()
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += self.training
            logits: Tensor = self.inner(images)
            return logits * math.inf if self.calls == 5 else logits

    with pytest.raises(DivergedError, match="epoch 2 of 2, step 2 of 3"):
        trained(Failing())


def test_a_student_of_the_teacher_alone_learns_its_answers() -> None:
    """Teacher and student see the same images; the labels, which are wrong here, do not count."""
    data = tiny.splits()
    teacher, _ = trained(tiny.network(), data, epochs=8)
    wrong = Images(data.train.pixels, (data.train.labels + 1) % 3)
    misled = dataclasses.replace(data, train=wrong)
    distillation = Distillation(teacher={}, weight=1.0)
    shown = Recording(teacher.train())
    student = Recording(tiny.network())
    train(
        student,
        misled,
        settings(epochs=8, distillation=distillation),
        seed=0,
        device=CPU,
        teacher=shown,
    )
    in_training = [x for x, mode in zip(student.seen, student.modes, strict=True) if mode]
    assert not any(shown.modes)
    assert all(torch.equal(a, b) for a, b in zip(shown.seen, in_training, strict=True))
    assert teacher.training  # as it was before
    assert evaluate(student, data.validation, data, device=CPU) > 0.9


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a teacher"):
        trained(tiny.network(), distillation=Distillation(teacher={}))


def test_a_teacher_without_distillation_is_ignored() -> None:
    alone, _ = trained(tiny.network())
    taught, _ = trained(tiny.network(), by=tiny.network("residual"))
    assert torch.equal(weights(alone), weights(taught))


def test_distillation_adds_the_kl_divergence_at_the_temperature() -> None:
    data = unaugmented(tiny.splits(n_train=24))
    torch.manual_seed(0)
    student, teacher = Viewing(), Viewing()
    distillation = Distillation(teacher={}, weight=0.3, temperature=2.0)
    _, reports = trained(
        student, data, by=teacher, epochs=1, learning_rate=1e-9, distillation=distillation
    )
    images = normalise(data.train.pixels, data.mean, data.std)
    p, q = ((network(images) / 2).softmax(1) for network in (teacher, student))
    divergence = (p * (p / q).log()).sum(1).mean()
    labelled = -student(images).log_softmax(1)[torch.arange(24), data.train.labels].mean()
    expected = 0.7 * labelled + 0.3 * 4 * divergence
    assert reports[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_logits_are_those_of_the_network_in_eval_mode_whatever_the_batches() -> None:
    data = tiny.splits()
    model = tiny.network().train()
    logits = predict(model, data.train, data, device=CPU, batch_size=7, precision="float32")
    assert model.training
    expected = model.eval()(normalise(data.train.pixels, data.mean, data.std))
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-5)
    right = (expected.argmax(1) == data.train.labels).double().mean().item()
    assert evaluate(model, data.train, data, device=CPU, precision="float32") == right


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"learning_rate": 0}, {"schedule": "step"}, {"batchsize": 3}, {"momentum": 1}],
)
def test_options_out_of_range_and_unknown_ones_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


@pytest.mark.slow
def test_on_a_gpu_the_same_seed_gives_the_same_weights() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    gpu = torch.device("cuda")
    runs = []
    for _ in range(2):
        model = tiny.network()
        train(model, tiny.splits(), settings(epochs=8, precision="auto"), seed=0, device=gpu)
        runs.append(weights(model))
    assert runs[0].device.type == "cuda"
    assert torch.equal(runs[0], runs[1])
    assert evaluate(model, tiny.splits().validation, tiny.splits(), device=gpu) > 0.9


def test_a_penalty_is_learnt_from_and_not_reported() -> None:
    model, seen = tiny.network(), []

    def penalty(network: nn.Module, progress: float) -> Tensor:
        seen.append(progress)
        return 1000 + 0 * next(network.parameters()).sum()

    plain, reports = trained(model)
    same, others = trained(model, penalty=penalty)
    assert torch.equal(weights(plain), weights(same)) and reports == others
    assert seen == pytest.approx([(step + 0.5) / 6 for step in range(6)])
    shrunk, _ = trained(model, penalty=lambda network, _: network.conv1.weight.square().sum())
    assert shrunk.conv1.weight.norm() < 0.5 * plain.conv1.weight.norm()
