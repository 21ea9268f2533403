"""Tests of the graph of one rank, and of what compiles it."""
