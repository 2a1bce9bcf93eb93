"""Structured logs on stderr: lines for people on a terminal, JSON for machines. Text of prompts and answers never goes
there."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str, style: str = "json", **bound: str) -> None:
    """Set up logging for this process; `bound` is in every line. `style` is "console", "json" or "auto": console on a
    terminal; `level` is debug, info, warning or error."""
    people = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor
    renderer = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(sort_keys=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            lambda _logger, _method, event: {**bound, **event},  # in every thread, which context variables are not
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people),
            structlog.processors.StackInfoRenderer(),
            *([] if people else [structlog.processors.format_exc_info]),  # plain: no local variables
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
