"""Tests of meshes, rank threads, processes and their collectives."""
