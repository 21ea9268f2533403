"""The one room in which private names of torch occur; `tests/torch_internals` says what each must do."""
