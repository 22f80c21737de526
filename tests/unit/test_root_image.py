"""core/root_image.py: documents made of a digest, a size and the lock's time, and of nothing else."""

import json

from repro_image.core.reference import sha256_digest
from repro_image.core.root_image import root_image

DIGEST = sha256_digest(b"root")


def test_a_root_has_one_layer_and_no_time_but_the_locks() -> None:
    root = root_image(DIGEST, size_bytes=4, created_s=1_000_000)
    config, manifest = json.loads(root.config), json.loads(root.manifest)
    assert config["rootfs"] == {"type": "layers", "diff_ids": [DIGEST]}
    assert {config["created"], config["history"][0]["created"]} == {"1970-01-12T13:46:40Z"}
    assert [layer["digest"] for layer in manifest["layers"]] == [DIGEST]
    assert manifest["config"]["digest"] == sha256_digest(root.config)
    assert root.descriptor.digest == sha256_digest(root.manifest)


def test_the_same_root_is_the_same_image_always() -> None:
    """By its digest: another one would change the image of every epoch that stands on it."""
    root = root_image(DIGEST, size_bytes=4, created_s=1_000_000)
    assert (
        sha256_digest(root.config)
        == "sha256:0002c45e0c06463152eb254ca26037defd341274c4205b820cf7fe4bce41aec7"
    )
