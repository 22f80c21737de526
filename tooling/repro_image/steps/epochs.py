"""Read the ledger: find an epoch, tell two apart, prove everything."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any

import msgspec

from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from repro_image.core.canonical import canonical_digest
from repro_image.core.classes import Apart, apart, not_compared
from repro_image.core.epoch import ClassGolden
from repro_image.core.fingerprint import Subject, class_differences
from repro_image.core.golden import LEVELS, Golden, levels
from repro_image.core.ledger import StoredEpoch, check_contains, clock_warnings, find_text
from repro_image.core.together import AskedTogether, asked_together
from repro_image.errors import BrokenRecordError, LedgerDiskError, LedgerError, UnknownEpochError


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that differs. a, b: its value on each side, None where that side has none."""

    name: str
    a: Any
    b: Any


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What two epochs answered in one numeric class.

    levels:  level -> whether both sides have the same digest.
    verdict: of comparing the two goldens; None, with the reason in ``detail``, where one cannot be read.
    """

    numeric_class: str
    levels: dict[str, bool]
    verdict: str | None
    reason: str | None
    detail: str


class EpochDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What changed from epoch a to epoch b.

    inputs:        parts of the input digest; digests.
    settings:      engine settings as asked, with ``env.`` before variables.
    packages:      versions seen inside in the first class.
    model:         the model folder's digest.
    answers:       one per numeric class that both epochs have.
    class_changes: fields in which the first classes differ, where no class is shared.
    """

    a: str
    b: str
    image: Change | None
    inputs: tuple[Change, ...]
    settings: tuple[Change, ...]
    packages: tuple[Change, ...]
    model: Change | None
    answers: tuple[Answers, ...]
    class_changes: tuple[Change, ...]


