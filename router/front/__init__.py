"""The router's HTTP interface: requests are parsed once, and answers are passed through."""
