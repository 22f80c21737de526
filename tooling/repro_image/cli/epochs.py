"""repro-image epochs: read the ledger."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from repro_image.cli import App, print_json
from repro_image.errors import UsageError

if TYPE_CHECKING:
    from repro_image.core.epoch import ClassGolden
    from repro_image.core.ledger import StoredEpoch
    from repro_image.core.together import AskedTogether
    from repro_image.steps.epochs import Change, CheckedLedger, EpochDifference

_HEX = 12  # of a digest, in tables
_NARROWEST = 40  # columns of a terminal that a table is fitted to

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_image = click.option(
    "--image", "-i", metavar="IMAGE", help="Whose ledger; needed for a number when there are several."
)


@click.group()
def epochs() -> None:
    """Read the ledger: which tag is which image, and what it answered.

    Every command proves the records and the chain before it prints anything; a broken ledger exits with 6.

    \b
    repro-image epochs list
    repro-image epochs show 2
    repro-image epochs diff 1 2
    """


@epochs.command("list")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_as_json
@click.pass_obj
def list_(app: App, images: tuple[str, ...], as_json: bool) -> None:
    """List the epochs of each IMAGE, or of all.

    \b
    Example: repro-image epochs list vllm-cpu
    """
    from repro_image.steps.epochs import read_epochs

    ledgers = read_epochs(app.project, app.images(images))
    if as_json:
        print_json(
            {"images": {image: [_row(stored) for stored in found] for image, found in ledgers.items()}}
        )
        return
    rows = [
        (
            image,
            str(stored.epoch.number),
            stored.epoch.tag,
            _short(stored.epoch.image.config),
            str(len(stored.goldens)),
            str(len(stored.proofs)),
            stored.epoch.recorded_at,
        )
        for image, found in ledgers.items()
        for stored in found
    ]
    if rows:
        _print_table(("image", "epoch", "tag", "config", "classes", "proofs", "recorded"), rows)
    else:
        app.console.print("no epochs yet; `repro-image build` records the first", markup=False)


@epochs.command()
@click.argument("epoch", metavar="EPOCH")
@_image
@_as_json
@click.pass_obj
def show(app: App, epoch: str, image: str | None, as_json: bool) -> None:
    """Show one EPOCH: its number, tag, image reference or digest.

    \b
    Example: repro-image epochs show e0002-1a2b3c4d
             repro-image epochs show 2 --image vllm-cpu
    """
    from repro_image.reports.epoch_classes import classes_report
    from repro_image.steps.epochs import asked_together_in, classes_apart

    stored = _find(app, epoch, image)
    pairs, together = classes_apart(app.project, stored), asked_together_in(app.project, stored)
    if as_json:
        print_json(
            {
                "digest": stored.digest,
                "path": stored.path,
                "epoch": stored.epoch,
                "classes": [
                    {"digest": c.digest, "path": c.path, **_fields(c.record)} for c in stored.classes
                ],
                "apart": pairs,
                "together": together,
                "proofs": [{"digest": p.digest, "path": p.path, **_fields(p.record)} for p in stored.proofs],
                "pushes": [{"digest": p.digest, "path": p.path, **_fields(p.record)} for p in stored.pushes],
            }
        )
        return
    _print_pairs(_told(stored, together))
    click.echo()
    click.echo(classes_report(stored.goldens, pairs), nl=False)


@epochs.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@_image
@_as_json
@click.pass_obj
def diff(app: App, a: str, b: str, image: str | None, as_json: bool) -> None:
    """Tell what changed from epoch A to epoch B, and whether both answer the same.

    Only reads: exits with 0 whatever differs. `repro-image verify` is what judges.

    \b
    Example: repro-image epochs diff 1 2
             repro-image epochs diff e0001-1a2b3c4d e0002-5e6f7a8b --json
    """
    from repro_image.steps.epochs import differ

    difference = differ(app.project, _find(app, a, image), _find(app, b, image))
    if as_json:
        print_json(difference)
        return
    _print_difference(difference)


@epochs.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "--contains",
    metavar="DIGEST",
    help="Digest of an epoch record that was seen before: fail when the ledger no longer holds it.",
)
@_as_json
@click.pass_obj
def check(app: App, images: tuple[str, ...], contains: str | None, as_json: bool) -> None:
    """Prove the ledger of each IMAGE, or of all: records, chain, goldens. Exits with 6 when it is broken.

    \b
    Example: repro-image epochs check
    """
    from repro_image.core.reference import is_digest
    from repro_image.steps.epochs import check_ledger

    names = app.images(images)
    if contains is not None and not is_digest(contains):
        raise click.BadParameter("a digest is sha256:<64 hex digits>", param_hint="--contains")
    if contains is not None and len(names) != 1:
        raise UsageError("--contains is about one ledger", where="command line", fix="name one image")
    checked = [check_ledger(app.project, name, contains=contains) for name in names]
    for ledger in checked:
        _note(app, ledger)
    if as_json:
        print_json({"images": checked})
        return
    for ledger in checked:
        found = _count(ledger.epochs, "epoch"), _count(ledger.goldens, "golden")
        click.echo(f"{ledger.image}: {found[0]}, chain ok, {found[1]} ok")


def _note(app: App, ledger: "CheckedLedger") -> None:
    notes = [*ledger.warnings]
    notes += [
        f"golden {_short(digest)} belongs to no epoch: left by a run that did not end; it does no harm"
        for digest in ledger.unreferenced
    ]
    for note in notes:
        app.console.print(f"note: {ledger.image}: {note}", markup=False)


def _find(app: App, text: str, image: str | None) -> "StoredEpoch":
    from repro_image.steps.epochs import find_one, read_epochs

    names = app.images((image,) if image is not None else ())
    if text.isascii() and text.isdigit():
        recorded = [name for name, epochs in read_epochs(app.project, names).items() if epochs]
        if len(recorded) > 1:
            raise UsageError(
                f"epoch {text} of which image? The project has {', '.join(recorded)}",
                where="command line",
                fix="add `--image IMAGE`, or give the epoch's tag",
            )
    return find_one(app.project, names, text)


def _row(stored: "StoredEpoch") -> dict[str, Any]:
    epoch = stored.epoch
    return {
        "number": epoch.number,
        "tag": epoch.tag,
        "reference": f"{epoch.repository}:{epoch.tag}",
        "config": epoch.image.config,
        "digest": stored.digest,
        "classes": [golden.numeric_class for golden in stored.goldens],
        "proofs": len(stored.proofs),
        "recorded_at": epoch.recorded_at,
    }


def _fields(record: Any) -> dict[str, Any]:
    return {field: getattr(record, field) for field in record.__struct_fields__}


def _told(stored: "StoredEpoch", together: Mapping[str, Sequence["AskedTogether"]]) -> list[tuple[str, str]]:
    """Return the lines of `show`, as label and text."""
    epoch = stored.epoch
    pairs = [
        ("epoch", f"{epoch.number} of {epoch.image_name}"),
        ("tag", f"{epoch.repository}:{epoch.tag}"),
        ("record", stored.digest),
        ("follows", epoch.previous or "nothing: the first epoch"),
        ("recorded", f"{epoch.recorded_at} by repro-image {epoch.tool}"),
        ("image", epoch.image.config),
        *(("manifest", f"{manifest.digest} {manifest.compression}") for manifest in epoch.image.manifests),
        ("size", f"{epoch.image.size_bytes:,} bytes in {epoch.image.layers} layers"),
        ("inputs", epoch.input_digest),
        *((f"  {name}", digest) for name, digest in _fields(epoch.inputs).items()),
    ]
    for golden in stored.goldens:
        pairs += [
            ("class", f"{golden.numeric_class}"),
            (
                "  golden",
                f"{golden.golden}, {golden.tokens} tokens, {_count(golden.repeat.runs, 'run')} agreed",
            ),
            *_control(golden),
            *(("  together", _together(lanes)) for lanes in together.get(golden.numeric_class, ())),
            *((f"  {level}", digest) for level, digest in _fields(golden.levels).items()),
        ]
    subject = epoch.first_class.fingerprint.subject
    pairs += [
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(subject.packages.items())))
    ]
    pairs += [
        ("proof", f"rebuilt {each.recorded_at} as {each.config}, by engine {each.builder.get('engine')}")
        for each in (proof.record for proof in stored.proofs)
    ]
    pairs += [
        ("pushed", f"{push.record.reference} {push.record.manifest.compression}") for push in stored.pushes
    ]
    pairs += [("builder", ", ".join(f"{name} {value}" for name, value in sorted(epoch.builder.items())))]
    pairs += [("source", ", ".join(f"{name} {value}" for name, value in sorted(epoch.source.items())))]
    return [(label, text) for label, text in pairs if text]


def _print_difference(difference: "EpochDifference") -> None:
    changes: list[tuple[str, Change]] = [("image", difference.image)] if difference.image else []
    changes += [("model", difference.model)] if difference.model else []
    for part, found in (
        ("input", difference.inputs),
        ("setting", difference.settings),
        ("package", difference.packages),
        ("class", difference.class_changes),
    ):
        changes += [(part, change) for change in found]
    if changes:
        rows = [(part, change.name, _value(change.a), _value(change.b)) for part, change in changes]
        _print_table(("part", "name", difference.a, difference.b), rows)
    else:
        click.echo(f"{difference.a} and {difference.b} were made from the same inputs and are the same image")
    for answers in difference.answers:
        equal = [level for level, is_equal in answers.levels.items() if is_equal]
        told = f"{answers.verdict} ({answers.reason})" if answers.reason else answers.verdict or "unknown"
        click.echo(
            f"answers in class {_short(answers.numeric_class)}: {_visible(told)}: {_visible(answers.detail)}"
        )
        click.echo(f"  equal levels: {', '.join(equal) or 'none'}")
    if not difference.answers:
        click.echo("answers: not comparable, the epochs have no numeric class in common")


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns: fitted to a terminal, never wrapped or cut in a pipe."""
    cells = [[_visible(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and shutil.get_terminal_size().columns >= _NARROWEST:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    for line in (head, *cells):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        click.echo(f"{label.ljust(width)}  {_visible(text)}")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = str(value)
    return _short(text) if text.startswith("sha256:") else text


def _visible(text: str) -> str:
    """Return ``text`` in printable ASCII: it came from an image, and the terminal may know nothing else."""
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_HEX]


def _control(golden: "ClassGolden") -> Iterator[tuple[str, str]]:
    """Yield how the golden showed that it has teeth, where its record says it."""
    if golden.negative_control is not None:
        control = golden.negative_control
        yield "  control", f"{control.change}: found by {control.found_by} over {control.prompts} prompts"


def _together(lanes: "AskedTogether") -> str:
    """Return what it changed that prompts were asked together."""
    counts = ", ".join(f"{level} {count}" for level, count in lanes.differing.items() if count)
    told = f"{counts} of {lanes.prompts} prompts differ" if counts else f"equal over {lanes.prompts} prompts"
    promise = "; batch invariance promised that none would" if lanes.is_broken_promise else ""
    return f"{lanes.together} against {lanes.alone}: {told}{promise}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
