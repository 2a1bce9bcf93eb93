"""Who is asking, and what they may do: one door for gRPC and HTTP."""
