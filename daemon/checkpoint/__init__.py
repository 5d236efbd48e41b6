"""The checkpoint: checked, and found, fetched or made, before anything slow is started."""
