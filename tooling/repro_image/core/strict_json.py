"""JSON that can be read in one way only: text -> plain values, or the place of the first thing wrong.

Python's own reader takes the last of two equal keys, and NaN: two readers would see two different records.
"""

import json
import math
import re
from typing import Any, NoReturn

import msgspec

from repro_image.core.canonical import canonical_json

MAX_DEPTH = 100
MAX_INTEGER = 2**53  # beyond it JavaScript, jq and every other reader by floats loses digits

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|[{}\[\]]|[^\s"{}\[\],:]+', re.DOTALL)


class StrictJsonError(ValueError):
    """What is wrong, and where: line and column count from 1, the column in characters."""

    def __init__(self, what: str, *, line: int, column: int) -> None:
        super().__init__(what)
        self.what, self.line, self.column = what, line, column


class _RefusedError(Exception):
    """The fast reader met something to refuse; it knows no position."""


def parse_strict(data: bytes) -> Any:
    """Return the value that ``data`` holds: UTF-8, unique keys, no NaN, bounded depth and integers.

    Raises: StrictJsonError.
    """
    text = _text(data)
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _find_fault(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        _find_fault(text, until=error.pos)
        raise StrictJsonError(f"not JSON: {error.msg}", line=error.lineno, column=error.colno) from error
    except (_RefusedError, RecursionError) as error:
        _find_fault(text)
        raise StrictJsonError("nested too deeply", line=1, column=1) from error


def readable_form(value: Any) -> bytes:
    """Return the bytes that `readable_json` makes of ``value``, much faster; a test holds them together."""
    return msgspec.json.format(canonical_json(value), indent=2) + b"\n"


def first_difference(expected: bytes, found: bytes) -> tuple[int, int]:
    """Return line and column, from 1, of the first byte at which the two differ."""
    length = min(len(expected), len(found))
    at = next((i for i in range(length) if expected[i] != found[i]), length)
    return found.count(b"\n", 0, at) + 1, at - (found.rfind(b"\n", 0, at) + 1) + 1


def _text(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise StrictJsonError("a byte order mark is not allowed", line=1, column=1)
    at = data.find(b"\r")  # inside a text it is written \\r
    if at >= 0:
        raise StrictJsonError(
            "a carriage return is not allowed", line=data.count(b"\n", 0, at) + 1, column=_column(data, at)
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise StrictJsonError(
            f"not UTF-8: byte 0x{data[at]:02x}", line=data.count(b"\n", 0, at) + 1, column=_column(data, at)
        ) from error


def _column(data: bytes, at: int) -> int:
    return at - (data.rfind(b"\n", 0, at) + 1) + 1


def _refuse(_text: str) -> NoReturn:
    raise _RefusedError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RefusedError
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise _RefusedError
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError
    return value


def _find_fault(text: str, until: int | None = None) -> None:
    """Raise at the first token that the fast reader refuses; stop at ``until``."""
    keys: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        if until is not None and token.start() >= until:
            return
        reason = _fault(token, keys)
        if reason:
            at = token.start()
            line, column = text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
            raise StrictJsonError(reason, line=line, column=column)


def _fault(token: "re.Match[str]", keys: list[set[str]]) -> str | None:
    """Return why ``token`` is refused, or None. keys: of each object and list that is open here; changed."""
    word = token[0]
    if word in ("{", "["):
        keys.append(set())
        return f"nested deeper than {MAX_DEPTH}" if len(keys) > MAX_DEPTH else None
    if word in ("}", "]"):
        if keys:
            keys.pop()
    elif word.startswith('"'):
        return _repeated(token, keys[-1]) if token["key"] and keys else None
    elif word in ("NaN", "Infinity", "-Infinity"):
        return f"{word} is not allowed"
    elif word[-1].isdigit():
        return _bad_number(word)
    return None


def _repeated(token: "re.Match[str]", keys: set[str]) -> str | None:
    key = token[0].removesuffix(token["key"])
    try:
        name = str(json.loads(key, strict=False))  # "a" and "\u0061" are the same key
    except json.JSONDecodeError:
        return None  # no JSON at all: the fast reader says so, and where
    if name in keys:
        return f"the key {name!r} stands here a second time"
    keys.add(name)
    return None


def _bad_number(word: str) -> str | None:
    if re.fullmatch(r"-?[0-9]+", word):
        too_large = len(word) > 20 or abs(int(word)) > MAX_INTEGER
        return f"an integer above 2**53 ({len(word)} characters)" if too_large else None
    try:
        return None if math.isfinite(float(word)) else f"the number {word[:20]} is too large"
    except ValueError:
        return None
