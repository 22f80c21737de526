"""Template text + ImageSpec + locks -> Dockerfile text. Templates place values; every decision is made
here.
"""

import re
from collections.abc import Mapping
from typing import Any

from repro_image.core.canonical import canonical_digest
from repro_image.core.compatibility import Tables
from repro_image.core.demands import GpuDemands, demands_of
from repro_image.core.image_labels import LABEL_PREFIX, demand_labels
from repro_image.core.layers import layer_groups
from repro_image.core.lockfile import BaseLock, DebianLock, Locks
from repro_image.core.project import SECRET_NAME, ImageSpec
from repro_image.errors import InvalidFileError

TEMPLATE = "Dockerfile.j2"
# A golden run has an empty, writable folder there from which programs may be executed.
_CACHES = "/tmp/cache"  # noqa: S108 - a folder inside the container

_ROOT_TEMPLATE = """\
{% from "debian.j2" import root_stage %}
ARG SOURCE_DATE_EPOCH={{ source_date_epoch }}
{{ root_stage(base) }}
"""


def template_values(name: str, image: ImageSpec, locks: Locks, tables: Tables) -> dict[str, Any]:
    """Return what a template may place. Every value is checked text, a number, or a sorted list of such.

    name:              of the image.
    groups:            layers of wheels, bottom first: each has ``name``.
    base:              what the stage `root` is: ``image``, pinned reference of a registry's image, or None
                       for the locked root file system; ``has_packages``: locked packages go on top.
    source_date_epoch: seconds.
    environment:       (name, value) pairs, sorted: the golden settings, as OpenMP threads for example.
    gpu_environment:   the same for the container runtime and for the caches of an image for GPUs; else empty.
    labels:            (key, value) pairs, sorted; derived from content only, so equal content has equal
                       labels.
    """
    environment = {"OMP_NUM_THREADS": str(image.golden.threads), **image.golden.environment}
    demands = demands_of(image, locks, tables)
    labels = {
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.description": image.description,
        f"{LABEL_PREFIX}.root": locks.base.root,
        f"{LABEL_PREFIX}.requirements": canonical_digest(locks.requirements.wheels),
        f"{LABEL_PREFIX}.model": locks.model.digest,
        f"{LABEL_PREFIX}.python": image.python.version,
        **demand_labels(demands),
    }
    return {
        "name": name,
        "base": base_values(locks.base),
        "groups": layer_groups(locks.requirements.wheels),
        "source_date_epoch": locks.base.source_date_epoch,
        "python_version": image.python.version,
        "environment": sorted(environment.items()),
        "gpu_environment": sorted(_gpu_environment(demands.gpu, image, locks, tables).items()),
        "labels": sorted(labels.items()),
    }


def base_values(lock: DebianLock | BaseLock) -> dict[str, Any]:
    """Return what ``base`` is in a template."""
    if isinstance(lock, BaseLock):
        return {"image": lock.pinned, "has_packages": bool(lock.packages)}
    return {"image": None, "has_packages": False}


def render_root(templates: Mapping[str, str], lock: BaseLock, *, path: str) -> str:
    """Return the Dockerfile of the stage `root` alone, which Python packages are resolved in."""
    values = {"base": base_values(lock), "source_date_epoch": lock.source_date_epoch}
    return render_dockerfile({**templates, TEMPLATE: _ROOT_TEMPLATE}, values, path=path)


def _gpu_environment(
    gpu: GpuDemands | None, image: ImageSpec, locks: Locks, tables: Tables
) -> dict[str, str]:
    """Return the variables of an image for GPUs that change no number; image.toml may set them itself."""
    if gpu is None:
        return {}
    names = {wheel.name for wheel in locks.requirements.wheels}
    caches = {row.cache: _cache_folder(row.cache) for row in tables.compiler if row.name in names}
    variables = {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "CUDA_CACHE_PATH": _cache_folder("CUDA_CACHE_PATH"),
        **caches,
    }
    if gpu.cuda and gpu.driver_floor:
        # Alternatives: a driver of this CUDA, or an older one that minor-version compatibility accepts.
        variables["NVIDIA_REQUIRE_CUDA"] = f"cuda>={gpu.cuda} driver>={gpu.driver_floor.partition('.')[0]}"
    return {name: value for name, value in variables.items() if name not in image.golden.environment}


