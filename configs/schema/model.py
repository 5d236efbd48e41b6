"""Settings of the model: the checkpoint, its precision and names, and the prompts of chats."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from configs.schema.part import Part, split_commas

DEMO_MODEL = Path(__file__).resolve().parents[2] / "demo" / "model"
GGUF = ".gguf"

Texts = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


class ModelConfig(Part, title="Model"):
    """The checkpoint, its precision and its names in the API."""

    model: str = Field(
        str(DEMO_MODEL),
        description="folder of a checkpoint, a GGUF file, a Hugging Face hub id, or smollm2, a "
        "small model in a Python package [the demo model]",
    )
    served_model_name: Texts = Field(
        (),
        description="model names that requests may use; responses carry the first "
        "[last component of MODEL]",
    )
    tokenizer: str | None = Field(
        None, description="folder or hub id of the tokenizer [that of MODEL]"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model [main]")
    trust_remote_code: bool = Field(
        False, description="run Python code that the checkpoint contains"
    )
    load_format: Literal["safetensors", "pt"] = Field(
        "safetensors",
        description="format of the weight files; pt reads pytorch_model.bin and unpickles "
        "nothing but tensors",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="precision of weights and KV cache; auto: that of the checkpoint"
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="maximum tokens of prompt and output together [the limit of the model, "
        "reduced to the size of the KV cache]",
    )

    generation_config: str = Field(
        "auto",
        min_length=1,
        description="defaults of sampling fields that a request does not set; auto: those in the "
        "model's generation_config.json, vllm: those of the API, or a folder with such a file",
    )

    @property
    def name(self) -> str:
        """The model's name in the API."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that clients may use for the model."""
        if self.served_model_name:
            return self.served_model_name
        if self.model == str(DEMO_MODEL):
            return ("tdpipe-demo",)
        path = Path(self.model)
        if path.is_dir():
            return (path.resolve().name,)
        return (path.stem if path.suffix == GGUF else self.model,)

    @field_validator("served_model_name")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(names):
            raise ValueError("a name must not be empty")
        return names


class ChatConfig(Part, title="Chat"):
    """How conversations become prompts, and output becomes messages."""

    chat_template: Path | None = Field(
        None, description="file with a Jinja chat template [that of the model]"
    )
    trust_request_chat_template: bool = Field(
        False,
        description="accept chat_template in requests; rendering one may take any amount of time "
        "and memory",
    )
    tool_call_parser: Literal[
        "auto", "hermes", "llama3_json", "mistral", "mistral_list", "qwen3_xml", "none"
    ] = Field(
        "auto",
        description="format of the tool calls that the model generates; auto: detected from the "
        "chat template",
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        "auto",
        description="format of the reasoning that the model generates; auto: detected from the "
        "chat template",
    )
