"""`make bench-one-token`: is the thin path worth having?

* tokens/s of the CPU path beside transformers, same checkpoint, same prompts, taken in turn;
* what the exchange costs per layer beside a bare gloo all-to-all of the same bytes;
* what the router costs: tokens/s streamed through it beside the worker's own stream.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.placement import even_placement
from shoal.kernels import native
from shoal.workers.experts.exchange import Handle, Wish
from shoal.workers.experts.group_exchange import GroupExchange
from tests.bench import router_overhead
from tests.bench.record import Row, paired, seconds, write
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.groups import exchanges, on_ranks
from tests.workers.test_model_oracle import reference

PROMPT, NEW = 32, 48


def decode_rows(path: Path, rounds: int) -> list[Row]:
    """Prompt and generation of a whole batch, in tokens generated per second."""
    theirs = reference(path)
    engine = make_engine(path, kv_tokens=8192, batch_tokens=512, caching=False)
    vocab = engine.model.config.vocab_size
    rows = []
    for batch in (1, 4, 16):
        prompts = [random_tokens(PROMPT, vocab, seed=i) for i in range(batch)]
        ids = torch.tensor(prompts)

        def ours(prompts: list[list[int]] = prompts) -> None:
            run(engine, *(sequence(p, name=str(i), max_tokens=NEW) for i, p in enumerate(prompts)))

        def peer(ids: torch.Tensor = ids) -> None:
            with torch.inference_mode():
                theirs.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None
                )

        rows.append(_compare(f"decode batch {batch}", ours, peer, batch * NEW, rounds))
    return rows


def _compare(case: str, ours: Callable[[], None], peer: Callable[[], None], tokens: int, rounds: int) -> Row:
    ours()  # both are warm before the first round
    peer()
    mine, its = [], []
    for _ in range(rounds):
        mine.append(tokens / seconds(ours))
        its.append(tokens / seconds(peer))
    return paired(case, "tok/s", mine, "transformers fp32", its, goal=2.0)


def exchange_rows(rounds: int) -> list[Row]:
    """One layer's dispatch and combine between two ranks, beside bare all-to-alls of the same rows."""
    hidden, top_k, experts = 2880, 4, 32
    rows = []
    for tokens in (1, 8, 64):
        ends = [end for end in exchanges(2, even_placement(1, experts, 2), top_k) if isinstance(end, GroupExchange)]

        def work(rank: int, ends: list[GroupExchange] = ends, tokens: int = tokens) -> tuple[list[float], list[float]]:
            g = torch.Generator().manual_seed(rank)
            x = torch.randn(tokens, hidden, generator=g)
            ids = torch.stack([torch.randperm(experts, generator=g)[:top_k] for _ in range(tokens)]).int()
            end, ours, bare = ends[rank], [], []
            for step in range(rounds * 40):
                end.agree(step, tokens, Wish.NONE)
                start = time.perf_counter()
                handle = end.dispatch(0, x, ids)
                end.combine(torch.zeros(sum(handle.rows_of_peer), hidden), handle)
                ours.append(time.perf_counter() - start)
                bare.append(_bare(end, handle, hidden))
            return ours, bare

        (ours, bare), _ = on_ranks(2, work)
        for end in ends:
            end.close()
        warm = len(ours) // 4
        per_second = [[1 / t for t in times[warm:]] for times in (ours, bare)]
        case = f"exchange of one layer, {tokens} tokens a rank"
        rows.append(paired(case, "layers/s", per_second[0], "two bare gloo all-to-alls, same rows", per_second[1]))
    return rows


def _bare(end: GroupExchange, handle: Handle, hidden: int) -> float:
    """Seconds for two all-to-alls that carry the rows of the exchange that `handle` describes, and nothing else."""
    back_in, back_out = list(handle.rows_from_peer), list(handle.rows_of_peer)
    there_out, there_in = list(handle.tokens_of_peer), list(handle.tokens_from_peer)
    buffers = [
        (torch.zeros(sum(into), hidden), torch.zeros(sum(out), hidden), into, out)
        for into, out in ((there_in, there_out), (back_in, back_out))
    ]

    def work() -> None:
        for buffer in buffers:
            end._group.all_to_all(*buffer)

    return seconds(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if native.available():
        native.set_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder) / "small", "small", seed=0)
        rows = decode_rows(path, args.rounds)
        rows += exchange_rows(args.rounds)
        rows += router_overhead.rows(path, args.rounds)
    write(
        "one-token", rows, ["decode rows: 32 prompt tokens and 48 greedy tokens per sequence, preset small, 2 threads"]
    )


if __name__ == "__main__":
    main()
