"""repro-image verify."""

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro_image.cli import App
from repro_image.errors import ReportFormError, UsageError

if TYPE_CHECKING:
    from repro_image.steps.verify import Verification

_FORMS = (".json", ".xml", ".md", ".html")


def _share(_ctx: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Return the probability that ``0.5%`` or ``0.005`` says."""
    if value is None:
        return None
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no number") from error
    if not 0 < share < 1:
        raise click.BadParameter(f"{value} is not between 0% and 100%")
    return share


def _streams(_ctx: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Return the numbers of ``0,2,8``, each once and ascending."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(re.fullmatch(r"[0-9]{1,2}", part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers from 0 to 99")
    return tuple(sorted({int(part) for part in parts}))


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
@click.option("--fail-fast", is_flag=True, help="Stop at the first difference, within a run too.")
@click.option(
    "--across", is_flag=True, help="Judge another numeric class too: drift or mismatch, by replay alone."
)
@click.option(
    "--must-see",
    callback=_share,
    metavar="P",
    help="Not comparable unless a per-token change of P, such as 0.5%, is seen with 99 %.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a report; .json, .xml (JUnit), .md or (without --serve) .html decides its form. May repeat.",
)
@click.option("--serve", is_flag=True, help="Ask a vLLM server in the image, beside other requests.")
@click.option(
    "--streams",
    callback=_streams,
    metavar="N,N…",
    help="With --serve: how many streams of other requests, one load each; 0,2,8 by default.",
)
@click.option("--strict", is_flag=True, help="With --serve: any difference is a mismatch.")
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
    across: bool,
    must_see: float | None,
    reports: tuple[Path, ...],
    serve: bool,
    streams: tuple[int, ...] | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Run the golden request of TAG again and compare with its epoch.

    TAG is an epoch's tag, a full reference, or an image digest. Exits with 0 for a match, 10 for a
    mismatch, 11 when the two sides are not comparable, 12 for drift: another numeric class, no further away
    than order of work and rounding put it.

    \b
    Examples:
      repro-image verify e0001-1a2b3c4d
      repro-image verify e0001-1a2b3c4d --set dtype=float32     # what if?
      repro-image verify e0001-1a2b3c4d --across                # on another kind of machine
      repro-image verify e0001-1a2b3c4d --serve                 # over HTTP, beside other requests
    """
    from repro_image.cli.screen import Screen, is_coloured
    from repro_image.cli.verify_serve import SERVE_FORMS, serve_and_exit
    from repro_image.core.reference import parse_reference
    from repro_image.core.whatif import parse_what_if
    from repro_image.errors import RecordWhatIfError
    from repro_image.reports.json_report import json_report
    from repro_image.reports.text import text_report
    from repro_image.steps.verify import verify as verify_step

    forms = SERVE_FORMS if serve else _FORMS
    for report in reports:
        if report.suffix not in forms:
            raise ReportFormError(str(report), forms=forms)
    reference = parse_reference(tag)
    what_if = parse_what_if(settings)
    if record and (not what_if.is_empty or model is not None):
        raise RecordWhatIfError
    if serve:
        others = {"record": record, "rebuild": rebuild, "across": across, "fail-fast": fail_fast}
        others |= {"repeat": repeat > 1, "must-see": must_see is not None}
        _refuse_beside_serve([f"--{name}" for name, given in others.items() if given])
        serve_and_exit(
            app,
            reference,
            settings,
            model,
            streams=streams,
            strict=strict,
            reports=reports,
            as_json=as_json,
        )
    if streams is not None or strict:
        raise UsageError("--streams and --strict say how to --serve", where="command line", fix="add --serve")
    if record and across:
        raise UsageError(
            "--record does not go with --across: one adds this machine's class, the other judges it",
            where="command line",
            fix="leave out one of the two",
        )
    if record and (repeat > 1 or fail_fast):
        raise UsageError(
            "--record does not go with --repeat or --fail-fast: a class is recorded from whole runs",
            where="command line",
            fix="record first, then verify again with them",
        )
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
            across=across,
            must_see=must_see,
            rebuild=rebuild,
            record=record,
        )
    context = _context(found, settings, model)
    for report in reports:
        _write_report(report, found, context)
    if as_json:
        click.echo(json_report(found.comparison, context=context), nl=False)
    else:
        click.echo(text_report(found.comparison, context=context, colour=is_coloured()), nl=False)
    sys.exit(found.comparison.exit_code)


def _refuse_beside_serve(options: list[str]) -> None:
    if options:
        raise UsageError(
            f"--serve does not go with {', '.join(options)}: it measures a server and records nothing",
            where="command line",
            fix="leave out one of them",
        )


def _context(found: "Verification", settings: tuple[str, ...], model: Path | None) -> dict[str, str]:
    """Return what was verified, in the order in which it is told."""
    epoch = found.epoch.epoch
    context = {
        "tag": found.reference,
        "epoch": f"{epoch.number} of {epoch.image_name}, recorded {epoch.recorded_at}",
        "image": found.image,
        "golden": f"{found.golden.golden} ({found.golden.tokens} tokens)",
        "class": found.golden.numeric_class[7:19],
        "recorded on": found.golden.fingerprint.numeric_class.describe(),
        "runs": str(found.runs),
        "verified": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    if found.comparison.class_differences and found.numeric_class is not None:
        context["ran in" if found.runs else "this machine"] = found.numeric_class.describe()
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

    forms = {".json": json_report, ".xml": junit_report, ".md": markdown_report}
    if path.suffix == ".html":
        text = _html_report(found, context)
    else:
        text = forms[path.suffix](found.comparison, context=context)
    write_text(path, text)


def _html_report(found: "Verification", context: dict[str, str]) -> str:
    from repro_image.core.transcript import transcripts
    from repro_image.reports.html import html_report

    seen = transcripts(*found.sides, found.comparison.prompts) if found.sides else None
    return html_report(found.comparison, context=context, seen=seen, floor=found.golden.noise_floor)
