"""steps/epochs.py and cli/epochs.py: `repro-image epochs` on ledgers of a project in a folder."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from repro_image.cli import group
from repro_image.core.canonical import canonical_digest
from repro_image.core.epoch import NoiseFloor, Power, Rounding
from repro_image.core.golden_file import golden_digest
from repro_image.core.ledger import StoredEpoch
from repro_image.errors import (
    BrokenChainError,
    BrokenRecordError,
    MissingRecordError,
    UnknownEpochError,
    UnknownImageError,
    UsageError,
)
from tests.ledger_samples import (
    digest_of,
    sample_class,
    sample_class_record,
    sample_epoch,
    sample_golden,
    sample_proof,
)
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, with_batch
from tests.unit.test_across import close_calls, moved


@dataclass
class Lab:
    """A project with one image or two, and the ways to fill and to ask it."""

    root: Path

    def image(self, name: str) -> None:
        (self.root / "images" / name).mkdir(parents=True)
        source = Path(__file__).parents[2] / "images/vllm-cpu/image.toml"
        (self.root / "images" / name / "image.toml").write_bytes(source.read_bytes())

    def record(self, image: str = "vllm-cpu", *, golden: Any = None, **fields: Any) -> StoredEpoch:
        golden = golden or sample_golden()
        folder = self.root / "locks" / image
        Goldens(folder / "goldens").write(golden)
        entry = fields.pop("first_class", None) or sample_class(
            golden=golden, config=fields.get("config", digest_of("config")), **fields.pop("engine", {})
        )
        return Ledger(folder, image).append_epoch(
            lambda number, previous: sample_epoch(
                number, previous, first_class=entry, image_name=image, **fields
            )
        )

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(
            group, ["--project", str(self.root), "epochs", *arguments], standalone_mode=False
        )
        assert result.exception is None or result.exit_code != 0
        return result

    def told(self, *arguments: str) -> str:
        result = self.run(*arguments)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.told(*arguments, "--json"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "pyproject.toml").write_text("[tool.repro-image]\n")
    lab = Lab(tmp_path)
    lab.image("vllm-cpu")
    return lab


def test_an_empty_ledger_is_listed_checked_and_nothing_is_written(lab: Lab) -> None:
    assert lab.told("list") == ""
    assert lab.json("list") == {"images": {"vllm-cpu": []}}
    assert lab.told("check") == "vllm-cpu: 0 epochs, chain ok, 0 goldens ok\n"
    assert not (lab.root / "locks").exists()


def test_the_list_is_aligned_and_has_one_line_per_epoch(lab: Lab) -> None:
    first, second = lab.record(), lab.record(config=digest_of("second"))
    head, *lines = lab.told("list").splitlines()
    assert head.split() == ["image", "epoch", "tag", "config", "classes", "proofs", "recorded"]
    assert [line.split()[:4] for line in lines] == [
        ["vllm-cpu", "1", first.epoch.tag, digest_of("config")[7:19]],
        ["vllm-cpu", "2", second.epoch.tag, digest_of("second")[7:19]],
    ]
    assert len({line.index("2026-") for line in lines} | {head.index("recorded")}) == 1


def test_the_list_as_json_has_full_digests(lab: Lab) -> None:
    stored = lab.record()
    [row] = lab.json("list", "vllm-cpu")["images"]["vllm-cpu"]
    assert row == {
        "number": 1,
        "tag": stored.epoch.tag,
        "reference": f"repro-image/vllm-cpu:{stored.epoch.tag}",
        "config": digest_of("config"),
        "digest": stored.digest,
        "classes": [stored.epoch.first_class.numeric_class],
        "proofs": 0,
        "recorded_at": "2026-11-21T22:30:00Z",
    }


def test_an_epoch_is_shown_by_number_tag_reference_and_digest(lab: Lab) -> None:
    stored = lab.record()
    lab.record(config=digest_of("second"))
    texts = {
        lab.told("show", name)
        for name in (
            "1",
            stored.epoch.tag,
            f"repro-image/vllm-cpu:{stored.epoch.tag}",
            digest_of("config"),
            stored.digest,
            stored.epoch.image.manifests[0].digest,
        )
    }
    [text] = texts
    assert re.match(r"epoch +1 of vllm-cpu\n", text)
    assert re.search(rf"^image +{digest_of('config')}$", text, re.MULTILINE)
    assert "torch 2.13.0+cpu, vllm 0.32.0" in text
    assert "2 tokens, 2 runs agreed" in text


def test_an_epoch_is_shown_with_its_later_records(lab: Lab) -> None:
    stored = lab.record()
    ledger = Ledger(lab.root / "locks/vllm-cpu", "vllm-cpu")
    ledger.append_class(stored, sample_class_record(stored.digest, threads=4))
    ledger.append_proof(stored, sample_proof(stored.digest))
    shown = lab.json("show", "1")
    assert shown["digest"] == stored.digest
    assert shown["epoch"]["tag"] == stored.epoch.tag
    assert shown["classes"][0]["added"]["fingerprint"]["numeric_class"]["threads"] == 4
    assert shown["proofs"][0]["config"] == digest_of("config")
    text = lab.told("show", "1")
    assert text.count("\nclass  ") == 3, "two records, and the head of the table"
    assert f"rebuilt 2026-11-22T09:00:00Z as {digest_of('config')}" in text


def test_the_classes_of_an_epoch_stand_side_by_side_with_how_far_they_are_apart(lab: Lab) -> None:
    rounding = Rounding(flip_rate=0.02, median_nats=0.013, p99_nats=0.14, tokens=400)
    floor = NoiseFloor(flip_rate=0.0125, median_nats=0.0049, p99_nats=0.13, tokens=400, rounding=rounding)
    golden, near = close_calls(), moved(close_calls(), 0.002)
    first = replace(
        sample_class(golden=golden),
        noise_floor=floor,
        power=Power(tokens=40, prompts=5, confidence=0.99, sees_per_token=0.109),
    )
    stored = lab.record(golden=golden, first_class=first)
    ledger = Ledger(lab.root / "locks/vllm-cpu", "vllm-cpu")
    Goldens(lab.root / "locks/vllm-cpu/goldens").write(near)
    ledger.append_class(stored, sample_class_record(stored.digest, golden=near, threads=4))
    a, b = (lab.json("show", "1")["apart"][0][side] for side in "ab")
    lines = lab.told("show", "1").splitlines()
    rows = [line.split() for line in lines]
    assert [*a[7:19].split(), "2", "40", "10.9", "%", "1.25", "%", "0.0049", "0.013"] in [
        [row[0], *row[-8:]] for row in rows if len(row) > 8
    ]
    assert [b[7:19], "4", "40", "-", "-", "-", "-"] in [[row[0], *row[-6:]] for row in rows if len(row) > 6]
    at = lines.index(
        f"{a[7:19]} and {b[7:19]} differ in threads, cpus: drift: no further apart than order of "
        "work and rounding put honest classes"
    )
    assert lines[at + 1] == "  equal levels: H0, H1, H2"
    assert lines[at + 2].startswith("  flipped in replay: 0 of 40 = 0 %, 95 % interval 0 % to ")
    assert lines[at + 3] == "  log-probabilities: median 0.002 nats apart"
    [told] = lab.json("show", "1")["apart"]
    assert (told["verdict"], told["fields"], told["flips"]["trials"]) == ("drift", ["threads", "cpus"], 40)


def test_what_asking_together_changed_is_shown_with_its_class(lab: Lab) -> None:
    golden = change(with_batch(make_golden()), {"batch/0": other_token(2), "batch/2": other_bits(3)})
    stored = lab.record(golden=golden, first_class=sample_class(golden=golden))
    assert "  batch against greedy: H1 1, H3 2 of 3 prompts differ\n" in lab.told("show", "1")
    [told] = lab.json("show", "1")["together"][stored.epoch.first_class.numeric_class]
    assert told["differing"] == {"H1": 1, "H2": 0, "H3": 2}


def test_a_class_whose_golden_cannot_be_read_is_not_compared_and_all_else_is_shown(lab: Lab) -> None:
    stored = lab.record()
    ledger = Ledger(lab.root / "locks/vllm-cpu", "vllm-cpu")
    gone = sample_golden(last_token=9)
    ledger.append_class(stored, sample_class_record(stored.digest, golden=gone, threads=4))
    text = lab.told("show", "1")
    assert "differ in threads, cpus: unknown: not compared: " in text
    assert "  equal levels: H0, H3\n" in text


def test_an_unknown_epoch_names_the_newest(lab: Lab) -> None:
    stored = lab.record()
    with pytest.raises(UnknownEpochError, match=f"repro-image/vllm-cpu:{stored.epoch.tag}"):
        lab.told("show", "7")


def test_an_unknown_image_is_refused(lab: Lab) -> None:
    for arguments in (["list", "nothing"], ["check", "nothing"], ["show", "1", "--image", "nothing"]):
        with pytest.raises(UnknownImageError):
            lab.told(*arguments)


def test_a_number_needs_the_image_when_there_are_several_and_a_tag_does_not(lab: Lab) -> None:
    lab.image("other")
    lab.record()
    assert " 1 of vllm-cpu\n" in lab.told("show", "1"), "the only one that has epochs"
    other = lab.record("other", model=digest_of("other model"))
    with pytest.raises(UsageError, match="epoch 1 of which image"):
        lab.told("show", "1")
    assert " 1 of other\n" in lab.told("show", "1", "-i", "other")
    assert " 1 of other\n" in lab.told("show", other.epoch.tag)
    assert [line.split()[0] for line in lab.told("list").splitlines()] == ["image", "other", "vllm-cpu"]


def test_a_difference_names_what_changed_and_that_the_answers_agree(lab: Lab) -> None:
    a = lab.record()
    b = lab.record(config=digest_of("second"), requirements=digest_of("new lock"), engine={"seed": 7})
    text = lab.told("diff", "1", "2")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["part", "name", a.epoch.tag, b.epoch.tag]
    assert ["image", "image", digest_of("config")[7:19], digest_of("second")[7:19]] in lines
    assert ["input", "requirements", digest_of("requirements")[7:19], digest_of("new lock")[7:19]] in lines
    assert ["setting", "seed", "-", "7"] in lines
    assert f"answers in class {a.epoch.first_class.numeric_class[7:19]}: match: " in text
    assert "equal levels: H0, H1, H2, H3" in text


def test_a_difference_in_the_answers_is_told_and_exits_with_0(lab: Lab) -> None:
    lab.record()
    lab.record(golden=sample_golden(last_token=8))
    result = lab.run("diff", "1", "2")
    assert result.exit_code == 0
    assert ": mismatch" in result.stdout
    assert "equal levels: H0, H3" in result.stdout
    [answers] = lab.json("diff", "1", "2")["answers"]
    assert answers["verdict"] == "mismatch"
    assert answers["levels"] == {"H0": True, "H1": False, "H2": False, "H3": True}


def test_epochs_without_a_common_class_are_not_compared_and_the_field_is_named(lab: Lab) -> None:
    lab.record()
    lab.record(first_class=sample_class(threads=4))
    text = lab.told("diff", "1", "2")
    assert re.search(r"^class +threads +2 +4$", text, re.MULTILINE)
    assert "answers: not comparable, the epochs have no numeric class in common" in text


def test_a_golden_that_cannot_be_read_leaves_the_rest_of_the_difference(lab: Lab) -> None:
    lab.record()
    lab.record(golden=sample_golden(last_token=8))
    Goldens(lab.root / "locks/vllm-cpu/goldens").path(golden_digest(sample_golden())).unlink()
    text = lab.told("diff", "1", "2")
    assert "unknown: not compared: a golden is missing that an epoch names" in text
    assert "equal levels: H0, H3" in text


def test_two_epochs_that_are_the_same_image_say_so(lab: Lab) -> None:
    lab.record()
    lab.record()
    assert "were made from the same inputs and are the same image" in lab.told("diff", "1", "2")


def test_a_checked_ledger_says_how_many_epochs_it_proved(lab: Lab) -> None:
    stored = [lab.record(), lab.record(golden=sample_golden(last_token=8))]
    assert lab.told("check") == "vllm-cpu: 2 epochs, chain ok, 2 goldens ok\n"
    assert lab.json("check") == {
        "images": [
            {
                "image": "vllm-cpu",
                "epochs": 2,
                "classes": 0,
                "proofs": 0,
                "goldens": 2,
                "last": stored[1].digest,
                "unreferenced": [],
                "warnings": [],
            }
        ]
    }


def test_a_broken_chain_is_found_by_every_command(lab: Lab) -> None:
    for _ in range(3):
        lab.record()
    (lab.root / "locks/vllm-cpu/epochs/0002/epoch.json").unlink()
    for arguments in (["list"], ["show", "1"], ["diff", "1", "3"], ["check"]):
        with pytest.raises(BrokenChainError) as caught:
            lab.told(*arguments)
        assert caught.value.exit_code == 6


def test_a_golden_that_is_not_what_its_epoch_says_is_found(lab: Lab) -> None:
    entry = sample_class()
    other = golden_digest(sample_golden(last_token=8))
    lab.record(golden=sample_golden(last_token=8), first_class=msgspec.structs.replace(entry, golden=other))
    with pytest.raises(BrokenRecordError, match="levels H1, H2 of the golden are not those of epoch 1"):
        lab.told("check")


@pytest.mark.parametrize(
    ("field", "what"),
    [("tokens", "the golden has 2 tokens, epoch 1 says 9"), ("suite", "answers another request")],
)
def test_a_golden_that_answers_something_else_is_found(lab: Lab, field: str, what: str) -> None:
    entry = sample_class()
    if field == "tokens":
        entry = msgspec.structs.replace(entry, tokens=9)
    else:
        subject = msgspec.structs.replace(entry.fingerprint.subject, suite=canonical_digest("another"))
        fingerprint = msgspec.structs.replace(entry.fingerprint, subject=subject)
        entry = msgspec.structs.replace(entry, fingerprint=fingerprint)
    lab.record(first_class=entry)
    with pytest.raises(BrokenRecordError, match=what):
        lab.told("check")


def test_a_missing_golden_is_found(lab: Lab) -> None:
    lab.record()
    for path in (lab.root / "locks/vllm-cpu/goldens").glob("*.zst"):
        path.unlink()
    with pytest.raises(BrokenRecordError, match="a golden is missing"):
        lab.told("check")


def test_what_does_no_harm_is_a_note_beside_the_result(lab: Lab) -> None:
    lab.record()
    lab.record(recorded_at="2026-11-20T00:00:00Z")
    left = Goldens(lab.root / "locks/vllm-cpu/goldens").write(sample_golden(last_token=8))
    result = lab.run("check")
    assert result.exit_code == 0
    assert result.stdout == "vllm-cpu: 2 epochs, chain ok, 1 golden ok\n"
    assert "note: vllm-cpu: epoch 2 is dated 2026-11-20T00:00:00Z, before an earlier epoch" in result.stderr
    assert f"note: vllm-cpu: golden {left[7:19]} belongs to no epoch" in result.stderr


def test_a_ledger_that_was_rolled_back_is_refused_against_what_was_seen(lab: Lab) -> None:
    first, second = lab.record(), lab.record()
    assert lab.told("check", "--contains", first.digest).startswith("vllm-cpu: 2 epochs, chain ok")
    (lab.root / "locks/vllm-cpu/epochs/0002/epoch.json").unlink()
    assert lab.told("check").startswith("vllm-cpu: 1 epoch, chain ok")
    with pytest.raises(MissingRecordError, match=second.digest):
        lab.told("check", "--contains", second.digest)


def test_what_was_seen_must_be_a_digest_and_of_one_image(lab: Lab) -> None:
    result = lab.run("check", "--contains", "e0001")
    assert "sha256:<64 hex digits>" in str(result.exception)
    lab.image("other")
    with pytest.raises(UsageError, match="one ledger"):
        lab.told("check", "--contains", digest_of("x"))


def test_text_from_inside_an_image_cannot_steer_the_terminal(lab: Lab) -> None:
    lab.record(builder={"engine": "\x1b[2J\u202e"})
    assert "engine \\x1b[2J\\u202e" in lab.told("show", "1")


def test_a_terminal_gets_a_table_without_colour_when_none_is_wanted(lab: Lab) -> None:
    lab.record()
    assert "\x1b[1m" in on_terminal(lab, "list", columns=120)
    text = on_terminal(lab, "list", columns=120, NO_COLOR="1", TERM="dumb")
    assert "\x1b" not in text
    assert [line.split()[:2] for line in text.splitlines()] == [["image", "epoch"], ["vllm-cpu", "1"]]


def test_a_terminal_without_columns_gets_plain_lines(lab: Lab) -> None:
    lab.record()
    assert [line.split()[:2] for line in on_terminal(lab, "list", columns=1).splitlines()] == [
        ["image", "epoch"],
        ["vllm-cpu", "1"],
    ]


def on_terminal(lab: Lab, *arguments: str, columns: int, **environment: str) -> str:
    """Return what the command prints where stdout is a terminal."""
    ours, theirs = pty.openpty()
    code = "from repro_image.cli import main; main()"
    command = [sys.executable, "-c", code, "--project", str(lab.root), "epochs", *arguments]
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**known, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        chunks = []
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:  # the other end was closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return b"".join(chunks).decode()


@pytest.mark.parametrize("command", ["list", "show", "diff", "check"])
def test_the_help_of_each_command_has_an_example(lab: Lab, command: str) -> None:
    assert f"Example: repro-image epochs {command}" in lab.run(command, "--help").stdout
