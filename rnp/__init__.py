"""Runtime Neural Pruning, its parts and its kin, and the controls that they are held against."""

from rnp.execution.decision import DecisionNetwork
from rnp.grouped_network import GroupedNetwork
from rnp.network_routing import NetworkRouting
from rnp.rnp_groups import RNPGroups
from rnp.routed_network import RoutedNetwork
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP
from rnp.static_blocks import StaticBlocks
from rnp.static_prefix import StaticPrefix

__all__ = [
    "RNP",
    "DecisionNetwork",
    "GroupedNetwork",
    "NetworkRouting",
    "RNPGroups",
    "RoutedNetwork",
    "RuntimeNetwork",
    "StaticBlocks",
    "StaticPrefix",
]
