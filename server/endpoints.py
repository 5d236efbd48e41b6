"""The endpoints: all that turns bodies into replies, over HTTP, for batches and offline."""

from dataclasses import dataclass

from configs.schema import Config
from server.chat.chat_template import ChatTemplate, chat_template_of
from server.grammar.grammars import Grammars
from server.lengths.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.openai.routes.chat import Chat
from server.openai.routes.completions import Completions
from server.openai.routes.fingerprint import system_fingerprint
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planner import Planner
from server.requests.reply import Endpoint
from server.text.tokenizer import Tokenizer

PATHS = (Completions.path, Chat.path)


@dataclass(frozen=True)
class Endpoints:
    """One of each kind, on one engine; `grammars` has a process, until they are closed."""

    planner: Planner
    generations: Generations
    chat_template: ChatTemplate
    completions: Completions
    chat: Chat
    grammars: Grammars

    def close(self) -> None:
        """End what they have started."""
        self.grammars.close()

    def all(self) -> list[Endpoint]:
        """Those with a path of `PATHS`, in that order."""
        return [self.completions, self.chat]


def build_endpoints(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    metrics: Metrics,
    predictor: LengthPredictor,
) -> Endpoints:
    """The endpoints of one model; the caller runs `client` and `predictor`, and closes them.

    Raises `ChatTemplateError` when the file with the chat template cannot be used.
    """
    planner = Planner(config, client, tokenizer)
    admission = Admission(config, client)
    generations = Generations(
        client, tokenizer, metrics, predictor, admission, config.request_timeout
    )
    grammars = Grammars(tokenizer)
    template = chat_template_of(config, tokenizer)
    return Endpoints(
        planner,
        generations,
        template,
        Completions(client, tokenizer, planner, generations, grammars, system_fingerprint(config)),
        Chat(config, client, tokenizer, template, planner, generations, grammars),
        grammars,
    )
