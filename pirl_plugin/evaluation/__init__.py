"""Evaluations of a network: kNN, linear probes, quality by layer, invariance, spread."""
