"""repro-image fingerprint."""

from typing import TYPE_CHECKING

import click

from repro_image.cli import App, print_json

if TYPE_CHECKING:
    from repro_image.core.gpu import Gpu


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the document that `check --host` reads.")
@click.pass_obj
def fingerprint(app: App, as_json: bool) -> None:
    """Say what this machine is: processor, instruction sets, memory, kernel, engine, GPUs.

    \b
    Example:
      repro-image fingerprint --json > node-7.json
    """
    from repro_image.adapters.host import read_host
    from repro_image.core.fingerprint import numeric_flags
    from repro_image.reports.escape import visible
    from repro_image.reports.text import aligned
    from repro_image.steps.doctor import with_engine

    host = with_engine(read_host(), app.engine)
    if as_json:
        print_json(host)
        return
    rows = {
        "architecture": host.architecture,
        "processor": host.cpu_name or "unknown",
        "vendor": host.cpu_vendor,
        "model": f"family {host.cpu_family} model {host.cpu_model} stepping {host.cpu_stepping}",
        "microcode": host.microcode or "unknown",
        "instructions": " ".join(numeric_flags(host.flags)) or "unknown",
        "cores": f"{host.cpus} logical processors, {host.threads_per_core} per core",
        "L2 cache": f"{host.l2_kib} KiB" if host.l2_kib else "unknown",
        "memory": f"{host.memory_bytes / 2**30:.1f} GiB",
        "kernel": host.kernel,
        "system": host.system,
        "engine": host.engine or "none",
        "buildx": host.buildx or "none",
        "NVIDIA driver": host.nvidia.describe() if host.nvidia else "none",
        **{f"GPU {gpu.index}": _gpu(gpu) for gpu in host.gpus},
        "container toolkit": host.container_toolkit or "none",
    }
    click.echo("\n".join(aligned((name, visible(value)) for name, value in rows.items())))


def _gpu(gpu: "Gpu") -> str:
    return ", ".join(filter(None, (gpu.describe(), gpu.uuid, gpu.vbios and f"VBIOS {gpu.vbios}", gpu.fault)))
