"""repro-image diff."""

import sys
from typing import TYPE_CHECKING

import click

from repro_image.cli import App

if TYPE_CHECKING:
    from repro_image.core.image_diff import ImageDifference


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--ignore",
    metavar="PATTERN",
    multiple=True,
    help="Leave out what is at these paths, as `diff` prints them; `*` goes across slashes. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def diff(app: App, a: str, b: str, ignore: tuple[str, ...], as_json: bool) -> None:
    """Tell what differs between images A and B, why, and what to change so that they come out equal.

    A and B are images of the engine (the tag of an epoch, a reference, a digest) or OCI layouts (a folder or
    a tar file; PATH@DIGEST where it holds several). Compared are the config digest, then the digests of the
    uncompressed layers, then the files that a container sees. Exits with 0 when they are equal, else with 10.

    \b
    Example:
      repro-image diff e0001-1a2b3c4d e0002-5e6f7a8b
      repro-image diff image.tar registry.example/app:new --ignore '/usr/share/doc/*' --ignore config.created
    """
    from repro_image.cli.screen import Screen
    from repro_image.reports.image_diff import diff_report, difference_json
    from repro_image.steps.diff import diff_images, find_image

    with Screen() as screen:
        found = [find_image(text, engine=lambda: app.engine, project=lambda: app.project) for text in (a, b)]
        difference = diff_images(*found, ignore=ignore, reporter=screen)
    for piece in difference_json(difference) if as_json else (diff_report(difference),):
        click.echo(piece, nl=False)
    if not as_json and _has_contents(difference):
        click.echo(_look_inside(a, b), nl=False)
    sys.exit(difference.exit_code)


def _has_contents(difference: "ImageDifference") -> bool:
    return any(each.a and each.b and "sha256" in each.fields for each in difference.differences)


def _look_inside(a: str, b: str) -> str:
    """Return how to see what differs inside of files, where the program for that is installed."""
    import shlex
    import shutil
    from pathlib import Path

    if shutil.which("diffoscope") is None:
        return ""
    if Path(a).exists() and Path(b).exists():
        return f"\ninside of the files: {shlex.join(['diffoscope', a, b])}\n"
    return "\ninside of the files: docker save each of the two with --output, then diffoscope both archives\n"
