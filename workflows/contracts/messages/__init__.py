"""What travels through Temporal: inputs and answers of activities and workflows. Begin with `protection`.

Messages may grow: new fields have defaults, unknown ones are ignored. Nothing in them is secret: keys are
wrapped by a keystore, or encrypted to a one-shot process, or encrypted under such a key.
"""
