"""Every error that a user can meet, with its exit code.

The exit codes are part of the interface: 0 done or match · 1 bug · 2 usage · 3 project, lock or model
                                          invalid or
stale · 4 constraint · 5 engine, registry, network, disk · 6 ledger or signature broken · 10 mismatch · 11 not
comparable · 12 drift · 130/143 interrupted.
"""

from collections.abc import Sequence
from typing import ClassVar


class ReproImageError(Exception):
    """A failure with a known cause, told so that the reader can act on it.

    what:  what happened, with the value that caused it.
    where: a file and key, an image reference, or a command.
    fix:   what to do now, in the imperative.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"


class UsageError(ReproImageError):
    """An argument that no project could make valid."""

    exit_code = 2


class ProjectError(ReproImageError):
    """The project, a lock, a stored file or a model is invalid or stale."""

    exit_code = 3


class ConstraintError(ReproImageError):
    """A machine or a lock breaks a constraint."""

    exit_code = 4


class WorldError(ReproImageError):
    """The engine, a registry, an index, the network or the disk failed."""

    exit_code = 5


class LedgerError(ReproImageError):
    """The ledger is not what its own digests say."""

    exit_code = 6


class MismatchError(ReproImageError):
    """The image does not answer what it should."""

    exit_code = 10


class NotComparableError(ReproImageError):
    """The two sides may not be compared at all."""

    exit_code = 11


class InvalidReferenceError(UsageError):
    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} is not an image reference, tag or digest",
            where="command line",
            fix="write repository:tag, repository@sha256:<64 hex digits>, a tag such as "
            "e0001-1a2b3c4d, or the digest alone",
        )
        self.text = text


class UnknownImageError(UsageError):
    def __init__(self, image: str, *, known: tuple[str, ...]) -> None:
        listed = ", ".join(known) if known else "none"
        super().__init__(
            f"the project has no image {image!r} (known: {listed})",
            where="images/",
            fix="name one of the folders below images/, or run `repro-image init` to lay out a project",
        )
        self.image, self.known = image, known


class NoProjectError(ProjectError):
    def __init__(self, start: str) -> None:
        super().__init__(
            "there is no repro-image project here",
            where=f"{start} and the folders above it",
            fix="change into a project, pass `--project DIR`, or lay one out with `repro-image init`",
        )
        self.start = start


class InvalidFileError(ProjectError):
    """A file that people or the tool wrote does not have the form it must have."""

    def __init__(self, what: str, *, path: str, fix: str = "correct the file") -> None:
        super().__init__(what, where=path, fix=fix)
        self.path = path


class StaleLockError(ProjectError):
    def __init__(self, path: str, *, reason: str, image: str, command: str = "lock") -> None:
        super().__init__(
            f"the lock is stale: {reason}", where=path, fix=f"run `repro-image {command} {image}`"
        )
        self.path, self.reason, self.image = path, reason, image


class EditedLockError(ProjectError):
    def __init__(self, path: str, *, expected: str, found: str, image: str) -> None:
        super().__init__(
            f"the lock was changed by hand: its content is {found}, its header says {expected}",
            where=path,
            fix=f"restore it with `git checkout -- {path}`, or make it again with `repro-image lock {image}`",
        )
        self.path, self.expected, self.found = path, expected, found


class MissingLockError(ProjectError):
    def __init__(self, path: str, *, image: str) -> None:
        super().__init__("the lock is missing", where=path, fix=f"run `repro-image lock {image}`")
        self.path, self.image = path, image


class CorruptFileError(ProjectError):
    """A stored file does not match the digest that it is stored under."""

    def __init__(self, path: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"a stored file is corrupt: expected {expected}, found {found}",
            where=path,
            fix=f"remove it with `rm {path}`; `repro-image fetch` then gets it again",
        )
        self.path, self.expected, self.found = path, expected, found


class EngineMissingError(WorldError):
    def __init__(self, reason: str) -> None:
        if "Permission denied" in reason or "PermissionError" in reason:
            what, fix = (
                "the Docker Engine refuses this user",
                "add the user to the group `docker`, or run as root",
            )
        else:
            what, fix = (
                "no Docker Engine answers",
                "start it (`systemctl start docker`); `repro-image doctor` says what is needed",
            )
        super().__init__(f"{what}: {reason}", where="DOCKER_HOST, else the docker context in use", fix=fix)
        self.reason = reason


class EngineTooOldError(ConstraintError):
    def __init__(self, part: str, *, found: str, floor: str) -> None:
        super().__init__(
            f"the {part} is too old: found {found}, needed {floor} or newer",
            where="docker info",
            fix="upgrade it; `repro-image doctor` lists everything that is needed",
        )
        self.part, self.found, self.floor = part, found, floor


class ImageStoreError(ConstraintError):
    """The engine's older image store packs layers anew, so an image would have no digest of its own."""

    def __init__(self) -> None:
        super().__init__(
            "the engine does not use the containerd image store",
            where="docker info: driver-type",
            fix='put {"features": {"containerd-snapshotter": true}} into /etc/docker/daemon.json and restart '
            "the engine; images of the older store are then not listed",
        )


