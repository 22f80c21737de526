"""Rules on an image that somebody else may have made: what its variables could do to this machine."""

from collections.abc import Iterator, Mapping

from repro_image.core.finding import Finding, Level, make_finding

# What nvidia/cuda images set, harmless with a container toolkit that drops it before its hooks run.
_USUAL = {
    "/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/lib64:/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib:/usr/local/nvidia/lib64:/usr/local/cuda/lib64",
}
_HOOKS = "CVE-2025-23266: hooks of the NVIDIA Container Toolkit ran with the image's variables"
# strconv.ParseBool of Go, which reads the variable.
_TRUE = {"1", "t", "T", "true", "TRUE", "True"}


def environment_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for the loader's variables of a foreign image, and one for its switched-off checks."""
    loader = {name: value for name, value in environment.items() if name.startswith("LD_")}
    is_usual = set(loader) <= {"LD_LIBRARY_PATH"} and set(loader.values()) <= _USUAL
    yield make_finding(
        "LD_* of the image",
        found=", ".join(f"{name}={value}" for name, value in sorted(loader.items())) or "none",
        needed="none",
        level=Level.OK if not loader else Level.WARNING if is_usual else Level.ERROR,
        source=_HOOKS,
        fix="build an image without them; never run this one on a machine that you cannot lose",
    )
    is_off = environment.get("NVIDIA_DISABLE_REQUIRE", "") in _TRUE
    yield make_finding(
        "NVIDIA_DISABLE_REQUIRE of the image",
        found="set" if is_off else "not set",
        needed="not set",
        level=Level.ERROR if is_off else Level.OK,
        source="NVIDIA Container Toolkit, image variables",
        fix="build an image without it: it turns the container runtime's own checks off",
    )
