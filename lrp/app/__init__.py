"""The command line, `python -m lrp explain`. Builds on the core, `data`, `evaluate` and `teach`."""
