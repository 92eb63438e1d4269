"""An exported network as a version in MLflow's model registry, by the run of its trial."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.tracking.experiment import SQLITE, open_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature


class ModelRegistry:
    """MLflow, found to have the run that a network is of."""

    def __init__(self, name: str, output: Path, sweep: str, sweep_id: str, trial_id: str) -> None:
        """Looks for all that `register` needs, before a network is exported.

        Args:
            name: of the model. Where there is one, it gets a further version.
            output: the folder of all sweeps, in which a local database lies.

        Raises:
            ValueError: if MLflow would refuse the name, is away, or has no run of the trial.
        """
        if not name.strip(". ") or set(name) & set("/:"):
            raise ValueError(f"--register: expected a name without '/' and ':', got {name!r}.")
        self._name = name
        self.uri = uri = tracking_uri(output)
        database = Path(uri.removeprefix(SQLITE))
        if uri.startswith(SQLITE) and not database.exists():
            raise ValueError(
                f"--register: {database} is missing. The sweep command writes it; for a server of "
                "yours set MLFLOW_TRACKING_URI as it was set for the sweep."
            )
        try:
            self._client: MlflowClient = open_client(uri)
            run = self._find(sweep, sweep_id, trial_id)
        except Exception as error:  # of MLflow, of its database, of the network
            reason = str(error).partition("\n")[0]
            raise ValueError(f"--register: MLflow at {uri} does not answer ({reason}).") from error
        if run is None:
            raise ValueError(
                f"--register: MLflow at {uri} has no run of {trial_id} of this sweep. "
                "`python -m orchestrator.sweep` with its sweep file sends what MLflow lacks."
            )
        self._run = run

    def register(
        self, exported: Path, program_file: Path, tags: Mapping[str, Any], description: str
    ) -> str:
        """Makes a version of an exported folder, which becomes an artifact of the run.

        `mlflow.pyfunc.load_model` gives an ONNX program: an array of images in, their logits out,
        under the name `logits`.

        Args:
            program_file: that program, in the folder.

        Returns:
            The version, as in `models:/NAME/VERSION`.
        """
        import onnx
        from mlflow.exceptions import MlflowException

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow's own parts, about their types
            import mlflow.onnx
            import mlflow.pyfunc.model

        program = onnx.load(program_file)
        path = f"exported-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / path
            mlflow.onnx.save_model(
                program,
                model,
                signature=_signature(program),
                pip_requirements=mlflow.onnx.get_default_pip_requirements(),
                onnx_execution_providers=["CPUExecutionProvider"],  # which it was checked with
                save_as_external_data=False,
            )
            shutil.copytree(exported, model, dirs_exist_ok=True)
            self._client.log_artifacts(self._run.info.run_id, str(model), path)
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            self._name,
            f"{self._run.info.artifact_uri}/{path}",
            self._run.info.run_id,
            tags={key: str(value) for key, value in tags.items()},
            description=description,
        )
        return str(version.version)

    def _find(self, sweep: str, sweep_id: str, trial_id: str) -> Run | None:
        experiment = self._client.get_experiment_by_name(sweep)
        if experiment is None:
            return None
        of_trial = f"tags.trial_id = '{trial_id}' and tags.sweep_id = '{sweep_id}'"
        return next(iter(self._client.search_runs([experiment.experiment_id], of_trial)), None)


def _signature(program: Any) -> ModelSignature:
    """What an ONNX program takes and gives, of any number of images."""
    from mlflow.models import infer_signature

    def example(tensor: Any) -> np.ndarray:
        return np.zeros([d.dim_value or 1 for d in tensor.type.tensor_type.shape.dim], np.float32)

    return infer_signature(example(program.graph.input[0]), example(program.graph.output[0]))
