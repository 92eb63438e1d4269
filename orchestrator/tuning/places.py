"""The places of a Ray cluster: how many jobs can run at a time, as nodes come and go."""

import math
import time

import ray

from orchestrator.sweep_file import Resources

PERIOD_S = 10.0


class Places:
    """Counts places, anew after some seconds."""

    def __init__(self, resources: Resources) -> None:
        """
        Raises:
            ValueError: if no machine has the resources of a job.
        """
        self._of_one_job = resources.of_ray
        self._counted_at = time.monotonic()
        self._number = self._count()
        if self._number == 0:
            raise ValueError(
                f"Expected a machine with the {resources.cpus} CPUs, {resources.gpus:g} GPUs and "
                f"{resources.memory_gb:g} GB of memory that a trial asks for, but none has as "
                "much. Ask for less in the sweep file's resources."
            )

    def __call__(self) -> int:
        if time.monotonic() - self._counted_at > PERIOD_S:
            self._counted_at, self._number = time.monotonic(), self._count()
        return self._number

    def _count(self) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(math.floor(has.get(name, 0) / n) for name, n in self._of_one_job.items() if n > 0)
            for has in nodes
        )
