"""Sources made of other sources: each maps an index back onto what it reads."""
