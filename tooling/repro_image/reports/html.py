"""Comparison -> one HTML page that needs no network and runs no script: what an auditor is shown."""

from collections.abc import Mapping
from importlib.resources import files

import jinja2
from markupsafe import Markup

from repro_image import __version__
from repro_image.core.comparison import Comparison, Verdict
from repro_image.core.epoch import NoiseFloor
from repro_image.core.transcript import Transcripts
from repro_image.reports.advice import advice
from repro_image.reports.html_measures import histograms, margin_rows, rate_rows
from repro_image.reports.html_text import coded, shown
from repro_image.reports.html_view import first_view, level_cards, prompt_rows, texts
from repro_image.reports.phrases import LEVEL_NAMES, across_tests, floor_text, percent, power_text, side_texts

# Context that says that the subject was changed on purpose.
_WHAT_IF = ("what if", "model")
# In a circle: a tick, a cross, a question, a wave; the verdict stands beside it in words.
_ICONS = {
    Verdict.MATCH: "M7 12.5l3.5 3.5L17 9",
    Verdict.MISMATCH: "M8.5 8.5l7 7M15.5 8.5l-7 7",
    Verdict.NOT_COMPARABLE: "M9.3 9.4a2.7 2.7 0 1 1 3.9 2.5c-.8.4-1.2 1-1.2 1.9M12 16.8v.1",
    Verdict.DRIFT: "M6.5 12c1.8-3 3.7-3 5.5 0s3.7 3 5.5 0",
}


def html_report(
    comparison: Comparison,
    *,
    context: Mapping[str, str],
    seen: Transcripts | None = None,
    floor: NoiseFloor | None = None,
) -> str:
    """Return the page; under 5 MB whatever was compared.

    seen:  texts and margins of the two goldens; None where nothing ran.
    floor: the epoch's noise floor, where it has one.
    """
    what_if = [context[name] for name in _WHAT_IF if name in context]
    rows, left_out = prompt_rows(comparison.prompts)
    rates, end = rate_rows(comparison, floor)
    return _template().render(
        verdict=str(comparison.verdict),
        kind=str(comparison.verdict).replace(" ", "-"),
        reason=str(comparison.reason or ""),
        icon=_ICONS[comparison.verdict],
        detail=comparison.detail,
        part=comparison.part,
        what_if=what_if,
        context=list(context.items()),
        levels=level_cards(comparison.levels),
        level_names=LEVEL_NAMES,
        advice=[coded(sentence) for sentence in advice(comparison, is_what_if=bool(what_if))],
        sides=side_texts(comparison),
        first=first_view(comparison.first),
        rates=rates,
        rates_end=percent(end),
        tests=across_tests(comparison.across),
        histograms=histograms(comparison.differences),
        margins=margin_rows(seen.margins if seen else ()),
        power=power_text(comparison.visible) if comparison.visible else "",
        floor=floor_text(floor) if floor else "",
        rows=rows,
        rows_left_out=left_out,
        texts=texts(seen.prompts if seen else ()),
        texts_left_out=seen.left_out if seen else 0,
        version=__version__,
    )


def _template() -> jinja2.Template:
    data = files("repro_image") / "data"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = shown
    # Our own file, and the only text that is placed as it is.
    style = Markup((data / "report.css").read_text(encoding="utf-8"))  # noqa: S704
    environment.globals["style"] = style
    return environment.from_string((data / "report.html.j2").read_text(encoding="utf-8"))
