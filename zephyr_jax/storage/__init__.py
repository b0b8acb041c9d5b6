"""Paths on disk and on Cloud Storage as one kind; what the cloud refuses, in our words."""
