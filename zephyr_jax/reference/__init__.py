"""Log-probs of the frozen reference model: a table on disk, filled by a separate pass, read by DPO."""
