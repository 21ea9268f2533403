"""Tests of whole models: split, they say, learn and fail as they do unsharded."""
