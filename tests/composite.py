"""A small runner for this repository's composite action: what GitHub's does, as far as the action uses it."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.scratch import REPOSITORY

ACTION = REPOSITORY / ".github/actions/repro-image"

# Whole names of the contexts, so that a dash in one is no minus.
_NAMES = re.compile(r"inputs\.(?P<input>[a-z-]+)|steps\.(?P<step>[a-z-]+)\.outputs\.(?P<output>[a-z-]+)")


@dataclass(frozen=True, slots=True)
class Ended:
    """How the action ended. code: of the step that failed, or 0; steps: names of those that ran."""

    code: int
    outputs: Mapping[str, str]
    summary: str
    log: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Runner:
    """A machine that runs jobs. temp: RUNNER_TEMP, where the action keeps the tool from call to call."""

    temp: Path
    environment: Mapping[str, str]

    def run(self, workspace: Path, environment: Mapping[str, str] | None = None, **inputs: str) -> Ended:
        """Run the action with ``inputs`` (a dash in a name is an underscore here) in ``workspace``."""
        action = yaml.safe_load((ACTION / "action.yml").read_text())
        values = _inputs(action, {name.replace("_", "-"): value for name, value in inputs.items()})
        summary, outputs = self.temp / "summary", dict[str, dict[str, str]]()
        summary.write_text("")
        code, log, ran = 0, "", []
        for step in action["runs"]["steps"]:
            if code or not _value(step.get("if", "true"), values, outputs):
                continue
            output = self.temp / "output"
            output.write_text("")
            done = subprocess.run(
                [*_shell(step), step["run"]],
                cwd=workspace,
                env={
                    **os.environ,
                    **self.environment,
                    **(environment or {}),
                    **{name: _text(text, values, outputs) for name, text in step.get("env", {}).items()},
                    "RUNNER_TEMP": str(self.temp),
                    "GITHUB_ACTION_PATH": str(ACTION),
                    "GITHUB_OUTPUT": str(output),
                    "GITHUB_STEP_SUMMARY": str(summary),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            code, log = done.returncode, log + done.stdout
            ran.append(step["name"])
            found = (line.partition("=") for line in output.read_text().splitlines())
            outputs[step.get("id", step["name"])] = {name: value for name, _, value in found}
        # GitHub's runner sets the outputs of an action that failed, too.
        shown = {name: _text(row["value"], values, outputs) for name, row in action["outputs"].items()}
        return Ended(code, shown, summary.read_text(), log, tuple(ran))


def _inputs(action: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    assert given.keys() <= action["inputs"].keys()
    values = {name: given.get(name, row.get("default")) for name, row in action["inputs"].items()}
    assert None not in values.values()
    return values


def _shell(step: Mapping[str, Any]) -> list[str]:
    assert step["shell"] == "bash"
    return ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"]


def _text(text: str, inputs: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(_value(found[1], inputs, outputs)), text)


def _value(expression: str, inputs: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]]) -> Any:
    """Evaluate the few forms of an expression that the action uses, as Python."""

    def literal(found: re.Match[str]) -> str:
        if found["input"]:
            return repr(inputs[found["input"]])
        return repr(outputs.get(found["step"], {}).get(found["output"], ""))

    python = _NAMES.sub(literal, expression).replace("&&", " and ").replace("||", " or ")
    python = re.sub(r"!(?!=)", " not ", python).strip()
    names = {"contains": lambda a, b: b in a, "startsWith": lambda a, b: a.startswith(b), "true": True}
    return eval(python, {"__builtins__": {}}, names)  # noqa: S307 - our own action's text
