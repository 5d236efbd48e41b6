"""Files and batches: offline requests in files, run on capacity that online requests leave."""
