"""The endpoints: all that turns bodies into replies, over HTTP, for batches and offline."""

from dataclasses import dataclass

from configs.schema import Config
from server.completions import Completions
from server.engine_client import EngineClient
from server.generation import Generations
from server.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.planner import Planner
from server.reply import Endpoint
from server.tokenizer import Tokenizer

PATHS = (Completions.path,)


@dataclass(frozen=True)
class Endpoints:
    """One of each kind, on one engine."""

    planner: Planner
    completions: Completions

    def all(self) -> list[Endpoint]:
        """Those with a path of `PATHS`, in that order."""
        return [self.completions]


def build_endpoints(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    metrics: Metrics,
    predictor: LengthPredictor,
) -> Endpoints:
    """The endpoints of one model; the caller runs `client` and `predictor`."""
    planner = Planner(config, client, tokenizer)
    generations = Generations(client, tokenizer, metrics, predictor, config.max_num_queued_reqs)
    return Endpoints(planner, Completions(client, tokenizer, planner, generations))
