"""What happens to a batch of documents, one file a step: pure functions of a batch and its settings."""
