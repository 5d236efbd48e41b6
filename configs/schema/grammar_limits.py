"""What a grammar may cost: the same bounds where it is checked and where it is obeyed.

The server tries every grammar before it admits it, and the last stage follows it token by token;
what has passed the one must not be too much for the other. The figures are llguidance's own except
where a comment says why not.
"""

from llguidance import LLParserLimits

# A grammar travels with each sequence to every stage and lies in the journal.
MAX_GRAMMAR_BYTES = 256 * 1024
# Of all sequences of one request: 4 KiB for each of the most that it may have (4096).
MAX_GRAMMAR_BYTES_OF_REQUEST = 16 * 1024 * 1024


def grammar_limits() -> LLParserLimits:
    """Bounds on building a grammar's automata, and on each mask that they give."""
    return LLParserLimits(
        # 2000: a grammar that is ambiguous in every way (`x: x x | "a" | ""`) reached 1.6 s a mask
        # with 108,000 tokens before it ran into that, and 0.2 s with this. An optional property of
        # an object takes four.
        max_items_in_row=1000,
        # 250,000: at 1 to 2 kB each, one sequence could have filled half a gigabyte.
        max_lexer_states=50_000,
        # Errors go into logs and answers, and must not bring the grammar or the output along.
        verbose_errors=False,
    )