class EngineCallError(WorldError):
    def __init__(self, command: str, output: str) -> None:
        super().__init__(
            f"the engine failed: {output}",
            where=command,
            fix="read the message; `repro-image doctor` checks the engine",
        )
        self.command, self.output = command, output


class ContainerTimeoutError(WorldError):
    def __init__(self, command: list[str], *, timeout_s: float) -> None:
        super().__init__(
            f"the container did not end within {timeout_s:.0f} s and was stopped",
            where=" ".join(command)[:300],
            fix="raise the time-out, or free the machine's cores: a busy core makes "
            "OpenMP a hundred times slower",
        )
        self.command, self.timeout_s = command, timeout_s


class DiskFullError(WorldError):
    """A file system has no room for what was to be written.

    needed_bytes: size of that; free_bytes: room for it. None where unknown.
    """

    def __init__(self, path: str, *, needed_bytes: int | None = None, free_bytes: int | None = None) -> None:
        needed = "more room" if needed_bytes is None else f"{needed_bytes:,} bytes"
        free = "" if free_bytes is None else f", {free_bytes:,} bytes free"
        super().__init__(
            f"the disk is full: {needed} needed{free}",
            where=path,
            fix="free some space, or move the store: `--store DIR` or `store` in [tool.repro-image]",
        )
        self.path, self.needed_bytes, self.free_bytes = path, needed_bytes, free_bytes


class StoreError(WorldError):
    """The store's folder cannot be used: read-only, no permission, a file in its place."""

    def __init__(self, path: str, *, reason: str) -> None:
        super().__init__(
            f"the store cannot be written: {reason}",
            where=path,
            fix="make the folder writable, or move the store: `--store DIR` or `store` in [tool.repro-image]",
        )
        self.path, self.reason = path, reason


class MissingFileError(ProjectError):
    """A file that a lock names is not in the store."""

    def __init__(self, name: str, *, path: str) -> None:
        super().__init__(f"{name} is not in the store", where=path, fix="get it with `repro-image fetch`")
        self.name, self.path = name, path


class BuildFailedError(WorldError):
    """A build step failed. lines: the last ones that it printed."""

    def __init__(self, step: str, *, reason: str, lines: tuple[str, ...], path: str) -> None:
        tail = "".join(f"\n    | {line}" for line in lines)
        super().__init__(
            f"the build failed in step {step}: {reason}{tail}",
            where=path,
            fix="read the step's last lines; nothing was recorded",
        )
        self.step, self.reason, self.lines = step, reason, lines


class BrokenWheelError(ProjectError):
    """A locked wheel is no wheel."""

    def __init__(self, filename: str, *, reason: str) -> None:
        super().__init__(
            f"the locked file is no wheel: {reason}",
            where=filename,
            fix="lock another version: `repro-image lock --upgrade`",
        )
        self.filename, self.reason = filename, reason


class ClashingWheelsError(ProjectError):
    """Two wheels of one layer install other content under one path."""

    def __init__(self, filename: str, other: str, *, path: str) -> None:
        super().__init__(
            f"{filename} and {other} both install {path}, each with other content",
            where="locks/<image>/requirements.txt",
            fix="exclude one of the two in image.toml, [python.excluded], and lock again",
        )
        self.filename, self.other, self.path = filename, other, path


class GoldenRunError(WorldError):
    """The golden run did not come to an answer. log: its last lines."""

    def __init__(self, what: str, *, log: tuple[str, ...]) -> None:
        tail = "".join(f"\n    | {line}" for line in log)
        super().__init__(
            f"{what}{tail}", where="golden run", fix="read the last lines of the log; nothing was recorded"
        )
        self.log = log


class ServingError(WorldError):
    """The server or its client did not come to an answer. log: the server's last lines."""

    def __init__(self, what: str, *, log: tuple[str, ...]) -> None:
        tail = "".join(f"\n    | {line}" for line in log)
        super().__init__(
            f"{what}{tail}",
            where="vllm serve",
            fix="read the server's last lines; on a slow machine raise golden.timeout_s in image.toml. "
            "`repro-image verify TAG` asks the image without a server",
        )
        self.log = log


