"""Results of a run: records of its requests, summaries, reports and pictures."""
