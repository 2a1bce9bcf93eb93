"""Names for the contents of blocks: a chained hash, so that equal names mean equal prefixes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

HASH_BYTES = 16


def extend_hashes(hashes: list[bytes], tokens: Sequence[int], block_size: int, salt: bytes) -> None:
    """Append the hashes of the complete blocks of `tokens` that `hashes` lacks.

    hash[i] covers every token up to the end of block i; the first is salted, so tenants never share a block.

    >>> one, other = [], []
    >>> extend_hashes(one, [1, 2, 3, 4, 5], 2, b"tenant")
    >>> extend_hashes(other, [1, 2, 3, 9], 2, b"tenant")
    >>> len(one), one[0] == other[0], one[1] == other[1]
    (2, True, False)
    """
    for block in range(len(hashes), len(tokens) // block_size):
        parent = hashes[-1] if hashes else hashlib.blake2b(salt, digest_size=HASH_BYTES, person=b"shoal-root").digest()
        content = array("I", tokens[block * block_size : (block + 1) * block_size]).tobytes()
        hashes.append(hashlib.blake2b(parent + content, digest_size=HASH_BYTES).digest())
