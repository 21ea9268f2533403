"""Tests of axes, their notation, layouts and shards."""
