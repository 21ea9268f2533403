"""What Dynamo calls and what a compiled model has in the place of its `forward`."""
