"""Stand-ins for services that cannot be installed, for development and tests only."""
