"""Who runs which tool."""

from __future__ import annotations

import pytest

from shoal.router.errors import FieldError
from shoal.router.harmony.builtin import BROWSER, PYTHON
from shoal.router.harmony.namespace import Function, Namespace
from shoal.router.tools.runner import Toolbox, ToolOutput, rules_of, serves
from shoal.router.tools.scripted import ScriptedTool

CLOCK = Namespace("clock", functions=(Function("now"),))


def tool(namespace: Namespace) -> ScriptedTool:
    """Of which nothing is asked here."""
    return ScriptedTool(namespace, [ToolOutput("")])


def test_the_missing_tool_is_named() -> None:
    """A name that is not configured is refused with its place and with what there is."""
    box = Toolbox([tool(PYTHON), tool(CLOCK)])

    with pytest.raises(FieldError, match=r"server_tools\[1\] names 'browser', .*configured are clock, python"):
        box.chosen(["python", "browser"])
    with pytest.raises(FieldError, match="none is configured"):
        Toolbox().chosen(["python"])


def test_each_tool_is_chosen_once() -> None:
    """Names given twice count once."""
    box = Toolbox([tool(PYTHON), tool(CLOCK)])

    assert [runner.namespace.name for runner in box.chosen(["python", "clock", "python"])] == ["clock", "python"]


def test_calls_go_to_their_namespace() -> None:
    """A namespace answers for itself and everything in it, not for names that merely begin alike."""
    browser = tool(BROWSER)

    assert serves(browser, "browser.search")
    assert serves(browser, "browser")
    assert not serves(browser, "browsers.search")
    assert not serves(browser, "functions.browser")


def test_rules_say_how_tools_are_called() -> None:
    """Functions by their recipient with their schema; python by its own name with any text."""
    assert [rule.recipient for rule in rules_of(tool(BROWSER))] == ["browser.search", "browser.open", "browser.find"]
    (python,) = rules_of(tool(PYTHON))
    assert (python.recipient, python.arguments, python.channel) == ("python", None, "analysis")
