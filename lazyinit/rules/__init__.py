"""Rules: how the names and layouts of a checkpoint differ from those of a tree, as values."""
