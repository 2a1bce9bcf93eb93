"""Other engines on the same checkpoint and prompts, each in its own process and, if need be, its own environment.

They are set up by the benchmark alone and never by an installation: `environments` makes them, a `*_peer` module runs
inside each, `contender` talks to it.
"""
