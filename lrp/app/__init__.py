"""The command line, `python -m lrp explain`. Builds on the core, `data`, `evaluate` and `teach`."""

COMPOSITES = {
    "epsilon": "epsilon in all layers",
    "epsilon-plus": "z+ in convolutions, epsilon in dense layers",
    "epsilon-plus-flat": "the same, flat in the first layer",
    "epsilon-gamma-box": "gamma in convolutions, epsilon in dense layers, z-box at the pixels",
    "epsilon-alpha2-beta1": "alpha-beta in convolutions, epsilon in dense layers",
    "epsilon-alpha2-beta1-flat": "the same, flat in the first layer",
    "relevance-splitting": "for ResNets: z+, z-box at the pixels, biases excluded, no dots",
}
OURS = ".lrp.png"  # how the pictures written here end; in a folder they are left alone
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
