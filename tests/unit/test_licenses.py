"""What packages say of their licence, and nothing more."""

import pytest

from repro_image.core.licenses import License, debian_license, wheel_license

FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"


@pytest.mark.parametrize(
    ("expression", "text", "classifiers", "wanted"),
    [
        ("mit or apache-2.0", "ignored", (), License(expression="MIT OR Apache-2.0")),
        (
            None,
            "BSD-3-Clause",
            ("License :: OSI Approved :: BSD License",),
            License(expression="BSD-3-Clause"),
        ),
        (None, "Apache 2.0 License", (), License(expression="Apache-2.0")),
        (None, None, ("License :: OSI Approved :: MIT License",), License(expression="MIT")),
        (None, None, ("License :: OSI Approved :: BSD License",), License(names=("BSD License",))),
        (None, "BSD", ("License :: OSI Approved :: BSD License",), License(names=("BSD",))),
        (
            None,
            "Copyright (c) 2005 the authors.\nAll rights reserved.",
            ("License :: OSI Approved :: BSD License",),
            License(names=("BSD License",)),
        ),
        (
            None,
            "MIT or something",
            ("License :: OSI Approved :: MIT License", "License :: OSI Approved :: Apache Software License"),
            License(names=("Apache Software License", "MIT License")),
        ),
        ("no such licence", None, ("License :: OSI Approved",), License()),
        (None, "", (), License()),
    ],
)
def test_a_wheel_says_its_licence_in_the_first_field_that_can_be_read(
    expression: str | None, text: str | None, classifiers: tuple[str, ...], wanted: License
) -> None:
    assert wheel_license(expression, text, classifiers) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("Expat",), License(expression="MIT")),
        (("GPL-2+", "LGPL-2.1+"), License(expression="GPL-2.0-or-later AND LGPL-2.1-or-later")),
        (("GPL-2 or Expat", "ISC"), License(expression="(GPL-2.0-only OR MIT) AND ISC")),
        (("GPL-2+", "public-domain"), License(names=("GPL-2+", "public-domain"))),
        (("GPL-2+ or Expat and ISC",), License(names=("GPL-2+ or Expat and ISC",))),
        (("GPL-3+ with Bison exception",), License(names=("GPL-3+ with Bison exception",))),
    ],
)
def test_a_debian_package_says_the_licences_of_its_parts(names: tuple[str, ...], wanted: License) -> None:
    stanzas = "\n\n".join(
        f"Files: part{n}/*\nCopyright: 2020\nLicense: {name}" for n, name in enumerate(names)
    )
    assert debian_license(FORMAT + stanzas) == wanted


def test_a_copyright_file_in_prose_says_nothing_that_can_be_read_without_guessing() -> None:
    assert debian_license("This package is under the GPL version 2.\nLicense: GPL-2") == License()
