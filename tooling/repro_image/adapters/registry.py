"""Which image a tag of a registry names, with every byte of the answer checked.

Layers are not read here; the engine pulls them.
"""

from collections.abc import Sequence

import msgspec

from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.web import Web
from repro_image.core.oci import ImageConfig, Index, Manifest, for_platform, parse_config, platforms
from repro_image.errors import DownloadError, NoPlatformError, NotInRegistryError, RegistryAccessError


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag names.

    index:     digest of the list of platforms; None where the tag names one manifest.
    manifest:  digest of the platform's manifest.
    config_id: digest of the configuration.
    """

    index: str | None
    manifest: str
    config_id: str
    config: ImageConfig


def resolve_image(
    reference: str, *, platform: str, addresses: Sequence[str], web: Web, digest: str | None = None
) -> ResolvedImage:
    """Return what ``reference``, a registry, repository and tag, names now.

    addresses: where to ask, best first: mirrors, then the registry. The next one is asked when one cannot be
               reached or does not have the image.
    digest:    what the tag named once, asked for instead of the tag.
    Raises: NotInRegistryError, RegistryAccessError, RegistryAnswerError, NoPlatformError, CredentialsError,
        DownloadError (all exit code 5).
    """
    for address in addresses[:-1]:
        try:
            return _resolve(RegistrySession(reference, address, web), platform, digest)
        except (NotInRegistryError, RegistryAccessError, DownloadError):
            continue
    return _resolve(RegistrySession(reference, addresses[-1], web), platform, digest)


def _resolve(session: RegistrySession, platform: str, digest: str | None) -> ResolvedImage:
    index = None
    digest, found = session.document(digest or session.tag)
    if isinstance(found, Index):
        index, chosen = digest, for_platform(found, platform)
        if chosen is None:
            raise NoPlatformError(session.reference, platform=platform, known=platforms(found.manifests))
        digest, found = session.document(chosen.digest)
    if not isinstance(found, Manifest):
        raise session.refused(digest, "the index names another index, not a manifest")
    body = session.get("blobs", found.config.digest, limit_bytes=found.config.size)[0]
    try:
        config = parse_config(body)
    except ValueError as error:
        raise session.refused(found.config.digest, str(error)) from error
    if (own := f"{config.os}/{config.architecture}") != platform:
        raise NoPlatformError(session.reference, platform=platform, known=(own,))
    return ResolvedImage(index=index, manifest=digest, config_id=found.config.digest, config=config)
