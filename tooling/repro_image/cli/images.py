"""repro-image images: what images are made of."""

from pathlib import Path

import click

from repro_image import __version__
from repro_image.cli import App, print_json


@click.group()
def images() -> None:
    """See what an image is made of, and what a move to it costs.

    \b
    repro-image images show e0002-5e6f7a8b
    repro-image images show e0002-5e6f7a8b --from e0001-1a2b3c4d
    repro-image images sbom vllm-cpu --format spdx
    """


@images.command()
@click.argument("image")
@click.option(
    "--format",
    "form",
    type=click.Choice(("cyclonedx", "spdx")),
    default="cyclonedx",
    show_default=True,
    help="CycloneDX 1.6 or SPDX 2.3, as JSON.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file instead of standard output.",
)
@click.option("--json", "_as_json", is_flag=True, help="As for every command; the bill always is JSON.")
@click.pass_obj
def sbom(app: App, image: str, form: str, output: Path | None, _as_json: bool) -> None:
    """Tell what IMAGE is made of: names, versions, hashes, licences, what needs what.

    By its locks and the packages' own words. Nothing is scanned and nothing guessed: a licence that a package
    does not state is not stated here. Equal locks give equal bytes. The packages must be in the store:
    `repro-image fetch` brings them.

    \b
    Example:
      repro-image images sbom vllm-cpu --format spdx --output bill.spdx.json
    """
    from repro_image.adapters.files import write_text
    from repro_image.cli.screen import Screen
    from repro_image.core.cyclonedx import cyclonedx_json
    from repro_image.core.spdx import spdx_json
    from repro_image.steps.sbom import bill_of

    (name,) = app.images((image,))
    with Screen() as screen:
        bill = bill_of(app.project, name, store=app.store, reporter=screen)
    text = (cyclonedx_json if form == "cyclonedx" else spdx_json)(bill, version=__version__)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)


@images.command()
@click.argument("reference", metavar="TAG")
@click.option("--from", "origin", metavar="OTHER", help="Tell also what a machine that has OTHER downloads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def show(app: App, reference: str, origin: str | None, as_json: bool) -> None:
    """Show the layers of TAG: sizes, files, and the Python and Debian packages that each one brings.

    TAG and OTHER are images of the engine or OCI layouts, as for `repro-image diff`.

    \b
    Example:
      repro-image images show e0002-5e6f7a8b --from e0001-1a2b3c4d
    """
    from repro_image.cli.screen import Screen
    from repro_image.reports.image_contents import contents_report
    from repro_image.steps.diff import FoundImage, find_image
    from repro_image.steps.images import show_image

    def found(text: str) -> FoundImage:
        return find_image(text, engine=lambda: app.engine, project=lambda: app.project)

    with Screen() as screen:
        image = found(reference)
        contents = show_image(
            image, found(origin) if origin else None, project=lambda: app.project, reporter=screen
        )
    if as_json:
        print_json(contents)
    else:
        click.echo(contents_report(contents), nl=False)
