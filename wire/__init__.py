"""Communication between processes: the messages, and the sockets that carry them."""
