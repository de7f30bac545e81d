"""The command `preprocess`."""
