"""The routes of the OpenAI API, and those beside it."""
