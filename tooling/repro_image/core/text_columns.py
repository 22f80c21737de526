"""Texts packed into columns: those of token ids, and names of tensors with their checksums."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from repro_image.core.bits import Bytes, packed_varints


def packed_texts(texts: Sequence[str | None]) -> bytes:
    """Return the sizes of ``texts``, then the texts themselves."""
    data = [None if text is None else text.encode() for text in texts]
    sizes = packed_varints(0 if one is None else 1 + len(one) for one in data)
    return sizes + b"".join(one for one in data if one is not None)


def read_texts(data: bytes, ids: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of those ``ids`` that have a text. Raises: ValueError."""
    reader = Bytes(data)
    sizes = [reader.varint() for _ in ids]
    for number, size in zip(ids, sizes, strict=True):
        if size:
            yield str(number), reader.take(size - 1).decode()


def packed_weights(weights: Mapping[str, str]) -> bytes:
    """Return name after name, each without what it shares with the one before, and its checksum."""
    packed, before = bytearray(), b""
    for name in sorted(weights):
        encoded, checksum = name.encode(), weights[name]
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, encoded, strict=False))
        )
        rest, before = encoded[shared:], encoded
        is_hex = _is_hex(checksum)
        value = bytes.fromhex(checksum) if is_hex else checksum.encode()
        packed += packed_varints((shared, len(rest), 2 * len(value) + is_hex)) + rest + value
    return bytes(packed)


def read_weights(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (name, checksum). Raises: ValueError."""
    reader, name = Bytes(data), b""
    while not reader.is_at_end:
        shared, rest, value = reader.varint(), reader.varint(), reader.varint()
        name = name[:shared] + reader.take(rest)
        checksum = reader.take(value // 2)
        yield name.decode(), checksum.hex() if value % 2 else checksum.decode()


def _is_hex(text: str) -> bool:
    return len(text) % 2 == 0 and set(text) <= set("0123456789abcdef")
