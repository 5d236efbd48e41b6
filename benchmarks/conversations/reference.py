"""The reference: what transformers answers on its own, one prompt at a time, in fp32."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

Message = dict[str, str]


@dataclass(slots=True, frozen=True)
class Answer:
    """A greedy answer; `logprobs` are of all tokens, [output tokens, vocabulary]."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: Tensor

    def gap(self, position: int) -> float:
        """How far apart the logits of the two most likely tokens are."""
        best = self.logprobs[position].topk(2).values
        return float(best[0] - best[1])


@dataclass(slots=True)
class Reference:
    """transformers with a checkpoint in fp32: a folder, or a GGUF file. Answers are kept."""

    model: PreTrainedModel
    tokenizer: Any
    max_tokens: int
    _answers: dict[tuple[str, ...], Answer] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, max_tokens: int) -> "Reference":
        """Load it as transformers does. Raises `OSError` if there is no such checkpoint."""
        folder, own = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **own)
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder, **own), max_tokens)

    def block_bytes(self, block_size: int) -> int:
        """The bytes of a KV block in one layer, in fp32."""
        config = self.model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        return block_size * 2 * int(config.num_key_value_heads) * int(head_dim) * 4

    @property
    def num_layers(self) -> int:
        """The model's layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @torch.inference_mode()
    def answer(self, messages: list[Message]) -> Answer:
        """The greedy answer to the last message."""
        key = tuple(text for message in messages for text in message.values())
        if key not in self._answers:
            prompt = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            output = cast(Any, self.model).generate(
                **prompt,
                max_new_tokens=self.max_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            prompt_ids = prompt["input_ids"][0].tolist()
            token_ids = output.sequences[0, len(prompt_ids) :].tolist()
            logprobs = torch.cat(output.logits).log_softmax(-1)
            self._answers[key] = Answer(prompt_ids, token_ids, logprobs)
        return self._answers[key]

    @torch.inference_mode()
    def logprobs(self, token_ids: list[int]) -> Tensor:
        """The log-probabilities of all tokens after each token. [tokens, vocabulary]"""
        logits: Tensor = self.model(torch.tensor([token_ids])).logits[0]
        return logits.log_softmax(-1)
