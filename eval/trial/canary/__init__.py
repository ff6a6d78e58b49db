"""Runs a public script on streams whose entropy is known, and judges what it claims."""
