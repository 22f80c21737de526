"""The ledger's rules: record <-> bytes, an unbroken chain, which records belong to an epoch, and finding one.

Nothing here reads files: the ledger arrives as ``relative path -> bytes``. Equal records have equal bytes,
and every byte of a file is bound by the file itself: it is sorted, indented JSON (any other spelling is
refused), and the predicate's ``content`` is the digest of all the rest. The chain binds files to each other.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.epoch import (
    CLASS_TYPE,
    EPOCH_TYPE,
    PROOF_TYPE,
    PUSH_TYPE,
    ClassGolden,
    ClassRecord,
    Epoch,
    ImageIdentity,
    Manifest,
    ProofRecord,
    PushRecord,
    Statement,
    Subject,
)
from repro_image.core.reference import (
    Digest,
    ImageReference,
    is_repository,
    parse_reference,
    sha256_digest,
)
from repro_image.core.strict_json import (
    MAX_INTEGER,
    StrictJsonError,
    first_difference,
    parse_strict,
    readable_form,
)
from repro_image.errors import (
    AlreadyRecordedError,
    BrokenChainError,
    BrokenRecordError,
    MissingRecordError,
    NewerRecordError,
)

MAX_RECORD_BYTES = 4 * 2**20
EPOCH_FILE = "epoch.json"

LaterRecord: TypeAlias = ClassRecord | ProofRecord | PushRecord
Record: TypeAlias = Epoch | LaterRecord
R = TypeVar("R", Epoch, ClassRecord, ProofRecord, PushRecord)

_TYPES: dict[type[Record], str] = {
    Epoch: EPOCH_TYPE,
    ClassRecord: CLASS_TYPE,
    ProofRecord: PROOF_TYPE,
    PushRecord: PUSH_TYPE,
}
_PATH = re.compile(r"(?P<folder>[0-9]{4,})/(?:epoch|(?P<kind>[a-z]+)-(?P<short>[0-9a-f]{12}))\.json")
_WIDE = "$integer"
# Before the first version of this tool no clock that is right can have stood.
_EARLIEST = "2026-01-01T00:00:00Z"


class StoredClass(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the file's bytes; path: below the project's root."""

    digest: Digest
    path: str
    record: ClassRecord


