"""The stateless front door: gRPC, Harmony, sessions, choice of worker, relay of tokens."""
