"""core/layer_stages.py: what a rendered Dockerfile says of its layers, and what a kept layer hangs on."""

import pytest
from msgspec.structs import replace

from repro_image.core.layer_stages import LayerStage, layer_stages, python_digest, root_is_base
from repro_image.core.layers import LayerGroup, layer_groups
from repro_image.core.lockfile import LockedDeb
from tests.unit.made_locks import DIGEST, make_locks
from tests.unit.test_dockerfile import shipped_text, small_locks
from tests.unit.test_layers import make_wheel

NAMES = [group.name for group in layer_groups(small_locks().requirements.wheels)]
MOMENT = small_locks().base.source_date_epoch
INSTALL = "/tools/uv pip install"


def stages_of(text: str) -> tuple[LayerStage, ...] | None:
    return layer_stages(text, NAMES, source_date_epoch=MOMENT)


def test_the_shipped_dockerfile_says_which_commands_make_which_layer() -> None:
    stages = stages_of(shipped_text())
    assert stages is not None
    assert [stage.name for stage in stages] == NAMES
    first = stages[0]
    assert first.script.startswith("set -eu;")
    assert "\\\n" not in first.script
    assert "--target /out/wheel-torch/$SOURCE_DATE_EPOCH/opt/env" in first.script
    assert first.script.endswith('-exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +')
    assert first.step == f"COPY /out/wheel-torch/{MOMENT}/ / # buildkit"


def test_a_command_that_a_project_changes_is_the_command_that_is_run() -> None:
    stages = stages_of(shipped_text().replace(INSTALL, "TZ=UTC " + INSTALL))
    assert stages is not None
    assert all("TZ=UTC /tools/uv" in stage.script for stage in stages)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM root AS packages\n", "FROM root AS packages\nRUN --network=none true\n"),
        ("COPY --link --from=wheel-torch", "COPY --from=wheel-torch"),
        ("FROM root AS wheel-torch\n", "FROM user AS wheel-torch\n"),
        ("FROM root AS wheel-torch\n", "FROM root AS wheel-torch\nENV A=b\n"),
        ("source=wheel-torch,", "source=other,"),
        ("set -eu; ", "--mount=type=cache,target=/x set -eu; "),
        ("RUN --network=none", "RUN"),
        ("FROM root AS user", "FROM root AS wheel-torch"),
        (" AS packages", " AS elsewhere"),
    ],
)
def test_a_dockerfile_of_another_shape_is_left_to_buildkit(old: str, new: str) -> None:
    assert old in shipped_text()
    assert stages_of(shipped_text().replace(old, new)) is None


def test_a_dockerfile_of_other_groups_is_left_to_buildkit() -> None:
    assert layer_stages(shipped_text(), NAMES[:-1], source_date_epoch=MOMENT) is None
    assert layer_stages(shipped_text(), [*NAMES[1:], NAMES[0]], source_date_epoch=MOMENT) is None
    assert layer_stages("", NAMES, source_date_epoch=MOMENT) is None


def test_a_dockerfile_of_another_moment_is_left_to_buildkit() -> None:
    assert layer_stages(shipped_text(), NAMES, source_date_epoch=MOMENT + 1) is None


def test_the_root_is_the_base_alone_or_is_not() -> None:
    assert root_is_base(shipped_text())
    assert not root_is_base(shipped_text().replace("FROM base AS root\n", "FROM base AS root\nUSER 0:0\n"))


def test_a_kept_layer_hangs_on_everything_that_it_follows_from() -> None:
    stage = LayerStage(name="bucket-00", script="true", step="COPY")
    group = LayerGroup(name="bucket-00", wheels=(make_wheel("a", 1),))
    given = {"installer": "i", "python": "p", "source_date_epoch": 1}
    key = stage.key(group, **given)  # type: ignore[arg-type]
    others = [
        replace(stage, script="false").key(group, **given),  # type: ignore[arg-type]
        stage.key(replace(group, wheels=(make_wheel("a", 1, version="2"),)), **given),  # type: ignore[arg-type]
        *(stage.key(group, **{**given, name: 2}) for name in given),  # type: ignore[arg-type]
    ]
    assert len({key, *others}) == 6
    assert replace(stage, name="other", step="other").key(group, **given) == key  # type: ignore[arg-type]


def test_layers_outlive_an_update_of_a_package_that_is_not_python() -> None:
    base = make_locks().base
    python = LockedDeb(
        name="libpython3.11-stdlib",
        version="1",
        architecture="amd64",
        sha256=DIGEST,
        size_bytes=1,
        path="pool/p.deb",
        archive="bookworm",
    )
    with_python = replace(base, packages=(*base.packages, python))
    assert python_digest(with_python) == python_digest(replace(with_python, packages=(python,), root="other"))
    newer = replace(python, sha256="sha256:" + "1" * 64)
    assert python_digest(replace(base, packages=(newer,))) != python_digest(with_python)
