"""Bills of materials: from locks and packages to CycloneDX and SPDX, each read by its format's own tool."""

import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import (  # type: ignore[import-untyped]
    Provenance,
)
from in_toto_attestation.v1.statement_pb2 import Statement  # type: ignore[import-untyped]
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from repro_image.adapters.package_files import read_deb_metadata, read_wheel_metadata
from repro_image.core.bill import Bill, Kind, make_bill
from repro_image.core.cyclonedx import cyclonedx_json
from repro_image.core.epoch import Manifest
from repro_image.core.licenses import License
from repro_image.core.lockfile import BaseLock, HubLock, Locks, ModelFile
from repro_image.core.package_metadata import (
    Bundled,
    PackageMetadata,
    bundled_parts,
    parse_deb_metadata,
    parse_wheel_metadata,
)
from repro_image.core.provenance import provenance_json
from repro_image.core.spdx import spdx_json
from repro_image.errors import InvalidFileError
from tests.ledger_samples import digest_of, sample_epoch
from tests.unit.made_locks import make_locks
from tests.unit.wheels import wheel_bytes

METADATA = """\
Metadata-Version: 2.4
Name: torch
Version: 2.13.0
Summary: tensors </script>
License-Expression: BSD-3-Clause
Author: A Team
Project-URL: Homepage, https://example.org/torch
Requires-Dist: numpy>=1
Requires-Dist: pytest; extra == 'test'
Requires-Dist: colorama; sys_platform == 'win32'
Requires-Dist: not a requirement !!
"""
BOM = json.dumps(
    {"components": [{"name": "libgomp", "version": "1.0", "purl": "pkg:generic/libgomp@1.0"}, {"no": "name"}]}
).encode()
CONTROL = """\
Package: libc6
Version: 2.36
Maintainer: Glibc Team <glibc@example.org>
Installed-Size: 12
Depends: libgcc-s1, libnone (>= 1) | libcrypt1
Homepage: javascript:alert(1)
"""


def said(**changes: Any) -> PackageMetadata:
    empty = PackageMetadata(license=License(), supplier=None, homepage=None, summary=None, requires=())
    return msgspec.structs.replace(empty, **changes)


