"""The connection to Temporal, configured as the SDK documents: `temporalio.envconfig` (profiles, TLS, API keys)."""

from __future__ import annotations

from dataclasses import replace

from temporalio.api.failure.v1 import Failure
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DefaultFailureConverter, PayloadConverter
from temporalio.envconfig import ClientConfig
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError

from workflows.contracts.trust.errors import ConfigurationInvalid


class ReadableFailures(DefaultFailureConverter):
    """Reads failures also when their details are nonsense.

    The SDK would fail the workflow task for ever: one worker's failure could stop a ceremony permanently.
    """

    def from_failure(self, failure: Failure, payload_converter: PayloadConverter) -> BaseException:
        """The exception of a failure; without the details that cannot be read."""
        try:
            return super().from_failure(failure, payload_converter)
        except Exception:  # noqa: BLE001 - whatever is wrong with them
            readable = Failure()
            readable.CopyFrom(failure)
            inner = readable
            while True:
                if inner.HasField("application_failure_info"):
                    inner.application_failure_info.ClearField("details")
                if not inner.HasField("cause"):
                    return super().from_failure(readable, payload_converter)
                inner = inner.cause


DATA_CONVERTER = replace(pydantic_data_converter, failure_converter_class=ReadableFailures)
"""How everything that travels through Temporal is written and read."""


async def connect(metrics: str | None = None) -> Client:
    """Connect with the environment's or the profile's settings.

    Args:
        metrics: HOST:PORT to serve Prometheus metrics on (Temporal's own, and those of drills), if any.

    Raises:
        ConfigurationInvalid: nothing answers, or it refuses us, or the port for metrics is taken.
    """
    options = ClientConfig.load_client_connect_config()
    address = options.get("target_host", "localhost:7233")
    options.setdefault("target_host", address)
    runtime = None
    if metrics is not None:
        try:
            telemetry = TelemetryConfig(metrics=PrometheusConfig(bind_address=metrics))
            runtime = Runtime(telemetry=telemetry)
        except (RuntimeError, ValueError):
            raise ConfigurationInvalid(f"[metrics] listen: cannot serve metrics on {metrics}") from None
    try:
        return await Client.connect(**options, data_converter=DATA_CONVERTER, runtime=runtime)
    except RPCError as error:
        reason = f"it answers {error.status.name}"
    except RuntimeError:
        reason = "nothing answers there"
    raise ConfigurationInvalid(
        f"cannot connect to Temporal at {address}: {reason}",
        next_step="set TEMPORAL_ADDRESS, or TEMPORAL_PROFILE for a profile of the Temporal configuration file",
    )
