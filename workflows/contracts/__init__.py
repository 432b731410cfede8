"""What the roles say to each other: signed documents, messages, errors and the rules of authority."""
