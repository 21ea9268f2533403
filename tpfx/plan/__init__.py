"""Plans as files and tables: what a split costs, why it is so, in what two differ."""
