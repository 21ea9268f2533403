"""Ranks that are processes which the caller's process starts."""
