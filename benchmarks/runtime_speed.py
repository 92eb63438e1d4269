"""How much of the multiplications that runtime pruning saves is saved on a clock, on one core.

    python -m benchmarks.runtime_speed [--rounds N] [--json]

Share of the ideal speed-up = (dense time / our time) x (multiplications run / dense ones). Dense is
the network in its best form: channels last, weights laid out in advance, batch norm folded, ReLU
fused. Ours draws its actions independently for each image and layer, so that a share of the dense
multiplications runs in the mean; its decision network does all its work and is then overruled.
Beside it run a thinner dense network of about the same multiplications, which is the practical
ceiling, plain masking, which skips nothing, and the 96 M network with a policy that was trained on
enlarged digits, whose images agree more. All contenders share one process and its malloc.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from benchmarks.networks import SHAPE, backbone
from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP
from testbed import compiled
from testbed.data import Images, load_splits, normalise
from testbed.machine import Precision, set_threads, tune_malloc
from testbed.method import Run
from testbed.operations import counting_multiplications
from testbed.prediction import autocast
from testbed.prepared_layers import prepare_conv, prepare_linear
from testbed.training import Training, train

GROUPS = 4
IMAGES = 128  # in one piece of work
WIDTHS = [sixteenths / 16 for sixteenths in range(1, 17)]  # whose channels suit vector units
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """A network and how it runs; shares of the ideal speed-up by share of multiplications."""

    name: str
    backbone: str
    batch: int
    precision: Precision
    aims: dict[float, float]
    musts: dict[float, float] | None = None
    device: torch.device = CPU


SETTINGS = [
    Setting("batch 128, float32", "96 M", 128, "float32", {0.3: 0.82, 0.5: 0.87, 0.75: 0.92},
            musts={0.3: 0.75, 0.5: 0.80, 0.75: 0.88}),
    Setting("batch 1, float32", "96 M", 1, "float32", {0.3: 0.79, 0.5: 0.84, 0.75: 0.91}),
    Setting("batch 128, bfloat16", "96 M", 128, "bfloat16", {0.3: 0.75, 0.5: 0.82, 0.75: 0.90}),
    Setting("VGG-16, batch 128, float32", "vgg16", 128, "float32", {0.3: 0.75, 0.5: 0.82}),
]  # fmt: skip


def in_best_form(chain: nn.Module, precision: Precision) -> Callable[[Tensor], Tensor]:
    """A chain of layers in evaluation mode as fast as torch runs it."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layers = [layer for layer in chain.children() if not isinstance(layer, nn.Dropout)]
    calls: list[Callable[[Tensor], Tensor]] = []
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, nn.Conv2d):
            norm, relu, *layers = layers
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)
            calls.append(prepare_conv(layer, dtype, norm=norm, relu=True))
        elif isinstance(layer, nn.Linear):
            calls.append(prepare_linear(layer, dtype))
        else:
            calls.append(layer)

    def run(images: Tensor) -> Tensor:
        for call in calls:
            images = call(images)
        return images

    return run


class DrawnActions:
    """Overrules a network's decisions by independently drawn ones, once they were made."""

    def __init__(self, network: RuntimeNetwork) -> None:
        generator = torch.Generator().manual_seed(0)
        n_steps = len(network.flow.convs)
        self._uniform = torch.rand(IMAGES, n_steps, generator=generator, dtype=torch.float64)
        self._next = [0] * n_steps  # image of each step
        self._device = next(network.parameters()).device
        network.decision.register_forward_hook(self._overrule)

    def draw(self, tilt: float) -> None:
        """Actions with probabilities in proportion to exp(tilt * action); more cost more."""
        bounds = torch.softmax(tilt * torch.arange(GROUPS, dtype=torch.float64), 0).cumsum(0)
        actions = torch.bucketize(self._uniform, bounds[:-1])
        self._values = F.one_hot(actions, GROUPS).float().to(self._device)

    def _overrule(self, module: nn.Module, args: Any, result: Any) -> Any:
        step, (values, state) = args[0], result
        start = self._next[step]
        self._next[step] = (start + len(values)) % IMAGES
        return self._values[start : start + len(values), step], state


@cache
def trained() -> tuple[RuntimeNetwork, Tensor]:
    """The 96 M network and its policy, trained for a minute; images that it was not trained on."""
    digits = load_splits("digits", Path(), seed=0)
    data = replace(
        digits,
        train=enlarged(digits.train),
        validation=enlarged(digits.validation),
        mean=digits.mean * 3,
        std=digits.std * 3,
    )
    training = Training(epochs=2, batch_size=64, learning_rate=0.1)
    run = Run(seed=0, device=CPU, training=training, fine_tuning=training)
    dense = backbone("96 M")
    train(dense, data, training, seed=0, device=CPU)
    network = RNP(rounds=1, adaptation=0.5, steps=200, batch_size=64).prune(dense, data, run)
    assert isinstance(network, RuntimeNetwork)
    return network.eval(), normalise(data.validation.pixels[:IMAGES], data.mean, data.std)


