"""Tests of the text of a parallel graph, against goldens."""
