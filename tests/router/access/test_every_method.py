"""Every RPC and every route, for every role and every bad credential: what happens is what the table says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from starlette.routing import Route

from shoal.proto.v1 import admin_pb2
from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import ROLES
from shoal.router.access.table import ALLOWED, FOR_EVERYBODY, short_name
from shoal.router.fleet.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.access.showing import Ring
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.controllers import controller
from tests.router.http.asking import HELLO, ask
from tests.router.talking import user

WORDS = "<|channel|>final<|message|>Hi<|return|>"
TURN = {"model": "model", "input": "x", "store": False}
BODIES = {"/v1/chat/completions": HELLO, "/v1/completions": {"model": "model", "prompt": "x"}, "/v1/responses": TURN}
NAMES = {"{response_id}": "resp_1", "{model:path}": "model"}


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    """Credentials of the tenant acme."""
    return Ring(tmp_path)


@pytest.fixture
async def cluster(
    start_cluster: StartCluster, tokenizer: Tokenizer, ring: Ring, redis_url: str
) -> AsyncIterator[Cluster]:
    """A router that asks for credentials; acme operates what is behind it."""
    words, access = saying(ids_of(tokenizer, WORDS)), ring.config(operators=("acme",))
    async with controller(redis_url):
        yield await start_cluster(words, access=access, http_port=0, model_name="model", redis_url=redis_url)


def rpcs() -> Iterator[tuple[str, Any, bool]]:
    """Full name, request, and whether the answer is a stream."""
    for service in (*api.DESCRIPTOR.services_by_name.values(), *admin_pb2.DESCRIPTOR.services_by_name.values()):
        for method in service.methods:
            request: Any = GetMessageClass(method.input_type)()
            if method.name == "Chat":
                request = user("x")
            elif method.name in ("Generate", "Tokenize"):
                request.text = "x"
            elif method.name in ("GetSession", "DeleteSession", "ForkSession"):
                request.session_id = "absent"
            elif method.name == "Resume":
                request.request_id = "absent"
            yield f"/{service.full_name}/{method.name}", request, method.name in ("Chat", "Generate", "Resume")


async def code_of(cluster: Cluster, method: str, request: Any, streams: bool, authorization: str) -> grpc.StatusCode:
    """How an RPC ends."""
    metadata = (("authorization", authorization),) if authorization else ()
    open_call: Any = cluster.front.channel.unary_stream if streams else cluster.front.channel.unary_unary
    call = open_call(method, request_serializer=lambda m: m.SerializeToString())(request, metadata=metadata, timeout=5)
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_rpc_is_as_the_table_says(cluster: Cluster, ring: Ring) -> None:
    """Known roles pass or are denied; whoever is not known never passes."""
    count = 0
    for method, request, streams in rpcs():
        name = short_name(method)
        for role in ROLES:
            for credential in (ring.shown[role], ring.provider.token(role)):
                code = await code_of(cluster, method, request, streams, f"Bearer {credential}")
                denied = code is grpc.StatusCode.PERMISSION_DENIED
                assert (role not in ALLOWED[name]) == denied, f"{role} calls {name}: {code}"
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED)
                count += 1
        for what, authorization in ring.bad().items():
            code = await code_of(cluster, method, request, streams, authorization)
            assert code is grpc.StatusCode.UNAUTHENTICATED, f"{what} calls {name}: {code}"
            count += 1
    assert count == len(list(rpcs())) * (2 * len(ROLES) + len(ring.bad()))


async def test_every_route_is_as_the_table_says(cluster: Cluster, ring: Ring) -> None:
    """The same for HTTP; what is open to everybody needs nothing, not even a good credential."""
    address, seen = cluster.front.listening.http, set()
    application: Any = cluster.front.router._api.application
    for route in application.routes:
        assert isinstance(route, Route)
        path, name = route.path, name_of(route)
        for placeholder, value in NAMES.items():
            path = path.replace(placeholder, value)
        seen.add(name)
        assert name in ALLOWED, f"{route.path} has no row"
        for http_method in sorted((route.methods or set()) - {"HEAD"}):
            body = BODIES.get(path, {}) if http_method == "POST" else None
            for role in ROLES:
                shown = f"Bearer {ring.shown[role]}"
                answer = await ask(address, path, body, http_method, authorization=shown)
                assert (role not in ALLOWED[name]) == (answer.status == 403), f"{role} calls {name}: {answer.text}"
                assert answer.status in (200, 403, 404)
            for what, authorization in ring.bad().items():
                answer = await ask(address, path, body, http_method, None, **_header(authorization))
                expected = answer.status in (200, 503) if name in FOR_EVERYBODY else answer.status == 401
                assert expected, f"{what} calls {name}: {answer.status}"
    assert {name for name in ALLOWED if name.startswith("http.")} == seen


def _header(authorization: str) -> dict[str, str]:
    return {"authorization": authorization} if authorization else {}


def name_of(route: Route) -> str:
    """What the table calls it."""
    endpoint: Any = route.endpoint
    return str(getattr(endpoint, "name", None) or endpoint.__name__)


async def test_a_401_says_how_to_ask(cluster: Cluster) -> None:
    """In OpenAI's shape, with the scheme, and not to be tried again."""
    answer = await ask(cluster.front.listening.http, "/v1/models")

    assert answer.status == 401
    assert answer.error["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"
