"""What `verify` found on several runners: a Markdown table, and the tags that do not match."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tables import table, visible

_COLUMNS = ("runner", "tag", "class", "verdict", "detail")


def read(folder: Path, runners: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield a row for each runner; one that left no document has no verdict."""
    for runner in runners:
        path = folder / f"verify-{runner}" / "verify.json"
        row = dict.fromkeys(_COLUMNS, "") | {"runner": runner, "detail": "no verdict: see the job's log"}
        if path.is_file():
            document: dict[str, Any] = json.loads(path.read_text())
            context = document["context"]
            row |= {"tag": visible(context["tag"]), "class": context["class"]}
            row |= {"verdict": document["verdict"], "detail": document["detail"]}
        yield row


def verdicts(rows: Iterator[dict[str, str]], tag: str | None = None) -> str:
    """Return the rows as a table; with ``tag`` those of that tag only."""
    return table(_COLUMNS, [tuple(row.values()) for row in rows if tag in (None, row["tag"])])


def mismatches(rows: Iterator[dict[str, str]]) -> list[str]:
    """Return the tags with a mismatch, each once."""
    return sorted({row["tag"] for row in rows if row["verdict"] == "mismatch"})


def issue(listed: Sequence[dict[str, Any]], title: str) -> str:
    """Return the number of the first issue with exactly this title, or nothing."""
    return next((str(found["number"]) for found in listed if found["title"] == title), "")


def main(verb: str, *arguments: str) -> None:
    """Print what ``verb`` asks for."""
    if verb == "issue":
        listed, title = arguments
        print(issue(json.loads(listed), title))
        return
    folder, runners, *tag = arguments
    rows = read(Path(folder), json.loads(runners))
    print(verdicts(rows, *tag) if verb == "table" else "\n".join(mismatches(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
