"""Publish, restore, follow, verify, log shipping: plans carried out against store and disk."""
