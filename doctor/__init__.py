"""tdpipe doctor: what usually goes wrong with several hosts, found before the daemon starts."""
