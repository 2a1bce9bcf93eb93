"""A byte-level tokenizer with the Harmony control tokens, as the text of a `tokenizer.json`.

Ids 0 to 255 are the bytes themselves. The control block starts at `Preset.control_base` and keeps the published
distances (<|startoftext|> first, <|return|> 4 later, and so on); ids of the block without a name are reserved. The ids
between are syllables that no text is ever encoded to, since there are no merges: a model with random weights that
generates them writes pronounceable nonsense instead of broken UTF-8.
"""

from __future__ import annotations

import json

from shoal.cluster.checkpoint.presets import Preset

# Distance from <|startoftext|>, as published (openai/harmony, `src/tiktoken_ext/public_encodings.rs`).
CONTROL = {
    "<|startoftext|>": 0,
    "<|endoftext|>": 1,
    "<|return|>": 4,
    "<|constrain|>": 5,
    "<|channel|>": 7,
    "<|start|>": 8,
    "<|end|>": 9,
    "<|message|>": 10,
    "<|call|>": 14,
    "<|endofprompt|>": 20,
}
_SYLLABLES = [first + vowel for first in "bdfghjklmnprstvwyz" for vowel in "aeiou"]


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (GPT-2's table): printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def control_tokens(preset: Preset) -> dict[str, int]:
    """Every token of the control block with its id, the reserved ones included, in the order of ids."""
    base = preset.control_base
    names = {base + distance: name for name, distance in CONTROL.items()}
    return {names.get(token, f"<|reserved_{token}|>"): token for token in range(base, preset.vocab_size)}


def _syllables(number: int) -> str:
    """A word of at least two syllables with a space before it; a different one for each number."""
    word = ""
    while number or len(word) < 4:
        number, digit = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[digit]
    return "Ġ" + word  # how byte-level BPE writes a space


def tokenizer_json(preset: Preset) -> str:
    """The tokenizer in the format of the `tokenizers` library, loadable by `Tokenizer.from_file`."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    for token in range(256, preset.control_base):
        vocabulary[_syllables(token - 256)] = token
    control = control_tokens(preset)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, object] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [],
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in control.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False, indent=1)
