"""What a build would make: everything that follows from the project's files alone, without an engine or a
network.
"""

from dataclasses import dataclass

from repro_image.adapters.files import Project
from repro_image.adapters.shipped import natural_prompts, runner_bytes
from repro_image.core.golden import GoldenRequest
from repro_image.core.inputs import BuildInputs, build_inputs
from repro_image.core.limits import impossible
from repro_image.core.lockfile import Locks
from repro_image.core.own_suite import OWN_SUITE, parse_own_suite
from repro_image.core.project import ImageSpec
from repro_image.core.suite import golden_request
from repro_image.errors import InvalidFileError
from repro_image.steps.render import render_image

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"


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
    request = request_of(project, name, image)
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


def request_of(project: Project, name: str, image: ImageSpec) -> GoldenRequest:
    """Return what the image's suite asks, the image's own suite or one that ships.

    Raises: InvalidFileError also for a request that the image's settings cannot answer.
    """
    golden, path = image.golden, f"images/{name}/image.toml"
    if golden.environment.get(_IN_PROCESS) != "0":
        raise InvalidFileError(
            f'`$.golden.environment.{_IN_PROCESS}` is not "0"',
            path=path,
            fix=f'set {_IN_PROCESS} = "0" in [golden.environment]: in another process the engine\'s weights'
            " are out of reach for the negative control, and its bits vary from run to run",
        )
    if golden.suite == OWN_SUITE:
        text, suite_path = project.suite(name)
        request = parse_own_suite(text, seed=golden.seed, path=suite_path)
    else:
        request = golden_request(
            golden.suite, seed=golden.seed, prompts=natural_prompts(), on_gpu=image.gpu is not None
        )
    found = impossible(
        request, engine=golden.engine, environment=golden.environment, on_gpu=image.gpu is not None
    )
    if found is None:
        return request
    raise InvalidFileError(
        f"`{_key_of(found.setting)}`: {found.reason}", path=path, fix="change it, or the suite"
    )


def _key_of(setting: str) -> str:
    """Return the key path in image.toml of a setting that is named as `--set` names it."""
    if setting == "suite":
        return "$.golden.suite"
    place = "environment" if setting.startswith("env.") else "engine"
    return f"$.golden.{place}.{setting.removeprefix('env.')}"
