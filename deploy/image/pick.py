"""Print the blocks of some packages of a lock: pick.py LOCK NAME…"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def picked(lock: str, names: set[str]) -> str:
    """The lock with only these packages. Raises KeyError for one that it does not have.

    >>> print(picked("a==1 --hash=x\\nb==2 --hash=y\\n", {"b"}))
    b==2 --hash=y
    """
    blocks = {block.split("==")[0]: block for block in re.findall(r"^[a-z]\S*==.*(?:\n    .*)*", lock, re.MULTILINE)}
    return "\n".join(blocks[name] for name in sorted(names))


if __name__ == "__main__":
    print(picked(Path(sys.argv[1]).read_text(), set(sys.argv[2:])))
