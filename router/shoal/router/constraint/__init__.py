"""What a turn may look like, as the constraint that a worker enforces: Harmony's headers, tools, answer, reasoning."""
