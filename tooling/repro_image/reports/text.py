"""Comparison -> a short text for people: verdict, levels, first divergence, sizes of the differences."""

from collections.abc import Iterable, Mapping

import click

from repro_image.core.comparison import Comparison, FieldDifference, Verdict
from repro_image.core.differences import Decade, LevelRow, PromptRow, Rate, Token, Visible
from repro_image.reports.escape import quoted, visible

LEVEL_NAMES = {
    "H0": "tokenised prompts",
    "H1": "output tokens",
    "H2": "likeliest tokens",
    "H3": "log-probability bits",
}
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
        _differences_of_sides(comparison),
        _level_lines(comparison.levels),
        row_lines(comparison.first) if comparison.first else [],
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


def _differences_of_sides(comparison: Comparison) -> list[str]:
    rows = [(item.field, _sides(item)) for item in comparison.fields]
    if comparison.tokenizer:
        first = comparison.tokenizer
        ids = f"expected {_or_end(first.expected)}, found {_or_end(first.found)}"
        rows.append((visible(first.prompt), f"id {first.position}: {ids}"))
    if comparison.weights:
        names = ", ".join(visible(name) for name in comparison.weights.names)
        rows.append(("weights", f"{comparison.weights.differing} of {comparison.weights.tensors}: {names}"))
    return aligned(rows)


def _level_lines(levels: tuple[LevelRow, ...]) -> list[str]:
    width = max(map(len, LEVEL_NAMES.values()))
    return [
        f"  {row.level}  {LEVEL_NAMES[row.level]:<{width}}  "
        + ("equal" if row.equal else f"{row.differing} of {row.prompts} prompts differ")
        for row in levels
    ]


def row_lines(row: PromptRow) -> list[str]:
    """Return where ``row`` parts, with both tokens and how sure each side was."""
    if row.divergence is None:
        where = (
            f"position {row.first_bit_difference}" if row.first_bit_difference is not None else "the prompt"
        )
        return [f"  first difference: {visible(row.id)} at {where} of {row.tokens}, tokens same"]
    position = row.divergence.position
    head = f"  first divergence: {visible(row.id)} at token {position} of {row.tokens}"
    if row.first_bit_difference is not None and row.first_bit_difference < position:
        head += f", bits from token {row.first_bit_difference} on"
    sides = (("expected", row.divergence.expected), ("found", row.divergence.found))
    return [head, *(f"    {name:<8}  {_token(token)}" for name, token in sides)]


def _token(token: Token) -> str:
    if token.id is None:
        return "no token: the answer ends before"
    text = f"{quoted(token.text)} (id {token.id})"
    if token.margin_nats is None or token.margin_ulps is None:
        return text
    return f"{text}, margin {token.margin_nats:.6g} nats = {token.margin_ulps:.6g} ulp"


def _measures(comparison: Comparison) -> list[str]:
    rows = []
    if comparison.verdict is not Verdict.MATCH:
        if comparison.flips:
            rows.append(("flipped tokens", _rate(comparison.flips)))
        if comparison.replay_flips:
            rows.append(("flipped in replay", _rate(comparison.replay_flips)))
        if comparison.differences:
            rows.append(("off by nats", _decades(comparison.differences.decades)))
    if comparison.visible:
        rows.append(("power", _power(comparison.visible)))
    return aligned(rows)


def _rate(rate: Rate) -> str:
    interval = f"95 % interval {_percent(rate.low)} to {_percent(rate.high)}"
    share = f" = {_percent(rate.events / rate.trials)}" if rate.trials else ""
    return f"{rate.events} of {rate.trials}{share}, {interval}"


def _decades(decades: tuple[Decade, ...]) -> str:
    parts = [
        f"0: {row.count}" if row.exponent is None else f"1e{row.exponent}: {row.count}" for row in decades
    ]
    return ", ".join(parts) or "nothing to compare"


def _power(sight: Visible) -> str:
    per_token, per_prompt = _percent(sight.power.sees_per_token), _percent(sight.sees_per_prompt)
    return (
        f"sees a per-token change of p >= {per_token} with {_percent(sight.power.confidence)} "
        f"({sight.power.tokens} tokens); with prompts as clusters p >= {per_prompt} ({sight.power.prompts})"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _sides(item: FieldDifference) -> str:
    """Return both values; of two lists only what the other lacks."""
    ours, theirs = item.expected, item.found
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        missing, added = ([str(x) for x in a if x not in b] for a, b in ((ours, theirs), (theirs, ours)))
        return visible(f"missing {' '.join(missing) or 'nothing'}, added {' '.join(added) or 'nothing'}")
    return visible(f"expected {ours}, found {theirs}")


def _or_end(token: int | None) -> str:
    return "the end" if token is None else str(token)
