"""The project's own mirror of what its locks name: asked last, for what is gone elsewhere."""

import threading
from collections.abc import Callable, Iterable, Iterator

from repro_image.adapters.registry_session import RegistrySession
from repro_image.errors import ReproImageError


class MirrorBlobs:
    """Files by digest in a repository. Safe to use from several threads.

    open_session: returns the repository; called when a file is asked for, so that nothing is needed before.
    """

    def __init__(self, open_session: Callable[[], RegistrySession]) -> None:
        self._open = open_session
        self._session: RegistrySession | None = None
        self._lock = threading.Lock()

    def after(self, find: Callable[[], Iterable[str]], digest: str) -> Iterator[str]:
        """Yield what ``find`` yields and then, where the mirror has it, the file's address there.

        Raises: what ``find`` raises, where the mirror does not have it or cannot be asked.
        """
        failure: ReproImageError | None = None
        try:
            yield from find()
        except ReproImageError as error:
            failure = error
        address = self._address(digest)
        if address is not None:
            yield address
        elif failure is not None:
            raise failure

    def _address(self, digest: str) -> str | None:
        try:
            with self._lock:
                self._session = self._session or self._open()
            return self._session.blob_address(digest)
        except ReproImageError:
            return None
