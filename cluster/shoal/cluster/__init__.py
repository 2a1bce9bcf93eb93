"""Starts, watches and scales a cluster, and the `shoal` command."""
