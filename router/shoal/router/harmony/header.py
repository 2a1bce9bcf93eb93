"""The header of a message that a model wrote, read forgivingly.

    assistant to=functions.lookup<|channel|>commentary <|constrain|>json<|message|>

The recipient may stand in the author's part or in the channel's. Whatever is wrong is repaired and reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.router.harmony.message import CHANNELS

LONGEST = 256
"""Characters after which what looks like a header is content that lost its header."""

_AUTHOR = re.compile(r"\s*[\w.\-]*(\s+(t(o(=[^\s<]*)?)?)?)?\s*")
_AUTHOR_GIVEN = re.compile(r"\s*(t(o(=[^\s<]*\s*)?)?)?")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


@dataclass(frozen=True, slots=True)
class Header:
    """Who speaks where to whom. Empty strings stand for what is absent."""

    role: str
    channel: str
    recipient: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class HeaderText:
    """The raw parts: before `<|channel|>`, after it, after `<|constrain|>`. None: that token was not there."""

    author: str
    channel: str | None = None
    constrain: str | None = None


def may_become_header(author: str, author_given: bool) -> bool:
    """Whether text before any `<|channel|>` can still be the beginning of a header.

    >>> may_become_header(" to=func", True), may_become_header("The answer", True)
    (True, False)
    >>> may_become_header("assistant to", False)
    True
    """
    pattern = _AUTHOR_GIVEN if author_given else _AUTHOR
    return len(author) <= LONGEST and pattern.fullmatch(author) is not None


def read_header(text: HeaderText) -> tuple[Header, list[str]]:
    """The header, and a code for each thing that had to be repaired.

    >>> read_header(HeaderText("assistant", "commentary to=functions.f ", "json"))
    (Header(role='assistant', channel='commentary', recipient='functions.f', content_type='json'), [])
    >>> read_header(HeaderText("assistant", "analysisfinal"))[1]
    ['unknown_channel']
    """
    repairs = []
    whole = f"{text.author} {text.channel or ''}"
    recipients = _RECIPIENT.findall(whole)
    recipient = recipients[0] if recipients else ""
    author = _RECIPIENT.sub("", text.author).split()
    role = author[0] if author else "assistant"
    if len(recipients) > 1 or len(author) > 1:
        repairs.append("malformed_header")
    words = _RECIPIENT.sub("", text.channel or "").split()
    channel = words[0] if words else ""
    if channel not in CHANNELS:
        repairs.append("unknown_channel" if channel else "missing_channel")
        channel = _nearest(channel, recipient)
    content_type = (text.constrain or "").strip()
    if text.constrain is None and len(words) == 2:
        content_type = words[1]  # models write "commentary json" when they lose the control token
    elif len(words) > 1:
        repairs.append("malformed_header")
    return Header(role, channel, recipient, content_type), repairs


def _nearest(channel: str, recipient: str) -> str:
    """The channel that was meant: the one whose name ends what was written, else where such messages usually go."""
    for known in CHANNELS:
        if channel.endswith(known):
            return known
    for known in CHANNELS:
        if channel.startswith(known):
            return known
    return "commentary" if recipient else "final"
