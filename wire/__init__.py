"""How the processes talk: the messages, and the sockets that carry them."""
