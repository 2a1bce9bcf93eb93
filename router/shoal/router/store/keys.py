"""Names of keys. One hash tag per unit of atomicity; whatever a caller puts into a name stays inside it."""

from __future__ import annotations

from urllib.parse import quote


def tagged(kind: str, *parts: str) -> str:
    """A key with the hash tag made of `parts`, each percent-encoded, so that no name reaches another's key.

    >>> tagged("session", "a:b", "x}y")
    'shoal:session:{a%3Ab:x%7Dy}'
    """
    return f"shoal:{kind}:{{{':'.join(quote(part, safe='') for part in parts)}}}"