class ForeignOutputError(LedgerError):
    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(
            f"the answer belongs to another run: asked with nonce {expected[:16]}…, "
            f"answered with {found[:16]!r}…",
            where="golden run",
            fix="run it again; if it repeats, the image replaces its own answers: do not trust it",
        )
        self.expected, self.found = expected, found


class BrokenRecordError(LedgerError):
    """A ledger file is not what repro-image wrote. line, column: from 1, where the place is known."""

    def __init__(self, what: str, *, path: str, line: int | None = None, column: int | None = None) -> None:
        place = f", line {line}, column {column}" if line is not None else ""
        super().__init__(
            what,
            where=f"{path}{place}",
            fix=f"restore it from git, such as `git checkout -- {path}`; the ledger's files are never edited",
        )
        self.path, self.line, self.column = path, line, column


class BrokenChainError(LedgerError):
    """A record does not follow the one before it."""

    def __init__(self, what: str, *, path: str) -> None:
        super().__init__(
            what,
            where=path,
            fix="restore the ledger from git; where two branches added the same number, keep one of them",
        )
        self.path = path


class MissingRecordError(LedgerError):
    """The ledger does not hold a record that somebody has seen in it."""

    def __init__(self, digest: str, *, path: str) -> None:
        super().__init__(
            f"no epoch has the digest {digest}: this ledger is older than what was seen, or another one",
            where=path,
            fix="fetch the ledger's newest state from git; a published epoch is never taken back",
        )
        self.digest, self.path = digest, path


class NewerRecordError(ProjectError):
    """A record in a form that this version does not know yet."""

    def __init__(self, what: str, *, path: str, tool: str) -> None:
        super().__init__(
            f"written by a newer repro-image{f' ({tool})' if tool else ''}: {what}",
            where=path,
            fix="install a newer repro-image",
        )
        self.path, self.tool = path, tool


class AlreadyRecordedError(UsageError):
    def __init__(self, what: str, *, path: str) -> None:
        super().__init__(what, where=path, fix="nothing is left to do: records are never replaced")
        self.path = path


class LedgerDiskError(WorldError):
    """The ledger's disk failed; ``reason`` says what is known of the ledger's state."""

    def __init__(self, reason: str, *, path: str, fix: str) -> None:
        super().__init__(reason, where=path, fix=fix)
        self.reason, self.path = reason, path


class LedgerBusyError(WorldError):
    def __init__(self, path: str, *, holder: str, timeout_s: float) -> None:
        super().__init__(
            f"another process is writing here for more than {timeout_s:g} s: {holder}",
            where=path,
            fix="wait for it or end it, then run it again",
        )
        self.path, self.holder, self.timeout_s = path, holder, timeout_s


class UnstableGoldenError(MismatchError):
    """otherwise: what the second container had otherwise, such as ``threads: 2, then 1``."""

    def __init__(self, detail: str, *, otherwise: Sequence[str]) -> None:
        ran = "".join(f"\n  ran otherwise: {difference}" for difference in otherwise)
        super().__init__(
            f"nothing was recorded: {detail}{ran}",
            where="golden run",
            fix="leave the machine's cores to the run, set every engine setting in "
            "image.toml, and build again",
        )
        self.detail, self.otherwise = detail, tuple(otherwise)


class ToothlessGoldenError(MismatchError):
    def __init__(self, *, prompts: int) -> None:
        super().__init__(
            f"a changed weight left the answers to {prompts} prompts as they were, so nothing was recorded:"
            " this golden would not see another model",
            where="golden run",
            fix="ask for more or longer prompts: set golden.suite in image.toml to a larger suite",
        )
        self.prompts = prompts


class InvalidModelError(ProjectError):
    """A model file is damaged, or is no model that can be converted exactly."""

    def __init__(self, what: str, *, path: str) -> None:
        super().__init__(
            what,
            where=path,
            fix="name in [model] of image.toml a GGUF of a plain llama model with a "
            "byte-level BPE vocabulary",
        )
        self.path = path


class DiskTooSmallError(WorldError):
    def __init__(self, path: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"the disk is too small: {needed_bytes / 1e9:.1f} GB are needed, "
            f"{free_bytes / 1e9:.1f} GB are free",
            where=path,
            fix="free room, for example with `docker builder prune` and `docker image prune`",
        )
        self.path, self.needed_bytes, self.free_bytes = path, needed_bytes, free_bytes


