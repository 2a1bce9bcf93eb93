"""What the model is told before anybody speaks: the system message and the developer message."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.router.harmony.message import Effort
from shoal.router.harmony.namespace import FUNCTIONS, Function, Namespace, lines_of, tools_section

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_CUTOFF = "2024-06"


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """What the system message says. `date` is the day the conversation began, YYYY-MM-DD; empty: not told."""

    date: str = ""
    effort: Effort = "medium"
    identity: str = DEFAULT_IDENTITY
    knowledge_cutoff: str = DEFAULT_CUTOFF
    namespaces: tuple[Namespace, ...] = ()
    """The model's own tools, such as browser and python."""
    calls_functions: bool = False
    """Whether the developer message has functions: their calls go to commentary."""

    def text(self) -> str:
        """The content of the system message."""
        about = [self.identity, f"Knowledge cutoff: {self.knowledge_cutoff}"]
        if self.date:
            about.append(f"Current date: {self.date}")
        sections = ["\n".join(about), f"Reasoning: {self.effort}"]
        if self.namespaces:
            sections.append(tools_section(self.namespaces))
        channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
        if self.calls_functions:
            channels += f"\nCalls to these tools must go to the commentary channel: '{FUNCTIONS}'."
        return "\n\n".join([*sections, channels])


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the answer shall look like, for the model to know; a constraint enforces it."""

    name: str
    schema: str
    """JSON Schema as JSON text, or another description of the language."""
    description: str = ""

    def text(self) -> str:
        """A section of `# Response Formats`."""
        about = "".join(f"// {line}\n" for line in lines_of(self.description))
        return f"## {self.name}\n\n{about}{self.schema}"


@dataclass(frozen=True, slots=True)
class DeveloperSettings:
    """What the developer message says. Nothing at all: there is none."""

    instructions: str = ""
    functions: tuple[Function, ...] = ()
    formats: tuple[AnswerFormat, ...] = ()

    def text(self) -> str:
        """The content of the developer message."""
        sections = [f"# Instructions\n\n{self.instructions}"] if self.instructions else []
        if self.functions:
            sections.append(tools_section([Namespace(FUNCTIONS, functions=self.functions)]))
        if self.formats:
            sections.append("\n\n".join(["# Response Formats", *(form.text() for form in self.formats)]))
        return "\n\n".join(sections)
