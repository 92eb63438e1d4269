"""What every method is judged on: data, backbones, training and cost."""

from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, measure_latency
from testbed.data import Splits, load_splits
from testbed.measurement import Measurement, measure
from testbed.method import PruningMethod, Run
from testbed.training import Training, evaluate, train

__all__ = [
    "Measurement",
    "PruningMethod",
    "Run",
    "Splits",
    "Training",
    "build_backbone",
    "count_multiplications",
    "evaluate",
    "load_splits",
    "measure",
    "measure_latency",
    "train",
]
