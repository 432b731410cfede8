"""Every kind of keystore against its real counterpart or an emulator."""
