"""The parallel graph: axes, layouts, splits, and what passes know of each node.

Everything to the right reads and writes graphs through these modules.
"""
