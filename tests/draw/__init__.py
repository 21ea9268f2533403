"""Tests of drawings of a plan: SVG, DOT, Model Explorer and the HTML page."""
