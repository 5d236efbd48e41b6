"""Conversations: chat templates, tool calls, reasoning."""
