import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repro_image.core.reference import (
    ImageReference,
    is_digest,
    is_repository,
    is_tag,
    parse_reference,
    sha256_digest,
)
from repro_image.errors import InvalidReferenceError

DIGEST = "sha256:" + "0123456789abcdef" * 4

_part = st.from_regex(r"[a-z0-9]{1,6}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
_host = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?\.[a-z]{2,3}(:[0-9]{1,5})?", fullmatch=True)
_host = st.one_of(_host, st.just("localhost:5000"))
_repositories = st.builds(
    lambda host, parts: "/".join([*([host] if host else []), *parts]),
    st.one_of(st.none(), _host),
    st.lists(_part, min_size=1, max_size=4),
)
_tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
_digests = st.binary(max_size=8).map(sha256_digest)
_with_name = st.builds(
    lambda repository, tag, digest: ImageReference(repository=repository, tag=tag, digest=digest),
    _repositories,
    st.one_of(st.none(), _tags),
    st.one_of(st.none(), _digests),
    # A bare word is a tag: a repository alone is one only with a slash in it.
).filter(lambda ref: bool(ref.tag or ref.digest or "/" in (ref.repository or "")))
references = st.one_of(
    _with_name,
    _tags.map(lambda tag: ImageReference(tag=tag)),
    _digests.map(lambda digest: ImageReference(digest=digest)),
)


@given(references)
def test_a_printed_reference_parses_back_to_itself(reference: ImageReference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=40))
@example("a@" + DIGEST + "\n")
def test_any_text_is_refused_or_parsed_and_what_parses_prints_as_it_was(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReferenceError as error:
        told = error.what
    else:
        told = f"{text!r} is not an image reference, tag or digest"
        assert str(reference) == text
        assert text.isascii()
        assert text.isprintable()
    assert told == f"{text!r} is not an image reference, tag or digest"


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest"),
    [
        ("e0001-1a2b3c4d", None, "e0001-1a2b3c4d", None),
        ("repro-image/vllm-cpu:e0001-1a2b3c4d", "repro-image/vllm-cpu", "e0001-1a2b3c4d", None),
        ("localhost:5000/a/b", "localhost:5000/a/b", None, None),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b", "v1", None),
        (f"GHCR.io/team/img:v1@{DIGEST}", "GHCR.io/team/img", "v1", DIGEST),
        (f"image@{DIGEST}", "image", None, DIGEST),
        (DIGEST, None, None, DIGEST),
        ("A" * 128, None, "A" * 128, None),
    ],
)
def test_each_form_is_taken_apart(
    text: str, repository: str | None, tag: str | None, digest: str | None
) -> None:
    assert parse_reference(text) == ImageReference(repository=repository, tag=tag, digest=digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1\n",
        "\nv1",
        "a:v1\n",
        "-rf",
        "--output=/etc/passwd",
        "a:-rf",
        "..",
        "../x",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "a:",
        ":v1",
        "@",
        "A" * 129,
        "a:" + "t" * 129,
        "a" * 256 + "/b",
        "Team/Image",
        "ghcr.io/Team/image",
        "vllm\u0435",  # a Cyrillic letter
        "v\uff11",  # full-width 1
        "e\u0660001",  # Arabic-Indic 0
        "a:v1\u200b",  # zero-width space
        "v1 ",
        "v1\0",
        "v1\x1b[31m",
        "a$(id)",
        "a;b",
        f"image@{DIGEST[:-1]}",
        f"image@{DIGEST.upper()}",
        f"image@{DIGEST}\n",
        f"{DIGEST}@{DIGEST}x",
    ],
)
def test_what_is_no_reference_is_refused_with_exit_code_2(text: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    assert repr(text) in caught.value.what
    assert "\x1b" not in str(caught.value)


def test_the_predicates_look_at_the_whole_text() -> None:
    assert is_digest(DIGEST)
    assert is_tag("v1")
    assert is_repository("a/b")
    assert not is_digest(DIGEST + "\n")
    assert not is_tag("v1\n")
    assert not is_repository("a/b\n")


def test_a_long_hostile_name_is_refused_at_once() -> None:
    with pytest.raises(InvalidReferenceError):
        parse_reference("a" + "-a" * 100_000 + "!")