class BrokenConstraintsError(ConstraintError):
    def __init__(self, image: str, findings: tuple[str, ...]) -> None:
        super().__init__(
            "".join(f"{line}\n  " for line in findings).strip(),
            where=f"images/{image}/image.toml",
            fix=f"see `repro-image check {image}`",
        )
        self.findings = findings


class TooFewCoresError(ConstraintError):
    def __init__(self, threads: int) -> None:
        super().__init__(
            f"the golden run needs {threads} whole cores, and this process may use fewer",
            where="image.toml, golden.threads",
            fix="run on a machine with more cores, or lower golden.threads (a new numeric class)",
        )
        self.threads = threads


class NoGpuError(ConstraintError):
    """found: each GPU with why it does not fit; hidden: how many CUDA_VISIBLE_DEVICES leaves out."""

    def __init__(self, wanted: str, *, found: Sequence[str], hidden: int = 0) -> None:
        left_out = f" (CUDA_VISIBLE_DEVICES hides {hidden} more)" if hidden else ""
        super().__init__(
            f"needed is {wanted}; found: {'; '.join(found) or 'none'}{left_out}",
            where="this machine's GPUs, as NVML lists them",
            fix="use a machine that has them (see `repro-image doctor`), or change [gpu] in image.toml",
        )
        self.wanted, self.found, self.hidden = wanted, tuple(found), hidden


class GpuBusyError(ConstraintError):
    def __init__(self, uses: Sequence[str]) -> None:
        super().__init__(
            f"every GPU that fits is in use: {'; '.join(uses)}",
            where="this machine's GPUs, as NVML lists them",
            fix="end what uses them, or wait for it",
        )
        self.uses = tuple(uses)


class NoGpuAccessError(WorldError):
    """The engine cannot give GPUs to containers."""

    def __init__(self, uuids: Sequence[str], output: str) -> None:
        super().__init__(
            f"the Docker Engine cannot give {', '.join(uuids)} to a container: {output}",
            where="docker run",
            fix="install the NVIDIA Container Toolkit, run `nvidia-ctk cdi generate "
            "--output=/var/run/cdi/nvidia.yaml`, and before Docker 28.2 set "
            '{"features": {"cdi": true}} in /etc/docker/daemon.json and restart the engine',
        )
        self.uuids, self.output = tuple(uuids), output


class GpuProbeError(WorldError):
    """The look at the GPUs from inside an image failed."""

    def __init__(self, reason: str, *, image: str) -> None:
        super().__init__(
            f"the GPUs cannot be looked at from inside: {reason}",
            where=image,
            fix="use an image whose Python holds nvidia-ml-py, as vLLM's CUDA wheel brings it along",
        )
        self.reason, self.image = reason, image


class OtherImageError(MismatchError):
    """A rebuild of unchanged inputs came out as another image."""

    def __init__(self, reference: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"the rebuild is another image: the epoch has {expected}, the rebuild is {found}",
            where=reference,
            fix="compare builder versions (`repro-image epochs show`, `repro-image doctor`); where the image "
            "of the epoch is, `repro-image diff` tells which files differ and why",
        )
        self.reference, self.expected, self.found = reference, expected, found


class CommandFailedError(WorldError):
    """A program of the machine failed. lines: the last ones that it printed."""

    def __init__(self, command: str, *, exit_code: int, lines: tuple[str, ...]) -> None:
        tail = "".join(f"\n    | {line}" for line in lines)
        super().__init__(
            f"the command ended with exit code {exit_code}{tail}",
            where=command if len(command) <= 300 else f"{command[:300]}…",
            fix="read its last lines; nothing was changed",
        )
        self.command, self.command_exit_code, self.lines = command, exit_code, lines


class MissingProgramError(WorldError):
    def __init__(self, program: str, *, package: str) -> None:
        super().__init__(
            f"the program {program} is not installed",
            where=f"PATH, searched for {program}",
            fix=f"install it with `apt-get install {package}`; the Debian root file system "
            "is made on Debian machines",
        )
        self.program, self.package = program, package


class NoUserNamespaceError(WorldError):
    """Who is not root needs a user namespace to make a root file system."""

    def __init__(self, user: str, *, reason: str) -> None:
        super().__init__(
            f"{user} is not root and cannot make a user namespace for the Debian root file system: {reason}",
            where="/etc/subuid, /etc/subgid and newuidmap of this machine",
            fix="as root: `apt-get install uidmap` and `usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 {user}`, and allow user namespaces",
        )
        self.user, self.reason = user, reason


