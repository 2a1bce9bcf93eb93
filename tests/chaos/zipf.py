"""A model whose tokens want some experts far more often than others (Zipf), and what that does to the ranks."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import torch
from safetensors.torch import load_file, save_file

from shoal.cluster.balancer import Balancer
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import Preset
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1 import worker_pb2
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceStub
from shoal.wire.tls import TlsConfig
from tests.chaos.town import Town

LAYERS, EXPERTS = 4, 32
_SPREAD = 1.56
"""Of Gumbel noise as wide as this model's router logits: a bias of this times log p makes an expert's share about p."""

Loads = list[dict[tuple[int, int], int]]
"""Per rank: tokens by (layer, expert)."""


@dataclass(frozen=True)
class Skew:
    """A skewed load before and after its experts were moved."""

    hottest: float
    """Load of the hottest expert over the mean, the mean of all layers."""
    before: float
    """Load of the fullest rank over the mean, the mean of all layers: each layer waits for its fullest rank."""
    after: float
    moves: int


def zipf_model(path: Path) -> Path:
    """A tiny checkpoint whose routers prefer experts by Zipf's law, in another order in each layer."""
    preset = Preset("zipf", LAYERS, 256, 256, EXPERTS, 8, 2, vocab_size=1024, sliding_window=32)
    model, chance = make_checkpoint(path, preset, seed=1), random.Random(1)
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith("router.bias"):
                ranks = chance.sample(range(1, EXPERTS + 1), EXPERTS)
                tensors[name] = torch.tensor([-_SPREAD * math.log(rank) for rank in ranks]).to(tensors[name].dtype)
        save_file(tensors, file)
    return model


async def traffic(t: Town, first: int) -> Loads:
    """Prompts of random words; what each rank did of each expert of each layer since its epoch began."""

    async def ask(number: int) -> None:
        chance = random.Random(first + number)
        tokens = pb.TokenIds(ids=[chance.randrange(900) for _ in range(60)])
        limits = pb.Limits(max_tokens=8, ignore_eos=True)
        asked = pb.GenerateRequest(tokens=tokens, sampling=pb.Sampling(temperature=0.0), limits=limits)
        async for _ in t.stub.Generate(asked, timeout=60):
            pass

    await asyncio.gather(*(ask(number) for number in range(48)))
    loads = []
    for hand in t.state.members:
        assert hand.facts is not None, "a member is prepared"
        async with grpc.aio.insecure_channel(hand.facts.address) as channel:
            status = await WorkerServiceStub(channel).GetStatus(worker_pb2.GetStatusRequest(), timeout=5)
        loads.append({(load.layer, load.expert): load.tokens for load in status.expert_loads})
    return loads


def fullest(loads: Loads) -> float:
    """Load of the fullest rank over the mean, the mean of all layers."""
    by_layer = [[sum(n for (of, _), n in rank.items() if of == layer) for rank in loads] for layer in range(LAYERS)]
    return statistics.mean(max(totals) / statistics.mean(totals) for totals in by_layer)


def hottest(loads: Loads) -> float:
    """Load of the hottest expert over the mean, the mean of all layers."""
    shares = []
    for layer in range(LAYERS):
        totals = [sum(rank.get((layer, expert), 0) for rank in loads) for expert in range(EXPERTS)]
        shares.append(max(totals) / statistics.mean(totals))
    return statistics.mean(shares)


async def rebalanced(t: Town, copies: int) -> Skew:
    """Move experts by what they had to do, with so many slots per rank for spare copies; other prompts come after."""
    loads = await traffic(t, 1000)
    epoch = t.state.epoch
    found = await Balancer(t.controller, copies, TlsConfig()).balance("g0")
    assert found is not None, "too little load to go by"
    assert found.moves > 0, found
    await t.changed(epoch)
    return Skew(hottest(loads), fullest(loads), fullest(await traffic(t, 2000)), found.moves)
