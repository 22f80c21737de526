"""Comparison -> a short text for people: verdict, levels, first divergence, sizes of the differences."""

from collections.abc import Iterable, Mapping

import click

from repro_image.core.across import Across
from repro_image.core.comparison import Comparison, Verdict
from repro_image.core.differences import Decade, LevelRow, PromptRow
from repro_image.reports.escape import visible
from repro_image.reports.phrases import (
    LEVEL_NAMES,
    across_tests,
    level_text,
    parting_text,
    power_text,
    rate_text,
    side_texts,
    token_text,
)

_COLOURS = {
    Verdict.MATCH: "green",
    Verdict.MISMATCH: "red",
    Verdict.NOT_COMPARABLE: "yellow",
    Verdict.DRIFT: "yellow",
}


def text_report(comparison: Comparison, *, context: Mapping[str, str], colour: bool = False) -> str:
    """Return the report; ends in a newline.

    context: what was verified, such as tag, image and class, printed as given, in order.
    colour:  whether to style the verdict for a terminal; nothing that a model wrote is ever passed on raw.
    """
    blocks = [
        [_headline(comparison, colour=colour)],
        aligned((name, visible(value)) for name, value in context.items()),
        aligned((visible(name), visible(told)) for name, told in side_texts(comparison)),
        _level_lines(comparison.levels),
        row_lines(comparison.first) if comparison.first else [],
        _across(comparison.across) if comparison.across else [],
        _measures(comparison),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return one indented line per row, the second column aligned."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in listed]


def _headline(comparison: Comparison, *, colour: bool) -> str:
    verdict = str(comparison.verdict)
    if comparison.reason:
        verdict += f" ({comparison.reason})"
    if colour:
        verdict = click.style(verdict, fg=_COLOURS[comparison.verdict], bold=True)
    return f"{verdict}: {visible(comparison.detail)}"


def _level_lines(levels: tuple[LevelRow, ...]) -> list[str]:
    width = max(map(len, LEVEL_NAMES.values()))
    return [f"  {row.level}  {LEVEL_NAMES[row.level]:<{width}}  {level_text(row)}" for row in levels]


def row_lines(row: PromptRow) -> list[str]:
    """Return where ``row`` parts, with both tokens and how sure each side was."""
    if row.divergence is None:
        return [f"  first difference: {visible(row.id)} at {parting_text(row)}"]
    sides = (("expected", row.divergence.expected), ("found", row.divergence.found))
    head = f"  first divergence: {visible(row.id)} at {parting_text(row)}"
    return [head, *(f"    {name:<8}  {token_text(token)}" for name, token in sides)]


def _across(across: Across) -> list[str]:
    """Return the three tests of another class: what was found, what is allowed, whether it holds."""
    rows = [
        (test.name, f"{'holds' if test.holds else 'fails'}: {test.found}, allowed {test.limit}")
        for test in across_tests(across)
    ]
    return [f"  judged by {across.tokens} replayed tokens:", *(f"  {line}" for line in aligned(rows))]


def _measures(comparison: Comparison) -> list[str]:
    rows = []
    if comparison.part:
        asked, of = comparison.part.prompts, comparison.part.of_prompts
        rows.append(
            ("compared", f"{asked} of {of} answers, up to the first difference; the rest was not asked")
        )
    if comparison.verdict is not Verdict.MATCH:
        if comparison.flips:
            rows.append(("flipped tokens", rate_text(comparison.flips)))
        if comparison.replay_flips:
            rows.append(("flipped in replay", rate_text(comparison.replay_flips)))
        if comparison.differences:
            differences = comparison.differences
            rows.append(("off by nats", _decades(differences.decades)))
            ulps = (
                f"{_decades(differences.ulp_decades)} (1 ulp of the logits = {differences.ulp_nats:.3g} nats)"
            )
            rows.append(("off by ulps", ulps))
    if comparison.visible:
        rows.append(("power", power_text(comparison.visible)))
    return aligned(rows)


def _decades(decades: tuple[Decade, ...]) -> str:
    parts = [
        f"0: {row.count}" if row.exponent is None else f"1e{row.exponent}: {row.count}" for row in decades
    ]
    return ", ".join(parts) or "nothing to compare"
