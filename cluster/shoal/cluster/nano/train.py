"""Trains shoal-nano: `python -m shoal.cluster.nano.train RECIPE DIRECTORY`; run again, it goes on where it was.

One process per core, each with one thread and its own examples; gradients are averaged once a step, so that a core
that is taken away for a moment holds the others up once a step and not in every matrix product.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shoal.cluster.nano.batch import Batch, take, take_echoes
from shoal.cluster.nano.exam import Paper, mark
from shoal.cluster.nano.example import EFFORTS, Example
from shoal.cluster.nano.fused import compile_chains
from shoal.cluster.nano.mixture import EXAMS, TASKS, Mixture
from shoal.cluster.nano.model import build, hidden_states, imbalance
from shoal.cluster.nano.muon import Muon
from shoal.cluster.nano.published import as_published
from shoal.cluster.nano.recipe import Recipe, Stage
from shoal.cluster.nano.render import Desk, texts
from shoal.cluster.nano.shape import NANO
from shoal.cluster.nano.vocabulary import learn
from shoal.router.tokenizer import Tokenizer
from shoal.workers.orphan import end_with_parent

LONGEST = 512  # ids of a lesson
_SAVE_EVERY = 50
_VOCABULARY_EXAMPLES = 20_000
_LOG_EVERY = 10
STATE = "state.pt"
# glibc gives large blocks back at once and gets them again as empty pages; keeping them saves a seventh of a step.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "268435456"}


class Trainer:
    """One rank of a training run."""

    def __init__(self, recipe: Recipe, directory: Path, rank: int) -> None:
        self.recipe, self.directory, self.rank = recipe, directory, rank
        self.desk = Desk(Tokenizer.load(directory))
        self.model = build(NANO, recipe.seed)
        matrices = [p for n, p in self.model.named_parameters() if is_matrix(n, p)]
        others = [p for n, p in self.model.named_parameters() if not is_matrix(n, p)]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, recipe.matrix_rate),
            torch.optim.AdamW(others, recipe.other_rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
        )
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.paper = Paper.set(self.desk, recipe.exam_size, seed=recipe.seed)
        self.step = 0
        self.seconds = 0.0
        self.tokens = 0
        if (directory / STATE).exists():
            self._load()

    def run(self) -> None:
        """To the end of the recipe."""
        stage: Stage | None = None
        examples: Iterator[Example] = iter(())
        rng = random.Random()
        began = time.monotonic() - self.seconds
        while self.step < self.recipe.steps:
            current, rate = self.recipe.at(self.step)
            if current is not stage:
                stage = current
                examples, rng = self._examples(stage)
            row = self._step(stage, rate, examples, rng)
            self.step += 1
            self.seconds = time.monotonic() - began
            last = self.step == self.recipe.steps or self.recipe.at(self.step)[0] is not stage
            if self.rank == 0 and (self.step % _LOG_EVERY == 0 or last):
                self._log("log.csv", {"step": self.step, "stage": stage.name, "seconds": round(self.seconds, 1), **row})
            if self.step % self.recipe.exam_every == 0 or last:
                self._exam(stage)
            if self.rank == 0 and (self.step % _SAVE_EVERY == 0 or last):
                self._save(f"{stage.name}.pt" if last else None)

    def _examples(self, stage: Stage) -> tuple[Iterator[Example], random.Random]:
        """A stream that no other rank, stage or resumption has."""
        seed = f"{self.recipe.seed} {stage.name} {self.step} {self.rank}"
        return stage.mixture.examples(random.Random(seed).getrandbits(48)), random.Random(f"{seed} dates")

    def _step(self, stage: Stage, rate: float, examples: Iterator[Example], rng: random.Random) -> dict[str, object]:
        echoes = round(stage.tokens * stage.echo)
        lessons = take_echoes(rng, NANO.control_base, echoes)
        lessons += take(examples, self.desk, rng, stage.tokens - echoes, LONGEST)
        for optimizer, peak in zip(self.optimizers, (self.recipe.matrix_rate, self.recipe.other_rate), strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        context = as_published(self.model) if stage.quantised else nullcontext()
        with context:
            batch = Batch.of(lessons)
            hidden, routers = hidden_states(self.model, batch.ids, batch.lengths)
            logits = self.model.lm_head(hidden[:-1][batch.learned])
            loss = cross_entropy(logits, batch.ids[1:][batch.learned])
            uneven, loads = imbalance(routers, NANO.experts_per_token)
            torch.autograd.backward(loss + stage.balance * uneven)
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(self.recipe.average, (self.step + 1) / (self.step + 10))
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        self.tokens += len(batch.ids) * self.recipe.ranks
        return {
            "tokens": self.tokens,
            "rate": round(rate, 4),
            "loss": round(loss.item(), 4),
            "imbalance": round(uneven.item(), 4),
            "least_share": round(float(loads.min()) * NANO.num_experts, 3),
            "gradient": round(float(norm), 3),
        }

    def _average_gradients(self) -> None:
        if self.recipe.ranks == 1:
            return
        parameters = list(self.model.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.recipe.ranks
        begin = 0
        for parameter in parameters:
            parameter.grad = flat[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()

    def _exam(self, stage: Stage) -> None:
        """The averaged weights, as published, on held-out questions."""
        own = {name: parameter.data for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.data = self.average[name]
        with as_published(self.model):
            marks = mark(self.model, self.paper, self.rank, self.recipe.ranks)
        for name, parameter in self.model.named_parameters():
            parameter.data = own[name]
        if self.recipe.ranks > 1:
            dist.all_reduce(marks)
        if self.rank == 0:
            rights = marks[..., 0] / marks[..., 1]
            scores = {
                f"{task} {effort}": round(float(rights[t, e]), 3)
                for t, task in enumerate(EXAMS)
                for e, effort in enumerate(EFFORTS)
            }
            self._log("exams.csv", {"step": self.step, "stage": stage.name, **scores})
            print(f"step {self.step} {stage.name} {self.seconds:.0f}s", json.dumps(scores), flush=True)

    def _log(self, name: str, row: dict[str, object]) -> None:
        path = self.directory / name
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _save(self, also: str | None) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        for name in [STATE, *([also] if also else [])]:
            partial = self.directory / f".{name}"
            torch.save(state, partial)
            os.replace(partial, self.directory / name)

    def _load(self) -> None:
        state = torch.load(self.directory / STATE, weights_only=True)
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.rank == 0:
            for path in self.directory.glob("*.csv"):
                _forget(path, self.step)


def _forget(path: Path, step: int) -> None:
    """Drops the rows of a log that come after `step`: those steps are taken again."""
    head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([head, *(row for row in rows if int(row.split(",", 1)[0]) <= step)]), encoding="utf-8")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it: the matrices inside the layers, the router's apart."""
    return "layers" in name and "router" not in name and parameter.dim() >= 2 and not name.endswith("bias")


