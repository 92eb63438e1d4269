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
from baselines.runtime.cascade import Cascade
from baselines.runtime.cascade_random import CascadeRandom
from baselines.runtime.fbs import FBS
from baselines.runtime.feature_maps import FeatureMaps
from baselines.runtime.second_look import SecondLook
from baselines.weights.autoprune import AutoPrune
from baselines.weights.bit_pruning import BitPruning
from baselines.weights.joint_sparsity import JointSparsity
from baselines.weights.magnitude import Magnitude
from baselines.weights.str import STR

__all__ = [
    "AMC",
    "FBS",
    "PCAS",
    "STR",
    "AutoPrune",
    "BitPruning",
    "Cascade",
    "CascadeRandom",
    "ClassStatistics",
    "Dense",
    "FeatureMaps",
    "JointSparsity",
    "L1Filter",
    "Magnitude",
    "PolicyGradient",
    "RandomChannels",
    "SecondLook",
    "ThiNet",
    "Vanilla",
]
