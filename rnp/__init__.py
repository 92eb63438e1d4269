"""Runtime Neural Pruning, its parts, and the control that it is held against."""

from rnp.execution.decision import DecisionNetwork
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP
from rnp.static_prefix import StaticPrefix

__all__ = ["RNP", "DecisionNetwork", "RuntimeNetwork", "StaticPrefix"]
