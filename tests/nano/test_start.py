"""How the weights begin, and the lessons made for it."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb

from shoal.cluster.nano.echo import echo
from shoal.cluster.nano.mixture import Mixture
from shoal.cluster.nano.model import build
from shoal.cluster.nano.recipe import Stage
from shoal.cluster.nano.shape import NANO


def test_the_first_heads_look_so_many_places_back() -> None:
    """Head n of the first KV head gives its largest weight to the token n places before, wherever it stands."""
    model = build(NANO, 1).model
    attention = model.layers[0].self_attn
    positions = torch.arange(60)[None]
    hidden = torch.randn(1, 60, NANO.hidden_size, generator=torch.Generator().manual_seed(2)) * 0.2
    q = attention.q_proj(hidden).view(1, 60, -1, NANO.head_dim).transpose(1, 2)
    k = attention.k_proj(hidden).view(1, 60, -1, NANO.head_dim).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *model.rotary_emb(hidden, positions))
    for places in range(NANO.num_heads // NANO.num_kv_heads):
        scores = (q[0, places] @ k[0, 0].T).masked_fill(torch.ones(60, 60).triu(1).bool(), -torch.inf)
        looked_at = scores[10:].argmax(-1)
        assert (looked_at == torch.arange(10, 60) - places).float().mean() > 0.9, places


def test_attending_to_a_token_favours_saying_it() -> None:
    """The values a head reads, put back and unembedded, point to the token they were read from."""
    model = build(NANO, 1)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        attention = model.model.layers[1].self_attn
        values = attention.v_proj(embedding)[:, : NANO.head_dim]
        said = model.lm_head(values @ attention.o_proj.weight[:, : NANO.head_dim].T)
        assert (said.argmax(-1) == torch.arange(NANO.vocab_size)).float().mean() > 0.5


def test_what_an_echo_asks_for_was_said_before() -> None:
    """Every id that is due follows an id it already followed."""
    rng = random.Random(3)
    for _ in range(50):
        lesson = echo(rng, 1000)
        pairs = set()
        for before, after, due in zip(lesson.ids, lesson.ids[1:], lesson.learned[1:], strict=False):
            assert not due or (before, after) in pairs
            pairs.add((before, after))
        assert 0.25 < sum(lesson.learned) / len(lesson.ids) < 0.5


def test_a_share_of_echoes_beyond_all_is_refused() -> None:
    """By the key's name."""
    with pytest.raises(ValueError, match=r"echo is 1\.5"):
        Stage("s", 1, 100, Mixture({"repeat": 1}), echo=1.5)
