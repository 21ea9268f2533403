"""Tests of each pass, text in, text out, and of the pipeline."""
