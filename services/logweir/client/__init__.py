"""The commands that talk to a Logweir over HTTP, as any client does: send, query, tail."""
