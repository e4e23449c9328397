"""What is explained: pictures, fields, trained networks and their checkpoints, downloads. Builds on the core."""
