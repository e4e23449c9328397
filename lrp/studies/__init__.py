"""One file per paper, with its method and its experiments. Builds on the core, `data` and `evaluate`."""
