"""Which model families are served in stages: `make families`.

Each type in transformers' mapping of causal language models is tried as a small random model with
multipliers away from their defaults. What passes the admission of a start is then loaded from a
checkpoint in two and three stages, and compared with what transformers generates from the same
folder: prompts of 1 to 200 tokens side by side, in chunks of 64, and 24 tokens of each.
"""

import argparse
import logging
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from configs.config import EngineConfig
from configs.schema.model import ModelConfig
from workers.model import stage_model
from workers.model.attention.interface import UnsupportedModelError
from workers.model.proof import admission, skeleton
from workers.model.proof.admission import Exam

Outcome = Literal["exact", "refused", "silent", "crash"]

DOCS = Path("docs/models.md")
BEGIN, END = "<!-- families: make families ARGS=--write -->", "<!-- end of families -->"
PROMPTS, CHUNK, NUM_NEW = (1, 5, 64, 130, 200), 64, 24
PERTURBED = re.compile(r"(multiplier|scal(e|ing|ing_factor)|softcapping|soft_?cap)$")
FACTOR = 1.3
PERTURBED_TO = {"attention_multiplier": 0.2}  # Granite's default of 1 makes softmax a maximum

_ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)
_ROUTED = {"n_routed_experts": 16, "num_experts_per_tok": 4, "first_k_dense_replace": 1}
# What a default config lacks, e.g. because each checkpoint sets it.
SETTINGS: dict[str, dict[str, Any]] = {
    **{family: {"is_decoder": True} for family in _ENCODERS},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "dbrx": {"attn_config": {"kv_n_heads": 4, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"n_group": 4, "topk_group": 2, **_ROUTED},
    "dots1": {"n_group": 2, "topk_group": 1, "n_shared_experts": 1, **_ROUTED},
    "gemma4_text": {"num_kv_shared_layers": 18, "num_hidden_layers": 40},
    "granitemoehybrid": {"layer_types": ["attention"] * 32},
    "lfm2_moe": {"layer_types": ["full_attention"] * 32},
    "nemotron": {"num_key_value_heads": 8},
}


@dataclass(slots=True, frozen=True)
class Result:
    """What became of a family."""

    family: str
    outcome: Outcome
    reason: str = ""


def families() -> list[str]:
    """All types in the mapping."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(family: str, settings: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """A config of the family, with multipliers away from their defaults."""
    config = AutoConfig.for_model(family, **{**SETTINGS.get(family, {}), **(settings or {})})
    perturb(config.get_text_config())
    return config


def perturb(config: PretrainedConfig) -> None:
    """Change the multipliers: with 1, the usual default, a forgotten one has no effect."""
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and PERTURBED.search(name):
            setattr(config, name, PERTURBED_TO.get(name, FACTOR * value))


def admit(family: str, settings: Mapping[str, Any] | None = None) -> None:
    """What a start does; raises `UnsupportedModelError`."""
    try:
        config = config_of(family, settings)
    except Exception as error:  # of any config's validation
        raise UnsupportedModelError(f"no config can be made: {_first_line(error)}") from error
    admission.examine(*stage_model.class_of(config, ModelConfig(model="")))


def try_family(family: str) -> Result:
    """Admit the family, and compare the stages of a checkpoint with transformers."""
    try:
        admit(family)
    except UnsupportedModelError as error:
        reason = _first_line(error).removeprefix(f"{family} models cannot be served: ")
        return Result(family, "refused", reason)
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare_checkpoint(Path(folder), family, exam_of(PROMPTS, NUM_NEW))
        except UnsupportedModelError as error:
            return Result(family, "silent", _first_line(error))
        except Exception as error:  # of any model's code
            return Result(family, "crash", f"{type(error).__name__}: {_first_line(error)}")
    return Result(family, "exact")


def compare_checkpoint(
    folder: Path, family: str, exam: Exam, settings: Mapping[str, Any] | None = None
) -> None:
    """Compare two and three stages with transformers, from the same folder.

    Raises `UnsupportedModelError` where they differ.
    """
    config = config_of(family, settings)
    model_class, text_config = stage_model.class_of(config, ModelConfig(model=""))
    made = admission.whole_of(model_class, text_config)
    made.save_pretrained(folder)
    if text_config is not config:  # as in a checkpoint with other parts, of which only texts count
        small = skeleton.shrink(config)
        small.text_config = made.config
        small.save_pretrained(folder)
    whole = model_class.from_pretrained(
        folder, config=made.config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    reference = admission.generate(whole, exam)
    for split in admission.splits(whole):
        engine_config = EngineConfig.of(
            model=str(folder),
            device="cpu",
            pipeline_parallel_size=len(split),
            layer_split=tuple(map(len, split)),
        )
        structure = admission.admit(engine_config.model)
        device = torch.device("cpu")
        stages = [
            stage_model.load(engine_config, stage, device, structure) for stage in range(len(split))
        ]
        admission.compare(stages, reference, exam)


def exam_of(prompts: tuple[int, ...], num_new: int) -> Exam:
    """Prompts in chunks beside each other, then single tokens."""
    left, steps = list(prompts), []
    decoded = [0] * len(prompts)
    while any(count < num_new for count in decoded):
        counts = []
        for row, prompt in enumerate(left):
            count = min(prompt, CHUNK) if prompt else int(decoded[row] < num_new)
            decoded[row] += 0 if prompt else count
            left[row] -= count if prompt else 0
            counts.append(count)
        steps.append(tuple(counts))
    return Exam(prompts, tuple(steps))


def table(results: Sequence[Result]) -> str:
    """The results in Markdown."""
    counts = Counter(result.outcome for result in results)
    lines = [
        "| outcome | types |",
        "|---|--:|",
        f"| exact in two and three stages | {counts['exact']} |",
        f"| refused at the start, with the reason | {counts['refused']} |",
        f"| different without a word | {counts['silent']} |",
        f"| crash | {counts['crash']} |",
        "",
        "Exact: " + ", ".join(r.family for r in results if r.outcome == "exact") + ".",
        "",
        "| refused because | types |",
        "|---|---|",
    ]
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.outcome != "exact":
            kind = "" if result.outcome == "refused" else f"**{result.outcome}**: "
            reason = re.sub(r"layer \d+ keeps", "a layer keeps", result.reason)
            reasons[kind + reason.replace("|", "\\|")].append(result.family)
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {reason} | {', '.join(names)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a family is different without a word, or crashes."""
    parser = argparse.ArgumentParser(prog="make families", description=__doc__)
    parser.add_argument("families", nargs="*", help="only these types")
    parser.add_argument("--write", action="store_true", help=f"update {DOCS}")
    options = parser.parse_args(arguments)
    names = options.families or families()
    context = multiprocessing.get_context("spawn")
    # A process that has tried many families holds the memory of the largest.
    with context.Pool(min(2, os.cpu_count() or 1), _set_up, maxtasksperchild=12) as pool:
        results = []
        for result in tqdm(pool.imap(try_family, names), total=len(names), disable=None):
            tqdm.write(f"{result.family}: {result.outcome} {result.reason}", file=sys.stderr)
            results.append(result)
    text = table(results)
    print(text)
    if options.write:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return int(any(result.outcome in ("silent", "crash") for result in results))


def _set_up() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
