"""The emulators against recordings of what they stand for."""