def new_vocabulary(seed: int) -> str:
    """The text of a tokenizer.json learned from examples of every task."""
    rng = random.Random(seed)
    examples = islice(Mixture(dict.fromkeys(TASKS, 1.0)).examples(seed), _VOCABULARY_EXAMPLES)
    return learn((text for example in examples for text in texts(example, rng)), NANO)


def _rank(rank: int, recipe: Recipe, directory: Path) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    compile_chains()
    if recipe.ranks > 1:
        dist.init_process_group("gloo", f"file://{directory}/.rendezvous", rank=rank, world_size=recipe.ranks)
    Trainer(recipe, directory, rank).run()
    if recipe.ranks > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "directory", type=Path, help="holds tokenizer.json, made if absent; gets the state, the log and the exams"
    )
    arguments = parser.parse_args()
    recipe, directory = Recipe.load(arguments.recipe), arguments.directory.absolute()
    (directory / ".rendezvous").unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "tokenizer.json").exists():
        (directory / "tokenizer.json").write_text(new_vocabulary(recipe.seed), encoding="utf-8")
    os.environ.update(_ALLOCATOR)
    processes.spawn(_rank, (recipe, directory), nprocs=recipe.ranks)  # type: ignore[attr-defined,no-untyped-call]  # torch exports it silently


if __name__ == "__main__":
    main()
