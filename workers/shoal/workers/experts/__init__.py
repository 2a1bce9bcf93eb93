"""Expert parallelism: who holds which expert, and how tokens travel to them and back."""
