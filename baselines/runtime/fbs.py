"""FBS, feature boosting and suppression: Gao, Zhao, Dudziak, Mullins, Xu 2019, "Dynamic channel
pruning: feature boosting and suppression", ICLR, arXiv 1810.05331; and the authors' published code
(Mayo).

Before each conv a gate looks at the means of its input maps and decides, for each image, which
share `density` of the conv's outputs is computed, and how much each of them is amplified. What was
not computed is not read by the next conv either. Gates learn with the network, within the
fine-tuning.

    g = ReLU(s Phi + rho),  s: means of |x|;  pi: the k largest of g, the others 0
    paper:      y = pi (norm(conv(x)) + beta), then the network's ReLU
    reference:  y = m g norm(conv(x)) + m beta,  m: 1 where g is above its (k + 1)th largest

Where we differ: the paper trains its networks from scratch; here gates are put into a trained one
and begin as it: Phi 0, rho the norm's scale, beta its shift (in the paper's form over the scale). A
filter of negative scale is turned round first. Every plain conv is gated but one that makes the
logits; convs without batch norm too. Of the published code the `reference` form is taken, with its
gates of Phi, rho and beta begun likewise, not its constants. Of the fine-tuning epochs a share
trains the gates alone at density 1; in the others the density goes down in equal steps of about
`step` (the code's .1), in as many as there are epochs for.

Its `val_accuracy_before_finetuning` is that of the untrained gates, which are the same for all
images. Accuracy holds only at the density that was trained. For one image on a CPU M-CifarNet took
0.87 of the dense network's time at density 0.5 and 0.57 at 0.25 with the compiled operators, 1.66
and 1.12 with torch's own (`python -m benchmarks.fbs_speed`).

Its output runs fewer multiplications, each image its own number of them.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, fx, nn

from baselines.runtime.gathered import conv_on, operators_for
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run, shared_by_rounds
from testbed.prediction import evaluating

Form = Literal["paper", "reference"]

SMALLEST_SCALE = 1e-3  # of a norm: a channel of scale 0 is a constant, which no gate can amplify


class FBS(BaseModel):
    """`density` moves along the frontier: at d about d^2 of the multiplications run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(
        default=0.5, gt=0, le=1, description="Share of a conv's outputs computed, rounded up."
    )
    form: Form = Field(default="paper", description="As printed, or as the published code has it.")
    step: float = Field(
        default=0.1, gt=0, le=1, description="By which the density goes down while training."
    )
    gates_alone: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the epochs that train the gates alone."
    )
    penalty: float = Field(
        default=1e-8, ge=0, description="Of each unit of each gate, in units of the loss."
    )

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self.skeleton(dense)

    def skeleton(self, dense: nn.Module) -> nn.Module:
        """See `Rebuilding`.

        Raises:
            ValueError: if no conv can be gated, or the density takes nothing from any.
        """
        network = copy.deepcopy(dense)
        gated = [
            GatedConv2d.put_into(network, conv, norm, self.form, self.penalty)
            for conv, norm in gateable_convs(network).items()
        ]
        widest = max(conv.out_channels for conv in gated)
        set_density(gated, self.density)
        if self.density < 1 and all(conv.active == conv.out_channels for conv in gated):
            raise ValueError(
                f"density {self.density:g} removes nothing: of the {widest} outputs of the widest "
                f"conv it computes {self.density * widest:.4g}, rounded up to all. Ask for "
                f"{1 - 1 / widest:.4g} at most, or for 1 to gate all."
            )
        return network

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A gated network that skips in evaluation mode (see `PruningMethod`).

        Resumes after the last density that was trained, if the run's folder holds a checkpoint.
        """
        network = self.skeleton(model).to(run.device)
        gated = [module for module in network.modules() if isinstance(module, GatedConv2d)]
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        if completed < 0:
            run.fine_tune(network, data, 0)  # tells the accuracy before
        for number, (density, epochs, alone) in enumerate(self._stages(run.fine_tuning.epochs)):
            if number <= completed:
                continue
            set_density(gated, density)
            learning = [p for p in network.parameters() if p.requires_grad]
            gates = {id(each) for conv in gated for each in (conv.phi, conv.rho, conv.beta)}
            frozen = [p for p in learning if alone and id(p) not in gates]
            for parameter in frozen:
                parameter.requires_grad_(False)
            run.fine_tune(network, data, epochs, judged=density == self.density)
            for parameter in frozen:
                parameter.requires_grad_(True)
            run.report({"round": number + 1, "density": density})
            checkpoint.save(number, network)
        return network.eval()

    def _stages(self, epochs: int) -> list[tuple[float, int, bool]]:
        """Density, epochs, and whether the gates learn alone, of each stage of the training."""
        alone = round(self.gates_alone * epochs)
        steps = max(1, min(math.ceil((1 - self.density) / self.step - 1e-9), epochs - alone))
        stages = [(1.0, alone, True)] if alone else []
        shared = shared_by_rounds(epochs - alone, steps)
        for number, own in enumerate(shared, 1):
            last = number == steps
            density = self.density if last else 1 - (1 - self.density) * number / steps
            stages.append((density, own, False))
        return stages


def set_density(gated: Sequence["GatedConv2d"], density: float) -> None:
    """From now on the convs compute this share of their outputs, rounded up."""
    for conv in gated:
        conv.active = math.ceil(density * conv.out_channels - 1e-9)


def gateable_convs(network: nn.Module) -> dict[str, str | None]:
    """The convs that can be gated -> the batch norm that alone reads each, or None.

    Raises:
        ValueError: if there is none, or torch.fx cannot trace the network.
    """
    with evaluating(network):
        try:
            graph = fx.Tracer().trace(network)
        except Exception as error:  # a user's forward may do anything with a traced value
            raise ValueError(
                f"Cannot find what follows each conv of {type(network).__name__}: tracing it with "
                f"torch.fx raises {type(error).__name__}: {error}. Its forward must not depend on "
                "the values of tensors."
            ) from error
    modules = dict(network.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found: dict[str, str | None] = {}
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        plain = type(module) is nn.Conv2d and module.groups == 1
        if not plain or calls.count(str(node.target)) > 1 or _makes_logits(node, modules):
            continue
        norms = [
            str(user.target)
            for user in node.users
            if user.op == "call_module"
            and type(modules[str(user.target)]) is nn.BatchNorm2d
            and getattr(modules[str(user.target)], "running_mean", None) is not None
            and calls.count(str(user.target)) == 1
        ]
        found[str(node.target)] = norms[0] if norms and len(node.users) == 1 else None
    if not found:
        raise ValueError(
            "No conv of this network can be gated: expected plain, ungrouped convs that run once "
            "and are read by other layers. Take another method."
        )
    return found


def _makes_logits(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what a node gives reaches the output with no further layer of weights between."""
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if user.op == "output" or (
            not isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
            and _makes_logits(user, modules)
        ):
            return True
    return False


