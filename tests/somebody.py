"""A user of this machine who is not root: exists while a command runs, in that command's eyes only."""

import os
from pathlib import Path


class Somebody:
    """folder: their home, which they own with all that lies in it."""

    ID = 12345
    IDS = "somebody:200000:65536\n"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "USER": "somebody",
            "LOGNAME": "somebody",
            "HOME": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def takes(self, *paths: Path) -> None:
        """Make ``paths`` theirs, folders with all that lies in them; files of several names stay root's."""
        for top in paths:
            for path in (top, *top.rglob("*")):
                if path.is_dir() or path.stat().st_nlink == 1:
                    os.chown(path, self.ID, self.ID)

    def prefix(self, *, ids: str = IDS, groups: tuple[int, ...] = ()) -> tuple[str, ...]:
        """Return the command prefix that makes it theirs.

        ids: text of /etc/subuid and /etc/subgid. groups: those they are in besides their own.
        """
        texts = {"subuid": ids, "subgid": ids}
        for name, line in (
            ("passwd", f"somebody:x:{self.ID}:{self.ID}::{self.folder}:/bin/sh\n"),
            ("group", ""),
        ):
            texts[name] = Path("/etc", name).read_text() + line
        for name, text in texts.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o644)
        mounts = "".join(f'mount --bind "$0/{name}" /etc/{name} || exit 1; ' for name in texts)
        # Python and this repository may lie where only root looks: nothing else comes of this capability.
        user = ["setpriv", f"--reuid={self.ID}", f"--regid={self.ID}"]
        user += [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
        user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return ("unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', str(self.folder), *user)
