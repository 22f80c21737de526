"""The Protocols that steps need."""

from typing import Protocol


class EngineVersions(Protocol):
    """What an engine says of itself.

    buildx:         version of the plugin, None when it is missing.
    folder:         where it keeps images; None for an engine on another machine.
    cdi_folders:    where it looks for specifications of devices, on its machine; empty when it has CDI off.
    nvidia_runtime: NVIDIA's container runtime is set up, which `docker run --gpus` needs.
    """

    @property
    def engine(self) -> str: ...

    @property
    def containerd_store(self) -> bool: ...

    @property
    def buildx(self) -> str | None: ...

    @property
    def folder(self) -> str | None: ...

    @property
    def cdi_folders(self) -> tuple[str, ...]: ...

    @property
    def nvidia_runtime(self) -> bool: ...


class EngineInfo(Protocol):
    """A Docker Engine as far as `doctor` and `fingerprint` need it."""

    @property
    def versions(self) -> EngineVersions:
        """What the engine is. Raises: EngineMissingError."""
