"""What a sweep would do, as text: its dense networks, its trials, their number and their epochs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from orchestrator.plan.dense_networks import DenseNetwork
from orchestrator.plan.grid_points import n_tries
from orchestrator.plan.plan import Plan
from orchestrator.plan.studies import Study
from orchestrator.sweep_file.grids_and_ranges import ABSENT, Range, plain_text, variables

MOST_LINES = 200  # of studies, and of dense networks


def describe(plan: Plan) -> str:
    """The dense networks and trials of a sweep, one line each, and the totals."""
    sweep, networks = plan.sweep, plan.dense_networks
    planned = [replace(study, n_trials=n_tries(study, sweep.search)) for study in plan.studies]
    n_trials = sum(study.n_trials for study in planned)
    endless = n_trials == math.inf
    trials = "As many trials as the hours allow" if endless else _count(n_trials, "trial")
    epochs = sum(study.n_trials * _most_epochs(study) for study in planned)
    dense_epochs = sum(network.training.epochs for network in networks)
    objectives = ", ".join(f"{name} ({way})" for name, way in sweep.objectives.items())
    unknown = "  none that is known before the trials; each is trained when a trial needs it"
    lines = [
        f"{sweep.name}: {objectives}; sampler {sweep.search.sampler}.",
        "",
        "Dense networks, trained first unless they are kept from before:",
        *(_cut(_dense_lines(networks)) or [unknown]),
        "",
        "Trials:",
        *_cut(_study_lines(planned)),
        "",
        f"{trials} in {_count(len(planned), 'study', 'studies')}, "
        f"{_count(len(networks), 'dense network')}. Epochs: {dense_epochs:,} for dense networks"
        + ("." if endless else f", at most {epochs:,} for trials."),
    ]
    if sweep.search.hours:
        lines.append(f"No trial starts after {sweep.search.hours:g} hours.")
    if sweep.confirm:
        lines.append(
            "Then every point on a method's frontier is run again with the fresh seeds "
            f"{', '.join(map(str, sweep.fresh_seeds))}."
        )
    return "\n".join(lines)


def _most_epochs(study: Study) -> int:
    """The epochs that one trial may train for, at the upper end of what is searched."""
    training, fine_tuning = study.options["training"], study.options["fine_tuning"]
    epochs = _largest({**training, **fine_tuning}["epochs"])
    trains_dense = any(variables({"backbone": study.options["backbone"], "training": training}))
    from_scratch = _largest(training["epochs"])  # and the fine-tuning's beside them
    if study.method in ("vanilla", "second_look", "rnp_groups"):
        epochs += from_scratch
    elif study.method in ("cascade", "cascade_random"):
        stages = study.options["methods"][study.method]["stages"]
        all_stages = stages.values if isinstance(stages, Range) else [stages]
        epochs += max(map(len, all_stages)) * (epochs + from_scratch)
    return epochs + from_scratch * trains_dense


def _largest(value: Any) -> int:
    if not isinstance(value, Range):
        return int(value)
    return max(int(one) for one in value.values if one is not ABSENT)


def _dense_lines(networks: Sequence[DenseNetwork]) -> Iterator[str]:
    """A line for each network: what distinguishes it from the others, and its epochs."""
    flat = [_flat(network) for network in networks]
    varied = [
        name
        for name in dict.fromkeys(name for options in flat for name in options)
        if len({options[name] for options in flat if name in options}) > 1
    ]
    for network, options in zip(networks, flat, strict=True):
        shown = [*varied, *({"weights"} - {*varied})]
        said = [f"{name}={options[name]}" for name in shown if name in options]
        epochs = _count(network.training.epochs, "epoch")
        yield f"  {' '.join([network.backbone, *said])}: {epochs}, seed {network.seed}"


def _flat(network: DenseNetwork) -> dict[str, str]:
    """A network's options as text, by dotted path; those of the backbone by their names alone."""
    distillation = network.training.distillation
    options = {
        **network.backbone_options,
        "teacher": distillation and distillation.teacher,
        **{f"data.{name}": value for name, value in network.data},
        **{f"training.{name}": value for name, value in network.training},
        **{f"distillation.{name}": value for name, value in distillation or ()},
    }
    del options["training.distillation"]
    return {name: plain_text(value) for name, value in options.items()}


def _study_lines(planned: Sequence[Study]) -> Iterator[str]:
    width = max(len(_trial_ids(study)) for study in planned[:MOST_LINES])
    for study in planned:
        ranges = [
            f"{path.removeprefix(f'methods.{study.method}.')}: {found}"
            for path, found in study.ranges.items()
        ]
        known = ranges and study.n_trials < math.inf
        tries = [_count(study.n_trials, "try", "tries")] if known else []
        yield f"  {_trial_ids(study):<{width}}  {', '.join(tries + ranges)}".rstrip()


def _trial_ids(study: Study) -> str:
    first = f"{study.name}-000"
    if study.n_trials == math.inf:
        return f"{first} and on"
    return first if study.n_trials == 1 else f"{first} to -{study.n_trials - 1:03d}"


def _cut(lines: Iterator[str]) -> list[str]:
    shown = list(islice(lines, MOST_LINES))
    left = sum(1 for _ in lines)
    return [*shown, f"  ... and {left:,} more"] if left else shown


def _count(number: float, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