class NoDebianSourceError(WorldError):
    def __init__(self, archive: str) -> None:
        super().__init__(
            f"this machine's apt knows no mirror of the Debian archive {archive}",
            where="apt-get indextargets",
            fix="run `apt-get update`, or set `debian_mirror` in [tool.repro-image] of pyproject.toml",
        )
        self.archive = archive


class UnresolvableDebianError(ProjectError):
    def __init__(self, packages: tuple[str, ...], *, suite: str, lines: tuple[str, ...]) -> None:
        tail = "".join(f"\n    | {line}" for line in lines)
        super().__init__(
            f"{suite} cannot install {', '.join(packages)}{tail}",
            where="image.toml, [base.packages]",
            fix="name packages that this suite has",
        )
        self.packages, self.suite, self.lines = packages, suite, lines


class WhatIfError(UsageError):
    def __init__(self, setting: str, *, reason: str) -> None:
        super().__init__(
            f"--set {setting!r} is not understood: {reason}",
            where="command line",
            fix="write for example --set dtype=float32, --set threads=1, --set env.ATEN_CPU_CAPABILITY=avx2",
        )
        self.setting, self.reason = setting, reason


class ImpossibleSettingError(UsageError):
    """setting: as `--set` names it; reason: why vLLM could not answer with it."""

    def __init__(self, setting: str, *, reason: str) -> None:
        super().__init__(
            f"with --set {setting} the golden cannot be asked: {reason}",
            where="command line",
            fix="leave it out, or choose another value",
        )
        self.setting, self.reason = setting, reason


class UnknownEpochError(ProjectError):
    def __init__(self, reference: str, *, known: tuple[str, ...]) -> None:
        listed = ", ".join(known[-5:]) if known else "none"
        super().__init__(
            f"no epoch is known for {reference} (newest: {listed})",
            where="locks/*/epochs",
            fix="see `repro-image epochs list`; a new image becomes an epoch with `repro-image build`",
        )
        self.reference, self.known = reference, known


class ImageMissingError(WorldError):
    """pulled: why it could not be had from where it was pushed; empty where it never was."""

    def __init__(self, reference: str, *, pulled: str = "") -> None:
        super().__init__(
            f"the image {reference} is not on this machine{pulled and f', and {pulled}'}",
            where="the engine's image store",
            fix=f"pull it, or make it again from the locks with `repro-image verify --rebuild {reference}`",
        )
        self.reference = reference


class BrokenImageError(ProjectError):
    """An image archive that cannot be read as OCI says, or that is made to do harm."""

    def __init__(self, reason: str, *, image: str) -> None:
        super().__init__(
            f"the image cannot be read: {reason}",
            where=image,
            fix="make it again: `docker save`, or `docker buildx build --output type=oci,dest=FILE`",
        )
        self.reason, self.image = reason, image


class WhichImageError(UsageError):
    """An image archive that holds none or several images, or not the one that was named."""

    def __init__(self, path: str, *, known: tuple[str, ...]) -> None:
        super().__init__(
            f"the archive holds {len(known)} images, and one has to be named",
            where=path,
            fix=f"write PATH@DIGEST; it holds: {', '.join(known) or 'none'}",
        )
        self.path, self.known = path, known


class InvalidLabelsError(ProjectError):
    def __init__(self, reference: str, *, reason: str) -> None:
        super().__init__(
            f"the image does not say what it demands of a machine: {reason}",
            where=f"labels of {reference}",
            fix="check an image that repro-image built, or build it again with this release",
        )
        self.reference, self.reason = reference, reason


class OtherInputsError(ProjectError):
    def __init__(self, reference: str, *, parts: tuple[str, ...], revision: str | None) -> None:
        fix = (
            f"check out revision {revision}" if revision else "check out the revision that recorded the epoch"
        )
        super().__init__(
            f"the project's files are not those of the epoch; changed: {', '.join(parts)}",
            where=reference,
            fix=f"{fix}, then run this again",
        )
        self.reference, self.parts = reference, parts


class UnsafeModelError(ProjectError):
    def __init__(self, path: str, *, reason: str) -> None:
        super().__init__(
            f"the model is refused: {reason}",
            where=path,
            fix="use a whole model: safetensors, config, tokenizer, and nothing that runs",
        )
        self.path, self.reason = path, reason


class RecordWhatIfError(UsageError):
    def __init__(self) -> None:
        super().__init__(
            "--record does not go with --set or --model: a what-if is never recorded",
            where="command line",
            fix="leave out --record, or change image.toml and run `repro-image build`",
        )


class ProveWithoutEpochError(UsageError):
    def __init__(self) -> None:
        super().__init__(
            "--prove adds a proof to an epoch, and --no-golden makes none",
            where="command line",
            fix="leave out one of the two",
        )


