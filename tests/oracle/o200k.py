"""The vocabulary file that openai-harmony wants, and a tokenizer.json of it.

python -m tests.oracle.o200k          makes .build/o200k/o200k_base.tiktoken and tokenizer.json

`llama-index-core` carries the file; the environment of clients that `make setup` fills has it, so no test downloads
anything. openai-harmony checks the file's hash itself; so do we. The files are no part of the repository.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

CLIENTS = Path(sys.prefix) / "clients"
"""The environment of clients."""
URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
"""Never opened: caches name the file by the hash of where it was first published."""
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
CACHE = Path(__file__).resolve().parents[2] / ".build" / "o200k"
VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
NAMED = {
    199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel",
    200006: "start", 200007: "end", 200008: "message", 200012: "call", 200018: "endofprompt",
}  # fmt: skip
_WORD_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORD_END}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""Where texts are cut before they are merged."""
_NAME = "o200k_base.tiktoken"


class AbsentVocabularyError(Exception):
    """The file is not here; the message says what brings it."""


def vocabulary_directory() -> Path:
    """Where the file is: named by the environment, or put into `CACHE` now. Raises AbsentVocabularyError."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    if not (CACHE / _NAME).exists():
        data = _carried()
        CACHE.mkdir(parents=True, exist_ok=True)
        part = CACHE / f"{_NAME}.{os.getpid()}"
        part.write_bytes(data)
        part.rename(CACHE / _NAME)
    return CACHE


def _carried() -> bytes:
    """The file as llama-index-core carries it."""
    name = hashlib.sha1(URL.encode()).hexdigest()
    inside = f"lib/python*/site-packages/llama_index/core/_static/tiktoken_cache/{name}"
    found = next(CLIENTS.glob(inside), None)
    if found is None:
        raise AbsentVocabularyError(f"no {CLIENTS / inside}: run `make setup`, or set {VARIABLE}")
    data = found.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise AbsentVocabularyError(f"{found} is another vocabulary")
    return data


def tokenizer_directory() -> Path:
    """Where a tokenizer.json of the published vocabulary is, made from the same file. Raises AbsentVocabularyError."""
    target = CACHE / "tokenizer.json"
    if not target.exists():
        source = vocabulary_directory() / _NAME
        CACHE.mkdir(parents=True, exist_ok=True)
        part = CACHE / f"tokenizer.{os.getpid()}"
        part.write_text(_tokenizer_json(source.read_text()))
        part.rename(target)
    return CACHE


def _tokenizer_json(vocabulary: str) -> str:
    """As the checkpoints have it: byte-level BPE whose merges are what made each token."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in vocabulary.splitlines())}
    letters = _letters()
    named = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(named[a], named[b]) for token in ranks if len(token) > 1 for a, b in [_made_of(token, ranks)]]
    vocab = {named[token]: rank for token, rank in ranks.items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    special = {number: f"<|reserved_{number}|>" for number in range(len(ranks), 201_088)}
    special |= {number: f"<|{name}|>" for number, name in NAMED.items()}
    tokenizer.add_special_tokens([special[number] for number in sorted(special)])
    written: str = tokenizer.to_str()
    return written


def _made_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into this one: what is left when everything ranked before it was merged."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, 1 << 30) for a, b in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


if __name__ == "__main__":
    print(vocabulary_directory())
    print(tokenizer_directory())
