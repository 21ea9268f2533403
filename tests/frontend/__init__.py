"""Tests of the doors: `tpfx.compile`, and `torch.compile` with the backend."""
