"""repro-image verify --serve."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from repro_image.cli import App
from repro_image.cli.screen import Screen, is_coloured

if TYPE_CHECKING:
    from repro_image.core.comparison import Comparison
    from repro_image.core.reference import ImageReference
    from repro_image.core.serving import Serving
    from repro_image.steps.serve import Served

SERVE_FORMS = (".json", ".xml", ".md")


def serve_and_exit(
    app: App,
    reference: "ImageReference",
    settings: tuple[str, ...],
    model: Path | None,
    *,
    streams: tuple[int, ...] | None,
    strict: bool,
    reports: tuple[Path, ...],
    as_json: bool,
) -> NoReturn:
    """Serve the epoch's model, tell how far its answers agree, and exit."""
    from repro_image.adapters.files import write_text
    from repro_image.core.serving import STREAMS, Serving
    from repro_image.core.whatif import parse_what_if
    from repro_image.reports.serving import serving_text
    from repro_image.reports.text import text_report
    from repro_image.steps.serve import serve

    with Screen() as screen:
        found = serve(
            app.project,
            reference,
            store=app.store,
            engine=app.engine,
            reporter=screen,
            what_if=parse_what_if(settings),
            model=model,
            loads=streams or STREAMS,
            strict=strict,
        )
    context = _context(found, settings, model)
    outcome, colour = found.outcome, is_coloured()
    for path in reports:
        write_text(path, _report(path.suffix, outcome, context))
    if as_json:
        text = _report(".json", outcome, context)
    elif isinstance(outcome, Serving):
        text = serving_text(outcome, context=context, colour=colour)
    else:
        text = text_report(outcome, context=context, colour=colour)
    click.echo(text, nl=False)
    sys.exit(outcome.exit_code)


def _report(form: str, outcome: "Serving | Comparison", context: dict[str, str]) -> str:
    """Return the report in one of SERVE_FORMS."""
    from repro_image.core.serving import Serving
    from repro_image.reports.json_report import json_report
    from repro_image.reports.junit import junit_report
    from repro_image.reports.markdown import markdown_report
    from repro_image.reports.serving import serving_json, serving_junit, serving_markdown

    if isinstance(outcome, Serving):
        served = {".json": serving_json, ".xml": serving_junit, ".md": serving_markdown}
        return served[form](outcome, context=context)
    compared = {".json": json_report, ".xml": junit_report, ".md": markdown_report}
    return compared[form](outcome, context=context)


def _context(found: "Served", settings: tuple[str, ...], model: Path | None) -> dict[str, str]:
    """Return what was served, in the order in which it is told."""
    from repro_image.core.serving import Serving

    epoch = found.epoch.epoch
    context = {
        "tag": found.reference,
        "epoch": f"{epoch.number} of {epoch.image_name}, recorded {epoch.recorded_at}",
        "image": epoch.image.config,
    }
    if isinstance(found.outcome, Serving):
        asked = f"{found.outcome.prompts} prompts, {found.outcome.tokens} tokens"
        context["server"] = f"vllm serve, up to {found.max_seqs} requests in a batch, no network"
        context["threads"] = str(found.threads)
        context["against"] = f"{found.against}: {asked}"
    if settings:
        context["what if"] = ", ".join(settings)
    if model is not None:
        context["model"] = str(model)
    return context
