"""The OpenAI-compatible HTTP API: JSON to the messages of the gRPC API and back. What serves them is the same."""
