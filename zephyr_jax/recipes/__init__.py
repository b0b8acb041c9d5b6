"""The verbs, as composition roots that read from top to bottom."""
