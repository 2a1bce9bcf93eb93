"""The audit trail: who did what, kept so that a change to it shows."""
