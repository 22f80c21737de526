"""What a model wrote, made harmless: no control character or text direction reaches a reader."""


def quoted(text: str) -> str:
    """Return ``text`` in double quotes; everything that is not plainly visible is written as an escape."""
    return f'"{visible(text.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34)))}"'


def visible(text: str) -> str:
    """Return ``text`` with every unprintable character as an escape: backslash, x or u, hex digits."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
