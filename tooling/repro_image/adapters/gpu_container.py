"""NVIDIA's driver and GPUs as a program inside a container of an image meets them."""

from collections.abc import Mapping, Sequence

import msgspec

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.core.gpu import Gpu, GpuProbe, NvidiaDriver
from repro_image.errors import GpuProbeError

_PROBE = "/repro/gpu_probe.py"
_NO_PYNVML = 3  # exit code of the probe
_MAX_OUTPUT_BYTES = 2**20
_TIMEOUT_S = 120  # a driver without persistence mode takes seconds to wake each GPU
_CONTAINER_USER = "1000:1000"


def probe_inside(
    engine: Engine, image: str, *, gpus: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[NvidiaDriver | None, tuple[Gpu, ...]]:
    """Return what a new container of ``image`` that gets ``gpus`` sees, with the libcuda that it loads.

    gpus:        UUIDs.
    environment: of the golden run, which may choose another libcuda.
    Raises: GpuProbeError; NoGpuAccessError; EngineCallError; ContainerTimeoutError.
    """
    result = engine.run_tool(
        image,
        ["python3", _PROBE],
        mounts=[Mount(source=RUNNER_FOLDER / "gpu_probe.py", target=_PROBE)],
        environment=environment,
        gpus=gpus,
        timeout_s=_TIMEOUT_S,
        user=_CONTAINER_USER,
    )
    if result.exit_code == _NO_PYNVML:
        raise GpuProbeError("its Python has no module pynvml", image=image)
    if result.exit_code != 0:
        last = result.stderr.strip()[-500:]
        raise GpuProbeError(f"the probe ended with {result.exit_code}: {last}", image=image)
    if len(result.stdout) > _MAX_OUTPUT_BYTES:
        raise GpuProbeError(f"the answer is longer than {_MAX_OUTPUT_BYTES} bytes", image=image)
    try:
        found = msgspec.json.decode(result.stdout, type=GpuProbe)
    except msgspec.DecodeError as error:
        raise GpuProbeError(f"the answer is not in the probe's form: {error}", image=image) from error
    return found.driver, found.gpus
