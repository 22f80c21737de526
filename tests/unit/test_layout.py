"""The arrows between the packages, what core may use, and what starting up may import."""

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tooling/repro_image"
PROGRAM = Path(sys.executable).with_name("repro-image")

# importer -> what it may import of ours, beside itself; errors and repro_image itself are open to all.
ALLOWED = {
    "cli": {"steps", "adapters", "reports", "core"},
    "steps": {"adapters", "core"},
    "adapters": {"core", "runner"},  # nvml.py: GPUs are looked at in one way, here and in a container
    "reports": {"core"},
    "core": set(),
    "runner": set(),
    "errors": set(),
    "": set(),
}
CORE_LIBRARIES = {"msgspec", "packaging", "jinja2"}
# Files, network, clock, environment and processes are for adapters.
CORE_REFUSED = {
    *("os", "pathlib", "subprocess", "socket", "time", "tempfile", "shutil", "urllib", "http", "ssl", "glob"),
    *("fcntl", "signal", "threading", "asyncio", "multiprocessing", "secrets", "uuid", "platform", "getpass"),
}
CORE_REFUSED_CALLS = {"open", "input", "exec", "eval", "now", "utcnow", "today", "SystemRandom", "print"}
HEAVY = (
    *("docker", "rich", "numpy", "jinja2", "zstandard", "gguf", "urllib3", "requests", "huggingface_hub"),
    *("pynvml", "ssl", "http.client", "importlib.metadata", "msgspec", "packaging"),
    *("repro_image.adapters.engine", "repro_image.adapters.web", "repro_image.steps.build"),
)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.relative_to(PACKAGE).parts)


def layer(module: str) -> str:
    """Return ``core`` for repro_image.core.x, and nothing for repro_image itself."""
    return [*module.split("."), ""][1]


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of each module that the file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module is not None
            is_parent = node.module == "repro_image"
            yield from (f"repro_image.{a.name}" for a in node.names) if is_parent else [node.module]


def own_layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_follows_the_allowed_arrows(path: Path) -> None:
    own = own_layer(path)
    ours = [name for name in imported(path) if name.split(".")[0] == "repro_image"]
    if own == "runner":
        assert ours == []  # it runs inside images that hold no repro-image
    allowed = ALLOWED[own] | {own, "errors"}
    assert [
        name for name in ours if layer(name) in ALLOWED and layer(name) and layer(name) not in allowed
    ] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_uses_no_files_network_clock_environment_or_processes(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)} - {"repro_image"}
    assert roots & CORE_REFUSED == set()
    assert {root for root in roots if root not in sys.stdlib_module_names} <= CORE_LIBRARIES
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert calls & CORE_REFUSED_CALLS == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "runner").glob("*.py")), ids=lambda path: path.name)
def test_the_runner_imports_at_start_only_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert names <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["epochs", "list"], {"msgspec", "packaging"}),
        (["lock", "--check"], {"msgspec", "packaging"}),
        (["render", "--check"], {"msgspec", "packaging", "jinja2"}),
    ],
    # Not of the sets, whose order each process chooses anew: several workers must collect the same names.
    ids=lambda value: " ".join(value) if isinstance(value, list) else "needed",
)
def test_a_command_that_only_reads_files_imports_no_heavy_library(
    arguments: list[str], needed: set[str]
) -> None:
    code = (
        "import sys\n"
        "from repro_image.cli import main\n"
        f"sys.argv = ['repro-image', *{arguments}]\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=PACKAGE.parents[1],
    )
    assert set(run.stdout.splitlines()[-1].split()) <= needed


def test_version_takes_less_than_120_ms(tmp_path: Path) -> None:
    # Processor time: the program waits for nothing, so this is what the user of an idle machine waits. Best
    # of five medians, because a busy machine slows this, too. With bytecode, as installed programs have it.
    medians: list[float] = []
    _seconds(tmp_path)
    for _ in range(5):
        medians.append(statistics.median(_seconds(tmp_path) for _ in range(5)))
        if medians[-1] < 0.120:
            return
    pytest.fail(f"medians of 5, in seconds: {medians}")


def _seconds(bytecode: Path) -> float:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen([PROGRAM, "--version"], stdout=subprocess.DEVNULL, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime
