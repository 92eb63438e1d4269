"""The plan of a sweep, made once and passed on."""

from dataclasses import dataclass

from orchestrator.plan.studies import DenseNetwork, Study, dense_networks, studies
from orchestrator.sweep_file import Sweep


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of."""

    sweep: Sweep
    studies: tuple[Study, ...]
    """In the order in which they are worked."""
    dense_networks: tuple[DenseNetwork, ...]
    """Those known before the search, each once, teachers before students."""


def make_plan(sweep: Sweep) -> Plan:
    """Works a sweep out."""
    return Plan(sweep, tuple(studies(sweep)), tuple(dense_networks(sweep)))
