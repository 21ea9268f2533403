"""Plans as pictures: a tree of modules, chains, SVG, Graphviz, Model Explorer, a page."""
