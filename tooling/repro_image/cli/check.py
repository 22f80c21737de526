"""repro-image check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro_image.cli import App, print_json
from repro_image.errors import ConstraintError

if TYPE_CHECKING:
    from repro_image.steps.check import CheckedImage


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
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
def check(app: App, images: tuple[str, ...], host_file: Path | None, strict: bool, as_json: bool) -> None:
    """Hold the constraints of IMAGE (default: all) against its locks and this machine.

    Exits with 4 when a constraint is broken.

    \b
    Examples:
      repro-image check vllm-cpu
      repro-image check --host fleet/node-7.json --strict
    """
    from repro_image.adapters.host import read_host, read_host_file
    from repro_image.core.constraints import Level
    from repro_image.steps.check import check_images

    host = read_host() if host_file is None else read_host_file(host_file)
    checked = check_images(app.project, app.images(images), host=host, strict=strict)
    if as_json:
        print_json(checked)
    else:
        for image in checked:
            click.echo("\n".join(_lines(image)))
    if any(finding.level is Level.ERROR for image in checked for finding in image.findings):
        sys.exit(ConstraintError.exit_code)


def _lines(checked: "CheckedImage") -> list[str]:
    from repro_image.reports.escape import visible

    width = max(len(finding.rule) for finding in checked.findings)
    lines = [checked.image]
    for finding in checked.findings:
        told = f"found {finding.found}; needed {finding.needed}"
        lines.append(visible(f"  {finding.level:<7}  {finding.rule:<{width}}  {told}"))
        if finding.fix:
            lines.append(visible(f"  {'':<7}  {'':<{width}}  fix: {finding.fix}"))
    return lines
