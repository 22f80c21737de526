"""repro-image build."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from repro_image.cli import App, print_json
from repro_image.errors import MismatchError, ProveWithoutEpochError, PushWithoutEpochError

if TYPE_CHECKING:
    from repro_image.core.ledger import StoredEpoch
    from repro_image.steps.build import BuildOutcome
    from repro_image.steps.prove import Proof
    from repro_image.steps.push import Pushed


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--no-golden", is_flag=True, help="Build only: no golden run, no epoch. Works on any machine.")
@click.option("--no-cache", is_flag=True, help="Where something has to be built: run every step again.")
@click.option(
    "--prove", is_flag=True, help="Build once more without cache and compare; equal joins the epoch."
)
@click.option("--push", is_flag=True, help="Send the epoch's image to the project's registry.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def build(
    app: App,
    images: tuple[str, ...],
    no_golden: bool,
    no_cache: bool,
    prove: bool,
    push: bool,
    as_json: bool,
) -> None:
    """Build images from their locks, run the golden generation, record a new epoch.

    Nothing changed and the image at hand: says so and writes nothing. Nothing changed and the image missing:
    rebuilds it, and it must come out as the epoch's image.

    With --prove the image is then built a second time, every step again. Equal: a proof record joins the
    epoch. Not equal: every difference is told with its cause, and the exit code is 10. DOCKER_HOST names
    another engine, whose cache is its own; the record tells which engine it was.

    With --push the epoch's image is then in the registry that `repository` in [tool.repro-image] begins
    with, under its tag: only the layers that it lacks are sent. The manifest that it gives back joins the
    epoch, and `verify` elsewhere pulls by it.

    \b
    Examples:
      repro-image build vllm-cpu
      repro-image build vllm-cpu --push
      repro-image build vllm-cpu --prove
    """
    from repro_image.cli.screen import Screen
    from repro_image.steps.build import build as build_step

    if prove and no_golden:
        raise ProveWithoutEpochError
    if push and no_golden:
        raise PushWithoutEpochError
    if push:
        from repro_image.steps.push import require_registry

        require_registry(app.project)
    documents, is_proved = [], True
    for name in app.images(images):
        with Screen() as screen:
            outcome = build_step(
                app.project,
                name,
                store=app.store,
                engine=app.engine,
                reporter=screen,
                now=lambda: datetime.now(UTC),
                with_golden=not no_golden,
                use_cache=not no_cache,
            )
        if not as_json:
            click.echo(_told(outcome))
        proof = _prove(app, outcome.epoch) if prove and outcome.epoch is not None else None
        if proof is not None:
            is_proved = is_proved and proof.difference is None
            if not as_json:
                click.echo(_proof_told(proof))
        is_fit = proof is None or proof.difference is None
        pushed = _push(app, outcome.epoch) if push and is_fit and outcome.epoch is not None else None
        if pushed is not None and not as_json:
            click.echo(_push_told(pushed))
        documents.append({**_fields(outcome), "proof": _proof_fields(proof), "push": _push_fields(pushed)})
    if as_json:
        print_json(documents)
    if not is_proved:
        sys.exit(MismatchError.exit_code)


def _prove(app: App, epoch: "StoredEpoch") -> "Proof":
    from repro_image.cli.screen import Screen
    from repro_image.steps.prove import prove

    with Screen() as screen:
        return prove(
            app.project,
            epoch,
            store=app.store,
            engine=app.engine,
            reporter=screen,
            now=lambda: datetime.now(UTC),
        )


def _push(app: App, epoch: "StoredEpoch") -> "Pushed":
    from repro_image.cli.screen import Screen
    from repro_image.steps.push import push_epoch

    with Screen() as screen:
        return push_epoch(
            app.project,
            epoch,
            store=app.store,
            engine=app.engine,
            reporter=screen,
            now=lambda: datetime.now(UTC),
        )


def _told(outcome: "BuildOutcome") -> str:
    head = {
        "recorded": "recorded epoch",
        "unchanged": "nothing changed since epoch",
        "rebuilt": "rebuilt, bit for bit, the image of epoch",
        "built": "built without a golden",
    }[outcome.did]
    lines = [head if outcome.epoch is None else f"{head} {outcome.epoch.epoch.number}"]
    lines += [f"  tag:    {outcome.reference}", f"  image:  {outcome.config}"]
    if outcome.epoch is not None:
        first = outcome.epoch.epoch.first_class
        lines.append(f"  golden: {first.golden} ({first.tokens} tokens, class {first.numeric_class[7:19]})")
    if outcome.comparison is not None:
        same = "the same answers" if outcome.comparison.verdict == "match" else outcome.comparison.detail
        lines.append(f"  against epoch {outcome.against}: {same}")
    if outcome.epoch is not None and outcome.did == "recorded":
        lines.append(f"\nprove it:  repro-image verify {outcome.reference}")
    return "\n".join(lines)


def _fields(outcome: "BuildOutcome") -> dict[str, Any]:
    return {
        "did": outcome.did,
        "reference": outcome.reference,
        "config": outcome.config,
        "epoch": outcome.epoch.epoch.number if outcome.epoch else None,
        "comparison": None
        if outcome.comparison is None
        else {
            "against": outcome.against,
            "verdict": outcome.comparison.verdict,
            "detail": outcome.comparison.detail,
        },
    }


def _proof_told(proof: "Proof") -> str:
    from repro_image.reports.image_diff import diff_report

    engine = f"{'another' if proof.is_other_engine else 'the same'} engine, {proof.builder['engine']}"
    how = f"built once more without cache by {engine}"
    if proof.difference is None:
        return f"\nproved: {how}, the same image; record {proof.record}"
    return f"\nnot proved: {how}, another image\n\n{diff_report(proof.difference)}"


def _proof_fields(proof: "Proof | None") -> dict[str, Any] | None:
    if proof is None:
        return None
    return {
        "config": proof.config,
        "builder": proof.builder,
        "is_other_engine": proof.is_other_engine,
        "record": proof.record,
        "difference": proof.difference,
    }


def _push_told(pushed: "Pushed") -> str:
    if pushed.did == "there":
        return f"\nin the registry already: {pushed.reference}"
    return (
        f"\npushed {pushed.reference}\n"
        f"  sent:   {pushed.layers} layers, {pushed.sent_bytes / 1e6:,.1f} MB; record {pushed.record}"
    )


def _push_fields(pushed: "Pushed | None") -> dict[str, Any] | None:
    if pushed is None:
        return None
    return {
        "did": pushed.did,
        "reference": pushed.reference,
        "record": pushed.record,
        "layers": pushed.layers,
        "sent_bytes": pushed.sent_bytes,
    }
