"""The same examination on transformers with the same checkpoint: what the cluster must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.cluster.nano.answer import Answer, Call
from shoal.cluster.nano.evaluate import Progress
from shoal.cluster.nano.example import Example
from shoal.cluster.nano.questions import MOST_TOKENS, messages_of
from shoal.cluster.nano.render import ToolSettings
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.parse import Closed, Parser
from shoal.router.harmony.render import Renderer, SystemSettings
from shoal.router.inference.conversation import read_messages
from shoal.router.tokenizer import Tokenizer


class Twin:
    """transformers' GPT-OSS in float32 on one checkpoint, decoding greedily, one question at a time."""

    def __init__(self, model_dir: Path) -> None:
        from transformers import GptOssForCausalLM
        from transformers.utils.quantization_config import Mxfp4Config

        self.tokenizer = Tokenizer.load(model_dir)
        self.control = ControlTokens.of(self.tokenizer.control)
        self.renderer = Renderer(self.tokenizer, self.control)
        model: Any = GptOssForCausalLM.from_pretrained(
            model_dir,
            dtype=torch.float32,
            quantization_config=Mxfp4Config(dequantize=True),
            attn_implementation="eager",
        )
        self.model = model.train(False)

    def prompt(self, example: Example, date: str) -> list[int]:
        """The ids that a router renders for the question on this day."""
        messages = read_messages(messages_of(example), first_turn=True)
        kind = ToolSettings if example.tools else SystemSettings
        parts = self.renderer.prompt(kind(date=date, effort=example.effort), messages)
        return [token for part in parts for token in part.ids]

    @torch.no_grad()
    def generate(self, prompt: Sequence[int]) -> list[int]:
        """The likeliest continuation, its end included."""
        ids = torch.tensor([list(prompt)])
        stops = [*self.control.stops, self.control.endoftext]
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MOST_TOKENS,
            eos_token_id=stops,
            pad_token_id=self.control.endoftext,
        )
        return [int(token) for token in out[0, len(prompt) :]]

    def read(self, ids: Sequence[int]) -> Answer:
        """What generated ids say."""
        parser = Parser(self.tokenizer, self.control)
        events = [event for token in ids for event in parser.push(token)] + parser.finish()
        said = [event for event in events if isinstance(event, Closed)]
        calls = [event for event in said if event.header.recipient]
        text = "".join(event.text for event in said if event.header.channel == "final" and event not in calls)
        return Answer(text, tuple(Call(c.header.recipient.removeprefix("functions."), c.text) for c in calls))

    def ask_all(self, examples: Sequence[Example], date: str, progress: Progress | None = None) -> list[Answer]:
        """The answers in order."""
        answers = []
        for example in examples:
            answers.append(self.read(self.generate(self.prompt(example, date))))
            if progress is not None:
                progress(len(answers), len(examples))
        return answers
