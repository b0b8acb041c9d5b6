"""Optimizer, state, step, evaluation, report and the loop. The objective comes in as a function."""
