"""What happens at one node, forward and back: a step, and how relevance is divided. Builds on `network` and `rules`."""
