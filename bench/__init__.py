"""`tdpipe bench`: measures any OpenAI-compatible server under load."""
