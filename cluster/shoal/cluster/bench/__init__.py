"""Load on a running cluster, or on an engine alone, and what came of it."""
