"""The journal of running requests: what was accepted, what was generated so far, and who may go on with it."""
