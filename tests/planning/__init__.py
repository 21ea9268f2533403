"""Tests of how the cheapest layouts are found."""
