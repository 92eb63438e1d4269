"""How figures and errors are written for people: the progress display's and the reports' words."""

import math
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"  # noqa: RUF001 - a dash in a table


def millions(count: float) -> str:
    """7.90 M"""
    return f"{_three_figures(count / 1e6)} M" if math.isfinite(count) else MISSING


def percent(share: float) -> str:
    """29 %, and 0.4 % where whole percents would say nothing."""
    if not math.isfinite(share):
        return MISSING
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else f"{100 * share:.1g} %"


def accuracy(fraction: float) -> str:
    """0.912"""
    return f"{fraction:.3f}" if math.isfinite(fraction) else MISSING


def mean_and_deviation(mean: float, deviation: float) -> str:
    """0.912 ± 0.004, of accuracies; the deviation only where there are several seeds."""
    several = math.isfinite(mean) and math.isfinite(deviation)
    return f"{accuracy(mean)} ± {accuracy(deviation)}" if several else accuracy(mean)


def milliseconds(value: float) -> str:
    """1.53 ms"""
    return f"{_three_figures(value)} ms" if math.isfinite(value) else MISSING


def ratio(value: float) -> str:
    """0.62, of one time over another."""
    return f"{value:.2f}" if math.isfinite(value) else MISSING


def duration(seconds: float) -> str:
    """8 s, 3 min 20 s, 2 h 05 min"""
    if not math.isfinite(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def extent(values: Iterable[float]) -> str:
    """5, or 3 to 5; empty if there are none."""
    known = list(values)
    if not known:
        return ""
    return " to ".join(dict.fromkeys(f"{each:,}" for each in (min(known), max(known))))


def listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def without_password(url: str) -> str:
    """postgresql://user:***@host/database"""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)


def error_text(error: BaseException) -> str:
    """What went wrong on the first line, then the traceback."""
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"


def render(package: str, template: str, shown: Mapping[str, Any]) -> bytes:
    """A file made from a template of a package, in which HTML is escaped.

    Its filter `cell` is for Markdown: text stays inside its cell and is taken as it is written. Its
    filter `code` is for HTML: what stands in backticks is shown as code.
    """
    import jinja2  # not where a trial runs
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    special = re.compile(r"([\\`*<>|\[\]])")
    environment.filters["cell"] = lambda text: special.sub(r"\\\1", text.replace("\n", " "))
    quoted = re.compile(r"`([^`]+)`")
    environment.filters["code"] = lambda text: markupsafe.Markup(
        quoted.sub(r"<code>\1</code>", str(markupsafe.escape(text)))
    )
    return environment.get_template(template).render(shown).encode()


def _three_figures(value: float) -> str:
    """1.53, 15.3, 0.0153; from 100 on all that stand before the point."""
    return f"{value:,.0f}" if value == 0 or abs(value) >= 99.95 else f"{value:#.3g}"
