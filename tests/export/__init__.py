"""Tests of plans written for transformers and for torch's own tensor parallelism."""
