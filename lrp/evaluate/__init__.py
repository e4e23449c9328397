"""How good a map is: metrics, flipping, localisation, randomisation, other methods. Builds on the core."""
