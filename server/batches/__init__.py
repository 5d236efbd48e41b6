"""Files and batches: runs the requests of files in the capacity that online requests leave."""
