"""The committed vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.nano.render import Desk
from shoal.cluster.nano.shape import NANO
from shoal.cluster.nano.vocabulary import phrases
from shoal.router.tokenizer import Tokenizer
from shoal.workers.model.token_bytes import read_token_bytes
from tests.nano.conftest import NANO_DIR

TOKENIZER = Tokenizer.load(NANO_DIR)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    """Byte-level: nothing is unknown."""
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.integers(0, 10**12))
def test_each_digit_is_a_token(number: int) -> None:
    """So that columns can be found."""
    assert len(str(number)) == len(TOKENIZER.encode(str(number)))


@pytest.mark.parametrize("phrase", phrases())
def test_a_phrase_of_the_format_is_one_token(phrase: str) -> None:
    """Prompts are short because of these."""
    assert len(TOKENIZER.encode(phrase)) == 1


@pytest.mark.parametrize("place", ["{}", "My name is {}.", '{{"name":"{}"}}', "I am {}, you know"])
def test_a_name_is_the_same_ids_everywhere(place: str) -> None:
    """After a space, in quotation marks, at the beginning."""
    ids, whole = TOKENIZER.encode("Zolimbra"), TOKENIZER.encode(place.format("Zolimbra"))
    assert any(ids == whole[i : i + len(ids)] for i in range(len(whole)))


def test_the_worker_reads_the_same_vocabulary(desk: Desk) -> None:
    """Its table of bytes agrees with the router's, control tokens apart."""
    table = read_token_bytes(NANO_DIR / "tokenizer.json", NANO.vocab_size)
    controls = set(desk.tokenizer.control.values())
    assert len(table) == desk.tokenizer.size
    for token, raw in enumerate(table):
        assert token in controls or raw == desk.tokenizer.bytes_of(token)
