"""What `verify` refuses before it looks at any project, and how it reads a probability."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from repro_image.cli import group
from repro_image.cli.verify import _share, verify
from repro_image.errors import UsageError

CONTEXT = click.Context(verify)
OPTION = next(option for option in verify.params if option.name == "must_see")


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.005", 0.005), ("50%", 0.5)])
def test_a_probability_is_read_as_a_share_or_in_percent(text: str, share: float) -> None:
    assert _share(CONTEXT, OPTION, text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "1", "100%", "-1%", "nan", "inf", "half", "", "%"])
def test_what_is_no_probability_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        _share(CONTEXT, OPTION, text)


def test_a_class_is_recorded_or_judged_not_both(tmp_path: Path) -> None:
    arguments = ["--project", str(tmp_path), "verify", "e0001-1a2b3c4d", "--record", "--across"]
    found = CliRunner().invoke(group, arguments, standalone_mode=False)
    assert isinstance(found.exception, UsageError)
    assert found.exception.what.startswith("--record does not go with --across")


@pytest.mark.parametrize("other", [("--repeat", "2"), ("--fail-fast",)])
def test_a_class_is_recorded_from_whole_runs(tmp_path: Path, other: tuple[str, ...]) -> None:
    arguments = ["--project", str(tmp_path), "verify", "e0001-1a2b3c4d", "--record", *other]
    found = CliRunner().invoke(group, arguments, standalone_mode=False)
    assert isinstance(found.exception, UsageError)
    assert found.exception.what.startswith("--record does not go with --repeat or --fail-fast")
