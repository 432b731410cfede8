"""What runs at a person's machine."""
