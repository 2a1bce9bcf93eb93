"""How often each expert is chosen, on conversations with their right replies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoal.cluster.nano.example import Example
from shoal.cluster.nano.render import Desk, settings_for
from shoal.cluster.nano.twin import Twin


@torch.no_grad()
def expert_shares(model_dir: Path, examples: Sequence[Example]) -> Tensor:
    """[layers, experts]: choices of the expert over its fair share (1 when all are chosen as often)."""
    twin = Twin(model_dir)
    desk = Desk(twin.tokenizer)
    config = twin.model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_local_experts)
    for example in examples:
        settings = settings_for(example, random.Random(example.key))
        ids = torch.tensor([[*desk.prompt(example, settings), *desk.reply(example)]])
        logits = twin.model(ids, output_router_logits=True).router_logits
        for layer, each in enumerate(logits):
            chosen = each.topk(config.num_experts_per_tok, dim=-1).indices
            counts[layer] += torch.bincount(chosen.reshape(-1), minlength=config.num_local_experts)
    return counts / counts.mean(1, keepdim=True)
