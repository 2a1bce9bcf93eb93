"""A vocabulary of 256 bytes and Harmony's control tokens, and small conversations written with it."""

from __future__ import annotations

import re
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from shoal.router.tokenizer import Tokenizer

CONTROL = (
    "startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call",
)  # fmt: skip


def write_tokenizer(directory: Path) -> Path:
    """Put a tokenizer.json into `directory`; returns the directory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in CONTROL])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def ids_of(tokenizer: Tokenizer, written: str) -> list[int]:
    """Ids of text in which `<|name|>` stands for control tokens."""
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", written):
        ids += [tokenizer.control[part]] if part in tokenizer.control else tokenizer.encode(part)
    return ids
