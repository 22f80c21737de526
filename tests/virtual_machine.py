"""Another machine: an emulated processor without AVX, another kernel, clock and engine, and this one's files.

It sees the files of this machine and keeps its changes for itself. It has no network, and is slow.
"""

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.scratch import REPOSITORY

PARTS = REPOSITORY / ".venv/virtual-machine"  # by .ci/virtual-machine
_MODULES = ("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "ext4", "crc32c_generic", "overlay")
_COMMANDS = ("sh", "mount", "mkdir", "insmod", "ip", "cp", "switch_root")
_FOLDERS = ("bin", "modules", "proc", "sys", "dev", "disk", "host", "new")
_DISK_BYTES = 24 * 2**30  # no more of it is used than what is written
_INIT = """\
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t ext4 /dev/vda /disk
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /host
mkdir -p /disk/changed /disk/work /disk/docker
mount -t overlay -o lowerdir=/host,upperdir=/disk/changed,workdir=/disk/work root /new
for folder in proc sys dev; do mount --move /$folder /new/$folder; done
mkdir -p /new/dev/pts /new/dev/shm /new/var/lib/docker
mount -t devpts pts /new/dev/pts; mount -t tmpfs shm /new/dev/shm; mount -t tmpfs run /new/run
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount --bind /disk/docker /new/var/lib/docker
ip link set lo up
cp /script /new/run/script
exec switch_root /new /bin/bash /run/script
"""
# The engine needs no network of its own: no build step has one.
_ENGINE = """\
{"features": {"containerd-snapshotter": true}, "iptables": false, "ip6tables": false, "bridge": "none"}
"""
_SCRIPT = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME={home}
mount --make-rshared /; ln -s /proc/self/fd /dev/fd
mkdir -p /etc/docker
echo '{settings}' >/etc/docker/daemon.json
{engine} && (
{script}
) >/run/out 2> >(cat >&2)
echo "ended $? $(base64 --wrap 0 /run/out)"
sleep 3 # until the console has told it
echo b >/proc/sysrq-trigger
while :; do :; done
"""


def run_in_virtual_machine(script: str, *, folder: Path, timeout_s: float) -> tuple[int, str, str]:
    """Run ``script`` beside an engine without images; return (exit code, stdout, the console's text).

    script: of bash. folder: takes the machine's disk, some gigabytes. Raises: subprocess.TimeoutExpired.
    """
    engine = REPOSITORY / ".ci/engine"
    text = _SCRIPT.format(home=Path.home(), settings=_ENGINE.strip(), engine=engine, script=script)
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    try:
        subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
        console = _boot(_initramfs(folder, text), disk, timeout_s=timeout_s)
    finally:
        disk.unlink()
    ended = re.search(r"^ended (\d+) (\S*)", console, re.MULTILINE)
    assert ended is not None, console
    return int(ended[1]), base64.b64decode(ended[2]).decode(), console


def _boot(initramfs: Path, disk: Path, *, timeout_s: float) -> str:
    words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "2", "-m", "8G"]
    words += [
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        "-rtc",
        "base=2031-02-03T04:05:06",
    ]
    words += [
        "-kernel",
        str(PARTS / "vmlinuz"),
        "-initrd",
        str(initramfs),
        "-append",
        "console=ttyS0 panic=-1 quiet",
    ]
    words += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
    words += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=timeout_s
    )
    return done.stdout.decode(errors="replace").replace("\r\n", "\n")


def _initramfs(folder: Path, script: str) -> Path:
    """Write what the kernel starts with: the modules for disk and files, and the way to ``script``."""
    tree = folder / "initramfs.files"
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True)
    shutil.copy(PARTS / "busybox", tree / "bin")
    for name in _COMMANDS:
        (tree / "bin" / name).symlink_to("busybox")
    for number, module in enumerate(_with_needed(_MODULES)):
        shutil.copy(module, tree / "modules" / f"{number:02}-{module.name}")
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    (tree / "script").write_text(script)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = folder / "initramfs"
    with packed.open("wb") as out:
        pack = [str(PARTS / "busybox"), "cpio", "-o", "-H", "newc"]
        subprocess.run(pack, cwd=tree, input=names.encode(), stdout=out, check=True)
    return packed


def _with_needed(names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the modules, each after those that it names as needed."""
    files = {path.stem.replace("-", "_"): path for path in (PARTS / "modules").rglob("*.ko")}

    def needed(name: str) -> Iterator[Path]:
        found = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for one in found[1].decode().split(",") if found and found[1] else ():
            yield from needed(one.replace("-", "_"))
        yield files[name]

    seen = set()
    for name in names:
        for path in needed(name):
            if path not in seen:
                seen.add(path)
                yield path
