"""Tests of the commands of `tpfx`."""
