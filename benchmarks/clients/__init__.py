"""Client libraries of other people, each from an environment of its own, against one daemon."""
