"""Tests of how a split graph runs and how its results lie."""
