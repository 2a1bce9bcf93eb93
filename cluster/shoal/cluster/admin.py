"""The admin API: what the cluster is and how to change it, over gRPC on the controller's node.

It listens where the workers' meeting place does: on loopback, unless the cluster spans machines.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import structlog

from shoal.cluster.admin_trail import AdminTrail, Recorded
from shoal.cluster.balancer import Balancer
from shoal.cluster.controller import Controller
from shoal.cluster.fleet import FleetError
from shoal.cluster.group_state import GroupState, Phase, Policy, Stage
from shoal.cluster.registry_writer import RedisRegistry, RegistryAwayError
from shoal.cluster.saboteur import Saboteur
from shoal.proto.v1 import admin_pb2 as pb
from shoal.proto.v1 import admin_pb2_grpc
from shoal.router.audit.config import AuditConfig
from shoal.wire.credentials import add_port, join_address
from shoal.wire.internal import only_internal
from shoal.wire.options import server_options
from shoal.wire.registry import Desired
from shoal.wire.tls import TlsConfig, internal_server

log = structlog.get_logger()

MOST_EP_SIZE, MOST_GROUPS = 256, 64

_ANNOUNCE_AGAIN = 10.0  # seconds; a Redis that lost its data hears of it again

_PHASES = {phase: pb.GroupPhase.Value(f"GROUP_PHASE_{phase.name}") for phase in Phase}
_STAGES = {stage: pb.WorkerStage.Value(f"WORKER_STAGE_{stage.name}") for stage in Stage}


class AdminServer(admin_pb2_grpc.AdminServiceServicer):
    """Belongs to the controller's event loop."""

    def __init__(
        self,
        controller: Controller,
        registry: RedisRegistry,
        balancer: Balancer,
        saboteur: Saboteur | None,
        policy: Policy,
        desired: Desired,
        grace: float,
        tls: TlsConfig,
        audit: AuditConfig | None = None,
    ) -> None:
        """`grace`: seconds for running requests of a group that is not wanted any more. Without a saboteur nothing is
        broken on purpose. `audit`: where changes are recorded, by default nowhere."""
        self._balancer, self._saboteur = balancer, saboteur
        self._controller, self._registry, self._policy = controller, registry, policy
        self._desired = desired
        self._grace = grace
        self._tls = tls
        self._trail = AdminTrail(audit or AuditConfig())
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def start(self, host: str, port: int = 0) -> None:
        """Listen on this port of `host`, 0: a free one, and say where. Raises OSError."""
        guards = [Recorded(self._trail), *only_internal(self._tls)]
        self._server = grpc.aio.server(interceptors=guards, options=server_options())
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.address = join_address(host, add_port(self._server, host, port, internal_server(self._tls)))
        await self._server.start()
        self._announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        while True:
            try:
                await self._registry.announce_controller(self.address)
            except RegistryAwayError as error:
                log.debug("the controller's address was not written", error=str(error))
            await asyncio.sleep(_ANNOUNCE_AGAIN)

    # -- the service ----------------------------------------------------------------------------------------------

    async def GetCluster(  # noqa: N802  # gRPC's name
        self, request: pb.GetClusterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetClusterResponse:
        """Every group with its workers."""
        return pb.GetClusterResponse(groups=[info(state) for state in self._controller.groups.values()])

    async def Scale(  # noqa: N802  # as above
        self, request: pb.ScaleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ScaleResponse:
        """Remember what is wanted, then begin."""
        wanted = Desired(
            request.ep_size if request.HasField("ep_size") else self._desired.ep_size,
            request.groups if request.HasField("groups") else self._desired.groups,
        )
        try:
            if problem := await self.want(wanted):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        except RegistryAwayError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"not done, it could not be remembered: {error}")
        return pb.ScaleResponse(ep_size=wanted.ep_size, groups=wanted.groups)

    @property
    def desired(self) -> Desired:
        """What was asked for last."""
        return self._desired

    async def want(self, wanted: Desired) -> str:
        """Remember a size, then begin; what is wrong with it, empty when it was taken. Raises RegistryAwayError."""
        experts = [h.facts.num_experts for s in self._controller.groups.values() for h in s.workers if h.facts]
        if problem := refusal(wanted, min(experts, default=MOST_EP_SIZE)):
            return problem
        await self._registry.desire(wanted)
        self._desired = wanted
        log.info("scale", ep_size=wanted.ep_size, groups=wanted.groups)
        await self._controller.scale(wanted.ep_size, wanted.groups, self._policy, self._grace)
        return ""

    async def Drain(  # noqa: N802  # as above
        self, request: pb.DrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DrainResponse:
        """Begin to send a worker away."""
        if not self._controller.drain(request.worker_id):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"worker {request.worker_id!r} is no member of any group")
        log.info("drain", worker=request.worker_id)
        return pb.DrainResponse()

    async def Rebalance(  # noqa: N802  # as above
        self, request: pb.RebalanceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RebalanceResponse:
        """Of one group or of all; those with too little load to go by are left out."""
        groups = [request.group] if request.group else list(self._controller.groups)
        found = [await self._balancer.balance(group) for group in groups]
        return pb.RebalanceResponse(
            groups=[
                pb.GroupBalance(group=b.group, before=b.before, after=b.after, moves=b.moves)
                for b in found
                if b is not None
            ]
        )

    async def Inject(  # noqa: N802  # as above
        self, request: pb.InjectRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.InjectResponse:
        """Only where it was allowed at the start."""
        if self._saboteur is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "start the cluster with cluster.chaos = true to break things"
            )
        try:
            await self._saboteur.inject(request.fault, request.worker_id, request.seconds, request.amount)
        except LookupError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0]))
        except FleetError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.InjectResponse()


def refusal(wanted: Desired, experts: int) -> str:
    """Why that cannot be, empty when it can.

    >>> refusal(Desired(ep_size=9, groups=1), experts=8)
    'ep_size must be 1 to 8, not 9: each worker needs an expert'
    >>> refusal(Desired(ep_size=8, groups=1), experts=8)
    ''
    """
    most = min(experts, MOST_EP_SIZE)
    if not 1 <= wanted.ep_size <= most:
        return f"ep_size must be 1 to {most}, not {wanted.ep_size}: each worker needs an expert"
    if not 1 <= wanted.groups <= MOST_GROUPS:
        return f"groups must be 1 to {MOST_GROUPS}, not {wanted.groups}"
    return ""


def info(state: GroupState) -> pb.GroupInfo:
    """A group's state as a message."""
    ranks = {m.worker_id: m.rank for m in state.spec.members} if state.spec else {}
    reports = {report.rank: report for report in state.reports}
    group = pb.GroupInfo(
        group=state.group,
        epoch=state.spec.epoch if state.spec else state.epoch,
        phase=_PHASES[state.phase],
        ep_size=state.ep_size,
        reason=state.reason,
    )
    for hand in sorted(state.workers, key=lambda h: (ranks.get(h.name, len(ranks)), h.name)):
        worker = group.workers.add(worker_id=hand.name, stage=_STAGES[hand.stage])
        if hand.facts is not None:
            worker.address, worker.pid = hand.facts.address, hand.facts.pid
        if (rank := ranks.get(hand.name)) is not None:
            worker.rank = rank
            if (report := reports.get(rank)) is not None:
                worker.experts, worker.pause_seconds = report.experts_held, report.pause
    return group
