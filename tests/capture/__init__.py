"""Tests of capture: from a model to graphs that know what their inputs are."""
