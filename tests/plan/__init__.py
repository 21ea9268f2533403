"""Tests of plans: their numbers, their files, what they say."""
