"""A router in front of scripted workers, as the router's own tests have it."""

from tests.router.conftest import model_dir, start_cluster, start_router, tokenizer

__all__ = ["model_dir", "start_cluster", "start_router", "tokenizer"]
