"""A project with an epoch of a small image, which tests push and pull as users do: on the command line."""

import base64
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.image_archive import config_digest
from repro_image.adapters.ledger_files import Ledger
from repro_image.core.epoch import Epoch, Manifest
from repro_image.core.ledger import StoredEpoch
from repro_image.steps.plan import plan_image
from tests.ledger_samples import sample_class, sample_epoch, sample_golden
from tests.scratch import IMAGE, Run, Scratch, docker

LAYER_BYTES = 3 * 2**20  # of noise, which does not pack


@dataclass(frozen=True, slots=True)
class Pushing:
    """scratch: a project whose repository is in a registry; its epochs are of images made here."""

    scratch: Scratch

    @classmethod
    def make(cls, folder: Path, host: str, *, repository: str = "team") -> "Pushing":
        scratch = Scratch(folder / "project", folder / "store")
        pushing = cls(scratch)
        pushing.set("repository", f"{host}/{repository}")
        return pushing

    def set(self, key: str, value: str) -> None:
        """Change a setting of [tool.repro-image]."""
        set_setting(self.scratch.folder, key, value)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.scratch.locks, IMAGE)

    @property
    def latest(self) -> StoredEpoch:
        return self.ledger.read()[-1]

    @property
    def repository(self) -> str:
        return f"{Project(self.scratch.folder).settings.repository}/{IMAGE}"

    @property
    def reference(self) -> str:
        return f"{self.repository}:{self.latest.epoch.tag}"

    def record(self, *layers: bytes) -> None:
        """Make an image of these layers and record the next epoch, which is about it."""
        folder = self.scratch.folder / "context"
        folder.mkdir(exist_ok=True)
        for number, content in enumerate(layers):
            (folder / f"layer{number}").write_bytes(content)
        copies = "".join(f"COPY layer{number} /\n" for number in range(len(layers)))
        (folder / "Dockerfile").write_text(f"FROM scratch\n{copies}")
        name = f"{self.repository}:new"
        plain = "compression=uncompressed,force-compression=true"
        output = f"type=image,name={name},unpack=true,{plain}"
        docker("buildx", "build", "--provenance=false", "--output", output, str(folder))
        image = Engine().image(name)
        assert image is not None
        config = config_digest(Engine(), image)
        inputs = plan_image(Project(self.scratch.folder), IMAGE).inputs
        Goldens(self.scratch.locks / "goldens").write(sample_golden())

        def entry(number: int, previous: str | None) -> Epoch:
            epoch = sample_epoch(
                number,
                previous,
                config=config,
                first_class=sample_class(config=config, golden=sample_golden()),
                repository=self.repository,
                **{field: getattr(inputs, field) for field in inputs.__struct_fields__},
            )
            form = Manifest(
                digest=image.id, media_type=epoch.image.manifests[0].media_type, compression="uncompressed"
            )
            return msgspec.structs.replace(
                epoch, image=msgspec.structs.replace(epoch.image, manifests=(form,))
            )

        self.ledger.append_epoch(entry)
        docker("tag", name, self.reference)
        docker("rmi", name)

    def forget(self) -> None:
        """Remove every name that the engine has in the epochs' repository."""
        repository = self.latest.epoch.repository
        for form in ("{{.Repository}}:{{.Tag}}", "{{.Repository}}@{{.Digest}}"):
            for name in docker("image", "ls", "--digests", "--format", form, repository).split():
                if "<none>" not in name:
                    docker("rmi", "--force", name)

    def push(self, **environment: str) -> Run:
        """Run `build --push`: nothing changed since the epoch, so it only pushes."""
        return self.scratch.run("build", IMAGE, "--push", "--json", environment=environment)

    def verify(self, **environment: str) -> Run:
        """Run `verify`: no machine has the class of the sample, so it gets the image and ends with 11."""
        return self.scratch.run("verify", self.latest.epoch.tag, environment=environment)


def noise() -> bytes:
    return os.urandom(LAYER_BYTES)


def set_setting(project: Path, key: str, value: str) -> None:
    """Change a setting of [tool.repro-image] in a project's folder."""
    path = project / "pyproject.toml"
    kept = re.sub(rf"^{key} = .*\n", "", path.read_text(), flags=re.MULTILINE)
    head = "[tool.repro-image]\n"
    path.write_text(kept.replace(head, f'{head}{key} = "{value}"\n'))


def log_in(folder: Path, host: str, password: str) -> dict[str, str]:
    """Write a docker configuration as `docker login` does; return the environment that names it."""
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return {"DOCKER_CONFIG": str(folder)}
