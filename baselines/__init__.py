"""The static and reinforcement-learning methods that Runtime Neural Pruning is compared with."""

from baselines.channels.amc import AMC
from baselines.channels.class_statistics import ClassStatistics
from baselines.channels.l1_filter import L1Filter
from baselines.channels.pcas import PCAS
from baselines.channels.policy_gradient import PolicyGradient
from baselines.channels.random_channels import RandomChannels
from baselines.channels.thinet import ThiNet
from baselines.channels.vanilla import Vanilla
from baselines.dense import Dense
from baselines.runtime.fbs import FBS
from baselines.runtime.feature_maps import FeatureMaps
from baselines.weights.magnitude import Magnitude

__all__ = [
    "AMC",
    "FBS",
    "PCAS",
    "ClassStatistics",
    "Dense",
    "FeatureMaps",
    "L1Filter",
    "Magnitude",
    "PolicyGradient",
    "RandomChannels",
    "ThiNet",
    "Vanilla",
]
