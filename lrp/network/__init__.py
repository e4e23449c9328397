"""How a model becomes a graph: its calls, the kind of each, its linear maps. Builds on `errors` and `checks` alone."""
