"""What is wrong with a checkpoint, in one line."""

from __future__ import annotations

from pathlib import Path

_LONGEST = 200  # a broken file can hold anything: what is quoted from it is kept short


class CheckpointError(Exception):
    """A checkpoint that cannot be served. Its text is one line: file, tensor, problem, what was expected, what found.

    Raised for anything that a disk, a download or a user can do to a checkpoint; never for a mistake of ours.
    It survives pickling, since it travels from a worker to whoever started it.
    """

    def __init__(
        self,
        file: Path | str,
        problem: str,
        *,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
    ) -> None:
        self.file = str(file)
        self.problem = problem
        self.tensor = tensor
        self.expected = None if expected is None else _one_line(expected)
        self.found = None if found is None else _one_line(found)
        where = [_one_line(self.file)] if tensor is None else [_one_line(self.file), f"tensor {_one_line(tensor)}"]
        text = ": ".join([*where, problem])
        facts = []
        if self.expected is not None:
            facts.append(f"expected {self.expected}")
        if self.found is not None:
            facts.append(f"found {self.found}")
        super().__init__(": ".join([text, ", ".join(facts)]) if facts else text)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.file, self.problem, self.tensor, self.expected, self.found))


def _rebuild(file: str, problem: str, tensor: str | None, expected: str | None, found: str | None) -> CheckpointError:
    return CheckpointError(file, problem, tensor=tensor, expected=expected, found=found)


def _one_line(value: object) -> str:
    """Printable on any terminal: no line breaks, no control characters, no lone surrogates, never long."""
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python converts
        text = "a number of thousands of digits"
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
