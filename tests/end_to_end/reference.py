"""The reference: transformers' own model, and comparisons that know near-ties."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(slots=True)
class Comparison:
    """How two sets of greedy outputs compare: positions equal, and outputs ended at a near-tie."""

    equal: int = 0
    near_ties: int = 0


class Reference:
    """Greedy generation by transformers, one prompt at a time."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
        self.model.eval()

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """`max_tokens` greedy tokens, the end-of-sequence token treated as any other."""
        self.model.generation_config.eos_token_id = None
        output = self.model.generate(  # type: ignore[operator]
            torch.tensor([list(prompt)]), max_new_tokens=max_tokens, do_sample=False
        )
        ids: list[int] = output[0, len(prompt) :].tolist()
        return ids

    @torch.inference_mode()
    def num_near_ties(self, prompt: Sequence[int], got: Sequence[int], tie: float) -> int:
        """At how many positions another token than the best came, less than `tie` below it.

        Each token is compared with the logits after all that came before it, in one forward: a
        greedy generation of its own would find the same. Raises AssertionError for any other token.
        """
        token_ids = torch.tensor([[*prompt, *got]])
        logits = self.model(token_ids).logits[0, len(prompt) - 1 : -1].float()
        gaps = logits.amax(-1) - logits.gather(-1, torch.tensor(got)[:, None])[:, 0]
        for position, gap in enumerate(gaps.tolist()):
            assert gap < tie, f"position {position}: {got[position]} is {gap:.2e} below the best"
        return int((gaps > 0).sum())

    def num_near_ties_of_all(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], tie: float
    ) -> int:
        """The same of several prompts."""
        pairs = zip(prompts, outputs, strict=True)
        return sum(self.num_near_ties(prompt, got, tie) for prompt, got in pairs)

    @torch.inference_mode()
    def gap(self, token_ids: Sequence[int]) -> float:
        """How far apart the two best logits after these tokens are."""
        best = self.model(torch.tensor([list(token_ids)])).logits[0, -1].float().topk(2).values
        return float(best[0] - best[1])

    def compare(
        self, prompt: Sequence[int], got: Sequence[int], want: Sequence[int], tie: float
    ) -> Comparison:
        """Equal up to the end, or up to a near-tie: the two best logits differ by less than `tie`.

        Raises AssertionError for any other difference.
        """
        for position, (a, b) in enumerate(zip(got, want, strict=True)):
            if a != b:
                gap = self.gap([*prompt, *want[:position]])
                assert gap < tie, f"position {position}: {a} is not {b}, and {gap:.2e} apart"
                return Comparison(equal=position, near_ties=1)
        return Comparison(equal=len(want))