@pytest.fixture
def locks() -> Locks:
    wheels = make_locks(
        "numpy-2.3.5-cp311-cp311-linux_x86_64.whl", "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    )
    named = tuple(
        msgspec.structs.replace(wheel, sha256=digest_of(wheel.name)) for wheel in wheels.requirements.wheels
    )
    return msgspec.structs.replace(
        wheels, requirements=msgspec.structs.replace(wheels.requirements, wheels=named)
    )


@pytest.fixture
def bill(locks: Locks) -> Bill:
    (libc6,) = locks.base.packages
    metadata = {
        digest_of("numpy"): said(license=License(names=("its own words",))),
        digest_of("torch"): parse_wheel_metadata(METADATA, python="3.11.2", boms=[BOM]),
        libc6.sha256: parse_deb_metadata(CONTROL, ""),
    }
    return make_bill("vllm-cpu", locks, metadata)


def test_a_bill_has_everything_that_the_locks_name(bill: Bill) -> None:
    assert [(part.kind, part.name) for part in bill.components] == [
        (Kind.DEBIAN, "libc6"),
        (Kind.MODEL, "m"),
        (Kind.PYTHON, "m"),
        (Kind.PYTHON, "numpy"),
        (Kind.PYTHON, "torch"),
    ]
    assert bill.is_complete


def test_what_needs_what_stays_among_what_is_locked(bill: Bill) -> None:
    by_name = {part.name: part for part in bill.components}
    model = next(part for part in bill.components if part.kind is Kind.MODEL)
    assert by_name["torch"].requires == (by_name["numpy"].purl,)
    assert by_name["libc6"].requires == ()
    assert model.made_of == by_name["m"].purl == "pkg:pypi/m@1.0"


def test_every_component_has_a_package_url_of_its_own(bill: Bill) -> None:
    purls = [part.purl for part in bill.components]
    parsed = [PackageURL.from_string(purl) for purl in purls]
    assert len(set(purls)) == len(purls)
    assert [(purl.type, purl.name) for purl in parsed[:2]] == [
        ("deb", "libc6"),
        ("generic", "m"),
    ]
    assert parsed[-1].version == "2.13.0+cpu"
    assert parsed[0].qualifiers == {"arch": "amd64", "distro": "bookworm"}


def test_the_cyclonedx_form_is_valid_by_its_own_schema(bill: Bill) -> None:
    text = cyclonedx_json(bill, version="1.0")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    torch = json.loads(text)["components"][-1]
    assert torch["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert torch["components"] == [
        {"type": "library", "name": "libgomp", "version": "1.0", "purl": "pkg:generic/libgomp@1.0"}
    ]


def test_the_spdx_form_is_valid_by_its_own_tool(bill: Bill, tmp_path: Path) -> None:
    path = tmp_path / "bill.spdx.json"
    path.write_text(spdx_json(bill, version="1.0"))
    document = parse_file(str(path))
    assert validate_full_spdx_document(document) == []
    assert {package.name for package in document.packages} == {
        "vllm-cpu",
        "libgomp",
        *(part.name for part in bill.components),
    }


def test_equal_locks_make_equal_documents(bill: Bill) -> None:
    again = msgspec.structs.replace(bill)
    for write in (cyclonedx_json, spdx_json):
        assert write(bill, version="1.0") == write(again, version="1.0")
    other = msgspec.structs.replace(bill, locks=digest_of("other"))
    assert (
        json.loads(cyclonedx_json(other, version="1"))["serialNumber"]
        != (json.loads(cyclonedx_json(bill, version="1"))["serialNumber"])
    )


def test_a_base_of_a_registry_and_a_model_of_a_hub_are_named_by_their_digests(locks: Locks) -> None:
    base = BaseLock(
        inputs=digest_of("inputs"),
        reference="ghcr.io/team/base:1.0",
        index=None,
        manifest=digest_of("manifest"),
        config=digest_of("config"),
        distribution="ubuntu",
        installed_libc6="2.39",
        source_date_epoch=5,
        packages=(),
    )
    model = HubLock(
        inputs=digest_of("inputs"),
        repository="team/model",
        commit="a" * 40,
        license="Apache-2.0",
        files=(ModelFile(path="config.json", sha256=digest_of("file"), size_bytes=1),),
    )
    metadata = {digest_of("numpy"): said(), digest_of("torch"): said()}
    bill = make_bill("x", msgspec.structs.replace(locks, base=base, model=model), metadata)
    by_kind = {part.kind: part for part in bill.components}
    assert by_kind[Kind.MODEL].purl == f"pkg:huggingface/team/model@{'a' * 40}"
    assert PackageURL.from_string(by_kind[Kind.BASE].purl).version == digest_of("manifest")
    assert not bill.is_complete
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(cyclonedx_json(bill, version="1")) is None


def test_the_provenance_is_a_statement_of_in_toto_and_slsa(bill: Bill) -> None:
    epoch, manifest = sample_epoch(), Manifest(digest=digest_of("pushed"), media_type="m", compression="zstd")
    written = json.loads(provenance_json(epoch, digest_of("record"), bill, manifest=manifest))
    ParseDict(written, Statement())
    predicate = ParseDict(written["predicate"], Provenance())
    assert written["predicateType"] == "https://slsa.dev/provenance/v1"
    assert written["subject"][0]["digest"] == {"sha256": digest_of("pushed").removeprefix("sha256:")}
    assert {item.uri for item in predicate.build_definition.resolved_dependencies} == {
        part.purl for part in bill.components
    }
    assert predicate.run_details.metadata.invocation_id == digest_of("record")


def test_an_address_that_a_browser_would_run_is_left_out() -> None:
    assert parse_deb_metadata(CONTROL, "").homepage is None


def test_the_first_alternative_that_is_there_counts() -> None:
    assert parse_deb_metadata(CONTROL, "").requires == (("libgcc-s1",), ("libnone", "libcrypt1"))


@pytest.mark.parametrize("bom", [b"", b"[]", b'{"components": 1}', b"[" * 100_000, b'{"components": ["x"]}'])
def test_a_list_of_parts_that_is_none_names_no_part(bom: bytes) -> None:
    assert bundled_parts(bom) == ()


def test_a_part_with_a_strange_package_url_is_named_without_it() -> None:
    bom = json.dumps({"components": [{"name": "x", "version": "1", "purl": "javascript:1"}]}).encode()
    assert bundled_parts(bom) == (Bundled(name="x", version="1", purl=None),)


def deb(path: Path, *, compress: Any = lzma.compress, suffix: str = "xz") -> Path:
    """Write a Debian package, as dpkg-deb lays one out."""
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar.{suffix}": compress(packed_tar("./control", CONTROL.encode())),
        f"data.tar.{suffix}": compress(
            packed_tar(
                "./usr/share/doc/libc6/copyright",
                b"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
                b"Files: *\nLicense: LGPL-2.1+\n",
            )
        ),
    }
    data = b"!<arch>\n"
    for name, content in members.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        data += content + b"\n" * (len(content) % 2)
    path.write_bytes(data)
    return path


def packed_tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_a_debian_package_is_read_without_dpkg(tmp_path: Path) -> None:
    import gzip

    import zstandard

    for suffix, compress in (("xz", lzma.compress), ("gz", gzip.compress), ("zst", zstandard.compress)):
        found = read_deb_metadata(deb(tmp_path / "x.deb", compress=compress, suffix=suffix), name="libc6")
        assert found.license == License(expression="LGPL-2.1-or-later")
        assert found.installed_bytes == 12 * 1024


def test_a_package_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = deb(tmp_path / "x.deb").read_bytes()
    for length in (4, 30, 100, len(whole) // 2):
        (tmp_path / "x.deb").write_bytes(whole[:length])
        with pytest.raises(InvalidFileError, match=r"says nothing of itself"):
            read_deb_metadata(tmp_path / "x.deb", name="libc6")


def test_a_wheel_tells_its_own_parts_too(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(wheel_bytes("x", "1.0", {"x-1.0.dist-info/sboms/auditwheel.cdx.json": BOM}))
    found = read_wheel_metadata(path, name=path.name, python="3.11.2")
    assert [part.name for part in found.bundled] == ["libgomp"]


def test_a_wheel_in_a_later_form_of_zip_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = bytearray(wheel_bytes("x", "1.0"))
    data[data.index(b"PK\x01\x02") + 6] = 99  # "version needed to extract" of its first member
    (tmp_path / "x.whl").write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"zip file version 9\.9"):
        read_wheel_metadata(tmp_path / "x.whl", name="x.whl", python="3.11.2")


def test_a_wheel_without_metadata_is_an_error_that_names_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x.py", "")
    with pytest.raises(InvalidFileError, match=r"no METADATA"):
        read_wheel_metadata(tmp_path / "x.whl", name="x.whl", python="3.11.2")
