"""Text to ids and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from shoal.router.errors import StartError
from shoal.router.tokenizer import Detokenizer, Tokenizer
from tests.router.byte_tokenizer import CONTROL, write_tokenizer


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A trained vocabulary whose tokens cut through characters, as ours and as the library's."""
    directory = tmp_path_factory.mktemp("merged")
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    raw.train_from_iterator(["the cat sat on the mat – naïve café 你好 🙂🙂 " * 20], trainer)
    raw.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory), tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


Pair = tuple[Tokenizer, tokenizers.Tokenizer]


@given(text=st.text())
def test_text_survives_the_round_trip(text: str, merged: Pair) -> None:
    """What is encoded is decoded to the same text."""
    text = text.encode(errors="replace").decode()
    ours, _ = merged

    assert ours.decode(ours.encode(text)) == text


@given(ids=st.lists(st.integers(0, 399), max_size=30))
def test_pieces_concatenate_to_what_the_library_decodes(ids: list[int], merged: Pair) -> None:
    """Token by token, the text is that of the `tokenizers` library for all ids at once."""
    ours, library = merged
    detokenizer = Detokenizer(ours)
    pieces = [detokenizer.push(token) for token in ids]

    assert "".join([*pieces, detokenizer.finish()]) == library.decode(ids, skip_special_tokens=False)


def test_a_character_split_over_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    """Nothing is told until the last byte of a character is there."""
    detokenizer = Detokenizer(tokenizer)

    assert [detokenizer.push(token) for token in tokenizer.encode("🙂!")] == ["", "", "", "🙂", "!"]


def test_an_unfinished_character_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    """A cut-off character becomes U+FFFD, and the next text starts clean."""
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokenizer.encode("🙂")[:2]]

    assert [*pieces, detokenizer.finish(), detokenizer.push(tokenizer.encode("a")[0])] == ["", "", "�", "a"]


def test_ids_outside_the_vocabulary_are_silent(tokenizer: Tokenizer) -> None:
    """An id without an entry stands for no bytes."""
    assert tokenizer.decode([tokenizer.size, -1, 10**6]) == ""


@pytest.mark.parametrize("name", CONTROL)
def test_control_tokens_in_text_are_text(name: str, tokenizer: Tokenizer) -> None:
    """Spelling out a control token gives ordinary ids."""
    ids = tokenizer.encode(f"a<|{name}|>b")

    assert not set(ids) & set(tokenizer.control.values())
    assert tokenizer.decode(ids) == f"a<|{name}|>b"


async def test_long_texts_are_encoded_the_same(tokenizer: Tokenizer) -> None:
    """A text that is encoded off the event loop has the same ids."""
    text = "long text " * 3000

    assert await tokenizer.encode_off_loop(text) == tokenizer.encode(text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A directory without tokenizer.json is refused by its path."""
    with pytest.raises(StartError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"decoder": {"type": "ByteLevel"}}'])
def test_broken_file_is_named(text: str, tmp_path: Path) -> None:
    """Anything that is not a byte-level tokenizer is refused by its path."""
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(StartError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_control_token_reachable_from_text_is_refused(tmp_path: Path) -> None:
    """A vocabulary whose added token is not marked special would let users write it: it is not served."""
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][0]["special"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(StartError, match="would become a control token"):
        Tokenizer.load(tmp_path)
