"""What fits on which GPUs, and how fast it can be at most: arithmetic alone, without torch."""
