"""repro-image doctor."""

import sys
from pathlib import Path

import click

from repro_image.cli import App, default_store, print_json
from repro_image.errors import NoProjectError, WorldError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def doctor(app: App, as_json: bool) -> None:
    """Say what this machine has, what is needed, and how to fix what is missing.

    Works outside of a project, too. Exits with 5 when something that is needed is missing.

    \b
    Example:
      repro-image doctor
    """
    from repro_image.adapters.host import read_host
    from repro_image.reports.escape import visible
    from repro_image.steps.doctor import State, examine

    rows = examine(app.engine, read_host(), store=_store_folder(app))
    if as_json:
        print_json(rows)
    else:
        width = max(len(row.what) for row in rows)
        for row in rows:
            needed = f" (needed: {row.needed})" if row.needed else ""
            click.echo(visible(f"{row.state:<7}  {row.what:<{width}}  {row.found}{needed}"))
            if row.fix:
                click.echo(visible(f"{'':<7}  {'':<{width}}  fix: {row.fix}"))
    if any(row.state is State.BAD for row in rows):
        sys.exit(WorldError.exit_code)


def _store_folder(app: App) -> Path:
    try:
        return app.store.root
    except NoProjectError:
        return default_store()
