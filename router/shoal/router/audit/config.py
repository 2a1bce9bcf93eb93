"""Whether a trail is kept, where, and what happens when it cannot be."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.wire.settings import requirer


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """The [audit] section. A wrong value raises SettingError naming its key."""

    directory: str = ""
    """Where this router's trail is kept, a file named after router.router_id; empty: there is none."""
    on_failure: str = "refuse"
    """When a record cannot be written: "refuse" the request, or "degrade": serve it, count it and say so in the next
    record that can be written."""
    key_file: str = ""
    """A secret that the records are chained with, 32 bytes or more; empty: a plain hash, which shows accidents but not
    somebody who writes the whole chain anew."""
    encryption_key_file: str = ""
    """32 bytes that prompts and answers are encrypted with, for tenants whose policy is "encrypt"."""
    usual: str = "hash"
    """Prompts and answers of tenants without a policy: "hash", "store" or "encrypt"."""

    def __post_init__(self) -> None:
        require = requirer("audit", self)
        require("on_failure", self.on_failure in ("refuse", "degrade"), "refuse or degrade")
        require("usual", self.usual in ("hash", "store", "encrypt"), "hash, store or encrypt")
        if self.usual == "encrypt":
            require("encryption_key_file", self.encryption_key_file != "", "given where audit.usual is encrypt")
