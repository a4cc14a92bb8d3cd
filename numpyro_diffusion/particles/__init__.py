"""Weighted particles on the levels of a diffusion: pure functions of arrays."""
