"""The role that answers searches and tails."""
