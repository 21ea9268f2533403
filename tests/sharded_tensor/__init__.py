"""Tests of eager ops, optimizers and state dicts of sharded tensors."""
