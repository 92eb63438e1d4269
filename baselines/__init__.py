"""The static and reinforcement-learning methods that Runtime Neural Pruning is compared with."""

from baselines.channels.l1_filter import L1Filter
from baselines.channels.policy_gradient import PolicyGradient
from baselines.channels.random_channels import RandomChannels
from baselines.channels.thinet import ThiNet
from baselines.channels.vanilla import Vanilla
from baselines.dense import Dense
from baselines.weights.autoprune import AutoPrune
from baselines.weights.bit_pruning import BitPruning
from baselines.weights.joint_sparsity import JointSparsity
from baselines.weights.magnitude import Magnitude
from baselines.weights.str import STR

__all__ = [
    "STR",
    "AutoPrune",
    "BitPruning",
    "Dense",
    "JointSparsity",
    "L1Filter",
    "Magnitude",
    "PolicyGradient",
    "RandomChannels",
    "ThiNet",
    "Vanilla",
]
