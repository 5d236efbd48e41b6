"""The server: the HTTP door, which speaks the OpenAI protocol and text."""
