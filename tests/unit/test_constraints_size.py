"""The size budget of an image."""

from msgspec.structs import replace

from repro_image.core.constraints_size import packed_findings, size_finding
from repro_image.core.finding import Level
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec
from tests.unit.made_locks import make_locks, shipped_image

MIB = 2**20


def with_budget(mib: int | None) -> ImageSpec:
    image = shipped_image()
    return replace(image, constraints=replace(image.constraints, image_mib=mib))


def locks_of(size_bytes: int) -> Locks:
    locks = make_locks("torch-2.13.0-cp311-cp311-linux_x86_64.whl", glibc=None)
    wheels = tuple(replace(wheel, size_bytes=size_bytes) for wheel in locks.requirements.wheels)
    return replace(locks, requirements=replace(locks.requirements, wheels=wheels))


def test_packages_that_are_too_large_as_they_are_packed_are_refused_before_anything_is_fetched() -> None:
    (fits,) = packed_findings(with_budget(10), locks_of(10 * MIB))
    (bursts,) = packed_findings(with_budget(10), locks_of(10 * MIB + 1))
    assert (fits.level, bursts.level) == (Level.OK, Level.ERROR)
    assert "torch 10 MiB packed" in bursts.fix


def test_an_image_that_came_out_too_large_is_refused() -> None:
    found = size_finding(with_budget(10), locks_of(1), size_bytes=10 * MIB + 1)
    assert found is not None
    assert found.level is Level.ERROR
    assert found.needed == "at most 10 MiB"


def test_without_a_budget_any_size_will_do() -> None:
    assert size_finding(with_budget(None), locks_of(1), size_bytes=2**50) is None
    assert list(packed_findings(with_budget(None), locks_of(2**50))) == []
