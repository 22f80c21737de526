""".github/scripts: what the workflows run beside the tool, on real git repositories and a stand-in for gh."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from tests.ledger_samples import digest_of, sample_class, sample_epoch, sample_golden
from tests.scratch import COMMAND, REPOSITORY

SCRIPTS = REPOSITORY / ".github/scripts"
IMAGES = ("vllm-cpu", "other")

# Keeps issues and pull requests in a JSON file, and tells what it was called with: as much of gh as is used.
GH = f"""#!{sys.executable}
import json, os, pathlib, shutil, sys

home = pathlib.Path(os.environ["FAKE_GH"])
call, options = sys.argv[1:3], dict(zip(sys.argv[3::1], sys.argv[4::1]))
with (home / "calls").open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
state = home / "issues.json"
issues = json.loads(state.read_text()) if state.exists() else []
if call == ["run", "download"]:
    if not any(home.glob("verify-*")):
        sys.exit("no artifact matches any of the names or patterns provided")
    for folder in home.glob("verify-*"):
        shutil.copytree(folder, pathlib.Path(options["--dir"]) / folder.name)
elif call == ["issue", "list"]:
    print(json.dumps(issues))
elif call in (["issue", "create"], ["pr", "create"]):
    issues.append({{"number": len(issues) + 7, "title": options["--title"]}})
elif call == ["pr", "list"]:
    print(len(issues))
