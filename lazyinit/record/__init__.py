"""A model -> a tree of thunks. One file per kind of model."""
