"""Epoch and the ledger's rules: next number, unbroken chain, find by tag.

Every record is an in-toto Statement (https://in-toto.io/Statement/v1) whose subjects are digests, never
tags. Its digest is the sha256 of the file's bytes; a record names the digest of the record that it follows.
In the file the predicate has one key more, ``content``: the digest of all the rest (core/ledger.py).
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from repro_image.core.fingerprint import Fingerprint
from repro_image.core.golden import Levels
from repro_image.core.inputs import BuildInputs
from repro_image.core.reference import Digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
EPOCH_TYPE = "urn:repro-image:epoch:1"
CLASS_TYPE = "urn:repro-image:class:1"
PROOF_TYPE = "urn:repro-image:proof:1"
PUSH_TYPE = "urn:repro-image:push:1"

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
# UTC, whole seconds: sorts as text, and every JSON reader of the world agrees on it.
Moment: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z\Z")
]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form in which the image exists. compression: ``uncompressed`` in the local store."""

    digest: Digest
    media_type: str
    compression: str


class ImageIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """config: what the image *is*; manifests: the forms in which it was stored or pushed."""

    config: Digest
    manifests: tuple[Manifest, ...]
    size_bytes: Size
    layers: Size


class Repeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the golden was run before it was recorded, each time in a new container, levels equal."""

    runs: Count


class Rounding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the replay is from float32 arithmetic on the same weights: what rounding does to one class."""

    flip_rate: float
    median_nats: float
    p99_nats: float
    tokens: int


class NoiseFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one deliberately reordered run changes: the yardstick of comparisons across classes.

    rounding: the second yardstick; None where the engine cannot compute this model in float32.
    """

    flip_rate: float
    median_nats: float
    p99_nats: float
    tokens: int
    rounding: Rounding | None = None


class NegativeControl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change that levels H1-H3 alone had to find, and the first level that did."""

    change: str
    found_by: Literal["H1", "H2", "H3"]
    prompts: int


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The smallest change per token that the golden sees with ``confidence``.

    sees_per_token: 1 - (1 - confidence) ** (1 / tokens).
    """

    tokens: int
    prompts: int
    confidence: float
    sees_per_token: float


class ClassGolden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the image answers in one numeric class.

    golden: digest of the stored golden, ``locks/<image>/goldens/<hex>.golden.zst``.
    """

    numeric_class: Digest
    golden: Digest
    levels: Levels
    tokens: Count
    repeat: Repeat
    fingerprint: Fingerprint
    noise_floor: NoiseFloor | None = None
    negative_control: NegativeControl | None = None
    power: Power | None = None


class Epoch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ledger record: from this image on, ``first_class`` is what the image must answer.

    number:      counts from 1 without gaps, per image.
    previous:    digest of the record before this one; None only in epoch 1.
    repository:  with ``tag`` what readers call the image; ``image`` decides.
    tag:         ``e<number>-<first 8 hex digits of the input digest>``.
    recorded_at: UTC, whole seconds, such as ``2026-11-21T22:30:00Z``; noted, never used for order.
    tool:        version of repro-image.
    builder:     versions of engine, buildx and installer; ``engine_id`` tells engines apart.
    source:      git revision of the project and whether it was clean, where there is one.
    """

    format: Literal[1] = 1
    number: Count
    previous: Digest | None
    image_name: str
    repository: str
    tag: str
    image: ImageIdentity
    inputs: BuildInputs
    input_digest: Digest
    first_class: ClassGolden
    recorded_at: Moment
    tool: str
    builder: dict[str, str]
    source: dict[str, str]


class ClassRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further class of an epoch, added by `verify --record`. follows: digest of the epoch record."""

    format: Literal[1] = 1
    follows: Digest
    added: ClassGolden
    recorded_at: Moment
    tool: str


class ProofRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rebuild that came out as the epoch's image. follows: digest of the epoch record."""

    format: Literal[1] = 1
    follows: Digest
    config: Digest
    builder: dict[str, str]
    recorded_at: Moment
    tool: str


class PushRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An epoch's image in a registry, read back from there. follows: digest of the epoch record.

    repository: with its registry; the image is there under ``manifest``, whatever the tag names today.
    size_bytes: of its layers, as a machine that has none of them downloads them.
    """

    format: Literal[1] = 1
    follows: Digest
    repository: str
    manifest: Manifest
    config: Digest
    size_bytes: Size
    recorded_at: Moment
    tool: str

    @property
    def reference(self) -> str:
        return f"{self.repository}@{self.manifest.digest}"


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The in-toto envelope around a record; the predicate's type follows from predicateType."""

    type: str = msgspec.field(name="_type", default=STATEMENT_TYPE)
    subject: tuple[Subject, ...]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: dict[str, Any]
