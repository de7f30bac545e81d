"""Filters: decide for each document of a batch whether it is kept, and why it is not."""