class CheckedLedger(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger that was proved.

    last:         digest of the newest epoch record.
    unreferenced: digests of goldens that no epoch names.
    """

    image: str
    epochs: int
    classes: int
    proofs: int
    goldens: int
    last: str | None
    unreferenced: tuple[str, ...]
    warnings: tuple[str, ...]


def read_epochs(project: Project, images: Iterable[str]) -> dict[str, tuple[StoredEpoch, ...]]:
    """Return each image's epochs, all of them proved. Raises: LedgerError."""
    return {image: ledger_of(project, image).read() for image in images}


def ledger_of(project: Project, image: str) -> Ledger:
    return Ledger(project.lock_folder(image), image)


def goldens_of(project: Project, image: str) -> Goldens:
    return Goldens(project.lock_folder(image) / "goldens")


def find_one(project: Project, images: Iterable[str], text: str) -> StoredEpoch:
    """Return the epoch that ``text`` names, looked up in the ledgers of ``images``.

    text: a number, a tag, a reference or a digest.
    Raises: UnknownEpochError, InvalidReferenceError, LedgerError.
    """
    known: list[str] = []
    for epochs in read_epochs(project, images).values():
        found = find_text(epochs, text)
        if found is not None:
            return found
        known += [f"{stored.epoch.repository}:{stored.epoch.tag}" for stored in epochs]
    raise UnknownEpochError(text, known=tuple(known))


def differ(project: Project, a: StoredEpoch, b: StoredEpoch) -> EpochDifference:
    """Return what changed from ``a`` to ``b``, and whether both answer the same where that can be told."""
    ours, theirs = a.epoch.first_class.fingerprint, b.epoch.first_class.fingerprint
    shared = [(golden, b.golden_of(golden.numeric_class)) for golden in a.goldens]
    answers = [_answers(project, a, left, b, right) for left, right in shared if right is not None]
    unlike = () if answers else class_differences(ours.numeric_class, theirs.numeric_class)
    return EpochDifference(
        a=a.epoch.tag,
        b=b.epoch.tag,
        image=_change("image", a.epoch.image.config, b.epoch.image.config),
        inputs=_changes(_table(a.epoch.inputs), _table(b.epoch.inputs)),
        settings=_changes(_settings(ours.subject), _settings(theirs.subject)),
        packages=_changes(ours.subject.packages, theirs.subject.packages),
        model=_change("model", ours.subject.model, theirs.subject.model),
        answers=tuple(answers),
        class_changes=tuple(Change(name=field, a=left, b=right) for field, left, right in unlike),
    )


def classes_apart(project: Project, stored: StoredEpoch) -> tuple[Apart, ...]:
    """Return each two classes of ``stored``, in the order in which they were recorded."""
    return tuple(_apart(project, stored, a, b) for a, b in combinations(stored.goldens, 2))


def _apart(project: Project, stored: StoredEpoch, a: ClassGolden, b: ClassGolden) -> Apart:
    goldens = goldens_of(project, stored.epoch.image_name)
    try:
        return apart(a, goldens.read(a.golden), b, goldens.read(b.golden))
    except (LedgerError, LedgerDiskError) as error:
        return not_compared(a, b, f"not compared: {error.what} ({error.where})")


def asked_together_in(project: Project, stored: StoredEpoch) -> dict[str, tuple[AskedTogether, ...]]:
    """Return numeric class -> what asking together changed; nothing for a golden that cannot be read."""
    goldens = goldens_of(project, stored.epoch.image_name)
    found = {}
    for entry in stored.goldens:
        with suppress(LedgerError, LedgerDiskError):
            found[entry.numeric_class] = asked_together(goldens.read(entry.golden))
    return found


def check_ledger(project: Project, image: str, *, contains: str | None = None) -> CheckedLedger:
    """Prove the whole ledger of ``image``: records, chain, and every golden against its epoch.

    contains: digest of an epoch record that must be there; the ledger may have grown since, not shrunk.
    Raises: LedgerError, NewerRecordError.
    """
    ledger, goldens = ledger_of(project, image), goldens_of(project, image)
    epochs = ledger.read()
    if contains is not None:
        check_contains(epochs, contains, folder=ledger.name)
    named = set()
    for stored in epochs:
        for entry in stored.goldens:
            named.add(entry.golden)
            _check_golden(
                goldens.read(entry.golden),
                entry,
                stored,
                name=f"{goldens.name}/{goldens.path(entry.golden).name}",
            )
    present = goldens.digests()
    return CheckedLedger(
        image=image,
        epochs=len(epochs),
        classes=sum(len(stored.classes) for stored in epochs),
        proofs=sum(len(stored.proofs) for stored in epochs),
        goldens=len(named),
        last=epochs[-1].digest if epochs else None,
        unreferenced=tuple(digest for digest in present if digest not in named),
        warnings=clock_warnings(epochs),
    )


def _check_golden(golden: Golden, entry: ClassGolden, stored: StoredEpoch, *, name: str) -> None:
    """Prove that ``golden`` is what its epoch says of it."""
    found = levels(golden)
    wrong = [level for level in LEVELS if getattr(found, level) != getattr(entry.levels, level)]
    suite = entry.fingerprint.subject.suite
    if wrong:
        what = f"levels {', '.join(wrong)} of the golden are not those of epoch {stored.epoch.number}"
    elif golden.token_count != entry.tokens:
        what = f"the golden has {golden.token_count} tokens, epoch {stored.epoch.number} says {entry.tokens}"
    elif canonical_digest(golden.request) != suite:
        what = f"the golden answers another request than epoch {stored.epoch.number} says"
    else:
        return
    raise BrokenRecordError(what, path=name)


def _answers(
    project: Project, a: StoredEpoch, left: ClassGolden, b: StoredEpoch, right: ClassGolden
) -> Answers:
    from repro_image.core.comparison import compare

    verdict: str | None = None
    reason: str | None = None
    try:
        comparison = compare(
            goldens_of(project, a.epoch.image_name).read(left.golden),
            goldens_of(project, b.epoch.image_name).read(right.golden),
        )
        verdict, detail = str(comparison.verdict), comparison.detail
        reason = str(comparison.reason) if comparison.reason is not None else None
    except (LedgerError, LedgerDiskError) as error:
        detail = f"not compared: {error.what} ({error.where})"
    same = {level: getattr(left.levels, level) == getattr(right.levels, level) for level in LEVELS}
    return Answers(
        numeric_class=left.numeric_class, levels=same, verdict=verdict, reason=reason, detail=detail
    )


def _settings(subject: Subject) -> dict[str, Any]:
    return {**subject.engine, **{f"env.{name}": value for name, value in subject.environment.items()}}


def _table(value: msgspec.Struct) -> dict[str, Any]:
    return {field: getattr(value, field) for field in value.__struct_fields__}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    names = sorted({*a, *b})
    found = (_change(name, a.get(name), b.get(name)) for name in names)
    return tuple(change for change in found if change is not None)


def _change(name: str, a: Any, b: Any) -> Change | None:
    return None if (type(a), a) == (type(b), b) else Change(name=name, a=a, b=b)
