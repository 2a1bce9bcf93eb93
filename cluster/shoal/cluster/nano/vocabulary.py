"""The vocabulary: byte-level BPE learned from the lessons, digits apart, the fixed phrases of the format whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.cluster.checkpoint.presets import CONTROL_IDS, Preset
from shoal.cluster.checkpoint.tokenizer import byte_characters, control_tokens
from shoal.router.harmony.render import SystemSettings

_FORMAT = (
    "\nCurrent date: ",
    "\nCalls to these tools must go to the commentary channel: 'functions'.",
    "# Instructions\n\n",
    "# Tools\n\n## functions\n\nnamespace functions {\n\n",
    "\n\n} // namespace functions",
    " = (_: {\n",
    "}) => any;",
    " to=functions.",
    "# Response Formats\n\n## ",
    '{"type":"object","properties":{',
    '":{"type":"',
)
# A capital letter begins a word that never carries its space: a name is the same ids wherever it stands.
# So is a function's, which follows "type " where it is declared and a full stop where it is called.
_WORDS = r"type (?=\p{Ll})| ?\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{Lu}\p{Ll}*|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def phrases() -> tuple[str, ...]:
    """Fixed texts of the prompt format that become one token each."""
    whole = SystemSettings(date="").text()
    before, after = whole.split("medium")
    about, reasoning = before.rsplit("\n\n", 1)
    return (about, f"\n\n{reasoning}", after, *_FORMAT)


def learn(texts: Iterable[str], preset: Preset) -> str:
    """The text of a tokenizer.json with exactly `preset.vocab_size` ids, control tokens last."""
    tokenizer = Tokenizer(models.BPE())
    pattern = "|".join([*(re.escape(phrase).replace("\\ ", " ") for phrase in phrases()), _WORDS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=preset.vocab_size - CONTROL_IDS, initial_alphabet=byte_characters(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    document = json.loads(tokenizer.to_str())
    found = len(document["model"]["vocab"])
    assert found == preset.control_base, f"{found} ids were learned of {preset.control_base}: too few different texts"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] = [
        {"id": token, "content": name, **flags} for name, token in control_tokens(preset).items()
    ]
    return json.dumps(document, ensure_ascii=False, indent=1)
