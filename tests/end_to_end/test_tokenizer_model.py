"""A Llama with nothing but a sentencepiece model: its texts are those of transformers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from client.llm import LLM
from client.sampling_params import SamplingParams
from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.kernels import prepare_data_dir
from tests.server.text.tokenizer_kinds import sentencepiece_model

PROMPTS = ["The capital of France is", "hello", "é€", "def f(x):\n", "1 2 3 "]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("llama"), "llama", vocab_size=360, num_hidden_layers=2
    )
    shutil.rmtree(folder / TOKENIZER)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe", byte_fallback=True))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}'
    )
    return folder


def test_prompts_and_outputs_together_are_decoded_as_transformers_does(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    settings: dict[str, Any] = {"dtype": "float32", "profile_seconds": 0.3}
    settings |= {"pipeline_parallel_size": 2, "data_dir": str(prepare_data_dir(tmp_path))}
    with LLM(str(folder), **settings) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        token_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert output.prompt_token_ids == token_ids[0].tolist()
        found = model.generate(
            token_ids, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
        )[0].tolist()
        answer = output.outputs[0]
        assert answer.token_ids == found[token_ids.shape[1] :]
        before, whole = (
            tokenizer.decode(ids, skip_special_tokens=True) for ids in (token_ids[0], found)
        )
        assert answer.text == whole[len(before) :]