class GatedConv2d(nn.Conv2d):
    """A conv with its norm, whose gate chooses for each image the outputs that are computed.

    In training mode all are computed and masked; in evaluation mode only the chosen ones are, from
    the inputs that are not zero.
    """

    active: int
    """How many outputs are computed, at most."""
    form: Form
    penalty: float
    norm: nn.BatchNorm2d | None
    """Without scale and shift."""
    phi: nn.Parameter
    """(outputs, inputs)."""
    rho: nn.Parameter
    """(outputs,)."""
    beta: nn.Parameter
    """(outputs,)."""
    _folded: tuple[list[int], tuple[Tensor, Tensor, Tensor]] | None

    @classmethod
    def put_into(
        cls, network: nn.Module, name: str, norm: str | None, form: Form, penalty: float
    ) -> Self:
        """Gates a conv of a network in place, such that it gives with all outputs what it did."""
        conv = network.get_submodule(name)
        conv.__class__ = cls
        assert isinstance(conv, cls)
        conv.form, conv.penalty, conv.active = form, penalty, conv.out_channels
        conv._folded = None
        weight = conv.weight
        scale, shift = torch.ones_like(weight[:, 0, 0, 0]), torch.zeros_like(weight[:, 0, 0, 0])
        if norm is None:
            shift = shift if conv.bias is None else conv.bias.detach().clone()
            conv.bias, conv.norm = None, None
        else:
            own = network.get_submodule(norm)
            assert isinstance(own, nn.BatchNorm2d)
            network.set_submodule(norm, nn.Identity())
            if own.weight is not None:
                scale, shift = own.weight.detach().clone(), own.bias.detach().clone()
            own.affine, own.weight, own.bias = False, None, None  # type: ignore[assignment]
            conv.norm = own
            conv._turn_round(scale < 0)
            scale = scale.abs().clamp(min=SMALLEST_SCALE)
        conv.phi = nn.Parameter(torch.zeros_like(weight[:, :, 0, 0]))
        conv.rho = nn.Parameter(scale)
        conv.beta = nn.Parameter(shift / scale if form == "paper" else shift)
        return conv

    @torch.no_grad()
    def _turn_round(self, negative: Tensor) -> None:
        """Changes the sign of what some filters and the statistics of their norm give."""
        signs = 1 - 2 * negative.to(self.weight)
        self.weight *= signs[:, None, None, None]
        assert self.norm is not None
        for tensor in (self.bias, self.norm.running_mean):
            if tensor is not None:
                tensor *= signs

    def gates(self, means: Tensor) -> Tensor:
        """(n, outputs) of the means (n, inputs) of absolute input maps, in float32."""
        with torch.autocast(means.device.type, enabled=False):
            return nn.functional.linear(means, self.phi, self.rho).relu()

    def chosen(self, gates: Tensor) -> Tensor:
        """Which outputs are computed, (n, outputs) bool: none whose gate is shut."""
        if self.form == "reference":
            if self.active == self.out_channels:
                return gates > 0
            bound = gates.topk(self.active + 1, dim=1).values[:, -1:]
            return gates > bound
        places = gates.topk(self.active, dim=1).indices
        return torch.zeros_like(gates, dtype=torch.bool).scatter(1, places, True) & (gates > 0)

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return self._masked(input)
        if len(input) == 1:
            return self._skipping(input)
        return torch.cat([self._skipping(image) for image in input.split(1)])

    def _masked(self, images: Tensor) -> Tensor:
        self._folded = None
        gates = self.gates(_means(images))
        chosen = self.chosen(gates)
        if self.penalty and gates.requires_grad:
            # As sum(g) * penalty in each image's loss would: over active gates in the code's form.
            share = self.penalty / len(images)
            charged = chosen if self.form == "reference" else torch.ones_like(chosen)
            gates.register_hook(lambda gradient: gradient + share * charged)
        maps = super().forward(images)
        if self.norm is not None:
            maps = self.norm(maps)
        scale = gates * chosen
        shift = (scale if self.form == "paper" else chosen) * self.beta
        result: Tensor = maps * scale[:, :, None, None].to(maps.dtype)
        return result + shift[:, :, None, None].to(maps.dtype)

    @torch.no_grad()
    def _skipping(self, image: Tensor) -> Tensor:
        """Of one image (1, inputs, H, W)."""
        weight, bias, positions = self._inference_form()
        reference = self.form == "reference"
        if (compiled := operators_for(self, image)) is not None:
            outputs, scale, inputs = compiled.gate.default(
                image, self.phi, self.rho, self.active, reference
            )
            computed: Tensor = compiled.conv_on.default(
                *(image, inputs, outputs, positions, bias, scale, self.beta if reference else None),
                *(self.kernel_size, self.stride, self.padding, self.dilation),
            )
            return computed
        image = image.contiguous()  # whose maps are copied as wholes
        means = _means(image)
        outputs, scale = self._chosen_of_one(self.gates(means))
        inputs = means[0].nonzero().flatten()
        part = weight.index_select(0, outputs).index_select(1, inputs)
        maps = conv_on(self, image, inputs, part, bias.index_select(0, outputs))
        maps = maps * scale[:, None, None].to(maps.dtype)
        if reference:
            maps += self.beta.index_select(0, outputs)[:, None, None]
        result = maps.new_zeros(1, self.out_channels, *maps.shape[2:])
        return result.index_copy_(1, outputs, maps)

    def _chosen_of_one(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """As `chosen` for gates (1, outputs): the numbers of the outputs, and their gates."""
        if self.form == "paper":
            values, outputs = gates[0].topk(self.active, sorted=False)
            if values.all():
                return outputs, values
        outputs = self.chosen(gates)[0].nonzero().flatten()
        return outputs, gates[0].index_select(0, outputs)

    def _inference_form(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias with the norm folded in, and beta in the paper's form; and the weight as
        (kernel positions, outputs, inputs), which the compiled operators read.

        Made anew where any of them has changed.
        """
        parts = [self.weight, self.bias, self.beta]
        if self.norm is not None:
            parts += [self.norm.running_mean, self.norm.running_var]
        tensors = [each for each in parts if each is not None]
        # Tensors made in inference mode count no versions.
        versions = [0 if each.is_inference() else each._version for each in tensors]
        state = [*map(id, tensors), *versions]
        if self._folded is None or self._folded[0] != state:
            weight, bias = self.weight.detach(), self.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            if self.norm is not None:
                mean, variance = self.norm.running_mean, self.norm.running_var
                assert mean is not None and variance is not None
                factor = torch.rsqrt(variance + self.norm.eps)
                weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor
            if self.form == "paper":
                bias = bias + self.beta.detach()
            positions = weight.flatten(2).permute(2, 0, 1).contiguous()
            self._folded = state, (weight.contiguous(), bias, positions)
        return self._folded[1]

    def train(self, mode: bool = True) -> Self:
        self._folded = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._folded = None
        return super()._apply(fn, recurse)


def _means(images: Tensor) -> Tensor:
    """(n, channels) float32, of the absolute values of each map: 0 for a map of zeros alone."""
    return images.float().abs().mean(dim=(2, 3))
