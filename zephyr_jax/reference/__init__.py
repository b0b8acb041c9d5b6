"""The frozen reference's log-probs: a table on disk, filled by a pass of its own, read by DPO."""
