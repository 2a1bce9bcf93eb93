"""A worker's state as a message: read by any thread while the engine steps, so figures may be one step apart."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.engine.engine import Engine
from shoal.workers.loop import EngineLoop, State


def report(
    welcome: pb.Welcome, kernels: str, engine: Engine | None, loop: EngineLoop | None, start: Mapping[str, float]
) -> pb.GetStatusResponse:
    """What the worker of `welcome` is and does; before it is prepared it has no engine and no loop. `start`: seconds
    per phase of its start."""
    ready = loop is not None and loop.state is State.SERVING and not loop.draining
    response = pb.GetStatusResponse(identity=welcome, ready=ready, pid=os.getpid(), kernel_path=kernels)
    for phase, seconds in dict(start).items():
        response.start_seconds[phase] = seconds
    if engine is None:
        return response
    counters, kv = engine.counters, engine.kv
    response.steps = counters.steps
    response.generated_tokens = counters.generated_tokens
    response.prompt_tokens = counters.prompt_tokens
    response.running = len(engine.running)
    response.waiting = len(engine.waiting)
    response.kv_blocks = kv.full.num_blocks
    response.kv_blocks_used = kv.full.num_blocks - kv.full.num_free
    response.sliding_blocks = kv.sliding.num_blocks
    response.sliding_blocks_used = kv.sliding.num_blocks - kv.sliding.num_free
    response.kv_bytes = engine.model.kv.plan.bytes_total
    response.cached_tokens = counters.cached_tokens
    response.preemptions = counters.preemptions
    response.drafted_tokens = counters.drafted_tokens
    response.accepted_tokens = counters.accepted_tokens
    response.replayed_steps = engine.decoder.replays if engine.decoder is not None else 0
    for layer, loads in enumerate(engine.expert_loads()):
        for expert, tokens in loads.items():
            response.expert_loads.add(layer=layer, expert=expert, tokens=tokens)
    for phase, seconds in dict(engine.model.stopwatch.seconds).items():
        response.step_seconds[phase] = seconds
    return response
