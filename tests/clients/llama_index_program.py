"""What LlamaIndex does with a server, as a program: it needs an older `openai` than the other clients.

python -m tests.clients.llama_index_program URL MODEL      prints one JSON object
"""

from __future__ import annotations

import json
import sys


def main(url: str, model: str) -> None:
    """Chat, chat in pieces, completion, and a tool call, in that order."""
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    llm = OpenAILike(
        model=model, api_base=url, api_key="none", is_chat_model=True, is_function_calling_model=True, max_retries=0
    )
    hello = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Hello?")]
    said = {
        "chat": llm.chat(hello).message.content,
        "stream": "".join(piece.delta or "" for piece in llm.stream_chat(hello)),
        "complete": llm.complete("Hello?").text,
    }
    asked = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="Weather in Oslo?")
    calls = [(call.tool_name, call.tool_kwargs) for call in llm.get_tool_calls_from_response(asked)]
    print(json.dumps({**said, "calls": calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])
