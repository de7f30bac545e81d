"""Turns raw text into token shards, the first half of Folio."""

__version__ = "0.1.0"
