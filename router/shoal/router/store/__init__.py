"""Redis as every part of the router uses it: how to connect, how to run a script, what its absence is called."""
