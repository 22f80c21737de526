import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.core.canonical import canonical_digest, canonical_json, readable_json
from repro_image.core.lockfile import ModelFile
from repro_image.core.reference import sha256_digest

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), _text, st.floats(allow_nan=False, allow_infinity=False)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
    max_leaves=8,
)


@given(_plain)
def test_both_forms_read_back_as_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    assert json.loads(readable_json(value)) == value
    assert readable_json(value).endswith("\n")


@given(st.dictionaries(_text, st.integers(), max_size=6))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert canonical_digest(turned) == canonical_digest(value)


def test_a_struct_is_written_as_its_fields() -> None:
    file = ModelFile(path="é.json", sha256="sha256:" + "0" * 64, size_bytes=3)
    text = '{"path":"é.json","sha256":"sha256:' + "0" * 64 + '","size_bytes":3}'
    assert canonical_json(file) == text.encode()
    assert canonical_digest(file) == sha256_digest(text.encode())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused(number: float) -> None:
    for write in (canonical_json, readable_json):
        with pytest.raises(ValueError, match="JSON"):
            write({"x": number})