class ReportFormError(UsageError):
    def __init__(self, path: str, *, forms: tuple[str, ...]) -> None:
        super().__init__(
            f"no report has the suffix of {path!r}",
            where="command line, --report",
            fix=f"name a file that ends in {' or '.join(forms)}",
        )
        self.path, self.forms = path, forms


class PipConfigurationError(WorldError):
    def __init__(self, reason: str) -> None:
        super().__init__(
            f"this machine's pip configuration cannot be read: {reason}",
            where="pip config list",
            fix="correct the file or variable that `pip config debug` shows",
        )
        self.reason = reason


class DownloadError(WorldError):
    """A file or page could not be had. where: an address without credentials and query."""

    def __init__(
        self, name: str, *, reason: str, where: str, fix: str = "try again; what is there is kept"
    ) -> None:
        super().__init__(f"{name} could not be downloaded: {reason}", where=where, fix=fix)
        self.name, self.reason = name, reason


class WrongContentError(WorldError):
    """A server's file is not the one that is locked; it was not kept."""

    def __init__(self, name: str, *, expected: str, found: str, where: str) -> None:
        super().__init__(
            f"{name} is not the locked file: expected {expected}, found {found}",
            where=where,
            fix="find out why it changed; lock again with `repro-image lock` only if the "
            "new file is to be trusted",
        )
        self.name, self.expected, self.found = name, expected, found


class NoWheelError(WorldError):
    """No source has a wheel that fits. wanted: project and version."""

    def __init__(self, wanted: str, *, source: str, fix: str) -> None:
        super().__init__(
            f"there is no wheel of {wanted} that the image can install", where=f"source {source}", fix=fix
        )
        self.wanted, self.source = wanted, source


class NoHashError(WorldError):
    def __init__(self, filename: str, *, where: str) -> None:
        super().__init__(
            f"the index gives no sha256 for {filename}",
            where=where,
            fix="use an index that gives hashes, or put the wheel into a local find-links folder of pip",
        )
        self.filename = filename


class UnknownIndexError(ProjectError):
    def __init__(self, name: str, *, known: tuple[str, ...]) -> None:
        super().__init__(
            f"no address is known for the index {name!r} (known: {', '.join(known) or 'none'})",
            where="pyproject.toml: [tool.repro-image.indexes]",
            fix=f'add `{name} = "https://…"` there, or correct [python.sources] in image.toml',
        )
        self.name, self.known = name, known


class UnknownSuiteError(ProjectError):
    def __init__(self, suite: str, *, known: tuple[str, ...]) -> None:
        super().__init__(
            f"there is no suite {suite!r} (known: {', '.join(known)})",
            where="[golden] suite in image.toml",
            fix="name one of the known suites, or `suite.toml` for one of the image's own",
        )
        self.suite, self.known = suite, known


class ResolverMissingError(ConstraintError):
    def __init__(self, resolver: str, *, found: str | None, needed: str) -> None:
        super().__init__(
            f"the resolver {resolver} cannot be used: found {found or 'none'}, needed {needed}",
            where=f"the Python environment of repro-image: {resolver}",
            fix=f"install it beside repro-image: `pip install '{resolver}{needed}'`",
        )
        self.resolver, self.found, self.needed = resolver, found, needed


class ResolveError(WorldError):
    """The resolver found no versions, or could not reach a source. output: its last lines, redacted."""

    def __init__(self, resolver: str, *, status: int, output: str, requirements: str) -> None:
        super().__init__(
            f"{resolver} ended with {status}:\n{output}",
            where=requirements,
            fix="change the requirements, or the pip configuration where a source is missing; "
            "the old lock is kept",
        )
        self.resolver, self.status, self.output = resolver, status, output


class ResolverOutputError(WorldError):
    def __init__(self, resolver: str, *, line: str, requirements: str) -> None:
        super().__init__(
            f"{resolver} wrote a line that is no pin: {line[:200]!r}",
            where=requirements,
            fix="use the versions of the resolvers that repro-image is tested with; the old lock is kept",
        )
        self.resolver, self.line = resolver, line


class BasePythonError(ProjectError):
    def __init__(self, image: str, *, wanted: str, found: str) -> None:
        super().__init__(
            f"the base has Python {found}, image.toml says {wanted}",
            where=f"images/{image}/image.toml: python.version",
            fix=f'write `version = "{".".join(found.split(".")[:2])}"`, or choose another suite for the base',
        )
        self.wanted, self.found = wanted, found