class StoredProof(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the file's bytes; path: below the project's root."""

    digest: Digest
    path: str
    record: ProofRecord


class StoredPush(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the file's bytes; path: below the project's root."""

    digest: Digest
    path: str
    record: PushRecord


class StoredEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """An epoch as the ledger holds it, with what was recorded for it later.

    digest: of epoch.json's bytes; what later records follow.
    path:   epoch.json below the project's root, with slashes.
    """

    digest: Digest
    path: str
    epoch: Epoch
    classes: tuple[StoredClass, ...] = ()
    proofs: tuple[StoredProof, ...] = ()
    pushes: tuple[StoredPush, ...] = ()

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Every form in which the image exists: the engine's own first, then those that were pushed."""
        return (*self.epoch.image.manifests, *(stored.record.manifest for stored in self.pushes))

    @property
    def goldens(self) -> tuple[ClassGolden, ...]:
        """One per numeric class, the first class first."""
        return (self.epoch.first_class, *(stored.record.added for stored in self.classes))

    def golden_of(self, numeric_class: str) -> ClassGolden | None:
        """Return what was recorded in the class with this digest, or None."""
        return next((golden for golden in self.goldens if golden.numeric_class == numeric_class), None)


# Records and bytes.


def statement_bytes(record: Record, image: ImageIdentity) -> bytes:
    """Return the file that holds ``record``, a Statement about ``image``; `parse_record` reads it back."""
    predicate = _narrow(msgspec.to_builtins(record, str_keys=True))
    statement = Statement(subject=_subjects(image), predicate_type=_TYPES[type(record)], predicate=predicate)
    tree = msgspec.to_builtins(statement, str_keys=True)
    tree["predicate"]["content"] = canonical_digest(tree)
    return readable_form(tree)


def parse_record(data: bytes, kind: type[R], *, path: str) -> R:
    """Return the record that ``data`` holds, after proving every byte of it; not yet its place in the chain.

    Raises: BrokenRecordError with the place, NewerRecordError.
    """
    statement, tree = _parse_statement(data, kind, path=path)
    _check_form(data, tree, path=path)
    predicate = {key: value for key, value in statement.predicate.items() if key != "content"}
    try:
        record = msgspec.convert(_widen(predicate) if _WIDE.encode() in data else predicate, kind)
    except msgspec.ValidationError as error:
        raise BrokenRecordError(f"not a record: {error}", path=path) from error
    if isinstance(record, Epoch):
        _check_subjects(statement, record.image, path=path)
        _check_epoch(record, predicate, path=path)
    return record


def _parse_statement(data: bytes, kind: type[Record], *, path: str) -> tuple[Statement, Any]:
    if len(data) > MAX_RECORD_BYTES:
        raise BrokenRecordError(f"{len(data)} bytes, more than a record can have", path=path)
    try:
        tree = parse_strict(data)
        statement = msgspec.convert(tree, Statement)
    except StrictJsonError as error:
        raise BrokenRecordError(error.what, path=path, line=error.line, column=error.column) from error
    except msgspec.ValidationError as error:
        raise BrokenRecordError(f"not a record: {error}", path=path) from error
    wanted, found = _TYPES[kind], statement.predicate_type
    base = wanted.rpartition(":")[0]
    tool = re.sub(r"[^A-Za-z0-9.+-]", "?", str(statement.predicate.get("tool", "")))[:40]
    newer = re.fullmatch(re.escape(base) + r":([1-9][0-9]{0,8})", found)
    if newer and found != wanted:
        raise NewerRecordError(f"predicateType {found}, known is {wanted}", path=path, tool=tool)
    if found != wanted:
        raise BrokenRecordError(f"predicateType {found!r} where {wanted} belongs", path=path)
    version = statement.predicate.get("format")
    if isinstance(version, int) and version > 1:
        raise NewerRecordError(f"format {version}, known is 1", path=path, tool=tool)
    return statement, tree


def _check_form(data: bytes, tree: Any, *, path: str) -> None:
    """Prove that no byte was changed since repro-image wrote the file."""
    try:
        expected = readable_form(tree)
    except UnicodeEncodeError as error:
        raise BrokenRecordError("the text holds half of a surrogate pair", path=path) from error
    if data != expected:
        line, column = first_difference(expected, data)
        raise BrokenRecordError(
            "the file was changed: not spelled as it is written", path=path, line=line, column=column
        )
    rest = {**tree, "predicate": {key: value for key, value in tree["predicate"].items() if key != "content"}}
    claimed, found = tree["predicate"].get("content"), canonical_digest(rest)
    if claimed != found:
        raise BrokenRecordError(f"the file was changed: expected content {claimed}, found {found}", path=path)


def _subjects(image: ImageIdentity) -> tuple[Subject, ...]:
    named = {"config": image.config}
    named |= {
        f"manifest-{number}": manifest.digest for number, manifest in enumerate(image.manifests, start=1)
    }
    return tuple(
        Subject(name=name, digest={"sha256": digest.removeprefix("sha256:")})
        for name, digest in named.items()
    )


def _check_subjects(statement: Statement, image: ImageIdentity, *, path: str) -> None:
    if statement.subject != _subjects(image):
        raise BrokenRecordError("the statement is about another image than its record", path=path)


def _check_epoch(epoch: Epoch, predicate: Mapping[str, Any], *, path: str) -> None:
    """Check what an epoch says twice. Digests are of the file's own tables: later versions may add fields."""
    found = canonical_digest(predicate["inputs"])
    if epoch.input_digest != found:
        raise BrokenRecordError(f"input_digest is {epoch.input_digest}, the inputs have {found}", path=path)
    tag = f"e{epoch.number:04d}-{epoch.input_digest.removeprefix('sha256:')[:8]}"
    if epoch.tag != tag:
        raise BrokenRecordError(f"the tag is {epoch.tag!r}, number and inputs make it {tag}", path=path)
    _check_class(epoch.first_class, epoch.image, path=path)


def _check_class(golden: ClassGolden, image: ImageIdentity, *, path: str) -> None:
    found = golden.fingerprint.numeric_class.digest
    if golden.numeric_class != found:
        raise BrokenRecordError(
            f"numeric_class is {golden.numeric_class}, its fields have {found}", path=path
        )
    if golden.fingerprint.subject.image != image.config:
        raise BrokenRecordError(
            f"the golden is of image {golden.fingerprint.subject.image}, the epoch's is {image.config}",
            path=path,
        )


def _narrow(value: Any) -> Any:
    """Return ``value`` with each integer above 2**53 as ``{"$integer": "<digits>"}``."""
    if isinstance(value, dict):
        return {key: _narrow(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_narrow(item) for item in value]
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return {_WIDE: str(value)}
    return value


def _widen(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_WIDE} and re.fullmatch(r"-?[1-9][0-9]{15,20}", str(value[_WIDE])):
            return int(value[_WIDE])
        return {key: _widen(item) for key, item in value.items()}
    return [_widen(item) for item in value] if isinstance(value, list) else value


# The ledger as a whole.


def epoch_path(number: int) -> str:
    return f"{number:04d}/{EPOCH_FILE}"


def class_path(number: int, record: ClassRecord) -> str:
    """One file per class: a class is recorded once."""
    return f"{number:04d}/class-{_short(record.added.numeric_class)}.json"


def proof_path(number: int, data: bytes) -> str:
    """data: the file's bytes; each proof is a file of its own."""
    return f"{number:04d}/proof-{_short(sha256_digest(data))}.json"


def push_path(number: int, data: bytes) -> str:
    """data: the file's bytes; each push is a file of its own."""
    return f"{number:04d}/push-{_short(sha256_digest(data))}.json"


def parse_ledger(files: Mapping[str, bytes], *, image: str, folder: str) -> tuple[StoredEpoch, ...]:
    """Return the epochs that ``files`` hold, in order, after proving each record and the chain.

    files:  path below the ledger's folder, such as ``0001/epoch.json`` -> bytes.
    folder: the ledger's folder below the project's root; named in errors.
    Raises: BrokenRecordError, BrokenChainError, NewerRecordError.
    """
    folders = _folders(files, folder=folder)
    stored: list[StoredEpoch] = []
    for number in range(1, len(folders) + 1):
        if number not in folders or epoch_path(number) not in files:
            raise BrokenChainError(
                f"epoch {number} is missing, but later records are there",
                path=f"{folder}/{epoch_path(number)}",
            )
        previous = stored[-1] if stored else None
        stored.append(_parse_epoch(files, folders[number], number, previous, image=image, folder=folder))
    return tuple(stored)


def parse_next(data: bytes, epochs: tuple[StoredEpoch, ...], *, image: str, folder: str) -> StoredEpoch:
    """Return the epoch that ``data`` would be after ``epochs``. Proves and raises as parse_ledger does."""
    number = len(epochs) + 1
    previous = epochs[-1] if epochs else None
    path = epoch_path(number)
    return _parse_epoch({path: data}, [path], number, previous, image=image, folder=folder)


def _folders(files: Iterable[str], *, folder: str) -> dict[int, list[str]]:
    """Return number -> paths. Refuses every file that no ledger has."""
    folders: dict[int, list[str]] = {}
    for path in sorted(files):
        match = _PATH.fullmatch(path)
        if match is None or match["folder"] != f"{int(match['folder']):04d}":
            raise BrokenRecordError("this file does not belong into a ledger", path=f"{folder}/{path}")
        if match["kind"] not in (None, "class", "proof", "push"):
            raise NewerRecordError(
                f"a record of the unknown kind {match['kind']!r}", path=f"{folder}/{path}", tool=""
            )
        folders.setdefault(int(match["folder"]), []).append(path)
    return folders


def _parse_epoch(
    files: Mapping[str, bytes],
    paths: list[str],
    number: int,
    previous: StoredEpoch | None,
    *,
    image: str,
    folder: str,
) -> StoredEpoch:
    data, path = files[epoch_path(number)], f"{folder}/{epoch_path(number)}"
    epoch = parse_record(data, Epoch, path=path)
    _check_link(epoch, number, previous, image=image, path=path)
    stored = StoredEpoch(digest=sha256_digest(data), path=path, epoch=epoch)
    classes, proofs, pushes = [], [], []
    for name in paths:
        if "/class-" in name:
            classes.append(parse_class(files[name], stored, path=f"{folder}/{name}"))
        elif "/proof-" in name:
            proofs.append(parse_proof(files[name], stored, path=f"{folder}/{name}"))
        elif "/push-" in name:
            pushes.append(parse_push(files[name], stored, path=f"{folder}/{name}"))
    return msgspec.structs.replace(stored, classes=tuple(classes), proofs=tuple(proofs), pushes=tuple(pushes))


def _check_link(epoch: Epoch, number: int, previous: StoredEpoch | None, *, image: str, path: str) -> None:
    expected = previous.digest if previous else None
    if epoch.image_name != image:
        raise BrokenChainError(f"an epoch of {epoch.image_name!r} in the ledger of {image!r}", path=path)
    if epoch.number != number:
        raise BrokenChainError(f"epoch {epoch.number} lies in the folder of epoch {number}", path=path)
    if epoch.previous != expected:
        raise BrokenChainError(
            f"the chain is broken at epoch {number}: it follows {epoch.previous},"
            f" expected is {expected}, the digest of epoch {number - 1}",
            path=path,
        )


def parse_class(data: bytes, epoch: StoredEpoch, *, path: str) -> StoredClass:
    """Return the class that ``data`` adds to ``epoch``. Raises: BrokenRecordError, BrokenChainError."""
    record = parse_record(data, ClassRecord, path=path)
    _check_belongs(data, record, epoch, path=path)
    _check_class(record.added, epoch.epoch.image, path=path)
    if not path.endswith(class_path(epoch.epoch.number, record)):
        raise BrokenRecordError(f"the file's name is not its class, {record.added.numeric_class}", path=path)
    if record.added.numeric_class == epoch.epoch.first_class.numeric_class:
        raise BrokenRecordError("the epoch itself already records this class", path=path)
    return StoredClass(digest=sha256_digest(data), path=path, record=record)


def parse_proof(data: bytes, epoch: StoredEpoch, *, path: str) -> StoredProof:
    """Return the proof that ``data`` adds to ``epoch``. Raises: BrokenRecordError, BrokenChainError."""
    record = parse_record(data, ProofRecord, path=path)
    _check_belongs(data, record, epoch, path=path)
    if record.config != epoch.epoch.image.config:
        raise BrokenRecordError(
            f"the rebuild came out as {record.config}, the epoch's image is {epoch.epoch.image.config}",
            path=path,
        )
    if not path.endswith(proof_path(epoch.epoch.number, data)):
        raise BrokenRecordError(f"the file's name is not its digest, {sha256_digest(data)}", path=path)
    return StoredProof(digest=sha256_digest(data), path=path, record=record)


def parse_push(data: bytes, epoch: StoredEpoch, *, path: str) -> StoredPush:
    """Return the push that ``data`` adds to ``epoch``. Raises: BrokenRecordError, BrokenChainError."""
    record = parse_record(data, PushRecord, path=path)
    _check_belongs(data, record, epoch, path=path)
    if record.config != epoch.epoch.image.config:
        raise BrokenRecordError(
            f"what was pushed is {record.config}, the epoch's image is {epoch.epoch.image.config}", path=path
        )
    if not is_repository(record.repository):
        raise BrokenRecordError(f"{record.repository[:100]!r} is no repository", path=path)
    if not path.endswith(push_path(epoch.epoch.number, data)):
        raise BrokenRecordError(f"the file's name is not its digest, {sha256_digest(data)}", path=path)
    return StoredPush(digest=sha256_digest(data), path=path, record=record)


def _check_belongs(data: bytes, record: LaterRecord, epoch: StoredEpoch, *, path: str) -> None:
    if record.follows != epoch.digest:
        raise BrokenChainError(
            f"the record follows {record.follows}, expected is {epoch.digest}, epoch {epoch.epoch.number}",
            path=path,
        )
    _check_subjects(_parse_statement(data, type(record), path=path)[0], epoch.epoch.image, path=path)


def check_new_class(epoch: StoredEpoch, record: ClassRecord) -> None:
    """Raises: AlreadyRecordedError where the epoch has that class already."""
    if epoch.golden_of(record.added.numeric_class) is not None:
        raise AlreadyRecordedError(
            f"epoch {epoch.epoch.number} already records class {record.added.numeric_class}", path=epoch.path
        )


def clock_warnings(epochs: tuple[StoredEpoch, ...]) -> tuple[str, ...]:
    """Return a sentence for each epoch whose clock was wrong; order is by number, so it harms nothing."""
    warnings, latest = [], _EARLIEST
    for stored in epochs:
        number, moment = stored.epoch.number, stored.epoch.recorded_at
        if moment < _EARLIEST:
            warnings.append(
                f"epoch {number} is dated {moment}, before this tool existed; check the machine's clock"
            )
        elif moment < latest:
            warnings.append(
                f"epoch {number} is dated {moment}, before an earlier epoch ({latest}); check the clock"
            )
        latest = max(latest, moment)
    return tuple(warnings)


# Finding an epoch.


def find_number(epochs: tuple[StoredEpoch, ...], number: int) -> StoredEpoch | None:
    return epochs[number - 1] if 1 <= number <= len(epochs) else None


def find_tag(epochs: tuple[StoredEpoch, ...], tag: str) -> StoredEpoch | None:
    return next((stored for stored in epochs if stored.epoch.tag == tag), None)


def find_digest(epochs: tuple[StoredEpoch, ...], digest: str) -> StoredEpoch | None:
    """Return the newest epoch whose image has ``digest`` as config, as manifest, or whose record has it."""
    for stored in reversed(epochs):
        forms = (manifest.digest for manifest in stored.manifests)
        if digest in (stored.digest, stored.epoch.image.config, *forms):
            return stored
    return None


def find_epoch(epochs: tuple[StoredEpoch, ...], reference: ImageReference) -> StoredEpoch | None:
    """Return the epoch that ``reference`` names, or None. A tag decides; without one, the digest does.

    A digest beside the tag is the caller's to compare: a moved tag is an answer, not an unknown epoch.
    """
    if reference.tag is not None:
        return find_tag(epochs, reference.tag)
    return find_digest(epochs, reference.digest) if reference.digest is not None else None


def find_text(epochs: tuple[StoredEpoch, ...], text: str) -> StoredEpoch | None:
    """Return the epoch that a user calls ``text``: its number, a tag, a reference, a digest; None if unknown.

    Raises: InvalidReferenceError.
    """
    if re.fullmatch(r"[0-9]{1,9}", text):
        return find_number(epochs, int(text))
    return find_epoch(epochs, parse_reference(text))


def check_contains(epochs: tuple[StoredEpoch, ...], digest: str, *, folder: str) -> None:
    """Refuse a ledger that lacks the epoch record ``digest``, which somebody has seen: a rollback or a fork.

    Raises: MissingRecordError.
    """
    if digest not in {stored.digest for stored in epochs}:
        raise MissingRecordError(digest, path=folder)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