def enlarged(digits: Images) -> Images:
    """Grey images of 8 x 8 in the size and colours of CIFAR-10."""
    pixels = F.interpolate(digits.pixels.float(), SHAPE[1:], mode="bilinear")
    return Images(pixels.to(torch.uint8).expand(-1, *SHAPE), digits.labels)


class Contenders:
    """What runs in one setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        images = torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(1))
        images = images.to(setting.device).contiguous(memory_format=torch.channels_last)
        self._images = images
        self._dense = backbone(setting.backbone).to(setting.device)
        self.dense_multiplications = self._count(self._work(self._dense))

    def _work(self, run: Callable[[Tensor], Tensor], images: Tensor | None = None) -> Work:
        batches = (self._images if images is None else images).split(self.setting.batch)

        def work() -> int:
            with torch.no_grad(), autocast(self.setting.precision, self.setting.device):
                for batch in batches:
                    run(batch)
            return IMAGES

        return work

    def _count(self, work: Work) -> int:
        with counting_multiplications(self._dense) as counted:
            work()
        return counted.total()

    def dense(self) -> Work:
        return self._work(in_best_form(self._dense, self.setting.precision))

    def ours(self, share: float) -> tuple[Work, float]:
        """And the share of the dense multiplications that it runs: as near as draws come."""
        network = RuntimeNetwork(self._dense, GROUPS).to(self.setting.device).eval()
        drawn = DrawnActions(network)
        work = self._work(network)
        low, high = -8.0, 8.0
        for _ in range(12):
            middle = (low + high) / 2
            drawn.draw(middle)
            reached = self._count(work) / self.dense_multiplications
            low, high = (middle, high) if reached < share else (low, middle)
        return work, reached

    def trained(self) -> tuple[Work, float]:
        """And the share of the dense multiplications that it runs."""
        network, images = trained()
        work = self._work(
            copy.deepcopy(network).to(self.setting.device),
            images.to(self.setting.device).contiguous(memory_format=torch.channels_last),
        )
        return work, self._count(work) / self.dense_multiplications

    def masked(self) -> Work:
        """With the actions of an untrained network: they make no difference to its time."""
        network = RuntimeNetwork(self._dense, GROUPS).to(self.setting.device).eval()
        return self._work(network.masked)

    def static(self, share: float) -> tuple[Work, float]:
        """The thin network whose multiplications are nearest."""
        thin = [backbone(self.setting.backbone, width) for width in WIDTHS]
        shares = [
            self._count(self._work(each.to(self.setting.device))) / self.dense_multiplications
            for each in thin
        ]
        nearest = min(range(len(thin)), key=lambda i: abs(shares[i] - share))
        return self._work(in_best_form(thin[nearest], self.setting.precision)), shares[nearest]


def measured(setting: Setting, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Shares of the ideal speed-up, ours and those of what runs beside it; and notes."""
    contenders = Contenders(setting)
    works = {"dense": contenders.dense(), "masked": contenders.masked()}
    runs = {"dense": 1.0, "masked": 1.0}
    if setting.backbone == "96 M":
        works["trained"], runs["trained"] = contenders.trained()
    for share in setting.aims:
        for kind, make in (("ours", contenders.ours), ("static", contenders.static)):
            name = f"{kind} at {share:.0%}"
            works[name], runs[name] = make(share)
    speeds = measure(works, rounds, setting.device)
    dense = speeds.pop("dense")
    ratios = {
        f"{setting.name}: {name}": speed.over(dense) * runs[name] for name, speed in speeds.items()
    }
    aims = ", ".join(f"{aim:.2f} at {share:.0%}" for share, aim in setting.aims.items())
    exactly = ", ".join(f"{name} {runs[name]:.1%}" for name in speeds if name != "masked")
    notes = {
        f"{setting.name}, dense images": str(dense),
        f"{setting.name}, multiplications run": exactly,
    }
    if setting.device == CPU:  # there is none for others
        notes[f"{setting.name}, aim"] = aims
    return ratios, notes


def settings() -> list[Setting]:
    if not torch.cuda.is_available():
        return SETTINGS
    on_cuda = [
        Setting(f"CUDA, {each.name}", each.backbone, each.batch, each.precision, each.aims,
                device=torch.device("cuda"))
        for each in SETTINGS
    ]  # fmt: skip
    return SETTINGS + on_cuda


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender runs")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    ratios: dict[str, float] = {}
    built = "built" if compiled.operators() else "not built, see the README"
    notes = {"compiled operators": built}
    goals: dict[str, Goal] = {}
    for setting in settings():
        more_ratios, more_notes = measured(setting, options.rounds)
        ratios |= more_ratios
        notes |= more_notes
        for share, must in (setting.musts or {}).items():
            goals[f"{setting.name}: ours at {share:.0%}"] = Goal(at_least=must)
    show(Result("runtime_speed", ratios, goals, notes), options.json)


if __name__ == "__main__":
    main()
