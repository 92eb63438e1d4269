"""The plan of a sweep: its studies, their trials, and the dense networks these start from."""

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.studies import (
    DenseNetwork,
    Study,
    Trial,
    confirmation,
    confirmations,
    dense_network,
    fine_tuning_teacher,
    networks_of,
)

__all__ = [
    "DenseNetwork",
    "Plan",
    "Study",
    "Trial",
    "confirmation",
    "confirmations",
    "dense_network",
    "fine_tuning_teacher",
    "make_plan",
    "networks_of",
]
