"""The OpenAI API: routes and how answers are rendered."""
