"""The services on the port: plain objects over registry, engine and reconciler that take and give bytes."""
