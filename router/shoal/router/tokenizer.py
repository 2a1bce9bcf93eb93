"""Text to token ids and back, from the tokenizer.json beside the weights.

Text that people wrote never becomes a control token: `encode` treats `<|end|>` as seven ordinary characters, and that
this holds for every control token of the file is checked when it is loaded.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from shoal.router.errors import StartError

_LONG_TEXT = 16_384  # characters; longer texts are encoded off the event loop


class Tokenizer:
    """A byte-level BPE vocabulary. Immutable; safe to share between threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, digest: str) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # their text in a prompt is text
        self.hash = digest
        """SHA-256 of tokenizer.json, hex: workers report theirs."""
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        self.control: Mapping[str, int] = added
        """Ids of the control tokens by their name, such as `<|end|>`."""
        self._bytes = _token_bytes(tokenizer, added)
        self._texts = [_text_or_none(raw) for raw in self._bytes]
        self._longest = max(1, *map(len, self._bytes))

    @classmethod
    def load(cls, model_dir: str | Path) -> Tokenizer:
        """Raises StartError naming the file and what is wrong with it."""
        path = Path(model_dir) / "tokenizer.json"
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}") from error
        try:
            kind = (json.loads(raw).get("decoder") or {}).get("type")
            tokenizer = tokenizers.Tokenizer.from_buffer(raw)
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise StartError(f"{path} is not a tokenizer: {error}") from error
        if kind != "ByteLevel":
            raise StartError(f"{path}: decoder must be ByteLevel, not {kind}")
        made = cls(tokenizer, hashlib.sha256(raw).hexdigest())
        ids = set(made.control.values())
        for name in made.control:
            if ids & set(made.encode(name)):
                raise StartError(f"{path}: the text {name!r} in a prompt would become a control token; mark it special")
        return made

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a control token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def least_tokens(self, text: str) -> int:
        """At least so many ids a text has: known at once, without encoding it."""
        return len(text) // self._longest

    async def encode_off_loop(self, text: str) -> list[int]:
        """As `encode`, without holding up the event loop for a long text."""
        return self.encode(text) if len(text) < _LONG_TEXT else await asyncio.to_thread(self.encode, text)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for: its name for a control token, nothing for an id without one."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def text_of(self, token: int) -> str | None:
        """The text that a token stands for, None when it begins or ends inside a character."""
        return self._texts[token] if 0 <= token < len(self._texts) else ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of whole ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")


class Detokenizer:
    """Ids in, whole Unicode characters out. The outputs of any way of pushing concatenate to `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._inside = False  # a character that is not complete

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty in the middle of a character."""
        if not self._inside and (whole := self._tokenizer.text_of(token)) is not None:
            return whole
        text = self._decoder.decode(self._tokenizer.bytes_of(token))
        self._inside = self._decoder.getstate()[0] != b""
        return text

    def finish(self) -> str:
        """What an unfinished character leaves (U+FFFD or nothing); the object starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._inside = False
        return text


def _token_bytes(tokenizer: tokenizers.Tokenizer, added: Mapping[str, int]) -> list[bytes]:
    """The bytes of every id: GPT-2's reversible map from characters to bytes, names as they are."""
    byte_of = _byte_of_character()
    table = [b""] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    for name, number in tokenizer.get_vocab().items():
        known = name not in added and all(character in byte_of for character in name)
        table[number] = bytes(byte_of[character] for character in name) if known else name.encode()
    return table


def _text_or_none(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where printable, else 256 upwards in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
