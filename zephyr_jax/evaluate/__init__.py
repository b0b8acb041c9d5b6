"""Evaluation: held-out loss and preference accuracy, MT-Bench, AlpacaEval, lm-eval and the paper's tables."""
