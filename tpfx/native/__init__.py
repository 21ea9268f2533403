"""The native executor: C++ that runs the ranks' graphs, and their collectives, without Python's lock."""
