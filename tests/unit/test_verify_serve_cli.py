"""What goes with verify --serve on the command line; nothing here starts a container."""

import pytest
from click.testing import CliRunner

from repro_image.cli import group
from repro_image.errors import UsageError


def refused(*arguments: str) -> UsageError:
    found = CliRunner().invoke(group, ["verify", "e0001-1a2b3c4d", *arguments])
    assert isinstance(found.exception, UsageError), found.output
    return found.exception


@pytest.mark.parametrize(
    "options",
    [["--record"], ["--rebuild"], ["--across"], ["--fail-fast"], ["--repeat", "2"]],
)
def test_what_serving_cannot_do_is_refused_by_name(options: list[str]) -> None:
    assert f"--serve does not go with {options[0]}:" in refused("--serve", *options).what


def test_a_served_golden_has_no_page_of_its_own() -> None:
    assert refused("--serve", "--report", "x.html").fix == "name a file that ends in .json or .xml or .md"


@pytest.mark.parametrize("options", [["--strict"], ["--streams", "0,2"]])
def test_what_only_serving_knows_needs_it(options: list[str]) -> None:
    assert refused(*options).fix == "add --serve"


@pytest.mark.parametrize("streams", ["", "two", "0,,2", "-1", "100", "0, 2"])
def test_streams_are_a_list_of_small_numbers(streams: str) -> None:
    found = CliRunner().invoke(group, ["verify", "e0001-1a2b3c4d", "--serve", "--streams", streams])
    assert found.exit_code == 2
    assert "--streams" in found.output
