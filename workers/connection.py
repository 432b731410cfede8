"""The connection to Temporal, configured as the SDK documents: `temporalio.envconfig` (profiles, TLS, API keys)."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from workflows.contracts.errors import ConfigurationInvalid


async def connect() -> Client:
    """Connect with the environment's or the profile's settings.

    Raises:
        ConfigurationInvalid: nothing answers, or it refuses us.
    """
    options = ClientConfig.load_client_connect_config()
    address = options.get("target_host", "localhost:7233")
    options.setdefault("target_host", address)
    try:
        return await Client.connect(
            **options,
            data_converter=pydantic_data_converter,
        )
    except (RuntimeError, RPCError) as error:
        raise ConfigurationInvalid(
            f"cannot connect to Temporal at {address}: {str(error)[:200]}",
            next_step="set TEMPORAL_ADDRESS, or TEMPORAL_PROFILE for a profile of the Temporal configuration file",
        ) from None


RPC_TIMEOUT = timedelta(seconds=10)
