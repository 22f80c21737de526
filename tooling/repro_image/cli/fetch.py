"""repro-image fetch."""

import click

from repro_image.cli import App, print_json


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def fetch(app: App, images: tuple[str, ...], as_json: bool) -> None:
    """Bring everything that the locks of images name into the store, by hash.

    A base of a registry comes into the engine's own store, by digest. What is gone from indexes and mirrors
    is taken from the image's mirror image, where the project has one (`repro-image mirror`).

    Afterwards `build` and `verify` work without a network. Interrupted downloads are resumed.

    \b
    Example:
      repro-image fetch vllm-cpu
    """
    from repro_image.cli.screen import Screen
    from repro_image.steps.fetch import fetch_image

    outcomes = []
    for name in app.images(images):
        with Screen() as screen:
            outcome = fetch_image(app.project, name, store=app.store, engine=app.engine, reporter=screen)
        outcomes.append(outcome)
        if not as_json:
            made = f"; made {' and '.join(outcome.made)}" if outcome.made else ""
            told = f"fetched {outcome.files} files, {outcome.size_bytes / 1e6:,.1f} MB{made}"
            click.echo(f"{name}  {told if outcome.files or outcome.made else 'everything is in the store'}")
    if as_json:
        rows = [
            {"image": o.image, "files": o.files, "size_bytes": o.size_bytes, "made": o.made} for o in outcomes
        ]
        print_json({"store": str(app.store.root), "images": rows})
