"""`verify --report FILE`: the suffix decides the form, and every form is of the same run."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from repro_image.cli.verify import _FORMS, _context, _write_report
from repro_image.core.comparison import compare, moved_tag
from repro_image.core.epoch import NoiseFloor
from repro_image.core.ledger import StoredEpoch
from repro_image.reports.json_report import VerifyDocument
from repro_image.steps.verify import Verification
from tests.ledger_samples import digest_of, sample_class, sample_epoch
from tests.unit.made_goldens import change, make_golden, other_token
from tests.unit.test_html_report import Elements

FLOOR = NoiseFloor(flip_rate=0.005, median_nats=0.0123, p99_nats=0.2, tokens=600)


def verification(*, has_run: bool) -> Verification:
    golden = make_golden()
    found = change(golden, {"greedy/1": other_token(5)})
    entry = replace(sample_class(golden=golden), noise_floor=FLOOR)
    epoch = sample_epoch(first_class=entry)
    return Verification(
        epoch=StoredEpoch(digest=digest_of("epoch"), path="epoch.json", epoch=epoch),
        reference=f"{epoch.repository}:{epoch.tag}",
        image=epoch.image.config,
        comparison=compare(golden, found) if has_run else moved_tag("sha256:aa", "sha256:bb"),
        golden=entry,
        numeric_class=entry.fingerprint.numeric_class if has_run else None,
        runs=1 if has_run else 0,
        sides=(golden, found) if has_run else None,
    )


def reports(found: Verification, folder: Path) -> dict[str, str]:
    """Suffix -> what was written."""
    context = _context(found, ("dtype=float32",), None)
    for suffix in _FORMS:
        _write_report(folder / f"report{suffix}", found, context)
    return {suffix: (folder / f"report{suffix}").read_text(encoding="utf-8") for suffix in _FORMS}


def test_each_suffix_gets_its_form(tmp_path: Path) -> None:
    written = reports(verification(has_run=True), tmp_path)
    assert set(written) == {".json", ".xml", ".md", ".html"}
    assert msgspec.json.decode(written[".json"], type=VerifyDocument).reason == "sampling"
    assert written[".xml"].startswith("<?xml")
    assert written[".md"].startswith("### mismatch (sampling)\n")
    text = Elements(written[".html"]).text
    assert "greedy/1 parts at token 5" in text
    assert "noise floor 3 of 600 = 0.5 %" in text
    assert "recorded on GenuineIntel family 6 model 143, AVX512, 2 threads" in text
    assert "What if: dtype=float32" in text


def test_where_nothing_ran_each_form_says_so_without_texts(tmp_path: Path) -> None:
    text = Elements(reports(verification(has_run=False), tmp_path)[".html"]).text
    assert "Mismatch (moved tag)" in text
    assert "runs 0" in text
    for missing in ("The texts", "noise floor", "Prompts"):
        assert missing not in text
