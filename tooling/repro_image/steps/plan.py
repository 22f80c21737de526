"""What a build would make: everything that follows from the project's files alone, without an engine or a
network.
"""

from dataclasses import dataclass

from repro_image.adapters.files import Project
from repro_image.adapters.shipped import compatibility_tables, prompt_texts, runner_bytes
from repro_image.core.dockerfile import TEMPLATE, render_dockerfile, template_values
from repro_image.core.golden import GoldenRequest
from repro_image.core.inputs import BuildInputs, build_inputs
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec
from repro_image.core.suite import golden_request


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One image as its files describe it. inputs: the digests that decide whether anything changed."""

    name: str
    image: ImageSpec
    locks: Locks
    dockerfile: str
    request: GoldenRequest
    inputs: BuildInputs
    repository: str

    @property
    def short_digest(self) -> str:
        """First 8 hex digits of the input digest, part of the tag."""
        return self.inputs.digest.removeprefix("sha256:")[:8]

    @property
    def build_tag(self) -> str:
        """Name of the image until its epoch is recorded."""
        return f"build-{self.short_digest}"

    def epoch_tag(self, number: int) -> str:
        return f"e{number:04d}-{self.short_digest}"


def plan_image(project: Project, name: str) -> Plan:
    """Return the plan of one image. Raises: ProjectError for an invalid image.toml, lock or template."""
    image = project.image(name)
    locks = project.locks(name)
    dockerfile = render_image(project, name, image, locks)
    request = golden_request(image.golden.suite, seed=image.golden.seed, prompts=prompt_texts())
    inputs = build_inputs(image, locks, dockerfile=dockerfile, suite=request.digest, runner=runner_bytes())
    return Plan(
        name=name,
        image=image,
        locks=locks,
        dockerfile=dockerfile,
        request=request,
        inputs=inputs,
        repository=f"{project.settings.repository}/{name}",
    )


def render_image(project: Project, name: str, image: ImageSpec, locks: Locks) -> str:
    """Return the rendered Dockerfile; the same bytes on every machine."""
    values = template_values(name, image, locks, compatibility_tables())
    return render_dockerfile(project.templates(name), values, path=f"images/{name}/{TEMPLATE}")
