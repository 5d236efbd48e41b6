"""The endpoints of one model, built once for HTTP, batches and the offline `LLM` class."""

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from configs.config import Config
from configs.schema.model import ModelConfig
from daemon.version import VERSION
from server.chat.chat_template import ChatTemplate, chat_template_of
from server.chat.end_tokens import find_end_tokens
from server.grammar.grammars import CheckedGrammars
from server.http.bodies.unknown_fields import UnknownFields
from server.lengths.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.openai.routes.chat import Chat, ConversationPlanner
from server.openai.routes.completions import Completions
from server.openai.routes.endpoint import Endpoint
from server.openai.routes.responses import Responses
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planning.planner import Planner
from server.requests.planning.sampling_defaults import load_sampling_defaults
from server.requests.prefix_digest import PrefixDigest
from server.text.tokenizer import Tokenizer

PATHS = (Completions.path, Chat.path, Responses.path)


@dataclass(frozen=True)
class Endpoints:
    """The endpoints on one engine; `grammars` owns a process until `close`."""

    planner: Planner
    generations: Generations
    chat_template: ChatTemplate
    completions: Completions
    chat: Chat
    responses: Responses
    grammars: CheckedGrammars
    unknown_fields: UnknownFields

    def close(self) -> None:
        """End the process that checks grammars."""
        self.grammars.close()

    def all(self) -> list[Endpoint[Any]]:
        """The endpoints of `PATHS`, in that order."""
        return [self.completions, self.chat, self.responses]


def build_endpoints(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    metrics: Metrics,
    predictor: LengthPredictor,
) -> Endpoints:
    """The endpoints of one model; the caller runs `client` and `predictor`, and closes the result.

    Raises `ChatTemplateError` when the file with the chat template cannot be used, and
    `TokenizerError` when the model's sampling defaults cannot.
    """
    limits = config.server.limits
    template = chat_template_of(config.chat, tokenizer)
    end_token_ids = find_end_tokens(tokenizer, template)
    planner = Planner(
        config.model,
        limits.max_logprobs,
        client,
        tokenizer,
        end_token_ids,
        load_sampling_defaults(config.model),
    )
    admission = Admission(limits, client)
    generations = Generations(
        client,
        tokenizer,
        metrics,
        predictor,
        config.server.connections.request_timeout,
        PrefixDigest(is_enabled=config.cache.enable_prefix_caching),
    )
    grammars = CheckedGrammars(tokenizer)
    fingerprint = system_fingerprint(config.model, config.pipeline.pipeline_parallel_size)
    core = (client, admission, planner, generations)
    conversations = ConversationPlanner(config.chat, planner, tokenizer, template, grammars)
    unknown_fields = UnknownFields(
        strict=limits.strict_fields,
        count=lambda kind, number: metrics.ignored_fields.labels(kind).inc(number),
    )
    return Endpoints(
        planner,
        generations,
        template,
        Completions(*core, tokenizer, grammars, fingerprint, unknown_fields),
        Chat(*core, conversations, tokenizer, fingerprint, unknown_fields),
        Responses(*core, conversations, tokenizer, unknown_fields),
        grammars,
        unknown_fields,
    )


def system_fingerprint(model: ModelConfig, num_stages: int) -> str:
    """`system_fingerprint`: equal for equal software, weights, precision and number of stages."""
    parts = [VERSION, model.model, model.revision, model.dtype, num_stages]
    return f"fp_{hashlib.blake2s(msgspec.json.encode(parts), digest_size=5).hexdigest()}"
