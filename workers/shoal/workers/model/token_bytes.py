"""The bytes that each token stands for, read from the checkpoint's tokenizer.json.

The worker needs them for stop texts and, later, grammars; it renders no text itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from shoal.workers.checkpoint import CheckpointError


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE files (GPT-2 and later) use for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def read_token_bytes(path: Path, vocab_size: int) -> tuple[bytes, ...]:
    """Bytes per token id; control tokens and unused ids stand for none. Raises CheckpointError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        vocab: dict[str, int] = document["model"]["vocab"]
        special = {int(token["id"]) for token in document.get("added_tokens", ()) if token.get("special")}
    except FileNotFoundError:
        raise CheckpointError(path, "not found; a checkpoint directory holds its tokenizer.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"not a byte-level BPE tokenizer file: {error!r}") from error
    alphabet = _byte_alphabet()
    table = [b""] * vocab_size
    for text, token in vocab.items():
        if token in special or token >= vocab_size:
            continue
        if any(char not in alphabet for char in text):
            raise CheckpointError(path, f"token {token} ({text!r}) is not written in the byte-level alphabet")
        table[token] = bytes(alphabet[char] for char in text)
    return tuple(table)
