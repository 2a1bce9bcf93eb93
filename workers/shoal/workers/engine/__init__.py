"""Many sequences over one model: schedule, run, commit. Knows token ids only."""
