"""repro-image check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro_image.cli import App, print_json
from repro_image.errors import ConstraintError, NoProjectError

if TYPE_CHECKING:
    from repro_image.steps.check import CheckedImage


@click.command()
@click.argument("names", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "--host",
    "host_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Check the machine that `fingerprint --json` described, instead of this one.",
)
@click.option("--strict", is_flag=True, help="What is unknown is an error, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def check(app: App, names: tuple[str, ...], host_file: Path | None, strict: bool, as_json: bool) -> None:
    """Hold the constraints of IMAGE (default: all) against its locks and this machine.

    IMAGE is one of the project's, or the reference of any image on this machine that repro-image built: its
    labels say what it demands, and no project is needed. Exits with 4 when a constraint is broken.

    \b
    Examples:
      repro-image check vllm-cpu
      repro-image check --host fleet/node-7.json --strict
      repro-image check ghcr.io/team/vllm-cuda:e0003-1a2b3c4d
    """
    from repro_image.adapters.host import read_host, read_host_file
    from repro_image.core.finding import errors_of
    from repro_image.steps.check import check_images, check_reference

    host = read_host() if host_file is None else read_host_file(host_file)
    references = [name for name in names if _is_reference(app, name)]
    images = tuple(name for name in names if name not in references)
    checked = [check_reference(name, engine=app.engine, host=host, strict=strict) for name in references]
    if images or not references:
        checked += check_images(app.project, app.images(images), host=host, strict=strict)
    if as_json:
        print_json(checked)
    else:
        for image in checked:
            click.echo("\n".join(_lines(image)))
    if any(errors_of(image.findings) for image in checked):
        sys.exit(ConstraintError.exit_code)


def _is_reference(app: App, name: str) -> bool:
    """Return whether ``name`` is an image of the engine: no folder below images/ can have such a name.

    Raises: InvalidReferenceError.
    """
    from repro_image.core.reference import parse_reference

    if not any(mark in name for mark in ":@/") and _has_project(app):
        return False
    parse_reference(name)
    return True


def _has_project(app: App) -> bool:
    try:
        return bool(app.project)
    except NoProjectError:
        return False


def _lines(checked: "CheckedImage") -> list[str]:
    from repro_image.reports.escape import visible

    width = max(len(finding.rule) for finding in checked.findings)
    lines = [checked.image]
    for finding in checked.findings:
        told = f"found {finding.found}; needed {finding.needed}"
        lines.append(visible(f"  {finding.level:<7}  {finding.rule:<{width}}  {told}"))
        if finding.fix:
            more = (f"by {finding.source}", f"fix: {finding.fix}")
            lines += [visible(f"  {'':<7}  {'':<{width}}  {text}") for text in more]
    return lines
