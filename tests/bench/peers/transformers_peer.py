"""transformers in fp32: the checkpoint's experts dequantised at load, a KV cache, greedy."""

from __future__ import annotations

import torch
import transformers
from transformers import GptOssForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

from tests.bench.peers.serve import Generate, Run, Split, serve


def load(path: str, threads: int) -> tuple[str, Generate]:
    torch.set_num_threads(threads)
    model = GptOssForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    model.train(False)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], new: int) -> Run:
        split = Split()
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        tokens = [out.logits[:, -1].argmax(-1)]
        split.first()
        for _ in range(new - 1):
            out = model(tokens[-1][:, None], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            tokens.append(out.logits[:, -1].argmax(-1))
        return split.end(torch.stack(tokens, 1).tolist())

    return f"transformers {transformers.__version__} fp32", generate


if __name__ == "__main__":
    serve(load)
