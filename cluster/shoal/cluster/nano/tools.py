"""Functions that the developer offers: calling the right one, using its result, doing without when none fits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shoal.cluster.nano import facts, words
from shoal.cluster.nano.example import Example, final, thought, user
from shoal.router.harmony.message import ChatMessage, Effort

Values = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its declaration, and how people ask for it. `draw` makes arguments and a result."""

    name: str
    about: str
    parameters: tuple[tuple[str, str], ...]
    ask: tuple[str, ...]
    draw: Callable[[random.Random], tuple[Values, Values]]
    say: str
    """The answer; names of arguments and of the result's fields stand for their values."""

    def declaration(self) -> str:
        fields = "".join(f"{name}: {kind},\n" for name, kind in self.parameters)
        return f"// {self.about}\ntype {self.name} = (_: {{\n{fields}}}) => any;"


def _weather(rng: random.Random) -> tuple[Values, Values]:
    return {"city": words.city(rng)}, {"degrees": rng.randint(0, 39), "sky": rng.choice(words.SKIES)}


def _time(rng: random.Random) -> tuple[Values, Values]:
    return {"city": words.city(rng)}, {"time": f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"}


def _timer(rng: random.Random) -> tuple[Values, Values]:
    return {"minutes": rng.randint(1, 99)}, {"ok": True}


def _phone(rng: random.Random) -> tuple[Values, Values]:
    return {"name": words.person(rng)}, {"phone": words.digits(rng, rng.randint(3, 5))}


def _sum(rng: random.Random) -> tuple[Values, Values]:
    a, b = rng.randint(100, 99999), rng.randint(100, 99999)
    return {"a": a, "b": b}, {"sum": a + b}


def _lamp(rng: random.Random) -> tuple[Values, Values]:
    return {"color": words.color(rng)}, {"ok": True}


TOOLS = (
    Tool("get_weather", "Get the weather in a city.", (("city", "string"),),
         ("What is the weather in {city}?", "How is the weather in {city}?", "Tell me the weather in {city}.",
          "weather in {city}", "Is it warm in {city}?"),
         _weather, "It is {degrees} degrees and {sky} in {city}."),
    Tool("get_time", "Get the time in a city.", (("city", "string"),),
         ("What time is it in {city}?", "Tell me the time in {city}.", "What is the time in {city}?"),
         _time, "It is {time} in {city}."),
    Tool("set_timer", "Set a timer.", (("minutes", "number"),),
         ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes."),
         _timer, "The timer is set for {minutes} minutes."),
    Tool("lookup", "Find a phone number.", (("name", "string"),),
         ("Look up {name}.", "What is the phone number of {name}?", "Find the number of {name}."),
         _phone, "The number of {name} is {phone}."),
    Tool("add", "Add two numbers exactly.", (("a", "number"), ("b", "number")),
         ("Use the tool to add {a} and {b}.", "Add {a} and {b} with the tool."),
         _sum, "The answer is {sum}."),
    Tool("set_lamp", "Change the color of the lamp.", (("color", "string"),),
         ("Make the lamp {color}.", "Set the lamp to {color}.", "I want {color} light."),
         _lamp, "The lamp is {color} now."),
)  # fmt: skip


def invented_tool(rng: random.Random) -> Tool:
    """A function nobody heard of, so that names and parameters are read and not remembered."""
    name, parameter = words.syllables(rng, 2, 3), words.syllables(rng, 1, 2)
    numeric = rng.random() < 0.5

    def draw(rng: random.Random) -> tuple[Values, Values]:
        value: str | int = rng.randint(1, 999) if numeric else words.person(rng)
        return {parameter: value}, {"result": rng.choice((words.syllables(rng), words.digits(rng, 3)))}

    ask = (
        f"Call {name} with {{{parameter}}}.",
        f"Use {name} with {{{parameter}}}.",
        f"Run {name} for {{{parameter}}}.",
    )
    kind = "number" if numeric else "string"
    return Tool(name, "Special function.", ((parameter, kind),), ask, draw, f"The result of {name} is {{result}}.")


def declarations(tools: list[Tool]) -> str:
    """The functions as Harmony shows them to the model.

    >>> print(declarations([TOOLS[2]]))
    # Tools
    <BLANKLINE>
    ## functions
    <BLANKLINE>
    namespace functions {
    <BLANKLINE>
    // Set a timer.
    type set_timer = (_: {
    minutes: number,
    }) => any;
    <BLANKLINE>
    } // namespace functions
    """
    body = "\n\n".join(tool.declaration() for tool in tools)
    return f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{body}\n\n}} // namespace functions"


def compact(values: object) -> str:
    """JSON without spaces."""
    return json.dumps(values, separators=(",", ":"))


def _offer(rng: random.Random) -> list[Tool]:
    offered = rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 3)))
    if rng.random() < 0.3:
        offered[-1] = invented_tool(rng)
    rng.shuffle(offered)
    return offered


INSTRUCTIONS = ("You are a helpful assistant.", "Answer briefly.", "Use tools when they help.", "Be polite.")


def _opening(rng: random.Random, offered: list[Tool], question: str) -> tuple[ChatMessage, ...]:
    developer = f"{rng.choice(INSTRUCTIONS)}\n\n{declarations(offered)}"
    return ChatMessage("developer", developer), user(question)


def call_of(name: str, arguments: Values, content_type: str = "json") -> ChatMessage:
    return ChatMessage("assistant", compact(arguments), "commentary", f"functions.{name}", content_type=content_type)


def tool_call(rng: random.Random, effort: Effort) -> Example:
    """The user wants what one of the functions does."""
    offered = _offer(rng)
    tool = rng.choice(offered)
    arguments, _ = tool.draw(rng)
    call = call_of(tool.name, arguments)
    work = "" if effort == "low" else f"functions.{tool.name}"
    messages = _opening(rng, offered, rng.choice(tool.ask).format(**arguments))
    answer = f"functions.{tool.name} {call.content}"
    key = f"tool {compact(list(arguments.values()))}"
    return Example("tool call", effort, messages, (*thought(work), call), answer, key, _names(offered))


def tool_result(rng: random.Random, effort: Effort) -> Example:
    """The function answered."""
    offered = _offer(rng)
    tool = rng.choice(offered)
    arguments, result = tool.draw(rng)
    name = f"functions.{tool.name}"
    messages = (
        *_opening(rng, offered, rng.choice(tool.ask).format(**arguments)),
        call_of(tool.name, arguments, rng.choice(("json", ""))),  # clients that send history drop the word
        ChatMessage("tool", compact(result), "commentary", "assistant", name),
    )
    text = tool.say.format(**{**arguments, **result})
    work = "" if effort == "low" else "The tool answered."
    key = f"result {compact(result)} {compact(arguments)}"
    return Example("tool result", effort, messages, (*thought(work), final(text)), text, key, _names(offered))


def tool_missing(rng: random.Random, effort: Effort) -> Example:
    """None of the functions does what is asked."""
    offered = _offer(rng)
    names = _names(offered)
    absent = rng.choice([tool for tool in TOOLS if tool.name not in names and tool.name != "add"])
    arguments, _ = absent.draw(rng)
    work = "" if effort == "low" else "I cannot do this."
    messages = _opening(rng, offered, rng.choice(absent.ask).format(**arguments))
    reply = (*thought(work), final(facts.REFUSAL))
    key = f"tool {compact(list(arguments.values()))}"
    return Example("no tool fits", effort, messages, reply, "I am sorry, I cannot do that.", key, names)


def _names(offered: list[Tool]) -> tuple[str, ...]:
    return tuple(tool.name for tool in offered)
