"""Tools that run on the server in the middle of a turn: the seam, who is configured, and a scripted one for tests."""
