"""What a grammar may cost: the same bounds where it is checked and where it is obeyed.

The server tries every grammar before it admits it, and the last stage follows it token by token;
what has passed the one must not be too much for the other. The figures are llguidance's own except
where a comment says why not.
"""

from llguidance import LLParserLimits

# A grammar travels with its request to every stage and lies in the journal.
MAX_GRAMMAR_BYTES = 256 * 1024


def grammar_limits() -> LLParserLimits:
    """Bounds on building a grammar's automata, and on each mask that they give.

    With them no mask of ours took more than some 20 ms with a vocabulary of 108,000 tokens, however
    it was meant to (docs/structured_outputs.md).
    """
    return LLParserLimits(
        # 2000: an ambiguous grammar (`x: x x | "a"`) reached 260 ms a mask before it ran into it.
        max_items_in_row=1000,
        # 250,000: at 1 to 2 kB each, one sequence could have filled half a gigabyte.
        max_lexer_states=50_000,
        # Errors go into logs and answers, and must not bring the grammar or the output along.
        verbose_errors=False,
    )
