"""Importance of searched options: the share of an objective's variance that each explains.

By Optuna's fANOVA, from the rows of trials.csv: it needs no storage of Optuna's. Source: Hutter,
Hoos, Leyton-Brown 2014, "An efficient approach for assessing hyperparameter importance", ICML.

Of ten tries of a noisy function that is mostly one option's, it put that first in 12 of 12 studies,
Optuna's default (PED-ANOVA) in 9.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pandas as pd

from orchestrator.analysis.search_progress import searched_ranges
from orchestrator.analysis.sweep_result import OUT_OF, SweepResult
from orchestrator.run_folder.trials_table import cell_text
from orchestrator.sweep_file.grids_and_ranges import Range

FEWEST_COMPLETED = 10  # tries of a study; of fewer a forest learns little


def option_importances(result: SweepResult) -> pd.DataFrame:
    """The importances in each study of two options or more that had tries enough.

    Columns: study, method, tries, option (its column of trials.csv), objective, importance (those
    of a study's options sum to 1). Conditional options, which some tries did without, are left out.

    Without Optuna there are none.
    """
    if find_spec("optuna") is None:
        return pd.DataFrame()
    found: list[dict[str, Any]] = []
    completed = result.searched[result.searched["status"] == "completed"]
    completed = completed.dropna(subset=[*result.objectives])
    own = [name for name in ("study", OUT_OF) if name in completed]
    for (name, *_), rows in completed.groupby(own, sort=False):
        ranges = searched_ranges(result, rows)
        ranges = {c: r for c, r in ranges.items() if c in rows and not r.when}
        if len(ranges) < 2 or len(rows) < FEWEST_COMPLETED:
            continue
        of_study = {"study": str(name), "method": str(rows["method"].iloc[0]), "tries": len(rows)}
        for objective in result.objectives:
            for option, importance in _importances(rows, ranges, objective).items():
                of_option = {"option": option, "objective": objective, "importance": importance}
                found.append({**of_study, **of_option})
    return pd.DataFrame(found)


def _importances(
    rows: pd.DataFrame, ranges: Mapping[str, Range], objective: str
) -> dict[str, float]:
    """By option; none where the objective was the same in all tries."""
    import optuna  # a second

    if rows[objective].nunique() < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    columns = {option: _parameter(rows[option], found) for option, found in ranges.items()}
    study = optuna.create_study()
    for place, value in enumerate(rows[objective].astype(float)):
        study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params={option: values[place] for option, (values, _) in columns.items()},
                distributions={option: among for option, (_, among) in columns.items()},
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _parameter(column: pd.Series, found: Range) -> tuple[list[Any], Any]:
    """An option's values as Optuna's, which has no logarithms of negative ones, and their range."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if found.kind == "choice":
        texts = [cell_text(value) for value in column]
        return texts, CategoricalDistribution(sorted({*texts}))
    is_log = found.kind == "log_uniform"
    low, high = sorted(abs(end) if is_log else end for end in found.drawn)
    values = column.abs() if is_log else column
    return [float(value) for value in values], FloatDistribution(low, high, log=is_log)
