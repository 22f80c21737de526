"""repro-image render."""

import click

from repro_image.cli import App, print_json
from repro_image.errors import StaleLockError


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--check", is_flag=True, help="Write nothing; exit 3 when a rendered file is not up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def render(app: App, images: tuple[str, ...], check: bool, as_json: bool) -> None:
    """Write locks/<image>/Dockerfile from the image's template and locks.

    The same template and locks give the same bytes on every machine.

    \b
    Example:
      repro-image render vllm-cpu
    """
    from repro_image.adapters.files import DOCKERFILE
    from repro_image.steps.render import render_image

    rows = []
    for name in app.images(images):
        text = render_image(app.project, name, app.project.image(name), app.project.locks(name))
        path = f"locks/{name}/{DOCKERFILE}"
        is_changed = text != app.project.dockerfile(name)
        if check and is_changed:
            raise StaleLockError(path, reason="rendering gives another text", image=name, command="render")
        if not check:
            app.project.write_lock(name, DOCKERFILE, text)
        rows.append({"image": name, "path": path, "changed": is_changed})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['path']}  {'written' if row['changed'] else 'up to date'}")
