"""A server beside up to eight streams, over the whole smoke suite."""

from typing import Any

import pytest

from tests.e2e.conftest import Recorded

pytestmark = [pytest.mark.soak, pytest.mark.docker, pytest.mark.timeout(3600)]


def equal(row: dict[str, Any]) -> str:
    return ", ".join(f"{x['level']} {x['prompts'] - x['differing']} of {x['prompts']}" for x in row["levels"])


def test_a_quiet_server_answers_the_whole_golden_and_busy_ones_are_measured(
    smoke: Recorded, figures: dict[str, Any]
) -> None:
    found = smoke.scratch.run("verify", smoke.tag, "--serve", "--json", timeout_s=1800)
    assert found.code == 0, found.err
    rows = found.json["serving"]["rows"]
    for row in rows:
        figures[f"served beside {row['streams']} streams, equal prompts"] = equal(row)
    figures["serving the smoke suite beside 0, 2 and 8 streams, s"] = round(found.seconds, 1)
    assert [row["streams"] for row in rows] == [0, 2, 8]
    assert all(level["equal"] for level in rows[0]["levels"])


def test_a_server_that_takes_one_request_at_a_time_agrees_beside_two_streams(smoke: Recorded) -> None:
    options = ["--set", "max_num_seqs=1", "--streams", "2", "--strict", "--json"]
    found = smoke.scratch.run("verify", smoke.tag, "--serve", *options, timeout_s=1800)
    assert found.code == 0, found.out + found.err
    assert found.json["verdict"] == "match"
    assert found.json["context"]["against"].startswith("a golden made now")


def test_a_server_with_one_thread_agrees_with_a_golden_of_one_thread(smoke: Recorded) -> None:
    options = ["--set", "threads=1", "--streams", "0", "--strict", "--json"]
    found = smoke.scratch.run("verify", smoke.tag, "--serve", *options, timeout_s=1800)
    assert found.code == 0, found.out + found.err
    assert found.json["verdict"] == "match"