def _cache_folder(variable: str) -> str:
    """Return the folder that a variable such as TRITON_CACHE_DIR names."""
    owner = re.sub(r"_(?:CACHE|WORKSPACE)_\w+", "", variable)
    return f"{_CACHES}/{owner.lower().replace('_', '-')}"


def render_dockerfile(templates: Mapping[str, str], values: Mapping[str, Any], *, path: str) -> str:
    """Return the Dockerfile that the template ``Dockerfile.j2`` makes of ``values``.

    templates: file name -> text; the image's own template and the shared macros.
    path:      of the template, for errors.
    Raises: InvalidFileError for an undefined name, a syntax error, or a line that a Dockerfile must not have.
    """
    import jinja2

    environment = jinja2.Environment(
        # Unlike a DictLoader it gives a template its file's name, which errors then carry.
        loader=jinja2.FunctionLoader(
            lambda name: (templates[name], name, None) if name in templates else None
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - a Dockerfile is no HTML; `quoted` below is its escape
    )
    environment.filters["quoted"] = quoted
    try:
        text = environment.get_template(TEMPLATE).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidFileError(f"{error.name} line {error.lineno}: {error.message}", path=path) from error
    except jinja2.TemplateNotFound as error:
        raise InvalidFileError(f"the template {error.name} is missing", path=path) from error
    except jinja2.UndefinedError as error:
        place = _template_line(error, templates)
        raise InvalidFileError(
            f"{place}{error.message}", path=path, fix=f"use one of the names: {', '.join(sorted(values))}"
        ) from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InvalidFileError(f"{_template_line(error, templates)}{error}", path=path) from error
    _refuse_frontend(text, path=path)
    _refuse_secrets(text, path=path)
    return text


def quoted(value: object) -> str:
    """Return ``value`` as a double-quoted Dockerfile word; ``$`` would be expanded, so it is escaped."""
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"control character in {text!r}")
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _refuse_frontend(text: str, *, path: str) -> None:
    """A ``# syntax=`` line would let BuildKit fetch and run another Dockerfile frontend.

    BuildKit also reads ``//syntax=`` and, where the file starts like JSON, a key ``syntax``.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        is_json = line.lstrip("\ufeff \t").startswith("{")
        if is_json or re.match(r"[\s\ufeff]*(#|//)\s*(syntax|escape)\s*=", line, re.IGNORECASE):
            raise InvalidFileError(
                f"line {number} of the rendered file is refused: {line.strip()!r}",
                path=path,
                fix="remove the line",
            )


def _refuse_secrets(text: str, *, path: str) -> None:
    """An argument's or variable's value is in the image's history and configuration for all to read."""
    for instruction in _instructions(text):
        step = re.match(r"(?:ONBUILD\s+)?(ARG|ENV)\s+(.*)", instruction, re.IGNORECASE)
        words = re.findall(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+""", step[2]) if step else []
        is_old = (
            step and step[1].upper() == "ENV" and words and "=" not in words[0]
        )  # ENV NAME words of a value
        for word in words[:1] if is_old else words:
            name = word.partition("=")[0].strip("\"'")
            if SECRET_NAME.fullmatch(name.upper()):
                raise InvalidFileError(
                    f"the rendered file has `{instruction.split()[0]} {name}`, which reads like a credential,"
                    " and everybody can read it in the image",
                    path=path,
                    fix="remove it; a build has no network and needs no credential",
                )


def _instructions(text: str) -> list[str]:
    """Return the instructions, joined as BuildKit joins them: comments and empty lines may be in between."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [line.strip() for line in re.sub(r"\\[ \t]*\n", " ", "\n".join(lines)).splitlines()]


def _template_line(error: Exception, templates: Mapping[str, str]) -> str:
    """Return ``FILE line N: `` of the innermost template frame; jinja2 keeps it in the traceback only."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in templates:
            place = f"{trace.tb_frame.f_code.co_filename} line {trace.tb_lineno}: "
        trace = trace.tb_next
    return place
