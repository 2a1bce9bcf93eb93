"""OpenAI's Harmony chat format: control tokens, messages, rendering to ids, parsing from ids."""
