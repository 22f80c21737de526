"""The HTML report in a real browser, without a network: what a reader, a phone and a printer get.

The screenshots are kept in ``screenshots/``, which CI uploads.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.core.comparison import Comparison, compare, compare_across, not_comparable_class
from repro_image.core.epoch import NoiseFloor
from repro_image.core.golden import Golden
from repro_image.core.transcript import transcripts
from repro_image.reports.html import html_report
from tests.chromium import Chromium, chromium
from tests.scratch import REPOSITORY
from tests.unit.made_goldens import change, make_golden, other_bits, other_token
from tests.unit.test_html_report import hostile_pair

SCREENSHOTS = REPOSITORY / "screenshots"
AXE = REPOSITORY / ".venv/lint/node_modules/axe-core/axe.min.js"
SIZES = {"phone": (360, 800), "desk": (1280, 900)}
CONTEXT = {
    "tag": "repro-image/vllm-cpu:e0001-1a2b3c4d",
    "image": "sha256:" + "a" * 64,
    "golden": "sha256:" + "b" * 64 + " (40 tokens)",
    "what if": "max_num_seqs=8",
}
FLOOR = NoiseFloor(flip_rate=0.005, median_nats=0.0123, p99_nats=0.2, tokens=600)
# Markup, a terminal's colours, reversed text, what no encoding holds, marks without end, one endless word.
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[31mred\x1b[0m "
    "\u202egnp.exe\u202c \x00\ud800\ufffe \u05e9\u05dc\u05d5\u05dd Z\u0300\u0301\u0302\u0303"
    + "\u0316" * 40
    + "W" * 5000
)


def report(comparison: Comparison, sides: tuple[Golden, Golden] | None = None) -> str:
    seen = transcripts(*sides, comparison.prompts) if sides else None
    return html_report(comparison, context=CONTEXT, seen=seen, floor=FLOOR)


def reports() -> dict[str, str]:
    golden = make_golden()
    changes = {"greedy/1": lambda c: other_bits(3)(other_token(5)(c)), "sampled/1": other_token(0)}
    found = change(golden, changes)
    hostile = hostile_pair(HOSTILE)
    nearly = change(golden, {"replay/greedy/1": other_bits(3)})
    differences = (("threads", 2, 1), ("flags", ("avx", "avx512f"), ("avx", "fma")))
    across = compare_across(golden, nearly, floor=FLOOR, differences=differences)
    return {
        "match": report(compare(golden, golden), (golden, golden)),
        "mismatch": report(compare(golden, found), (golden, found)),
        "hostile": report(compare(*hostile), hostile),
        "drift": report(across, (golden, nearly)),
        "not-comparable": report(not_comparable_class(differences)),
    }


PAGES = tuple(reports())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    SCREENSHOTS.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.html" for name in PAGES}
    for name, text in reports().items():
        files[name].write_text(text, encoding="utf-8")
    return files


# Text that reaches out of the window, of its line or over a scrolling table's edge is not text that is read.
OUTSIDE = """[...document.querySelectorAll('main *, header *, footer *')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 0.5 && !element.closest('.scroll');
}).map(element => element.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_asks_for_nothing_and_reads_well(
    browser: Chromium, pages: dict[str, Path], name: str, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    with browser.page(pages[name], width=width, height=height, scheme=scheme) as page:
        page.screenshot(SCREENSHOTS / f"report-{name}-{size}-{scheme}.png")
        assert page.value("innerWidth") == width
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(OUTSIDE) == []
        assert page.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(246, 247, 248)" if scheme == "light" else "rgb(13, 17, 22)"
        )
        page.value("document.querySelectorAll('details').forEach(details => details.open = true)")
        page.value(AXE.read_text(encoding="utf-8"))
        found = page.value("axe.run().then(found => JSON.stringify(found))")
        broken = [
            (rule["id"], [node["html"] for node in rule["nodes"]]) for rule in json.loads(found)["violations"]
        ]
        assert broken == []
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.requests == [pages[name].as_uri()]
        assert page.messages == []


def test_whatever_a_model_wrote_is_shown_as_text(browser: Chromium, pages: dict[str, Path]) -> None:
    with browser.page(pages["hostile"], width=1280, height=900) as page:
        text = page.value("document.body.innerText")
        assert "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>" in text
        assert r"\x1b[31mred\x1b[0m \u202egnp.exe\u202c \x00\ud800\ufffe" in text
        assert page.value("document.title") == "mismatch (numeric) · repro-image verify"
        assert page.value("document.scripts.length + document.images.length") == 0
        marked = page.value("[...document.querySelectorAll('details mark')].map(mark => mark.innerText)")
        assert len(marked) == 2
        assert all(told.startswith("</script>") for told in marked)


def test_a_script_that_got_in_would_not_run(
    browser: Chromium, pages: dict[str, Path], tmp_path: Path
) -> None:
    page_with_script = tmp_path / "script.html"
    text = pages["match"].read_text(encoding="utf-8")
    image = "<img src='https://example.org/x.png'><script>document.title = 'owned'</script>"
    page_with_script.write_text(text.replace("<main>", f"<main>{image}"), encoding="utf-8")
    with browser.page(page_with_script, width=1280, height=900) as page:
        assert page.value("document.title") == "match · repro-image verify"
        assert page.requests == [page_with_script.as_uri(), "https://example.org/x.png"]
        assert page.blocked == ["csp"]
        assert len([told for told in page.messages if "Content Security Policy" in told]) == 2


def test_on_paper_the_page_is_light_and_every_text_is_open(browser: Chromium, pages: dict[str, Path]) -> None:
    with browser.page(pages["mismatch"], width=1280, height=900, scheme="dark") as page:
        assert page.value("document.querySelectorAll('details:not([open])').length") == 1
        last = "[...document.querySelectorAll('details .pair')].at(-1)"
        assert not page.value(f"{last}.checkVisibility()")
        page.call("Emulation.setEmulatedMedia", media="print", features=[])
        assert page.value(f"{last}.checkVisibility()")
        assert page.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        pdf = page.pdf()
    assert pdf.startswith(b"%PDF-")
    (SCREENSHOTS / "report-mismatch.pdf").write_bytes(pdf)
