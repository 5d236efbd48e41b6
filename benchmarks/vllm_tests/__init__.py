"""vLLM's own HTTP tests against tdpipe's daemon; nothing of them is part of the project."""
