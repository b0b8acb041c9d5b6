"""One config a verb: its sections, and the check that they hold together. Never imports jax.

A *card* is a YAML file that fills one of these; dotted overrides on the command line win over the card. Settings that
cannot take effect together are refused, never ignored.
"""
