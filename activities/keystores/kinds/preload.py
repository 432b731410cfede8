"""Imported by the fork server of a keystore worker: the SDK and its client are made once, for all children.

Constructing a client makes no connection and resolves no credentials, so there is nothing secret to inherit.
Which keystores, comes in the environment variable `OPENKCM_FORKSERVER_KEYSTORES`: a JSON object of names
and settings, in which secrets are only named.
"""

from __future__ import annotations

import json
import os

from activities.keystores.kinds import registry

VARIABLE = "OPENKCM_FORKSERVER_KEYSTORES"

for _name, _table in json.loads(os.environ.get(VARIABLE, "{}")).items():
    registry.preload(_name, registry.parse_settings(_name, _table))
