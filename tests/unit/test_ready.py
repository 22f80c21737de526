"""Whether a machine can be asked for the answers of an epoch of the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest

from repro_image.core.comparison import Comparison, Reason
from repro_image.core.image_labels import LABEL_PREFIX
from repro_image.core.ledger import StoredEpoch
from repro_image.core.whatif import WhatIf
from repro_image.steps import ready
from tests.ledger_samples import digest_of, sample_epoch
from tests.unit.made_hosts import gpu_host

STORED = StoredEpoch(digest=digest_of("record"), path="x", epoch=sample_epoch())


def ask(monkeypatch: pytest.MonkeyPatch, labels: dict[str, str]) -> ready.Ready | Comparison:
    engine: Any = SimpleNamespace(image=lambda _name: SimpleNamespace(labels=labels))
    monkeypatch.setattr(ready, "known_host", lambda _engine: gpu_host())
    monkeypatch.setattr(ready, "whole_cores", lambda _count: "0,1")
    return ready.ready_for(STORED, "image", what_if=WhatIf(), engine=engine, threads=2)


@pytest.mark.parametrize(
    "labels", [{}, {f"{LABEL_PREFIX}.python": "3.11"}, {f"{LABEL_PREFIX}.threads": "999"}], ids=str
)
def test_an_image_that_demands_nothing_of_a_machine_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, labels: dict[str, str]
) -> None:
    assert isinstance(ask(monkeypatch, labels), ready.Ready)


def test_a_demand_that_is_not_met_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(monkeypatch, {f"{LABEL_PREFIX}.platform": "linux/arm64"})
    assert isinstance(found, Comparison)
    assert (found.exit_code, found.reason) == (11, Reason.CONSTRAINT)
    assert [item.field for item in found.constraints] == ["platform"]
