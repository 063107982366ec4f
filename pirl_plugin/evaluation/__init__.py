"""What a network is worth: kNN, linear probes, quality by layer, invariance, spread."""
