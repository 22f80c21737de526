"""Container Device Interface: which GPUs an engine can give to a container by name."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

KIND = "nvidia.com/gpu"

# YAML as `nvidia-ctk cdi generate` writes it: one key on a line. The engine judges whether it is valid.
_KIND = re.compile(r"""^kind:\s*["']?nvidia\.com/gpu["']?\s*$""", re.MULTILINE)
_NAME = re.compile(r"""^\s*(?:-\s+)?name:\s*["']?([A-Za-z0-9][A-Za-z0-9_.:-]*)["']?\s*$""", re.MULTILINE)


def device_names(folders: Iterable[str]) -> frozenset[str]:
    """Return the names of the NVIDIA GPUs that the specifications in ``folders`` describe.

    Empty for an engine on another machine, whose folders are not here.
    """
    paths = (path for folder in folders for path in sorted(Path(folder).glob("*")))
    specifications = (path for path in paths if path.suffix in (".json", ".yaml"))
    return frozenset(name for path in specifications for name in parse_device_names(_read(path)))


def parse_device_names(specification: str) -> tuple[str, ...]:
    """Return the device names of a specification, JSON or YAML; none when it is not of NVIDIA GPUs.

    nvidia-ctk names each GPU by its index and by its UUID; before 1.15 by its index only.
    """
    try:
        found = json.loads(specification)
        return tuple(device["name"] for device in found["devices"]) if found["kind"] == KIND else ()
    except (KeyError, TypeError):
        return ()
    except ValueError:
        return tuple(_NAME.findall(specification)) if _KIND.search(specification) else ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
