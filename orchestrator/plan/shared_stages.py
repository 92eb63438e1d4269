"""The stages that trials share: first steps of a method, which not all of its options enter."""

import json
from dataclasses import dataclass
from functools import cached_property

from orchestrator.methods import method_class
from orchestrator.plan.dense_networks import dense_network, fine_tuning_teacher
from orchestrator.plan.trial import Trial


@dataclass(frozen=True)
class SharedStage:
    """A stage that is to be made (see `testbed.shared_stage`)."""

    trial: Trial
    """The first that needs it."""

    @cached_property
    def key(self) -> str:
        """All that enters it, as the trial says it: the same for all that share it."""
        trial, teacher = self.trial, fine_tuning_teacher(self.trial)
        entering = method_class(trial.method).stage_options()
        return json.dumps(
            {
                "method": trial.method,
                "options": {k: v for k, v in sorted(trial.options.items()) if k in entering},
                "dense_network": dense_network(trial).model_dump(mode="json"),
                "teacher": teacher and teacher.model_dump(mode="json"),
                "fine_tuning": trial.fine_tuning.model_dump(mode="json"),
            }
        )


def shared_stage(trial: Trial) -> SharedStage | None:
    """The stage that a trial begins with, if its method shares one."""
    shares = hasattr(method_class(trial.method), "stage_options")
    return SharedStage(trial) if shares else None
