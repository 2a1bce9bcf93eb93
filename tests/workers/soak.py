"""Anything at any time: requests are submitted, forked, cancelled and preempted at random; every one that finished
must equal its solo run, and the blocks must add up.

    python -m tests.workers.soak --requests 5000 [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Finish, Sequence, SequenceKey, StopParams
from shoal.workers.model.sampling import SamplingParams
from tests.workers.engines import make_engine, random_tokens, run

VOCAB, KINDS = 1000, 150


@dataclass(frozen=True, slots=True)
class Recipe:
    """One of the distinct requests; the same recipe gives the same tokens wherever it runs."""

    tokens: tuple[int, ...]
    seed: int
    sampling: SamplingParams
    stop: StopParams
    choices: int

    def sequence(self, name: str, choice: int) -> Sequence:
        s = Sequence(SequenceKey(name, choice), 0, list(self.tokens), 0, self.seed, self.sampling, self.stop)
        s.salt = b"soak"
        return s


def recipe(number: int) -> Recipe:
    """The `number`-th recipe. Prompts share beginnings, so that the prefix cache has something to find."""
    r = random.Random(number)
    common = random_tokens(r.choice((0, 16, 40, 70)), VOCAB, seed=r.randrange(3))
    own = random_tokens(r.randint(1, 30), VOCAB, seed=number + 1000)
    sampling = r.choice(
        (
            SamplingParams(temperature=0.0),
            SamplingParams(),
            SamplingParams(temperature=0.7, top_p=0.9, top_k=40, min_p=0.01),
            SamplingParams(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
            SamplingParams(logit_bias={5: 100.0, 6: 100.0}),  # loops, so that guesses are often right
        )
    )
    stop = StopParams(
        max_tokens=r.randint(1, 24),
        stop_token_ids=frozenset(random_tokens(r.choice((0, 20)), VOCAB, seed=number)),
        stop_bytes=r.choice(((), (b"\x05\x06\x05", b"\x07"))),
        loop_limit=r.choice((0, 0, 6)),
    )
    return Recipe(tuple(common + own), r.randrange(2**64), sampling, stop, r.choice((1, 1, 1, 3)))


@dataclass(slots=True)
class Soak:
    """One run; `counts` says what happened."""

    path: Path
    seed: int = 0
    overlap: bool = False
    """Tokens are chosen on the device, steps overlap; instead of guesses."""
    counts: Counter[str] = field(default_factory=Counter)
    _engine: Engine | None = None
    _heard: dict[SequenceKey, list[Output]] = field(default_factory=dict)
    _solo: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def run(self, requests: int) -> None:
        """Until `requests` were submitted; then everything left is finished and compared."""
        chance = random.Random(self.seed)
        engine = self._make(
            kv_tokens=352, batch_tokens=48, batch_size=6, block_size=8, speculate=0 if self.overlap else 3,
            overlap=self.overlap, graphs=self.overlap,
        )  # fmt: skip
        alive: list[tuple[int, Sequence]] = []
        submitted = 0
        while alive or submitted < requests:
            if submitted < requests and len(alive) < 24 and chance.random() < 0.6:
                kind = chance.randrange(KINDS)
                for choice in range(recipe(kind).choices):
                    s = recipe(kind).sequence(f"r{submitted}", choice)
                    s.priority = chance.choice((0, 0, 1))
                    engine.submit(s)
                    alive.append((kind, s))
                submitted += 1
                self.counts["submitted"] += 1
            if alive and chance.random() < 0.03:
                engine.cancel(chance.choice(alive)[1].key.request_id)
            self._hear(engine.step().outputs if engine.has_work else engine.tell())
            if chance.random() < 0.05:
                engine.check_integrity()
            for kind, s in [a for a in alive if a[1].finish]:
                alive.remove((kind, s))
                self._check(kind, s)
        engine.check_integrity()
        self._count(engine)

    def _hear(self, outputs: Iterable[Output]) -> None:
        """Every token is told once and in order, and the end last."""
        for output in outputs:
            heard = self._heard.setdefault(output.sequence.key, [])
            assert not heard or heard[-1].finish is None, f"{output.sequence.key} goes on behind its end"
            assert output.offset == sum(o.token is not None for o in heard), f"{output.sequence.key}: a gap"
            heard.append(output)

    def _make(self, **options: Any) -> Engine:
        return make_engine(self.path, sampler="device" if self.overlap else "host", **options)

    def _check(self, kind: int, s: Sequence) -> None:
        """A finished sequence equals its solo run; a cancelled one is a beginning of it."""
        expected = self._alone(kind, s.key.choice)
        generated = s.tokens[s.given_length :]
        assert s.finish is not None, "not finished"
        self.counts[s.finish.name.lower()] += 1
        if s.finish is Finish.CANCELLED:
            expected = expected[: len(generated)]
        told = [o.token.id for o in self._heard.pop(s.key) if o.token is not None]
        assert told == generated, f"recipe {kind}: told {told} of {generated}"
        assert generated == expected, (
            f"recipe {kind} choice {s.key.choice} (seed {self.seed}): {generated} != {expected}"
        )

    def _alone(self, kind: int, choice: int) -> list[int]:
        """The recipe in another engine, without cache, guesses or company."""
        if (kind, choice) not in self._solo:
            self._engine = self._engine or self._make(kv_tokens=512, caching=False)
            self._solo[kind, choice] = run(self._engine, recipe(kind).sequence("alone", choice))[0]
        return self._solo[kind, choice]

    def _count(self, engine: Engine) -> None:
        c = engine.counters
        self.counts |= Counter(
            preemptions=c.preemptions, cached_tokens=c.cached_tokens, accepted_guesses=c.accepted_tokens,
            steps=c.steps, tokens=c.generated_tokens,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlap", action="store_true", help="choose tokens on the device, in steps that overlap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(make_checkpoint(Path(folder) / "model", "tiny", seed=1), args.seed, args.overlap)
        start = time.monotonic()
        soak.run(args.requests)
    print(f"every finished request equals its solo run; {time.monotonic() - start:.0f} s", dict(soak.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
