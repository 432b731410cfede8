"""The hardened process that does one thing and exits; three roles use it."""
