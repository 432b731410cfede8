"""Keystores: one module for each kind of KMS or HSM, one protocol, each SDK imported only when used."""
