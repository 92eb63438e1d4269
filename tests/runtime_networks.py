"""Networks that decide per image, of many backbones, with decisions that differ by image."""

import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rnp.execution.layers import PrefixBatchNorm
from rnp.execution.masked_run import MaskedRun
from rnp.runtime_network import RuntimeNetwork
from testbed.backbones import build_backbone

SHAPES = {
    "conv": ((2, 16, 16), {"channels": (6, 9, 8, 7), "pool_after": (2, 4), "hidden": 10}),
    "lfw3_net": ((1, 16, 16), {"width": 0.25, "hidden": 8, "dropout": 0.3}),
    "m_cifarnet": ((3, 16, 16), {"width": 0.125}),
    "vgg16": ((3, 32, 32), {"width": 0.0625}),
    "resnet18": ((3, 16, 16), {"width": 0.125}),
    "resnet20": ((3, 16, 16), {"width": 0.5}),
    "resnet56": ((3, 8, 8), {"width": 0.25}),
}


NAMES = [*SHAPES, "branching", "chain", "residual"]
"""What `runtime` knows."""


class Branching(nn.Module):
    """Several readers, values that live on across decisions, functions, constants, a batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.second = nn.Conv2d(6, 7, 3, stride=2, padding=1, padding_mode="reflect")
        self.left = nn.Conv2d(8, 5, 3, stride=2, padding="valid")
        self.right = nn.Conv2d(8, 9, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(9, affine=False)
        self.join = nn.Conv2d(9, 4, 3, padding=1)
        self.other = nn.Conv2d(7, 4, 3, padding=1, groups=1)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.narrow = nn.Linear(5 * 3 * 3, 4)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        n = images.size(0)
        stem = F.relu(self.stem(images)) * (self.scale + torch.tensor(0.5))
        first = F.dropout(F.gelu(self.first(stem)), 0.4, self.training)
        second = self.second(stem)  # decided after `first` is computed, before it is read
        narrow = self.narrow(torch.flatten(self.left(first).sigmoid(), 1))
        right = self.join(self.norm(self.right(first)).tanh())
        wide = (right + self.other(F.relu(second))).mean(dim=(2, 3))
        logits: Tensor = self.classifier(torch.cat([wide, narrow], dim=1).view(n, 8))
        return logits


def shaken(model: nn.Module) -> nn.Module:
    """With running statistics and affine weights as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def runtime(name: str, groups: int = 4) -> tuple[RuntimeNetwork, tuple[int, int, int]]:
    torch.manual_seed(0)
    if name == "branching":
        backbone, shape = Branching(), (2, 8, 8)
    elif name in ("chain", "residual"):
        backbone, shape = tiny.network("conv" if name == "chain" else name), (2, 8, 8)
    else:
        shape, options = SHAPES[name]
        backbone = build_backbone(name, shape, 3, **options)
    network = RuntimeNetwork(shaken(backbone), groups, encoding=6, hidden=5).eval()
    tell_prefixes_apart(network)
    decide_differently(network, shape)
    return network, shape


def tell_prefixes_apart(network: nn.Module) -> None:
    """Gives batch norms other statistics for each prefix, as estimated ones are; not for all."""
    for module in network.modules():
        if isinstance(module, PrefixBatchNorm):
            nn.init.normal_(module.prefix_mean[:-1], 0, 0.3)
            nn.init.uniform_(module.prefix_var[:-1], 0.5, 2)


def decide_differently(network: RuntimeNetwork, shape: tuple[int, int, int]) -> None:
    """Weights with which actions differ between images, as a trained network's do."""
    images = torch.randn(64, *shape)
    run = MaskedRun(network, network.flow, images)
    actions = random_actions(network, 64)
    state = None
    with torch.no_grad():
        while (features := run.observe()) is not None:
            step = len(run.actions)
            network.decision.standardise(step, features)
            values, state = network.decision(step, features, state)
            run.act(actions[:, step])
        nn.init.normal_(network.decision.decoder.weight, std=8.0)
        values = network.decision.decoder(state)
        network.decision.decoder.bias -= values.mean(dim=0)
        nn.init.normal_(network.decision.offsets)


def random_actions(network: RuntimeNetwork, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = len(network.flow.convs)
    return torch.randint(0, network.flow.groups, (n, steps), generator=generator)


def own_decisions(network: RuntimeNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """(n, decisions): the masked network's actions, and by how much the best Q-values lead."""
    run = MaskedRun(network, network.flow, images)
    state, leads = None, []
    while (features := run.observe()) is not None:
        values, state = network.decision(len(run.actions), features, state)
        best = values.topk(2, dim=1).values
        leads.append(best[:, 0] - best[:, 1])
        run.act(values.argmax(dim=1))
    return torch.stack(run.actions, dim=1), torch.stack(leads, dim=1)


def assert_same(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    scale = expected.abs().max().item()
    assert (ours - expected).abs().max().item() <= tolerance * scale


def dense_of(name: str) -> tuple[nn.Module, RuntimeNetwork]:
    """A backbone in evaluation mode, and the network that has the same weights."""
    network, shape = runtime(name)
    if name == "branching":
        dense: nn.Module = Branching()
    elif name in ("chain", "residual"):
        dense = tiny.network("conv" if name == "chain" else name)
    else:
        dense = build_backbone(name, shape, 3, **SHAPES[name][1])
    own = network.state_dict()
    dense.load_state_dict({name: own[name] for name in dense.state_dict()})
    return dense.eval(), network