class ExistingFilesError(ProjectError):
    def __init__(self, folder: str, *, files: tuple[str, ...]) -> None:
        super().__init__(
            f"these files are already there, and init overwrites nothing: {', '.join(files)}",
            where=folder,
            fix="name an empty or new folder: `repro-image init DIR`",
        )
        self.folder, self.files = folder, files


class FolderError(WorldError):
    """A folder of the user cannot be written to."""

    def __init__(self, path: str, *, reason: str) -> None:
        super().__init__(
            f"cannot write here: {reason}",
            where=path,
            fix="name another folder, or free it: permissions, space",
        )
        self.path, self.reason = path, reason


class GoneError(DownloadError):
    """The server says that it does not have the file (404, 410)."""


class RefusedError(DownloadError):
    """The server asks for credentials, or does not accept those that it got (401, 403)."""


class RateLimitError(DownloadError):
    """The server was asked too often (429)."""

    def __init__(self, name: str, *, reason: str, where: str) -> None:
        super().__init__(
            name,
            reason=reason,
            where=where,
            fix="wait some minutes and try again, what is there is kept; those who log in are allowed more "
            "(a registry: `docker login`; a model hub: HF_TOKEN)",
        )


class NoHubModelError(WorldError):
    def __init__(self, repository: str) -> None:
        super().__init__(
            f"the model hub has no repository {repository!r}, or does not show it",
            where="image.toml: model.repository",
            fix="correct the name; for a private model set HF_TOKEN to a token that may read it",
        )
        self.repository = repository


class NoHubRevisionError(WorldError):
    def __init__(self, repository: str, *, revision: str) -> None:
        super().__init__(
            f"the repository {repository} of the model hub has no revision {revision!r}",
            where="image.toml: model.revision",
            fix="name a branch, a tag or a full commit of the repository",
        )
        self.repository, self.revision = repository, revision


class HubAccessError(WorldError):
    """The model is gated, or private, or the user's token is not accepted."""

    def __init__(self, repository: str) -> None:
        super().__init__(
            f"the model hub refuses access to {repository}",
            where="image.toml: model.repository",
            fix="accept the model's licence on its page of the hub, and set HF_TOKEN to a token of that "
            "account (or log in with `hf auth login`)",
        )
        self.repository = repository


class HubFileGoneError(WorldError):
    """A commit that is locked is no longer on the hub: its history was rewritten, or it was removed."""

    def __init__(self, repository: str, *, file: str, commit: str, image: str) -> None:
        super().__init__(
            f"the locked file {file} of {repository} is gone from the model hub at commit {commit}",
            where=f"locks/{image}/model.json",
            fix=f"lock the newest commit with `repro-image lock {image} --upgrade`, or name another revision",
        )
        self.repository, self.file, self.commit, self.image = repository, file, commit, image


class DebGoneError(WorldError):
    """A locked Debian package is in none of the places it may be had from: mirrors drop what they replace."""

    def __init__(self, name: str, version: str, *, image: str, where: str) -> None:
        super().__init__(
            f"the Debian package {name} {version} is gone from the mirror",
            where=where,
            fix=f"lock again with `repro-image lock {image} --upgrade`, or set `debian_snapshot` in "
            "[tool.repro-image] to a snapshot that still has it, or run "
            f"`repro-image mirror push {image}` on a machine that still has it in its store",
        )
        self.name, self.version, self.image = name, version, image


class OtherRootError(ProjectError):
    def __init__(self, image: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"the root made from the locked packages is {found}, the lock says {expected}",
            where=f"locks/{image}/debian.json: root",
            fix="use the repro-image, mmdebstrap and dpkg of the machine that locked; to lock what this one "
            f"makes, remove the file and run `repro-image lock {image}`",
        )
        self.expected, self.found = expected, found


class OtherConversionError(ProjectError):
    def __init__(self, image: str, file: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"the model file {file} converted here is {found}, the lock says {expected}",
            where=f"locks/{image}/model.json",
            fix=f"use the repro-image that locked, or remove the file and run `repro-image lock {image}`",
        )
        self.file, self.expected, self.found = file, expected, found


class NotInRegistryError(WorldError):
    """The registry does not have an image, or a part of it. what: a tag, the repository, or a digest."""

    def __init__(self, reference: str, *, what: str, where: str) -> None:
        super().__init__(
            f"the registry has no {reference}: {what} is not there",
            where=where,
            fix="correct `reference` in [base] of image.toml; where a locked digest is gone, lock again with "
            "`repro-image lock --upgrade`",
        )
        self.reference, self.missing = reference, what


