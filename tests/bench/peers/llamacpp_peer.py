"""llama.cpp: MXFP4 experts, bf16 dense weights, activations rounded to 8 bits for the experts."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]  # lives in the peer's environment
import numpy as np

from tests.bench.peers.serve import Generate, Run, Split, serve

CONTEXT = 256  # tokens per sequence
BATCH = 2048


def load(path: str, threads: int) -> tuple[str, Generate]:
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def context(sequences: int) -> Any:
        params = llama.llama_context_default_params()
        params.n_ctx = CONTEXT * sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = sequences > 1
        return llama.llama_init_from_model(model, params)

    contexts: dict[int, Any] = {}

    def generate(prompts: list[list[int]], new: int) -> Run:
        count = len(prompts)
        if count not in contexts:
            for old in contexts.values():
                llama.llama_free(old)
            contexts.clear()
            contexts[count] = context(count)
        ctx = contexts[count]
        llama.llama_memory_clear(llama.llama_get_memory(ctx), True)
        batch = llama.llama_batch_init(BATCH, 0, count)

        def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
            """rows: (token, position, sequence, logits wanted) -> the greedy tokens of the wanted ones."""
            batch.n_tokens = len(rows)
            for i, (token, position, sequence, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if status := llama.llama_decode(ctx, batch):
                raise RuntimeError(f"llama_decode: {status}")
            logits = (llama.llama_get_logits_ith(ctx, i) for i, row in enumerate(rows) if row[3])
            return [int(np.ctypeslib.as_array(row, shape=(vocab,)).argmax()) for row in logits]

        split = Split()
        last = [
            decode([(t, p, s, p == len(prompt) - 1) for s, prompt in enumerate(prompts) for p, t in enumerate(prompt)])
        ]
        split.first()
        for step in range(new - 1):
            last.append(decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(last[-1])]))
        run = split.end([list(tokens) for tokens in zip(*last, strict=True)])
        llama.llama_batch_free(batch)
        return run

    return f"llama.cpp (llama-cpp-python {metadata.version('llama-cpp-python')}), 8-bit activations", generate


if __name__ == "__main__":
    serve(load)
