"""One module for each kind of keystore, behind one protocol."""
