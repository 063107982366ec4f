"""VISSL 0.1.6, unmodified, on today's stack. Importing this package mends what VISSL misses; do so before VISSL."""
