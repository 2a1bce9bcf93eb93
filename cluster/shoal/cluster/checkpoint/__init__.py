"""Making, inspecting and verifying checkpoint directories."""
