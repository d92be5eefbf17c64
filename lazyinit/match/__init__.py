"""Which tensors make which leaves: rules read forwards, backwards, without a tree, and proposed."""
