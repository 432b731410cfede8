"""What several ceremonies share."""
