"""The router: one OpenAI-compatible interface for many daemons, after EcoServe."""
