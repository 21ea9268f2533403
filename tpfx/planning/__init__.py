"""Which way each op is carried out: the choices, what they cost, and the exact minimum of the sum."""
