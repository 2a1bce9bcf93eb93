"""What a router promises about a grammar and a worker keeps: one way to compile it, with one set of bounds.

A router checks here, without a vocabulary, that a grammar compiles, so that it can be refused before anything is sent;
a worker compiles the same text for its vocabulary.
"""

from __future__ import annotations

import functools
import json

import llguidance

from shoal.proto.v1 import constraint_pb2 as pb

LONGEST_SOURCE = 1 << 20
"""Characters of one grammar."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between JSON values. Bounded: a model that repeats itself would otherwise indent for ever."""

# Where only one text is left the library would choose its tokens itself, but how a text is cut is the model's affair.
_FREE = '\n%llguidance {"no_forcing": true}\n'


class GrammarError(ValueError):
    """A grammar that cannot be compiled; the message says why, and where as far as it is known."""


def limits() -> llguidance.LLParserLimits:
    """Bounds on what one grammar may cost: a hostile one fails within about a second and tens of megabytes."""
    return llguidance.LLParserLimits(max_lexer_states=50_000, max_grammar_size=500_000, verbose_errors=False)


def compiled_form(kind: pb.GrammarKind.ValueType, source: str) -> str:
    """The grammar as the library takes it. Raises GrammarError when it is no JSON, no schema, or too long."""
    if len(source) > LONGEST_SOURCE:
        raise GrammarError(f"the grammar has {len(source)} characters, at most {LONGEST_SOURCE} are allowed")
    match kind:
        case pb.GRAMMAR_KIND_JSON_SCHEMA | pb.GRAMMAR_KIND_JSON_SCHEMA_LENIENT:
            return _json_form(source, lenient=kind == pb.GRAMMAR_KIND_JSON_SCHEMA_LENIENT)
        case pb.GRAMMAR_KIND_REGEX:
            parts = json.loads(llguidance.LLMatcher.grammar_from_regex(source))
            return str(parts["grammars"][0]["lark_grammar"]) + _FREE
        case pb.GRAMMAR_KIND_LARK:
            if not source.strip():
                raise GrammarError("the grammar is empty")
            return source + _FREE
        case _:
            raise GrammarError(f"grammars of kind {kind} are not known here")


def compile_grammar(
    kind: pb.GrammarKind.ValueType, source: str, tokenizer: llguidance.LLTokenizer
) -> llguidance.LLMatcher:
    """A matcher at the beginning of a text. The last id of `tokenizer` is its end token and stands for no text.

    Raises GrammarError, also when no text satisfies the grammar. Other threads run meanwhile.
    """
    form = compiled_form(kind, source)
    if kind == pb.GRAMMAR_KIND_LARK:
        _refuse_control_tokens(form)
    matcher = llguidance.LLMatcher(tokenizer, form, log_level=0, limits=limits())
    possible = b"" if matcher.is_error() else matcher.compute_logit_bias()
    if matcher.is_error():
        raise GrammarError(reason_of(matcher.get_error()))
    if not (any(possible[:-1]) or matcher.is_accepting()):
        raise GrammarError("no text satisfies the grammar")
    return matcher


def check_grammar(kind: pb.GrammarKind.ValueType, source: str) -> tuple[str, ...]:
    """Compile as a worker would, over single bytes; returns warnings, such as keywords that are ignored.

    Raises GrammarError. May take a second for a large grammar: not for an event loop's thread.
    """
    matcher = compile_grammar(kind, source, _bytes_alone())
    return tuple(reason_of(warning) for warning in matcher.get_grammar_warnings())


def reason_of(message: str) -> str:
    """The library's words without its stack traces."""
    reason = message.split("<backtrace>")[0].split("<non-verbose/>")[0].split("<state>")[0]
    reason = "\n".join(line for line in reason.splitlines() if not line.endswith(_FREE.strip())).strip()
    return "no text satisfies the grammar" if reason.startswith("NoExtension") else reason


def _refuse_control_tokens(lark: str) -> None:
    """Without a tokenizer the library warns of every token that is named."""
    _, messages = llguidance.LLMatcher.validate_grammar_with_warnings(lark)
    if any(message.startswith("no tokenizer") for message in messages):
        raise GrammarError("a grammar describes text: control tokens cannot be named in it")


class _Bytes:
    """A vocabulary of the 256 bytes and an end token, as `llguidance.TokenizerWrapper` asks for it."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes((byte,)) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _bytes_alone() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def _json_form(source: str, lenient: bool) -> str:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError(f"a JSON Schema is an object, not {type(schema).__name__}")
    options = {"whitespace_pattern": WHITESPACE, "lenient": lenient, "coerce_one_of": lenient}
    schema = {**schema, "x-guidance": options}  # in place of the caller's, which could make it another language
    outer = {"lark_grammar": f"{_FREE}start: @value"}
    return json.dumps({"grammars": [outer, {"name": "value", "json_schema": schema}]})
