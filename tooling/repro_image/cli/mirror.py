"""repro-image mirror: everything that locks need, in a registry."""

from typing import TYPE_CHECKING

import click

from repro_image.cli import App, print_json

if TYPE_CHECKING:
    from repro_image.steps.mirror import Mirrored


@click.group()
def mirror() -> None:
    """Keep all that the locks of an image need in a registry, and take it back from there.

    Wheels, packages, base and model of one image are one artifact there, REFERENCE: by default
    `<repository>/<image>-mirror` with the repository of [tool.repro-image], which `fetch` and `build` also
    look into for what is gone elsewhere.

    \b
    repro-image mirror push vllm-cpu
    repro-image mirror pull vllm-cpu
    """


@mirror.command()
@click.argument("image")
@click.argument("reference", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def push(app: App, image: str, reference: str | None, as_json: bool) -> None:
    """Send what the locks of IMAGE name to a registry; what it has is not sent.

    \b
    Examples:
      repro-image mirror push vllm-cpu
      repro-image mirror push vllm-cpu ghcr.io/team/mirror:2026-11
    """
    from repro_image.cli.screen import Screen
    from repro_image.steps.mirror import push_mirror

    app.images((image,))
    with Screen() as screen:
        done = push_mirror(
            app.project,
            image,
            _checked(reference),
            store=app.store,
            engine=app.engine,
            reporter=screen,
        )
    _tell(done, "sent", as_json)


@mirror.command()
@click.argument("image")
@click.argument("reference", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def pull(app: App, image: str, reference: str | None, as_json: bool) -> None:
    """Fill the store with what the locks of IMAGE name; each file is proved by its lock.

    Afterwards `build` and `verify --rebuild` need no package index and no mirror of a distribution.
    Interrupted downloads are resumed.

    \b
    Example:
      repro-image mirror pull vllm-cpu
    """
    from repro_image.cli.screen import Screen
    from repro_image.steps.mirror import pull_mirror

    app.images((image,))
    with Screen() as screen:
        done = pull_mirror(
            app.project,
            image,
            _checked(reference),
            store=app.store,
            engine=app.engine,
            reporter=screen,
        )
    _tell(done, "fetched", as_json)


def _checked(reference: str | None) -> str | None:
    """Return the reference. Raises: InvalidReferenceError unless it is a registry's repository and tag."""
    from repro_image.core.reference import is_tagged_image
    from repro_image.errors import InvalidReferenceError

    if reference is not None and not is_tagged_image(reference):
        raise InvalidReferenceError(reference)
    return reference


def _tell(done: "Mirrored", verb: str, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        moved = f"{verb} {done.moved} of {done.files} files, {done.moved_bytes / 1e6:,.1f} MB"
        click.echo(f"{done.reference}  {moved}")
