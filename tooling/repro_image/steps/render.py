"""Render an image's Dockerfile from its template, its settings and its locks."""

from repro_image.adapters.files import Project
from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.dockerfile import TEMPLATE, render_dockerfile, template_values
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec


def render_image(project: Project, name: str, image: ImageSpec, locks: Locks) -> str:
    """Return the rendered Dockerfile; the same bytes on every machine."""
    values = template_values(name, image, locks, compatibility_tables())
    return render_dockerfile(project.templates(name), values, path=f"images/{name}/{TEMPLATE}")
