"""Whole numbers as bits of any width, highest bit first, and as varints of 7 bits a byte, lowest first."""

from collections.abc import Iterable


def packed_bits(numbers: Iterable[tuple[int, int]]) -> bytes:
    """Return (number, width) pairs one after another; zeros fill the last byte; width 0 is nothing."""
    text = "".join(f"{number:0{width}b}" if width else "" for number, width in numbers)
    size = -(-len(text) // 8)
    return int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


def packed_varints(numbers: Iterable[int]) -> bytes:
    """Return numbers of at least 0 as varints."""
    packed = bytearray()
    for number in numbers:
        rest = number
        while rest > 127:
            packed.append(rest & 127 | 128)
            rest >>= 7
        packed.append(rest)
    return bytes(packed)


class Bits:
    """Reads what ``packed_bits`` wrote."""

    def __init__(self, data: bytes) -> None:
        self._text = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
        self._at = 0

    def take(self, width: int) -> int:
        """Return the next number. Raises: ValueError at the end."""
        if width == 0:
            return 0
        end = self._at + width
        if end > len(self._text):
            raise ValueError("a column of bits is too short")
        number, self._at = int(self._text[self._at : end], 2), end
        return number


class Bytes:
    """Reads bytes and what ``packed_varints`` wrote."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes. Raises: ValueError at the end."""
        end = self._at + size
        if end > len(self._data):
            raise ValueError("a column of bytes is too short")
        taken, self._at = self._data[self._at : end], end
        return taken

    def varint(self) -> int:
        number, shift = 0, 0
        while (byte := self.take(1)[0]) > 127:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 56:
                raise ValueError("a number is too large")
        return number | byte << shift

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)
