"""Tests of what tpfx relies on in private parts of torch."""
