"""The strongroom: the only code that ever holds a shard or a MasterKey in plaintext."""
