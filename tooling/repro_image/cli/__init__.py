"""The command line: parse, call one step, print, exit. The only place that catches ReproImageError."""

import errno
import io
import os
import signal
import sys
from functools import cached_property
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from repro_image import __version__

if TYPE_CHECKING:  # each of these is imported by the first command that needs it: start-up stays fast
    from pathlib import Path

    from rich.console import Console

    from repro_image.adapters.engine import Engine
    from repro_image.adapters.files import Project
    from repro_image.adapters.store import Store
    from repro_image.errors import ReproImageError

COMMANDS = (
    "init",
    "doctor",
    "lock",
    "check",
    "fingerprint",
    "render",
    "fetch",
    "build",
    "verify",
    "epochs",
    "diff",
    "images",
    "mirror",
)


class App:
    """The adapters of one call, made when first used."""

    def __init__(self, *, start: "Path", store: "Path | None") -> None:
        self._start, self._store = start, store

    @cached_property
    def project(self) -> "Project":
        from repro_image.adapters.files import Project, find_project

        return Project(find_project(self._start))

    @cached_property
    def store(self) -> "Store":
        """--store, else the project's setting, else a folder below the user's cache folder."""
        from repro_image.adapters.store import Store

        if self._store is not None:
            return Store(self._store)
        return Store(self.project.root / default_store(self.project.settings.store))

    @cached_property
    def engine(self) -> "Engine":
        from repro_image.adapters.engine import Engine

        return Engine()

    @cached_property
    def console(self) -> "Console":
        """For progress and notes: stderr, plain where that is no terminal."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def images(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return ``names``, or all images of the project when none is named; each is known to exist."""
        for name in names:
            self.project.image(name)
        return names or self.project.images()


def default_store(setting: str | None = None) -> "Path":
    """Return the folder that ``setting`` names, else one below the user's cache folder.

    Raises: FolderError for a user without a home.
    """
    from pathlib import Path

    from platformdirs import user_cache_path

    from repro_image.errors import FolderError

    try:
        folder = Path(setting).expanduser() if setting else user_cache_path("repro-image")
    except RuntimeError:
        folder = Path("~")
    if folder.parts[:1] == ("~",):  # what older releases of platformdirs leave as it is
        reason = "this user has no home folder, and HOME is not set"
        raise FolderError(setting or "~/.cache/repro-image", reason=reason)
    return folder


_OUTLETS = {1: "standard output", 2: "standard error"}


class _Outlet(io.FileIO):
    """Standard output or error whose reader may leave (`| head`): the rest is dropped, the work goes on.

    Where its disk is full that is told once, and not again for what is left in the buffer.
    """

    is_full = False

    def write(self, data: Any) -> int:
        try:
            if not self.is_full:
                return super().write(data)
        except BrokenPipeError:
            pass
        except OSError as error:
            self.is_full = True
            raise OSError(error.errno, error.strerror, _OUTLETS[self.fileno()]) from error
        return memoryview(data).nbytes


def _patient(stream: TextIO) -> TextIO:
    outlet = io.BufferedWriter(_Outlet(stream.fileno(), "wb", closefd=False))
    patient = io.TextIOWrapper(outlet, encoding=stream.encoding, errors=stream.errors)
    # PYTHONUNBUFFERED has it write through instead.
    patient.reconfigure(line_buffering=bool(stream.line_buffering or getattr(stream, "write_through", False)))
    return patient


class LazyGroup(click.Group):
    """Imports a command's module when that command is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"repro_image.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="repro-image")
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    help="A folder of the project; by default the current one.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False),
    envvar="REPRO_IMAGE_STORE",
    help="Where wheels, debs and models are kept; by default below your cache folder.",
)
@click.pass_context
def group(ctx: click.Context, project: str, store: str | None) -> None:
    """Make LLM inference images that provably answer the same.

    \b
    repro-image lock          resolve requirements into locks
    repro-image build         build, run the golden generation, record an epoch
    repro-image verify TAG    run it again: does the tag still answer the same?
    """
    from pathlib import Path

    ctx.obj = App(start=Path(project).resolve(), store=None if store is None else Path(store))


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    from repro_image.core.canonical import readable_json

    click.echo(readable_json(value), nl=False)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _fail(error: "ReproImageError") -> NoReturn:
    from repro_image.cli.screen import printable

    told = "\n".join(printable(line) for line in str(error).split("\n"))
    colour = False if os.environ.get("NO_COLOR") else None  # None: where stderr is a terminal
    click.echo(f"{click.style('error:', fg='red', bold=True)} {told}", err=True, color=colour)
    sys.exit(error.exit_code)


def main() -> None:
    """Run the command line and exit: 0 or the error's exit code, 130 on Ctrl-C, 143 on SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stdout and sys.stderr:  # None where the caller closed them
        sys.stdout, sys.stderr = _patient(sys.stdout), _patient(sys.stderr)
    try:
        group.main(prog_name="repro-image", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except Exception as error:
        _fail(_known(error))


def _known(error: Exception) -> "ReproImageError":
    """Return ``error`` with its known cause. Raises: ``error`` itself where it has none."""
    from repro_image.errors import DiskFullError, ReproImageError

    if isinstance(error, ReproImageError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # A write to an open file does not tell which one it is.
        return DiskFullError(str(error.filename or "a file that was being written"))
    raise error