state.write_text(json.dumps(issues))
"""


@dataclass(frozen=True, slots=True)
class Forge:
    """A bare repository with one commit, and what a job finds around it."""

    folder: Path

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    def clone(self, name: str) -> Path:
        git(self.folder, "clone", "--quiet", str(self.origin), name)
        return self.folder / name

    def start(self, clone: Path, script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(SCRIPTS / script), *arguments],
            cwd=clone,
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "FAKE_GH": str(self.folder / "gh"),
                "RUNNER_TEMP": str(self.folder),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
                "GITHUB_SERVER_URL": "https://example.org",
                "GITHUB_REPOSITORY": "a/b",
                "GITHUB_RUN_ID": "12",
                "REPRO_IMAGE_TOOL": str(COMMAND),
                "REPRO_IMAGE_PUSH_PAUSE_S": "0",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, clone: Path, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Return the exit code and what was printed."""
        process = self.start(clone, script, *arguments, **environment)
        told, _ = process.communicate(timeout=60)
        return process.returncode, told

    def calls(self, *command: str) -> list[list[str]]:
        """Return what gh was asked to do, of ``command`` only."""
        lines = (self.folder / "gh/calls").read_text().splitlines()
        return [call for line in lines if (call := json.loads(line))[: len(command)] == list(command)]

    def main(self) -> list[str]:
        """Return the files of the newest commit of main."""
        return git(self.origin, "ls-tree", "-r", "--name-only", "main").splitlines()


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    first = tmp_path / "first"
    for image in IMAGES:
        (first / "images" / image).mkdir(parents=True)
        source = REPOSITORY / "images/vllm-cpu/image.toml"
        (first / "images" / image / "image.toml").write_bytes(source.read_bytes())
        (first / "locks" / image).mkdir(parents=True)
        (first / "locks" / image / "requirements.txt").write_text("torch==1.0 --hash=sha256:00\nsame==1\n")
    (first / "pyproject.toml").write_text("[tool.repro-image]\n")
    git(tmp_path, "init", "--quiet", "--bare", "origin.git")
    git(first, "init", "--quiet")
    git(first, "add", ".")
    git(first, "commit", "--quiet", "--message", "first")
    git(first, "push", "--quiet", str(tmp_path / "origin.git"), "HEAD:main")
    for folder in ("gh", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    return Forge(tmp_path)


def recorded(forge: Forge, name: str, image: str, config: str = "config") -> Path:
    """Return a folder with the records of epoch 1 of ``image``, as the artifact of a build holds them."""
    root = forge.folder / name
    folder = root / "locks" / image
    Goldens(folder / "goldens").write(sample_golden())
    entry = sample_class(golden=sample_golden(), config=digest_of(config))
    Ledger(folder, image).append_epoch(
        lambda number, previous: sample_epoch(
            number, previous, first_class=entry, image_name=image, config=digest_of(config)
        )
    )
    for lock in folder.rglob(".lock"):
        lock.unlink()
    return root


def moved_by(forge: Forge, clone: Path, command: str) -> None:
    """Let something run in the middle of each push of ``clone``, when what it pushes onto is decided."""
    hook = clone / ".git/hooks/pre-push"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR\n{command}\n")
    hook.chmod(0o755)


def test_an_epoch_lands_and_the_same_one_again_changes_nothing(forge: Forge) -> None:
    records = recorded(forge, "records", "vllm-cpu")
    assert forge.run(forge.clone("a"), "commit-epoch", str(records), "main")[0] == 0
    before = git(forge.origin, "rev-parse", "main")
    assert "locks/vllm-cpu/epochs/0001/epoch.json" in forge.main()
    assert git(forge.origin, "log", "-1", "--format=%an") not in ("main", "n")
    assert forge.run(forge.clone("b"), "commit-epoch", str(records), "main")[0] == 0
    assert git(forge.origin, "rev-parse", "main") == before


def test_of_two_runners_that_race_both_epochs_land(forge: Forge) -> None:
    mine, other = recorded(forge, "mine", "vllm-cpu"), recorded(forge, "theirs", "other")
    slow, fast = forge.clone("slow"), forge.clone("fast")
    moved_by(forge, slow, f"cd {fast} && {SCRIPTS}/commit-epoch {other} main")
    code, told = forge.run(slow, "commit-epoch", str(mine), "main")
    assert code == 0, told
    assert "try 1 of 5" in told
    assert "try 2" not in told
    assert {f"locks/{image}/epochs/0001/epoch.json" for image in IMAGES} <= set(forge.main())


def test_many_runners_at_once_all_land(forge: Forge) -> None:
    jobs = [
        forge.start(
            forge.clone(name),
            "commit-epoch",
            str(recorded(forge, f"records-{name}", name)),
            "main",
            REPRO_IMAGE_PUSH_TRIES="9",
        )
        for name in IMAGES
    ]
    ends = [(job.communicate(timeout=60)[0], job.returncode) for job in jobs]
    assert [code for _, code in ends] == [0, 0], ends
    assert {f"locks/{image}/epochs/0001/epoch.json" for image in IMAGES} <= set(forge.main())


def test_two_first_epochs_of_one_image_never_both_land(forge: Forge) -> None:
    mine, other = recorded(forge, "mine", "vllm-cpu"), recorded(forge, "theirs", "vllm-cpu", "another image")
    slow, fast = forge.clone("slow"), forge.clone("fast")
    moved_by(forge, slow, f"cd {fast} && {SCRIPTS}/commit-epoch {other} main")
    code, told = forge.run(slow, "commit-epoch", str(mine), "main")
    assert code == 6
    assert "somebody recorded in between" in told
    landed = git(forge.origin, "show", "main:locks/vllm-cpu/epochs/0001/epoch.json")
    assert landed == (other / "locks/vllm-cpu/epochs/0001/epoch.json").read_text().strip()


def test_the_tries_are_bounded(forge: Forge) -> None:
    records, slow = recorded(forge, "records", "vllm-cpu"), forge.clone("slow")
    always = forge.clone("always")
    commit = "git -c user.name=n -c user.email=e@x commit --quiet --allow-empty -m x"
    moved_by(forge, slow, f"cd {always} && git pull --quiet && {commit} && git push --quiet")
    code, told = forge.run(slow, "commit-epoch", str(records), "main", REPRO_IMAGE_PUSH_TRIES="3")
    assert code == 5
    assert "main moved 3 times in a row" in told
    assert "locks/vllm-cpu/epochs/0001/epoch.json" not in forge.main()


def test_a_push_that_is_refused_is_told_at_once(forge: Forge) -> None:
    (forge.origin / "hooks/pre-receive").write_text("#!/bin/sh\nexit 1\n")
    (forge.origin / "hooks/pre-receive").chmod(0o755)
    records = recorded(forge, "records", "vllm-cpu")
    code, told = forge.run(forge.clone("a"), "commit-epoch", str(records), "main")
    assert code == 5
    assert "the push to main was refused" in told
    assert "try" not in told


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml",
        "locks/vllm-cpu/requirements.txt",
        "locks/vllm-cpu/epochs/0001/.hidden",
        "locks/-x/epochs/0001/epoch.json",
        "locks/vllm-cpu/goldens/new\nline",
    ],
)
def test_nothing_but_records_is_taken_from_a_runner(forge: Forge, path: str) -> None:
    records = recorded(forge, "records", "vllm-cpu")
    (records / path).parent.mkdir(parents=True, exist_ok=True)
    (records / path).write_text("x")
    before = git(forge.origin, "rev-parse", "main")
    code, told = forge.run(forge.clone("a"), "commit-epoch", str(records), "main")
    assert code == 6
    assert "is no record of a ledger" in told
    assert git(forge.origin, "rev-parse", "main") == before


def test_a_link_in_the_place_of_a_record_is_not_followed(forge: Forge) -> None:
    records = recorded(forge, "records", "vllm-cpu")
    (records / "locks/vllm-cpu/goldens/link.zst").symlink_to("/etc/passwd")
    assert forge.run(forge.clone("a"), "commit-epoch", str(records), "main")[0] == 6


def test_a_broken_record_never_reaches_the_branch(forge: Forge) -> None:
    records = recorded(forge, "records", "vllm-cpu")
    epoch = records / "locks/vllm-cpu/epochs/0001/epoch.json"
    epoch.chmod(0o644)
    epoch.write_text(epoch.read_text().replace('"number": 1', '"number": 2'))
    code, told = forge.run(forge.clone("a"), "commit-epoch", str(records), "main")
    assert code == 6, told
    assert "locks/vllm-cpu/epochs/0001/epoch.json" not in forge.main()


