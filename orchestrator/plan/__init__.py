"""The plan of a sweep: its studies, their trials, and what these start from."""

from orchestrator.plan.dense_networks import (
    DenseNetwork,
    dense_network,
    dense_networks,
    fine_tuning_teacher,
    networks_of,
)
from orchestrator.plan.grid_points import n_tries
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.shared_stages import SharedStage, shared_stage
from orchestrator.plan.studies import Study, studies
from orchestrator.plan.trial import Trial, confirmation, confirmations

__all__ = [
    "DenseNetwork",
    "Plan",
    "SharedStage",
    "Study",
    "Trial",
    "confirmation",
    "confirmations",
    "dense_network",
    "dense_networks",
    "fine_tuning_teacher",
    "make_plan",
    "n_tries",
    "networks_of",
    "shared_stage",
    "studies",
]
