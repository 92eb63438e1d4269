"""What a sweep file may hold."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, count, islice, repeat, takewhile
from operator import mul
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from orchestrator.formatting import without_password
from orchestrator.sweep_file.grids_and_ranges import fill, variables
from orchestrator.sweep_file.yaml_reader import dotted, dump_yaml

SHARED = ("data", "backbone", "training", "fine_tuning")  # the sections that all methods share
# What else lies in the output folder.
NOT_FOLDERS_OF_SWEEPS = ("dense", "mlflow.db", "mlflow_artifacts", "mlruns")


class SweepFileError(ValueError):
    """What is wrong with a sweep file: `problems` has a line for every mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def _folder_name(name: str) -> str:
    advice = "Give another with name: in the file, or with --set name=..."
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(
            "expected the name of a folder, of at most 100 letters, digits, '_', '-' and '.', got "
            f"{name!r}. {advice}"
        )
    if name in NOT_FOLDERS_OF_SWEEPS:
        raise ValueError(f"{name!r} is what another thing in the output folder is called. {advice}")
    return name


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds:
        raise ValueError("expected at least one seed, got none.")
    repeated = [str(seed) for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise ValueError(f"expected each seed once, got twice or more: {', '.join(repeated)}.")
    return seeds


def _whole_or_part(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"expected a part of one GPU or whole GPUs, got {gpus}.")
    return gpus


def _at_least_two(objectives: dict[str, str]) -> dict[str, str]:
    if len(objectives) < 2:
        raise ValueError(
            "expected two objectives or more, since a frontier lies between them, "
            f"got {', '.join(objectives) or 'none'}."
        )
    return objectives


def _database_url(url: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+(\+[a-z0-9_]+)?://\S*", url):
        raise ValueError(
            "expected the URL of a database, as in postgresql://USER@HOST/DATABASE, or nothing for "
            f"a file in the run folder, got {without_password(url)!r}."
        )
    return url


class _Objectives(TypedDict, total=False):
    """What the search may trade against each other."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    val_accuracy: Literal["maximize"]
    multiplications: Literal["minimize"]
    nonzero_multiplications: Literal["minimize"]
    parameters: Literal["minimize"]
    latency_ms: Literal["minimize"]
    bit_operations: Literal["minimize"]
    mean_bits: Literal["minimize"]
    footprint_bytes: Literal["minimize"]
    winograd_multiplications: Literal["minimize"]


if TYPE_CHECKING:
    Objectives = dict[str, str]  # what other modules take them for
else:
    Objectives = Annotated[_Objectives, AfterValidator(_at_least_two)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
DEFAULT_TRIALS = 10


class Search(BaseModel):
    """How values are drawn from the ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """Of Optuna; grid divides each range evenly."""
    trials: int | None = Field(default=None, ge=1)
    """Of every study that has a range; 10 where no hours are given either, else as many as these
    allow."""
    hours: float | None = Field(default=None, gt=0)
    """In which trials start, those of all studies together."""
    seed: Seed = 0
    """Of the sampler."""

    @model_validator(mode="before")
    @classmethod
    def _some_budget(cls, options: Any) -> Any:
        if not isinstance(options, dict) or options.get("trials") is not None:
            return options
        if options.get("hours") is None:
            return {**options, "trials": DEFAULT_TRIALS}
        if options.get("sampler") == "grid":
            raise ValueError("a grid needs its size. Give trials beside the hours.")
        return options


class EarlyStopping(BaseModel):
    """When trials that do badly are stopped; none are where a sweep has no such section.

    Defaults chosen on recorded curves of other seeds than `benchmarks/early_stopping.py` judges by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_epochs: int = Field(default=2, ge=1)
    """Of fine-tuning, before the first rung."""
    reduction: float = Field(default=2.5, gt=1)
    """Of so many trials one goes on at a rung, and all that none beats; each rung is so many times
    as far as the one before."""

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """After how many of `epochs` a trial is judged: 2, 5, 12 and so on."""
        rungs = accumulate(repeat(self.reduction), mul, initial=float(self.min_epochs))
        return tuple(dict.fromkeys(takewhile(epochs.__gt__, map(round, rungs))))


class Confirm(BaseModel):
    """What is run again after the search: every point on a method's frontier."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seeds: int = Field(ge=1, le=100)
    """Fresh ones, of dense network and split too."""


class Resources(BaseModel):
    """What one trial gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cpus: int = Field(default=1, ge=1)
    """Cores."""
    threads: int | None = Field(default=None, ge=1)
    """That torch computes with; as many as cores if None."""
    gpus: Annotated[float, Field(ge=0), AfterValidator(_whole_or_part)] = 0
    """Whole ones, or a part of one that trials share."""
    memory_gb: float = Field(default=0, ge=0)
    """Billions of bytes that Ray sets aside, and does not enforce."""

    @property
    def of_ray(self) -> dict[str, float]:
        """The same in Ray's words: memory in bytes."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": int(1e9 * self.memory_gb)}


class Sweep(BaseModel):
    """A sweep file as resolved: defaults filled in, grids and ranges as `Grid` and `Range`.

    What `fine_tuning` does not hold it takes from `training`, trial by trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_folder_name)]
    data: dict[str, Any]
    backbone: dict[str, Any]
    training: dict[str, Any]
    fine_tuning: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_each_once)] = (0,)
    objectives: Objectives = {"val_accuracy": "maximize", "multiplications": "minimize"}
    search: Search = Search()
    confirm: Confirm | None = None
    early_stopping: EarlyStopping | None = None
    resources: Resources = Resources()
    storage: Annotated[str, AfterValidator(_database_url)] | None = None  # of Optuna's studies

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds of the confirmation: the least that the search does not use."""
        wanted = self.confirm.seeds if self.confirm else 0
        return tuple(islice((seed for seed in count() if seed not in self.seeds), wanted))

    @property
    def shared(self) -> dict[str, dict[str, Any]]:
        """The sections that all methods share."""
        return {section: getattr(self, section) for section in SHARED}

    @property
    def varied(self) -> list[str]:
        """The dotted paths outside the methods that have a grid or a range."""
        return [dotted(key) for key, _ in variables(self.shared)]

    def with_method(self, name: str) -> "Sweep":
        """The sweep with this one of its methods.

        Raises:
            SweepFileError: if it has no such method.
        """
        if name not in self.methods:
            from testbed.names import unknown  # imports torch; see `load_sweep`

            raise SweepFileError([unknown("method", name, self.methods)])
        return self.model_copy(update={"methods": {name: self.methods[name]}})

    def dump(self) -> str:
        """The sweep as YAML, which `load_sweep` reads as an equal sweep.

        But for the password of a database, which does not belong into a folder that is shared.
        """
        sections = dict(self)
        sections = fill(sections, {key: found.as_written() for key, found in variables(sections)})
        plain = self.model_dump(mode="json", exclude={*SHARED, "methods"})
        if self.storage is None:
            del sections["storage"], plain["storage"]
        else:
            plain["storage"] = without_password(self.storage)
        return dump_yaml({**sections, **plain})
