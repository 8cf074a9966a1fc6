"""The role that takes requests in and puts blocks on the journal."""
