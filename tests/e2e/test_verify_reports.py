"""What `verify --report` writes of a real mismatch, in each form."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.e2e.conftest import Recorded
from tests.unit.test_html_report import Elements

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


def test_another_sampling_seed_is_found_as_sampling_and_four_reports_say_where_the_answers_part(
    epoch: Recorded, tmp_path: Path
) -> None:
    files = {form: tmp_path / f"report.{form}" for form in ("json", "xml", "md", "html")}
    reports = [part for file in files.values() for part in ("--report", str(file))]
    found = epoch.scratch.run("verify", epoch.tag, "--set", "sampling.seed=7", *reports)
    assert found.code == 10, found.out + found.err
    document = json.loads(files["json"].read_text())
    assert (document["verdict"], document["reason"]) == ("mismatch", "sampling")
    comparison = document["comparison"]
    assert {row["lane"] for row in comparison["prompts"] if not all(row["equal"].values())} == {"sampled"}
    first = comparison["first"]
    assert first["divergence"]["expected"]["id"] != first["divergence"]["found"]["id"]
    assert f"first divergence: {first['id']} at token {first['divergence']['position']}" in found.out
    root = ElementTree.parse(files["xml"]).getroot()  # noqa: S314 - our own file
    assert root.findtext("./testsuite/system-out") == found.out
    assert found.out in files["md"].read_text()
    text = Elements(files["html"].read_text()).text
    assert f"{first['id']} at token {first['divergence']['position']}" in text
    assert f"{first['id']} parts at token {first['divergence']['position']}" in text
    assert "What if: sampling.seed=7 — changed on purpose" in text
    assert "noise floor" in text
