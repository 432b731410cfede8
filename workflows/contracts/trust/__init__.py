"""What every role verifies for itself: documents, signatures, roster and authority."""