def verified(forge: Forge, runner: str, verdict: str, **fields: Any) -> None:
    """Leave what a runner's `verify --report FILE.json` wrote; only what is read of it."""
    folder = forge.folder / "gh" / f"verify-{runner}"
    folder.mkdir()
    context = {"tag": "r/i:e0001-00000000", "class": "0011"} | fields.pop("context", {})
    document = {"context": context, "verdict": verdict, "detail": "all", **fields}
    (folder / "verify.json").write_text(json.dumps(document))


def test_a_night_without_a_mismatch_is_a_table_and_no_issue(forge: Forge) -> None:
    verified(forge, "a100", "match")
    verified(forge, "h100", "not-comparable")
    code, told = forge.run(forge.folder, "report-verify", '["h100", "a100", "l4"]')
    assert code == 0, told
    assert (forge.folder / "summary").read_text().splitlines() == [
        "| runner | tag | class | verdict | detail |",
        "|---|---|---|---|---|",
        "| `h100` | `r/i:e0001-00000000` | `0011` | `not-comparable` | `all` |",
        "| `a100` | `r/i:e0001-00000000` | `0011` | `match` | `all` |",
        "| `l4` |  |  |  | `no verdict: see the job's log` |",
    ]
    assert not forge.calls("issue")


def test_no_report_at_all_is_a_table_of_what_is_missing(forge: Forge) -> None:
    assert forge.run(forge.folder, "report-verify", '["l4"]')[0] == 0
    assert "no verdict" in (forge.folder / "summary").read_text()


def test_a_mismatch_opens_one_issue_and_the_next_night_adds_to_it(forge: Forge) -> None:
    verified(forge, "a100", "mismatch")
    verified(forge, "h100", "mismatch")
    verified(forge, "l4", "match", context={"tag": "r/i:e0002-11111111"})
    for _ in range(2):
        code, told = forge.run(forge.folder, "report-verify", '["a100", "h100", "l4"]')
        assert code == 0, told
    (created,) = forge.calls("issue", "create")
    (commented,) = forge.calls("issue", "comment")
    assert created[created.index("--title") + 1] == "verify: r/i:e0001-00000000 does not match"
    assert commented[2] == "7"
    for call in (created, commented):
        body = call[call.index("--body") + 1]
        assert "a100" in body
        assert "h100" in body
        assert "l4" not in body
        assert body.endswith("https://example.org/a/b/actions/runs/12")


def test_what_a_runner_wrote_cannot_become_markdown(forge: Forge) -> None:
    verified(forge, "a100", "mismatch", detail="`|@all <b>\n# x", context={"tag": "t\n--x"})
    assert forge.run(forge.folder, "report-verify", '["a100"]')[0] == 0
    assert r"| `'\|@all <b>?# x` |" in (forge.folder / "summary").read_text()
    (created,) = forge.calls("issue", "create")
    assert created[3] == "verify: t?--x does not match"


def upgraded(forge: Forge, text: str, path: str = "locks/vllm-cpu/requirements.txt") -> str:
    folder = forge.folder / "upgrade"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_text(text)
    return str(folder)


def test_newer_locks_become_a_pull_request_that_lists_what_moved(forge: Forge) -> None:
    folder = upgraded(forge, "torch==2.0 --hash=sha256:01\nnew==3\n")
    for clone in ("first week", "second week"):
        code, told = forge.run(forge.clone(clone), "propose-upgrade", folder, "upgrade-locks")
        assert code == 0, told
    (created,), (edited,) = forge.calls("pr", "create"), forge.calls("pr", "edit")
    assert edited[2] == "upgrade-locks"
    table = (forge.folder / "summary").read_text()
    assert Path(created[created.index("--body-file") + 1]).read_text() in table
    lock = "locks/vllm-cpu/requirements.txt"
    assert f"| `{lock}` | `torch` | `1.0` | `2.0` |" in table
    assert f"| `{lock}` | `new` |  | `3` |" in table
    assert f"| `{lock}` | `same` | `1` |  |" in table
    assert git(forge.origin, "show", f"upgrade-locks:{lock}").startswith("torch==2.0")
    assert git(forge.origin, "show", f"main:{lock}").startswith("torch==1.0")


def test_locks_that_did_not_move_are_no_pull_request(forge: Forge) -> None:
    folder = upgraded(forge, "torch==1.0 --hash=sha256:00\nsame==1\n")
    code, told = forge.run(forge.clone("a"), "propose-upgrade", folder, "upgrade-locks")
    assert code == 0
    assert "nothing newer" in told
    assert not (forge.folder / "gh/calls").exists()


def test_nothing_but_locks_is_proposed(forge: Forge) -> None:
    folder = upgraded(forge, "x", ".github/workflows/ci.yml")
    code, told = forge.run(forge.clone("a"), "propose-upgrade", folder, "upgrade-locks")
    assert code == 3
    assert "is no lock" in told
