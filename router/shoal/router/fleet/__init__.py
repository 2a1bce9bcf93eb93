"""The workers as a router sees them: who they are, one stream to each, which one gets what."""
