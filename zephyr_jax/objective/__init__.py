"""The one sequence log-prob and the losses on top of it."""
