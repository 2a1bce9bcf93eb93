"""Records of the cluster registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.wire import registry

_names = st.text(max_size=20)
_workers = st.builds(
    registry.WorkerEntry, worker_id=_names, rank=st.integers(0, 99), address=_names, draining=st.booleans()
)
_groups = st.builds(
    registry.GroupEntry,
    group=_names,
    epoch=st.integers(0, 2**40),
    ready=st.booleans(),
    workers=st.lists(_workers, max_size=3).map(tuple),
)


@given(_groups)
def test_what_is_written_is_read(entry: registry.GroupEntry) -> None:
    """Encoding and decoding a record gives it back."""
    assert registry.decode(registry.encode(entry)) == entry


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{}", b'{"group": 1}', b"\xff", b'{"workers": 3}'])
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    """A broken record is one kind of error, whatever is broken."""
    with pytest.raises(ValueError, match="registry record"):
        registry.decode(raw)
