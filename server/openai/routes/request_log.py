"""The request log: logs the lengths and settings of each generation, never its text."""

import logging

from daemon.observability.logs import fields
from server.requests.reply import Reply

logger = logging.getLogger("tdpipe.requests")


def log_request(reply: Reply, request_id: str) -> None:
    """Log one line for one request; stop strings and grammars are only counted."""
    plan, sampling = reply.generation.plan, reply.generation.plan.sampling
    settings = {
        "prompts": len(plan.prompts),
        "prompt_tokens": sum(map(len, plan.prompts)),
        "n": plan.n,
        "max_tokens": max(plan.max_tokens),
        "min_tokens": plan.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": plan.seed,
        "stop_strings": len(plan.stop_strings),
        "grammar": bool(sampling.grammar),
        "stream": reply.stream,
        "offline": plan.offline,
        "low_priority": plan.low_priority,
    }
    text = " ".join(f"{name}={value}" for name, value in settings.items())
    logger.info(
        "%s %s %s",
        request_id,
        reply.rendering.reply_id,
        text,
        extra=fields(request_id=request_id, reply_id=reply.rendering.reply_id, **settings),
    )
