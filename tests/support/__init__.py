"""What test files share, and benchmarks with them: models, samples of ops, programs, comparisons."""
