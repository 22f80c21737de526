"""repro-image init."""

from pathlib import Path
from shlex import quote

import click

from repro_image.cli import print_json


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--image",
    type=click.Choice(["vllm-cpu", "vllm-cuda"]),
    default="vllm-cpu",
    show_default=True,
    help="The image that it starts with; vllm-cuda needs a GPU to record an epoch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def init(folder: Path, image: str, as_json: bool) -> None:
    """Lay out a project in DIR (default: here) with one image.

    `repro-image lock` and `repro-image build` accept it as it is. Nothing is ever overwritten.

    \b
    Examples:
      repro-image init my-images
      repro-image init my-images --image vllm-cuda
    """
    from repro_image.steps.init import lay_out_project

    written = lay_out_project(folder, image)
    if as_json:
        print_json({"folder": str(folder), "files": written})
        return
    for name in written:
        click.echo(str(folder / name))
    enter = "" if folder.resolve() == Path.cwd() else f"`cd {quote(str(folder))}`, "
    click.echo(f"next: {enter}`repro-image lock`, then `repro-image build`", err=True)
