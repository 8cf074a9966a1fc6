"""The role that moves blocks from the journal into segments."""
