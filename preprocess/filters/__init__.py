"""Filters: decide for each document of a batch whether it is kept, and give the reason if it is not."""
