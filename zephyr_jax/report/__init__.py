"""The HTML report of a run, its check against expected ranges, and the data preview."""
