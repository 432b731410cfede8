"""What would happen if a rule were forgotten: each security rule is taken out of a copy, and some test must fail."""
