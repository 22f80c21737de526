"""repro-image build."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from repro_image.cli import App, print_json

if TYPE_CHECKING:
    from repro_image.steps.build import BuildOutcome


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--no-golden", is_flag=True, help="Build only: no golden run, no epoch. Works on any machine.")
@click.option("--no-cache", is_flag=True, help="Run every build step again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def build(app: App, images: tuple[str, ...], no_golden: bool, no_cache: bool, as_json: bool) -> None:
    """Build images from their locks, run the golden generation, record a new epoch.

    Nothing changed and the image at hand: says so and writes nothing. Nothing changed and the image missing:
    rebuilds it, and it must come out as the epoch's image.

    \b
    Example:
      repro-image build vllm-cpu
    """
    from repro_image.cli.screen import Screen
    from repro_image.steps.build import build as build_step

    outcomes = []
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
        outcomes.append(outcome)
        if not as_json:
            click.echo(_told(outcome))
    if as_json:
        print_json([_fields(outcome) for outcome in outcomes])


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
