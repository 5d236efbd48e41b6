"""The routing rules by name."""

from configs.schema.router import RoutingConfig
from router.routing.adaptive import Adaptive
from router.routing.ecoserve import EcoServe
from router.routing.rule import Rule
from router.routing.simple import LeastLoaded, PrefixAffine, RoundRobin


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
