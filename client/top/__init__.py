"""`tdpipe top`: the page of the daemon, in a terminal."""
