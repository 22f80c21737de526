"""Files that come with repro-image itself: the runner, the suites' prompts."""

from functools import cache
from pathlib import Path

from repro_image.core.compatibility import Tables, parse_tables
from repro_image.core.suite import NaturalPrompts, parse_prompts

RUNNER_FOLDER = Path(__file__).parents[1] / "runner"
DATA_FOLDER = Path(__file__).parents[1] / "data"


def runner_bytes() -> bytes:
    """Return the bytes of everything that runs beside the model inside the image; part of the input
    digest.
    """
    return b"".join((RUNNER_FOLDER / name).read_bytes() for name in ("golden_runner.py", "supervise.py"))


def natural_prompts() -> NaturalPrompts:
    """Return what suites pick from, in the order of data/prompts.toml."""
    path = DATA_FOLDER / "prompts.toml"
    return parse_prompts(path.read_text(encoding="utf-8"), path=path.name)


# File names, so that a stray file in the folder is no table.
_TABLES = ("advisories.toml", "compilers.toml", "cuda.toml", "gpus.toml", "settings.toml", "wheels.toml")


@cache
def compatibility_tables() -> Tables:
    """Return what is known to run on what: the rows of data/*.toml."""
    return parse_tables({name: (DATA_FOLDER / name).read_text(encoding="utf-8") for name in _TABLES})
