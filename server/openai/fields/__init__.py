"""Fields of requests and answers, as pydantic models."""
