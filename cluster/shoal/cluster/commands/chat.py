"""`shoal chat`."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass

from rich.console import Console

from shoal.cluster import whereabouts
from shoal.cluster.client import RouterClient
from shoal.cluster.config import Settings
from shoal.cluster.errors import CallError, NotRunningError
from shoal.cluster.own_access import OwnAccess
from shoal.cluster.terminal import show
from shoal.proto.v1 import inference_pb2 as pb

_EFFORT = {"low": pb.REASONING_EFFORT_LOW, "medium": pb.REASONING_EFFORT_MEDIUM, "high": pb.REASONING_EFFORT_HIGH}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said about every turn."""

    address: str | None
    session: str | None
    effort: str
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    timeout: float


def run(settings: Settings, options: Options, once: str | None) -> None:
    """One turn with `once`, else a conversation until the end of input. Raises CallError for a turn that failed."""
    client = RouterClient(router_address(settings, options.address), OwnAccess.of(settings))
    console = Console()
    try:
        if once is not None:
            show(client.chat(request(once, options, options.session), options.timeout), console)
        else:
            converse(client, options, console)
    finally:
        client.close()


def converse(client: RouterClient, options: Options, console: Console) -> None:
    """Read, say, print; Ctrl-C ends an answer, Ctrl-D the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing and history
    session = options.session or f"chat-{secrets.token_hex(6)}"
    console.print(f"session {session} at {client.address}; /new starts another, Ctrl-D ends", style="dim", markup=False)
    while True:
        try:
            said = input("› ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if said == "/new":
            session = f"chat-{secrets.token_hex(6)}"
            console.print(f"session {session}", style="dim", markup=False)
        elif said:
            try:
                show(client.chat(request(said, options, session), options.timeout), console)
            except KeyboardInterrupt:
                console.print("(cancelled)", style="dim")
            except CallError as error:
                console.print(f"shoal: {error}", style="red", markup=False)


def request(text: str, options: Options, session: str | None) -> pb.ChatRequest:
    """One user message with the options of the command line."""
    sampling, limits = pb.Sampling(), pb.Limits()
    if options.temperature is not None:
        sampling.temperature = options.temperature
    if options.seed is not None:
        sampling.seed = options.seed
    if options.max_tokens is not None:
        limits.max_tokens = options.max_tokens
    return pb.ChatRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        session_id=session or "",
        reasoning_effort=_EFFORT[options.effort],
        sampling=sampling,
        limits=limits,
    )


def router_address(settings: Settings, address: str | None) -> str:
    """The router that was named, else the one that runs here, else where one would listen."""
    try:
        return whereabouts.find(settings, address).router
    except NotRunningError:
        router = settings.router(model_dir="unused")
        return f"{router.host}:{router.port}"
