"""AlpacaEval: win rates against a baseline, by a judge (arXiv 2305.14387, 2404.04475)."""
