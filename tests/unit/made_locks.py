"""Locks and a machine made by hand, small enough to read."""

from pathlib import Path

from repro_image.core.fingerprint import Host
from repro_image.core.lockfile import DebianLock, GgufLock, LockedDeb, LockedWheel, Locks, RequirementsLock
from repro_image.core.project import ImageSpec, parse_image

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0" * 64


def shipped_image() -> ImageSpec:
    """Return image.toml of vllm-cpu, as this repository ships it."""
    path = ROOT / "images/vllm-cpu/image.toml"
    return parse_image(path.read_text(), path=str(path))


def make_host() -> Host:
    return Host(
        architecture="x86_64",
        cpu_vendor="GenuineIntel",
        cpu_family=6,
        cpu_model=207,
        cpu_name="Intel(R) Xeon(R) Processor",
        cpu_stepping=2,
        microcode="0x1",
        flags=("avx2", "avx512f", "fma"),
        cpus=4,
        threads_per_core=2,
        memory_bytes=16 * 10**9,
        kernel="6.1.0",
        system="Debian GNU/Linux 12 (bookworm)",
    )


def make_locks(*filenames: str, glibc: str | None = "2.36-9+deb12u13", python: str = "3.11.2") -> Locks:
    """Return locks of wheels with these file names, in a root with this libc6."""
    wheels = tuple(sorted((_wheel(filename) for filename in filenames), key=lambda wheel: wheel.name))
    debs = () if glibc is None else (_libc6(glibc),)
    return Locks(
        base=DebianLock(inputs=DIGEST, suite="bookworm", source_date_epoch=1, root=DIGEST, packages=debs),
        requirements=RequirementsLock(
            inputs=DIGEST,
            resolver="pip-tools 7.6.2",
            python=python,
            root=DIGEST,
            installer=_wheel("uv-0.9.1-py3-none-any.whl"),
            wheels=wheels,
        ),
        model=GgufLock(
            inputs=DIGEST,
            name="m",
            license="Apache-2.0",
            source=_wheel("m-1.0-py3-none-any.whl"),
            member="m.gguf",
            converter="gguf-to-safetensors 1",
            files=(),
        ),
    )


def _wheel(filename: str) -> LockedWheel:
    name, version = filename.split("-")[:2]
    return LockedWheel(
        name=name.replace("_", "-"), version=version, sha256=DIGEST, filename=filename, size_bytes=1
    )


def _libc6(version: str) -> LockedDeb:
    return LockedDeb(
        name="libc6",
        version=version,
        architecture="amd64",
        sha256=DIGEST,
        size_bytes=1,
        path="pool/main/g/glibc/libc6_2.36_amd64.deb",
        archive="bookworm",
    )
