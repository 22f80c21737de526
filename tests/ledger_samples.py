"""Small records that are right in every detail; what a test is about comes as an argument."""

from pathlib import Path
from typing import Any

import msgspec

from repro_image.core.epoch import (
    ClassGolden,
    ClassRecord,
    Epoch,
    ImageIdentity,
    Manifest,
    ProofRecord,
    Repeat,
)
from repro_image.core.fingerprint import CpuClass, Fingerprint, Host, Subject
from repro_image.core.golden import (
    Completion,
    Golden,
    GoldenRequest,
    Lane,
    Prompt,
    Sampling,
    levels,
    pack_ids,
)
from repro_image.core.golden_file import golden_digest
from repro_image.core.inputs import BuildInputs
from repro_image.core.reference import sha256_digest

IMAGE = "vllm-cpu"
FOLDER = f"locks/{IMAGE}/epochs"


def digest_of(text: str) -> str:
    return sha256_digest(text.encode())


def sample_golden(last_token: int = 7) -> Golden:
    """Two tokens of one prompt."""
    sampling = Sampling(max_tokens=2, temperature=1.0, seed=2**63 - 25)
    lane = Lane(name="greedy", prompts=(Prompt(id="greedy/000", sampling=sampling, text="hi"),))
    return Golden(
        request=GoldenRequest(suite="tiny", root_seed=42, top_k=1, lanes=(lane,)),
        completions=(
            Completion(
                id="greedy/000",
                lane="greedy",
                tokenized=pack_ids([1]),
                prompt_ids=pack_ids([1]),
                output_ids=pack_ids([5, last_token]),
                topk_ids=pack_ids([5, last_token]),
                logprobs=bytes(16),
                finish_reason="length",
            ),
        ),
        vocabulary={"5": "a", str(last_token): "b"},
        weights={"w": "00"},
        canaries={"python": "01"},
    )


def sample_class(
    *, threads: int = 2, config: str = digest_of("config"), golden: Golden | None = None, **engine: Any
) -> ClassGolden:
    """engine: settings beside dtype."""
    golden = golden or sample_golden()
    host = Host(
        architecture="x86_64",
        cpu_vendor="GenuineIntel",
        cpu_family=6,
        cpu_model=143,
        cpu_name="a processor",
        cpu_stepping=8,
        microcode="0x1",
        flags=("avx512f", "fma"),
        cpus=2,
        threads_per_core=1,
        memory_bytes=2**34,
        kernel="6.1.0",
        system="Debian 12",
    )
    numeric_class = CpuClass(
        architecture="x86_64",
        vendor="GenuineIntel",
        family=6,
        model=143,
        flags=("avx512f", "fma"),
        capability="AVX512",
        threads=threads,
        cpus=threads,
    )
    subject = Subject(
        image=config,
        engine={"dtype": "bfloat16", **engine},
        resolved={"block_size": "16"},
        environment={"OMP_NUM_THREADS": str(threads)},
        model=digest_of("model"),
        weights=digest_of("weights"),
        suite=golden.request.digest,
        packages={"torch": "2.13.0+cpu", "vllm": "0.32.0"},
    )
    return ClassGolden(
        numeric_class=numeric_class.digest,
        golden=golden_digest(golden),
        levels=levels(golden),
        tokens=golden.token_count,
        repeat=Repeat(runs=2),
        fingerprint=Fingerprint(numeric_class=numeric_class, subject=subject, host=host, recorded={}),
    )


def sample_epoch(
    number: int = 1,
    previous: str | None = None,
    *,
    config: str = digest_of("config"),
    first_class: ClassGolden | None = None,
    **fields: Any,
) -> Epoch:
    """fields: replace fields of the record, or, by name, digests of its inputs."""
    names = BuildInputs.__struct_fields__
    inputs = BuildInputs(**{name: fields.pop(name, digest_of(name)) for name in names})
    epoch = Epoch(
        number=number,
        previous=previous,
        image_name=IMAGE,
        repository="repro-image/vllm-cpu",
        tag=f"e{number:04d}-{inputs.digest[7:15]}",
        image=ImageIdentity(
            config=config,
            manifests=(
                Manifest(
                    digest=digest_of(f"manifest of {config}"),
                    media_type="application/vnd.oci.image.manifest.v1+json",
                    compression="uncompressed",
                ),
            ),
            size_bytes=2_000_000_000,
            layers=12,
        ),
        inputs=inputs,
        input_digest=inputs.digest,
        first_class=first_class or sample_class(config=config),
        recorded_at="2026-11-21T22:30:00Z",
        tool="0.1.0",
        builder={"engine": "29.1.0", "buildx": "0.30.0"},
        source={"revision": "0" * 40, "clean": "yes"},
    )
    return msgspec.structs.replace(epoch, **fields)


def sample_class_record(follows: str, **options: Any) -> ClassRecord:
    return ClassRecord(
        follows=follows, added=sample_class(**options), recorded_at="2026-11-22T08:00:00Z", tool="0.1.0"
    )


def sample_proof(follows: str, config: str = digest_of("config")) -> ProofRecord:
    return ProofRecord(
        follows=follows,
        config=config,
        builder={"engine": "29.1.0"},
        recorded_at="2026-11-22T09:00:00Z",
        tool="0.1.0",
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` that counts: path -> bytes, without locks and unlinked files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
