"""The actuators by the names that they have in the settings."""

from collections.abc import Sequence

from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import Actuator
from router.actuators.fixed import FixedActuator
from router.actuators.kube_api import KubeApi
from router.actuators.kubernetes import KubernetesActuator
from router.actuators.local import LocalActuator
from router.actuators.webhook import WebhookActuator


def make_actuator(
    config: ScalingConfig, instances: Sequence[str] = (), api_key: str | None = None
) -> Actuator:
    """The actuator of the settings.

    `instances` are the URLs of those that are fixed, and local ones demand the `api_key`. Raises
    `ActuatorError` in one line if the actuator cannot work here.
    """
    match config.actuator:
        case "fixed":
            return FixedActuator(instances)
        case "local":
            return LocalActuator(config, api_key)
        case "kubernetes":
            return KubernetesActuator(config, KubeApi(config))
        case "webhook":
            return WebhookActuator(config)
