"""What is proved of a layer by its type: Lipschitz constants, rounding, boxes, lines."""
