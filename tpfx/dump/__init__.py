"""A parallel graph as text: names, lines, columns, alike layers once."""
