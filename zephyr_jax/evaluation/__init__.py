"""Judges, and the published benchmarks that ask them."""
