"""Renders the NGINX configuration that stands in front of the roles."""
