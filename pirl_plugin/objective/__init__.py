"""The objective (Eq. 3-5): contrasts, negatives, the memory bank, and the loss over them."""
