"""What is looked for, for tenants that have no policy of their own, and who classifies."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.router.safeguards.detect import KINDS
from shoal.wire.settings import requirer


@dataclass(frozen=True, slots=True)
class SafeguardsConfig:
    """The [safeguards] section. A wrong value raises SettingError naming its key."""

    redact: tuple[str, ...] = ()
    """Kinds of data taken out of prompts and answers: card, email, iban, ip, key, phone, ssn."""
    deny: tuple[str, ...] = ()
    """Words and phrases that no prompt and no answer may have."""
    moderation_url: str = ""
    """A service that speaks OpenAI's moderation API, such as http://127.0.0.1:9000/v1/moderations; empty: none."""
    moderation_model: str = ""
    """What it is asked for as `model`; empty: its own choice."""
    moderation_key_file: str = ""
    """The API key that it is shown."""
    moderation_seconds: float = 5.0
    """How long it may take."""
    moderation_on_failure: str = "refuse"
    """When it does not answer: "refuse" what it cannot judge, or "allow" it."""

    def __post_init__(self) -> None:
        require = requirer("safeguards", self)
        require("redact", set(self.redact) <= KINDS, f"some of {', '.join(sorted(KINDS))}")
        require("deny", all(word.strip() for word in self.deny), "words")
        http = self.moderation_url.startswith(("http://", "https://"))
        require("moderation_url", not self.moderation_url or http, "an http:// or https:// URL")
        require("moderation_seconds", self.moderation_seconds > 0, "above 0")
        require("moderation_on_failure", self.moderation_on_failure in ("refuse", "allow"), "refuse or allow")
