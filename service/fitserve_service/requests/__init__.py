"""Takes one request from bytes to bytes. Start with `message_spans`, which finds the tensors in a message."""
