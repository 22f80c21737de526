"""The Protocols that steps need."""

from typing import Protocol


class EngineVersions(Protocol):
    """What an engine says of itself.

    buildx:    version of the plugin, None when it is missing.
    data_root: the engine's folder, on the engine's machine.
    """

    @property
    def engine(self) -> str: ...

    @property
    def containerd_store(self) -> bool: ...

    @property
    def buildx(self) -> str | None: ...

    @property
    def data_root(self) -> str: ...


class EngineInfo(Protocol):
    """A Docker Engine as far as `doctor` and `fingerprint` need it."""

    @property
    def versions(self) -> EngineVersions:
        """What the engine is. Raises: EngineMissingError."""
