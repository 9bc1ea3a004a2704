"""Synthetic Outbrain raw tables at any scale, with a planted signal whose best achievable MAP is known."""
