"""Benchmarks: each writes a record to tests/bench/results/, with the machine it ran on."""
