"""What the gateway answers by itself. Message in, messages out; no I/O."""
