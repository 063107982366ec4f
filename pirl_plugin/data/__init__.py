"""From image files to batches: which images there are, in which order, and how they are put together."""
