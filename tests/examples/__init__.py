"""The examples: each runs, as a script and as a notebook, and says what it says to readers."""
