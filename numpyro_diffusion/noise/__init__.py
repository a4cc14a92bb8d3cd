"""Paths as functions of standard normal noises, and weighted draws of them."""
