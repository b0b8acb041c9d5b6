"""Runs that are killed again and again, and what is lost by it: nothing."""
