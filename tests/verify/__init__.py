"""Tests of `tpfx verify`: what is right passes, what is planted is found."""
