"""The page at `/`: a live picture of the pipeline, and the stream of its figures."""
