"""The static and reinforcement-learning methods that Runtime Neural Pruning is compared with."""

from baselines.dense import Dense
from baselines.l1_filter import L1Filter
from baselines.magnitude import Magnitude
from baselines.policy_gradient import PolicyGradient
from baselines.random_channels import RandomChannels
from baselines.thinet import ThiNet
from baselines.vanilla import Vanilla

__all__ = [
    "Dense",
    "L1Filter",
    "Magnitude",
    "PolicyGradient",
    "RandomChannels",
    "ThiNet",
    "Vanilla",
]
