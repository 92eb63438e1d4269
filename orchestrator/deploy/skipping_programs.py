"""ONNX programs of networks that decide per image, which really skip. Needs the extra `export`."""

from typing import NamedTuple, Protocol, Self

import onnx
from torch import nn

from baselines.runtime.cascade_network import CascadeNetwork
from baselines.runtime.onnx_cascade import CascadeLooks
from rnp.grouped_network import GroupedNetwork
from rnp.onnx_groups import GroupLooks
from rnp.onnx_program import PrefixPrograms
from rnp.onnx_routes import RoutePrograms
from rnp.routed_network import RoutedNetwork
from rnp.runtime_network import RuntimeNetwork
from testbed.data import Splits
from testbed.onnx_graph import CannotSkipError as CannotSkipError
from testbed.onnx_looks import LookPrograms, Looks


class SkippingPrograms(Protocol):
    """Writes the programs of a network."""

    def always(self, go_on: bool) -> Self:
        """Those of the same network with the dearest decisions for every image, or the cheapest."""
        ...

    def single(self) -> onnx.ModelProto:
        """For single images."""
        ...

    def batch(self) -> onnx.ModelProto | None:
        """For any number of images; None where such a program could not skip."""
        ...


class Ends(NamedTuple):
    """A program with the network's own decisions, and with the same ones for every image."""

    own: bytes
    cheapest: bytes
    dearest: bytes


def skipping_programs(network: nn.Module, splits: Splits) -> tuple[Ends, Ends | None]:
    """A network's programs for single images, and those for batches.

    Raises:
        CannotSkipError: if the network has an operation that no such program is written for.
    """
    own = _programs_of(network, splits)
    each = own, own.always(False), own.always(True)
    single = Ends(*(programs.single().SerializeToString() for programs in each))
    batch = [program for programs in each if (program := programs.batch()) is not None]
    return single, Ends(*(program.SerializeToString() for program in batch)) if batch else None


def _programs_of(network: nn.Module, splits: Splits) -> SkippingPrograms:
    taken = splits.input_shape, splits.mean, splits.std
    if isinstance(network, RuntimeNetwork):
        return PrefixPrograms(network, *taken)
    if isinstance(network, RoutedNetwork):
        return RoutePrograms(network, *taken)
    looks: Looks
    if isinstance(network, CascadeNetwork):
        looks = CascadeLooks(network, splits.input_shape)
    else:
        assert isinstance(network, GroupedNetwork)
        looks = GroupLooks(network, splits.input_shape)
    return LookPrograms(looks, *taken)