class RegistryAccessError(WorldError):
    """The registry does not let this user read (401, 403)."""

    def __init__(self, reference: str, *, status: int, registry: str, where: str) -> None:
        asked = "asks for credentials" if status == 401 else "refuses access"
        super().__init__(
            f"the registry {asked} ({status}): {reference}",
            where=where,
            fix=f"log in with `docker login {registry}`, or correct the name: some registries say this of "
            "repositories that do not exist",
        )
        self.reference, self.status, self.registry = reference, status, registry


class RegistryAnswerError(WorldError):
    """A registry's answer is not what it says to be, or cannot be used."""

    def __init__(self, reference: str, *, what: str, reason: str) -> None:
        super().__init__(
            f"the registry's answer is refused: {reason}",
            where=f"{reference}: {what}",
            fix="ask again without a mirror or proxy between; if it repeats, do not trust this registry",
        )
        self.reference, self.reason = reference, reason


class NoPlatformError(WorldError):
    def __init__(self, reference: str, *, platform: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"there is no {platform} in {reference} (there is: {', '.join(known) or 'nothing'})",
            where="image.toml: base.reference",
            fix=f"name an image that is also made for {platform}",
        )
        self.reference, self.platform, self.known = reference, platform, known


class CredentialsError(WorldError):
    def __init__(self, registry: str, *, reason: str) -> None:
        super().__init__(
            f"the docker configuration gives no credentials for {registry}: {reason}",
            where="DOCKER_CONFIG, else ~/.docker/config.json",
            fix=f"correct its credential helper, or log in again with `docker login {registry}`",
        )
        self.registry, self.reason = registry, reason


class PullError(WorldError):
    """The engine could not pull an image. reference: with its digest."""

    def __init__(self, reference: str, *, reason: str) -> None:
        super().__init__(
            f"the image could not be pulled: {reason}",
            where=reference,
            fix="read the message; where the registry no longer has the digest, lock again with "
            "`repro-image lock --upgrade`, or push a copy that was kept",
        )
        self.reference, self.reason = reference, reason


class PushError(WorldError):
    """A registry did not take what was sent. reference: what was pushed; where: an address without query."""

    def __init__(self, reference: str, *, reason: str, where: str) -> None:
        super().__init__(
            f"{reference} was not pushed: {reason}",
            where=where,
            fix="look at the registry (space, rights, limits), then run the command again: nothing was "
            "recorded, and layers that arrived are not sent again",
        )
        self.reference, self.reason = reference, reason


class NoRegistryError(ProjectError):
    def __init__(self, repository: str) -> None:
        super().__init__(
            f"the repository {repository!r} names no registry",
            where="pyproject.toml: [tool.repro-image] repository",
            fix='put the registry in front, such as `repository = "ghcr.io/team/images"`',
        )
        self.repository = repository


class TagTakenError(WorldError):
    """A registry has another image under an epoch's tag; it is never replaced."""

    def __init__(self, reference: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"the registry has another image under this tag: {found}, the epoch's is {expected}",
            where=reference,
            fix="find out who pushed it: two ledgers share this repository; give each project one of its own",
        )
        self.reference, self.expected, self.found = reference, expected, found


class MirrorLacksError(WorldError):
    """A mirror image that is not of these locks. digest: of the first file that it lacks."""

    def __init__(self, reference: str, *, digest: str, count: int) -> None:
        super().__init__(
            f"the mirror image lacks {count} of the files that the locks name, {digest} first",
            where=reference,
            fix="name the mirror image of these locks, or push it with `repro-image mirror push` from a "
            "machine whose store has them",
        )
        self.reference, self.digest, self.count = reference, digest, count


class PushWithoutEpochError(UsageError):
    def __init__(self) -> None:
        super().__init__(
            "--push sends an epoch's image, and --no-golden makes no epoch",
            where="command line",
            fix="leave out one of the two",
        )


class UnsuitableBaseError(ProjectError):
    """An image that nothing can be built on here."""

    def __init__(self, reference: str, *, reason: str) -> None:
        super().__init__(
            f"the image cannot be a base: {reason}",
            where=f"image.toml: base.reference, {reference}",
            fix="name a Debian or Ubuntu image with apt, such as docker.io/library/debian:bookworm-slim",
        )
        self.reference, self.reason = reference, reason


class NotLockedError(UsageError):
    def __init__(self, package: str, *, image: str) -> None:
        super().__init__(
            f"no package {package!r} is locked for {image}",
            where="command line: -P",
            fix=f"name a package of locks/{image}/requirements.txt",
        )
        self.package, self.image = package, image
