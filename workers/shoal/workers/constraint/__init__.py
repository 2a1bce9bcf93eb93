"""Constrained generation: which tokens a sequence may have next. It knows bytes and token ids, and no chat format."""
