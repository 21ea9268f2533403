"""Figures that tpfx is held to: `python -m benchmarks.generate` and `python -m benchmarks.plan`."""
