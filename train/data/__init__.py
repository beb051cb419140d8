"""Images and masks on disk, and how they become batches."""
