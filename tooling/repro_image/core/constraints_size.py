"""Rules on the size of an image: what its locks must come to at least, and what it came to."""

from collections.abc import Iterator

from repro_image.core.finding import Finding, Level, make_finding
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec

RULE = "constraints.image_mib"
_MIB = 2**20
_NAMED = 3


def packed_findings(image: ImageSpec, locks: Locks) -> Iterator[Finding]:
    """Yield a finding on the packed packages: what does not fit as it is packed does not fit unpacked."""
    budget = image.constraints.image_mib
    if budget is not None:
        sizes = {deb.name: deb.size_bytes for deb in locks.base.packages}
        sizes |= {wheel.name: wheel.size_bytes for wheel in locks.requirements.wheels}
        yield _finding(sum(sizes.values()), budget, of="packages as they are packed", parts=sizes)


def size_finding(image: ImageSpec, locks: Locks, *, size_bytes: int) -> Finding | None:
    """Return the finding on a built image, or None without a budget. size_bytes: of its layers, unpacked."""
    budget = image.constraints.image_mib
    sizes = {wheel.name: wheel.size_bytes for wheel in locks.requirements.wheels}
    return None if budget is None else _finding(size_bytes, budget, of="layers", parts=sizes)


def _finding(size_bytes: int, budget_mib: int, *, of: str, parts: dict[str, int]) -> Finding:
    largest = sorted(parts, key=lambda name: (-parts[name], name))[:_NAMED]
    named = ", ".join(f"{name} {parts[name] / _MIB:,.0f} MiB packed" for name in largest)
    return make_finding(
        RULE,
        found=f"{size_bytes / _MIB:,.0f} MiB of {of}",
        needed=f"at most {budget_mib:,} MiB",
        level=Level.OK if size_bytes <= budget_mib * _MIB else Level.ERROR,
        source="image.toml",
        fix=f"leave a package out in [python.excluded] (the largest: {named}), or raise the budget",
    )
