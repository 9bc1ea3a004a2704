"""A synthetic Outbrain at any scale: the raw tables, with a planted signal whose ceiling is known."""
