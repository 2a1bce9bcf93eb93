"""What the two public calls do: a request checked and completed, its tokens turned into events."""
