"""Names of keys: whatever tenants and their things are called, no two have one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal.router.store.keys import tagged

NAMES = st.text(alphabet="a:%{}/*[]? \\\u0000ü🐟3A", max_size=5)


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_tenants_share_a_key(tenant: str, name: str, other: str, theirs: str) -> None:
    """A key tells tenant and name apart, and hashes by both: nothing in a name ends its tag."""
    mine = tagged("session", tenant, name)
    assert (mine == tagged("session", other, theirs)) == ((tenant, name) == (other, theirs))
    assert mine.count("{") == mine.count("}") == 1


def test_parts_do_not_run_into_each_other() -> None:
    """Wherever a name is parted between tenant and thing."""
    whole = "a:b:c%3Ad"
    keys = [tagged("session", whole[:at], whole[at:]) for at in range(len(whole) + 1)]
    assert all(first != second for first, second in itertools.combinations(keys, 2))
