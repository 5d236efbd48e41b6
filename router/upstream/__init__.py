"""The connections to the daemons: HTTP/1.1 whose bodies are passed on as they were received."""
