"""The parallel graph: axes, layouts, splits, and what passes know of each node.

The rooms above read and write graphs through these modules.
"""
