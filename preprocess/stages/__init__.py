"""Stages of preprocessing, one module each: pure functions of a batch of documents and settings."""
