"""The state machines of a MasterKey's life, and the contracts that every role shares.

Nothing here does input or output, holds a secret, or imports an SDK of a keystore.
"""
