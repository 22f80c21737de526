"""repro-image lock."""

import click

from repro_image.cli import App, print_json


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--upgrade", is_flag=True, help="Take the newest of everything that the requirements allow.")
@click.option(
    "-P",
    "--upgrade-package",
    "packages",
    multiple=True,
    metavar="NAME",
    help="Let one package move. May repeat.",
)
@click.option("--check", is_flag=True, help="Write nothing, ask no network; exit 3 when a lock is stale.")
@click.option(
    "--resolver", type=click.Choice(["pip-tools", "uv"]), help="By default the lock's own, else pip-tools."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def lock(
    app: App,
    images: tuple[str, ...],
    upgrade: bool,
    packages: tuple[str, ...],
    check: bool,
    resolver: str | None,
    as_json: bool,
) -> None:
    """Resolve the requirements and the base of images and write their locks.

    Only locks whose inputs changed are made again; what is locked stays unless you ask for an upgrade.

    \b
    Examples:
      repro-image lock vllm-cpu
      repro-image lock vllm-cpu -P transformers
      repro-image lock --check
    """
    names = app.images(images)
    if check:
        _check(app, names, as_json=as_json)
        return
    from packaging.utils import canonicalize_name

    from repro_image.cli.screen import Screen
    from repro_image.steps.lock import lock_image

    outcomes = []
    for name in names:
        with Screen() as screen:
            outcome = lock_image(
                app.project,
                name,
                store=app.store,
                engine=app.engine,
                reporter=screen,
                resolver=resolver,
                upgrade=upgrade,
                upgrade_packages=tuple(canonicalize_name(package) for package in packages),
            )
        outcomes.append(outcome)
        if not as_json:
            click.echo(f"locks/{name}  {', '.join(outcome.changed) or 'nothing changed'}")
    if as_json:
        print_json([{"image": outcome.image, "changed": outcome.changed} for outcome in outcomes])


def _check(app: App, names: tuple[str, ...], *, as_json: bool) -> None:
    """Print what is stale, and raise the first fault."""
    from repro_image.steps.fresh import check_locks

    faults = {name: check_locks(app.project, name) for name in names}
    if as_json:
        print_json(
            [
                {
                    "image": name,
                    "fresh": not found,
                    "faults": [{"what": f.what, "where": f.where, "fix": f.fix} for f in found],
                }
                for name, found in faults.items()
            ]
        )
    else:
        for name, found in faults.items():
            for fault in found:
                click.echo(f"{fault.where}  {fault.what}")
            if not found:
                click.echo(f"locks/{name}  up to date")
    for found in faults.values():
        for fault in found:
            raise fault
