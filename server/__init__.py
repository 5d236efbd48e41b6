"""The server: HTTP, the OpenAI protocol and text."""
