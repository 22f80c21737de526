from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.inputs import (
    BuildInputs,
    base_inputs,
    build_inputs,
    model_inputs,
    requirements_inputs,
)
from repro_image.core.lockfile import Locks
from repro_image.core.project import HubModel, ImageSpec
from tests.unit.made_locks import DIGEST, make_locks, shipped_image

IMAGE, LOCKS = shipped_image(), make_locks("numpy-2.1.0-cp311-cp311-linux_x86_64.whl")


def wished(text: str, *, resolver: str = "pip-tools", root: str = DIGEST) -> str:
    return requirements_inputs(text, IMAGE.python, resolver=resolver, root=root)


def inputs(image: ImageSpec = IMAGE, locks: Locks = LOCKS, dockerfile: str = "FROM base\n") -> BuildInputs:
    return build_inputs(image, locks, dockerfile=dockerfile, suite=DIGEST, runner=b"runner")


def test_reworded_reasons_and_their_order_change_no_debian_input() -> None:
    packages = dict.fromkeys(reversed(IMAGE.base.packages), "another reason")
    assert base_inputs(replace(IMAGE.base, packages=packages)) == base_inputs(IMAGE.base)


def test_another_package_or_suite_changes_the_debian_input() -> None:
    base = IMAGE.base
    more = replace(base, packages={**base.packages, "zlib1g": "x"})
    other = replace(base, suite="trixie")
    assert len({base_inputs(b) for b in (base, more, other)}) == 3


@given(
    st.permutations(["a==1", "b[x]>=2 ; python_version>'3'", "c"]), st.sampled_from(["\n", "\r\n", "\n\n"])
)
def test_order_comments_and_blank_lines_change_no_requirements_input(lines: list[str], end: str) -> None:
    text = end.join(["# head", *(f"  {line}  # why" for line in lines), ""])
    assert wished(text) == wished("a==1\nb[x]>=2 ; python_version>'3'\nc\n")


def test_a_hash_sign_inside_a_requirement_is_no_comment() -> None:
    assert wished("a @ https://x.example/a.whl#sha256=1") != wished("a @ https://x.example/a.whl#sha256=2")


def test_what_the_resolver_sees_changes_the_requirements_input() -> None:
    excluded = replace(IMAGE.python, excluded={"x": "why"})
    found = {
        wished("a"),
        wished("a>=1"),
        wished("a", resolver="uv"),
        wished("a", root="sha256:" + "1" * 64),
        requirements_inputs("a", excluded, resolver="pip-tools", root=DIGEST),
        requirements_inputs("a", replace(IMAGE.python, sources={}), resolver="pip-tools", root=DIGEST),
        requirements_inputs("a", replace(IMAGE.python, version="3.12"), resolver="pip-tools", root=DIGEST),
    }
    assert len(found) == 7


def test_another_model_or_converter_changes_the_model_input() -> None:
    other = replace(IMAGE.model, version="0.2")
    found = {model_inputs(IMAGE.model, converter=c) for c in ("c 1", "c 2")}
    assert len(found | {model_inputs(other, converter="c 1")}) == 3


def test_another_revision_or_choice_changes_a_hubs_model_input_and_a_converter_does_not() -> None:
    model = HubModel(repository="team/tiny", revision="main", license="MIT")
    changes = ({"repository": "team/other"}, {"revision": "v1"}, {"files": ("*.json",)})
    found = {model_inputs(m, converter="c 1") for m in (model, *(replace(model, **c) for c in changes))}
    assert len(found) == 4
    assert model_inputs(model, converter="c 2") in found


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("settings", lambda: inputs(replace(IMAGE, golden=replace(IMAGE.golden, seed=43)))),
        ("dockerfile", lambda: inputs(dockerfile="FROM base\n\n")),
        ("requirements", lambda: inputs(locks=make_locks("numpy-2.1.1-cp311-cp311-linux_x86_64.whl"))),
        ("debian", lambda: inputs(locks=replace(LOCKS, base=replace(LOCKS.base, source_date_epoch=2)))),
        ("model", lambda: inputs(locks=replace(LOCKS, model=replace(LOCKS.model, name="n")))),
    ],
)
def test_each_change_is_seen_in_its_own_part_only(part: str, changed: Callable[[], BuildInputs]) -> None:
    before, after = inputs(), changed()
    differing = [n for n in BuildInputs.__struct_fields__ if getattr(before, n) != getattr(after, n)]
    assert differing == [part]
    assert before.digest != after.digest


def test_the_description_and_constraints_are_no_input_of_the_answer() -> None:
    # The description is in the Dockerfile's labels, and so in the input `dockerfile`.
    assert inputs(replace(IMAGE, description="other words")) == inputs()
