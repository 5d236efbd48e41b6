"""The routing rules by name."""

from configs.schema.router import RoutingConfig
from router.decisions.routing.adaptive import Adaptive
from router.decisions.routing.ecoserve import EcoServe
from router.decisions.routing.rule import Rule
from router.decisions.routing.simple import LeastLoaded, PrefixAffine, RoundRobin


def make_rule(config: RoutingConfig) -> Rule:
    """Create the configured rule."""
    match config.routing:
        case "adaptive":
            return Adaptive(config)
        case "ecoserve":
            return EcoServe()
        case "round-robin":
            return RoundRobin()
        case "least-loaded":
            return LeastLoaded()
        case "prefix":
            return PrefixAffine()
