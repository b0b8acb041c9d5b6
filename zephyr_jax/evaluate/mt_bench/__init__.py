"""MT-Bench: questions of two turns, rated by a judge (arXiv 2306.05685)."""
