"""From image files to batches: listing images, ordering them, and collating them into batches."""
