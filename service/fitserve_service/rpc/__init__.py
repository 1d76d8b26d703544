"""What calls are made of, below any method: start at `wire_scan`, which bounds a message before it is parsed."""
