"""Tests of what a rank calls beside ATen: slices, lookups, collectives."""
