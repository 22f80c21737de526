"""repro-image verify."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro_image.cli import App
from repro_image.errors import ReportFormError

if TYPE_CHECKING:
    from repro_image.steps.verify import Verification

_FORMS = (".json", ".xml", ".md")


@click.command()
@click.argument("tag")
@click.option(
    "--rebuild", is_flag=True, help="Make the image again from the locks first; it must be the epoch's."
)
@click.option(
    "--record", is_flag=True, help="Where this machine's class has no golden yet, add one to the epoch."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What if: another setting. May repeat."
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What if: another model folder.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=1, show_default=True, help="Run the golden N times."
)
@click.option("--fail-fast", is_flag=True, help="Stop repeating at the first run that is no match.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a report; .json, .xml (JUnit) or .md decides its form. May repeat.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def verify(
    app: App,
    tag: str,
    rebuild: bool,
    record: bool,
    settings: tuple[str, ...],
    model: Path | None,
    repeat: int,
    fail_fast: bool,
    reports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Run the golden request of TAG again and compare with its epoch.

    TAG is an epoch's tag, a full reference, or an image digest. Exits with 0 for a match, 10 for a mismatch,
    11
    when the two sides are not comparable.

    \b
    Examples:
      repro-image verify e0001-1a2b3c4d
      repro-image verify e0001-1a2b3c4d --set dtype=float32     # what if?
    """
    from repro_image.cli.screen import Screen
    from repro_image.core.reference import parse_reference
    from repro_image.core.whatif import parse_what_if
    from repro_image.errors import RecordWhatIfError
    from repro_image.reports.json_report import json_report
    from repro_image.reports.text import text_report
    from repro_image.steps.verify import verify as verify_step

    reference = parse_reference(tag)
    what_if = parse_what_if(settings)
    if record and (not what_if.is_empty or model is not None):
        raise RecordWhatIfError
    for report in reports:
        if report.suffix not in _FORMS:
            raise ReportFormError(str(report), forms=_FORMS)
    with Screen() as screen:
        found = verify_step(
            app.project,
            reference,
            store=app.store,
            engine=app.engine,
            reporter=screen,
            now=lambda: datetime.now(UTC),
            what_if=what_if,
            model=model,
            repeat=repeat,
            fail_fast=fail_fast,
            rebuild=rebuild,
            record=record,
        )
    context = _context(found, settings, model)
    for report in reports:
        _write_report(report, found, context)
    if as_json:
        click.echo(json_report(found.comparison, context=context), nl=False)
    else:
        click.echo(text_report(found.comparison, context=context, colour=_is_coloured()), nl=False)
    sys.exit(found.comparison.exit_code)


def _is_coloured() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _context(found: "Verification", settings: tuple[str, ...], model: Path | None) -> dict[str, str]:
    """Return what was verified, in the order in which it is told."""
    epoch = found.epoch.epoch
    context = {
        "tag": found.reference,
        "epoch": f"{epoch.number} of {epoch.image_name}, recorded {epoch.recorded_at}",
        "image": found.image,
        "golden": f"{found.golden.golden} ({found.golden.tokens} tokens)",
        "class": found.golden.numeric_class[7:19],
        "runs": str(found.runs),
    }
    if settings:
        context["what if"] = ", ".join(settings)
    if model is not None:
        context["model"] = str(model)
    if found.recorded is not None:
        context["recorded"] = f"class {found.golden.numeric_class[7:19]} was added to the epoch"
    return context


def _write_report(path: Path, found: "Verification", context: dict[str, str]) -> None:
    from repro_image.adapters.files import write_text
    from repro_image.reports.json_report import json_report
    from repro_image.reports.junit import junit_report
    from repro_image.reports.markdown import markdown_report

    forms = dict(zip(_FORMS, (json_report, junit_report, markdown_report), strict=True))
    write_text(path, forms[path.suffix](found.comparison, context=context))
