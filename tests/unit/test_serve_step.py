"""Which cores a server gets beside its client."""

import pytest

from repro_image.core.fingerprint import CpuClass
from repro_image.steps import serve
from repro_image.steps.ready import Ready
from tests.unit.made_hosts import gpu_host

CLASS = CpuClass(
    architecture="x86_64",
    vendor="GenuineIntel",
    family=6,
    model=207,
    flags=("avx2",),
    capability="",
    threads=2,
    cpus=2,
)


def ready(*, threads: int, cpuset: str) -> Ready:
    return Ready(host=gpu_host(), threads=threads, cpuset=cpuset, gpus=(), wanted=CLASS)


@pytest.mark.parametrize(
    ("cores", "threads", "found"),
    [
        (4, 2, (2, "1,2", "0,1,2")),
        (3, 2, (2, "1,2", "0,1,2")),
        (2, 2, (1, "1", "0,1")),
        (2, 1, (1, "1", "0,1")),
        (1, 1, (1, "0", "0")),
    ],
)
def test_one_core_is_left_to_the_server_itself_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, found: tuple[int, str, str]
) -> None:
    def whole_cores(count: int) -> str | None:
        return ",".join(map(str, range(count))) if count <= cores else None

    monkeypatch.setattr(serve, "whole_cores", whole_cores)
    given = serve._server_cores(ready(threads=threads, cpuset=whole_cores(threads) or ""))
    assert (given.threads, given.kernels, given.shared) == found
