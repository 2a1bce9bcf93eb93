"""What the native library does token by token: norm, rotary embedding, routing, sorting, summing, the KV write."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.native.binding import Library
from tests.kernels import reference
from tests.kernels.cases import Cases
from tests.kernels.native_libraries import assert_same_bits, every_library

few = settings(max_examples=25, deadline=None)


@every_library
@given(T=st.integers(0, 40), H=st.integers(1, 200), seed=st.integers(0, 99))
@few
def test_rms_norm_is_right_and_row_independent(library: Library, T: int, H: int, seed: int) -> None:
    """Against float64, and each row alone the same bits, on 1 thread and on 2."""
    x, weight = Cases(seed).normal(T, H), Cases(seed + 1).normal(H, dtype=torch.bfloat16)
    library.set_threads(2)
    out = library.rms_norm(x, weight, 1e-5)

    library.set_threads(1)
    torch.testing.assert_close(out.double(), reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6)
    for t in range(T):
        assert_same_bits(out[t : t + 1], library.rms_norm(x[t : t + 1], weight, 1e-5))


@every_library
@given(
    T=st.integers(0, 40), heads=st.tuples(st.integers(1, 4), st.integers(1, 2)), half=st.sampled_from([4, 8, 20, 32])
)
@few
def test_rope_turns_by_the_angle_of_the_position(library: Library, T: int, heads: tuple[int, int], half: int) -> None:
    """As complex multiplication in float64; the unit of rounding is torch's own: product, product, sum."""
    q, k = Cases(1).normal(T, heads[0], 2 * half), Cases(2).normal(T, heads[1], 2 * half)
    cos, sin = Cases(3).normal(50, half), Cases(4).normal(50, half)
    positions = torch.randint(0, 50, (T,))
    expected = [reference.rotate(x, positions, cos, sin) for x in (q, k)]
    c, s = cos[positions][:, None], sin[positions][:, None]
    plain = torch.cat([q[..., :half] * c - q[..., half:] * s, q[..., half:] * c + q[..., :half] * s], dim=-1)

    library.apply_rope_(q, k, positions, cos, sin)
    torch.testing.assert_close([q.double(), k.double()], expected, rtol=1e-5, atol=1e-5)
    assert_same_bits(plain, q)


@every_library
def test_a_position_outside_the_table_is_refused(library: Library) -> None:
    """Before anything is turned."""
    q, k, table = torch.ones(1, 1, 4), torch.ones(1, 1, 4), torch.ones(5, 2)
    with pytest.raises(AssertionError, match="rotary table"):
        library.apply_rope_(q, k, torch.tensor([5]), table, table)


@every_library
@given(
    logits=st.integers(1, 40).flatmap(
        lambda E: st.lists(st.lists(st.integers(-3, 3), min_size=E, max_size=E), min_size=1, max_size=20)
    ),
    data=st.data(),
)
@few
def test_route_takes_the_greatest_and_breaks_ties_downward(
    library: Library, logits: list[list[int]], data: st.DataObject
) -> None:
    """Few distinct values, so ties abound: descending, equal ones by ascending expert, softmax over the chosen."""
    values = torch.tensor(logits, dtype=torch.float32)
    k = data.draw(st.integers(1, values.shape[1]))
    ids, weights = library.route(values, k)

    expected_ids, expected_weights = reference.route(values, k)
    assert expected_ids == ids.tolist()
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-5, atol=1e-7)


@every_library
def test_route_of_nan_still_names_distinct_experts(library: Library) -> None:
    """A broken token must not send a row to an expert that does not exist."""
    ids, _ = library.route(torch.full((2, 6), torch.nan), 4)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2


@every_library
@given(ids=st.lists(st.integers(-1, 5), max_size=50))
@few
def test_sort_by_expert_is_stable_and_leaves_strangers_out(library: Library, ids: list[int]) -> None:
    """Python's stable sort says what the order is."""
    order, offsets = library.sort_by_expert(torch.tensor(ids, dtype=torch.int32), 6)

    mine = [i for i, expert in enumerate(ids) if expert >= 0]
    assert sorted(mine, key=lambda i: ids[i]) == order.tolist()
    assert [sum(0 <= e < bound for e in ids) for bound in range(7)] == offsets.tolist()


@every_library
@given(T=st.integers(0, 40), k=st.integers(1, 5), H=st.integers(1, 70))
@few
def test_combine_adds_in_the_order_of_k(library: Library, T: int, k: int, H: int) -> None:
    """Against float64; and a row's bits depend on that row alone."""
    rows, weights = Cases(1).normal(T, k, H), Cases(2).normal(T, k)
    library.set_threads(2)
    out = library.combine(rows, weights)

    library.set_threads(1)
    expected = (rows.double() * weights.double()[..., None]).sum(1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for t in range(T):
        assert_same_bits(out[t : t + 1], library.combine(rows[t : t + 1], weights[t : t + 1]))


@every_library
def test_write_kv_puts_each_token_in_its_slot(library: Library) -> None:
    """slot = block * block_size + offset; a negative slot writes nothing; the rest of the cache stays."""
    k, v = Cases(1).normal(3, 2, 16), Cases(2).normal(3, 2, 16)
    k_cache, v_cache = torch.zeros(4, 5, 2, 16), torch.zeros(4, 5, 2, 16)
    library.write_kv(k, v, k_cache, v_cache, torch.tensor([7, -1, 19]))

    assert torch.equal(k[0], k_cache[1, 2])
    assert torch.equal(v[2], v_cache[3, 4])
    assert int((k_cache.flatten(2).abs().sum(-1) > 0).sum()) == 2
    with pytest.raises(AssertionError, match="slot"):
        library.write_kv(k, v, k_cache, v_cache, torch.tensor([7, -1, 20]))
