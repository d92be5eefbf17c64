"""Named sources -> files: in bounded memory, and so that a reader sees the old or the new whole."""
