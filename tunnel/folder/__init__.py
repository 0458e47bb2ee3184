"""A study's folder on disk: records, checkpoints, curves; one writer at a time."""
