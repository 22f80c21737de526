"""Comparison -> Markdown for a job's summary or an issue: verdict, levels, the whole text report below."""

import re
from collections.abc import Mapping

from repro_image.core.comparison import Comparison, Verdict
from repro_image.reports.phrases import LEVEL_NAMES, level_text
from repro_image.reports.text import text_report


def markdown_report(comparison: Comparison, *, context: Mapping[str, str]) -> str:
    """Return the report; ends in a newline."""
    headline = str(comparison.verdict) + (f" ({comparison.reason})" if comparison.reason else "")
    told = folded(text_report(comparison, context=context), is_open=comparison.verdict is not Verdict.MATCH)
    blocks = [f"### {headline}", _levels(comparison), told]
    return "\n\n".join(block for block in blocks if block) + "\n"


def folded(told: str, *, is_open: bool) -> str:
    """Return a text report below a line that unfolds it.

    What was verified and what a model wrote stands in a code block only, whose fence is longer than any run
    of backticks in it, so that nothing of it is ever Markdown or HTML.
    """
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", told))])
    state = " open" if is_open else ""
    return f"<details{state}><summary>report</summary>\n\n{fence}text\n{told}{fence}\n\n</details>"


def _levels(comparison: Comparison) -> str:
    if not comparison.levels:
        return ""
    rows = [
        f"| {row.level} | {LEVEL_NAMES[row.level]} | "
        f"{level_text(row) if row.equal else f'**{level_text(row)}**'} |"
        for row in comparison.levels
    ]
    return "\n".join(["| level | what | found |", "|---|---|---|", *rows])
