"""Pretext tasks: sets T of image transformations t, and how an image becomes the views I and I^t (Section 2.3)."""
