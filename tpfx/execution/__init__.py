"""The hot path: arguments to ranks, one call on every rank, results back."""
