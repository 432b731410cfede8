"""The boundaries at which crashes are tried, from histories: `python -m tests.workflows.boundaries`.

Prints them sorted, one a line, so that two versions of the code, or of its tests, can be compared.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.driving.site import SharedTemporal, preload_for_all_roles
from tests.workflows.crashing import Crashes
from tests.workflows.gated import GatedHouse


def lines(crashes: Crashes) -> list[str]:
    """All of them, in words."""
    return sorted(
        f"{action}: {one}, {'after' if one.late else 'before'} anybody was asked, role {one.role}"
        for action, boundaries in crashes.boundaries.items()
        for one in boundaries
    )


async def main() -> None:
    """Run each ceremony once, and print."""
    preload_for_all_roles()
    with tempfile.TemporaryDirectory() as folder:
        server = SharedTemporal(Path(folder) / "temporal")
        house = GatedHouse.start(Path(folder) / "site", server)
        try:
            house.client = await house.stack.connect()
            crashes = Crashes(house)
            await crashes.learn()
        finally:
            house.stop()
            server.stop()
    print("\n".join(lines(crashes)))


if __name__ == "__main__":
    asyncio.run(main())
