"""The arithmetic: each operation as launcher, torch twin, Triton kernel and native CPU path."""
