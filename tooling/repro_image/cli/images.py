"""repro-image images: what images are made of."""

import click

from repro_image.cli import App, print_json


@click.group()
def images() -> None:
    """See what an image is made of, and what a move to it costs.

    \b
    repro-image images show e0002-5e6f7a8b
    repro-image images show e0002-5e6f7a8b --from e0001-1a2b3c4d
    """


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
        contents = show_image(image, found(origin) if origin else None, reporter=screen)
    if as_json:
        print_json(contents)
    else:
        click.echo(contents_report(contents), nl=False)
