"""What each op does with dimensions: rules as data, and the table of ops."""
