"""A report as JUnit XML; of a Comparison: one testcase per prompt, so that a CI server lists those that part.

The form is that of Jenkins' schema junit-10.xsd, which GitLab and others read too.
"""

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from repro_image.core.comparison import Comparison, Verdict
from repro_image.core.differences import PromptRow
from repro_image.reports.escape import visible
from repro_image.reports.text import row_lines, text_report


def junit_report(comparison: Comparison, *, context: Mapping[str, str]) -> str:
    """Return the XML document.

    The verdict about the whole, such as class or weights, is a testcase of its own, named ``verdict``; what
    was measured stands in the suite's output, as the text report has it.
    """
    cases = [_verdict_case(comparison), *(_prompt_case(row) for row in comparison.prompts)]
    return junit_document(cases, context=context, told=text_report(comparison, context=context))


def junit_document(cases: Sequence[Element], *, context: Mapping[str, str], told: str) -> str:
    """Return the document of one suite. told: the text report.

    Unprintable characters are escaped before they get here, since XML 1.0 cannot hold them in any form.
    """
    failed = sum(case.find("failure") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0"}
    suites = Element("testsuites", {"name": "repro-image verify", **counts})
    name = visible(context.get("tag", "verify"))
    suite = SubElement(suites, "testsuite", {"name": name, **counts, "skipped": "0"})
    properties = SubElement(suite, "properties")
    for name, value in context.items():
        SubElement(properties, "property", name=visible(name), value=visible(value))
    suite.extend(cases)
    SubElement(suite, "system-out").text = told
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(suites, encoding="unicode")}\n'


def _verdict_case(comparison: Comparison) -> Element:
    case = Element("testcase", classname="repro-image", name="verdict")
    if comparison.verdict is not Verdict.MATCH:
        kind = f"{comparison.verdict}: {comparison.reason}" if comparison.reason else str(comparison.verdict)
        failure = SubElement(case, "failure", type=kind, message=visible(comparison.detail))
        failure.text = "\n".join(
            visible(f"{item.field}: expected {item.expected}, found {item.found}")
            for item in comparison.fields
        )
    return case


def _prompt_case(row: PromptRow) -> Element:
    case = Element("testcase", classname=f"repro-image.{visible(row.lane)}", name=visible(row.id))
    differing = [level for level, equal in row.equal.items() if not equal]
    if differing:
        message = f"{', '.join(differing)} differ"
        failure = SubElement(case, "failure", type="mismatch", message=message)
        failure.text = "\n".join(row_lines(row))
    return case
