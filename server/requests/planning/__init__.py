"""Planning: from the fields of a request to the sequences that the engine gets."""
