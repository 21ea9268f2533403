"""What a rank's graph calls beside ATen ops, made of ATen ops: slices, lookups, collectives."""
