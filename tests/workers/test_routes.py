"""Who sends what to whom: every rank's view fits every other's."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.workers.experts.routes import Routes, routes

T = TypeVar("T")

EXPERTS, TOP_K = 6, 3


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """serving [N, E] and each source's ids [T, k]."""
    size = draw(st.integers(1, 4))
    ranks = st.lists(st.integers(0, size - 1), min_size=EXPERTS, max_size=EXPERTS)
    serving = np.array([draw(ranks) for _ in range(size)], np.int32)
    chosen = st.permutations(range(EXPERTS)).map(lambda order: order[:TOP_K])
    ids = [np.array(draw(st.lists(chosen, max_size=5)), np.int32).reshape(-1, TOP_K) for _ in range(size)]
    return serving, ids


@given(layers())
def test_every_pair_is_computed_once_and_comes_back_to_its_place(layer: tuple[np.ndarray, list[np.ndarray]]) -> None:
    """Messages are passed as lists, with a seal behind each; a row is named by its source, token and expert."""
    serving, ids = layer
    size = len(ids)
    counts = [len(one) for one in ids]
    views: list[Routes] = [routes(rank, serving, np.concatenate(ids), counts) for rank in range(size)]

    sent = [split([(rank, int(token)) for token in view.send], view.tokens_to) for rank, view in enumerate(views)]
    computed = []
    for rank, view in enumerate(views):
        incoming = [row for source in range(size) for row in (*sent[source][rank], "seal")]
        tokens = [incoming[place] for place in view.came]
        rows = [(*token, int(e)) for token, mine in zip(tokens, view.ids, strict=True) for e in mine if e >= 0]
        assert tuple(len(sent[source][rank]) for source in range(size)) == view.tokens_from
        computed.append(split_without_seals(rows, view.rows_to))
    for rank, view in enumerate(views):
        back = [row for peer in range(size) for row in (*computed[peer][rank], "seal")]
        wanted = [(rank, token, int(e)) for token, mine in enumerate(ids[rank]) for e in mine]
        assert [back[place] for place in view.back] == wanted
        assert tuple(len(computed[peer][rank]) for peer in range(size)) == view.rows_from


def split(rows: list[T], counts: tuple[int, ...]) -> list[list[T]]:
    """By peer, where one place behind each peer's rows is a seal's."""
    ends = np.cumsum([count + 1 for count in counts]).tolist()
    return [rows[end - count - 1 : end - 1] for end, count in zip(ends, counts, strict=True)]


def split_without_seals(rows: list[T], counts: tuple[int, ...]) -> list[list[T]]:
    """By peer."""
    ends = np.cumsum(counts).tolist()
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
