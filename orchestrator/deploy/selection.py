"""Selection of the network to ship: the report's, the best within limits, or one that is named.

Within a limit of multiplications it may be a cascade of the sweep's own networks.
"""

import math
from typing import NamedTuple

from orchestrator.analysis.answer import cascade_said, images
from orchestrator.analysis.cascade_decision import OwnCascades, compete, named_cascade
from orchestrator.analysis.cascades import OwnCascade
from orchestrator.analysis.contender import Contender, Limits, contender, contenders
from orchestrator.analysis.decision import cascade_command, decisions, headline_decisions
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, listed, millions, milliseconds, percent, ratio
from orchestrator.run_folder.cascade_tests import CascadeTest


class Choice(NamedTuple):
    """A network that was chosen, and why."""

    best: Contender
    """The best network alone."""
    why: str
    cascade: OwnCascade | None = None
    """What was chosen in its place."""
    test: CascadeTest | None = None
    """What the cascade came to on test images."""

    @property
    def trial_id(self) -> str:
        """The search's trial; of a cascade those of its networks."""
        return self.best.trial_id if self.cascade is None else self.cascade.trial_id

    @property
    def network(self) -> str:
        """The trial_id whose network is shipped; of a cascade that of the last look."""
        return self.best.network if self.cascade is None else self.cascade.networks[-1]


def choose(
    result: SweepResult,
    limits: Limits = Limits(),  # noqa: B008 - a tuple
    method: str | None = None,
    trial_id: str | None = None,
) -> Choice:
    """The network that the report begins with, or the best of those that are asked for.

    Within limits it is the most accurate, as `contenders` offers them; under `min_accuracy` alone
    the cheapest.

    Args:
        method: the one method whose networks count.
        trial_id: the one trial that counts; or several with commas between them, whose cascade
            counts, in this order. Its thresholds are then the best within `multiplications`.

    Raises:
        ValueError: if there is none; says how near the nearest ones come.
    """
    if trial_id is not None and "," in trial_id:
        most = math.inf if limits.multiplications is None else limits.multiplications
        own = named_cascade(result, [each.strip() for each in trial_id.split(",")], most)
        why = f"asked for by name; {_cascade_figures(own)}."
        return Choice(contender(result.trials, own.alone), why, own)
    if trial_id is not None:
        best = contender(result.trials, trial_id)
        return Choice(best, f"asked for by name; {_figures(best)}.")
    if limits == Limits() and method is None:
        return _headline(result)
    trials = result.trials
    if method is not None:
        trials = trials[trials["method"] == method]
        if trials.empty:
            known = listed(sorted(set(result.trials["method"])))
            raise ValueError(f"No trial is of {method!r}. The sweep's methods: {known}.")
    within = contenders(trials, limits)
    if not within:
        raise ValueError(_nothing_within(contenders(trials, Limits()), limits))
    _of_one_data_set(within)
    best, *others = within
    cascades = OwnCascades(result)
    if method is None and (ahead := cascades.ahead(best.cell, limits)):
        own = ahead.cascade
        why = f"a cascade of these networks is the most accurate within {_said(limits)}; "
        why += f"{_cascade_figures(own)}."
        return Choice(best, f"{why} Next: {best.trial_id}, {_figures(best)}.", own)
    aim = "the fewest multiplications" if limits.ask_for_cheapest else "the most accurate"
    of_method = f" of {method}" if method else ""
    why = f"{aim}{of_method} within {_said(limits)}; {_figures(best)}."
    if others:
        why += f" Next: {others[0].trial_id}, {_figures(others[0])}."
    if method is None and not compete(limits) and cascades.groups:
        why += " Cascades of its networks compete where --max-multiplications is the only limit."
    return Choice(best, why)


def _headline(result: SweepResult) -> Choice:
    first = headline_decisions(decisions(result), result.sweep)
    if not first:
        raise ValueError(_nothing_within(contenders(result.trials, Limits()), Limits(share=0.75)))
    _of_one_data_set([each.best for each in first])
    decision = max(first, key=lambda each: each.best.accuracy)
    budget = percent(decision.budget)
    why = (
        f"the most accurate within {budget} of the dense multiplications, as the report has it; "
        f"{_figures(decision.best)}."
    )
    if decision.cascade is not None:
        command = cascade_command(result, decision.cascade.cascade)
        why += f" {cascade_said(decision.cascade)} Confirm and export it: {command}"
    return Choice(decision.best, why)


def _of_one_data_set(found: list[Contender]) -> None:
    """
    Raises:
        ValueError: if networks are of several data sets, which do not compete.
    """
    best = {each.rows["dataset"].iloc[0]: each.trial_id for each in reversed(found)}
    if len(best) > 1:
        said = listed(f"{trial_id} on {data}" for data, trial_id in best.items())
        raise ValueError(
            f"The sweep has several data sets, whose networks do not compare. The best of each: "
            f"{said}. Name one with --trial."
        )


def _nothing_within(found: list[Contender], limits: Limits) -> str:
    if not found:
        return "No trial completed, so there is nothing to choose from."
    lowest = {
        name: min((v for each in found if (v := each.mean(name)) == v), default=float("nan"))
        for name in ("multiplications", "latency_ms", "latency_ratio")
    }
    return (
        f"None of {len(found)} methods' best networks is within {_said(limits)}. The cheapest of "
        f"them has {millions(lowest['multiplications'])} multiplications, the fastest takes "
        f"{milliseconds(lowest['latency_ms'])}, {ratio(lowest['latency_ratio'])} times the "
        f"dense latency, the most accurate reaches {accuracy(found[0].accuracy)}: relax a limit."
    )


def _figures(best: Contender) -> str:
    """accuracy 0.850 ± 0.010 on test images, ..., 50.0 M multiplications (50 % of dense), ..."""
    seeds = f"confirmed with {best.n} fresh seed{'s' if best.n > 1 else ''}"
    if not best.confirmed:
        seeds = "not confirmed" if best.n == 1 else f"mean of {best.n} seeds, not confirmed"
    return (
        f"accuracy {best.written('accuracy')} on {images(best)} images, {seeds}, "
        f"{millions(best.mean('multiplications'))} multiplications "
        f"({percent(best.mean('share'))} of dense), {milliseconds(best.mean('latency_ms'))} for "
        f"one image ({ratio(best.mean('latency_ratio'))} times the dense latency)"
    )


def _cascade_figures(own: OwnCascade) -> str:
    """accuracy 0.912 on 1,250 validation images that chose nothing, 1.5 points ahead of ..."""
    side = "ahead of" if own.ahead >= 0 else "behind"
    return (
        f"accuracy {accuracy(own.accuracy)} on {own.images:,} validation images that chose "
        f"nothing, {abs(own.ahead):.1f} points {side} {own.alone}, the best of the networks alone "
        f"there (standard error {own.error:.1f}), {millions(own.multiplications)} multiplications "
        f"({percent(own.share)} of dense) against {millions(own.alone_multiplications)}"
    )


def _said(limits: Limits) -> str:
    given = []
    if limits.share is not None:
        given.append(f"{percent(limits.share)} of the dense multiplications")
    if limits.multiplications is not None:
        given.append(f"{millions(limits.multiplications)} multiplications")
    if limits.latency_ms is not None:
        given.append(milliseconds(limits.latency_ms))
    if limits.latency_ratio is not None:
        given.append(f"{ratio(limits.latency_ratio)} times the dense latency")
    if limits.min_accuracy is not None:
        given.append(f"an accuracy of {accuracy(limits.min_accuracy)} or more")
    return " and ".join(given) or "no limits"
