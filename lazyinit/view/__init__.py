"""Pictures of trees. Nothing else in the package knows that this exists."""
