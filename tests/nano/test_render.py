"""Lessons are what the router renders and the router's parser reads."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from shoal.cluster.nano.example import EFFORTS
from shoal.cluster.nano.mixture import EXAMS, TASKS, Mixture
from shoal.cluster.nano.render import Desk, settings_for
from shoal.router.harmony.parse import Closed, Parser
from shoal.router.harmony.render import SystemSettings


@pytest.mark.parametrize("name", EXAMS)
def test_the_router_reads_the_reply_without_repairs(desk: Desk, name: str) -> None:
    """Channel, recipient and text come back; the turn ends with the right token."""
    rng = random.Random(name)
    for effort in EFFORTS:
        example = EXAMS[name](rng, effort)
        parser = Parser(desk.tokenizer, desk.control)
        events = [event for token in desk.reply(example) for event in parser.push(token)] + parser.finish()
        closed = [event for event in events if isinstance(event, Closed)]
        assert not [event for event in events if type(event).__name__ == "Repaired"]
        said = [(m.channel, m.recipient, m.content) for m in example.reply]
        assert said == [(c.header.channel, c.header.recipient, c.text) for c in closed]
        assert closed[-1].end == (desk.control.call if example.reply[-1].recipient else desk.control.return_)


def test_a_lesson_is_prompt_and_reply(desk: Desk) -> None:
    """Ids as the product sends them, then what should follow, which is learned to the last id."""
    for example in islice(Mixture(dict.fromkeys(TASKS, 1.0)).examples(2), 60):
        lesson = desk.lesson(example, random.Random(4))
        settings = settings_for(example, random.Random(4))
        reply = desk.reply(example)
        assert [*desk.prompt(example, settings), *reply] == list(lesson.ids)
        assert all(lesson.learned[-len(reply) :])


def test_only_the_assistant_is_learned(desk: Desk) -> None:
    """Nothing that a system, a developer, a user or a tool said, and no end of an earlier message."""
    start, end = desk.control.start, desk.control.end
    assistant = desk.tokenizer.encode("assistant")[0]
    for example in islice(Mixture({"recall": 1.0, "tool result": 1.0}).examples(2), 40):
        lesson = desk.lesson(example, random.Random(0))
        author = 0
        for previous, token, due in zip(lesson.ids, lesson.ids[1:], lesson.learned[1:], strict=False):
            author = token if previous == start else author
            assert not due or author == assistant or token == start
            assert not (due and token == end and example.effort == "low" and example.reply[-1].content == "")


def test_the_fixed_text_of_a_prompt_is_short(desk: Desk) -> None:
    """The system message takes at most 24 ids, ten of them the date."""
    ids = desk.renderer.system(SystemSettings(date="2026-11-21", effort="high")).ids
    assert len(ids) <= 24
